"""Fidelity ``official`` reproduces one step measured on the authors' released objective."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from digpt.encoder import build_encoder, encoder_config, sincos_2d
from digpt.errors import CheckpointError, ConfigError
from train.objective import DigptObjective, ObjectiveOutput, build_paradigm
from train.objective.official import load_official_state, official_name

GOLDEN = Path(__file__).parents[1] / "golden" / "digpt_step.safetensors"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with safe_open(GOLDEN, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        tensors["meta"] = torch.tensor([int(file.metadata()[name]) for name in META])
    return tensors


META = ("embed_dim", "num_heads", "decoder_embed_dim", "decoder_num_heads")


def weights_of(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("weights/"): value for name, value in golden.items() if name.startswith("weights/")}


def build(golden: dict[str, Tensor], fidelity: str = "official") -> DigptObjective:
    width, heads, decoder_width, decoder_heads = golden["meta"].tolist()
    encoder = build_encoder(encoder_config("B/16", 224, embed_dim=width, num_heads=heads), class_token_std=0.0)
    grid, teacher_width = (16, 16), golden["target"].shape[-1]
    options = {"fidelity": fidelity, "decoder_width": decoder_width, "decoder_heads": decoder_heads}
    objective = build_paradigm("digpt", encoder, teacher_grid=grid, teacher_width=teacher_width, **options)
    return cast(DigptObjective, objective)


@pytest.fixture(scope="module")
def step(golden: dict[str, Tensor]) -> tuple[DigptObjective, ObjectiveOutput]:
    objective = build(golden)
    load_official_state(objective, weights_of(golden))
    output = objective(golden["images"], golden["target"], golden["permutation"], return_predictions=True)
    output.loss.backward()
    return objective, output


@pytest.mark.parametrize("branch", ["gen", "dis"])
def test_predictions_and_losses(
    golden: dict[str, Tensor], step: tuple[DigptObjective, ObjectiveOutput], branch: str
) -> None:
    _, output = step
    assert output.predictions is not None
    torch.testing.assert_close(output.predictions[branch], golden[f"expected/{branch}_pred"], atol=1e-4, rtol=0)
    torch.testing.assert_close(output.losses[branch][None], golden[f"expected/{branch}_loss"], atol=1e-5, rtol=0)


def test_every_gradient_norm(golden: dict[str, Tensor], step: tuple[DigptObjective, ObjectiveOutput]) -> None:
    parameters = dict(step[0].named_parameters(remove_duplicate=False))
    expected = {name.removeprefix("grad_norm/"): v for name, v in golden.items() if name.startswith("grad_norm/")}
    errors = {}
    for name, norm in expected.items():
        gradient = parameters[official_name(name)].grad
        assert gradient is not None, name
        errors[name] = abs(gradient.norm() / norm - 1).item()
    assert max(errors.values()) < 1e-3, max(errors, key=lambda name: errors[name])
    trained = {name for name, p in step[0].named_parameters() if p.requires_grad}
    assert trained == {official_name(name) for name in expected}


def test_positions_and_mask_are_constructed_not_copied(golden: dict[str, Tensor]) -> None:
    objective = build(golden)
    width, _, decoder_width, _ = golden["meta"].tolist()
    torch.testing.assert_close(sincos_2d(width, 14, 14)[None], golden["weights/pos_embed"], atol=1e-6, rtol=0)
    stored = golden["weights/decoder_pos_embed"]
    torch.testing.assert_close(sincos_2d(decoder_width, 14, 14)[None], stored, atol=1e-6, rtol=0)
    assert torch.equal(objective.mask, golden["weights/mask"] == 0)


def test_loader_is_strict_both_ways(golden: dict[str, Tensor]) -> None:
    objective, weights = build(golden), weights_of(golden)
    missing = {name: value for name, value in weights.items() if name != "kd_pred.bias"}
    with pytest.raises(CheckpointError, match=r"missing \['dis.pred.bias'\]"):
        load_official_state(objective, missing)
    with pytest.raises(CheckpointError, match=r"unexpected \['encoder.norm.weight'\]"):
        load_official_state(objective, {**weights, "norm.weight": torch.ones(48)})
    with pytest.raises(CheckpointError, match="one shared tap norm"):
        load_official_state(objective, {**weights, "ar_enc_norm.2.bias": weights["ar_enc_norm.2.bias"] + 1})
    with pytest.raises(CheckpointError, match="decoder_pos_embed"):
        load_official_state(objective, {**weights, "decoder_pos_embed": weights["decoder_pos_embed"].flip(1)})
    with pytest.raises(ConfigError, match="fidelity='official'"):
        load_official_state(build(golden, "fixed"), weights)
    load_official_state(objective, weights)


def test_taking_the_memory_names_at_face_value_fails(golden: dict[str, Tensor]) -> None:
    """The tap norms and projections are crossed in the released names; uncrossed, predictions are unrelated."""
    objective = build(golden)
    load_official_state(objective, weights_of(golden))
    objective.gen.memory, objective.dis.memory = objective.dis.memory, objective.gen.memory
    with torch.no_grad():
        predictions = objective.predict(golden["images"], golden["permutation"])
    assert (predictions["gen"] - golden["expected/gen_pred"]).abs().max() > 1
