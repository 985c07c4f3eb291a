"""Linear probing on stored features: DINOv2's grid of linear heads, all trained at once. Imports without torch.

>>> probes = train_probes({"cls-1": features}, labels, n_classes=1000, config=ProbeConfig())
>>> best = choose(probes)                                    # by accuracy on a held-out part of the training set
>>> logits = best.logits(validation_features)

Source: facebookresearch/dinov2, ``dinov2/eval/linear.py``: SGD with momentum 0.9 and no weight decay, 12,500 iterations
of 1024 images, cosine schedule to 0, 13 learning rates (scaled by batch / 256), weights from a normal distribution of
standard deviation 0.01, biases 0, float32. Deviations: features are extracted once, so the training images are not
augmented (DINOv2 crops and flips them anew each time); and the best head is picked on a stratified part of the
TRAINING set, where DINOv2 picks it on the validation set that it reports.

ImageNet on a ViT-B: the 52 heads of the four feature sets (9216 columns together) hold 120 million weights, 1.0 GB
with their momentum, and one iteration is 0.5 TFLOP. Shapes: N rows, D columns of a feature set, C classes,
L learning rates, B rows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digpt.errors import CheckpointError, ConfigError, DataError
from digpt.files import atomic_write

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many iterations are done, and how many there are."""

LEARNING_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
_CHUNK_ROWS = 4096  # rows whose logits are computed at a time


@dataclass(frozen=True)
class ProbeConfig:
    """The protocol; defaults are DINOv2's. Learning rates are for a batch of 256 and scaled to ``batch_size``."""

    learning_rates: tuple[float, ...] = LEARNING_RATES
    iterations: int = 12_500
    batch_size: int = 1024
    momentum: float = 0.9
    init_std: float = 0.01
    held_out: float = 0.1
    """Share of every class's training rows that chooses the head instead of training it."""
    seed: int = 0

    def __post_init__(self) -> None:
        rates = self.learning_rates
        if not rates or len(set(rates)) != len(rates) or not all(rate > 0 and math.isfinite(rate) for rate in rates):
            raise ConfigError(f"learning_rates must be different numbers above 0, got {list(rates)}.")
        for name in ("iterations", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out={self.held_out} must lie between 0 and 1, such as 0.1.")
        if not 0 <= self.momentum < 1 or self.init_std < 0 or self.seed < 0:
            raise ConfigError("momentum must lie in [0, 1), init_std and seed must not be negative.")


@dataclass(frozen=True, eq=False)
class TrainedProbe:
    """One linear head: ``weight`` float32 ``[C,D]``, ``bias`` float32 ``[C]``, for the feature set ``name``.

    ``learning_rate`` is the one of the grid, for a batch of 256. ``held_out_accuracy`` is top-1 in [0, 1].
    """

    name: str
    learning_rate: float
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    held_out_accuracy: float

    def logits(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Features ``[N,D]`` (a memmap is read in pieces) -> float32 logits ``[N,C]``.

        Raises:
            ValueError: features of another width.
        """
        if features.ndim != 2 or features.shape[1] != self.weight.shape[1]:
            raise ValueError(f"Probe {self.name} takes [N, {self.weight.shape[1]}] features, not {features.shape}.")
        logits = np.empty((len(features), len(self.bias)), np.float32)
        for start in range(0, len(features), _CHUNK_ROWS):
            rows = slice(start, start + _CHUNK_ROWS)
            logits[rows] = features[rows].astype(np.float32) @ self.weight.T + self.bias
        return logits

    def save(self, path: str | Path) -> None:
        """Write the head as npz, all or nothing."""
        arrays: dict[str, Any] = {key: np.asarray(value) for key, value in vars(self).items()}
        atomic_write(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> TrainedProbe:
        """Read what ``save`` wrote.

        Raises:
            CheckpointError: missing, damaged, or no probe.
        """
        held = read_npz(Path(path), "a saved probe")
        try:
            weight, bias = held["weight"].astype(np.float32), held["bias"].astype(np.float32)
            numbers = float(held["learning_rate"]), float(held["held_out_accuracy"])
            probe = cls(str(held["name"]), numbers[0], weight, bias, numbers[1])
        except (KeyError, ValueError, TypeError):
            raise CheckpointError(f"{path} holds no probe; give a file that TrainedProbe.save wrote.") from None
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise CheckpointError(f"{path} holds a probe whose weight and bias do not fit; train it again.")
        return probe


def choose(probes: Sequence[TrainedProbe]) -> TrainedProbe:
    """The probe with the highest held-out accuracy; of equals, the first of the grid.

    Raises:
        ValueError: no probes.
    """
    return max(probes, key=lambda probe: probe.held_out_accuracy)


def held_out_rows(labels: NDArray[np.integer], share: float, seed: int) -> NDArray[np.bool_]:
    """Which rows choose the head: bool ``[N]``, ``share`` of every class, a function of its arguments alone.

    A class of two rows or more gives at least one and keeps at least one; a class of one row keeps it for training.
    """
    order = np.random.default_rng([seed, 0]).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    _, first, inverse, counts = np.unique(labels[order], return_index=True, return_inverse=True, return_counts=True)
    taken = np.clip(np.floor(counts * share + 0.5), 1, np.maximum(counts - 1, 1)) * (counts > 1)
    mask = np.zeros(len(labels), dtype=bool)
    mask[order[np.arange(len(labels)) - first[inverse] < taken[inverse]]] = True
    return mask


def train_probes(
    features: Mapping[str, NDArray[np.floating]],
    labels: NDArray[np.integer],
    n_classes: int,
    config: ProbeConfig | None = None,
    progress: Progress | None = None,
    *,
    state: str | Path | None = None,
    save_every: int = 500,
    threads: int | None = None,
    device: str | None = None,
) -> list[TrainedProbe]:
    """Train one head per feature set and learning rate: ``len(features) * L`` probes, in this order.

    All see the same batches: epochs without replacement, one after the other, keyed by (seed, iteration). Memory is
    that of the heads, one batch and its logits ``[B,L,C]``, however many rows there are.

    Args:
        features: name -> float16 or float32 ``[N,D]``, arrays or memmaps; D may differ.
        labels: int ``[N]`` in ``0..n_classes-1``.
        config: default ``ProbeConfig()``.
        progress: called after every iteration.
        state: file written every ``save_every`` iterations and at the end, all or nothing (for ImageNet 1.0 GB on a
            ViT-B, 1.3 GB on a ViT-L). When it exists, training goes on from there and ends with the very bits of a
            run that was never interrupted (same device and number of threads).
        threads: torch's intra-op threads while this runs; default: as they are.
        device: default ``cuda`` where torch finds one, else ``cpu``.

    A head that diverged (a learning rate too high for the features' scale) does not disturb the others and has
    held-out accuracy 0.

    Raises:
        ConfigError: ``state`` belongs to other features, labels or settings.
        CheckpointError: ``state`` is damaged.
        DataError: features that are not finite, or no class with rows to hold out.
        BackendError: a device that torch has not.
        ValueError: shapes or labels that do not fit.
    """
    from digpt.probe_training import Run, threads_set, torch_device

    config = config or ProbeConfig()
    labels = _checked(features, labels, n_classes)
    mask = held_out_rows(labels, config.held_out, config.seed)
    if not mask.any():
        raise DataError("No class has two training rows, so none can be held out to choose the probe.")
    run = Run(features, labels, n_classes, config, np.flatnonzero(~mask), torch_device(device))
    with threads_set(threads):
        run.train(progress, None if state is None else Path(state), save_every)
        accuracies = run.accuracies(np.flatnonzero(mask))
    return [
        replace(probe, held_out_accuracy=accuracy) for probe, accuracy in zip(run.probes(), accuracies, strict=True)
    ]


def refit(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    n_classes: int,
    chosen: TrainedProbe,
    config: ProbeConfig | None = None,
    progress: Progress | None = None,
    *,
    threads: int | None = None,
    device: str | None = None,
) -> TrainedProbe:
    """Train the chosen setting again on ALL training rows, the held-out ones too; nobody does this unasked.

    ``features`` are those of the set ``chosen.name``; ``held_out_accuracy`` stays that of ``chosen``. Errors and the
    other arguments are those of ``train_probes``.
    """
    from digpt.probe_training import Run, threads_set, torch_device

    config = replace(config or ProbeConfig(), learning_rates=(chosen.learning_rate,))
    named = {chosen.name: features}
    labels = _checked(named, labels, n_classes)
    run = Run(named, labels, n_classes, config, np.arange(len(labels)), torch_device(device))
    with threads_set(threads):
        run.train(progress, None, 1)
    return replace(run.probes()[0], held_out_accuracy=chosen.held_out_accuracy)


def _checked(
    features: Mapping[str, NDArray[np.floating]], labels: NDArray[np.integer], n_classes: int
) -> NDArray[np.int64]:
    checked: NDArray[np.int64] = np.asarray(labels).astype(np.int64)
    if checked.ndim != 1 or not checked.size or checked.min() < 0 or checked.max() >= n_classes:
        raise ValueError(f"Labels must be a list of numbers in 0..{n_classes - 1}.")
    if not features:
        raise ValueError("A probe needs at least one feature set.")
    for name, array in features.items():
        if array.ndim != 2 or len(array) != len(checked):
            raise ValueError(f"Features {name} must be [{len(checked)}, D] like the labels, not {array.shape}.")
    return checked


def read_npz(path: Path, what: str, advice: str = "give another file") -> dict[str, NDArray[Any]]:
    """The arrays of an npz file that must be ``what``; CheckpointError where it is missing or damaged."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except Exception as error:  # numpy, zipfile and zlib raise many unrelated types
        raise CheckpointError(f"{path} cannot be read as {what} ({type(error).__name__}); {advice}.") from None
