"""open_clip's tokenizer written as one torch-free file gives the same tokens."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest

from digpt.data.emoji import EmojiSet
from digpt.errors import CheckpointError
from digpt.runtime.clip_tokenizer import ClipTokenizer
from export.tokenizer import HARD_TEXTS, clip_json


@pytest.mark.parametrize("context_length", [77, 16])
def test_every_caption_and_hard_text_is_read_alike(context_length: int) -> None:
    original = open_clip.get_tokenizer("ViT-B-32", context_length=context_length)
    written = ClipTokenizer(clip_json(original, context_length), context_length)
    captions = [caption for concept in EmojiSet.load().concepts for caption in concept.captions][::5]
    texts = [*HARD_TEXTS, *captions]
    tokens = written(texts)
    assert tokens.dtype == np.int64 and tokens.shape == (len(texts), context_length)
    np.testing.assert_array_equal(tokens, original(texts).numpy())
    assert written([]).shape == (0, context_length)


def test_a_damaged_file_is_named() -> None:
    with pytest.raises(CheckpointError, match="tokenizer cannot be read"):
        ClipTokenizer("{}", 77)
