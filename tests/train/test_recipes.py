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

from digpt.encoder import encoder_config
from train import finetune, pretrain, zeroshot
from train.config import RECIPES, load_recipe, resolved
from train.miniature import miniature
from train.optim import learning_rate
from train.plan import PUBLISHED, commands_of

FULL = [name for name in RECIPES if name[:3] in ("b16", "l16", "l14")]
STAGES = [(name, command) for name in FULL for command in commands_of(name)]
RUN: dict[str, Any] = {"pretrain": pretrain.run, "finetune": finetune.run, "zeroshot": zeroshot.run}


@pytest.mark.parametrize("name", FULL)
def test_a_recipe_opens_with_command_hardware_time_and_metric(name: str) -> None:
    module = importlib.import_module(f"train.recipes.{name}")
    document = ast.get_docstring(ast.parse(Path(str(module.__file__)).read_text()))
    assert document is not None
    for command in commands_of(name):
        assert f"train.{command} {name} --data" in document
        assert re.search(rf"\b{command} [\d.]+ h\b", document), command
    assert "Hardware:" in document and "Metric:" in document and "Assumed:" in document


@pytest.mark.parametrize(("name", "command"), STAGES)
def test_the_full_form_has_the_published_shapes_and_ends_its_schedule(name: str, command: str) -> None:
    config = load_recipe(name, command)
    encoder = encoder_config(config.variant, config.image_size)
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
    assert resolved(tuned, 1).lr == pytest.approx(4e-4) and tuned.min_lr == 1e-6
    photo = tuned.photo
    assert (photo.mixup, photo.cutmix, photo.erasing, photo.smoothing) == (0.8, 1.0, 0.25, 0.1)
    assert load_recipe("l16_in21k", "pretrain").epochs == 150 and load_recipe("l16_merged", "pretrain").epochs == 60
    assert load_recipe("l16_intermediate", "finetune").epochs == 60
    laion = load_recipe("l16_laion128m", "zeroshot")
    assert laion.steps * laion.batch_size == pytest.approx(131_072_000, rel=1e-3)
    assert (laion.lr, laion.warmup, laion.weight_decay) == (2.24e-5, 3571, 0.2)


@pytest.mark.parametrize(("name", "command"), STAGES)
def test_a_miniature_keeps_what_makes_the_recipe(name: str, command: str) -> None:
    config = load_recipe(name, command)
    small = miniature(config)
    assert small.data == "emoji" and small.image_size == 64 and str(small.output).startswith("runs/miniature/")
    for field in ("weight_decay", "betas", "clip", "seed"):
        assert getattr(small, field) == getattr(config, field)
    if command == "finetune":
        assert small.layer_decay == config.layer_decay and small.photo == config.photo
    if command == "pretrain":
        assert small.paradigm == config.paradigm and small.objective.decoder_depth == config.objective.decoder_depth
    else:
        assert "miniature" in small.encoder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "command"), STAGES)
def test_a_miniature_trains(tmp_path_factory: pytest.TempPathFactory, name: str, command: str) -> None:
    root = tmp_path_factory.getbasetemp() / "miniatures"
    small = miniature(load_recipe(name, command))
    changes: dict[str, Any] = {"steps": 4, "warmup": 1, "batch_size": 16, "eval_every": 4, "log_every": 2}
    changes["output"] = root / small.output
    if command != "pretrain":
        before = root / small.encoder
        if not before.exists():  # an earlier stage's miniature, as its user would have run it
            earlier, stage = re.search(r"miniature/(\w+)/(\w+)/", small.encoder).groups()  # type: ignore[union-attr]
            test_a_miniature_trains(tmp_path_factory, earlier, stage)
        changes["encoder"] = str(before)
    assert RUN[command](dataclasses.replace(small, **changes)).exists()
