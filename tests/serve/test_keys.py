"""Bearer keys: who may ask, who may change, and what stays open."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import serve.cli
from digpt.engine import Engine
from digpt.errors import ConfigError
from digpt.runtime.fake import FakeRuntime
from digpt.runtime.remote import RemoteRuntime
from serve.cli import ServeConfig, build, shows_demo
from serve.keys import Keys

USER, ADMIN = "user-key-0123456789", "admin-key-0123456789"
OPEN = ["/health/live", "/health/ready", "/docs", "/openapi.json", "/favicon.ico", "/manifest.json"]
GUARDED = ["/models", "/models/fake", "/v1/models", "/class-sets", "/nowhere", "/metrics", "/docs/x"]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def guarded(serving: Callable[..., Any]) -> Any:
    return serving(Engine(FakeRuntime(dim=8)), keys=Keys([USER, "second-key-0123456789"], [ADMIN]))


def test_what_is_open_and_what_is_not(guarded: httpx.Client) -> None:
    assert [guarded.get(path).status_code for path in OPEN] == [200, 200, 200, 200, 204, 200]
    for path in GUARDED:
        answer = guarded.get(path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"
        error = answer.json()["error"]
        assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
    for path in ("/embed", "/classify", "/v1/embeddings"):
        assert guarded.post(path, json={"texts": ["x"]}).status_code == 401
    assert guarded.put("/class-sets/x", json={"labels": ["a"]}).status_code == 401


@pytest.mark.parametrize("key", [USER, "second-key-0123456789", ADMIN])
def test_every_known_key_is_good(guarded: httpx.Client, key: str) -> None:
    assert guarded.get("/models", headers=bearer(key)).status_code == 200
    assert guarded.get("/models", headers={"Authorization": f"bearer  {key}"}).status_code == 200
    assert guarded.post("/embed", json={"texts": ["x"]}, headers=bearer(key)).status_code == 200
    assert guarded.put("/class-sets/x", json={"labels": ["a"]}, headers=bearer(key)).status_code == 201


@pytest.mark.parametrize("given", ["", USER, f"Basic {USER}", f"Bearer {USER}x", f"Bearer {USER[:-1]}", "Bearer"])
def test_anything_else_is_not(guarded: httpx.Client, given: str) -> None:
    assert guarded.get("/models", headers={"Authorization": given}).status_code == 401


def test_administration_takes_an_administrators_key(guarded: httpx.Client, serving: Callable[..., Any]) -> None:
    answers = [guarded.post("/models/fake/load", headers=head) for head in ({}, bearer(USER), bearer(ADMIN))]
    assert [answer.status_code for answer in answers] == [401, 403, 202]
    assert answers[1].json()["error"]["code"] == "admin_key_required"
    without = serving(Engine(FakeRuntime(dim=8)))
    assert without.post("/models/fake/load", headers=bearer(ADMIN)).status_code == 401
    assert without.post("/models/fake/unload").status_code == 401


def test_with_administrators_keys_only_reading_is_open(serving: Callable[..., Any]) -> None:
    client = serving(Engine(FakeRuntime(dim=8)), keys=Keys(admin=[ADMIN]))
    assert client.post("/embed", json={"texts": ["x"]}).status_code == 200
    assert client.get("/class-sets").status_code == 200
    assert client.put("/class-sets/x", json={"labels": ["a"]}).status_code == 401
    assert client.delete("/class-sets/x").status_code == 401
    assert client.put("/class-sets/x", json={"labels": ["a"]}, headers=bearer(ADMIN)).status_code == 201


def test_metrics_may_be_open(serving: Callable[..., Any]) -> None:
    client = serving(Engine(FakeRuntime(dim=8)), keys=Keys([USER]), open_metrics=True)
    assert client.get("/metrics").status_code != 401
    assert client.get("/metricsx").status_code == 401


def test_a_key_is_compared_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    exact = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or exact(a, b))
    keys = Keys([USER, "second-key-0123456789"], [ADMIN])
    for key, role in ((USER, "user"), (ADMIN, "admin"), ("nobody", None), ("ä", None)):
        compared.clear()
        assert keys.role(key) == role
        assert len(set(compared)) == 3
    assert USER not in str(vars(keys))


def test_where_keys_come_from(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfile-key-0123456789\n\nadmin:file-admin-0123456789\n")
    keys = Keys.read({"DIGPT_API_KEYS": f"{USER}, ", "DIGPT_ADMIN_KEYS": ADMIN}, file)
    assert [keys.role(key) for key in (USER, ADMIN, "file-key-0123456789", "file-admin-0123456789")] == [
        *("user", "admin", "user", "admin")
    ]
    assert not Keys.read({}).set
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no key"):
        Keys.read({}, file)
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys.read({}, tmp_path / "absent")
    for key in ("short", "with space 0123456789", "nön-ascii-0123456789"):
        with pytest.raises(ConfigError, match="at least 16"):
            Keys([key])


def test_the_command_line_reads_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(serve.cli.Engine, "load", lambda *_, **__: Engine(FakeRuntime()))
    served: list[Any] = []
    monkeypatch.setattr(serve.cli.Server, "run", lambda server: served.append(server))
    monkeypatch.setenv("DIGPT_API_KEYS", USER)
    assert serve.cli.main([]) == 0
    assert "/demo" not in capsys.readouterr().out
    monkeypatch.setenv("DIGPT_API_KEYS", "short")
    assert serve.cli.main([]) == 2
    assert "short" not in capsys.readouterr().err


def test_the_demo_with_keys(serving_app: Any) -> None:
    assert [
        shows_demo(ServeConfig(open_demo=asked), Keys(known)) for asked in (False, True) for known in ([], [USER])
    ] == [*(True, False, True, True)]
    assert not shows_demo(ServeConfig(demo=False, open_demo=True), Keys([USER]))
    with serving_app(build(ServeConfig(), {"fake": Engine(FakeRuntime(dim=8))}, Keys([USER]))) as client:
        assert client.get("/demo/").status_code == 404


def test_a_remote_runtime_shows_its_key(guarded: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIGPT_API_KEY", USER)
    remote = RemoteRuntime(str(guarded.base_url).rstrip("/"))
    assert remote.embed_texts(["x"]).shape == (1, 8)
    remote.close()
