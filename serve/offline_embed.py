"""From images on disk to parts of the output: read, decode ahead in threads, compute, write.

Which images share a batch follows from their numbers alone, so a killed run gives the bits of an undisturbed one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from digpt.embeddings_file import embeddings_schema, embeddings_table
from digpt.engine import Engine
from digpt.errors import BackendError, InputError
from serve.offline_inputs import Inputs, Item
from serve.offline_parts import Parts

AHEAD = 2  # batches that are ready or being decoded, beyond one per thread


@dataclass(frozen=True)
class Batch:
    """Decoded images: ids and errors of all, uint8 ``[B,H,W,3]`` of those without an error."""

    ids: list[str]
    errors: list[str | None]
    crops: np.ndarray


@dataclass
class Rows:
    """A part as it fills up; ``seconds`` is the model's time."""

    ids: list[str] = field(default_factory=list)
    errors: list[str | None] = field(default_factory=list)
    embeddings: list[np.ndarray] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, batch: Batch, found: np.ndarray, faults: list[str | None]) -> None:
        """Append a batch: ``found`` ``[B,D]`` and ``faults`` are of its crops, in order."""
        embeddings = np.zeros((len(batch.ids), found.shape[1]), np.float32)
        decoded = [row for row, error in enumerate(batch.errors) if error is None]
        embeddings[decoded] = found
        errors = list(batch.errors)
        for row, fault in zip(decoded, faults, strict=True):
            errors[row] = fault
        self.ids += batch.ids
        self.errors += errors
        self.embeddings.append(embeddings)


class PartWriter:
    """Computes and writes parts of one job.

    Args:
        workers: threads that decode.
    """

    def __init__(self, engine: Engine, inputs: Inputs, parts: Parts, workers: int) -> None:
        self.engine, self.inputs, self.parts, self.workers = engine, inputs, parts, workers
        self._schema = embeddings_schema(parts.about)

    def write(self, numbers: Sequence[int]) -> Iterator[tuple[int, float]]:
        """Write these parts, in order; of each, once it is safe, its number and the seconds that the model took.

        Decoding runs ahead, across the ends of parts too; at most ``workers + AHEAD`` batches are in memory.
        """
        job = self.parts.job
        spans = (
            (number, start, min(start + job.batch_size, job.span(number)[1]))
            for number in numbers
            for start in range(*job.span(number), job.batch_size)
        )
        rows = Rows()
        for number, stop, batch in self._decoded(spans):
            started = time.perf_counter()
            found, faults = self._embed(batch.crops)
            rows.seconds += time.perf_counter() - started
            rows.add(batch, found, faults)
            if stop == job.span(number)[1]:
                fingerprint = self.engine.info.fingerprint
                embeddings = np.concatenate(rows.embeddings)
                self.parts.write(number, embeddings_table(self._schema, rows.ids, embeddings, rows.errors, fingerprint))
                yield number, rows.seconds
                rows = Rows()

    def _decoded(self, spans: Iterator[tuple[int, int, int]]) -> Iterator[tuple[int, int, Batch]]:
        """``(part, end, batch)`` of every span, read by one thread and decoded by others ahead of who asks."""
        pending: deque[tuple[int, int, Future[Batch]]] = deque()
        reader, pool = ThreadPoolExecutor(1, "read"), ThreadPoolExecutor(self.workers, "decode")
        try:
            for number, start, stop in spans:
                opened = reader.submit(self.inputs.open, start, stop)
                pending.append((number, stop, pool.submit(self._decode, opened)))
                if len(pending) >= self.workers + AHEAD:
                    number, stop, future = pending.popleft()
                    yield number, stop, future.result()
            while pending:
                number, stop, future = pending.popleft()
                yield number, stop, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
            reader.shutdown(cancel_futures=True)

    def _decode(self, opened: Future[Callable[[], list[Item]]]) -> Batch:
        ids: list[str] = []
        errors: list[str | None] = []
        crops: list[np.ndarray] = []
        for name, data in opened.result()():
            ids.append(name)
            try:
                if isinstance(data, str):
                    raise InputError(data)
                crops.append(self.engine.decode(data))
                errors.append(None)
            except InputError as error:
                errors.append(str(error))
        size = self.engine.info.preprocess.size
        return Batch(ids, errors, np.stack(crops) if crops else np.zeros((0, size, size, 3), np.uint8))

    def _embed(self, crops: np.ndarray) -> tuple[np.ndarray, list[str | None]]:
        """Unit rows of uint8 ``[B,H,W,3]``, and the error of each whose numbers are not finite, found by bisection."""
        try:
            return self.engine.embed_images(crops, batch_size=max(len(crops), 1)), [None] * len(crops)
        except BackendError as error:
            if len(crops) == 1:
                return np.zeros((1, self.engine.info.dim), np.float32), [str(error)]
        halves = [self._embed(crops[: len(crops) // 2]), self._embed(crops[len(crops) // 2 :])]
        return np.concatenate([rows for rows, _ in halves]), [fault for _, faults in halves for fault in faults]
