"""The linear probe as a command: features from blocks or embeddings, the grid, the choice, resuming, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from digpt.artifact import write_checkpoint
from digpt.engine import Engine
from digpt.errors import DataError, DigptError
from digpt.probe import ProbeConfig, TrainedProbe
from digpt.results import read_results
from digpt.testing import tiny_checkpoint
from digpt.testing_trees import write_train, write_val
from evaluate import compare, linear_probe, recompute, store, verify
from evaluate.features import FeatureStore
from evaluate.progress import no_progress
from evaluate.suite_emoji import Neighbours, emoji_suite
from evaluate.testing import cell, suite_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "ckpt.pt"
    write_checkpoint(path, tiny_checkpoint())
    return path


QUICK = ("--threads", "1", "--device", "cpu", "--iterations", "30", "--probe-batch", "64", "--limit", "40")


def test_the_command_leaves_results_grid_and_head(checkpoint, emoji_root, tmp_path, capsys):
    arguments = [str(checkpoint), "--data-root", str(emoji_root), "--output", str(tmp_path), *QUICK]
    assert linear_probe.main([*arguments, "--learning-rates", "0.001", "0.1"]) == 0
    out, err = capsys.readouterr()
    assert "linear probe" in out and "chosen of" in err
    document = read_results(tmp_path)
    assert document.model.classifier == "linear probe"
    assert {(r.split, r.metric) for r in document.results} == {
        (split, f"probe_top{top}") for split in ("val", "flat", "contrast") for top in (1, 5)
    }
    assert document.protocol["probe"]["iterations"] == 30 and "knn" not in document.protocol
    grid = json.loads((tmp_path / "grid.json").read_text())
    names = {row["features"] for row in grid["grid"]}
    assert len(grid["grid"]) == 2 * len(names) and len(names) >= 3
    best = max(row["held_out_top1"] for row in grid["grid"])
    chosen = next(row for row in grid["grid"] if row["held_out_top1"] == best)
    assert grid["chosen"] == {key: chosen[key] for key in ("features", "learning_rate")}
    assert TrainedProbe.load(tmp_path / "probe.npz").learning_rate == chosen["learning_rate"]
    before = (tmp_path / "results.json").read_bytes()
    assert linear_probe.main([*arguments, "--learning-rates", "0.001", "0.1"]) == 0  # all of it is there
    assert (tmp_path / "results.json").read_bytes() == before
    assert linear_probe.main([*arguments, "--learning-rates", "0.001"]) == 2
    assert "protocol.probe.learning_rates" in capsys.readouterr().err


def test_embeddings_alone_where_a_runtime_gives_no_blocks_and_separable_ones_are_separated(emoji, rigged, tmp_path):
    """The rigged runtime puts every image beside its subgroup: a linear head must find all of them."""
    runtime = rigged(emoji, subgroup=lambda concept, style: int(emoji.concepts[concept].subgroup[-1]), text=False)
    document, probes = linear_probe.run(
        linear_probe.features_of(Engine(runtime), "float32"),
        emoji_suite(emoji, splits=(), knn=Neighbours(k=(1,))),
        ProbeConfig(learning_rates=(1e-5, 1.0), iterations=60, batch_size=64),
        tmp_path,
        progress=no_progress,
    )
    assert {probe.name for probe in probes} == {"embedding"}
    assert {result.value for result in document.results} == {1.0}


def test_the_reported_sets_do_not_choose_the_head(emoji, rigged, tmp_path):
    """On training images one column tells the subgroup, on the reported ones it lies: the choice must not notice."""

    def subgroup(concept, style):
        right = int(emoji.concepts[concept].subgroup[-1])
        held_out = style == emoji.concepts[concept].val_style
        return (right + 1) % 6 if style in ("flat", "contrast") or held_out else right

    runtime = rigged(emoji, subgroup=subgroup, text=False)
    document, probes = linear_probe.run(
        linear_probe.features_of(Engine(runtime), "float16"),
        emoji_suite(emoji, splits=(), knn=Neighbours(k=(1,))),
        ProbeConfig(learning_rates=(1e-5, 1.0), iterations=60, batch_size=64),
        tmp_path,
        progress=no_progress,
    )
    assert max(probe.held_out_accuracy for probe in probes) == 1.0
    assert {result.value for result in document.results if result.metric == "probe_top1"} == {0.0}
    assert np.load(tmp_path / "features.npy", mmap_mode="r").dtype == np.float16
    assert len(np.load(tmp_path / "features.npy", mmap_mode="r")) == sum(
        len(emoji_cell) for emoji_cell in emoji_suite(emoji, splits=(), knn=Neighbours(k=(1,))).cells
    )


def test_the_store_of_a_probe_is_recomputed_and_compared(checkpoint, emoji_root, tmp_path, capsys):
    arguments = [str(checkpoint), "--data-root", str(emoji_root), *QUICK, "--learning-rates", "0.1"]
    for name in ("a", "b"):
        assert linear_probe.main([*arguments, "--output", str(tmp_path / name)]) == 0
    names = ("results.json", "per_class.csv")
    written = [(tmp_path / "a" / name).read_bytes() for name in names]
    classes = [line.split(",")[2:4] for line in written[1].decode().splitlines()[1:]]
    assert {name for _, name in classes} == {f"things-{label}" for label in range(6)}  # subgroups, not concepts
    assert all(name == f"things-{label}" for label, name in classes)
    for name in names:
        (tmp_path / "a" / name).unlink()
    assert recompute.main([str(tmp_path / "a")]) == 0
    assert [(tmp_path / "a" / name).read_bytes() for name in names] == written
    capsys.readouterr()
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b"), "--fail-if-worse", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["metrics"], document["family"]) == (["probe_top1"], 3)
    values = {(r.split, r.metric): r.value for r in read_results(tmp_path / "a").results}
    assert {(row["split"], row["metric"]): row["a"] for row in document["rows"]} == values
    kept = store.Store.open(tmp_path / "b")
    labels = next(view.labels for view in kept.views if view.split == "flat")
    kept.put("emoji/flat", 0, {"logits": -np.eye(6, dtype=np.float32)[labels]})  # never right
    assert compare.main([str(tmp_path / "a"), str(tmp_path / "b"), "--fail-if-worse"]) == 1
    assert "emoji/flat probe_top1 (25.00 to 0.00 %" in capsys.readouterr().out


def test_features_lie_in_one_file_and_are_marked_shard_by_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD", 4)
    suite = suite_of([cell("toy/val", 5), cell("toy/train", 6)], [])
    model = {"ref": {"spec": "x", "name": "x"}, "zero_shot": None}

    def rows(start, stop):
        return {"features": np.arange(2 * start, 2 * stop, dtype=np.float32).reshape(-1, 2)}

    kept = FeatureStore.create(tmp_path / "features", suite, model)
    for name, shard, first in (("toy/val", 1, 104), ("toy/train", 0, 0), ("toy/val", 0, 100)):
        span = kept.rows_of(name, shard)
        kept.put(name, shard, rows(first, first + span.stop - span.start))
    again = FeatureStore.create(tmp_path / "features", suite, model)
    assert again.missing() == [("toy/train", 1)]
    again.put("toy/train", 1, rows(4, 6))
    np.testing.assert_array_equal(again.array("toy/train", "features"), rows(0, 6)["features"])
    np.testing.assert_array_equal(again.array("toy/val", "features"), rows(100, 105)["features"])
    content = (tmp_path / "features.npy").read_bytes()
    (tmp_path / "features.npy").write_bytes(content[:-4])
    with pytest.raises(DataError, match="features.npy is damaged: delete it"):
        again.array("toy/val", "features")
    for lost in (content[:-4], b""):  # nothing of a file that was cut short counts, and it is made anew as a whole
        (tmp_path / "features.npy").write_bytes(lost)
        assert len(again.missing()) == 4
    again.put("toy/train", 1, rows(4, 6))
    assert again.missing() == [("toy/train", 0), ("toy/val", 0), ("toy/val", 1)]
    with pytest.raises(DataError, match="lacks features of toy/train"):
        again.array("toy/train", "features")
    (tmp_path / "features.npy").unlink()
    assert len(again.missing()) == 4
    again.put("toy/val", 0, rows(100, 104))
    assert again.missing() == [
        ("toy/train", 0),
        ("toy/train", 1),
        ("toy/val", 1),
    ]  # their rows are gone, so their marks


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    kept = FeatureStore.create(
        tmp_path / "features",
        suite_of([cell("toy/val", 3)], []),
        {"ref": {"spec": "x", "name": "x"}, "zero_shot": None},
    )

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("evaluate.features.os.fsync", full)
    with pytest.raises(DataError, match="features.npy cannot be written: No space left on device"):
        kept.put("toy/val", 0, {"features": np.zeros((3, 2), np.float32)})
    assert kept.missing() == [("toy/val", 0)]


def test_the_budget_is_imagenets_for_imagenets_classes_whatever_a_folder_is_called(checkpoint, tmp_path, monkeypatch):
    asked = []

    class Stopped(DigptError):
        """Before anything is computed."""

    def run(features, suite, config, output, **options):
        asked.append(config.iterations)
        raise Stopped("enough")

    monkeypatch.setattr(linear_probe, "run", run)
    for split in ("train", "val"):
        for name in ("blue", "green"):
            folder = tmp_path / "imagenet" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(folder / f"{split}.png")
    write_train(tmp_path / "family", (3, 500), 2)
    write_val(tmp_path / "family", (3, 500), 1)
    quick = [str(checkpoint), "--threads", "1", "--device", "cpu"]
    assert linear_probe.main([*quick, "--data", f"folder:{tmp_path / 'imagenet'}"]) == 2
    assert linear_probe.main([*quick, "--data-root", str(tmp_path / "family")]) == 2
    assert asked == [1000, 12_500]


def test_parts_and_launchers_are_refused(checkpoint, capsys, monkeypatch):
    assert linear_probe.main([str(checkpoint), "--part", "1/2", "--output", "x"]) == 2
    assert "is done by one process" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert linear_probe.main([str(checkpoint)]) == 2
    assert verify.main(["bundled"]) == 2


def test_the_grid_is_dinov2s():
    config = linear_probe.ProbeOptions().config(imagenet=True)
    assert (len(config.learning_rates), config.iterations, config.batch_size) == (13, 12_500, 1024)
    assert (config.momentum, config.held_out) == (0.9, 0.1)
