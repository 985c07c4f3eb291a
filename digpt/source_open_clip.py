"""open_clip's models behind our ``Model``, with open_clip's own pixels, weights and texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from digpt.artifact import fingerprint
from digpt.errors import BackendError, SpecError, near_misses
from digpt.model import InferenceModel, TextModel, first_line
from digpt.preprocess import Preprocess
from digpt.sources import Model
from digpt.text import TEMPLATES
from digpt.weight_files import downloaded, misfit, unreadable


def load_open_clip(spec: str, rest: str, image_size: int | None) -> Model:
    """``NAME/TAG`` downloads open_clip's weights, ``NAME/FILE`` reads a local file (safetensors, pt).

    The embedding is ``encode_image`` without normalisation. Activation, mean, std and resizing are those the tag's
    weights were trained with. A file knows no tag: its activation is the name's (``ViT-B-16-quickgelu``), its mean
    and std are CLIP's and its resizing keeps the aspect ratio, as open_clip has it. That is wrong for a saved copy of
    weights trained otherwise, such as ``ViT-L-14/laion2b_s32b_b82k`` (mean and std 0.5) or SigLIP: name the tag.
    """
    name, _, source = rest.partition("/")
    _check_open_clip_name(spec, name, source)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if source in tags:
        model = downloaded(spec, f"open_clip:{name}/FILE", lambda: _create_open_clip(name, source, image_size))
    else:
        path = Path(source)
        if not path.is_file():
            raise SpecError(
                f"{source!r} is neither a file nor pretrained weights of {name}.{near_misses(source, tags)} "
                f"Valid: {', '.join(tags) or 'no tags, only a file'}."
            )
        try:
            model = _create_open_clip(name, str(path), image_size)
        except Exception as error:  # safetensors and pickle raise their own unrelated types
            raise (misfit(path, name, error) if "state_dict" in str(error) else unreadable(path, error)) from None
    return _wrap_open_clip(spec, name, model.eval(), image_size, needs_quick_gelu(name, source))


def _check_open_clip_name(spec: str, name: str, source: str) -> None:
    known = open_clip.list_models()
    if name not in known:
        raise SpecError(
            f"open_clip has no model {name!r}.{near_misses(name, known)} "
            "List them with: python -c \"import open_clip; print(*open_clip.list_models(), sep='\\n')\""
        )
    if not source:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise SpecError(f"{spec} names no weights; add /TAG or /FILE. Tags of {name}: {tags}.")


def _create_open_clip(name: str, pretrained: str, image_size: int | None) -> Any:
    # open_clip only warns where weights were trained with another activation than the name's (all `openai` ones)
    quick_gelu = needs_quick_gelu(name, pretrained)
    return open_clip.create_model(name, pretrained=pretrained, force_image_size=image_size, force_quick_gelu=quick_gelu)


def needs_quick_gelu(name: str, tag: str) -> bool:
    """Whether open_clip's table says that the weights of this tag were trained with QuickGELU."""
    return bool((open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu", False))


def _wrap_open_clip(spec: str, name: str, model: Any, image_size: int | None, quick_gelu: bool) -> Model:
    library = open_clip.get_model_config(name) or {}
    if quick_gelu:
        library["quick_gelu"] = True
    if image_size is not None:
        library["vision_cfg"]["image_size"] = image_size
    preprocess = open_clip_preprocess(spec, model.visual.preprocess_cfg)
    bias = None if model.logit_bias is None else float(model.logit_bias.detach().flatten()[0])
    scale = float(model.logit_scale.detach().exp().flatten()[0])
    config: dict[str, Any] = {
        "architecture": "open_clip",
        "encoder": {key: library.get(key) for key in ("embed_dim", "vision_cfg", "quick_gelu")},
        "preprocess": preprocess.to_dict(),
        "pooling": "open_clip",
        "head": None,
        "text": {
            "tower": library["text_cfg"],
            "tokenizer": f"open_clip:{name}",
            "context_length": model.context_length,
            "templates": list(TEMPLATES["photo"]),
            "logit_scale": scale,
            "logit_bias": bias,
        },
        "labels": None,
        "objective": None,
    }
    module = InferenceModel(model.visual, preprocess.mean, preprocess.std, dim=int(library["embed_dim"]))
    return Model(
        spec=spec,
        name=name,
        module=module.eval(),
        preprocess=preprocess,
        config=config,
        fingerprint=fingerprint({"encoder": model.visual.state_dict(), "text": _text_weights(model)}, config),
        text=TextModel(OpenClipTokenizer(name, model.context_length), _EncodeText(model).eval(), model.context_length),
        logit_scale=scale,
        logit_bias=bias,
        templates=TEMPLATES["photo"],
        provenance={"source": spec},
    )


def open_clip_preprocess(spec: str, values: Mapping[str, Any]) -> Preprocess:
    """open_clip's ``preprocess_val``, which resizes in the file's own mode and converts to RGB afterwards."""
    cfg = PreprocessCfg(**values)
    height, width = cfg.size if isinstance(cfg.size, (tuple, list)) else (cfg.size, cfg.size)
    if height != width:
        raise SpecError(f"{spec} takes {height} x {width} inputs; only square ones are supported.")
    return Preprocess(
        size=height,
        resize=cfg.resize_mode,
        interpolation="bilinear" if cfg.interpolation == "bilinear" else "bicubic",
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        alpha="drop",
        exif=False,
        fill=(cfg.fill_color,) * 3,
        convert="last",
    )


def text_tower_weights(model: Model) -> dict[str, Tensor]:
    """The text tower's weights of a loaded open_clip model, under ``open_clip.transformer.TextTransformer``'s names."""
    assert model.text is not None and isinstance(model.text.module, _EncodeText)
    return _text_weights(model.text.module.model)


def _text_weights(model: nn.Module) -> dict[str, Tensor]:
    """The text tower's weights under ``TextTransformer``'s names, whichever class open_clip built."""
    state = model.state_dict()
    state = state if hasattr(model, "text") else convert_to_custom_text_state_dict(state)
    return {key.removeprefix("text."): value for key, value in state.items() if key.startswith("text.")}


class _EncodeText(nn.Module):
    """int64 ``[N,L]`` -> ``[N,D]`` through the model's own ``encode_text``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        embedding: Tensor = self.model.encode_text(tokens)
        return embedding


class OpenClipTokenizer:
    """open_clip's tokenizer, made on first use: some come from a hub, and images need none."""

    def __init__(self, name: str, context_length: int) -> None:
        self.name, self.context_length = name, context_length
        self._tokenizer: Callable[[list[str]], Tensor] | None = None

    def __call__(self, texts: Sequence[str]) -> Any:
        if self._tokenizer is None:
            try:
                self._tokenizer = open_clip.get_tokenizer(self.name, context_length=self.context_length)
            except Exception as error:  # the hub's client raises many unrelated types
                raise BackendError(
                    f"The tokenizer of {self.name} must be downloaded and could not be ({first_line(error)}). "
                    "Images can still be embedded; a model with open_clip's built-in tokenizer takes texts offline."
                ) from None
        return self._tokenizer(list(texts)).numpy()
