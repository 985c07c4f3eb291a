"""Batches of photographs and of image-text pairs from disk, each a pure function of its step; and for evaluation.

Which samples a step has, their crops and what they are mixed with follow from (seed, epoch, index) and the row in the
global batch: the same at any number of processes, micro-batches and loader workers, and after any resumption.
"""

from __future__ import annotations

import itertools
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from digpt.data.images import ImageSource
from digpt.data.pairs import PairSource
from digpt.data.source import SampleError, Source
from digpt.errors import (
    ConfigError,
    DataError,
    DigptError,
    ImageTooLargeError,
    InputError,
    UnsupportedFormatError,
)
from digpt.preprocess import Preprocess
from train.keyed import WindowedOrder, keeping_generators, keyed_permutations, keyed_uniform, sample_stream
from train.photo_augment import CropConfig, FinetuneAugment, PhotoAugment, check_pairs, mix
from train.share import Share

SPARE = 4  # uniforms handed on with each sample, as with the bundled data
ATTEMPTS = 16  # samples tried for one place in a batch
SHOWN = 3  # problems a message names
_BEFORE_STOPPING = 100  # samples after which the share of bad ones counts


@dataclass(frozen=True)
class LoaderConfig:
    """How images are read. Only ``window`` changes which samples a step has; the others change speed alone.

    ``workers``: processes that decode, 0 for none. ``prefetch``: micro-batches that each keeps ready. ``window``:
    shards that are shuffled together. ``max_errors``: share of unusable samples at which training stops.
    ``pin_memory``: copy to page-locked memory, from where a GPU reads while it computes.
    """

    workers: int = 4
    prefetch: int = 2
    window: int = 16
    max_errors: float = 0.1
    pin_memory: bool = True

    def __post_init__(self) -> None:
        if self.workers < 0 or self.prefetch < 1 or self.window < 1:
            raise ConfigError("workers must not be negative; prefetch and window must be at least 1.")
        if not 0 <= self.max_errors <= 1:
            raise ConfigError(f"max_errors={self.max_errors} is a share: from 0 to 1.")


@dataclass(frozen=True)
class PhotoBatch:
    """Some rows of a global batch; ``epochs``, ``items``, ``step`` and ``first`` say which, as in `train.data.Batch`.

    Attributes:
        images: ``[B,3,S,S]``, uint8 (until `to` makes it float32 in [0, 1]), or float32 and normalised for finetuning.
        labels: int64 ``[B]``; -1 for image-text pairs.
        draws: float32 ``[B,4]`` keyed uniforms.
        targets: float32 ``[B,C]`` soft labels when the images are mixed or the labels smoothed, else None.
        texts: the captions of image-text pairs, else None.
        errors: how many samples could not be used and were replaced, by kind; ``problems`` describes the first.
    """

    images: Tensor
    labels: Tensor
    draws: Tensor
    epochs: NDArray[np.int64]
    items: NDArray[np.int64]
    step: int
    first: int
    targets: Tensor | None = None
    texts: list[str] | None = None
    errors: dict[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def permutations(self, seed: int, size: int, orders: int = 1) -> Tensor:
        """``orders`` permutations of ``range(size)`` per sample, int64 ``[B*orders,size]``, keyed like the rest."""
        return torch.from_numpy(keyed_permutations(seed, self.epochs, self.items, size, orders))

    def to(self, device: torch.device) -> PhotoBatch:
        """The same batch on ``device``, uint8 images as float32 in [0, 1]: a quarter of the bytes travel."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, images=moved.images / 255) if moved.images.dtype == torch.uint8 else moved

    def pin_memory(self) -> PhotoBatch:
        """The same batch in page-locked memory; called by torch's loader."""
        return self._each(Tensor.pin_memory)

    def _each(self, move: Callable[[Tensor], Tensor]) -> PhotoBatch:
        targets = None if self.targets is None else move(self.targets)
        return replace(
            self, images=move(self.images), labels=move(self.labels), draws=move(self.draws), targets=targets
        )


@dataclass(frozen=True)
class Request:
    """The rows of one micro-batch, before they are read."""

    step: int
    first: int
    epochs: NDArray[np.int64]
    items: NDArray[np.int64]


class Reader(Dataset[Any]):
    """Reads one request; runs in the loader's processes."""

    def __init__(self, source: ImageSource | PairSource, augment: PhotoAugment, num_classes: int | None) -> None:
        self.source, self.augment, self.num_classes = source, augment, num_classes

    def __getitem__(self, request: Request) -> PhotoBatch | DigptError:
        try:
            return self._batch(request)
        except DigptError as error:
            return error  # torch would wrap it in a traceback; the parent raises it as it is

    def _batch(self, request: Request) -> PhotoBatch:
        errors: Counter[str] = Counter()
        problems: list[str] = []
        with keeping_generators():
            keys = zip(request.epochs.tolist(), request.items.tolist(), strict=True)
            samples = [self._sample(epoch, index, errors, problems) for epoch, index in keys]
        images = torch.stack([image for image, _ in samples])
        texts = [said for _, said in samples if isinstance(said, str)] or None
        labels = torch.tensor([-1 if isinstance(said, str) else said for _, said in samples])
        draws = torch.from_numpy(keyed_uniform(self.augment.seed, request.epochs, request.items, SPARE))
        targets = None
        if isinstance(self.augment.config, FinetuneAugment) and self.num_classes is not None:
            images, targets = mix(
                images,
                labels,
                seed=self.augment.seed,
                step=request.step,
                first_row=request.first,
                config=self.augment.config,
                num_classes=self.num_classes,
            )
        place = (request.epochs, request.items, request.step, request.first)
        return PhotoBatch(images, labels, draws, *place, targets, texts, dict(errors), tuple(problems[:SHOWN]))

    def _sample(self, epoch: int, index: int, errors: Counter[str], problems: list[str]) -> tuple[Tensor, int | str]:
        """An image, and its label or caption. A bad sample is replaced, keeping the place's key."""
        for attempt in range(ATTEMPTS):
            chosen = self.source.neighbour(index, attempt) if attempt else index
            try:
                data, said = self.source.read(chosen)
                return self.augment(data, epoch, index), said
            except (SampleError, InputError) as error:
                errors[_kind(error)] += 1
                named = isinstance(error, SampleError)
                problems.append(str(error) if named else f"{self.source.sample_name(chosen)}: {error}")
        raise DataError(f"{ATTEMPTS} samples of {self.source.name} in a row cannot be used; the last: {problems[-1]}")


def _kind(error: SampleError | InputError) -> str:
    """The words under which a sample that cannot be used is counted."""
    if isinstance(error, SampleError):
        return error.kind
    kinds = {UnsupportedFormatError: "no image format", ImageTooLargeError: "too large"}
    return kinds.get(type(error), "undecodable")


class PhotoTraining:
    """Keyed batches of a labelled source; the interface of `train.data.EmojiTraining`.

    With `FinetuneAugment`, ``num_classes`` makes batches carry mixed and smoothed ``targets``. ``errors`` counts, by
    kind, the samples of this process that had to be replaced since it began.
    """

    def __init__(
        self,
        source: ImageSource | PairSource,
        seed: int,
        batch_size: int,
        augment: CropConfig | FinetuneAugment,
        image_size: int,
        loader: LoaderConfig | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.source: Source = source
        self.seed, self.batch_size = seed, batch_size
        self.loader = loader or LoaderConfig()
        self.mixes = isinstance(augment, FinetuneAugment) and augment.mixes and num_classes is not None
        self.reader = Reader(source, PhotoAugment(augment, image_size, seed), num_classes)
        self.order = None if source.counts is None else WindowedOrder(seed, source.counts, self.loader.window)
        self.errors: Counter[str] = Counter()
        self.seen = 0
        self._problems: list[str] = []

    @property
    def name(self) -> str:
        """The source's."""
        return self.source.name

    @property
    def fingerprint(self) -> str:
        """Of the source's listing, and the window of its shards, which decides the order."""
        return self.source.fingerprint + (f"-window{self.loader.window}" if self.order else "")

    def __len__(self) -> int:
        return len(self.source)

    def notes(self) -> dict[str, float]:
        """Samples replaced so far by this process: ``bad_samples``, and ``bad_samples/KIND`` for each kind."""
        kinds = {f"bad_samples/{kind}": float(count) for kind, count in sorted(self.errors.items())}
        return {"bad_samples": float(self.errors.total()), **kinds} if kinds else {}

    def samples(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(epoch, item), int64 ``[batch_size]`` each, of one step's global batch."""
        if self.order is not None:
            return self.order.stream(step, self.batch_size)
        return sample_stream(step, self.batch_size, len(self), self.seed)

    def pictures(self, count: int) -> Tensor:
        """Some pictures of the first batch, float32 ``[count,3,S,S]`` in [0, 1]; bad ones among them do not count."""
        batch = self.reader[self._request(0, slice(0, min(count, self.batch_size)))]
        if isinstance(batch, DigptError):
            raise batch
        return batch.to(torch.device("cpu")).images

    def batch(self, step: int, rows: slice | None = None) -> PhotoBatch:
        """``rows`` of the batch of one step (default: all), read in this process."""
        return self._received(self.reader[self._request(step, rows or slice(0, self.batch_size))])

    def batches(self, first: int, share: Share) -> Iterator[list[PhotoBatch]]:
        """For every step from ``first`` on, the micro-batches of one process. Closing it ends the loader's processes.

        Raises:
            ConfigError: the batch does not divide among processes and micro-batches, or not in pairs when mixing.
            DataError: too many samples cannot be used, or a loader process was killed.
        """
        parts = share.rows(self.batch_size)
        if self.mixes:
            check_pairs(parts[0].start, parts[0].stop - parts[0].start)
        requests = (self._request(step, rows) for step in itertools.count(first) for rows in parts)
        return self._steps(_run(self.reader, requests, self.loader), len(parts))

    def _steps(self, batches: Iterator[PhotoBatch | DigptError], parts: int) -> Iterator[list[PhotoBatch]]:
        try:
            while True:
                yield [self._received(next(batches)) for _ in range(parts)]
        finally:
            batches.close()  # type: ignore[attr-defined]

    def _request(self, step: int, rows: slice) -> Request:
        epochs, items = self.samples(step)
        return Request(step, rows.start, epochs[rows], items[rows])

    def _received(self, batch: PhotoBatch | DigptError) -> PhotoBatch:
        """Count what had to be replaced, and stop when it is too much."""
        if isinstance(batch, DigptError):
            raise batch
        self.seen += len(batch.items)
        self.errors.update(batch.errors)
        self._problems = [*self._problems, *batch.problems][:SHOWN]
        bad = self.errors.total()
        if self.seen >= _BEFORE_STOPPING and bad > self.loader.max_errors * self.seen:
            raise DataError(
                f"{bad} of {self.seen} samples of {self.source.name} cannot be used, more than max_errors="
                f"{self.loader.max_errors:g} allows; the first: {' '.join(self._problems)}"
            )
        return batch


class PairTraining(PhotoTraining):
    """Keyed batches of image-text pairs: ``texts`` holds the captions."""

    def __init__(
        self,
        source: PairSource,
        seed: int,
        batch_size: int,
        augment: CropConfig,
        image_size: int,
        loader: LoaderConfig | None = None,
    ) -> None:
        super().__init__(source, seed, batch_size, augment, image_size, loader)


class _EvaluationReader(Dataset[Any]):
    """Reads the images of some indices for evaluation: none is replaced."""

    def __init__(self, source: ImageSource, preprocess: Preprocess) -> None:
        self.source, self.preprocess = source, preprocess

    def __getitem__(self, indices: list[int]) -> tuple[Tensor, Tensor] | DigptError:
        images, labels = [], []
        for index in indices:
            try:
                data, label = self.source.read(index)
                images.append(torch.from_numpy(self.preprocess(data)))
            except DigptError as error:
                return DataError(f"{self.source.sample_name(index)} cannot be evaluated: {error}")
            labels.append(label)
        return torch.stack(images), torch.tensor(labels)


def evaluation_batches(
    source: ImageSource, preprocess: Preprocess, batch_size: int, share: Share | None = None, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image once over all processes: uint8 ``[B,S,S,3]`` and int64 labels ``[B]``; the last batch may be short.

    Raises:
        DataError: an image cannot be read, which an accuracy must not hide.
    """
    share = share or Share()
    mine = range(share.rank, len(source), share.world)
    requests = (list(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size))
    for batch in _run(_EvaluationReader(source, preprocess), requests, LoaderConfig(workers=workers)):
        if isinstance(batch, DigptError):
            raise batch
        yield batch


def _run(reader: Dataset[Any], requests: Iterator[Any], config: LoaderConfig) -> Iterator[Any]:
    """The answers to ``requests``, in order; closing the iterator ends the processes."""
    if not config.workers:
        for request in requests:
            yield reader[request]
        return
    with (
        warnings.catch_warnings(),
        _signals_withheld(),
    ):  # how many processes pay is up to the user, who may wait for a network
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        iterator = iter(
            DataLoader(
                reader,
                batch_size=None,
                sampler=requests,
                num_workers=config.workers,
                prefetch_factor=config.prefetch,
                pin_memory=config.pin_memory and torch.cuda.is_available(),
                collate_fn=_as_it_is,
                worker_init_fn=_leave_signals_to_the_parent,
            )
        )
    try:
        yield from iterator
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            "A loader process was killed, usually for want of memory: lower workers or prefetch, or enlarge /dev/shm."
        ) from error
    finally:
        del iterator  # torch ends the processes when nothing refers to it


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def _signals_withheld() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait while processes start: they inherit that, until they ignore both by themselves."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals_to_the_parent(worker: int) -> None:
    """A launcher signals the whole group; the parent then saves, which it cannot when its loader dies first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
