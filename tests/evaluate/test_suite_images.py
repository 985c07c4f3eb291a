"""One's own pictures: by a linear head or by the folders' names, with corruptions, neighbours, and clear refusals."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from digpt.engine import Engine
from digpt.errors import ConfigError, DataError
from digpt.results import Result
from digpt.runtime.fake import FakeRuntime
from evaluate import imagenet, robustness
from evaluate.run import run_suite
from evaluate.suite_emoji import Neighbours
from evaluate.suite_images import images_suite
from evaluate.sweep import Sweep

CLASSES = {"blue": (0, 0, 200), "dark_red": (90, 0, 0), "green": (0, 200, 0)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for split, count in (("train", 4), ("val", 3)):
        for name, color in CLASSES.items():
            folder = tmp_path / "my-pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 30), color).save(folder / f"{number}.png")
    return tmp_path / "my-pictures"


class Channels(FakeRuntime):
    """Embeds by mean colour; its texts are the classes' own colours. Dark pictures look like nothing to it."""

    def embed(self, images: np.ndarray) -> np.ndarray:
        return np.maximum(images.mean(axis=(1, 2)) - 100, 0.01).astype(np.float32)

    def embed_texts(self, texts: Any) -> np.ndarray:
        colors = {name.replace("_", " "): color for name, color in CLASSES.items()}
        return np.array([[max(c - 100, 1) for c in colors[text]] for text in texts], np.float32)

    def logits(self, images: np.ndarray) -> np.ndarray:
        order = [2, 0, 1]  # of the labels below: blue, dark_red, green
        return self.embed(images)[:, order]


def rows_of(runtime: FakeRuntime, spec: str, **asked: Any) -> dict[tuple[str, str, str], Result]:
    labels = runtime.info.labels if runtime.info.head == "linear" else None
    document = run_suite(Engine(runtime), images_suite(spec, labels=labels, **asked)).document
    assert document is not None
    return {(r.dataset, r.split, r.metric): r for r in document.results}


def test_a_linear_head_by_its_labels(pictures):
    runtime = Channels(text=False, linear_head=True, labels=tuple(CLASSES), dim=3)
    rows = rows_of(runtime, f"folder:{pictures}")
    # Dark red is a tie of all three, and the first class is taken.
    assert rows["my-pictures", "val", "top1"].value == pytest.approx(2 / 3)
    assert rows["my-pictures", "val", "top1"].n == 9


def test_zero_shot_by_the_names_of_the_folders(pictures):
    rows = rows_of(Channels(dim=3), f"folder:{pictures}")
    assert rows["my-pictures", "val", "top1"].value == 1.0


def test_corruptions_and_their_label(pictures):
    sweep = Sweep(64, corruptions=("brightness", "contrast"), severities=(1, 5))
    rows = rows_of(Channels(dim=3), f"folder:{pictures}", sweep=sweep)
    assert ("my-pictures-c-on-the-fly", "mean", "error") in rows
    assert not any(metric == "mce" for _, _, metric in rows)


def test_neighbours_among_the_training_images(pictures):
    rows = rows_of(Channels(dim=3, text=False), f"folder:{pictures}", knn=Neighbours(k=(1, 4)))
    assert {key[2]: r.value for key, r in rows.items()} == {"knn_top1_k1": 1.0, "knn_top1_k4": 1.0}
    with pytest.raises(ConfigError, match="k=20 exceeds the 12 training images"):
        images_suite(f"folder:{pictures}", knn=Neighbours())


def test_pictures_without_splits_are_not_their_own_neighbours(pictures):
    with pytest.raises(DataError, match="has no splits"):
        images_suite(f"folder:{pictures / 'val'}", knn=Neighbours(k=(1,)))


def test_pictures_that_changed_do_not_continue_a_store(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("evaluate.cli.Engine.load", lambda *args, **kwargs: Engine(Channels(dim=3)))
    arguments = ["x", "--data", f"folder:{pictures}", "--output", str(tmp_path / "out")]
    assert imagenet.main(arguments) == 0
    shutil.move(pictures, tmp_path / "moved" / pictures.name)
    moved = ["x", "--data", f"folder:{tmp_path / 'moved' / pictures.name}", "--output", str(tmp_path / "out")]
    assert imagenet.main(moved) == 0  # where they lie does not matter
    Image.new("RGB", (90, 90), (0, 200, 0)).save(tmp_path / "moved" / pictures.name / "val" / "blue" / "1.png")
    assert imagenet.main(moved) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "answers about other files: those of my-pictures/val were added, removed or changed" in error
    assert imagenet.main([*moved, "--overwrite"]) == 0


def test_a_head_for_other_classes_and_pictures_without_folders(pictures, tmp_path):
    with pytest.raises(DataError, match=r"'blue'.* not among the 2 classes .*evaluate\.knn and evaluate\.linear_probe"):
        images_suite(f"folder:{pictures}", labels=("cat", "dog"))
    other = Channels(dim=3, text=False, linear_head=True, labels=("cat", "dog"))
    rows = rows_of(other, f"folder:{pictures}", knn=Neighbours(k=(1,)))
    assert rows["my-pictures", "val", "knn_top1_k1"].value == 1.0  # a head of other classes is no hindrance
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "a.png")
    with pytest.raises(DataError, match="a folder per class"):
        images_suite(f"folder:{tmp_path / 'flat'}")


def write_shard(folder: Path, labels: list[str], classes: str = "") -> str:
    """One webdataset shard of pictures with these labels, in the colours of `CLASSES`."""
    folder.mkdir(parents=True)
    colors = list(CLASSES.values())
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for number, label in enumerate(labels):
            buffer = io.BytesIO()
            Image.new("RGB", (40, 30), colors[int(label or 0) % 3]).save(buffer, "PNG")
            for extension, data in (("png", buffer.getvalue()), ("cls", label.encode())):
                info = tarfile.TarInfo(f"{number:04d}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    if classes:
        (folder / "classes.txt").write_text(classes)
    return f"wds:{folder / '00000.tar'}"


def test_shards_without_names_are_numbered_as_the_head_is(tmp_path):
    spec = write_shard(tmp_path / "shards", ["0", "2", "2", "1"])
    runtime = Channels(text=False, linear_head=True, labels=tuple(CLASSES), dim=3)
    rows = rows_of(runtime, spec)
    assert rows["00000.tar", "val", "top1"].value == 0.75  # dark red is a tie
    assert rows["00000.tar", "val", "top1"].n == 4
    with pytest.raises(DataError, match=r"does not name its classes: .* classes.txt"):
        images_suite(spec)


@pytest.mark.parametrize("labels", [None, tuple(CLASSES)])
def test_a_label_that_is_no_class_is_named(tmp_path, labels):
    spec = write_shard(tmp_path / "shards", ["0", "1", "7", "9"], "" if labels else "blue\ndark_red\ngreen\n")
    message = r"00000.tar: 0002 has the label 7, but the 3 classes are numbered from 0 to 2 \(2 such images\)"
    with pytest.raises(DataError, match=message):
        images_suite(spec, labels=labels)


def test_a_sample_without_label_is_named(tmp_path):
    with pytest.raises(DataError, match=r"00000.tar: 0001 has no .cls file with a number"):
        images_suite(write_shard(tmp_path / "shards", ["0", ""]), labels=tuple(CLASSES))


def test_neighbours_of_a_class_without_validation_images(pictures):
    """The training images name the classes: those of validation may lack one, but have no other."""
    shutil.rmtree(pictures / "val" / "blue")
    suite = images_suite(f"folder:{pictures}", knn=Neighbours(k=(1,)))
    assert suite.class_ids == tuple(CLASSES)
    shutil.rmtree(pictures / "train" / "green")
    with pytest.raises(DataError, match="val has the class 'green'"):
        images_suite(f"folder:{pictures}", knn=Neighbours(k=(1,)))


def test_the_commands(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("evaluate.cli.Engine.load", lambda *args, **kwargs: Engine(Channels(dim=3)))
    data = ["x", "--data", f"folder:{pictures}"]
    assert imagenet.main(data) == 0
    assert "my-pictures val" in capsys.readouterr().out
    assert robustness.main(data) == 0
    assert "my-pictures-c-on-the-fly: top-1 error" in capsys.readouterr().out
    assert robustness.main([*data, "--data-root", str(tmp_path)]) == 2
    assert "exclude each other" in capsys.readouterr().err
