"""Fills a store: decode, corrupt, batch, ask the model, keep; the next batches are made ready meanwhile.

    clock = fill(store, suite, classifier, workers=2)

Loading runs in threads beside the model. What a batch waits for images is the loader's share of the time.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digpt.corruptions import corrupt, one_thread_each
from digpt.engine import Engine
from digpt.errors import DataError, DigptError
from evaluate.classify import Classifier
from evaluate.progress import Progress, no_progress
from evaluate.store import Store
from evaluate.suite import Cell, Suite

CORRUPTED_SIDE = 224  # pixels at which larger models' images are corrupted, as ImageNet-C's were
TINY_SIDE = 96  # up to here a model's own resolution is corrupted, with Tiny-ImageNet-C's constants
AHEAD = 2  # batches being loaded
CHUNK = 8  # images that a thread loads at a time
FIRST_BATCH, LARGEST_BATCH = 16, 1024

Pixels: TypeAlias = NDArray[np.uint8]


@dataclass
class Clock:
    """Seconds of a run: waiting for images, in the model, and keeping the answers; and the images answered."""

    loader: float = 0.0
    model: float = 0.0
    store: float = 0.0
    images: int = 0

    def add(self, other: Clock) -> None:
        """Count another stretch of the same run."""
        self.loader += other.loader
        self.model += other.model
        self.store += other.store
        self.images += other.images

    def line(self) -> str:
        """``time 34 s: loader 21%, model 74%, store 5%; 812 images/s``, or nothing when nothing was computed."""
        total = self.loader + self.model + self.store
        if not self.images:
            return ""
        shares = {"loader": self.loader, "model": self.model, "store": self.store}
        told = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in shares.items())
        return f"time {total:.0f} s: {told}; {self.images / total:.0f} images/s"


@dataclass
class BatchSize:
    """Images per forward pass: what was asked for, or found by doubling for as long as that is worth it.

    Doubling stops where it gains less than a tenth, or where memory ends; then it falls back to what worked.
    """

    asked: int | None = None
    size: int = FIRST_BATCH
    found: bool = False
    _rates: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.asked is not None:
            self.size, self.found = self.asked, True

    def note(self, images: int, seconds: float) -> None:
        """Take the speed of one full batch into account."""
        if self.found or images < self.size:
            return
        first = self.size not in self._rates
        self._rates[self.size] = max(images / max(seconds, 1e-9), self._rates.get(self.size, 0.0))
        if first:
            return  # a size's first batch also pays for memory and warm-up; judge it by its second
        before = self._rates.get(self.size // 2, 0.0)
        if self._rates[self.size] < 1.1 * before:
            self.size, self.found = self.size // 2, True
        elif self.size >= LARGEST_BATCH:
            self.found = True
        else:
            self.size *= 2

    def shrink(self, size: int) -> None:
        """A batch of ``size`` was too large for the memory."""
        self.size, self.found = max(1, size // 2), True


def fill(
    store: Store,
    suite: Suite,
    classifier: Classifier,
    *,
    batch: BatchSize | None = None,
    part: tuple[int, int] = (0, 1),
    progress: Progress = no_progress,
) -> Clock:
    """Compute every shard that is missing; with ``part`` ``(i, n)`` only each n-th of all shards, from the i-th on.

    Raises:
        DataError: an image cannot be read or decoded; it is named.
        BackendError and its kin: from the runtime.
    """
    cells = {cell.id: cell for cell in suite.cells}
    index, parts = part
    todo = [item for n, item in enumerate(_ordered(store, suite)) if n % parts == index and not store.has(*item)]
    clock, done, batch = Clock(), 0, batch or BatchSize()
    total = sum(len(range(*store.rows_of(*item).indices(len(cells[item[0]])))) for item in todo)
    progress("images", 0, total)
    corrupting = any(cells[cell].corruption is not None for cell, _ in todo)
    threads = classifier.engine.info.threads or os.cpu_count()
    with one_thread_each() if corrupting else nullcontext(), ThreadPoolExecutor(threads) as pool:
        loader = Loader(classifier.engine, pool, batch)
        kept: list[dict[str, NDArray[np.float32]]] = []
        for loaded in loader.batches([(cells[cell], shard, store.rows_of(cell, shard)) for cell, shard in todo]):
            started = time.perf_counter()
            crops = np.stack([image for chunk in loaded.images for image in chunk.result()])
            waited = time.perf_counter()
            kept.append(answer(classifier, crops, loaded.cell, batch))
            answered = time.perf_counter()
            batch.note(len(crops), answered - waited)
            clock.loader, clock.model = clock.loader + waited - started, clock.model + answered - waited
            if loaded.last:
                store.put(loaded.cell.id, loaded.shard, _joined(kept))
                kept = []
                clock.store += time.perf_counter() - answered
            clock.images += len(crops)
            done += len(crops)
            progress("images", done, total)
    return clock


def answer(classifier: Classifier, crops: Pixels, cell: Cell, batch: BatchSize) -> dict[str, NDArray[np.float32]]:
    """Ask the model; where the memory does not hold the batch, ask in halves and remember that."""
    size, parts = len(crops), []
    start = 0
    while start < len(crops):
        try:
            parts.append(classifier.answer(crops[start : start + size], cell))
        except Exception as error:  # every runtime has its own type for this
            if not _out_of_memory(error) or size == 1:
                raise
            batch.shrink(size)
            size = max(1, size // 2)
            continue
        start += size
    return _joined(parts)


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    told = ("out of memory", "failed to allocate memory", "can't allocate memory", "cannot allocate memory")
    return isinstance(error, MemoryError) or any(words in text for words in told)


def _joined(parts: Sequence[dict[str, NDArray[np.float32]]]) -> dict[str, NDArray[np.float32]]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _ordered(store: Store, suite: Suite) -> list[tuple[str, int]]:
    """All shards: those that need the same pictures follow each other, so that each is decoded once."""
    sources: dict[int, list[Cell]] = {}
    for cell in suite.cells:
        sources.setdefault(id(cell.source), []).append(cell)
    items = []
    for cells in sources.values():
        longest = max(len(store.shards(cell.id)) for cell in cells)
        for shard in range(longest):
            items += [(cell.id, shard) for cell in cells if shard in store.shards(cell.id)]
    return items


@dataclass(frozen=True)
class Loaded:
    """One batch on its way: its cell and shard, and whether it is the shard's last."""

    cell: Cell
    shard: int
    images: list[Future[list[Pixels]]]
    last: bool


class _Once:
    """Pixels by row, each made once though several threads may ask at the same time."""

    def __init__(self) -> None:
        self._pixels: dict[int, Pixels] = {}
        self._locks: dict[int, threading.Lock] = {}
        self._guard = threading.Lock()

    def get(self, row: int, make: Callable[[], Pixels]) -> Pixels:
        with self._guard:
            lock = self._locks.setdefault(row, threading.Lock())
        with lock:
            if row not in self._pixels:
                self._pixels[row] = make()
            return self._pixels[row]


class Loader:
    """Decodes and corrupts images in threads, a few batches ahead of the model."""

    def __init__(self, engine: Engine, pool: ThreadPoolExecutor, batch: BatchSize) -> None:
        self.engine, self.pool, self.batch = engine, pool, batch
        self._clean = _Once()
        self._clean_of: tuple[int, int] | None = None

    def batches(self, items: Sequence[tuple[Cell, int, slice]]) -> Iterator[Loaded]:
        """Every batch of the shards ``(cell, shard, rows)``, in order; a batch never spans two shards."""
        upcoming: deque[Loaded] = deque()
        for loaded in self._submitted(items):
            upcoming.append(loaded)
            if len(upcoming) > AHEAD:
                yield upcoming.popleft()
        yield from upcoming

    def _submitted(self, items: Sequence[tuple[Cell, int, slice]]) -> Iterator[Loaded]:
        for cell, shard, rows in items:
            load = self._load(cell, shard)
            start = rows.start
            while start < rows.stop:
                stop = min(start + self.batch.size, rows.stop)
                # A few images at a time: a task each would cost small models more than decoding does.
                chunks = [range(first, min(first + CHUNK, stop)) for first in range(start, stop, CHUNK)]
                images = [self.pool.submit(_each, load, chunk) for chunk in chunks]
                yield Loaded(cell, shard, images, stop == rows.stop)
                start = stop

    def _load(self, cell: Cell, shard: int) -> Callable[[int], Pixels]:
        """What makes a row of the cell ready for the model."""
        if cell.corruption is None or cell.cropped:
            return loading(self.engine, cell)
        if self._clean_of != (id(cell.source), shard):  # the clean crops of one shard serve all its corruptions
            self._clean, self._clean_of = _Once(), (id(cell.source), shard)
        return loading(self.engine, cell, self._clean)


def loading(engine: Engine, cell: Cell, clean: _Once | None = None) -> Callable[[int], Pixels]:
    """What makes a row of ``cell`` ready for the model, uint8 ``[H,W,3]``; ``clean`` holds crops before corruption.

    The function raises DataError, with the image's name, where it cannot be read.
    """
    preprocess = engine.info.preprocess
    if cell.cropped:
        whole = replace(preprocess, resize="shortest", crop_pct=1.0)
        return lambda row: _named(cell, row, lambda data: whole(data, engine.limits))
    if cell.corruption is None:
        return lambda row: _named(cell, row, lambda data: preprocess(data, engine.limits))
    at_side = replace(preprocess, size=corrupted_side(preprocess.size))
    crops = clean or _Once()

    def load(row: int) -> Pixels:
        image = crops.get(row, lambda: _named(cell, row, lambda data: at_side(data, engine.limits)))
        return resized(_corrupted(image, cell, row), preprocess.size)

    return load


def _each(load: Callable[[int], Pixels], rows: range) -> list[Pixels]:
    return [load(row) for row in rows]


def corrupted_side(size: int) -> int:
    """The side at which a model's images are corrupted: its own up to 96 px, else ImageNet-C's 224."""
    return size if size <= TINY_SIDE else CORRUPTED_SIDE


def resized(image: Pixels, size: int) -> Pixels:
    """A square image at another side, bicubic; itself where it has that side."""
    if image.shape[0] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def _corrupted(image: Pixels, cell: Cell, row: int) -> Pixels:
    assert cell.corruption is not None
    name, severity = cell.corruption
    return corrupt(image, name, severity, key=f"{cell.seed}:{cell.keys[row]}", jpeg=cell.jpeg)


def _named(cell: Cell, row: int, decode: Callable[[bytes | Pixels], Pixels]) -> Pixels:
    """Read and decode; whatever goes wrong names the image."""
    try:
        data, _ = cell.source.read(int(cell.rows[row]))
        return decode(data)
    except DigptError as error:
        raise DataError(
            f"{cell.id}: {cell.keys[row]}: {error} Replace the file, or look for others like it with evaluate.doctor."
        ) from error
