"""Every recipe: its full form is checked without training, and its miniature trains."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from digpt.data.images import open_images
from digpt.encoder import encoder_config
from train import finetune, pretrain, segment, zeroshot
from train.config import RECIPES, load_recipe, parse, resolved
from train.cost import pretrain_modules
from train.miniature import miniature
from train.objective import DigptObjective, MaeConfig
from train.optim import learning_rate
from train.plan import PlanConfig, commands_of, plan
from train.plan_inputs import PUBLISHED

FULL = [name for name in RECIPES if name[:3] in ("b16", "l16", "l14")]
STAGES = [(name, command) for name in FULL for command in commands_of(name)]
RUN: dict[str, Any] = {
    "pretrain": pretrain.run,
    "finetune": finetune.run,
    "zeroshot": zeroshot.run,
    "segment": segment.run,
}


@pytest.mark.parametrize("name", FULL)
def test_a_recipe_opens_with_command_hardware_time_and_metric(name: str) -> None:
    module = importlib.import_module(f"train.recipes.{name}")
    document = ast.get_docstring(ast.parse(Path(str(module.__file__)).read_text()))
    assert document is not None
    for command in commands_of(name):
        assert f"train.{command} {name} --data" in document
        assert re.search(rf"\b{command} [\d.]+ h\b", document), command
    assert "Hardware:" in document and "Metric:" in document and "Assumed:" in document


@pytest.mark.parametrize(
    ("name", "command"),
    [stage if stage[0].startswith("b16") else pytest.param(*stage, marks=pytest.mark.slow) for stage in STAGES],
)
def test_a_recipe_as_written_fits_its_hardware_in_the_time_it_states(name: str, command: str) -> None:
    document = importlib.import_module(f"train.recipes.{name}").__doc__ or ""
    assert "8 x H100 (80 GB)" in document
    planned = plan(name, command, load_recipe(name, command), PlanConfig(gpus=8, gpu="h100"))
    memory = planned["memory"]
    need = memory["checkpointing" if planned["checkpointing"] else "stored"]["total"]
    assert need <= 0.9 * 80e9 and memory["fits_as_written"]
    hours = re.search(rf"\b{command} ([\d.]+) h\b", document)
    assert hours is not None and planned["time"]["wall_hours"] == pytest.approx(float(hours[1]), rel=0.05)


@pytest.mark.parametrize(("name", "command"), STAGES)
def test_the_full_form_has_the_published_shapes_and_ends_its_schedule(name: str, command: str) -> None:
    config = load_recipe(name, command)
    encoder = encoder_config(config.variant, 224 if command == "segment" else config.image_size)
    published = {"B/16": "vit_base_patch16_224", "L/16": "vit_large_patch16_224", "L/14": "vit_large_patch14_224"}
    with torch.device("meta"):
        ours = timm.create_model(**encoder)
        theirs = timm.create_model(published[config.variant], num_classes=0)
    extra = sum(p.numel() for p in theirs.norm.parameters())  # pretraining has no final norm
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) - extra
    assert config.batch_size % 8 == 0 and config.precision == "bf16"
    suffix = name.rpartition("_")[2]
    images = PUBLISHED["in1k" if command == "finetune" and suffix != "intermediate" else suffix] if config.epochs else 0
    full = resolved(config, images)
    assert learning_rate(full.warmup - 1, full) == pytest.approx(full.lr)
    assert learning_rate(full.steps, full) == pytest.approx(full.min_lr)
    if config.epochs:
        assert full.steps == int(config.epochs * images / config.batch_size)
        assert full.warmup / full.steps == pytest.approx(config.warmup_epochs / config.epochs, rel=1e-3)


def test_figures_of_the_paper_and_the_specification_stand_in_the_recipes() -> None:
    base = load_recipe("b16_in1k", "pretrain")
    full = resolved(base, PUBLISHED["in1k"])
    assert (full.lr, full.epochs, full.warmup_epochs, full.batch_size) == (pytest.approx(2.4e-3), 300, 40, 4096)
    assert (base.betas, base.weight_decay, base.clip) == ((0.9, 0.95), 0.05, 0.0)
    tuned = load_recipe("b16_in1k", "finetune")
    assert (tuned.layer_decay, tuned.drop_path, tuned.epochs, tuned.batch_size) == (0.65, 0.1, 100, 1024)
    assert {load_recipe(name, "finetune").epochs for name in ("l16_in1k", "l14_in1k")} == {100}  # section 4.1.1
    assert resolved(tuned, 1).lr == pytest.approx(4e-4) and tuned.min_lr == 1e-6
    photo = tuned.photo
    assert (photo.mixup, photo.cutmix, photo.erasing, photo.smoothing) == (0.8, 1.0, 0.25, 0.1)
    assert load_recipe("l16_in21k", "pretrain").epochs == 150 and load_recipe("l16_merged", "pretrain").epochs == 60
    assert load_recipe("l16_intermediate", "finetune").epochs == 60
    laion = load_recipe("l16_laion128m", "zeroshot")
    assert laion.steps * laion.batch_size == pytest.approx(131_072_000, rel=1e-3)
    assert (laion.lr, laion.warmup, laion.weight_decay) == (2.24e-5, 3571, 0.2)
    base, large = (load_recipe(name, "segment") for name in ("b16_in1k", "l16_in1k"))
    assert (base.lr, base.layer_decay, base.drop_path) == (1e-4, 0.65, 0.1)
    assert (large.lr, large.layer_decay, large.drop_path) == (4e-5, 0.9, 0.2)
    for both in (base, large):
        assert (both.steps, both.batch_size, both.warmup, both.power) == (160_000, 16, 1500, 1.0)
        assert (both.weight_decay, both.betas, both.clip, both.min_lr) == (0.05, (0.9, 0.999), 0.0, 0.0)
        assert (both.crop, both.fitted, both.ratio, both.dropout, both.aux_channels) == (
            512, (2048, 512), (0.5, 2.0), 0.1, 256
        )  # fmt: skip
        inference = both.inference_config()
        assert (inference.mode, inference.crop, inference.stride, inference.scale) == ("slide", 512, 341, (2048, 512))


@pytest.mark.parametrize(("name", "command"), STAGES)
def test_a_miniature_keeps_what_makes_the_recipe(name: str, command: str) -> None:
    config = load_recipe(name, command)
    small = miniature(config)
    assert str(small.output).startswith("runs/miniature/")
    if command == "segment":
        assert (small.data, small.val_data, small.depth) == ("scenes", "", 6)
        tiny = load_recipe("emoji", "segment")
        assert (small.crop, small.fitted, small.ratio) == (tiny.crop, tiny.fitted, tiny.ratio)
        assert small.encoder == f"runs/miniature/{name}/pretrain/ckpt.pt"
        kept = ("layer_decay", "drop_path", "power", "dropout", "photometric", "min_lr")
        assert all(getattr(small, field) == getattr(config, field) for field in kept)
        assert small.warmup == round(600 * 1500 / 160_000) and small.inference_config().mode == "whole"
    else:
        assert small.data == "emoji" and small.image_size == 64
    for field in ("weight_decay", "betas", "clip", "seed"):
        assert getattr(small, field) == getattr(config, field)
    assert small.accumulate == 1
    if command == "finetune":
        assert small.layer_decay == config.layer_decay and small.photo == config.photo
    if command == "pretrain":
        assert small.paradigm == config.paradigm and small.objective.decoder_depth == config.objective.decoder_depth
        assert (small.mae.decoder_depth, small.mae.decoder_width) == (config.mae.decoder_depth, 192)
    else:
        assert "miniature" in small.encoder


def test_the_merged_set_is_one_folder_of_links(tmp_path: Path) -> None:
    """As docs/data.md assembles it; captions beside images and folders called train further down change nothing."""
    merged = tmp_path / "merged"
    merged.mkdir()
    for name in ("imagenet21k_folders/n01440764/a.JPEG", "cc12m/00000/000000001.jpg", "coco/train/b.jpg"):
        image = tmp_path / name
        image.parent.mkdir(parents=True)
        image.write_bytes(b"x")
        image.with_suffix(".txt").write_text("a caption")
        part = name.partition("/")[0]
        (merged / part).symlink_to(tmp_path / part)
    found = open_images(f"folder:{merged}", split="train")
    names = {found.sample_name(number).rpartition("/")[2] for number in range(len(found))}
    assert names == {"a.JPEG", "000000001.jpg", "b.jpg"}


# ---------------------------------------------------------------------------------------- the paradigms in full size


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def norm(width: int) -> int:
    return 2 * width


def decoder(encoder: int, out: int, width: int = 1024, depth: int = 2) -> int:
    """Query, four tap norms and their projection; per layer self- and cross-attention, MLP, four norms; prediction."""
    attention = linear(width, 3 * width) + linear(width, width)
    layer = 2 * attention + linear(width, 4 * width) + linear(4 * width, width) + 4 * norm(width)
    taps = 4 * norm(encoder) + linear(4 * encoder, depth * width)
    return width + taps + depth * layer + norm(width) + linear(width, out)


def mae_decoder(encoder: int, out: int, width: int = 512, depth: int = 8) -> int:
    """Norm, embedding, mask token, plain ViT blocks, norm, prediction."""
    attention = linear(width, 3 * width) + linear(width, width)
    block = attention + linear(width, 4 * width) + linear(4 * width, width) + 2 * norm(width)
    return norm(encoder) + linear(encoder, width) + width + depth * block + norm(width) + linear(width, out)


FULL_SIZE = [  # options of the command; parameters beside the encoder, of a teacher 1024 wide or pixels of 16 x 16
    ("digpt", "", 2 * decoder(768, 1024)),
    ("digpt", "--teacher dino-b", 2 * decoder(768, 768)),
    ("digpt", "--objective.decoder-depth 1", 2 * decoder(768, 1024, depth=1)),
    ("digpt", "--objective.decoder-depth 4", 2 * decoder(768, 1024, depth=4)),
    ("digpt", "--objective.decoder-width 512", 2 * decoder(768, 1024, width=512)),
    ("digpt", "--objective.decoder-width 768", 2 * decoder(768, 1024, width=768)),
    ("gen", "", decoder(768, 1024)),
    ("gen_fd", "", decoder(768, 1024) + linear(768, 1024)),
    ("igpt", "--teacher pixels", decoder(768, 768)),
    ("fd", "", linear(768, 1024)),
    ("kd", "", linear(768, 1024)),
    ("mae", "", mae_decoder(768, 1024)),
    ("mae", "--teacher pixels", mae_decoder(768, 768)),
    ("eva", "", 768 + norm(768) + linear(768, 1024)),
]


@pytest.mark.parametrize(("paradigm", "options", "beside"), FULL_SIZE)
def test_every_paradigm_of_the_tables_builds_in_full_size(paradigm: str, options: str, beside: int) -> None:
    config = parse("pretrain", ["b16_in1k", "--paradigm", paradigm, *options.split()])
    module, target = pretrain_modules(config.encoder(), config.teacher, config.paradigm, config.options())
    published = 86_567_656 - linear(768, 1000) - norm(768)  # timm's, without classifier and final norm
    assert sum(p.numel() for p in module.encoder.parameters()) == published
    assert sum(p.numel() for p in module.parameters()) - published == beside
    pixels, old = "pixels" in options, "dino-b" in options
    assert tuple(target.grid) == ((14, 14) if pixels or old else (16, 16))
    assert target.width == (16 * 16 * 3 if pixels or old else 1024)


@pytest.mark.parametrize(("name", "grid"), [("l16_in1k", 14), ("l14_in1k", 16)])
def test_large_encoders_are_tapped_at_12_16_20_and_24(name: str, grid: int) -> None:
    config = load_recipe(name, "pretrain")
    module, target = pretrain_modules(config.encoder(), config.teacher, config.paradigm, config.options())
    assert isinstance(module, DigptObjective)
    assert module.taps == (12, 16, 20, 24) and module.encoder.patch_embed.grid_size == (grid, grid)
    assert tuple(target.grid) == (16, 16) and target.width == 1024
    beside = sum(p.numel() for p in module.parameters()) - sum(p.numel() for p in module.encoder.parameters())
    assert beside == 2 * decoder(1024, 1024)


@pytest.mark.parametrize("name", [name for name, command in STAGES if command == "pretrain"])
def test_every_pretraining_takes_maes_own_decoder_under_mae(name: str) -> None:
    config = parse("pretrain", [name, "--paradigm", "mae"])
    assert config.options() == MaeConfig(0.75, 512, 16, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "command"), STAGES)
def test_a_miniature_trains(tmp_path_factory: pytest.TempPathFactory, name: str, command: str) -> None:
    root = tmp_path_factory.getbasetemp() / "miniatures"
    small = miniature(load_recipe(name, command))
    changes: dict[str, Any] = {"steps": 4, "warmup": 1, "batch_size": 16, "eval_every": 4, "log_every": 2}
    changes["output"] = root / small.output
    if command == "segment":
        changes["eval_scenes"] = 8
    if command != "pretrain":
        before = root / small.encoder
        if not before.exists():  # an earlier stage's miniature, as its user would have run it
            earlier, stage = re.search(r"miniature/(\w+)/(\w+)/", small.encoder).groups()  # type: ignore[union-attr]
            test_a_miniature_trains(tmp_path_factory, earlier, stage)
        changes["encoder"] = str(before)
    assert RUN[command](dataclasses.replace(small, **changes)).exists()
