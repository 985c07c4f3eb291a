"""The passport over HTTP: a model's own page, in a cage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from digpt.engine import Engine
from digpt.passport import FINGERPRINT_META, PASSPORT_NAME
from digpt.report import document, policy
from digpt.runtime.fake import FakeRuntime


def test_the_page_is_served_as_it_lies_there(serving: Callable[..., Any], tmp_path: Path) -> None:
    runtime = FakeRuntime(spec=str(tmp_path))
    page = document("passport of a model", meta={FINGERPRINT_META: runtime.info.fingerprint})
    client = serving({"mine": Engine(runtime), "other": Engine(FakeRuntime(dim=8, spec=str(tmp_path)))})
    missing = client.get("/models/mine/card")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "passport_not_found"
    assert "python -m export.card --html makes one" in missing.json()["error"]["message"]
    (tmp_path / PASSPORT_NAME).write_text(page, encoding="utf-8")
    answer = client.get("/models/mine/card")
    assert (answer.status_code, answer.text) == (200, page)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    rules = answer.headers["content-security-policy"]
    assert rules.startswith(policy()) and rules.endswith("sandbox allow-scripts")
    assert "default-src 'none'" in rules and "frame-ancestors 'self'" in rules
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/models/other/card").status_code == 404  # the page there is about other weights
    assert client.get("/models/none/card").json()["error"]["code"] == "model_not_found"
