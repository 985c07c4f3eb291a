"""The store of answers: what is kept, what is refused, and that every number comes from it alone."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digpt.errors import ConfigError, DataError
from digpt.results import ModelRef
from digpt.runtime.fake import FakeRuntime
from evaluate import store as store_module
from evaluate.measure import document_of
from evaluate.store import Store, differences, view_arrays, views_from
from evaluate.suite import Cell, KnnView, Suite, View


class NoImages:
    def __len__(self) -> int:
        return 5

    def read(self, index: int) -> Any:
        raise AssertionError("numbers need no images")


def suite(**changes: Any) -> Suite:
    rows = np.arange(5, dtype=np.int64)
    cell = Cell("set/val", NoImages(), rows, tuple("abcde"), "sha256:0", embeddings=True)
    labels = np.array([0, 1, 2, 0, 1])
    view = View("set", "val", cell.id, rows, labels, groups=np.array([0, 0, 1, 1, 2]))
    several = View("set", "real", cell.id, rows[:2], labels[:2], answers=((0, 2), (1,)))
    some = View("set", "some", cell.id, rows[1:3], labels[1:3], classes=np.array([1, 2]))
    knn = KnnView("set", "val", cell.id, rows, labels, cell.id, rows, labels, (1,), 0.07, 3)
    protocol = {"name": "made", "version": 1, "seed": 0}
    whole = Suite("made", ("x", "y", "z"), (cell,), (view, several, some, knn), protocol)
    return replace(whole, **changes)


def model(**changes: Any) -> dict[str, Any]:
    ref = asdict(ModelRef.of(FakeRuntime(text=False).info, "linear head"))
    return {"ref": {**ref, **changes}, "zero_shot": None}


LOGITS = np.array([[3, 0, 0], [0, 3, 0], [3, 0, 0], [3, 0, 0], [0, 0, 3]], np.float32)


def answers() -> dict[str, np.ndarray]:
    return {"logits": LOGITS, "embeddings": np.eye(5, dtype=np.float32)}


def test_a_store_read_back_gives_the_same_numbers_as_in_memory(tmp_path):
    documents = []
    for root in (None, tmp_path / "store"):
        store = Store.create(root, suite(), model())
        store.put("set/val", 0, answers())
        documents.append(document_of(store))
    documents.append(document_of(Store.open(tmp_path)))
    assert documents[0] == documents[1] == documents[2]
    rows = {(r.split, r.metric): r.value for r in documents[0].results}
    assert rows["val", "top1"] == pytest.approx(3 / 5)
    assert rows["real", "top1"] == 1.0
    assert rows["some", "top1"] == 0.5  # the third image ties among the two classes, and the earlier one is taken
    assert rows["val", "knn_top1_k1"] == 1.0


def test_views_survive_the_file():
    views = suite().views
    kinds = ["classify", "classify", "classify", "knn"]
    metas = [store_module._meta(view) for view in views]
    assert [meta["kind"] for meta in metas] == kinds
    again = views_from(json.loads(json.dumps(metas)), view_arrays(views))
    for one, other in zip(views, again, strict=True):
        assert type(one) is type(other)
        for name, value in vars(one).items():
            np.testing.assert_equal(getattr(other, name), value)


def test_what_is_missing_is_known_and_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "SHARD", 2)
    store = Store.create(tmp_path / "store", suite(), model())
    assert store.missing() == [("set/val", 0), ("set/val", 1), ("set/val", 2)]
    assert [store.rows_of("set/val", shard) for shard in range(3)] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    store.put("set/val", 1, {name: rows[2:4] for name, rows in answers().items()})
    again = Store.create(tmp_path / "store", suite(), model())
    assert again.missing() == [("set/val", 0), ("set/val", 2)]
    with pytest.raises(DataError, match="lacks shard 0 of set/val"):
        again.array("set/val", "logits")


@pytest.mark.parametrize(
    ("asked", "of", "message"),
    [
        ({"protocol": {"name": "made", "version": 1, "seed": 1}}, {}, "protocol.seed: 0 against 1"),
        ({}, {"fingerprint": "sha256:f"}, "model.fingerprint"),
        ({}, {"backend": "onnx"}, 'model.backend: "fake" against "onnx"'),
        ({"class_names": ("x", "y", "w")}, {}, 'class_names.2: "z" against "w"'),
    ],
)
def test_another_question_or_model_is_refused(tmp_path, asked, of, message):
    Store.create(tmp_path / "store", suite(), model())
    with pytest.raises(ConfigError, match=message) as caught:
        Store.create(tmp_path / "store", suite(**asked), model(**of))
    assert "--overwrite" in str(caught.value)
    assert Store.create(tmp_path / "store", suite(**asked), model(**of), overwrite=True).missing()


def test_another_build_of_the_engine_is_refused_and_an_earlier_store_goes_on(tmp_path):
    built = model(engine="sha256:one")
    Store.create(tmp_path / "store", suite(), built).put("set/val", 0, answers())
    assert document_of(Store.create(tmp_path / "store", suite(), built)).model.engine == "sha256:one"
    with pytest.raises(ConfigError, match=r"another build of the engine: the model was exported again .*--overwrite"):
        Store.create(tmp_path / "store", suite(), model(engine="sha256:other"))
    with pytest.raises(ConfigError, match=r"model\.fingerprint: .*f\"\. Give"):  # where the other file comes from
        Store.create(tmp_path / "store", suite(), model(engine="sha256:other", fingerprint="sha256:f"))
    path = tmp_path / "store" / "store.json"
    header = json.loads(path.read_text())
    del header["model"]["engine"]
    path.write_text(json.dumps(header))
    for store in (Store.create(tmp_path / "store", suite(), built), Store.open(tmp_path)):
        assert not store.missing() and document_of(store).model.engine is None  # who answered, it does not say


def test_where_the_model_lies_does_not_matter(tmp_path):
    Store.create(tmp_path / "store", suite(), model())
    Store.create(tmp_path / "store", suite(), model(spec="elsewhere/ckpt.pt", name="elsewhere"))


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_damaged_shard_is_named(tmp_path, content):
    store = Store.create(tmp_path / "store", suite(), model())
    store.put("set/val", 0, answers())
    path = tmp_path / "store" / "cells" / "set" / "val" / "00000.npz"
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(DataError, match=r"00000\.npz is damaged: delete it"):
        document_of(Store.open(tmp_path))


def test_a_shard_of_another_length_is_damaged(tmp_path):
    store = Store.create(tmp_path / "store", suite(), model())
    store.put("set/val", 0, {name: rows[:3] for name, rows in answers().items()})
    with pytest.raises(DataError, match="is damaged"):
        store.array("set/val", "logits")


def test_foreign_and_newer_stores(tmp_path):
    with pytest.raises(DataError, match="no store"):
        Store.open(tmp_path)
    Store.create(tmp_path / "store", suite(), model())
    header = tmp_path / "store" / "store.json"
    values = json.loads(header.read_text())
    header.write_text(json.dumps({**values, "version": 2}))
    with pytest.raises(DataError, match="version 2; this program reads 1"):
        Store.open(tmp_path)
    header.write_text("{")
    with pytest.raises(DataError, match="damaged"):
        Store.open(tmp_path)


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    store = Store.create(tmp_path / "store", suite(), model())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("digpt.files.os.fsync", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        store.put("set/val", 0, answers())
    assert store.missing() and not list(Path(tmp_path).rglob("*.tmp"))


def test_text_scores_are_scale_times_cosine_plus_bias():
    text = {**model(), "zero_shot": {"logit_scale": 10.0, "logit_bias": -2.0}}
    store = Store.create(None, suite(), text)
    store.put("set/val", 0, {"embeddings": np.eye(5, 2, dtype=np.float32)})
    store.put_matrix(np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32))
    whole, _, some, _ = store.views
    np.testing.assert_allclose(store.scores(whole)[0], [8, 4, -2], rtol=1e-6)
    np.testing.assert_allclose(store.scores(some), [[6, 8], [-2, -2]], rtol=1e-6)


def test_differences_name_the_path():
    one = {"a": {"b": [1, 2]}, "c": 1}
    assert differences(one, one) == []
    assert differences(one, {"a": {"b": [1, 3]}, "d": 1}) == [
        "a.b.1: 2 against 3",
        "c: 1 against null",
        "d: null against 1",
    ]


def test_a_folder_that_is_no_store_is_not_removed(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="is not removed"):
        Store.create(tmp_path / "store", suite(), model(), overwrite=True)
    assert (tmp_path / "store" / "mine.txt").exists()
