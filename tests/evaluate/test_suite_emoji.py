"""The emoji suite on rigged models: their exact scores, its exact splits, its intervals and its subset."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from digpt.data.emoji import STYLES, TRAIN_STYLES, EmojiSet
from digpt.engine import Engine
from digpt.errors import CapabilityError, ConfigError, DataError
from digpt.results import Result, protocol_fingerprint
from digpt.runtime.fake import FakeRuntime
from evaluate.run import run_suite
from evaluate.suite import Subset
from evaluate.suite_emoji import Neighbours, emoji_suite

STYLES_OF_KNN = ("val", "flat", "contrast")


def expected_images(emoji: EmojiSet) -> dict[str, list[tuple[int, str]]]:
    """The (concept, style) pairs of every split asked for, from the concepts' own fields."""
    splits: dict[str, list[tuple[int, str]]] = {split: [] for split in ("seen", "val", "flat", "contrast", "unseen")}
    for index, concept in enumerate(emoji.concepts):
        for style in concept.styles if len(concept.styles) == 5 else ():
            if concept.unseen:
                splits["unseen"].append((index, style))
            elif style in TRAIN_STYLES:
                splits["val" if style == concept.val_style else "seen"].append((index, style))
            else:
                splits[style].append((index, style))
    return splits


def run(runtime: FakeRuntime, emoji: EmojiSet, **asked: Any) -> dict[tuple[str, str], Result]:
    document = run_suite(Engine(runtime), emoji_suite(emoji, **asked)).document
    assert document is not None
    return {(result.split, result.metric): result for result in document.results}


def only_knn(runtime: FakeRuntime, emoji: EmojiSet, **knn: Any) -> dict[tuple[str, str], Result]:
    return run(runtime, emoji, splits=(), knn=Neighbours(**knn))


def test_a_rigged_model_gets_exactly_its_score(emoji, rigged):
    def rank(concept, style):
        return (concept * 7 + STYLES.index(style) * 3) % 8  # 0 is top-1, 0..4 are top-5

    rows = run(rigged(emoji, rank), emoji)
    splits = expected_images(emoji)
    splits |= {f"unseen/{style}": [pair for pair in splits["unseen"] if pair[1] == style] for style in STYLES}
    assert len(rows) == 5 * len(splits)  # top-1, top-5, ECE, NLL, Brier
    for split, images in splits.items():
        for top in (1, 5):
            result = rows[split, f"top{top}"]
            assert (result.dataset, result.n) == ("emoji", len(images))
            assert result.value == pytest.approx(np.mean([rank(*image) < top for image in images]), abs=1e-12)
            assert result.ci95 is not None and result.ci95[0] < result.value < result.ci95[1]
    assert len({result.value for result in rows.values()}) > 10  # the splits do differ


def test_perfect_and_hopeless(emoji, rigged):
    perfect = run(rigged(emoji), emoji)
    values = {(r.value, r.ci95) for (_, metric), r in perfect.items() if metric in ("top1", "top5")}
    assert values == {(1.0, (1.0, 1.0))}
    hopeless = run(rigged(emoji, lambda *_: 5), emoji)
    assert {r.value for (_, metric), r in hopeless.items() if metric.startswith("top")} == {0.0}
    assert perfect["flat", "ece"].value < hopeless["flat", "ece"].value


def test_calibration_uses_the_learned_logit_scale(emoji, rigged):
    """A perfect model whose cosines are 1 and 0: its confidence is e^s / (e^s + C - 1)."""
    rows = run(rigged(emoji), emoji)
    names = len(emoji.five_style_names())
    confidence = math.exp(10) / (math.exp(10) + names - 1)  # the fake's scale is 10
    assert rows["flat", "ece"].value == pytest.approx(1 - confidence, rel=1e-5)
    assert rows["flat", "nll"].value == pytest.approx(-math.log(confidence), rel=1e-4)
    other = (1 - confidence) / (names - 1)
    brier = (1 - confidence) ** 2 + (names - 1) * other**2
    assert rows["flat", "brier"].value == pytest.approx(brier, rel=1e-4)


def test_unseen_is_asked_among_unseen_names_only(emoji, rigged):
    """An unseen image that looks most like a seen concept is right: seen names are not offered."""
    runtime = rigged(emoji, lambda *_: 1)
    runtime.pools[1] = runtime.pools[0]  # the distractors of unseen images are now seen concepts
    rows = run(runtime, emoji)
    assert rows["unseen", "top1"].value == 1.0
    assert rows["seen", "top1"].value == 0.0


def test_the_names_go_through_the_models_templates(emoji, rigged):
    runtime = rigged(emoji, templates=("{}", "a picture of {}"))
    rows = run(runtime, emoji)
    names = emoji.five_style_names()
    assert sorted(runtime.texts) == sorted([*names, *(f"a picture of {name}" for name in names)])
    assert rows["flat", "top1"].value == 1.0
    other = rigged(emoji)
    run(other, emoji, templates=("a picture of {}",))
    assert all(text.startswith("a picture of ") for text in other.texts)


def test_knn_gets_exactly_its_score_from_noto_and_twemoji_training_images(emoji, rigged):
    def subgroup(concept, style):
        right = int(emoji.concepts[concept].subgroup[-1])
        held_out = style == emoji.concepts[concept].val_style
        if style in ("flat", "contrast") or held_out:
            return right if concept % (STYLES.index(style) + 3) else (right + 1) % 6
        return right if style in ("noto", "twemoji") else (right + 2) % 6  # Fluent 3D would mislead

    runtime = rigged(emoji, subgroup=subgroup, text=False)
    rows = run(runtime, emoji, knn=Neighbours())  # without a text tower nothing else can be asked
    splits = expected_images(emoji)
    for result in rows.values():
        images = splits[result.split]
        expected = np.mean([concept % (STYLES.index(style) + 3) != 0 for concept, style in images])
        assert result.value == pytest.approx(expected, abs=1e-12)
        assert result.n == len(images)
    assert list(rows) == [(split, f"knn_top1_k{k}") for split in STYLES_OF_KNN for k in (10, 20)]
    asked = {pair for split in STYLES_OF_KNN for pair in splits[split]}
    reference = set(runtime.embedded) - asked
    assert {style for _, style in reference} == {"noto", "twemoji"}
    assert not any(emoji.concepts[concept].unseen for concept, _ in reference)
    assert not any(emoji.concepts[concept].val_style == style for concept, style in reference)
    # Concepts of three styles cannot be named among the five-style ones, but they have a subgroup.
    assert any(len(emoji.concepts[concept].styles) == 3 for concept, _ in reference)
    assert len(runtime.embedded) == len(set(runtime.embedded)) == len(asked) + len(reference)


def test_another_reference_gives_another_score(emoji, rigged):
    runtime = rigged(emoji, subgroup=lambda c, style: 0 if style == "fluent3d" else c % 6, text=False)
    assert only_knn(runtime, emoji, k=(1,), reference=("fluent3d",))["flat", "knn_top1_k1"].value < 0.3
    assert only_knn(runtime, emoji, k=(1,))["flat", "knn_top1_k1"].value == 1.0


def test_interval_is_the_normal_one_where_a_concept_has_one_image_and_wider_where_it_has_five(emoji, rigged):
    rows = run(rigged(emoji, lambda c, _: c % 2), emoji)

    def half_width(split):
        low, high = rows[split, "top1"].ci95
        return (high - low) / 2

    def normal(split):
        p, n = rows[split, "top1"].value, rows[split, "top1"].n
        return 1.96 * math.sqrt(p * (1 - p) / n)

    assert half_width("flat") == pytest.approx(normal("flat"), rel=0.12)
    # All five drawings of a concept agree here, so 500 images say as much as 100.
    assert half_width("unseen") == pytest.approx(math.sqrt(5) * normal("unseen"), rel=0.12)
    assert half_width("unseen") == pytest.approx(half_width("unseen/noto"), rel=1e-9)


def test_limit_is_seeded_nested_and_leaves_the_reference_whole(emoji, rigged):
    def keys(limit, seed=0):
        suite = emoji_suite(emoji, splits=("flat",), subset=Subset(limit=limit, seed=seed))
        return suite.cells[0].keys

    assert keys(20) == keys(20)
    assert len(keys(20)) == 20 and set(keys(20)) < set(keys(40)) < set(keys(None))
    assert set(keys(20)) != set(keys(20, seed=1))
    assert keys(10_000) == keys(None)
    assert list(keys(20)) == [key for key in keys(None) if key in set(keys(20))]  # the order stays

    limited = emoji_suite(emoji, splits=(), knn=Neighbours(), subset=Subset(limit=20))
    whole = emoji_suite(emoji, splits=(), knn=Neighbours())
    sizes = {cell.id: len(cell) for cell in limited.cells}
    assert sizes == {
        **{f"emoji/{split}": min(20, len(expected_images(emoji)[split])) for split in STYLES_OF_KNN},
        "emoji/reference": len(whole.cells[-1]),
    }


def test_preview_takes_a_tenth_though_no_class_has_ten_images(emoji):
    suite = emoji_suite(emoji, subset=Subset(preview=True))
    sizes = {cell.id.partition("/")[2]: len(cell) for cell in suite.cells}
    assert sizes == {split: (len(images) + 5) // 10 for split, images in expected_images(emoji).items()}
    assert suite.protocol["preview"] == 0.1
    with pytest.raises(ConfigError, match="exclude each other"):
        Subset(limit=3, preview=True)


SIZES = (1, 2, 3, 4, 5, 9, 10, 14, 15, 50, 63)


def preview(seed: int, sizes: tuple[int, ...] = SIZES) -> tuple[np.ndarray, np.ndarray, list[str]]:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    keys = [f"{label}/{number}" for number, label in enumerate(labels)]
    return Subset(preview=True, seed=seed).choose(keys, labels), labels, keys


@pytest.mark.parametrize("seed", range(5))
def test_a_preview_is_proportional(seed):
    rows, labels, keys = preview(seed)
    assert len(rows) == round(sum(SIZES) / 10) == 18
    taken = np.bincount(labels[rows], minlength=len(SIZES))
    assert all(size // 10 <= count <= -(-size // 10) for size, count in zip(SIZES, taken, strict=True))
    limits = range(len(keys), 0, -1)  # the smallest limit that has an image
    rank = {int(row): limit for limit in limits for row in Subset(limit=limit, seed=seed).choose(keys, labels)}
    for label, count in enumerate(taken):  # of a class it takes what a limit would take first
        members = sorted(np.flatnonzero(labels == label).tolist(), key=rank.__getitem__)
        assert set(rows[labels[rows] == label].tolist()) == set(members[:count])
    turned = np.random.default_rng(seed).permutation(len(keys))  # in whichever order the files come
    again = Subset(preview=True, seed=seed).choose([keys[row] for row in turned], labels[turned])
    assert {keys[turned[row]] for row in again} == {keys[row] for row in rows}


def test_over_many_seeds_a_preview_asks_every_class_for_its_tenth():
    """Largest remainders would never ask a class of four images beside a hundred of five."""
    sizes = (4,) * 100 + (5,) * 100
    small = [int((preview(seed, sizes)[0] < 400).sum()) for seed in range(60)]
    assert {len(preview(seed, sizes)[0]) for seed in range(5)} == {90}
    assert np.mean(small) == pytest.approx(40, abs=2)


def test_a_preview_of_very_few_images_has_one():
    assert len(preview(0, (1, 1, 1))[0]) == 1


def test_a_small_limit_may_leave_a_style_without_unseen_images(emoji, rigged):
    rows = run(rigged(emoji), emoji, subset=Subset(limit=2))
    styles = [r for (split, metric), r in rows.items() if split.startswith("unseen/") and metric == "top1"]
    assert 0 < len(styles) <= 2
    assert sum(result.n for result in styles) == 2


def test_protocol_fingerprint_follows_the_question(emoji):
    asked: list[dict[str, Any]] = [
        {"knn": Neighbours()},
        {},
        {"splits": ("flat",)},
        {"knn": Neighbours(k=(10,))},
        {"knn": Neighbours(temperature=0.1)},
        {"knn": Neighbours(reference=("noto",))},
        {"subset": Subset(limit=5)},
        {"subset": Subset(seed=1)},
        {"subset": Subset(preview=True)},
    ]
    prints = [protocol_fingerprint(emoji_suite(emoji, **one).protocol) for one in asked]
    assert len(set(prints)) == len(prints)
    assert protocol_fingerprint(emoji_suite(emoji, knn=Neighbours()).protocol) == prints[0]
    protocol = emoji_suite(emoji, knn=Neighbours()).protocol
    named = protocol["classification"]
    assert (named["names"], named["unseen_names"], protocol["knn"]["classes"]) == (160, 100, 6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Neighbours(reference=("twemojy",)), "Did you mean 'twemoji'"),
        (lambda: Neighbours(reference=()), "at least one reference style"),
        (lambda: Neighbours(k=(0,)), "at least 1"),
        (lambda: Neighbours(temperature=0.0), "above 0"),
        (lambda: Subset(limit=0), "at least 1 image"),
    ],
)
def test_bad_protocols_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_k_beyond_the_reference_is_refused(emoji):
    with pytest.raises(ConfigError, match=r"k=5000 exceeds the \d+ reference images"):
        emoji_suite(emoji, knn=Neighbours(k=(5000,)))


def test_a_set_without_an_unseen_style_is_refused(emoji_samples):
    three_styles = [sample for sample in emoji_samples if len(sample[0]["styles"]) == 3]
    with pytest.raises(DataError, match="no seen image of a concept drawn in all five styles"):
        emoji_suite(EmojiSet(three_styles, "1" * 64))


class HeadRuntime(FakeRuntime):
    """A linear head over the set's names and one more, in an order of its own; right for even concepts."""

    def __init__(self, emoji: EmojiSet, shown: Any, labels: list[str]) -> None:
        super().__init__(text=False, linear_head=True, labels=labels)
        self.emoji, self.shown, self.names = emoji, shown, labels

    def logits(self, images: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(images), len(self.names)), np.float32)
        for row, image in zip(rows, images, strict=True):
            concept, _ = self.shown(image)
            row[self.names.index("something else")] = 3.0  # louder than all, and not among the classes
            row[self.names.index(self.emoji.concepts[concept].name)] = 2.0 if concept % 2 == 0 else -1.0
        return rows


def test_a_linear_head_is_asked_by_the_names_of_its_outputs(emoji, shown):
    labels = ["something else", *reversed(emoji.five_style_names())]
    rows = run(HeadRuntime(emoji, shown, labels), emoji)
    flat = expected_images(emoji)["flat"]
    assert rows["flat", "top1"].value == pytest.approx(np.mean([concept % 2 == 0 for concept, _ in flat]))
    with pytest.raises(CapabilityError, match=r"'thing 0' of emoji is none of them.*evaluate\.knn"):
        run(FakeRuntime(text=False, linear_head=True, labels=["cat", "dog"]), emoji)
