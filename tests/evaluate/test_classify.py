"""Which outputs of a head are the suite's classes: by id, by order, and never by a name that stands for two."""

from __future__ import annotations

from pathlib import Path

import pytest

from digpt.data.imagenet import descriptions, wnids
from digpt.errors import CapabilityError
from digpt.runtime.fake import FakeRuntime
from digpt.testing_trees import write_val
from digpt.text import imagenet_names
from evaluate.classify import head_columns
from evaluate.suite import Suite
from evaluate.suite_imagenet import imagenet_suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    root: Path = tmp_path_factory.mktemp("data")
    write_val(root, (3,), 1)
    return imagenet_suite(root, sets=("imagenet",))


def columns(suite: Suite, labels: tuple[str, ...]) -> list[int] | None:
    found = head_columns(FakeRuntime(text=False, linear_head=True, labels=labels).info, suite)
    return None if found is None else found.tolist()


@pytest.mark.parametrize("labels", [wnids(), imagenet_names(), descriptions()], ids=["ids", "names", "timm"])
def test_a_list_in_the_known_order_is_taken_in_order_though_names_occur_twice(suite, labels):
    """By name, "missile" (657) would be read from the output of the other missile (744)."""
    assert columns(suite, labels) is None


def test_ids_in_another_order_or_among_more_are_found(suite):
    assert columns(suite, tuple(reversed(wnids()))) == list(range(999, -1, -1))
    assert columns(suite, ("background", *wnids())) == list(range(1, 1001))


@pytest.mark.parametrize("labels", [tuple(reversed(imagenet_names())), ("background", *imagenet_names())])
def test_names_that_stand_for_two_classes_are_refused_in_any_other_order(suite, labels):
    with pytest.raises(CapabilityError, match="'missile' stands for more than one of them"):
        columns(suite, labels)


@pytest.mark.parametrize(
    "labels",
    [tuple(f"thing {number}" for number in range(1000)), (*descriptions()[1:], descriptions()[0])],
    ids=["others", "rotated"],
)
def test_a_thousand_other_outputs_are_not_imagenets(suite, labels):
    with pytest.raises(CapabilityError, match="tells 1,000 classes apart, and 'tench' of imagenet is none of them"):
        columns(suite, labels)


def test_a_name_that_a_head_has_twice_is_refused_where_it_is_asked(suite):
    toy = Suite("toy", ("cat", "dog"), (), (), {})
    assert columns(toy, ("dog", "cow", "cow", "cat")) == [3, 0]
    with pytest.raises(CapabilityError, match="'dog' stands for more than one"):
        columns(toy, ("dog", "dog", "cow", "cat"))
