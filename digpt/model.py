"""The one model definition: uint8 pixels in, embedding out; normalisation, pooling and head inside the graph.

Shapes: B batch, H x W pixels, N patches, C encoder width, D embedding width, L context length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn

from digpt.attention import attention_maps
from digpt.errors import CapabilityError, CheckpointError
from digpt.preprocess import Preprocess
from digpt.text import CompactTokenizer

if TYPE_CHECKING:
    from digpt.segmentation import Segmenter  # which imports this module


class TextTower(TextTransformer):
    """open_clip's text transformer under its own weight names: int64 ``[N, L]`` -> float32 ``[N, D]``.

    ``TextTower(context_length=16, vocab_size=2048, width=192, heads=3, layers=3, output_dim=192)``; the other
    arguments are those of ``open_clip.transformer.TextTransformer``, all of them JSON values.
    """

    def __init__(self, *, quick_gelu: bool = False, **tower: Any) -> None:
        super().__init__(**tower, act_layer=QuickGELU if quick_gelu else nn.GELU)


class InferenceModel(nn.Module):
    """uint8 RGB ``[B,H,W,3]`` -> float32 ``[B,D]``, not normalised to unit length.

    Pixels are scaled to [0, 1] and normalised with the buffers ``mean`` and ``std``. A ``projection`` head maps the
    pooled features into the joint image-text space; a ``linear`` head leaves the embedding alone and gives ``logits``.

    ``encoder`` is a timm model (pooled by its own ``forward_head``) or an open_clip vision tower. A ``segmenter`` is
    one around that same encoder: its logits are of pixels, its embedding the encoder's.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Any,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        dim: int,
        head: nn.Linear | None = None,
        head_type: str | None = None,
        segmenter: Segmenter | None = None,
    ) -> None:
        super().__init__()
        self.encoder: Any = encoder  # a module; Any because timm's and open_clip's share no typed interface
        self.projection = head if head_type == "projection" else None
        self.linear = head if head_type == "linear" else None
        self.segmenter = segmenter
        self.is_timm = hasattr(encoder, "forward_head")
        self.dim = dim
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 ``[B,H,W,3]`` -> ``[B,3,H,W]`` in the encoder's own statistics."""
        return self.normalise_float(images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255)

    def normalise_float(self, images: Tensor) -> Tensor:
        """float ``[B,3,H,W]`` in [0, 1] -> the same, in the encoder's own statistics (training's float path)."""
        return (images - self.mean) / self.std

    def features(self, normalised: Tensor) -> Tensor:
        """Normalised ``[B,3,H,W]`` -> pooled features ``[B,C]``, before any head of ours."""
        if self.is_timm:
            return self.encoder.forward_head(self.encoder.forward_features(normalised), pre_logits=True)
        pooled = self.encoder(normalised)
        return pooled[0] if isinstance(pooled, tuple) else pooled  # CoCa towers also return their tokens

    def embed(self, normalised: Tensor) -> Tensor:
        """Normalised ``[B,3,H,W]`` -> embedding ``[B,D]``."""
        pooled = self.features(normalised)
        return pooled if self.projection is None else self.projection(pooled)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 ``[B,H,W,3]`` -> float32 embedding ``[B,D]``."""
        return self.embed(self.normalise(images)).float()

    def forward_patches(self, images: Tensor) -> Tensor:
        """uint8 ``[B,H,W,3]`` -> float32 patch tokens ``[B,N,C]`` in raster order, without class or register tokens.

        After the encoder's final norm where it has one for its tokens.
        """
        normalised = self.normalise(images)
        if self.is_timm:
            return _patch_tokens(self.encoder, self.encoder.forward_features(normalised)).float()
        if hasattr(self.encoder, "trunk"):  # open_clip's wrapper around a timm model
            return _patch_tokens(self.encoder.trunk, self.encoder.trunk.forward_features(normalised)).float()
        # CoCa's final norm belongs to its attention pool, and has the width of what the pool gives.
        normed = getattr(self.encoder, "attn_pool", None) is None
        outputs = self.encoder.forward_intermediates(
            normalised, indices=1, normalize_intermediates=normed, intermediates_only=True, output_fmt="NLC"
        )
        return outputs["image_intermediates"][-1].float()

    def forward_attention(self, images: Tensor) -> Tensor | None:
        """uint8 ``[B,H,W,3]`` -> float32 ``[B,heads,h,w]`` on the patch grid, see `digpt.attention`; None without."""
        maps = attention_maps(self.encoder, self.normalise(images))
        return None if maps is None else maps.float()

    @property
    def head_kind(self) -> Literal["linear", "upernet"] | None:
        """What the model's labels are the classes of: pictures (``linear``), pixels (``upernet``), or of no head."""
        if self.segmenter is not None:
            return "upernet"
        return "linear" if self.has_logits else None

    @property
    def has_logits(self) -> bool:
        return self.linear is not None or (self.is_timm and getattr(self.encoder, "num_classes", 0) > 0)

    def logits(self, images: Tensor) -> Tensor:
        """uint8 ``[B,H,W,3]`` -> float32 logits ``[B,labels]`` of the linear head.

        Raises:
            CapabilityError: the model has no linear head.
        """
        if not self.has_logits:
            raise CapabilityError("This model has no classification head; classify with labels and a text tower.")
        normalised = self.normalise(images)
        if self.linear is not None:
            return self.linear(self.embed(normalised)).float()
        return self.encoder(normalised).float()


def _patch_tokens(encoder: Any, features: Tensor) -> Tensor:
    """timm's ``forward_features`` output -> ``[B,N,C]``, prefix tokens removed, maps flattened in raster order."""
    if features.ndim == 4:
        channels_last = getattr(encoder, "output_fmt", "NCHW") == "NHWC"
        return features.flatten(1, 2) if channels_last else features.flatten(2).transpose(1, 2)
    return features[:, int(getattr(encoder, "num_prefix_tokens", 0)) :]


class TextModel:
    """A tokenizer and a text tower. ``tokenizer_json`` is that of a ``CompactTokenizer``, else None."""

    def __init__(
        self,
        tokenizer: Callable[[Sequence[str]], Any],
        module: nn.Module,
        context_length: int,
        tokenizer_json: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.module = module
        self.context_length = context_length
        self.tokenizer_json = tokenizer_json

    def tokenize(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """``[N]`` strings -> int64 ``[N, L]``."""
        return np.asarray(self._tokenizer(list(texts)), dtype=np.int64)


def build_from_config(
    config: Mapping[str, Any], weights: Mapping[str, Mapping[str, Tensor]]
) -> tuple[InferenceModel, TextModel | None]:
    """Build the image model, and the text model where there is one, from a checkpoint's config and weights.

    Both come in ``eval`` mode, in float32, on the CPU.

    Raises:
        CheckpointError: arguments the library refuses, or weights that do not fit them.
    """
    return _build_image(config, weights).eval(), _build_text(config.get("text"), weights.get("text"))


def _build_image(config: Mapping[str, Any], weights: Mapping[str, Mapping[str, Tensor]]) -> InferenceModel:
    preprocess = Preprocess.from_dict(config["preprocess"])
    if (config.get("head") or {}).get("type") == "upernet":
        from digpt.segmentation import build_segmenter  # which imports this module

        segmenter = build_segmenter(config, weights)
        width = int(segmenter.encoder.head_hidden_size)
        return InferenceModel(segmenter.encoder, preprocess.mean, preprocess.std, dim=width, segmenter=segmenter)
    encoder, width = build_encoder(config)
    load_strict(encoder, weights["encoder"], "encoder")
    head, head_type = _build_head(config.get("head"), weights.get("head"))
    dim = head.out_features if head is not None and head_type == "projection" else width
    return InferenceModel(encoder, preprocess.mean, preprocess.std, dim=dim, head=head, head_type=head_type)


def build_encoder(config: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """The bare image encoder of a checkpoint's config with fresh weights, and the width of its pooled features."""
    arguments = dict(config["encoder"])
    try:
        if config["architecture"] == "timm":
            encoder: Any = timm.create_model(**arguments)
            _check_pooling(encoder, config["pooling"])
            return encoder, int(encoder.head_hidden_size)
        # open_clip builds its towers from plain dictionaries only through this function.
        from open_clip.model import CLIPVisionCfg, _build_vision_tower

        vision = CLIPVisionCfg(**arguments["vision_cfg"])
        tower = _build_vision_tower(arguments["embed_dim"], vision, bool(arguments.get("quick_gelu", False)))
        return tower, int(arguments["embed_dim"])
    except (TypeError, RuntimeError, AssertionError, KeyError, ValueError) as error:
        raise CheckpointError(f"The encoder cannot be built from its config: {first_line(error)}.") from None


def _check_pooling(encoder: nn.Module, pooling: str) -> None:
    """The recorded pooling must be what the encoder does; other words than timm's describe non-ViT encoders."""
    actual = getattr(encoder, "global_pool", None)
    if pooling in ("avg", "token", "map") and isinstance(actual, str) and actual != pooling:
        raise CheckpointError(f"The checkpoint says pooling {pooling!r}, its encoder pools by {actual!r}.")


def load_strict(module: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """``load_state_dict(strict=True)`` whose failure is one sentence."""
    try:
        module.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        details = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        raise CheckpointError(f"The {what} weights do not fit: {(details or [str(error)])[0][:200]}{more}") from None


def _build_head(
    head: Mapping[str, Any] | None, weights: Mapping[str, Tensor] | None
) -> tuple[nn.Linear | None, str | None]:
    if head is None or head.get("in_encoder"):
        return None, None
    if head.get("type") not in ("projection", "linear"):
        raise CheckpointError(f"Unknown head type {head.get('type')!r}; valid: projection, linear, upernet.")
    if not weights:
        raise CheckpointError("The checkpoint's config has a head, its weights have none.")
    layer = nn.Linear(head["in"], head["out"], bias="bias" in weights)
    load_strict(layer, weights, "head")
    return layer, head["type"]


def _build_text(text: Mapping[str, Any] | None, weights: Mapping[str, Tensor] | None) -> TextModel | None:
    if text is None:
        return None
    if not weights:
        raise CheckpointError("The checkpoint's config has a text tower, its weights have none.")
    try:
        tower = TextTower(**text["tower"])
        if str(text["tokenizer"]).startswith("open_clip:"):  # tuned from open_clip's own tower: its tokenizer stays
            return _open_clip_text(text, tower, weights)
        tokenizer = CompactTokenizer(text["tokenizer"], text["context_length"])
    except (TypeError, AssertionError, KeyError) as error:
        raise CheckpointError(f"The text tower cannot be built from the config: {first_line(error)}.") from None
    if tokenizer.vocab_size > tower.vocab_size:
        raise CheckpointError(
            f"The tokenizer has {tokenizer.vocab_size} tokens, the text tower only {tower.vocab_size}."
        )
    load_strict(tower, weights, "text tower")
    return TextModel(tokenizer, tower.eval(), tokenizer.context_length, tokenizer.json)


def _open_clip_text(text: Mapping[str, Any], tower: TextTower, weights: Mapping[str, Tensor]) -> TextModel:
    from digpt.source_open_clip import OpenClipTokenizer  # which imports this module

    load_strict(tower, weights, "text tower")
    length = int(text["context_length"])
    return TextModel(OpenClipTokenizer(text["tokenizer"].removeprefix("open_clip:"), length), tower.eval(), length)


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
