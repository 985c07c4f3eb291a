"""What an evaluation shows beside its numbers: the confident mistakes, the diagrams, pictures under corruption."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from digpt.corruptions import corrupt
from digpt.data.emoji import STYLES, EmojiSet
from digpt.engine import Engine
from digpt.exhibits import EXHIBITS_NAME, Exhibit, Exhibits, read_exhibits
from digpt.results import ResultsDocument
from evaluate.exhibits import MISTAKES, PICTURES
from evaluate.run import run_suite
from evaluate.suite import Subset
from evaluate.suite_emoji import Neighbours, emoji_suite
from evaluate.sweep import Sweep

Rigged = Callable[..., Any]
FIVE_STYLE = 160  # concepts of the small emoji set that are drawn in all styles


def colour(exhibit: Exhibit) -> np.ndarray:
    """The mean colour of an exhibit's picture."""
    with Image.open(io.BytesIO(base64.b64decode(exhibit.picture))) as image:
        return np.asarray(image.convert("RGB")).reshape(-1, 3).mean(axis=0)


def number(exhibit: Exhibit) -> int:
    """The concept that an exhibit's label names."""
    return int(exhibit.label.removeprefix("thing "))


def evaluated(runtime: Any, emoji: EmojiSet, output: Path, **asked: Any) -> tuple[ResultsDocument, Exhibits]:
    document = run_suite(Engine(runtime), emoji_suite(emoji, **asked), output=output).document
    exhibits = read_exhibits(output)
    assert document is not None and exhibits is not None
    return document, exhibits


def test_mistakes_are_wrong_and_shown_as_the_model_saw_them(emoji: EmojiSet, rigged: Rigged, tmp_path: Path) -> None:
    runtime = rigged(emoji, lambda concept, _: concept % 4)  # concepts that four divides are right
    document, exhibits = evaluated(runtime, emoji, tmp_path, splits=("flat", "unseen"))
    assert (exhibits.model, exhibits.backend) == (runtime.info.fingerprint, "fake")
    assert exhibits.protocol == document.protocol["fingerprint"]
    flat, unseen = exhibits.sets  # parts of a set, such as unseen/flat, have none of their own
    top1 = {result.split: result for result in document.results if result.metric == "top1"}
    assert (flat.split, unseen.split) == ("flat", "unseen")
    for one in (flat, unseen):
        assert one.wrong / one.n == pytest.approx(1 - top1[one.split].value)
        assert sum(one.count) == one.n and len(one.mistakes) == MISTAKES
        hits = sum(accuracy * count for accuracy, count in zip(one.accuracy, one.count, strict=True))
        assert hits / one.n == pytest.approx(top1[one.split].value, abs=1e-5)
        labels = [exhibit.label for exhibit in one.mistakes]
        assert len(set(labels)) == len(labels) and all(number(exhibit) % 4 for exhibit in one.mistakes)
        for exhibit in one.mistakes:
            assert exhibit.given != exhibit.label and not exhibit.right
            expected = (number(exhibit) % 256, number(exhibit) // 256, STYLES.index(exhibit.key.partition(".")[2]))
            assert np.abs(colour(exhibit) - expected).max() < 8  # of 255, by WebP
        confidences = [exhibit.confidence for exhibit in one.mistakes]
        assert confidences == sorted(confidences, reverse=True)


def test_answers_among_some_classes_are_named_right(emoji: EmojiSet, rigged: Rigged, tmp_path: Path) -> None:
    _, exhibits = evaluated(rigged(emoji, lambda concept, _: 1), emoji, tmp_path, splits=("unseen",))
    (unseen,) = exhibits.sets
    pool = [c for c in emoji.five_style_indices().tolist() if emoji.concepts[c].unseen]
    for exhibit in unseen.mistakes:
        others = [concept for concept in pool if concept != number(exhibit)]
        assert exhibit.given == f"thing {others[number(exhibit) % len(others)]}"


def tolerant(rigged: Rigged) -> Rigged:
    """A rigged runtime that takes any colour for some concept in some style."""

    def made(*arguments: Any) -> Any:
        runtime = rigged(*arguments)
        embed = runtime.embed
        runtime.embed = lambda images: embed(np.minimum(images, (FIVE_STYLE - 1, 0, len(STYLES) - 1)))
        return runtime

    return made


def test_pictures_under_corruption_are_those_that_were_asked(emoji: EmojiSet, rigged: Rigged, tmp_path: Path) -> None:
    sweep = Sweep(64, corruptions=("brightness", "contrast"), severities=(1, 5))
    asked = {"splits": ("flat",), "sweep": sweep, "subset": Subset(limit=9, seed=3)}
    runtime = tolerant(rigged)(emoji, lambda concept, _: concept % 2)
    _, exhibits = evaluated(runtime, emoji, tmp_path / "a", **asked)
    (one,) = exhibits.sweeps
    assert one.dataset == "emoji-c-on-the-fly"
    keys = [exhibit.key for exhibit in one.clean]
    assert len(set(keys)) == len(keys) <= PICTURES and keys
    assert all(exhibit.right and number(exhibit) % 2 == 0 for exhibit in one.clean)
    assert [(e.split, e.key) for e in one.corrupted] == [
        (split, key) for split in ("brightness/5", "contrast/5") for key in keys
    ]
    for exhibit, clean in zip(one.corrupted, one.clean * 2, strict=True):
        pixels = np.empty((64, 64, 3), np.uint8)
        pixels[:] = np.round(colour(clean))
        made = corrupt(pixels, exhibit.split.partition("/")[0], 5, key=f"3:{exhibit.key}")
        assert np.abs(colour(exhibit) - made.reshape(-1, 3).mean(axis=0)).max() < 12
    evaluated(runtime, emoji, tmp_path / "b", **asked)
    assert (tmp_path / "a" / EXHIBITS_NAME).read_bytes() == (tmp_path / "b" / EXHIBITS_NAME).read_bytes()


def test_a_finished_evaluation_gets_its_exhibits_when_asked_again(
    emoji: EmojiSet, rigged: Rigged, tmp_path: Path
) -> None:
    asked = {"splits": ("val",)}
    _, first = evaluated(rigged(emoji), emoji, tmp_path, **asked)
    assert first.sets[0].mistakes == () and first.sets[0].wrong == 0
    (tmp_path / EXHIBITS_NAME).unlink()
    runtime = rigged(emoji)
    _, again = evaluated(runtime, emoji, tmp_path, **asked)
    assert again == first and runtime.embedded == []  # the store has the answers


def test_neighbours_have_nothing_to_show(emoji: EmojiSet, rigged: Rigged, tmp_path: Path) -> None:
    runtime = rigged(emoji, subgroup=lambda concept, _: concept % 6, text=False)
    _, exhibits = evaluated(runtime, emoji, tmp_path, splits=(), knn=Neighbours(k=(1,)))
    assert (exhibits.sets, exhibits.sweeps) == ((), ())
