"""The paper's teachers and today's by name: ``--teacher clip-l`` instead of a library's spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class NamedTeacher:
    """A published model. ``pool`` overrides how the library pools it, where that is not how it was trained."""

    library: Literal["open_clip", "timm"]
    model: str
    tag: str
    pool: str = ""

    def spec(self, file: str = "") -> str:
        """The model spec of ``digpt.sources``, with the published weights or those in a local ``file``."""
        if self.library == "open_clip":
            return f"open_clip:{self.model}/{file or self.tag}"
        return f"timm:{self.model}.{self.tag}" + (f"@{file}" if file else "")


# OpenAI's weights were trained with QuickGELU; open_clip's names say so, which also holds for weights in a local file.
# DINO-L is an assumption: the paper does not say which, and DINO itself was never released larger than ViT-B, so this
# is DINOv2, the only DINO of that size when the paper was written. DINOv3 is pooled by its class token as trained;
# timm's default is the mean.
NAMED: dict[str, NamedTeacher] = {
    # Tables 5 and 6
    "clip-b": NamedTeacher("open_clip", "ViT-B-16-quickgelu", "openai"),
    "clip-l": NamedTeacher("open_clip", "ViT-L-14-quickgelu", "openai"),
    "clip-l@336": NamedTeacher("open_clip", "ViT-L-14-336-quickgelu", "openai"),
    "openclip-l": NamedTeacher("open_clip", "ViT-L-14", "laion2b_s32b_b82k"),
    "openclip-h": NamedTeacher("open_clip", "ViT-H-14", "laion2b_s32b_b79k"),
    "dino-b": NamedTeacher("timm", "vit_base_patch16_224", "dino"),
    "dino-l": NamedTeacher("timm", "vit_large_patch14_dinov2", "lvd142m"),
    # today's
    "siglip2-b": NamedTeacher("open_clip", "ViT-B-16-SigLIP2", "webli"),
    "siglip2-l": NamedTeacher("open_clip", "ViT-L-16-SigLIP2-256", "webli"),
    "siglip2-so400m": NamedTeacher("open_clip", "ViT-SO400M-14-SigLIP2", "webli"),
    "pe-core-b": NamedTeacher("open_clip", "PE-Core-B-16", "meta"),
    "pe-core-l": NamedTeacher("open_clip", "PE-Core-L-14-336", "meta"),
    "clipa-l": NamedTeacher("open_clip", "ViT-L-14-CLIPA", "datacomp1b"),
    "clipa-h": NamedTeacher("open_clip", "ViT-H-14-CLIPA", "datacomp1b"),
    "dinov2-b": NamedTeacher("timm", "vit_base_patch14_dinov2", "lvd142m"),
    "dinov2-l": NamedTeacher("timm", "vit_large_patch14_dinov2", "lvd142m"),
    "dinov2-l-reg": NamedTeacher("timm", "vit_large_patch14_reg4_dinov2", "lvd142m"),
    "dinov3-b": NamedTeacher("timm", "vit_base_patch16_dinov3", "lvd1689m", pool="token"),
    "dinov3-l": NamedTeacher("timm", "vit_large_patch16_dinov3", "lvd1689m", pool="token"),
    "aimv2-l": NamedTeacher("timm", "aimv2_large_patch14_224", "apple_pt"),
}


def named_teacher(spec: str) -> tuple[NamedTeacher, str] | None:
    """``NAME`` or ``NAME@FILE``, in any case, -> the teacher and the file ("" for the published weights), else None."""
    name, at, file = spec.rpartition("@")
    if spec.lower() in NAMED:  # clip-l@336 among them
        return NAMED[spec.lower()], ""
    return (NAMED[name.lower()], file) if at and file and name.lower() in NAMED else None
