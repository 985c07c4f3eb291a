"""When "none of these" is the answer: the rule, and what an engine makes of it."""

from __future__ import annotations

import numpy as np
import pytest

from digpt.abstain import NONE_OF_THESE, AbstainRule
from digpt.engine import Engine
from digpt.errors import CapabilityError, CheckpointError
from digpt.runtime.fake import FakeRuntime

RULE = AbstainRule((1, 100), (0.1, 0.3))
CROP = np.zeros((64, 64, 3), np.uint8)


def engine(cosine: float, **info: float) -> Engine:
    return Engine(FakeRuntime(abstain=AbstainRule((1,), (cosine,)), **info))


def test_the_threshold_grows_with_the_logarithm_of_the_number_of_labels() -> None:
    assert [RULE.threshold(n) for n in (1, 10, 100)] == pytest.approx([0.1, 0.2, 0.3])
    assert RULE.threshold(10_000) == 0.3  # beyond what was measured, the nearest
    assert AbstainRule((7,), (0.2,)).threshold(3) == 0.2


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"labels": [], "cosine": []},
        {"labels": [1, 3], "cosine": [0.2]},
        {"labels": [3, 1], "cosine": [0.2, 0.3]},
        {"labels": [0, 1], "cosine": [0.2, 0.3]},
        {"labels": ["many"], "cosine": [0.2]},
    ],
)
def test_what_is_no_rule_is_refused(values: dict[str, list[object]]) -> None:
    with pytest.raises(CheckpointError, match="Export the model again"):
        AbstainRule.from_dict(values)
    assert AbstainRule.from_dict({**RULE.to_dict(), "images": 5}) == RULE


def test_none_of_these_wins_exactly_where_no_label_comes_as_near() -> None:
    plain = Engine(FakeRuntime())
    labels = ["cat", "dog", "house"]
    cosine = plain.similarity(plain.embed_images([CROP]), plain.class_matrix(labels))[0]
    best = float(cosine.max())
    kept = engine(best - 1e-3).classify([CROP], labels, abstain=True)[0]
    refused = engine(best + 1e-3).classify([CROP], labels, abstain=True)[0]
    assert kept[0].label == labels[int(cosine.argmax())] and kept[1].label == NONE_OF_THESE
    assert refused[0].label == NONE_OF_THESE and refused[1].label == kept[0].label
    assert sum(p.score for p in kept) == pytest.approx(1, abs=1e-6) and len(kept) == 4
    expected = np.exp(10 * np.append(cosine, best + 1e-3))
    assert refused[0].score == pytest.approx(expected[-1] / expected.sum(), abs=1e-6)
    untouched = engine(best + 1e-3).classify([CROP], labels)[0]  # not asked for, nothing changes
    assert untouched == plain.classify([CROP], labels)[0]


def test_the_threshold_is_that_of_the_number_of_labels_asked_about() -> None:
    few, many = ["a", "b"], [f"label {number}" for number in range(200)]
    low = Engine(FakeRuntime(abstain=AbstainRule((2, 200), (-1.0, 1.0))))
    assert low.classify([CROP], few, abstain=True)[0][0].label != NONE_OF_THESE
    assert low.classify([CROP], many, abstain=True)[0][0].label == NONE_OF_THESE


def test_independent_scores_have_the_same_threshold() -> None:
    found = engine(0.99, logit_bias=-1.0).classify([CROP], ["a", "b"], multi_label=True, abstain=True)[0]
    assert found[0].label == NONE_OF_THESE and found[0].score == pytest.approx(1 / (1 + np.exp(1 - 9.9)), abs=1e-6)


def test_models_that_cannot_say_what_to_do() -> None:
    with pytest.raises(CapabilityError, match="no calibrated threshold.*python -m export"):
        Engine(FakeRuntime()).classify([CROP], ["a"], abstain=True)
    both = Engine(FakeRuntime(labels=["x", "y"], linear_head=True, abstain=RULE))
    with pytest.raises(CapabilityError, match="answers by its linear head here"):
        both.classify([CROP], abstain=True)
    assert len(both.classify([CROP], ["a"], abstain=True)[0]) == 2
