"""The index of the Search tab: built once, batch by batch, and what it finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import search
from app.handlers import search_query
from app.search import ImageIndex, Pictures, folder
from digpt.data.emoji import EmojiSet
from digpt.engine import Engine
from digpt.errors import DataError, InputError
from digpt.runtime.fake import FakeRuntime


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime(dim=8)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five pictures, one of them deep down, a damaged one and a text."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.JPG", "c.png", "d.png", "deep/er/e.png"]):
        Image.new("RGB", (64, 64), (10 * number, 0, 0)).save(tmp_path / name)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("x")
    return tmp_path


def test_a_folder_is_indexed_once_and_says_so(
    runtime: FakeRuntime, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "BATCH", 4)
    index = ImageIndex(Engine(runtime), folder(pictures))
    said = [index.progress() for _ in index.build()]
    assert said == [
        "Indexing, once: 4 of 6 pictures. The nearest so far:",
        "The nearest of 5 pictures (1 could not be read):",
    ]
    assert runtime.batches == [3, 2] and list(index.build()) == []
    query = search_query(index.engine, str(pictures / "deep/er/e.png"), "")
    hits = index.nearest(query, 3)
    assert (hits[0].name, hits[0].data) == ("deep/er/e.png", (pictures / "deep/er/e.png").read_bytes())
    assert hits[0].cosine == pytest.approx(1) and len(hits) == 3
    assert [hit.cosine for hit in hits] == sorted((hit.cosine for hit in index.nearest(query)), reverse=True)[:3]


def test_what_is_indexed_is_kept_when_somebody_leaves(
    runtime: FakeRuntime, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "BATCH", 2)
    index = ImageIndex(Engine(runtime), folder(pictures))
    leaves = index.build()
    next(leaves)
    leaves.close()
    assert index.done == 2 and runtime.batches == [2]
    first, second = index.build(), index.build()  # two people wait: each computes what the other has not
    next(first), next(second)
    assert index.done == 6 and sum(runtime.batches) == 5
    assert list(first) == list(second) == []


def test_words_are_searched_with_the_models_templates(pictures: Path) -> None:
    engine = Engine(FakeRuntime(dim=8, templates=("a {}", "the {}")))
    np.testing.assert_array_equal(search_query(engine, str(pictures / "a.png"), " dog "), engine.class_matrix(["dog"]))
    with pytest.raises(InputError, match="Type words or give a picture"):
        search_query(engine, None, "  ")


def test_asking_first_builds(runtime: FakeRuntime, pictures: Path) -> None:
    index = ImageIndex(Engine(runtime), folder(pictures))
    assert len(index.nearest(index.engine.class_matrix(["dog"]))) == 5


def test_nothing_readable_is_no_error(runtime: FakeRuntime) -> None:
    index = ImageIndex(Engine(runtime), Pictures("pictures", ("x",), lambda n: b"", ""))
    assert index.nearest(index.engine.class_matrix(["dog"])) == []
    assert index.progress() == "The nearest of 0 pictures (1 could not be read):"


def test_a_folder_without_pictures_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no pictures to search"):
        folder(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        folder(tmp_path / "absent")
    (tmp_path / "x.png").touch()
    assert folder(tmp_path).code == f"folder({str(tmp_path)!r})"
    assert folder(tmp_path, "DIR").code == "folder('DIR')"


def test_the_bundled_set_is_searched_in_the_styles_never_trained_on() -> None:
    emoji = EmojiSet.load()
    pictures = search.bundled(emoji)
    assert len(pictures.names) == len(emoji.images("flat")) + len(emoji.images("contrast"))
    assert {name.rpartition(" (")[2] for name in pictures.names} == {"flat)", "high contrast)"}
    number = pictures.names.index("rocket (flat)")
    assert pictures.read(number) == next(
        image.encoded for image in emoji.images("flat") if emoji.concepts[image.concept].name == "rocket"
    )
