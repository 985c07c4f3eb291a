"""The planner: hours from FLOPs, what fits on a GPU, what stays on disk, and the command line around it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from digpt.errors import ConfigError
from digpt.sources import BUNDLED
from train.config import TrainConfig
from train.cost import Cost, Frozen
from train.finetune import FinetuneConfig
from train.fit import GPUS, USABLE, disk, memory, smallest_accumulate, verdict, with_text_tower
from train.plan import count, document_of, main
from train.plan_inputs import PUBLISHED, images_in
from train.pretrain import PretrainConfig
from train.zeroshot import ZeroshotConfig

COST = Cost(
    teacher=300.0,
    encoder=80.0,
    decoders=70.0,
    recomputed=50.0,
    encoder_parameters=60,
    trainable=100,
    fixed=10,
    frozen=400,
    activations=1000.0,
    checkpointed=100.0,
    block_activations=50.0,
    block_parameters=7,
)
MAIN = (  # the main recipe, spelled out
    "emoji pretrain --variant B/16 --image-size 224 --depth None --teacher openclip-h --batch-size 4096 --epochs 300 "
    "--precision bf16 --data folder:missing --images 1281167 --objective.decoder-width 1024 "
    "--objective.decoder-heads 32 --objective.decoder-depth 2"
)


def planned(line: str) -> dict[str, Any]:
    document, _ = document_of(line.split())
    assert len(document["plans"]) == 1
    return dict(document["plans"][0])


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return planned(f"{MAIN} --gpus 8 --gpu h100 --utilisation 0.5")


def test_hours_of_the_main_recipe(whole: dict[str, Any]) -> None:
    steps = 300 * 1_281_167 // 4096
    assert (whole["steps"], whole["images"]) == (steps, steps * 4096)
    assert whole["flops_per_image"]["total"] / 1e9 == pytest.approx(489, rel=0.01)
    assert whole["flops"]["teacher"] / whole["flops"]["total"] == pytest.approx(0.69, abs=0.01)
    time = whole["time"]
    seconds = steps * 4096 * whole["flops_per_image"]["total"] / (0.5 * 989e12)
    assert time["device_hours"] == pytest.approx(seconds / 3600)
    assert time["wall_hours"] == pytest.approx(seconds / 3600 / 8)
    assert time["images_per_second"] == pytest.approx(steps * 4096 / (seconds / 8))
    assert time["loader_cores"] == pytest.approx(time["images_per_second"] / 150)
    assert whole["data"]["bytes"] == pytest.approx(147.9e9, rel=0.001)


def test_memory_of_the_main_recipe(whole: dict[str, Any]) -> None:
    """512 images per GPU; about 90 MB of activations each, and 16 bytes per trained parameter and more."""
    stored, checkpointing = whole["memory"]["stored"], whole["memory"]["checkpointing"]
    assert 40e9 < stored["activations"] < 55e9
    assert checkpointing["activations"] < 0.35 * stored["activations"]
    assert stored["teacher"] == 2 * whole["parameters"]["teacher"]
    parts = {name: value for name, value in stored.items() if name != "total"}
    assert stored["total"] == pytest.approx(sum(parts.values()))
    assert whole["memory"]["smallest_accumulate"] == {"stored": 1, "checkpointing": 1}


def test_a_smaller_gpu_takes_more_micro_batches() -> None:
    on_l4 = planned(f"{MAIN} --gpus 8 --gpu l4 --checkpointing --teacher clip-b")
    fits = on_l4["memory"]["smallest_accumulate"]
    assert 1 <= fits["checkpointing"] < fits["stored"]
    assert 512 % fits["stored"] == 0
    time, flops = on_l4["time"], on_l4["flops_per_image"]
    rate = 0.4 * 121e12 / (flops["total"] + flops["recomputed"])  # recomputation takes time
    assert time["images_per_second"] == pytest.approx(8 * rate)
    assert time["utilisation"] == pytest.approx(0.4 * flops["total"] / (flops["total"] + flops["recomputed"]))


@pytest.mark.parametrize(
    ("gpus", "sharding", "precision", "copies"),
    [
        (1, "ddp", "fp32", 0),
        (1, "ddp", "bf16", 2 * 110),
        (4, "ddp", "bf16", 2 * 110 + 4 * 100),  # DDP's buckets hold the gradients once more
        (4, "fsdp2", "bf16", 2 * 2 * 7),  # two gathered blocks
        (4, "fsdp2", "fp32", 2 * 4 * 7),
    ],
)
def test_bytes_per_gpu(gpus: int, sharding: Any, precision: Any, copies: int) -> None:
    config = TrainConfig(sharding=sharding, precision=precision)
    need = memory(COST, config, gpus, micro_batch=3, checkpointing=False)
    shards = gpus if sharding == "fsdp2" else 1
    assert need.parameters == 4 * 110 / shards
    assert need.gradients == 4 * 100 / shards
    assert need.moments == 8 * 100 / shards
    assert need.copies == copies
    assert need.teacher == 400 * (2 if precision == "bf16" else 4)  # never sharded
    assert need.activations == 3 * 1000
    assert memory(COST, config, gpus, 3, checkpointing=True).activations == 3 * (100 + 50)
    assert need.total == sum(dataclasses.astuple(need))


def test_a_moving_average_is_one_more_copy() -> None:
    with_ema, without = (memory(COST, FinetuneConfig(ema=ema), 1, 1, False) for ema in (0.999, 0.0))
    assert with_ema.copies - without.copies == 4 * 110


def test_the_smallest_accumulate_that_fits() -> None:
    config = TrainConfig(batch_size=24)
    fixed = memory(COST, config, 2, 0, False).total
    assert smallest_accumulate(COST, config, 2, fixed + 12 * 1000, False) == 1
    assert smallest_accumulate(COST, config, 2, fixed + 12 * 1000 - 1, False) == 2
    assert smallest_accumulate(COST, config, 2, fixed + 2999, False) == 6  # of 12 images: 3 would need 4 each
    assert smallest_accumulate(COST, config, 2, fixed + 999, False) is None
    assert smallest_accumulate(COST, config, 2, fixed + 999, True) == 2
    assert smallest_accumulate(COST, config, 2, fixed + 6000, False, most=1) is None


def test_the_verdict_is_about_the_recipe_as_written() -> None:
    assert verdict(72.0, 72.0, 1, True) == "fits as written"
    assert verdict(99.0, 72.0, 2, True) == "does not fit as written: use --accumulate 2"
    assert verdict(99.0, 72.0, None, True) == "does not fit as written: no --accumulate helps"
    assert verdict(99.0, 72.0, 2, False) == "would fit from --accumulate 2"
    assert verdict(99.0, 72.0, None, False) == "would never fit"


def test_a_trained_text_tower_is_counted_with_its_activations() -> None:
    """CLIP-L's: 12 blocks, 77 tokens of width 768; beside an encoder of 17 tokens of width 192."""
    encoder = {"img_size": 64, "patch_size": 16, "embed_dim": 192}
    both = with_text_tower(COST, encoder, Frozen(10.0, 1000), "ViT-L-14")
    share = 77 * 768 / (17 * 192)
    assert (both.decoders, both.recomputed, both.trainable) == (70 + 30, 50 + 10, 100 + 1000)
    assert both.activations == pytest.approx(1000 + 12 * 50 * share)
    assert both.checkpointed == 100 + 12 * 77 * 768 * 4
    assert both.block_activations == pytest.approx(50 * share)
    assert (both.encoder, both.teacher, both.frozen) == (COST.encoder, COST.teacher, COST.frozen)


def test_bytes_on_disk() -> None:
    assert disk(COST, TrainConfig(keep_last=2), 0) == {
        "checkpoint": 4 * 110,
        "checkpoints": 4 * 110 * 4,  # two latest, best and final
        "resume_state": 2 * (12 * 100 + 4 * 10),
    }
    assert disk(COST, TrainConfig(keep_last=0, store="float16"), 5)["checkpoints"] == 2 * 115


def test_sizes_of_data(tmp_path: Path) -> None:
    def size(recipe: str, command: str, **changes: Any) -> int | None:
        return images_in(recipe, command, TrainConfig(**{"data": "folder:missing", "epochs": 1, **changes}), None)

    assert size("b16_in1k", "pretrain") == PUBLISHED["in1k"] == 1_281_167
    assert size("l16_in21k", "pretrain") == 14_197_122
    assert size("l16_in21k", "finetune") == 1_281_167
    assert size("l16_intermediate", "finetune") == 14_197_122
    assert size("b16_in1k", "pretrain", limit=1000) == 1000
    assert size("l16_laion128m", "zeroshot", epochs=None) is None
    assert size("emoji", "pretrain", data="emoji") == 4196
    with pytest.raises(ConfigError, match="--images N"):
        size("l16_laion128m", "zeroshot")
    for name in ("a", "b", "c"):
        (tmp_path / "train" / "class").mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / "class" / f"{name}.png").write_bytes(b"x")
    assert size("b16_in1k", "pretrain", data=f"folder:{tmp_path}") == 3


def test_tuning_starts_at_the_checkpoint_or_at_the_named_shape(tmp_path: Path) -> None:
    config = ZeroshotConfig(encoder=str(tmp_path / "ckpt.pt"), depth=3)
    cost, text, notes = count("zeroshot", config)
    assert text == 0  # the bundled captions are embedded once
    assert any("is not there yet: taken to be a Ti/16" in note for note in notes)
    deeper = count("zeroshot", dataclasses.replace(config, depth=4))[0]
    assert deeper.recomputed == pytest.approx(cost.recomputed * 4 / 3)
    assert cost.teacher > 0 == count("zeroshot", dataclasses.replace(config, distill=0.0))[0].teacher
    thousand, _, [first, _] = count("finetune", FinetuneConfig(encoder=config.encoder))
    seven, _, [only] = count("finetune", FinetuneConfig(encoder=config.encoder, classes=7))
    assert "there yet" in first and "there yet" in only
    assert thousand.decoders == 3 * 2 * 192 * 1000 and seven.decoders == 3 * 2 * 192 * 7


def test_captions_pass_through_the_text_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.plan.text_tower_cost", lambda model: (Frozen(7.0, 11), {"ViT-H-14": 1024}[model]))
    config = ZeroshotConfig(encoder="random", data="wds:x", teacher="openclip-h", distill=0.0, freeze_text=True)
    cost, text, _ = count("zeroshot", config)
    assert (cost.teacher, cost.frozen, text) == (7.0, 11, 11)
    assert cost.decoders == 3 * 2 * 192 * 1024
    trained, text, [note] = count("zeroshot", dataclasses.replace(config, freeze_text=False))
    assert (trained.teacher, trained.frozen, text) == (0.0, 0, 11)
    assert trained.decoders == cost.decoders + 3 * 7 and trained.trainable == cost.trainable + 11
    assert trained.activations > cost.activations and "estimated" in note
    with pytest.raises(ConfigError, match="open_clip model"):
        count("zeroshot", dataclasses.replace(config, teacher="dino-b"))


# ---------------------------------------------------------------------------------------------------- the command line


def test_every_command_of_a_recipe_is_planned_in_one_json_document(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bundled"]) == 2
    assert "not there yet: train it first" in capsys.readouterr().err
    earlier = {"early_teacher": "early_teacher.pt", "teacher": "teacher.pt", "pretrain": "ckpt.pt"}
    for stage, file in earlier.items():
        (tmp_path / "runs/bundled" / stage).mkdir(parents=True)
        (tmp_path / "runs/bundled" / stage / "ckpt.pt").symlink_to(BUNDLED / file)
    assert main(["bundled", "--json", "--gpus", "1", "--gpu", "a100", "--utilisation", "0.3"]) == 0
    document = json.loads(capsys.readouterr().out)
    pretrain, zeroshot = document["plans"]
    assert (pretrain["command"], zeroshot["command"]) == ("pretrain", "zeroshot")
    assert pretrain["images"] == 1200 * 128
    assert zeroshot["images"] == 2400 * 128
    assert pretrain["data"] == {"name": "emoji", "images": 4196, "bytes": None}
    assert pretrain["memory"]["usable"] == USABLE * GPUS["a100"].memory
    assert pretrain["time"]["peak_flops"] == 19.5e12  # the recipe trains in float32
    assert any("30%" in line for line in document["assumptions"])


def test_the_table_names_what_it_stands_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["emoji", "pretrain", "--gpus", "2", "--batch-size", "64", "--steps", "50"]) == 0
    printed = capsys.readouterr().out
    assert "3,200 in 50 steps of 64 = 2 x 1 x 32" in printed
    assert "assumed: 40% of the peak" in printed
    assert "memory per h100" in printed


def test_a_measured_plan_uses_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.measure.measured_peak", lambda device, dtype: 20e9)
    one = planned("emoji pretrain --measured --gpus 1 --batch-size 4 --device cpu --threads 1")
    time = one["time"]
    assert (time["device"], time["peak_flops"]) == ("CPU, 1 threads", 20e9)
    assert 0 < time["images_per_second"] < 5000
    rate = time["utilisation"] * 20e9 / one["flops_per_image"]["total"]
    assert time["images_per_second"] == pytest.approx(rate)


@pytest.mark.slow
def test_a_recipe_that_does_not_fit_and_a_size_that_is_not_the_datas_are_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    line = ["l16_in1k", "finetune", "--batch-size", "4096", "--data", "folder:/nope"]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert "does not fit as written: use --accumulate 2; 96.3 GB of 80.0 GB" in printed
    assert "would fit from --accumulate 1; 20.5 GB" in printed
    assert "finetune: folder:/nope is not listed here: 1,281,167 images, by ImageNet-1K; --images N says" in printed
    assert main([*line, "--images", "1000000"]) == 0
    assert "is not listed" not in capsys.readouterr().out
    assert main(["l16_in1k", "finetune", "--checkpointing", "--batch-size", "4096", "--data", "folder:/nope"]) == 0
    written, other = [one for one in capsys.readouterr().out.splitlines() if " GB of 80.0 GB" in one]
    assert "memory per h100" in written and "fits as written; 20.5 GB" in written
    assert "without checkpointing" in other and "would fit from --accumulate 2; 96.3 GB" in other


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b16_in2k", "Did you mean 'b16_in21k'|Did you mean 'b16_in1k'"),
        ("emoji --batch-size 64", "say which one --batch-size 64 is for"),
        ("emoji serve", "it has pretrain"),
        ("bundled_early", "nothing to plan"),
        ("emoji pretrain --gpus 3", "does not divide"),
        ("emoji pretrain --gpus 0", "at least 1"),
        ("emoji pretrain --utilisation 1.5", "between 0 and 1"),
        ("emoji pretrain --data folder:missing --epochs 2", "--images N"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(message, printed.err) and printed.err.startswith("error: ")


def test_an_unknown_setting_names_the_near_miss(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["emoji", "pretrain", "--batch-sise", "64"])
    assert "--batch-size" in capsys.readouterr().err


def test_pretraining_is_counted_with_its_own_options() -> None:
    small = PretrainConfig()
    large = dataclasses.replace(small, objective=dataclasses.replace(small.objective, decoder_depth=2), orders=2)
    one, two = count("pretrain", small)[0], count("pretrain", large)[0]
    assert two.encoder == 2 * one.encoder
    assert two.decoders > 2.5 * one.decoders
    assert two.teacher == one.teacher
