"""The emoji evaluator on rigged models: their exact scores, its exact splits, its intervals and its subset."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from digpt.data.emoji import STYLES, TRAIN_STYLES, EmojiSet
from digpt.engine import Engine
from digpt.errors import ConfigError, DataError
from digpt.results import protocol_fingerprint, with_fingerprint
from evaluate.emoji import EmojiProtocol, run, select


def expected_images(emoji) -> dict[str, list[tuple[int, str]]]:
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


def by_row(results):
    return {(result.split, result.metric): result for result in results}


def test_a_rigged_model_gets_exactly_its_score(emoji, rigged):
    def rank(concept, style):
        return (concept * 7 + STYLES.index(style) * 3) % 8  # 0 is top-1, 0..4 are top-5

    rows = by_row(run(Engine(rigged(emoji, rank)), emoji, EmojiProtocol(methods=("zeroshot",)), batch_size=37))
    splits = expected_images(emoji)
    splits |= {f"unseen/{style}": [pair for pair in splits["unseen"] if pair[1] == style] for style in STYLES}
    assert len(rows) == 2 * len(splits)
    for split, images in splits.items():
        for top in (1, 5):
            result = rows[split, f"zeroshot_top{top}"]
            assert (result.dataset, result.n) == ("emoji", len(images))
            assert result.value == pytest.approx(np.mean([rank(*image) < top for image in images]), abs=1e-12)
            assert result.ci95 is not None and result.ci95[0] < result.value < result.ci95[1]
    assert len({result.value for result in rows.values()}) > 10  # the splits do differ


def test_perfect_and_hopeless(emoji, rigged):
    perfect = by_row(run(Engine(rigged(emoji)), emoji, EmojiProtocol(methods=("zeroshot",))))
    assert {(result.value, result.ci95) for result in perfect.values()} == {(1.0, (1.0, 1.0))}
    hopeless = by_row(run(Engine(rigged(emoji, lambda *_: 5)), emoji, EmojiProtocol(methods=("zeroshot",))))
    assert {result.value for result in hopeless.values()} == {0.0}


def test_unseen_is_asked_among_unseen_names_only(emoji, rigged):
    """An unseen image that looks most like a seen concept is right: seen names are not offered."""
    runtime = rigged(emoji, lambda *_: 1)
    runtime.pools[1] = runtime.pools[0]  # the distractors of unseen images are now seen concepts
    rows = by_row(run(Engine(runtime), emoji, EmojiProtocol(methods=("zeroshot",))))
    assert rows["unseen", "zeroshot_top1"].value == 1.0
    assert rows["seen", "zeroshot_top1"].value == 0.0


def test_the_names_go_through_the_models_templates(emoji, rigged):
    runtime = rigged(emoji, templates=("{}", "a picture of {}"))
    results = list(run(Engine(runtime), emoji, EmojiProtocol(methods=("zeroshot",))))
    names = emoji.five_style_names()
    assert sorted(runtime.texts) == sorted([*names, *(f"a picture of {name}" for name in names)])
    assert all(result.value == 1.0 for result in results)


def test_knn_gets_exactly_its_score_from_noto_and_twemoji_training_images(emoji, rigged):
    def subgroup(concept, style):
        right = int(emoji.concepts[concept].subgroup[-1])
        held_out = style == emoji.concepts[concept].val_style
        if style in ("flat", "contrast") or held_out:
            return right if concept % (STYLES.index(style) + 3) else (right + 1) % 6
        return right if style in ("noto", "twemoji") else (right + 2) % 6  # Fluent 3D would mislead

    runtime = rigged(emoji, subgroup=subgroup, text=False)
    results = list(run(Engine(runtime), emoji, EmojiProtocol()))
    splits = expected_images(emoji)
    for result in results:
        images = splits[result.split]
        expected = np.mean([concept % (STYLES.index(style) + 3) != 0 for concept, style in images])
        assert result.value == pytest.approx(expected, abs=1e-12)
        assert result.n == len(images)
    assert [(result.split, result.metric) for result in results] == [
        (split, f"knn_top1_k{k}") for split in ("val", "flat", "contrast") for k in (10, 20)
    ]
    asked = {pair for split in ("val", "flat", "contrast") for pair in splits[split]}
    reference = set(runtime.embedded) - asked
    assert {style for _, style in reference} == {"noto", "twemoji"}
    assert not any(emoji.concepts[concept].unseen for concept, _ in reference)
    assert not any(emoji.concepts[concept].val_style == style for concept, style in reference)
    # Concepts of three styles cannot be named among the five-style ones, but they have a subgroup.
    assert any(len(emoji.concepts[concept].styles) == 3 for concept, _ in reference)
    assert len(runtime.embedded) == len(set(runtime.embedded)) == len(asked) + len(reference)


def test_another_reference_gives_another_score(emoji, rigged):
    runtime = rigged(emoji, subgroup=lambda c, style: 0 if style == "fluent3d" else c % 6, text=False)
    only = EmojiProtocol(methods=("knn",), k=(1,), reference=("fluent3d",))
    assert by_row(run(Engine(runtime), emoji, only))["flat", "knn_top1_k1"].value < 0.3
    both = replace(only, reference=("noto", "twemoji"))
    assert by_row(run(Engine(runtime), emoji, both))["flat", "knn_top1_k1"].value == 1.0


def test_interval_is_the_normal_one_where_a_concept_has_one_image_and_wider_where_it_has_five(emoji, rigged):
    rows = by_row(run(Engine(rigged(emoji, lambda c, _: c % 2)), emoji, EmojiProtocol(methods=("zeroshot",))))

    def half_width(split):
        low, high = rows[split, "zeroshot_top1"].ci95
        return (high - low) / 2

    def normal(split):
        p, n = rows[split, "zeroshot_top1"].value, rows[split, "zeroshot_top1"].n
        return 1.96 * math.sqrt(p * (1 - p) / n)

    assert half_width("flat") == pytest.approx(normal("flat"), rel=0.12)
    # All five drawings of a concept agree here, so 500 images say as much as 100.
    assert half_width("unseen") == pytest.approx(math.sqrt(5) * normal("unseen"), rel=0.12)
    assert half_width("unseen") == pytest.approx(half_width("unseen/noto"), rel=1e-9)


def test_limit_is_seeded_nested_and_leaves_the_reference_whole(emoji, rigged):
    def keys(limit, seed=0):
        images = select(emoji, "flat", EmojiProtocol(limit=limit, seed=seed))
        assert images == sorted(images, key=lambda image: image.concept)
        return [image.key for image in images]

    assert keys(20) == keys(20)
    assert len(keys(20)) == 20 and set(keys(20)) < set(keys(40)) < set(keys(None))
    assert set(keys(20)) != set(keys(20, seed=1))
    assert keys(10_000) == keys(None)

    runtime = rigged(emoji, text=False)
    results = list(run(Engine(runtime), emoji, EmojiProtocol(limit=20)))
    assert {(result.split, result.n) for result in results} == {
        (split, min(20, len(expected_images(emoji)[split]))) for split in ("val", "flat", "contrast")
    }
    whole = rigged(emoji, text=False)
    list(run(Engine(whole), emoji, EmojiProtocol()))
    training = [pair for pair in whole.embedded if pair[1] in ("noto", "twemoji")]
    held_out = [pair for pair in training if emoji.concepts[pair[0]].val_style == pair[1]]
    assert set(training) - set(held_out) <= set(runtime.embedded)


def test_a_small_limit_may_leave_a_style_without_unseen_images(emoji, rigged):
    results = list(run(Engine(rigged(emoji)), emoji, EmojiProtocol(methods=("zeroshot",), limit=2)))
    styles = [result for result in results if result.split.startswith("unseen/")]
    assert 0 < len({result.split for result in styles}) <= 2
    assert sum(result.n for result in styles if result.metric.endswith("top1")) == 2


def test_protocol_fingerprint_follows_the_question(emoji):
    base = EmojiProtocol()
    changed = [
        replace(base, methods=("knn",)),
        replace(base, k=(10,)),
        replace(base, temperature=0.1),
        replace(base, reference=("noto",)),
        replace(base, limit=5),
        replace(base, seed=1),
    ]
    prints = [protocol_fingerprint(protocol.describe(emoji)) for protocol in (base, *changed)]
    assert len(set(prints)) == len(prints)
    assert protocol_fingerprint(EmojiProtocol().describe(emoji)) == prints[0]
    block = with_fingerprint(base.describe(emoji))
    assert block["fingerprint"] == prints[0] == protocol_fingerprint(block)
    assert (block["zeroshot"]["names"], block["zeroshot"]["unseen_names"], block["knn"]["classes"]) == (160, 100, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reference": ("twemojy",)}, "Did you mean 'twemoji'"),
        ({"reference": ()}, "at least one reference style"),
        ({"k": (0,)}, "at least 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"limit": 0}, "at least 1 image"),
        ({"methods": ("probe",)}, "Unknown method 'probe'; valid: zeroshot, knn"),
    ],
)
def test_bad_protocols_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        EmojiProtocol(**arguments)


def test_k_beyond_the_reference_is_refused(emoji, rigged):
    with pytest.raises(ConfigError, match=r"k=5000 exceeds the \d+ reference images"):
        list(run(Engine(rigged(emoji)), emoji, EmojiProtocol(k=(5000,))))


def test_a_set_without_an_unseen_style_is_refused(emoji_samples, rigged):
    three_styles = [sample for sample in emoji_samples if len(sample[0]["styles"]) == 3]
    data = EmojiSet(three_styles, "1" * 64)
    with pytest.raises(DataError, match="no seen image of a concept drawn in all five styles"):
        list(run(Engine(rigged(data)), data, EmojiProtocol()))
