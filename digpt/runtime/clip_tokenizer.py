"""open_clip's built-in tokenizer without torch: its cleaning here, its byte-pair encoding from a tokenizer.json."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from digpt.errors import CheckpointError, MissingDependencyError


class ClipTokenizer:
    """Texts -> int64 ``[N, context_length]``, as ``open_clip.tokenizer.SimpleTokenizer`` with ``clean="lower"``.

    The JSON, written at export, adds start and end tokens, truncates before the end token and pads with zeros.
    """

    def __init__(self, json_str: str, context_length: int) -> None:
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        try:
            self._tokenizer = HuggingFaceTokenizer.from_str(json_str)
        except Exception as error:  # the package raises bare Exception
            raise CheckpointError(f"The stored tokenizer cannot be read: {error}.") from None
        self.context_length = context_length

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        encodings = self._tokenizer.encode_batch([clean(text) for text in texts])
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        return ids.reshape(len(texts), self.context_length)


def clean(text: str) -> str:
    """Repair broken Unicode, resolve HTML entities (twice, as CLIP does), collapse white space, lower-case."""
    try:
        import ftfy
    except ImportError as error:
        raise MissingDependencyError("Texts of a CLIP model need ftfy: pip install ftfy") from error
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
