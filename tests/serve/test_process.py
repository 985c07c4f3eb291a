"""What the garbage collector is spared, and must find all the same; what OpenMP is told."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterator

import pytest

from digpt.errors import ConfigError
from serve.process import SPINS, THRESHOLDS, in_passing_thread, settle, spin_briefly


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


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_openmp_is_told_unless_somebody_did(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], spins: str | None
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that whatever is set here is undone
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    spin_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_a_passing_thread_ends_with_its_work() -> None:
    thread = in_passing_thread(threading.current_thread)
    assert thread is not threading.current_thread() and thread.daemon
    thread.join(5)
    assert not thread.is_alive()

    def refuse() -> None:
        raise ConfigError("as the work says")

    with pytest.raises(ConfigError, match="as the work says"):
        in_passing_thread(refuse)
