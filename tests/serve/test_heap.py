"""What the garbage collector is spared, and what it must find all the same."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from serve.heap import THRESHOLDS, settle


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


class Model:
    def __init__(self) -> None:
        self.itself = self  # so that only a collection finds it


def test_what_lives_is_left_out_of_later_collections() -> None:
    model = Model()
    assert any(found is model for found in gc.get_objects())
    settle()
    assert not any(found is model for found in gc.get_objects())
    assert gc.get_freeze_count() > 1000
    assert gc.get_threshold() == THRESHOLDS


def test_a_model_that_went_is_found_although_it_was_frozen() -> None:
    model = Model()
    gone = weakref.ref(model)
    settle()
    del model
    gc.collect()
    assert gone() is not None  # the control: frozen, it is not looked at
    settle()
    assert gone() is None
