"""Where tuning starts: an encoder from a checkpoint, its positions fitted to the image size, or a random one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from digpt.encoder import build_encoder, encoder_config, finetuned_config
from digpt.errors import ConfigError
from digpt.preprocess import Preprocess
from digpt.sources import load_model
from train.provenance import parent


@dataclass(frozen=True)
class Start:
    """An encoder that pools and norms (``digpt.encoder.finetuned_config``), and where it comes from."""

    encoder: VisionTransformer
    config: dict[str, Any]  # timm's arguments
    preprocess: Preprocess
    parents: list[dict[str, Any]]


def start_encoder(spec: str, variant: str, image_size: int, depth: int | None, **overrides: Any) -> Start:
    """The encoder named by ``spec``: a checkpoint of ours or of the authors, or ``random`` in the shape of ``variant``.

    ``overrides`` are timm's arguments, such as ``drop_path_rate``. A classification head is left behind.

    Raises:
        ConfigError: the checkpoint holds no plain ViT, or does not fit.
    """
    if spec == "random":
        sizes = {} if depth is None else {"depth": depth}
        config = finetuned_config(encoder_config(variant, image_size, **sizes))
        return Start(build_encoder({**config, **overrides}), config, Preprocess(size=image_size), [])
    if not_trained_yet(spec):
        raise ConfigError(f"--encoder {spec} does not exist: pretrain it first, or name a checkpoint that does.")
    source = load_model(spec)
    if source.config["architecture"] != "timm" or not isinstance(source.module.encoder, VisionTransformer):
        raise ConfigError(f"{spec} is not a plain ViT of ours; give a checkpoint of train.pretrain.")
    config = finetuned_config({**source.config["encoder"], "img_size": image_size, "num_classes": 0})
    encoder = build_encoder({**config, **overrides})
    state = {name: value for name, value in source.module.encoder.state_dict().items() if not name.startswith("head.")}
    state["pos_embed"] = _positions(state["pos_embed"], encoder)
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    # a pretraining encoder has no norm after pooling; everything else must be there
    if unexpected or any(not name.startswith("fc_norm.") for name in missing):
        raise ConfigError(f"{spec} does not fit the tuned encoder: {[*missing, *unexpected][:4]}.")
    preprocess = replace(source.preprocess, size=image_size)
    return Start(encoder, config, preprocess, [parent("encoder", source.fingerprint, source.provenance)])


def not_trained_yet(spec: str) -> bool:
    """A path to a checkpoint that is not there; names and other specs are no paths."""
    return spec.endswith((".pt", ".pth")) and ":" not in spec and not Path(spec).exists()


def _positions(table: Tensor, encoder: VisionTransformer) -> Tensor:
    """The position table ``[1, 1+N, C]`` on the encoder's grid."""
    grid = encoder.patch_embed.grid_size
    with torch.no_grad():
        return resample_abs_pos_embed(table, [grid[0], grid[1]], num_prefix_tokens=encoder.num_prefix_tokens)
