"""Both heads against those of transformers, with its weights copied: eval and training mode, odd sizes too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from digpt.segmentation import AUX_LEVEL, FcnHead, UperNetHead

upernet = pytest.importorskip("transformers.models.upernet.modeling_upernet")
configuration = pytest.importorskip("transformers.models.upernet.configuration_upernet")

IN_CHANNELS, CHANNELS, CLASSES = [12, 16, 20, 24], 18, 7
SIZES = {
    "a pyramid of 96 x 64 pixels": [(24, 16), (12, 8), (6, 4), (3, 2)],
    "odd sides": [(27, 35), (13, 17), (7, 9), (3, 4)],
    "no ratio of two": [(11, 23), (9, 10), (5, 9), (5, 7)],
}
UPERNET_NAMES = (
    ("psp_modules.", "ppm."),
    ("lateral_convs.", "laterals."),
    ("fpn_convs.", "fpn."),
    ("fpn_bottleneck.", "fuse."),
)


def theirs(kind: str) -> Any:
    """A head with random weights and random running statistics, dropout-free as transformers has it."""
    torch.manual_seed(0)
    config = configuration.UperNetConfig(
        hidden_size=CHANNELS, pool_scales=[1, 2, 3, 6], auxiliary_channels=CHANNELS, num_labels=CLASSES
    )
    head = getattr(upernet, kind)(config, in_channels=IN_CHANNELS)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name in ("weight", "running_var"):
                nn.init.uniform_(getattr(module, name), 0.5, 1.5)
            for name in ("bias", "running_mean"):
                nn.init.normal_(getattr(module, name), std=0.5)
    return head


def renamed(state: Mapping[str, Tensor], names: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """Their names as ours: first the parts, then what a convolution block holds."""
    found = {}
    for name, value in state.items():
        for old, new in names:
            name = new + name.removeprefix(old) if name.startswith(old) else name
        found[name.replace(".conv.", ".0.").replace(".batch_norm.", ".1.")] = value
    return found


def levels(sizes: list[tuple[int, int]], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, width, *size, generator=generator) for width, size in zip(IN_CHANNELS, sizes, strict=True)]


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("training", [False, True])
def test_upernet(sizes: list[tuple[int, int]], training: bool) -> None:
    reference = theirs("UperNetHead").train(training)
    head = UperNetHead(IN_CHANNELS, CHANNELS, CLASSES, dropout=0.0).train(training)
    head.load_state_dict(renamed(reference.state_dict(), UPERNET_NAMES), strict=True)
    expected = reference(levels(sizes))
    found = head(levels(sizes))
    assert found.shape == (2, CLASSES, *sizes[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found.std() > 0.05  # not merely two zeros
    learned = renamed(reference.state_dict(), UPERNET_NAMES)  # in training mode, running statistics that moved
    for name, value in head.state_dict().items():
        torch.testing.assert_close(value, learned[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_fcn(training: bool) -> None:
    reference = theirs("UperNetFCNHead").train(training)
    head = FcnHead(IN_CHANNELS[AUX_LEVEL], CHANNELS, CLASSES, dropout=0.0).train(training)
    head.load_state_dict(renamed(reference.state_dict(), (("convs.0.", "conv."),)), strict=True)
    maps = levels(SIZES["odd sides"])
    torch.testing.assert_close(head(maps[AUX_LEVEL]), reference(maps), rtol=0, atol=1e-5)


def test_the_comparison_sees_a_difference() -> None:
    reference = theirs("UperNetHead").eval()
    head = UperNetHead(IN_CHANNELS, CHANNELS, CLASSES, dropout=0.0).eval()
    state = renamed(reference.state_dict(), UPERNET_NAMES)
    state["ppm.1.1.1.running_mean"] = state["ppm.1.1.1.running_mean"] + 0.1
    head.load_state_dict(state, strict=True)
    maps = levels(SIZES["odd sides"])
    assert (head(maps) - reference(maps)).abs().max() > 1e-4
