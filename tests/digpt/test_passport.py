"""Where a passport lies, and that nobody else's is taken for a model's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from digpt import passport
from digpt.passport import FINGERPRINT_META, PASSPORT_NAME, passport_path, read_passport
from digpt.report import document
from digpt.sources import BUNDLED


def page_of(fingerprint: str, title: str = "x") -> str:
    return document(title, meta={FINGERPRINT_META: fingerprint})


def test_it_lies_beside_the_model(tmp_path: Path) -> None:
    checkpoint = tmp_path / "ckpt.pt"
    checkpoint.touch()
    assert passport_path(str(tmp_path)) == passport_path(str(checkpoint)) == tmp_path / PASSPORT_NAME
    assert passport_path("bundled") == BUNDLED / PASSPORT_NAME
    assert [passport_path(spec) for spec in ("http://127.0.0.1:1#x", "timm:resnet18", "no-such-model")] == [None] * 3


def test_only_the_page_of_these_very_weights_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_passport(str(tmp_path), "sha256:a") is None
    page = page_of("sha256:a", title="sha256:b")  # a page may name others, such as the model's teachers
    (tmp_path / PASSPORT_NAME).write_text(page, encoding="utf-8")
    assert read_passport(str(tmp_path), "sha256:a") == page
    assert read_passport(str(tmp_path), "sha256:b") is None
    monkeypatch.setattr(passport, "MOST_BYTES", len(page) - 1)
    assert read_passport(str(tmp_path), "sha256:a") is None
