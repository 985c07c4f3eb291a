"""Runs a suite on a model: what is missing in the store is computed, then every number is taken from the store.

document = run_suite(Engine.load("bundled"), emoji_suite(EmojiSet.load()))
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from digpt.classsets import ClassMatrixCache
from digpt.engine import Engine
from digpt.exhibits import EXHIBITS_NAME, write_exhibits
from digpt.results import RESULTS_NAME, ResultsDocument, write_results
from evaluate.classify import classifier_of, without_classes
from evaluate.compute import BatchSize, Clock, fill
from evaluate.exhibits import exhibits_of
from evaluate.measure import document_of, write_per_class
from evaluate.progress import Progress, no_progress
from evaluate.store import STORE_NAME, Store
from evaluate.suite import Suite

PER_CLASS_NAME = "per_class.csv"
POLL = 1.0  # seconds between looks at what other processes have written
PATIENCE = 900.0  # seconds without a new shard, after which the others' shards are computed by the one that waits


@dataclass(frozen=True)
class Part:
    """This process's share: every ``count``-th shard from ``index`` on.

    Of the processes that a launcher started (``launched``) the first waits for the others and publishes; of those that
    were started one by one, each that finds the store complete.
    """

    index: int = 0
    count: int = 1
    launched: bool = False

    @property
    def waits(self) -> bool:
        return self.launched and self.index == 0

    @property
    def publishes(self) -> bool:
        return not self.launched or self.index == 0


@dataclass(frozen=True)
class Outcome:
    """``document`` is None where another process publishes; then ``missing`` shards are others' to compute.

    ``kept`` shards were there already; ``taken`` were computed in place of a process that made no progress.
    """

    document: ResultsDocument | None
    clock: Clock
    kept: int
    missing: int = 0
    taken: int = 0


def run_suite(
    engine: Engine,
    suite: Suite,
    *,
    output: Path | None = None,
    overwrite: bool = False,
    batch_size: int | None = None,
    part: Part | None = None,
    cache: ClassMatrixCache | None = None,
    prefer_text: bool = False,
    progress: Progress = no_progress,
) -> Outcome:
    """Evaluate ``engine``; with ``output``, into a store that a later call continues, beside results and exhibits.

    Raises:
        CapabilityError: the model cannot answer any of it.
        ConfigError: ``output`` holds another evaluation.
        DataError: an image that cannot be read, or a damaged store.
    """
    part = part or Part()
    progress("classes", 0, 0)
    classifier = classifier_of(engine, suite, cache, prefer_text=prefer_text)
    if not classifier.kind:
        suite = without_classes(suite)
    root = None if output is None else output / STORE_NAME
    if output is not None and overwrite:  # the numbers of what is thrown away must not stand beside the new store
        for name in (RESULTS_NAME, PER_CLASS_NAME, EXHIBITS_NAME):
            (output / name).unlink(missing_ok=True)
    store = Store.create(root, suite, classifier.model(), overwrite=overwrite)
    if classifier.matrix is not None:
        store.put_matrix(classifier.matrix)
    kept = sum(len(store.shards(cell)) for cell in store.cells) - len(store.missing())
    batch = BatchSize(batch_size)
    clock = fill(store, suite, classifier, batch=batch, part=(part.index, part.count), progress=progress)
    taken = wait(store, progress) if part.waits else 0
    if taken:  # the others died, or are so slow that doing their work twice does no harm
        clock.add(fill(store, suite, classifier, batch=batch, progress=_named(progress, "images of other processes")))
    missing = len(store.missing())
    if missing or not part.publishes:
        return Outcome(None, clock, kept, missing)
    document = publish(store, output, progress)
    if output is not None:
        write_exhibits(exhibits_of(store, suite, engine), output / EXHIBITS_NAME)
    return Outcome(document, clock, kept, taken=taken)


def wait(store: Store, progress: Progress = no_progress) -> int:
    """Wait for the other processes' shards; return how many are missing after `PATIENCE` without a new one."""
    missing, since = len(store.missing()), time.monotonic()
    while missing and time.monotonic() - since < PATIENCE:
        progress("other processes", 0, 0)
        time.sleep(POLL)
        if (now := len(store.missing())) < missing:
            missing, since = now, time.monotonic()
    return missing


def _named(progress: Progress, name: str) -> Progress:
    return lambda _, done, total: progress(name, done, total)


def publish(store: Store, output: Path | None, progress: Progress = no_progress) -> ResultsDocument:
    """Compute every number of a finished store; with ``output``, write the results and the accuracies per class."""
    document = document_of(store, progress=progress)
    if output is not None:
        write_results(document, output / RESULTS_NAME)
        write_per_class(store, output / PER_CLASS_NAME)
    return document
