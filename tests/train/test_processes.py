"""Two processes over gloo against one: identical samples, equal losses; resuming with another number of processes."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import webdataset
from PIL import Image

from digpt.artifact import read_checkpoint
from digpt.errors import ConfigError
from train.share import Share

Alone = Callable[[str], tuple[Path, list[dict[str, float]]]]
WORKER = Path(__file__).with_name("processes_worker.py")


def run(output: Path, world: int, command: str, **changes: Any) -> list[dict[str, float]]:
    """Train with ``world`` processes; the logged rows that have a loss."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = json.dumps({"output": str(output), **changes})
    # a script finds the packages that are installed, which another checkout's may be
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2])}
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(world), str(port), command, given],
            cwd=WORKER.parents[2],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=240)[1] for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(errors)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def seen(output: Path, world: int) -> list[Any]:
    """Every sample of every step in the order of the global batch."""
    parts = [part for rank in range(world) for part in json.loads((output / f"seen-{rank}.json").read_text())]
    samples = []
    for step, first, epochs, items, digests in parts:
        places = range(first, first + len(items))
        samples += list(zip([step] * len(items), places, epochs, items, digests, strict=True))
    return sorted(samples)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """The folder and the rows of a command run in one process."""

    @cache
    def one(command: str) -> tuple[Path, list[dict[str, float]]]:
        folder = tmp_path_factory.mktemp(command)
        return folder, run(folder, 1, command)

    return one


def assert_equal(first: list[dict[str, float]], second: list[dict[str, float]], *endings: str) -> None:
    assert [row["step"] for row in first] == [row["step"] for row in second]
    for one, other in zip(first, second, strict=True):
        for key in [key for key in one if key.endswith(endings)]:
            assert abs(one[key] - other[key]) <= 1e-5 * max(1.0, abs(one[key])), (key, one[key], other[key])


@pytest.mark.parametrize(
    "command",
    [pytest.param(command, marks=pytest.mark.slow) for command in ("pretrain", "zeroshot", "finetune", "segment")],
)
def test_two_processes_see_the_samples_and_have_the_losses_of_one(alone: Alone, tmp_path: Path, command: str) -> None:
    folder, rows = alone(command)
    assert_equal(rows, run(tmp_path, 2, command), "loss", "baseline", "grad_norm")
    assert seen(tmp_path, 2) == seen(folder, 1) and len(seen(folder, 1)) == 3 * 8
    assert_same_weights(folder, tmp_path)


@pytest.mark.slow
def test_a_segmenter_has_the_figures_of_one_process_and_micro_batches_the_same_crops(
    alone: Alone, tmp_path: Path
) -> None:
    """Five scenes in two processes; and four micro-batches of two crops, each with its own statistics of batch norm."""
    folder, _ = alone("segment")
    run(tmp_path / "two", 2, "segment")
    one, two = (read_checkpoint(run_folder / "ckpt.pt") for run_folder in (folder, tmp_path / "two"))
    assert one.provenance["figures"] == pytest.approx(two.provenance["figures"], abs=2e-3)
    run(tmp_path / "accumulated", 1, "segment", accumulate=4)
    assert seen(tmp_path / "accumulated", 1) == seen(folder, 1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a run on image-text pairs needs: two shards, and an OpenCLIP model that is tiny and no release's."""
    root = tmp_path_factory.mktemp("pairs")
    for shard in range(2):
        with webdataset.TarWriter(str(root / f"{shard:05d}.tar")) as writer:
            for number in range(10):
                buffer, color = io.BytesIO(), (25 * number, 120 * shard, 255 - 25 * number)
                Image.new("RGB", (80, 64), color).save(buffer, "PNG")
                sample = {"png": buffer.getvalue(), "txt": f"a wall painted in {color}"}
                writer.write({"__key__": f"{shard:05d}{number:04d}", **sample})
    vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (root / "tiny-clip.json").write_text(json.dumps(model))
    torch.manual_seed(0)
    torch.save(open_clip.CLIP(**model).state_dict(), root / "clip.pt")
    given = {"teacher": f"open_clip:tiny-clip/{root / 'clip.pt'}", "open_clip": str(root / "tiny-clip.json")}
    return {**given, "data": f"wds:{root}", "val_data": f"wds:{root}"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"sharding": "ddp", "freeze_text": False},
        pytest.param({"sharding": "fsdp2", "freeze_text": True}, marks=pytest.mark.slow),
        pytest.param({"sharding": "fsdp2", "freeze_text": False, "checkpointing": True}, marks=pytest.mark.slow),
    ],
)
def test_pairs_are_contrasted_over_the_whole_batch_of_all_processes(
    pairs: dict[str, str], tmp_path: Path, changes: dict[str, Any]
) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    rows = run(folders[0], 1, "pairs", **pairs, **changes)
    assert_equal(rows, run(folders[1], 2, "pairs", **pairs, **changes), "loss", "scale", "grad_norm")
    assert seen(folders[0], 1) == seen(folders[1], 2) and len(seen(folders[0], 1)) == 3 * 8
    assert_same_weights(*folders)
    first, second = (read_checkpoint(folder / "ckpt.pt") for folder in folders)
    assert first.provenance["figures"] == second.provenance["figures"]
    given = torch.load(pairs["teacher"].removeprefix("open_clip:tiny-clip/"), weights_only=True)
    frozen = torch.equal(first.weights["text"]["token_embedding.weight"], given["token_embedding.weight"])
    assert frozen == changes["freeze_text"]


@pytest.mark.slow
def test_sharded_and_accumulated_losses_are_those_of_one_process(alone: Alone, tmp_path: Path) -> None:
    folder, rows = alone("pretrain")
    sharded = run(tmp_path / "fsdp2", 2, "pretrain", sharding="fsdp2", accumulate=2)
    assert_equal(rows, sharded, "loss", "grad_norm")  # not baselines, which fold in micro-batch by micro-batch
    assert_same_weights(folder, tmp_path / "fsdp2", "encoder")
    assert_equal(alone("zeroshot")[1], run(tmp_path / "tuned", 2, "zeroshot", sharding="fsdp2"), "loss", "grad_norm")


@pytest.mark.slow
def test_shards_in_bf16_are_evaluated_before_the_first_step_of_a_resumed_run(
    pairs: dict[str, str], tmp_path: Path
) -> None:
    """There FSDP2 has not seen a call of the model yet, only of its parts."""
    changes: dict[str, Any] = {**pairs, "sharding": "fsdp2", "precision": "bf16", "eval_every": 2}
    assert [row["step"] for row in run(tmp_path, 2, "pairs", **changes, interrupt_evaluation=True)] == [1, 2]
    rows = run(tmp_path, 2, "pairs", **changes)
    assert [row["step"] for row in rows] == [1, 2, 3]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    figures = [(line["step"], line["val_retrieval_top1"]) for line in lines if "val_retrieval_top1" in line]
    assert [step for step, _ in figures] == [2, 3] and all(0 <= value <= 1 for _, value in figures)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(alone: Alone, tmp_path: Path) -> None:
    folder, rows = alone("pretrain")
    changes = {"sharding": "fsdp2", "checkpointing": True}
    assert len(run(tmp_path, 2, "pretrain", interrupt=2, **changes)) == 2
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert state["done"] == 2 and set(state["module"]) >= {"encoder.cls_token", "gen.query"}
    changes["sharding"] = "ddp"
    assert_equal(rows, run(tmp_path, 1, "pretrain", **changes), "loss", "baseline", "grad_norm")
    assert_same_weights(folder, tmp_path)


def assert_same_weights(first: Path, second: Path, *groups: str) -> None:
    one, two = read_checkpoint(first / "ckpt.pt").weights, read_checkpoint(second / "ckpt.pt").weights
    for group in groups or one:
        for name, value in one[group].items():
            assert torch.allclose(value, two[group][name], atol=2e-4), (group, name)


def test_a_batch_that_does_not_divide_is_refused_with_ones_that_do() -> None:
    with pytest.raises(ConfigError, match="use 6 or 9"):
        Share(0, 3).micro_batch(8)
    assert Share(1, 2, 2).rows(8) == [slice(4, 6), slice(6, 8)]
