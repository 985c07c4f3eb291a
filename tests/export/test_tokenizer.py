"""open_clip's tokenizer written as one torch-free file gives the same tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest

from digpt.data.emoji import EmojiSet
from digpt.errors import BackendError, CheckpointError
from digpt.runtime.clip_tokenizer import ClipTokenizer
from digpt.sources import model_from_checkpoint
from digpt.testing import tiny_checkpoint
from export.tokenizer import HARD_TEXTS, clip_json, write_tokenizer


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


def test_a_tokenizer_that_cannot_be_had_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(name: str, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "get_tokenizer", offline)
    model = model_from_checkpoint(tiny_checkpoint())
    assert model.text is not None
    model.text.tokenizer_json = None
    model.config = {**model.config, "text": {"tokenizer": "open_clip:ViT-B-16-SigLIP"}}
    with pytest.raises(BackendError, match=r"cannot be read \(no network\); export .* with --no-text"):
        write_tokenizer(model, model.text, tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_that_reads_differently_is_refused(tmp_path: Path) -> None:
    model = model_from_checkpoint(tiny_checkpoint())
    assert model.text is not None
    model.text.tokenizer_json = None  # its tokens are not those of the open_clip name it now claims
    model.config = {**model.config, "text": {"tokenizer": "open_clip:ViT-B-32"}}
    with pytest.raises(BackendError, match="differently; export the image tower alone with --no-text"):
        write_tokenizer(model, model.text, tmp_path, [])
