"""One inference thread per model: batches are formed across requests from whatever waits when it becomes free.

    job = batcher.submit("embed", crops, deadline)      # "embed", "logits" (crops), "texts" (strings)
    done = await asyncio.wrap_future(job)               # one row or exception per item, and the seconds computed
    matrix = await batcher.class_matrix(labels, templates, deadline)
    found = await batcher.call(function)                # alone on the thread, e.g. to check the backend

``batcher.stats`` counts; functions in ``batcher.on_batch`` are told of every ``Batch`` on the inference thread.
Nothing is delayed to fill a batch. Requests take turns item by item, so that a large one holds up nobody. A batch that
fails is halved until the item at fault is alone; cancelling a job, or its deadline, drops what has not begun.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

import numpy as np

from digpt.engine import Engine
from digpt.errors import InputError
from serve.errors import InferenceError, NotReadyError

log = logging.getLogger("serve")

T = TypeVar("T")
Kind = Literal["embed", "logits", "texts", "prompts", "call"]

# On a CPU batching gains little and everybody in a batch waits for all of it, so a large batch is to take half a second
# at most, by the measured rate; a GPU needs 60 images or so to be busy and computes them in much less. A few are always
# computed together, however slow the model: one by one they cost a tenth more, and the last of them waits longer.
BATCH_S = 0.5
FEW = 8
# Batches whose rates are remembered, and how many it takes to believe them. The best counts: a busy neighbour only ever
# slows one down.
RATES, FIRST_RATES = 16, 3
MATRIX_THREADS = 4  # class matrices under way at a time; they wait for the inference thread, and average
LATE_S = 0.02  # a deadline is taken for passed when so little is left: clocks of event loops are coarse
JOIN_S = 10.0  # how long a closing batcher waits for a call that does not end


@dataclass(frozen=True)
class Done:
    """What became of a job's items: of each its row or the exception that it alone caused.

    ``inference_s`` are the seconds of the batches it took part in, ``queue_s`` the others from submission to the end.
    """

    rows: list[Any]
    queue_s: float
    inference_s: float


@dataclass(frozen=True)
class Batch:
    """A batch just computed: how many items of how many jobs, how long they took, how long each job had waited.

    ``failed`` of the ``size`` items have no row.
    """

    kind: Kind
    size: int
    failed: int
    seconds: float
    waited_s: tuple[float, ...]


@dataclass
class Stats:
    """Counts since the start, of items unless it says otherwise."""

    batches: int = 0  # of these, calls count as well
    items: int = 0
    failed: int = 0
    bisected: int = 0  # batches that failed and were halved
    cancelled: int = 0  # dropped because nobody waits for them any more
    expired: int = 0  # dropped because their deadline passed


@dataclass(eq=False)
class Job:
    """The items of one kind of one request."""

    kind: Kind
    items: Sequence[Any]
    deadline: float
    future: Future[Done] = field(default_factory=Future)
    submitted: float = field(default_factory=time.monotonic)
    context: Context = field(default_factory=copy_context)  # of the request, so that what is logged carries its id
    taken: int = 0
    rows: list[Any] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Part:
    """One item of a batch: whose it is, and where its row goes."""

    job: Job
    index: int
    item: Any


class Batcher:
    """Runs one engine on a thread of its own.

    Args:
        name: of the model, for the thread's name.
        max_batch: items computed together at most; the engine may want fewer.
    """

    def __init__(self, name: str, engine: Engine, max_batch: int = 64) -> None:
        self.stats = Stats()
        self.on_batch: list[Callable[[Batch], None]] = []
        self.suspect = False
        """Set when something failed that was no input's fault; the watchdog looks into it and clears it."""
        self._name, self._engine = name, engine
        self._max_batch = min(max_batch, engine.info.max_batch or max_batch)
        self._jobs: deque[Job] = deque()  # who gets the next turn stands first; guarded by _changed, as what follows
        self._inside: list[Job] = []
        self._call_began: float | None = None
        self._idle_since = time.monotonic()
        self._closed = False
        self._changed = threading.Condition()
        self._rates: defaultdict[Kind, deque[float]] = defaultdict(lambda: deque(maxlen=RATES))  # items per second
        self._matrix_threads = ThreadPoolExecutor(MATRIX_THREADS, thread_name_prefix=f"class-matrix-{name}")
        self._matrix_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.start()

    def start(self) -> None:
        """Start the thread, again if it ended."""
        self._thread = threading.Thread(target=self._run, name=f"inference-{self._name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Items that wait for their turn."""
        with self._changed:
            return sum(len(job.items) - job.taken for job in [*self._jobs, *self._inside])

    def call_s(self) -> float:
        """Seconds that the call under way has taken so far, 0 if there is none."""
        began = self._call_began
        return 0.0 if began is None else time.monotonic() - began

    def idle_s(self) -> float:
        """Seconds since the thread has had anything to do."""
        return 0.0 if self._inside or self._jobs else time.monotonic() - self._idle_since

    def submit(self, kind: Kind, items: Sequence[Any], deadline: float = float("inf")) -> Future[Done]:
        """Put ``items`` into the queue; cancelling the future drops those that have not begun.

        Args:
            deadline: of ``time.monotonic``; items that have not begun by then raise TimeoutError from the future.
        """
        job = Job(kind, items, deadline, rows=[None] * len(items))
        job.future.add_done_callback(lambda _: self._forget(job))
        with self._changed:
            if not items:
                _settle(job, Done([], 0.0, 0.0))
            elif self._closed or not self.alive:
                _settle(job, NotReadyError("The model is stopping, or about to start again.", retry_after=1))
            else:
                self._jobs.append(job)
                self._changed.notify()
        return job.future

    async def call(self, function: Callable[[], T]) -> T:
        """Await ``function()`` on the inference thread, by itself."""
        done = await asyncio.wrap_future(self.submit("call", [function]))
        value: T = value_of(done.rows[0])
        return value

    async def class_matrix(
        self, labels: Sequence[str], templates: Sequence[str] | None, deadline: float = float("inf")
    ) -> np.ndarray:
        """As ``Engine.class_matrix``; images get their turns between its batches, and equal ones are computed once.

        Raises:
            TimeoutError: not within ``deadline``.
        """
        key = self._engine.class_matrix_key(labels, templates)
        kept = self._engine.kept_class_matrix(key)
        if kept is not None:
            return kept
        lock = self._matrix_locks.setdefault(key, asyncio.Lock())
        async with lock:
            prompts = _Prompts(self, deadline)
            compute = partial(self._engine.class_matrix, labels, templates, compute=prompts)
            try:
                return await asyncio.get_running_loop().run_in_executor(self._matrix_threads, compute)
            finally:
                prompts.stop()

    def refuse_all(self, error: Exception) -> None:
        """Let every job that waits raise ``error``."""
        with self._changed:
            for job in [*self._jobs, *(job for job in self._inside if job.taken < len(job.items))]:
                _settle(job, error)

    def close(self) -> bool:
        """Drop what waits, finish what has begun; False if that does not end."""
        stopping = NotReadyError("The server is stopping.", retry_after=1)
        self.refuse_all(stopping)
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(JOIN_S)
        with self._changed:
            for job in [*self._inside, *self._jobs]:
                _settle(job, stopping)
        self._matrix_threads.shutdown(wait=True, cancel_futures=True)
        return not self.alive

    def _forget(self, job: Job) -> None:
        """Whatever settled the job, it has no more turns, and its images do not wait for one."""
        with self._changed:
            left = len(job.items) - job.taken
            if job in self._jobs:
                self._jobs.remove(job)
            job.items, job.taken = (), 0
            late = time.monotonic() > job.deadline - LATE_S
            if job.future.cancelled() and not late:
                self.stats.cancelled += left
            elif late:
                self.stats.expired += left

    def _run(self) -> None:
        try:
            while parts := self._next():
                self._compute(parts)
        finally:
            self._call_began = None
            died = NotReadyError("The model's thread ended in the middle of the work; try again.", retry_after=1)
            with self._changed:
                for job in [*self._inside, *self._jobs]:
                    _settle(job, died)
                self._inside = []

    def _next(self) -> list[Part]:
        """Wait for work and take a fair batch of it; nothing once closed."""
        with self._changed:
            self._jobs.extend(job for job in self._inside if job.taken < len(job.items))
            self._inside = []
            self._idle_since = time.monotonic()
            while True:
                self._changed.wait_for(lambda: self._closed or self._jobs)
                now = time.monotonic()
                for job in [job for job in self._jobs if job.deadline <= now]:
                    _settle(job, TimeoutError())
                if self._jobs:
                    parts = fair(self._jobs, self._limit(self._jobs[0].kind))
                    self._inside = list(dict.fromkeys(part.job for part in parts))
                    return parts
                if self._closed:
                    return []

    def _limit(self, kind: Kind) -> int:
        if kind == "call":
            return 1
        rates = self._rates[kind]
        timely = int(BATCH_S * max(rates)) if len(rates) >= FIRST_RATES else 0
        return min(self._max_batch, max(FEW, timely))

    def _compute(self, parts: list[Part]) -> None:
        kind, jobs, began = parts[0].job.kind, self._inside, time.monotonic()
        waited = tuple(began - job.submitted for job in jobs)
        rows = self._bisect(kind, parts)
        ended = time.monotonic()
        seconds = ended - began
        self._rates[kind].append(len(rows) / max(seconds, 1e-9))
        self.stats.batches += 1
        self.stats.items += len(rows)
        for part, row in zip(parts, rows, strict=True):
            part.job.rows[part.index] = row
        failed = sum(isinstance(row, Exception) for row in rows)
        for observe in self.on_batch:  # first: who has an answer finds it counted
            observe(Batch(kind, len(rows), failed, seconds, waited))
        with self._changed:
            for job in jobs:
                job.seconds += seconds
                if job.taken == len(job.items):
                    _settle(job, Done(job.rows, ended - job.submitted - job.seconds, job.seconds))

    def _bisect(self, kind: Kind, parts: list[Part]) -> list[Any]:
        """Return each item's row, or the exception that it raises when it is computed alone."""
        self._call_began = time.monotonic()
        try:
            return self._rows(kind, [part.item for part in parts])
        except Exception as error:  # whatever a backend raises: the thread outlives it
            if len(parts) == 1:
                self.stats.failed += 1
                if not isinstance(error, InputError) and kind != "call":
                    self.suspect = True
                    parts[0].job.context.run(log.exception, "an item of kind %r failed on model %s", kind, self._name)
                return [error]
        finally:
            self._call_began = None
        self.stats.bisected += 1
        half = len(parts) // 2
        return self._bisect(kind, parts[:half]) + self._bisect(kind, parts[half:])

    def _rows(self, kind: Kind, items: list[Any]) -> list[Any]:
        if kind == "call":
            return [items[0]()]
        if kind == "embed":
            rows = self._engine.embed_images(items, normalize=False, batch_size=len(items))
        elif kind == "logits":
            rows = self._engine.logits(items, batch_size=len(items))
        elif kind == "texts":
            rows = self._engine.embed_texts(items, normalize=False)
        else:
            rows = self._engine.compute_texts(items)
        if len(rows) != len(items):
            raise InferenceError(f"The model answered {len(items)} items with {len(rows)} rows.")
        return list(rows)


class _Prompts:
    """Embeds texts for ``Engine.class_matrix``, on its thread, by way of the queue; until ``stop``."""

    def __init__(self, batcher: Batcher, deadline: float) -> None:
        self._batcher, self._deadline = batcher, deadline
        self._job: Future[Done] | None = None
        self._stopped = False

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        self._job = self._batcher.submit("prompts", texts, self._deadline)
        if self._stopped:
            self._job.cancel()
        return np.stack([value_of(row) for row in self._job.result().rows])

    def stop(self) -> None:
        self._stopped = True
        if self._job is not None:
            self._job.cancel()


def fair(jobs: deque[Job], limit: int) -> list[Part]:
    """Take up to ``limit`` items of the first job's kind, one of each job in turn.

    All who gave leave the queue; those that have more come back behind whoever arrives until the batch is computed.
    """
    turns = deque(job for job in jobs if job.kind == jobs[0].kind)
    parts: list[Part] = []
    while turns and len(parts) < limit:
        job = turns.popleft()
        parts.append(Part(job, job.taken, job.items[job.taken]))
        job.taken += 1
        if job.taken < len(job.items):
            turns.append(job)
    gave = {part.job for part in parts}
    stay = [job for job in jobs if job not in gave]
    jobs.clear()
    jobs.extend(stay)
    return parts


def value_of(row: Any) -> Any:
    """Return the row of an item, or raise the exception that stands for it."""
    if isinstance(row, Exception):
        raise row
    return row


def _settle(job: Job, outcome: Done | Exception) -> None:
    """Give the job its outcome unless it has one; the batcher's lock is held."""
    if job.future.done() or not job.future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Done):
        job.future.set_result(outcome)
    else:
        job.future.set_exception(outcome)
