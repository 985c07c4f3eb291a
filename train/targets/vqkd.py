"""BEiT v2's tokenizer, VQ-KD, from its published file (the paper's "VQVAE tokens [32]").

The encoder is a BEiT of timm without relative positions; its patch tokens pass two linear layers to 32 values, and the
nearest of 8192 unit codes is the answer. Only what encoding needs is read. The layout is that of the release; the
release itself has not been tried here.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.beit import Beit
from torch import Tensor, nn

from digpt.artifact import fingerprint
from digpt.errors import CheckpointError
from train.objective.losses import without_autocast

HEAD_WIDTH = 64  # of every published VQ-KD
CODEBOOK = "quantize.embedding.weight"


def is_vqkd(state: Any) -> bool:
    """Whether a state dict has VQ-KD's encoder, task layer and codebook."""
    needed = ("encoder.pos_embed", "encoder.patch_embed.proj.weight", "encode_task_layer.2.weight", CODEBOOK)
    return isinstance(state, dict) and all(isinstance(state.get(name), Tensor) for name in needed)


class VqkdTokenizer(nn.Module):
    """Images in [0, 1] -> codes; the position table is interpolated where the images are not the file's own size."""

    codebook: Tensor
    table: Tensor

    def __init__(self, image_size: int, patch_size: int, width: int, depth: int, codebook: tuple[int, int]) -> None:
        super().__init__()
        self.encoder = Beit(
            img_size=image_size,
            patch_size=patch_size,
            num_classes=0,
            global_pool="avg",
            embed_dim=width,
            depth=depth,
            num_heads=max(width // HEAD_WIDTH, 1),
            use_abs_pos_emb=True,
        )
        self.task = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, codebook[1]))
        self.register_buffer("codebook", torch.zeros(codebook))
        self.register_buffer("table", torch.empty(0), persistent=False)  # positions as in the file
        self.side = image_size // patch_size
        self.patch_size, self.codebook_size = patch_size, codebook[0]
        self.fingerprint = ""
        self.provenance: dict[str, Any] = {}

    @torch.no_grad()
    def codes(self, images01: Tensor) -> Tensor:
        """float ``[B,3,h*p,w*p]`` in [0, 1] -> int64 ``[B, h*w]``: the code nearest to the unit feature."""
        self._fit((images01.shape[2], images01.shape[3]))
        with without_autocast(images01.device):
            tokens = self.encoder.forward_features(images01.float() * 2 - 1)[:, 1:]
            features = F.normalize(self.task(self.encoder.fc_norm(tokens)), dim=-1)
            return (2 * features @ self.codebook.T - self.codebook.square().sum(1)).argmax(-1)

    def _fit(self, size: tuple[int, int]) -> None:
        """Interpolate the file's position table to images of ``size``, if they have another than the last ones."""
        embed: Any = self.encoder.patch_embed
        if size == tuple(embed.img_size):
            return
        embed.set_input_size(img_size=size)
        table = resample_abs_pos_embed(self.table, list(embed.grid_size), [self.side, self.side], num_prefix_tokens=1)
        self.encoder.pos_embed = nn.Parameter(table, requires_grad=False)


def vqkd_from_state(state: dict[str, Tensor], path: Path) -> VqkdTokenizer:
    """Build the tokenizer that a state dict describes.

    Raises:
        CheckpointError: weights that do not fit the published layout.
    """
    encoder = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    width, _, patch, _ = encoder["patch_embed.proj.weight"].shape
    depth = 1 + max((int(match[1]) for name in encoder if (match := re.match(r"blocks\.(\d+)\.", name))), default=-1)
    side = math.isqrt(encoder["pos_embed"].shape[1] - 1)
    rows, columns = state[CODEBOOK].shape
    tokenizer = VqkdTokenizer(side * patch, patch, width, depth, (rows, columns))
    weights = {f"encoder.{name}": value for name, value in encoder.items()}
    weights |= {f"task.{n[18:]}": value for n, value in state.items() if n.startswith("encode_task_layer.")}
    weights["codebook"] = state[CODEBOOK]
    try:
        tokenizer.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    except RuntimeError as error:
        detail = [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
        raise CheckpointError(f"{path} does not hold VQ-KD's weights: {detail[0][:200]}") from None
    tokenizer.table = weights["encoder.pos_embed"].float()
    config = {"architecture": "vqkd", "encoder": {"patch": patch, "width": width, "depth": depth}}
    tokenizer.fingerprint = fingerprint({"encoder": tokenizer.state_dict()}, config)
    tokenizer.provenance = {"source": f"codes:{path}"}
    return tokenizer.eval()
