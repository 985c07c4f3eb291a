"""Writes a model's tokenizer into the artifact as one ``tokenizer.json`` that needs neither torch nor open_clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from digpt.errors import BackendError
from digpt.model import TextModel, first_line
from digpt.runtime.clip_tokenizer import ClipTokenizer
from digpt.sources import Model

TOKENIZER_FILE = "tokenizer.json"
# Contractions, digits, punctuation, accents, broken Unicode, entities, special tokens, and more than fits.
HARD_TEXTS = (
    "",
    "A photo of a Cat.",
    "it's 2026, we'll see -- 100%!",
    "caf\u00e9 na\u00efve \u00df \u0130stanbul",
    "\u201cquoted\u201d &amp;lt;b&amp;gt; sch\u00c3\u00b6n",
    "\u7d05\u3044\u308a\u3093\u3054 \U0001f34e \u00bd",
    "  tabs\tand\nlines ",
    "<end_of_text> inside",
    "word " * 200,
)


def write_tokenizer(model: Model, text: TextModel, directory: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Write ``tokenizer.json`` and return its manifest entry; ``texts`` are compared beside ``HARD_TEXTS``.

    Raises:
        BackendError: the model's tokenizer is none that can be written (it may need a library at run time).
    """
    path = directory / TOKENIZER_FILE
    if text.tokenizer_json is not None:
        path.write_text(text.tokenizer_json, encoding="utf-8")
        return {"kind": "compact", "file": TOKENIZER_FILE, "context_length": text.context_length}
    json_str = _open_clip_json(model, text.context_length)
    written = ClipTokenizer(json_str, text.context_length)
    for example in (*HARD_TEXTS, *texts):
        if not np.array_equal(written([example]), text.tokenize([example])):
            raise BackendError(f"The exported tokenizer of {model.name} reads {example[:40]!r} differently; {_REMEDY}")
    path.write_text(json_str, encoding="utf-8")
    return {"kind": "clip", "file": TOKENIZER_FILE, "context_length": text.context_length}


_REMEDY = "export the image tower alone with --no-text."


def _open_clip_json(model: Model, context_length: int) -> str:
    import open_clip
    from open_clip.tokenizer import SimpleTokenizer

    source = str((model.config.get("text") or {}).get("tokenizer"))
    try:
        simple = open_clip.get_tokenizer(source.removeprefix("open_clip:"), context_length=context_length)
    except Exception as error:  # the hub's client raises many unrelated types
        raise BackendError(f"The tokenizer of {model.name} cannot be read ({first_line(error)}); {_REMEDY}") from error
    if not isinstance(simple, SimpleTokenizer) or simple.reduction_fn is not None:
        raise BackendError(
            f"{model.name} reads texts with {type(simple).__name__}, which cannot be exported; {_REMEDY}"
        )
    return clip_json(simple, context_length)


def clip_json(simple: Any, context_length: int) -> str:
    """``open_clip.tokenizer.SimpleTokenizer`` -> the JSON of a Hugging Face tokenizer with the same ids.

    Cleaning (Unicode repair, entities, lower case) is not in it: ``ClipTokenizer`` does that.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
    tokenizer = Tokenizer(models.BPE(vocab=simple.encoder, merges=merges, end_of_word_suffix="</w>"))
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    start, end = (simple.decoder[token] for token in (simple.sot_token_id, simple.eot_token_id))
    tokenizer.add_special_tokens([start, end])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, simple.sot_token_id), (end, simple.eot_token_id)]
    )
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(length=context_length, pad_id=0, pad_token=simple.decoder[0])
    return str(tokenizer.to_str())
