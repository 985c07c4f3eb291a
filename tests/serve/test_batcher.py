"""Batches across requests: whose turn it is, what a failure costs, what is dropped, and what the numbers are."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest

from digpt.engine import Engine
from digpt.errors import InputError
from digpt.runtime.fake import FakeRuntime
from serve.batcher import Batch, Batcher, Done, Job, fair

Make = Callable[..., Batcher]


def crops(*levels: int) -> list[np.ndarray]:
    return [np.full((64, 64, 3), level, np.uint8) for level in levels]


def reds(batch: np.ndarray) -> list[int]:
    return [int(image[0, 0, 0]) for image in batch]


class Recorder:
    """What ``embed`` was called with, held at the first call until ``open`` is set."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.seen: list[list[int]] = []
        self.entered, self.open = threading.Event(), threading.Event()
        self.compute = runtime.embed
        runtime.embed = self

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.seen.append(reds(images))
        self.entered.set()
        assert self.open.wait(10)
        return self.compute(images)


@pytest.fixture
def make() -> Iterator[Make]:
    """``make(runtime, max_batch=4)``: a batcher that is closed after the test."""
    made: list[Batcher] = []

    def batcher(runtime: FakeRuntime, **options: Any) -> Batcher:
        made.append(Batcher("x", Engine(runtime), **options))
        return made[-1]

    yield batcher
    for each in made:
        assert each.close()


def held(make: Make, **options: Any) -> tuple[Batcher, Recorder, Future[Done]]:
    """A batcher whose thread is inside a first batch of one image of level 0."""
    runtime = FakeRuntime()
    recorder = Recorder(runtime)
    batcher = make(runtime, **options)
    first = batcher.submit("embed", crops(0))
    assert recorder.entered.wait(5)
    return batcher, recorder, first


def test_what_waits_is_computed_together(make: Make) -> None:
    batcher, recorder, first = held(make)
    jobs = [batcher.submit("embed", crops(level)) for level in (1, 2, 3)]
    recorder.open.set()
    rows = [job.result(5).rows[0] for job in (first, *jobs)]
    assert recorder.seen == [[0], [1, 2, 3]]
    np.testing.assert_array_equal(rows, Engine(FakeRuntime()).embed_images(crops(0, 1, 2, 3), normalize=False))
    assert (batcher.stats.batches, batcher.stats.items, batcher.waiting) == (2, 4, 0)


def test_a_large_request_does_not_hold_up_small_ones(make: Make) -> None:
    batcher, recorder, _ = held(make, max_batch=4)
    large = batcher.submit("embed", crops(*range(100, 140)))
    small = [batcher.submit("embed", crops(level)) for level in (1, 2)]
    recorder.open.set()
    large.result(5)
    assert recorder.seen[1] == [100, 1, 2, 101]
    assert recorder.seen[2] == [102, 103, 104, 105]
    assert all(job.done() for job in small)


def test_kinds_take_turns(make: Make) -> None:
    runtime = FakeRuntime()
    order: list[str] = []
    recorder, embed_texts = Recorder(runtime), runtime.embed_texts
    runtime.embed_texts = lambda texts: (order.append("".join(texts)), embed_texts(texts))[1]
    batcher = make(runtime, max_batch=2)
    batcher.submit("embed", crops(0))
    assert recorder.entered.wait(5)
    batcher.on_batch.append(lambda batch: order.append(batch.kind))
    jobs = [batcher.submit("texts", list("abcdef")), batcher.submit("embed", crops(*range(6)))]
    recorder.open.set()
    for job in jobs:
        job.result(5)
    assert order == ["embed", "ab", "texts", "embed", "cd", "texts", "embed", "ef", "texts", "embed"]


def test_fair_takes_one_of_each_job_in_turn() -> None:
    a, b, c, d = Job("embed", "aaaa", 1), Job("texts", "b", 1), Job("embed", "c", 1), Job("embed", "dd", 1)
    jobs = deque([a, b, c, d])
    assert "".join(part.item for part in fair(jobs, 4)) == "acda"
    assert (list(jobs), a.taken, c.taken, d.taken) == ([b], 2, 1, 1)
    assert "".join(part.item for part in fair(jobs, 4)) == "b"
    assert not jobs


@pytest.mark.parametrize("bad", [0, 3, 7])
def test_one_bad_item_fails_alone(make: Make, bad: int) -> None:
    runtime = FakeRuntime(fail_if=lambda image: image[0, 0, 0] == 7)
    recorder = Recorder(runtime)
    batcher = make(runtime)
    batcher.submit("embed", crops(0))
    assert recorder.entered.wait(5)
    levels = [10, 11, 12, 13, 14, 15, 16, 17]
    levels[bad] = 7
    jobs = [batcher.submit("embed", crops(*levels[:4])), batcher.submit("embed", crops(*levels[4:]))]
    recorder.open.set()
    rows = [row for job in jobs for row in job.result(5).rows]
    assert [index for index, row in enumerate(rows) if isinstance(row, RuntimeError)] == [bad]
    expected = Engine(FakeRuntime()).embed_images(crops(*levels), normalize=False)
    for index in set(range(8)) - {bad}:
        np.testing.assert_array_equal(rows[index], expected[index])
    assert (batcher.stats.failed, batcher.stats.bisected, batcher.suspect) == (1, 3, True)
    assert batcher.submit("embed", crops(1)).result(5).rows[0].shape == (16,)


def test_a_text_at_fault_fails_alone_and_raises_no_suspicion(make: Make) -> None:
    runtime = FakeRuntime()
    embed_texts = runtime.embed_texts

    def strict(texts: list[str]) -> np.ndarray:
        if "long" in texts:
            raise InputError("too long")
        return embed_texts(texts)

    runtime.embed_texts = strict
    batcher = make(runtime)
    rows = batcher.submit("texts", ["a", "long", "b"]).result(5).rows
    assert [isinstance(row, InputError) for row in rows] == [False, True, False]
    assert not batcher.suspect


def test_a_backend_that_loses_rows_is_noticed(make: Make) -> None:
    runtime = FakeRuntime()
    compute = runtime.embed
    runtime.embed = lambda images: compute(images)[: max(1, len(images) - 1)]
    batcher = make(runtime)
    rows = batcher.submit("embed", crops(1, 2)).result(5).rows
    np.testing.assert_array_equal(rows, Engine(FakeRuntime()).embed_images(crops(1, 2), normalize=False))
    assert batcher.stats.bisected == 1  # one by one no row was missing


def test_what_is_cancelled_is_not_computed_and_let_go(make: Make) -> None:
    batcher, recorder, first = held(make)
    dropped, kept = batcher.submit("embed", crops(1, 2)), batcher.submit("embed", crops(3))
    assert dropped.cancel()
    assert (batcher.stats.cancelled, batcher.waiting) == (2, 1)  # before the thread is free again
    recorder.open.set()
    kept.result(5)
    assert recorder.seen == [[0], [3]]
    with pytest.raises(CancelledError):
        dropped.result(5)
    assert first.result(5).rows[0].shape == (16,)


def test_cancelling_the_await_cancels_the_job(make: Make) -> None:
    batcher, recorder, _ = held(make)

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.wrap_future(batcher.submit("embed", crops(1)))

    asyncio.run(leave())
    assert batcher.stats.cancelled == 1
    recorder.open.set()


def test_what_is_late_is_not_computed(make: Make) -> None:
    batcher, recorder, _ = held(make)
    late = batcher.submit("embed", crops(1, 2, 3), time.monotonic() + 0.01)
    kept = batcher.submit("embed", crops(4), time.monotonic() + 60)
    time.sleep(0.02)
    recorder.open.set()
    kept.result(5)
    with pytest.raises(TimeoutError):
        late.result(5)
    assert recorder.seen == [[0], [4]]
    assert (batcher.stats.expired, batcher.stats.cancelled) == (3, 0)


def test_a_class_matrix_lets_images_pass_and_is_computed_once(make: Make) -> None:
    runtime = FakeRuntime()
    order: list[str] = []
    embed, embed_texts = runtime.embed, runtime.embed_texts
    inside, go_on = threading.Event(), threading.Event()

    def texts(batch: list[str]) -> np.ndarray:
        order.append(f"texts {len(batch)}")
        inside.set()
        assert go_on.wait(5)
        return embed_texts(batch)

    runtime.embed_texts = texts
    runtime.embed = lambda images: (order.append("image"), embed(images))[1]
    batcher = make(runtime, max_batch=16)
    labels = [f"label {index}" for index in range(100)]

    async def scenario() -> list[np.ndarray]:
        matrices = [asyncio.create_task(batcher.class_matrix(labels, ["a {}", "{}"])) for _ in range(3)]
        while not inside.is_set():
            await asyncio.sleep(0.001)
        image = batcher.submit("embed", crops(1))
        go_on.set()
        await asyncio.wrap_future(image)
        assert order.index("image") == 1  # after the batch under way
        return [await matrix for matrix in matrices]

    matrices = asyncio.run(scenario())
    assert sum(int(entry.split()[1]) for entry in order if entry != "image") == 200
    expected = Engine(FakeRuntime()).class_matrix(labels, ["a {}", "{}"])
    for matrix in matrices:
        np.testing.assert_allclose(matrix, expected, atol=1e-6)


def test_a_class_matrix_nobody_waits_for_ends(make: Make) -> None:
    runtime = FakeRuntime(delay=0.005)
    batcher = make(runtime, max_batch=1)

    async def leave() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await batcher.class_matrix([str(index) for index in range(2000)], None)

    asyncio.run(leave())
    assert batcher.submit("embed", crops(1)).result(5).rows[0].shape == (16,)
    assert len(runtime.text_batches) < 1000
    assert batcher.stats.cancelled > 0


def test_batches_are_kept_short_by_the_measured_rate(make: Make) -> None:
    batcher = make(FakeRuntime(), max_batch=16)
    for rate, limit in ((1.0, 8), (24.2, 8), (6.1, 12), (0.1, 12), (1000.0, 16)):  # too few to judge by, then the best
        batcher._rates["embed"].append(rate)
        assert batcher._limit("embed") == limit
    assert batcher._limit("texts") == 8
    assert batcher._limit("call") == 1


def test_a_backend_with_a_largest_batch_gets_no_larger_one(make: Make) -> None:
    batcher, recorder, _ = held(make, max_batch=3)
    job = batcher.submit("embed", crops(*range(8)))
    recorder.open.set()
    job.result(5)
    assert [len(seen) for seen in recorder.seen] == [1, 3, 3, 2]
    runtime = FakeRuntime(max_batch=2)
    make(runtime, max_batch=3).submit("embed", crops(*range(4))).result(5)
    assert runtime.batches == [2, 2]


def test_observers_are_told_of_every_batch(make: Make) -> None:
    told: list[Batch] = []
    batcher = make(FakeRuntime(delay=0.01))
    batcher.on_batch.append(told.append)
    done = batcher.submit("embed", crops(1, 2)).result(5)
    asyncio.run(batcher.call(lambda: None))
    assert [(batch.kind, batch.size, len(batch.waited_s)) for batch in told] == [("embed", 2, 1), ("call", 1, 1)]
    assert told[0].seconds == pytest.approx(done.inference_s)
    assert told[0].seconds >= 0.01


def test_real_models_give_the_same_numbers_whatever_the_batch(make: Make) -> None:
    engine = Engine.load("bundled", threads=1)
    batcher = Batcher("bundled", engine)
    images = list(np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8))
    alone = [batcher.submit("embed", [image]).result(30).rows[0] for image in images]
    again = [batcher.submit("embed", [image]).result(30).rows[0] for image in images]
    together = batcher.submit("embed", images).result(30).rows
    np.testing.assert_array_equal(alone, again)
    np.testing.assert_array_equal(together, engine.embed_images(images, normalize=False))
    scale = np.linalg.norm(alone, axis=1).max()
    np.testing.assert_allclose(np.array(together) / scale, np.array(alone) / scale, atol=1e-5)
    assert batcher.close()
