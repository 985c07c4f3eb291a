"""The training-step benchmark: both steps compute one thing, and the roofline accounts for all of the work."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import roofline, train_step
from benchmarks.straightforward_step import StraightforwardStep, additive_mask
from benchmarks.train_step import Options, Report, batch_of, build_ours, build_steps, build_straightforward
from digpt.errors import ConfigError
from train.objective import DigptObjective
from train.objective.masks import block_causal_mask

TINY = Options(
    threads=1,
    precision="fp32",
    batch=2,
    rounds=2,
    variant="Ti/16",
    image_size=64,
    layers=6,
    decoder_width=32,
    decoder_heads=2,
    teacher_grid=(6, 6),  # not the patch grid: predictions are resized
    teacher_width=12,
    matrix=64,
    lr=1e-2,
)


@pytest.fixture(scope="module")
def both() -> tuple[DigptObjective, StraightforwardStep]:
    ours = build_ours(TINY)
    return ours, build_straightforward(TINY, ours)


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return batch_of(dataclasses.replace(TINY, seed=seed), 4)


def test_loss_and_gradients_are_the_same(both: tuple[DigptObjective, StraightforwardStep]) -> None:
    ours, other = both
    images, targets, order = batch()
    first, second = ours(images, targets, order).loss, other(images, targets, order)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=0)
    first.backward()
    second.backward()
    theirs = {name: value.grad for name, value in other.named_parameters()}
    trained = {name: value.grad for name, value in ours.named_parameters() if value.requires_grad}
    assert set(trained) == set(theirs)
    for name, gradient in trained.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("changed", ["weights", "order", "targets"])
def test_a_difference_would_be_seen(both: tuple[DigptObjective, StraightforwardStep], changed: str) -> None:
    ours, other = both
    images, targets, order = batch()
    with torch.no_grad():
        expected = ours(images, targets, order).loss
        if changed == "weights":
            other.dis.pred.weight.mul_(-1)
        elif changed == "order":
            order = order.flip(1)
        else:
            targets = targets.flip(1)
        difference = (other(images, targets, order) - expected).abs() / expected
        if changed == "weights":
            other.dis.pred.weight.mul_(-1)
    assert difference > 1e-4


def test_masks_agree() -> None:
    assert torch.equal(additive_mask(3, 4) == 0, block_causal_mask(3, 4))


def test_updates_agree() -> None:
    ours, other, _ = build_steps(TINY, "fp32")
    losses = [(ours.run()[1], other.run()[1]) for _ in range(3)]
    for mine, its in losses:
        assert mine == pytest.approx(its, rel=1e-5)
    assert losses[2][0] < losses[0][0] - 0.05  # so large an update that a missing one would show


@pytest.fixture(scope="module")
def report() -> Report:
    return train_step.measure(TINY, "fp32")


def test_flops_of_linear_layers_are_exact(report: Report) -> None:
    width, decoder, tokens, patches = 192, 32, 13, 12  # 4x4 patches: 3 of 4 clusters of 4, and the class token
    encoder = 6 * 12 * width * width * tokens
    block = (4 + 4 + 8) * decoder * decoder * tokens  # self-attention, cross-attention, MLP
    memory, head = 4 * width * 2 * decoder * tokens, decoder * 12 * tokens
    linear = 2 * TINY.batch * 3 * (encoder + 2 * (2 * block + memory + head))  # 2 per multiply-add, backward twice
    assert report.parts["linear layers"].flops == linear
    assert report.parts["patch embedding"].flops == 2 * TINY.batch * 2 * patches * width * 768
    assert report.flops == pytest.approx(sum(part.flops for part in report.parts.values()))


def test_every_part_has_its_time_and_its_bytes(report: Report) -> None:
    assert set(report.parts) == {*roofline.PARTS, "AdamW"}
    for name, part in report.parts.items():
        assert part.seconds > 0, name
        assert part.bytes > 0, name
    values = train_step.trained(build_ours(TINY))
    assert report.parts["AdamW"].bytes == 28 * values  # reads weight, gradient, two moments; writes three
    # The patch projection at least reads its weight and the visible pixels, forward and backward.
    assert report.parts["patch embedding"].bytes > 2 * 4 * (768 * 192 + 2 * 12 * 768)


@pytest.mark.parametrize(
    ("operator", "origin", "part"),
    [
        ("aten::addmm", roofline.INNER, "linear layers"),
        ("aten::addmm", roofline.EMBEDDING, "patch embedding"),
        ("aten::bmm", "", "losses"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", roofline.INNER, "attention"),
        ("aten::gelu_backward", roofline.INNER, "norms, GELU, residuals"),
        ("aten::copy_", roofline.INNER, "copies, casts, zeros"),
    ],
)
def test_operators_by_part(operator: str, origin: str, part: str) -> None:
    assert roofline.part_of(operator, origin) == part


@pytest.mark.parametrize(
    ("operator", "shapes", "values"),
    [
        ("aten::mm", [[2, 3], [3, 5]], 6 + 15 + 10),
        ("aten::addmm", [[5], [2, 3], [3, 5], [], []], 5 + 6 + 15 + 10),
        ("aten::add", [[4, 5], [5], []], 20 + 5 + 20),
        ("aten::copy_", [[4], [4], []], 8),
        ("aten::view", [[4, 5], []], 0),
    ],
)
def test_bytes_of_operators(operator: str, shapes: list[Any], values: int) -> None:
    assert roofline.moved(operator, shapes) == values


def test_report_names_ratio_shares_and_difference(report: Report) -> None:
    known = dataclasses.replace(
        report,
        ours=[2.0, 2.0],
        straightforward=[3.0, 5.0],
        losses=[(4.0, 4.0), (3.03, 3.0)],
        flops=100e9,
        products=[80e9, 80e9],
        images=8,
    )
    assert known.speedup == 2.0
    assert known.difference == pytest.approx(0.01)
    text = train_step.shown(known)
    assert "| ours | 4.000 | 4.000 | 50.0 | 62.5% |" in text
    assert "| straightforward | 2.000 | 2.667 | 25.0 | 33.3% |" in text
    assert "2.000 x as fast (median of 2 rounds, 1.500 to 2.500)" in text


def test_disagreement_is_an_error(monkeypatch: pytest.MonkeyPatch, report: Report) -> None:
    threads = torch.get_num_threads()
    for losses, code in (([(4.0, 4.0)], 0), ([(4.0, 4.1)], 1)):
        wrong = dataclasses.replace(report, losses=losses)
        monkeypatch.setattr(train_step, "measure", lambda *_, wrong=wrong: wrong)
        assert train_step.main(["--threads", str(threads), "--precision", "fp32"]) == code


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="rounds=0 must be at least 1"):
        Options(rounds=0)
