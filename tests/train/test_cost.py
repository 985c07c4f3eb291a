"""The cost model: FLOPs against closed formulas and known rows, parameters against timm's, bytes kept for backward."""

from __future__ import annotations

import dataclasses
import time

import pytest
import timm
import torch
from torch import Tensor, nn

from digpt.encoder import encoder_config
from digpt.errors import ConfigError, SpecError
from train.cost import (
    Cost,
    Frozen,
    _kept_bytes,
    image_tower_cost,
    measured_peak,
    pretrain_cost,
    text_tower_cost,
    tuning_cost,
    utilisation,
)

TINY = encoder_config("Ti/16", 64, depth=6)  # 16 patches of width 192
TEACHER = "bundled-early-teacher"
TABLE = [  # variant, teacher, GFLOP per image of teacher, encoder and decoders, backward included
    ("B/16", "clip-l", 162, 79, 74),
    ("B/16", "openclip-h", 335, 79, 75),
    ("L/16", "openclip-h", 335, 276, 78),
]


def block_flops(tokens: int, width: int) -> int:
    """Forward: qkv, projection and an MLP of ratio 4 are 12 C^2 multiply-adds per token; attention 2 N^2 C."""
    return 24 * tokens * width**2 + 4 * tokens**2 * width


@pytest.fixture(scope="module")
def tiny() -> Cost:
    return pretrain_cost(TINY, TEACHER)


@pytest.mark.parametrize(("variant", "teacher", "of_teacher", "of_encoder", "of_decoders"), TABLE)
def test_costs_of_the_main_recipes(
    variant: str, teacher: str, of_teacher: float, of_encoder: float, of_decoders: float
) -> None:
    cost = pretrain_cost(encoder_config(variant, 224), teacher)
    assert cost.teacher / 1e9 == pytest.approx(of_teacher, rel=0.01)
    assert cost.encoder / 1e9 == pytest.approx(of_encoder, rel=0.01)
    assert cost.decoders / 1e9 == pytest.approx(of_decoders, rel=0.01)
    # 148 of 197 tokens reach the encoder: three of four clusters, and the class token
    depth, width = (12, 768) if variant == "B/16" else (24, 1024)
    assert cost.encoder == 3 * (depth * block_flops(148, width) + 2 * 147 * 3 * 16**2 * width)


def test_whole_images_cost_what_the_formula_says_attention_included() -> None:
    cost = tuning_cost(encoder_config("B/16", 224), outputs=1000)
    assert cost.encoder == 3 * (12 * block_flops(197, 768) + 2 * 196 * 3 * 16**2 * 768)
    assert cost.decoders == 3 * 2 * 768 * 1000
    assert cost.recomputed == 12 * block_flops(197, 768)
    assert cost.teacher == 0
    assert cost.total == cost.encoder + cost.decoders


@pytest.mark.parametrize(
    ("variant", "published", "width"),
    [("B/16", 86_567_656, 768), ("L/16", 304_326_632, 1024), ("S/16", 22_050_664, 384)],
)
def test_encoders_have_timms_parameters(variant: str, published: int, width: int) -> None:
    """Published: timm's vit_*_patch16_224, whose final norm and classifier a pretraining encoder does not have."""
    classifier, norm = 1000 * width + 1000, 2 * width
    with torch.device("meta"):
        ours = timm.create_model(**encoder_config(variant, 224))
    assert sum(p.numel() for p in ours.parameters()) == published - classifier - norm
    tuned = tuning_cost(encoder_config(variant, 224), outputs=1000)
    assert tuned.trainable == published  # fc_norm has the final norm's size
    assert tuned.encoder_parameters == published - classifier


def test_pretraining_parameters(tiny: Cost) -> None:
    positions = 17 * 192
    assert tiny.fixed == positions
    assert tiny.encoder_parameters - positions < tiny.trainable  # decoders among the trained
    assert tiny.frozen == image_tower_cost(TEACHER, 64).parameters
    assert tiny.teacher == image_tower_cost(TEACHER, 64).flops > 0


def test_several_orders_repeat_the_student_and_not_the_teacher(tiny: Cost) -> None:
    twice = pretrain_cost(TINY, TEACHER, orders=2)
    assert twice.teacher == tiny.teacher
    for name in ("encoder", "decoders", "recomputed", "activations", "checkpointed", "block_activations"):
        assert getattr(twice, name) == 2 * getattr(tiny, name), name
    assert twice.trainable == tiny.trainable


def test_distillation_has_a_head_for_every_token() -> None:
    """The teacher has the student's grid here, so that nothing is resized; its width is 192, too."""
    fd, kd = (pretrain_cost(TINY, "timm:vit_tiny_patch16_224", name) for name in ("fd", "kd"))
    assert fd.decoders == 3 * 2 * 192 * 192 * 17
    assert kd.decoders == 3 * 2 * 192 * 192
    assert fd.encoder == kd.encoder == 3 * (6 * block_flops(17, 192) + 2 * 16 * 3 * 16**2 * 192)
    assert fd.teacher == 12 * block_flops(17, 192) + 2 * 16 * 3 * 16**2 * 192


def test_masked_modelling_encodes_the_visible_quarter() -> None:
    mae = pretrain_cost(encoder_config("Ti/16", 224), "pixels", "mae")
    assert mae.encoder == 3 * (12 * block_flops(50, 192) + 2 * 49 * 3 * 16**2 * 192)
    assert mae.teacher == 0 and mae.frozen == 0


@pytest.mark.parametrize("paradigm", ["gen", "igpt", "gen_fd", "eva"])
def test_every_paradigm_can_be_counted(paradigm: str, tiny: Cost) -> None:
    cost = pretrain_cost(TINY, "pixels" if paradigm == "igpt" else TEACHER, paradigm)
    assert 0 < cost.decoders < tiny.decoders  # both decoders cost more than one or none
    assert cost.checkpointed < cost.activations


def test_an_unknown_teacher_or_paradigm_is_refused() -> None:
    with pytest.raises(SpecError, match="ViT-B-17"):
        pretrain_cost(TINY, "open_clip:ViT-B-17/openai")
    with pytest.raises(ConfigError, match="digpt"):
        pretrain_cost(TINY, TEACHER, "dgpt")


def test_text_tower_of_clip() -> None:
    frozen, width = text_tower_cost("ViT-L-14")
    assert frozen == Frozen(12 * block_flops(77, 768) + 2 * 768 * 768, 123_650_304)
    assert width == 768
    with pytest.raises(SpecError, match="ViT-L-14"):
        text_tower_cost("ViT-L-15")


# -------------------------------------------------------------------------------------------------------- activations


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("bf16", 2)])
def test_bytes_kept_of_an_mlp(precision: str, size: int) -> None:
    """Two linear layers keep their inputs and the activation between them its own; weights are not counted."""
    with torch.device("meta"):
        mlp = nn.Sequential(nn.Linear(10, 40), nn.GELU(), nn.Linear(40, 10))
        x = torch.empty(7, 10)
    kept, largest = _kept_bytes(mlp, [mlp[1]], lambda: mlp(x), precision)
    assert kept == 7 * (10 + 40 + 40) * size
    assert largest == 7 * 40 * size


def test_a_tensor_that_two_operations_keep_counts_once() -> None:
    with torch.device("meta"):
        first, second, x = nn.Linear(10, 40), nn.Linear(10, 40), torch.empty(7, 10)
    pair = nn.ModuleList([first, second])
    shared, _ = _kept_bytes(pair, (), lambda: first(x) + second(x), "fp32")
    apart, _ = _kept_bytes(pair, (), lambda: first(x) + second(torch.clone(x)), "fp32")
    assert (shared, apart) == (7 * 10 * 4, 2 * 7 * 10 * 4)


def test_attention_does_not_keep_its_weights() -> None:
    with torch.device("meta"):
        q, k, v = (torch.empty(2, 3, 100, 16, requires_grad=True) for _ in range(3))
        mask = torch.ones(100, 100, dtype=torch.bool)

    def attend(mask: Tensor | None) -> float:
        run = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # noqa: E731
        return _kept_bytes(nn.Module(), (), run, "fp32")[0]

    one = 2 * 3 * 100 * 16 * 4
    weights = 2 * 3 * 100 * 100 * 4
    assert 4 * one < attend(None) < 4 * one + weights / 10  # query, key, value, output, and a number per row
    assert attend(mask) - attend(None) == 100 * 100 * 4  # the mask itself, once for all samples and heads


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("bf16", 4)])
def test_one_more_block_keeps_one_more_blocks_activations(precision: str, size: int) -> None:
    """With checkpointing only its input, float32 [17,192], as the residual stream is under autocast, too."""
    three, four = (tuning_cost(encoder_config("Ti/16", 64, depth=d), 10, precision=precision) for d in (3, 4))
    assert four.checkpointed - three.checkpointed == 17 * 192 * size
    assert four.activations - three.activations == pytest.approx(four.block_activations, rel=0.01)


def test_bfloat16_keeps_less(tiny: Cost) -> None:
    full = pretrain_cost(TINY, TEACHER, precision="fp32")
    assert 0.5 < tiny.activations / full.activations < 0.8
    same = ("activations", "checkpointed", "block_activations")
    assert dataclasses.replace(full, **{name: getattr(tiny, name) for name in same}) == tiny


# --------------------------------------------------------------------------------------------------------------- speed


def test_utilisation_is_the_share_of_the_peak() -> None:
    assert utilisation(100e9, 50.0, 10e12) == 0.5


def test_the_peak_is_measured_once_and_quickly() -> None:
    measured_peak.cache_clear()
    start = time.perf_counter()
    peak = measured_peak(torch.device("cpu"), torch.float32)
    assert time.perf_counter() - start < 10  # a second on an idle machine
    assert measured_peak(torch.device("cpu"), torch.float32) == peak
    a = torch.ones(256, 256)
    a @ a
    start = time.perf_counter()
    a @ a
    one = 2 * 256**3 / (time.perf_counter() - start)
    assert peak > one / 20  # of the same order as any product, or larger
