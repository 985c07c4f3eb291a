"""Filling a store: one decode per picture, corruption by key, shrinking batches, named failures, killed processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digpt.corruptions import corrupt
from digpt.engine import Engine
from digpt.errors import BackendError, CapabilityError, ConfigError, DataError
from digpt.preprocess import Preprocess
from digpt.results import ModelRef
from digpt.runtime.fake import FakeRuntime
from evaluate import store as store_module
from evaluate.classify import Classifier, classifier_of
from evaluate.compute import BatchSize, Clock, corrupted_side, fill, resized
from evaluate.store import Store
from evaluate.suite import Cell, Suite, View
from evaluate.sweep import Sweep, sweep_cells


class Pictures:
    """Pixels that differ by image; counts the reads."""

    def __init__(self, count: int, side: int = 32) -> None:
        generator = np.random.default_rng(0)
        self.pixels = generator.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        self.reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        self.reads[index] += 1
        return self.pixels[index], 0


class Seen(FakeRuntime):
    """Keeps every crop it is given; its logits are the mean of each channel."""

    def __init__(self, size: int = 32, **info: Any) -> None:
        super().__init__(size=size, text=False, linear_head=True, labels=("r", "g", "b"), **info)
        self.crops: list[np.ndarray] = []

    def logits(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(len(images))
        if self.fail_if is not None and self.fail_if(images):
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
        self.crops += list(images)
        return images.mean(axis=(1, 2)).astype(np.float32)


def made(count: int, side: int = 32, sweep: Sweep | None = None) -> tuple[Suite, Pictures]:
    pictures = Pictures(count, side)
    rows = np.arange(count, dtype=np.int64)
    cell = Cell("set/val", pictures, rows, tuple(f"{row}.png" for row in rows), "sha256:0")
    views = [View("set", "val", cell.id, rows, np.zeros(count, np.int64))]
    cells = [cell]
    for corrupted, view in sweep_cells(cell, views[0], sweep, seed=7) if sweep else ():
        cells.append(corrupted)
        views.append(view)
    return Suite("set", ("r", "g", "b"), tuple(cells), tuple(views), {"name": "set", "seed": 0}), pictures


def store_of(suite: Suite, root: Path | None = None) -> Store:
    ref = {**vars(ModelRef.of(FakeRuntime(text=False).info, "linear head"))}
    return Store.create(root, suite, {"ref": ref, "zero_shot": None})


def filled(suite: Suite, runtime: FakeRuntime, store: Store | None = None, **options: Any) -> tuple[Store, Clock]:
    store = store or store_of(suite)
    engine = Engine(runtime)
    return store, fill(store, suite, Classifier(engine, "linear head", 3), **options)


def test_rows_keep_their_place_through_batches_and_shards(monkeypatch):
    monkeypatch.setattr(store_module, "SHARD", 5)
    suite, pictures = made(13)
    runtime = Seen()
    store, clock = filled(suite, runtime, batch=BatchSize(3))
    np.testing.assert_allclose(store.array("set/val", "logits"), pictures.pixels.mean(axis=(1, 2)), rtol=1e-5)
    assert runtime.batches == [3, 2, 3, 2, 3]  # no batch spans two shards
    assert clock.images == 13 and "loader" in clock.line() and "images/s" in clock.line()
    assert Clock().line() == ""
    whole = Clock(loader=1, model=2, store=3, images=4)
    whole.add(Clock(loader=10, model=20, store=30, images=40))
    assert whole == Clock(11, 22, 33, 44)


def test_opencv_works_in_the_threads_that_load():
    """A pool of its own beside that of the loader made corrupting slower."""
    import cv2

    class Asks(Seen):
        def logits(self, images: np.ndarray) -> np.ndarray:
            threads.append(cv2.getNumThreads())
            return super().logits(images)

    threads: list[int] = []
    suite, _ = made(2, sweep=Sweep(32, corruptions=("contrast",), severities=(1,)))
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        filled(suite, Asks())
        assert threads == [1, 1] and cv2.getNumThreads() == 2
        threads.clear()
        filled(made(2)[0], Asks())  # nothing to corrupt
        assert threads == [2]
    finally:
        cv2.setNumThreads(before)


def test_a_sweep_decodes_each_picture_once_and_corrupts_it_by_its_key(monkeypatch):
    monkeypatch.setattr(store_module, "SHARD", 4)
    sweep = Sweep(32, corruptions=("gaussian_noise", "contrast"), severities=(1, 3))
    suite, pictures = made(6, sweep=sweep)
    runtime = Seen()
    store, _ = filled(suite, runtime, batch=BatchSize(4))
    assert set(pictures.reads.values()) == {2}  # once for the clean cell, once for all its corruptions
    expected = [
        corrupt(pixels, "gaussian_noise", 3, key=f"7:{row}.png").mean(axis=(0, 1))
        for row, pixels in enumerate(pictures.pixels)
    ]
    got = store.array("set-c-on-the-fly/gaussian_noise/3", "logits")
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert not np.allclose(got, store.array("set-c-on-the-fly/gaussian_noise/1", "logits"))


@pytest.mark.parametrize(("size", "side"), [(32, 32), (64, 64), (96, 96), (128, 224), (224, 224), (336, 224)])
def test_larger_models_see_pictures_that_were_corrupted_at_224(size, side):
    assert corrupted_side(size) == side


def test_a_larger_model_gets_its_own_resolution():
    suite, _ = made(2, side=300, sweep=Sweep(256, corruptions=("brightness",), severities=(1,)))
    runtime = Seen(preprocess=Preprocess(size=256))
    filled(suite, runtime)
    assert {crop.shape for crop in runtime.crops} == {(256, 256, 3)}
    image = np.zeros((224, 224, 3), np.uint8)
    assert resized(image, 224) is image and resized(image, 256).shape == (256, 256, 3)


def test_a_batch_that_exceeds_the_memory_is_halved_and_the_size_remembered():
    suite, pictures = made(12)
    runtime = Seen(fail_if=lambda images: len(images) > 3)
    batch = BatchSize(8)
    store, _ = filled(suite, runtime, batch=batch)
    np.testing.assert_allclose(store.array("set/val", "logits"), pictures.pixels.mean(axis=(1, 2)), rtol=1e-5)
    assert batch.size == 2 and runtime.batches[:3] == [8, 4, 2]


def test_another_failure_is_not_taken_for_one_of_memory():
    suite, _ = made(4)

    class Broken(Seen):
        def logits(self, images: np.ndarray) -> np.ndarray:
            raise BackendError("the engine is broken")

    with pytest.raises(BackendError, match="broken"):
        filled(suite, Broken())


def test_the_batch_size_doubles_while_that_is_worth_it():
    batch = BatchSize()
    speed = {16: 100.0, 32: 180.0, 64: 300.0, 128: 310.0}
    for _ in range(20):
        batch.note(batch.size, batch.size / speed[batch.size])
    assert (batch.size, batch.found) == (64, True)
    fixed = BatchSize(10)
    fixed.note(10, 1.0)
    fixed.note(10, 1.0)
    assert fixed.size == 10


def test_what_cannot_be_read_is_named():
    suite, pictures = made(3)

    def read(index: int) -> Any:
        return (b"no image", 0) if index == 1 else (pictures.pixels[index], 0)

    pictures.read = read  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"set/val: 1\.png: .*Replace the file"):
        filled(suite, Seen())


def test_parts_are_disjoint_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "SHARD", 2)
    suite, pictures = made(9)
    counts = [filled(suite, Seen(), store_of(suite, tmp_path), part=(part, 3))[1].images for part in range(3)]
    assert sum(counts) == 9 and set(pictures.reads.values()) == {1}
    assert store_of(suite, tmp_path).missing() == []


def test_sweeps_refuse_what_is_unknown():
    with pytest.raises(ConfigError, match="Did you mean 'contrast'"):
        Sweep(64, corruptions=("contrats",))
    with pytest.raises(ConfigError, match="among 1, 2, 3, 4, 5"):
        Sweep(64, severities=(0,))
    assert replace(Sweep(64), jpeg=True).describe() != Sweep(64).describe()
    assert Sweep(64).describe()["side"] == 64 and Sweep(448).describe()["side"] == 224


@pytest.mark.slow
def test_a_killed_sweep_computes_at_most_one_shard_again(tmp_path):
    command = [sys.executable, "-m", "evaluate.robustness", "bundled", "--limit", "40", "--threads", "1", "--output"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment, capture_output=True)
    process = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment, stderr=subprocess.DEVNULL)
    cells = tmp_path / "killed" / "store" / "cells"
    deadline = time.monotonic() + 200
    while len(list(cells.rglob("*.npz"))) < 30 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in cells.rglob("*.npz")}
    assert 30 <= len(kept) < 81
    subprocess.run([*command, str(tmp_path / "killed")], check=True, env=environment, capture_output=True)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())  # none was written again
    assert len(list(cells.rglob("*.npz"))) == len(list((tmp_path / "whole" / "store" / "cells").rglob("*.npz")))
    names = ("results.json", "per_class.csv")
    assert [(tmp_path / "killed" / n).read_bytes() for n in names] == [
        (tmp_path / "whole" / n).read_bytes() for n in names
    ]


def test_classes_of_pixels_do_not_answer_for_pictures() -> None:
    suite, _ = made(2)
    segmenter = FakeRuntime(text=False, labels=suite.class_names, segment_crop=64)
    with pytest.raises(CapabilityError, match="neither a linear head nor a text tower"):
        classifier_of(Engine(segmenter), suite)
    linear = FakeRuntime(text=False, labels=suite.class_names, linear_head=True)
    assert classifier_of(Engine(linear), suite).kind == "linear head"
