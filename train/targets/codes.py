"""Codes of a discrete tokenizer as the target (the paper's VQVAE rows of Table 5)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from digpt.artifact import load_document
from digpt.errors import CheckpointError, ConfigError
from train.objective.losses import without_autocast
from train.objective.spaces import TargetKind
from train.targets.base import grid_of, sides
from train.targets.tokenizer_model import FORMAT, tokenizer_from_document
from train.targets.vqkd import is_vqkd, vqkd_from_state


class Tokenizer(Protocol):
    """A frozen network that gives one code for every ``patch_size`` x ``patch_size`` square of an image."""

    patch_size: int
    codebook_size: int
    fingerprint: str
    provenance: dict[str, Any]

    def codes(self, images01: Tensor) -> Tensor:
        """float ``[B,3,h*p,w*p]`` in [0, 1] -> int64 ``[B, h*w]`` in raster order."""


class CodeTarget(nn.Module):
    """One code per patch of the student: images are resized so that the tokenizer's grid is the student's.

    So does BEiT, which shows 112 px to a tokenizer of patch 8 where its student sees 224 px in patches of 16.
    """

    kind: TargetKind = "codes"
    has_class_token = False

    def __init__(self, tokenizer: Tokenizer, image_size: int | tuple[int, int], patch_size: int) -> None:
        super().__init__()
        self.tokenizer = cast(nn.Module, tokenizer).eval().requires_grad_(False)
        self.grid = grid_of(image_size, (patch_size, patch_size), "The code target")
        self.size = (self.grid[0] * tokenizer.patch_size, self.grid[1] * tokenizer.patch_size)
        self.image_size = sides(image_size)
        self.width = tokenizer.codebook_size
        self.fingerprint, self.provenance = tokenizer.fingerprint, dict(tokenizer.provenance)

    def train(self, mode: bool = True) -> CodeTarget:
        """A tokenizer stays in eval mode whatever its surroundings do."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CodeTarget:
        """Move to another device but stay in float32, also under ``.to(torch.bfloat16)``: a code is a decision."""
        return super()._apply(lambda value: value.to(fn(value).device), recurse)

    @torch.no_grad()
    def forward(self, images01: Tensor) -> Tensor:
        """float ``[B,3,H,W]`` in [0, 1] -> int64 ``[B, N]``."""
        images = images01.float()
        if self.size != self.image_size:
            images = F.interpolate(images, size=self.size, mode="bilinear", antialias=True, align_corners=False)
        with without_autocast(images.device):
            return cast(Tokenizer, self.tokenizer).codes(images)


def load_tokenizer(file: str | Path) -> Tokenizer:
    """Read a tokenizer: one of ``python -m train.tokenizer``, or BEiT v2's VQ-KD as published.

    Raises:
        CheckpointError: not found, damaged, or neither of the two.
    """
    path = Path(file)
    document = load_document(path)
    if isinstance(document, dict) and document.get("format") == FORMAT:
        return tokenizer_from_document(document, path)
    state = document.get("model", document.get("state_dict", document)) if isinstance(document, dict) else None
    if is_vqkd(state):
        return vqkd_from_state(cast(dict[str, Tensor], state), path)
    raise CheckpointError(
        f"{path} is no tokenizer: make one with python -m train.tokenizer, or give BEiT v2's "
        "vqkd_encoder_base_decoder_1x768x12_clip.pth."
    )


def code_target(file: str, image_size: int | tuple[int, int], patch_size: int) -> CodeTarget:
    """The target ``codes:FILE``."""
    if not file:
        raise ConfigError("codes: names no tokenizer; write codes:FILE, for example codes:runs/tokenizer/ckpt.pt.")
    return CodeTarget(load_tokenizer(file), image_size, patch_size)
