"""UperNet over a plain ViT: four maps from its blocks, a pyramid, two heads, and how a checkpoint holds them.

>>> segmenter = build_segmenter(checkpoint.config, checkpoint.weights)
>>> segmenter.pixel_logits(images).shape                      # uint8 [B,H,W,3] of any size
torch.Size([B, K, H, W])

Source of the layout and of its constants: mmsegmentation's ``UPerHead``, ``FCNHead`` and ``Feature2Pyramid`` as its
MAE and BEiT configurations for ADE20K use them; UperNet is Xiao et al. 2018, "Unified Perceptual Parsing".
Shapes: B batch, H x W pixels, h x w a map's cells, C encoder width, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from digpt.errors import CheckpointError, ConfigError, near_misses
from digpt.model import build_encoder, first_line, load_strict
from digpt.preprocess import Preprocess

HEAD_TYPE = "upernet"
HEAD_PARTS = ("pyramid", "upernet", "fcn")  # prefixes in a checkpoint's weight group "head"
POOL_SCALES = (1, 2, 3, 6)
AUX_LEVEL = 2  # the level that the FCN head reads: the encoder's own grid
AUX_WEIGHT = 0.4  # of its loss beside the main one
# 0-based, as mmsegmentation's out_indices of the base and the large ViT.
_BLOCKS = {12: (3, 5, 7, 11), 24: (7, 11, 15, 23)}
_UNUSED = ("norm.", "fc_norm.", "head.", "attn_pool.")  # what a ViT has after its last block


def tapped_blocks(depth: int) -> tuple[int, int, int, int]:
    """The four 0-based blocks whose outputs feed the pyramid: (3,5,7,11) of 12, (7,11,15,23) of 24.

    Of any other depth the ends of its four quarters, ``ceil(depth * i / 4) - 1`` for i = 1..4: (7,15,23,31) of 32,
    (1,2,4,5) of 6. Below four blocks some are used twice.
    """
    first, second, third, last = _BLOCKS.get(depth) or [-(-depth * quarter // 4) - 1 for quarter in range(1, 5)]
    return first, second, third, last


@dataclass(frozen=True)
class SegmentConfig:
    """What a segmentation head is.

    Attributes:
        classes: names of the labels 0..K-1.
        blocks: the four encoder blocks to read, see `tapped_blocks`.
        channels: of every convolution of UperNet; 768 for ViT-B, 1024 for ViT-L (the encoder's width).
        crop: side in pixels of training crops and of sliding windows, a multiple of the patch.
        dropout: share of channels that are dropped before the classifiers, in training.
        aux_channels: of the auxiliary FCN head; 0 for none.
        reduce_zero: whether 0 in the mask files of its own training data was no class, and classes counted from 1.
    """

    classes: tuple[str, ...]
    blocks: tuple[int, int, int, int]
    channels: int
    crop: int = 512
    dropout: float = 0.1
    aux_channels: int = 256
    reduce_zero: bool = False

    def __post_init__(self) -> None:
        for name in ("classes", "blocks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 1 <= len(self.classes) <= 255:
            raise ConfigError(f"A segmentation head has 1 to 255 classes, not {len(self.classes)}.")
        if len(self.blocks) != 4 or list(self.blocks) != sorted(self.blocks) or self.blocks[0] < 0:
            raise ConfigError(f"blocks={self.blocks} must be four block numbers, counted from 0, in rising order.")
        if self.channels < 1 or self.crop < 1 or self.aux_channels < 0 or not 0 <= self.dropout < 1:
            raise ConfigError("channels and crop are positive, aux_channels is 0 or more, dropout lies in [0, 1).")

    @property
    def n_classes(self) -> int:
        """K."""
        return len(self.classes)

    @classmethod
    def for_encoder(cls, encoder_config: Mapping[str, Any], classes: Sequence[str], **changes: Any) -> SegmentConfig:
        """The configuration for timm's arguments ``encoder_config``: its depth decides ``blocks``, its width
        ``channels``; ``changes`` replace any field."""
        encoder = _outline(encoder_config)
        found = {"blocks": tapped_blocks(len(encoder.blocks)), "channels": encoder.embed_dim}
        return cls(tuple(classes), **{**found, **changes})


# ------------------------------------------------------------------------------------------------------- the encoder


def _outline(encoder_config: Mapping[str, Any]) -> VisionTransformer:
    """The encoder of timm's arguments without storage: for its grid, depth and width."""
    with torch.device("meta"):
        encoder = timm.create_model(**encoder_config)
    if not isinstance(encoder, VisionTransformer):
        raise ConfigError(f"{encoder_config['model_name']!r} is no plain ViT of timm, as is needed here.")
    return encoder


def at_image_size(
    encoder_config: Mapping[str, Any], encoder_weights: Mapping[str, Tensor], size: int | tuple[int, int]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same encoder for images of ``size``, a side or (height, width) in pixels: timm's arguments and weights.

    The position table is resampled by timm's ``resample_abs_pos_embed`` (bicubic, antialiased), as its
    ``set_input_size`` does on a built model; all other weights are returned as they are.

    Raises:
        ConfigError: a size that is no multiple of the patch, or an encoder that is no plain ViT.
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    old = _outline(encoder_config)
    grid = []
    for side, step in zip(sides, old.patch_embed.patch_size, strict=True):
        if side < step or side % step:
            low = max(side // step, 1) * step
            raise ConfigError(f"Image size {side} is not a multiple of the patch, {step}; try {low} or {low + step}.")
        grid.append(side // step)
    weights = dict(encoder_weights)
    if old.pos_embed is not None:
        with torch.no_grad():
            weights["pos_embed"] = resample_abs_pos_embed(
                weights["pos_embed"],
                new_size=grid,
                old_size=list(old.patch_embed.grid_size),
                num_prefix_tokens=0 if old.no_embed_class else old.num_prefix_tokens,
            )
    return {**encoder_config, "img_size": size}, weights


def segment_encoder(
    encoder_config: Mapping[str, Any], encoder_weights: Mapping[str, Tensor], crop: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Any ViT's arguments and weights as a segmenter wants them: `at_image_size` of ``crop``, ending at its last block.

    Final norm, pooling and classifier go, so that every weight left gets a gradient. Other input sizes than ``crop``
    work too: timm then resamples the position table in each call (``dynamic_img_size``).

    Raises:
        ConfigError: see `at_image_size`.
    """
    config, weights = at_image_size(encoder_config, encoder_weights, crop)
    bare = {"num_classes": 0, "global_pool": "avg", "final_norm": False, "fc_norm": False, "dynamic_img_size": True}
    return {**config, **bare}, {name: value for name, value in weights.items() if not name.startswith(_UNUSED)}


def tapped_maps(encoder: VisionTransformer, normalised: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    """Outputs of ``blocks`` (0-based, rising) for ``[B,3,H,W]``: each ``[B,C,h,w]`` on the patch grid.

    Without class and register tokens, and without any final norm.
    """
    distinct = sorted(set(blocks))
    maps: Any = encoder.forward_intermediates(  # of the types that its arguments choose between
        normalised, indices=distinct, norm=False, output_fmt="NCHW", intermediates_only=True
    )
    by_block = dict(zip(distinct, maps, strict=True))
    return [by_block[block] for block in blocks]


# --------------------------------------------------------------------------------------------------------- the heads


class Pyramid(nn.Module):
    """Four maps ``[B,C,h,w]`` of one size -> a list of 4x, 2x, 1x and 1/2x that size, of the same width.

    With patches of 16 pixels these are the strides 4, 8, 16 and 32. Sides are halved rounding down, so h and w are at
    least 2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()

        def double() -> nn.ConvTranspose2d:
            return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)

        self.up4 = nn.Sequential(double(), nn.BatchNorm2d(width), nn.GELU(), double())
        self.up2 = double()
        self.down2 = nn.MaxPool2d(kernel_size=2, stride=2)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        first, second, third, last = maps
        return [self.up4(first), self.up2(second), third, self.down2(last)]


def conv_norm_relu(in_channels: int, channels: int, kernel: int) -> nn.Sequential:
    """A convolution that keeps the size, batch norm and ReLU, initialised as mmcv's ``ConvModule`` (He, fan out)."""
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _classifier(channels: int, n_classes: int) -> nn.Conv2d:
    """A 1x1 convolution, initialised as mmsegmentation's ``conv_seg``: normal with 0.01, no bias."""
    layer = nn.Conv2d(channels, n_classes, kernel_size=1)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.constant_(layer.get_parameter("bias"), 0)
    return layer


def _resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


class UperNetHead(nn.Module):
    """Pyramid pooling on the last level, then a feature pyramid network: ``[B,C_i,h_i,w_i]`` -> ``[B,K,h_0,w_0]``.

    Levels come from fine to coarse. Batch norm sees 1x1 maps in pyramid pooling, so a training batch has two images
    at least. Whole channels are dropped (``Dropout2d``), by torch's own generator.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, n_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        *lower, top = in_channels
        self.ppm = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), conv_norm_relu(top, channels, 1)) for scale in POOL_SCALES
        )
        self.bottleneck = conv_norm_relu(top + len(POOL_SCALES) * channels, channels, 3)
        self.laterals = nn.ModuleList(conv_norm_relu(width, channels, 1) for width in lower)
        self.fpn = nn.ModuleList(conv_norm_relu(channels, channels, 3) for _ in lower)
        self.fuse = conv_norm_relu(len(in_channels) * channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(channels, n_classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        top = levels[-1]
        pooled = [_resized(pool(top), top.shape[2:]) for pool in self.ppm]
        sums = [self.bottleneck(torch.cat([top, *pooled], dim=1))]
        for lateral, level in zip(reversed(self.laterals), reversed(levels[:-1]), strict=True):
            sums.insert(0, lateral(level) + _resized(sums[0], level.shape[2:]))
        outputs = [*(conv(part) for conv, part in zip(self.fpn, sums, strict=False)), sums[-1]]
        size = levels[0].shape[2:]
        fused = self.fuse(torch.cat([outputs[0], *(_resized(part, size) for part in outputs[1:])], dim=1))
        return self.classifier(self.dropout(fused))


class FcnHead(nn.Module):
    """The auxiliary head, one 3x3 convolution and a classifier: ``[B,C,h,w]`` -> logits ``[B,K,h,w]``."""

    def __init__(self, in_channels: int, channels: int, n_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv = conv_norm_relu(in_channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = _classifier(channels, n_classes)

    def forward(self, level: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.conv(level)))


class Segmenter(nn.Module):
    """An encoder of `segment_encoder` with its pyramid, UperNet and, unless ``aux_channels`` is 0, the FCN head.

    Pixels are scaled to [0, 1] and normalised with the buffers ``mean`` and ``std``. Batch norm is torch's own;
    ``nn.SyncBatchNorm.convert_sync_batchnorm`` is the trainer's to call, and weights move between the two.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, encoder: VisionTransformer, config: SegmentConfig, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        depth, width = len(encoder.blocks), int(encoder.embed_dim)
        self.patch: tuple[int, int] = tuple(encoder.patch_embed.patch_size)
        if config.blocks[-1] >= depth:
            raise ConfigError(f"blocks={config.blocks} reach beyond the encoder's last block, {depth - 1}.")
        if any(config.crop % side for side in self.patch):
            raise ConfigError(f"crop={config.crop} is not a multiple of the patch, {self.patch[0]}.")
        self.config, self.encoder = config, encoder
        self.pyramid = Pyramid(width)
        self.upernet = UperNetHead([width] * 4, config.channels, config.n_classes, config.dropout)
        aux = config.aux_channels
        self.fcn = FcnHead(width, aux, config.n_classes, config.dropout) if aux else None
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        """`logits` of uint8 ``[B,H,W,3]``; `train_logits` of float ``[B,3,H,W]``, for wrappers that copy or shard."""
        return self.train_logits(images) if images.is_floating_point() else self.logits(images)

    def train_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """float ``[B,3,H,W]`` in [0, 1] -> float32 logits of UperNet ``[B,K,4h,4w]`` and of the FCN head ``[B,K,h,w]``.

        h x w is the patch grid; H and W are multiples of the patch. None where there is no FCN head.
        """
        levels = self._levels((images - self.mean) / self.std)
        return self.upernet(levels).float(), None if self.fcn is None else self.fcn(levels[AUX_LEVEL]).float()

    def logits(self, images: Tensor) -> Tensor:
        """uint8 ``[B,H,W,3]``, H and W multiples of the patch -> float32 ``[B,K,4h,4w]``, h x w the patch grid."""
        return self.upernet(self._levels(self._normalised(images))).float()

    def pixel_logits(self, images: Tensor) -> Tensor:
        """uint8 ``[B,H,W,3]`` of any size, on any device -> float32 ``[B,K,H,W]`` on the model's.

        Right and bottom are padded with the mean's colour to a multiple of the patch (and to two patches at least),
        and the logits, resized bilinearly to the padded size, are cut. mmsegmentation pads alike but stretches the
        logits of the padded input over the unpadded size, so the two differ for sizes that are no multiple.

        Raises:
            RuntimeError: in training mode, where batch norm would learn from what is evaluated.
        """
        if self.training:
            raise RuntimeError("Segmenter.pixel_logits needs the model in eval mode: call model.eval() first.")
        height, width = images.shape[1:3]
        padded = [max(-(-side // step), 2) * step for side, step in zip((height, width), self.patch, strict=True)]
        normalised = F.pad(self._normalised(images), (0, padded[1] - width, 0, padded[0] - height))
        logits = self.upernet(self._levels(normalised)).float()
        return _resized(logits, padded)[:, :, :height, :width]

    def _normalised(self, images: Tensor) -> Tensor:
        pixels = images.to(self.mean.device).permute(0, 3, 1, 2).to(self.mean.dtype) / 255
        return (pixels - self.mean) / self.std

    def _levels(self, normalised: Tensor) -> list[Tensor]:
        return self.pyramid(tapped_maps(self.encoder, normalised, self.config.blocks))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's layers for layer-wise learning rates: embeddings, each block, and last all that matches nothing."""
        stem = r"^encoder\.(?:cls_token|reg_token|pos_embed|patch_embed|norm_pre)"
        return {"stem": stem, "blocks": [(r"^encoder\.blocks\.(\d+)", None)]}

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm exempts from weight decay beside those of one dimension."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}


# ---------------------------------------------------------------------------------------------------- the checkpoint


def segmenter_config(encoder: Mapping[str, Any], segment: SegmentConfig, preprocess: Preprocess) -> dict[str, Any]:
    """The ``config`` of a checkpoint: the head under ``head`` (type ``upernet``), the classes under ``labels``.

    ``encoder`` is the config of `segment_encoder`; of ``preprocess`` mean and std are used, its size becomes the crop.
    """
    head = {key: value for key, value in dataclasses.asdict(segment).items() if key != "classes"}
    return {
        "architecture": "timm",
        "encoder": dict(encoder),
        "preprocess": dataclasses.replace(preprocess, size=segment.crop).to_dict(),
        "pooling": encoder.get("global_pool", "avg"),
        "head": {"type": HEAD_TYPE, **head, "blocks": list(segment.blocks)},
        "labels": list(segment.classes),
    }


def segmenter_weights(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A `Segmenter`'s state by a checkpoint's groups: ``encoder``, and ``head`` with the prefixes ``HEAD_PARTS``."""
    encoder = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    return {"encoder": encoder, "head": {name: value for name, value in state.items() if name.startswith(HEAD_PARTS)}}


def segment_config(config: Mapping[str, Any]) -> SegmentConfig:
    """The `SegmentConfig` in a checkpoint's ``config``.

    Raises:
        CheckpointError: it has no segmentation head, or one with keys that are unknown here or missing.
    """
    head = dict(config.get("head") or {})
    if head.pop("type", None) != HEAD_TYPE:
        raise CheckpointError("This checkpoint has no segmentation head; give one that was trained on masks.")
    known = [field.name for field in dataclasses.fields(SegmentConfig)]
    for key in head:
        if key not in known:
            close = near_misses(key, known)
            raise CheckpointError(f"Unknown key {key!r} in the checkpoint's segmentation head.{close}")
    try:
        return SegmentConfig(classes=tuple(config.get("labels") or ()), **head)
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"The checkpoint's segmentation head cannot be built: {first_line(error)}.") from None


def build_segmenter(config: Mapping[str, Any], weights: Mapping[str, Mapping[str, Tensor]]) -> Segmenter:
    """The segmenter of a checkpoint's ``config`` and ``weights``, in eval mode, float32, on the CPU.

    Raises:
        CheckpointError: no segmentation head, arguments that timm refuses, or weights that do not fit.
    """
    segment = segment_config(config)
    preprocess = Preprocess.from_dict(config["preprocess"])
    encoder, _ = build_encoder(config)
    if not isinstance(encoder, VisionTransformer):
        raise CheckpointError("The checkpoint's encoder is no plain ViT of timm, which UperNet here needs.")
    try:
        segmenter = Segmenter(encoder, segment, preprocess.mean, preprocess.std)
    except ConfigError as error:
        raise CheckpointError(f"The checkpoint's segmentation head does not fit its encoder: {error}") from None
    load_strict(segmenter.encoder, weights["encoder"], "encoder")
    head = nn.ModuleDict({name: part for name, part in segmenter.named_children() if name in HEAD_PARTS})
    load_strict(head, weights.get("head") or {}, "segmentation head")
    return segmenter.eval()
