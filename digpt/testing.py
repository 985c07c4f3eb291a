"""Small seeded models and pictures for tests: random content, real structure.

>>> write_checkpoint("tiny.pt", tiny_checkpoint())
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from digpt.artifact import Checkpoint
from digpt.preprocess import Preprocess
from digpt.text import CompactTokenizer, train_tokenizer

TINY_LABELS = ("red apple", "green apple", "grinning face", "house")
TINY_CLASSES = ("background", "cat", "dog", "owl", "rocket")


def tiny_checkpoint(
    seed: int = 0,
    text: bool = True,
    labels: Sequence[str] | None = TINY_LABELS,
    *,
    image_size: int = 32,
    head: str | None = None,
    encoder: dict[str, Any] | None = None,
) -> Checkpoint:
    """A checkpoint with seeded random weights: ViT of width 48, 2 blocks, 3 heads, patch 8 (about 70,000 weights).

    ``text``: with a text tower and, if ``head`` is None, a ``projection`` head to 32 values. ``head="linear"``: a
    linear head over ``labels`` instead. ``encoder`` overrides arguments of ``timm.create_model``.
    """
    import timm
    import torch
    from torch import nn

    from digpt.text import TextTower

    arguments = {
        "model_name": "vit_tiny_patch16_224",
        "img_size": image_size,
        "patch_size": 8,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 3,
        "num_classes": 0,
        "global_pool": "avg",
        "fc_norm": True,
        **(encoder or {}),
    }
    head = head or ("projection" if text else None)
    width, dim = arguments["embed_dim"], 32
    out = len(labels or ()) if head == "linear" else dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = {"encoder": timm.create_model(**arguments).state_dict()}
        if head:
            weights["head"] = nn.Linear(width, out, bias=head == "linear").state_dict()
        text_config: dict[str, Any] | None = None
        if text:
            text_config = _text_config(labels or TINY_LABELS, dim if head == "projection" else width)
            weights["text"] = TextTower(**text_config["tower"]).state_dict()
    config = {
        "architecture": "timm",
        "encoder": arguments,
        "preprocess": Preprocess(size=image_size).to_dict(),
        "pooling": arguments["global_pool"],
        "head": {"type": head, "in": width, "out": out} if head else None,
        "text": text_config,
        "labels": list(labels) if labels else None,
    }
    return Checkpoint(config, weights, {"command": "digpt.testing.tiny_checkpoint", "seed": seed})


def tiny_segmenter_checkpoint(seed: int = 0, crop: int = 32, classes: Sequence[str] = TINY_CLASSES) -> Checkpoint:
    """A segmenter around the encoder of `tiny_checkpoint`, 16 channels wide; it finds several classes in a picture."""
    import timm
    import torch

    from digpt.segmentation import SegmentConfig, Segmenter, segment_encoder, segmenter_config, segmenter_weights

    start = tiny_checkpoint(seed, text=False)
    config, weights = segment_encoder(start.config["encoder"], start.weights["encoder"], crop)
    preprocess = Preprocess(size=crop, mean=(0.2, 0.4, 0.6), std=(0.5, 0.25, 0.2))
    segment = SegmentConfig.for_encoder(config, classes, crop=crop, channels=16, aux_channels=8)
    encoder: Any = timm.create_model(**config)
    encoder.load_state_dict(weights, strict=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        segmenter = Segmenter(encoder, segment, preprocess.mean, preprocess.std)
        with torch.no_grad():
            segmenter.upernet.classifier.weight.normal_()
            centred = segmenter.upernet.classifier.weight - segmenter.upernet.classifier.weight.mean(1, keepdim=True)
            segmenter.upernet.classifier.weight.copy_(centred)  # features after ReLU favour the largest sum
    document = segmenter_config(config, segment, preprocess)
    provenance = {"command": "digpt.testing.tiny_segmenter_checkpoint", "seed": seed}
    return Checkpoint(document, segmenter_weights(segmenter.state_dict()), provenance)


def _text_config(captions: Sequence[str], dim: int) -> dict[str, Any]:
    json_str = train_tokenizer(captions, vocab_size=280)
    tokenizer = CompactTokenizer(json_str, context_length=12)
    return {
        "tower": {
            "context_length": tokenizer.context_length,
            "vocab_size": tokenizer.vocab_size,
            "width": 32,
            "heads": 2,
            "layers": 1,
            "output_dim": dim,
        },
        "tokenizer": json_str,
        "context_length": tokenizer.context_length,
        "templates": ["{}"],
        "logit_scale": 20.0,
        "logit_bias": None,
    }


def sample_images(seed: int = 0) -> dict[str, bytes]:
    """Encoded pictures of every kind the decoder must handle, by what is special about them; all fully valid."""
    random = np.random.default_rng(seed)

    def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
        bands = len(Image.new(mode, (1, 1)).getbands())
        coarse = random.integers(0, 256, (height // 6 + 2, width // 6 + 2, bands), dtype=np.uint8)
        image = Image.fromarray(coarse[..., 0] if bands == 1 else coarse, mode if mode == "CMYK" else None)
        return image.resize((width, height), Image.Resampling.BICUBIC).convert(mode)

    palette = picture(61, 47).quantize(32)
    deep = Image.fromarray(random.integers(0, 65536, (43, 51), dtype=np.uint16))
    orientation = Image.Exif()
    orientation[0x0112] = 6  # turned a quarter
    opacities = bytes(random.integers(0, 256, 32, dtype=np.uint8))
    return {
        **{f"rgb_{w}x{h}": encode(picture(w, h), "PNG") for w, h in ((37, 53), (131, 90), (32, 32), (5, 90), (17, 16))},
        "jpeg": encode(picture(121, 83), "JPEG"),
        "jpeg_grey": encode(picture(83, 60, "L"), "JPEG"),
        "jpeg_cmyk": encode(picture(83, 60, "CMYK"), "JPEG"),
        "jpeg_exif": encode(picture(90, 60), "JPEG", exif=orientation),
        "grey": encode(picture(61, 47, "L"), "PNG"),
        "grey_alpha": encode(picture(61, 47, "LA"), "PNG"),
        "grey_16bit": encode(deep, "PNG"),
        "grey_16bit_tiff": encode(deep, "TIFF"),
        "bilevel": encode(picture(61, 47, "L").convert("1"), "PNG"),
        "palette": encode(palette, "PNG"),
        "palette_alpha": encode(palette, "PNG", transparency=opacities),
        "rgb_transparent_color": encode(picture(61, 47), "PNG", transparency=(9, 9, 9)),
        "rgba": encode(picture(61, 47, "RGBA"), "PNG"),
        "webp": encode(picture(61, 47, "RGBA"), "WEBP", lossless=True),
        "gif": encode(palette, "GIF", transparency=3),
        "gif_animated": encode(palette, "GIF", save_all=True, append_images=[picture(61, 47)], duration=90),
        "bmp": encode(picture(61, 47), "BMP"),
        "tiff_cmyk": encode(picture(61, 47, "CMYK"), "TIFF"),
    }


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """The bytes of ``image.save(format=file_format, **options)``."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
