"""Teacher -> D-iGPT -> tuned, at toy size: what each command writes loads, and the chain of fingerprints holds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from digpt.artifact import Checkpoint, read_checkpoint
from digpt.errors import CapabilityError, ConfigError
from digpt.sources import load_model
from train import pretrain, teacher, zeroshot
from train.clock import Clock
from train.loop import train
from train.objective import DigptConfig
from train.pretrain import PretrainConfig, PretrainTask
from train.share import Share
from train.teacher import TeacherConfig, TeacherTask
from train.zeroshot import ZeroshotConfig, ZeroshotTask

STEPS = {"steps": 3, "batch_size": 8, "warmup": 1, "log_every": 1, "threads": 1}
TEACHER = TeacherConfig(
    **STEPS, trunk="test_resnet", embed_dim=16, text_width=32, text_layers=1, text_heads=2, vocab_size=400,
)  # fmt: skip
PRETRAIN = PretrainConfig(
    **STEPS, depth=4, objective=DigptConfig(decoder_width=32, decoder_heads=2, decoder_depth=1, taps=(1, 2, 3, 4))
)  # fmt: skip


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("chain")
    files = {"teacher": teacher.run(dataclasses.replace(TEACHER, output=root / "teacher", store="float16"))}
    config = dataclasses.replace(PRETRAIN, output=root / "pretrain", teacher=str(files["teacher"]))
    files["pretrain"] = pretrain.run(config)
    tuned = ZeroshotConfig(
        **STEPS, encoder=str(files["pretrain"]), teacher=str(files["teacher"]), output=root / "zeroshot"
    )
    files["zeroshot"] = zeroshot.run(tuned)
    return files


def test_fingerprints_lead_from_the_tuned_model_to_its_teacher(chain: dict[str, Path]) -> None:
    read: dict[str, Checkpoint] = {name: read_checkpoint(file) for name, file in chain.items()}
    parents = {parent["role"]: parent for parent in read["zeroshot"].provenance["parents"]}
    assert parents["encoder"]["fingerprint"] == read["pretrain"].fingerprint
    assert parents["teacher"]["fingerprint"] == read["teacher"].fingerprint
    assert parents["encoder"]["parents"][0]["fingerprint"] == read["teacher"].fingerprint
    assert parents["encoder"]["steps"] == 3 and "knn_flat" in parents["encoder"]["figures"]


def test_the_tuned_model_keeps_the_text_tower_and_embeds_both(chain: dict[str, Path]) -> None:
    tuned, source = (
        read_checkpoint(chain["zeroshot"]).weights["text"],
        read_checkpoint(chain["teacher"]).weights["text"],
    )
    assert all(torch.equal(tuned[name], value) for name, value in source.items())
    model = load_model(str(chain["zeroshot"]))
    assert model.text is not None
    image = model.module(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    text = model.text.module(torch.from_numpy(model.text.tokenize(["red apple"])))
    assert image.shape == (2, 16) and text.shape == (1, 16)


def test_encoders_load_strictly_into_timm_with_equal_features(chain: dict[str, Path]) -> None:
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for name in ("pretrain", "zeroshot"):
        checkpoint, model = read_checkpoint(chain[name]), load_model(str(chain[name]))
        encoder = timm.create_model(**checkpoint.config["encoder"]).eval()
        encoder.load_state_dict(checkpoint.weights["encoder"], strict=True)
        with torch.no_grad():
            normalised = (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
            assert torch.allclose(encoder(normalised), model.module.features(normalised), atol=1e-5)


def test_pretraining_logs_each_causal_step_beside_the_constant_mean(chain: dict[str, Path]) -> None:
    rows = [json.loads(line) for line in (chain["pretrain"].parent / "metrics.jsonl").read_text().splitlines()]
    for branch in ("gen", "dis"):
        for step in (1, 2, 3):
            assert 0 < rows[0][f"{branch}_step{step}_loss"] < 4 and f"{branch}_step{step}_baseline" in rows[0]
    split = read_checkpoint(chain["pretrain"]).provenance["time_split"]
    assert {"loader", "teacher", "encoder", "decoders", "optimiser"} <= set(split) and min(split.values()) >= 0


@pytest.mark.parametrize("paradigm", ["fd", "gen", "gen_fd"])
def test_other_paradigms_run_on_the_same_data_path(chain: dict[str, Path], tmp_path: Path, paradigm: str) -> None:
    config = dataclasses.replace(PRETRAIN, paradigm=paradigm, teacher=str(chain["teacher"]), output=tmp_path)

    def first_loss() -> torch.Tensor:
        task = PretrainTask(config)
        (batch,) = next(task.batches(0, Share()))
        return task.loss(task.module, batch, Clock())["loss"]

    first = first_loss()
    assert torch.isfinite(first) and first.requires_grad
    assert torch.equal(first, first_loss())


@pytest.mark.parametrize(
    "command", ["teacher", *(pytest.param(command, marks=pytest.mark.slow) for command in ("pretrain", "zeroshot"))]
)
def test_a_run_that_dies_between_saves_ends_with_the_same_bits(
    chain: dict[str, Path], tmp_path: Path, command: str
) -> None:
    """Batch norm's statistics, the teacher's tokens and the caption draws included."""
    kind: Any = {"teacher": TeacherTask, "pretrain": PretrainTask, "zeroshot": ZeroshotTask}[command]
    config = dataclasses.replace(
        {
            "teacher": dataclasses.replace(TEACHER, store="float16"),
            "pretrain": dataclasses.replace(PRETRAIN, teacher=str(chain["teacher"])),
            "zeroshot": ZeroshotConfig(**STEPS, encoder=str(chain["pretrain"]), teacher=str(chain["teacher"])),
        }[command],
        output=tmp_path,
        save_every=2,
    )

    def task() -> Any:
        fresh = kind(config)
        fresh.evaluate = lambda evaluation: {}  # thousands of images: not what is tested here
        return fresh

    dying, steps = task(), []

    def die() -> None:
        steps.append(1)
        if len(steps) == 3:  # after the third update, one step beyond the last save
            raise KeyboardInterrupt

    dying.after_step = die
    with pytest.raises(KeyboardInterrupt):
        train(dying)
    resumed = read_checkpoint(train(task())).weights
    straight = read_checkpoint(chain[command]).weights
    for group, named in straight.items():
        for name, value in named.items():
            assert torch.equal(resumed[group][name], value), (group, name)


def test_tuning_checkpoints_activations_when_asked(chain: dict[str, Path]) -> None:
    config = ZeroshotConfig(**STEPS, encoder=str(chain["pretrain"]), teacher=str(chain["teacher"]))
    losses = []
    for asked in (False, True):
        task = ZeroshotTask(dataclasses.replace(config, checkpointing=asked))
        assert task.module.encoder.grad_checkpointing == asked
        (batch,) = next(task.batches(0, Share()))
        losses.append(task.loss(task.module, batch, Clock())["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_what_cannot_be_tuned_is_refused(chain: dict[str, Path]) -> None:
    with pytest.raises(CapabilityError, match="no text tower"):
        ZeroshotTask(ZeroshotConfig(encoder="random", teacher=str(chain["pretrain"])))
    with pytest.raises(ConfigError, match="not a plain ViT"):
        ZeroshotTask(ZeroshotConfig(encoder=str(chain["teacher"]), teacher=str(chain["teacher"])))
    with pytest.raises(ConfigError, match="Unknown paradigm 'digptt'"):
        PretrainTask(dataclasses.replace(PRETRAIN, paradigm="digptt"))


def first_losses(config: PretrainConfig, steps: int = 1) -> list[float]:
    """The losses that the log of a short run holds."""
    task = PretrainTask(dataclasses.replace(config, steps=steps))
    task.evaluate = lambda evaluation: {}  # type: ignore[method-assign]  # thousands of images: not tested here
    folder = train(task).parent
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def test_pretraining_goes_on_from_a_checkpoint_with_its_decoders(chain: dict[str, Path], tmp_path: Path) -> None:
    config = dataclasses.replace(PRETRAIN, teacher=str(chain["teacher"]), init=str(chain["pretrain"]), lr=0.0)
    task = PretrainTask(dataclasses.replace(config, output=tmp_path / "task"))
    source = read_checkpoint(chain["pretrain"])
    checkpoint = task.checkpoint({}, dict(task.module.state_dict()))
    for part in ("encoder", "decoders"):
        assert source.weights[part].keys() <= checkpoint.weights[part].keys()
        assert all(torch.equal(checkpoint.weights[part][name], value) for name, value in source.weights[part].items())
    assert [line["role"] for line in checkpoint.provenance["parents"]] == ["teacher", "init"]
    with pytest.raises(ConfigError, match="has no decoders: give a checkpoint of train.pretrain"):
        PretrainTask(dataclasses.replace(config, init=str(chain["zeroshot"])))
    wider = dataclasses.replace(PRETRAIN.objective, decoder_width=64)
    for other in ({"variant": "S/16"}, {"objective": wider}):
        with pytest.raises(ConfigError, match="does not fit; choose the variant, .*size mismatch"):
            PretrainTask(dataclasses.replace(config, **other))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's tracer looks at it and hides the warning itself
def test_compiled_and_checkpointed_blocks_give_the_same_losses(chain: dict[str, Path], tmp_path: Path) -> None:
    """The backend ``eager`` traces the blocks as any other does, but needs no compiler."""
    config = dataclasses.replace(PRETRAIN, teacher=str(chain["teacher"]), output=tmp_path / "plain")
    other = dataclasses.replace(config, compile="eager", checkpointing=True, output=tmp_path / "compiled")
    plain, compiled = first_losses(config, 3), first_losses(other, 3)
    assert len(plain) == 3 and compiled == pytest.approx(plain, rel=1e-5)
