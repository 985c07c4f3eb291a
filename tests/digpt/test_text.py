"""Tokenizer, templates and class sets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from digpt.errors import CheckpointError, ConfigError, InputError
from digpt.text import (
    MAX_PROMPT_CHARS,
    TEXT_BATCH,
    ClassSet,
    CompactTokenizer,
    class_embeddings,
    class_set_hash,
    fill,
    kept_unit,
    normalize,
    train_tokenizer,
)

CAPTIONS = ["red apple", "green apple", "grinning face", "face with tears of joy", "a house with a garden"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> CompactTokenizer:
    return CompactTokenizer(train_tokenizer(CAPTIONS, vocab_size=320), context_length=10)


def decode(tokenizer: CompactTokenizer, row: NDArray[np.int64]) -> str:
    body = [int(token) for token in row if token not in (0, tokenizer.start_id, tokenizer.end_id)]
    return str(tokenizer._tokenizer.decode(body)).strip()


def test_layout_of_a_row(tokenizer: CompactTokenizer) -> None:
    rows = tokenizer(["red apple", ""])
    assert rows.shape == (2, 10) and rows.dtype == np.int64
    assert (rows[:, 0] == tokenizer.start_id).all()
    assert rows[1].tolist() == [tokenizer.start_id, tokenizer.end_id] + [0] * 8
    assert tokenizer.end_id == tokenizer.vocab_size - 1 == rows.max()
    assert (rows.argmax(axis=1) == [len(np.flatnonzero(row)) - 1 for row in rows]).all()


def test_known_words_are_few_tokens(tokenizer: CompactTokenizer) -> None:
    assert np.count_nonzero(tokenizer(["apple"])) == 3  # start, the word, end
    assert tokenizer(["red apple"])[0, 2] == tokenizer(["apple"])[0, 1]  # the same token wherever the word stands


def test_case_and_white_space_do_not_matter(tokenizer: CompactTokenizer) -> None:
    rows = tokenizer(["red apple", "  Red\t APPLE\n"])
    assert (rows[0] == rows[1]).all()


def test_any_text_has_tokens(tokenizer: CompactTokenizer) -> None:
    long = CompactTokenizer(tokenizer.json, context_length=64)
    for text in ("naïve café", "🍎 apple", "日本語", "x" * 20, "\x00\x01"):
        assert decode(long, long([text])[0]) == text


def test_truncation_keeps_the_end_token(tokenizer: CompactTokenizer) -> None:
    row = tokenizer(["word " * 50])[0]
    assert row[-1] == tokenizer.end_id and np.count_nonzero(row) == 10
    assert (row[1:-1] != tokenizer.end_id).all()


def test_special_tokens_cannot_be_smuggled_in(tokenizer: CompactTokenizer) -> None:
    row = tokenizer(["a <end> b <start> <pad>"])[0]
    assert np.count_nonzero(row == tokenizer.end_id) == 1
    assert np.count_nonzero(row == tokenizer.start_id) == 1
    assert np.count_nonzero(row == 0) == 0  # it is long, so nothing is padding


def test_one_string_counts_as_a_list(tokenizer: CompactTokenizer) -> None:
    assert (tokenizer("red apple") == tokenizer(["red apple"])).all()
    assert tokenizer([]).shape == (0, 10)


def test_training_is_reproducible_across_processes_and_orders() -> None:
    here = train_tokenizer(CAPTIONS, vocab_size=300)
    assert train_tokenizer(reversed(CAPTIONS), vocab_size=300) == here
    code = f"from digpt.text import train_tokenizer as t; print(t({CAPTIONS!r}, vocab_size=300), end='')"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there == here


def test_vocabulary_size() -> None:
    assert CompactTokenizer(train_tokenizer(CAPTIONS, 270), 8).vocab_size == 270
    assert CompactTokenizer(train_tokenizer(CAPTIONS, 10_000), 8).vocab_size < 400  # no more merges to be had
    with pytest.raises(ConfigError, match="at least 259"):
        train_tokenizer(CAPTIONS, 258)


@pytest.mark.parametrize("json_str", ["", "{}", "not json"])
def test_damaged_tokenizer(json_str: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        CompactTokenizer(json_str, 8)


def test_tokenizer_of_another_layout() -> None:
    from tokenizers import Tokenizer, models

    with pytest.raises(CheckpointError, match="lacks <pad> = 0"):
        CompactTokenizer(Tokenizer(models.BPE()).to_str(), 8)


# ------------------------------------------------------------------------------------------------------- prompts


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """A deterministic stand-in: letter counts, scaled differently for each text."""
    rows = np.array([[text.count(letter) for letter in "abcdefgh"] for text in texts], np.float32) + 0.5
    return rows * np.arange(1, len(texts) + 1, dtype=np.float32)[:, None]


def test_class_embeddings_average_unit_prompts() -> None:
    matrix = class_embeddings(embed, ["cab", "face"], ["{}", "a bad {}"])
    prompts = normalize(embed(["cab", "a bad cab", "face", "a bad face"]))
    expected = np.stack([prompts[:2].mean(0), prompts[2:].mean(0)])
    np.testing.assert_allclose(matrix, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-6)
    assert matrix.dtype == np.float32
    unweighted = normalize(embed(["cab", "a bad cab"]).mean(0))
    assert np.abs(matrix[0] - unweighted).max() > 1e-3  # averaging before normalising would differ


def test_braces_in_labels_stay() -> None:
    assert fill("a {} icon", "{weird} {0}") == "a {weird} {0} icon"
    with pytest.raises(InputError, match=r"has no \{\}"):
        class_embeddings(embed, ["a"], ["no place"])


def test_the_length_of_a_prompt_is_bounded_before_it_is_made() -> None:
    assert len(fill("{}" * 1000, "x" * (MAX_PROMPT_CHARS // 1000))) == MAX_PROMPT_CHARS
    with pytest.raises(InputError, match="prompt of 10,001 characters; at most 10,000 are accepted"):
        fill("{}" * 1000 + "!", "x" * 10)
    embedded: list[Sequence[str]] = []

    def record(texts: Sequence[str]) -> NDArray[np.float32]:
        embedded.append(texts)
        return embed(texts)

    with pytest.raises(InputError, match="prompt of 2,000,000 characters"):
        class_embeddings(record, ["a"] * TEXT_BATCH + ["x" * 2000], ["{}", "{}" * 1000])
    assert not embedded


def test_prompts_are_made_batch_by_batch() -> None:
    sizes: list[int] = []

    def record(texts: Sequence[str]) -> NDArray[np.float32]:
        sizes.append(len(texts))
        return embed(texts)

    names = ["cab" * (i % 7 + 1) + "h" * (i % 11) for i in range(TEXT_BATCH)]
    matrix = class_embeddings(record, names, ["{}", "a bad {}", "a {} face"])
    assert sizes == [TEXT_BATCH] * 3
    for row in (0, 100, TEXT_BATCH - 1):  # the second spans two batches
        alone = class_embeddings(embed, [names[row]], ["{}", "a bad {}", "a {} face"])
        np.testing.assert_allclose(matrix[row], alone[0], rtol=1e-5)


@pytest.mark.parametrize(("names", "templates"), [([], ["{}"]), (["a"], [])])
def test_empty_lists_are_refused(names: list[str], templates: list[str]) -> None:
    with pytest.raises(InputError, match="must not be empty"):
        class_embeddings(embed, names, templates)


def test_zero_rows_stay_finite() -> None:
    assert normalize(np.zeros((2, 3), np.float32)).tolist() == [[0.0] * 3] * 2


def test_class_set_hash_sees_everything() -> None:
    base = ClassSet.build(embed, ["a", "b"], ["{}"], "sha256:1")
    assert base.content_hash == class_set_hash(["a", "b"], ["{}"], "sha256:1")
    assert base.matrix.shape == (2, 8) and base.labels == ("a", "b")
    others = [
        class_set_hash(["b", "a"], ["{}"], "sha256:1"),
        class_set_hash(["a", "b"], ["a {}"], "sha256:1"),
        class_set_hash(["a", "b"], ["{}"], "sha256:2"),
        class_set_hash(["a"], ["b", "{}"], "sha256:1"),
    ]
    assert len({base.content_hash, *others}) == 5


def test_unit_rows_are_kept_and_others_made_so() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 768)).astype(np.float32)
    unit = normalize(rows)
    assert kept_unit(unit) is unit
    np.testing.assert_allclose(kept_unit(unit), normalize(unit), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(kept_unit(rows), unit)
    longer = unit.copy()
    longer[17] *= 1.00001  # one row is enough
    assert kept_unit(longer) is not longer and np.linalg.norm(kept_unit(longer)[17]) == pytest.approx(1, abs=1e-6)
    assert not kept_unit(np.zeros((1, 4), np.float32)).any() and kept_unit(np.zeros((0, 4), np.float32)).shape == (0, 4)
