"""The linear probe as a command: features from blocks or embeddings, the grid, the choice, resuming, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

from digpt.artifact import write_checkpoint
from digpt.engine import Engine
from digpt.probe import ProbeConfig, TrainedProbe
from digpt.results import read_results
from digpt.testing import tiny_checkpoint
from evaluate import linear_probe, verify
from evaluate.progress import no_progress
from evaluate.suite_emoji import Neighbours, emoji_suite


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


def test_parts_and_launchers_are_refused(checkpoint, capsys, monkeypatch):
    assert linear_probe.main([str(checkpoint), "--part", "1/2", "--output", "x"]) == 2
    assert "is done by one process" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert linear_probe.main([str(checkpoint)]) == 2
    assert verify.main(["bundled"]) == 2


def test_the_grid_is_dinov2s():
    config = linear_probe.ProbeOptions().config("imagenet")
    assert (len(config.learning_rates), config.iterations, config.batch_size) == (13, 12_500, 1024)
    assert (config.momentum, config.held_out) == (0.9, 0.1)
