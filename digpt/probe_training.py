"""The training of linear probes: every head of the grid in one matrix product, and a state to resume from.

`digpt.probe` is the door and has the protocol. Shapes: N rows, D columns of a feature set, C classes, L learning
rates, B rows of a batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from digpt.errors import BackendError, ConfigError, DataError
from digpt.files import atomic_write, canonical_json
from digpt.probe import ProbeConfig, Progress, TrainedProbe, read_npz

REFERENCE_BATCH = 256  # the batch size that learning rates are given for
_STATE_FORMAT = "digpt-probe-state-1"


class Heads:
    """The L heads of one feature set, as one matrix: ``weight`` ``[L*C,D]``, head after head."""

    def __init__(self, name: str, width: int, n_classes: int, config: ProbeConfig, device: torch.device) -> None:
        self.name, self.config, self.n_classes = name, config, n_classes
        self.shape = (len(config.learning_rates), n_classes, width)
        weight = np.concatenate([_initial(config, name, rate, (n_classes, width)) for rate in config.learning_rates])
        scaled = [rate * config.batch_size / REFERENCE_BATCH for rate in config.learning_rates]
        self.rates = torch.tensor(scaled, device=device)[:, None, None]
        self.weight = torch.from_numpy(weight).to(device)
        self.bias = torch.zeros(len(weight), device=device)
        self.weight_momentum = torch.zeros_like(self.weight)
        self.bias_momentum = torch.zeros_like(self.bias)

    def logits(self, x: Tensor) -> Tensor:
        """``[B,D]`` -> ``[B,L,C]``."""
        return torch.addmm(self.bias, x, self.weight.T).view(len(x), *self.shape[:2])

    def step(self, x: Tensor, labels: Tensor, factor: float) -> None:
        """One step of SGD on the mean cross-entropy of ``x`` ``[B,D]`` and ``labels`` ``[B]``; rates times ``factor``.

        The gradient of the logits is softmax minus one-hot, so the weights' gradient is one product, which goes
        into the momentum without ever being held: autograd would keep another copy of all heads.
        """
        gradient = self.logits(x).softmax(dim=-1)
        gradient[torch.arange(len(x), device=x.device), :, labels] -= 1
        flat = gradient.div_(len(x)).flatten(1)
        self.weight_momentum.addmm_(flat.T, x, beta=self.config.momentum)
        self.bias_momentum.mul_(self.config.momentum).add_(flat.sum(dim=0))
        self.weight.view(self.shape).addcmul_(self.weight_momentum.view(self.shape), self.rates, value=-factor)
        heads = self.shape[:2]
        self.bias.view(heads).addcmul_(self.bias_momentum.view(heads), self.rates[..., 0], value=-factor)

    def correct(self, x: Tensor, labels: Tensor) -> Tensor:
        """How many rows each head has right: int64 ``[L]``. Logits that are not finite are never right."""
        logits = self.logits(x)
        return ((logits.argmax(dim=-1) == labels[:, None]) & logits.isfinite().all(dim=-1)).sum(dim=0)

    def tensors(self) -> dict[str, Tensor]:
        names = ("weight", "bias", "weight_momentum", "bias_momentum")
        return {name: getattr(self, name) for name in names}


class Run:
    """Features, heads and the rows they train on; ``iteration`` counts those done."""

    def __init__(
        self,
        features: Mapping[str, NDArray[np.floating]],
        labels: NDArray[np.int64],
        n_classes: int,
        config: ProbeConfig,
        rows: NDArray[np.int64],
        device: torch.device,
    ) -> None:
        self.features, self.labels, self.config, self.rows, self.device = features, labels, config, rows, device
        self.heads = [Heads(name, array.shape[1], n_classes, config, device) for name, array in features.items()]
        self.iteration = 0
        self._epoch, self._order = -1, rows

    def train(self, progress: Progress | None, state: Path | None, save_every: int) -> None:
        total = self.config.iterations
        identity = _identity(self.features, self.labels, self.heads[0].n_classes, self.config) if state else ""
        if state is not None and state.exists():
            self._resume(state, identity)
        while self.iteration < total:
            rows = self._batch(self.iteration)
            factor = 0.5 * (1 + math.cos(math.pi * self.iteration / total))
            labels = torch.from_numpy(self.labels[rows]).to(self.device)
            for heads in self.heads:
                heads.step(self._gather(heads.name, rows), labels, factor)
            self.iteration += 1
            if state is not None and (self.iteration % save_every == 0 or self.iteration == total):
                self._save(state, identity)
            if progress is not None:
                progress("linear probe", self.iteration, total)

    def accuracies(self, rows: NDArray[np.int64]) -> list[float]:
        """Top-1 of every head on ``rows``, in the order of ``probes``."""
        counts = [torch.zeros(heads.shape[0], dtype=torch.int64, device=self.device) for heads in self.heads]
        for start in range(0, len(rows), self.config.batch_size):
            chunk = rows[start : start + self.config.batch_size]
            labels = torch.from_numpy(self.labels[chunk]).to(self.device)
            for count, heads in zip(counts, self.heads, strict=True):
                count += heads.correct(self._gather(heads.name, chunk), labels)
        return [int(count) / len(rows) for counted in counts for count in counted]

    def probes(self) -> list[TrainedProbe]:
        found = []
        for heads in self.heads:
            weight, bias = heads.weight.view(heads.shape).cpu().numpy(), heads.bias.view(heads.shape[:2]).cpu().numpy()
            for index, rate in enumerate(self.config.learning_rates):
                found.append(TrainedProbe(heads.name, rate, weight[index].copy(), bias[index].copy(), math.nan))
        return found

    def _batch(self, iteration: int) -> NDArray[np.int64]:
        """The rows of a batch, rising: their order does not matter, and a memmap is read forwards."""
        size = self.config.batch_size
        epochs, places = np.divmod(np.arange(iteration * size, (iteration + 1) * size), len(self.rows))
        return np.sort(np.concatenate([self._shuffled(int(e))[places[epochs == e]] for e in np.unique(epochs)]))

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.config.seed, 1, epoch]).permutation(self.rows)
        return self._order

    def _gather(self, name: str, rows: NDArray[np.int64]) -> Tensor:
        x = np.asarray(self.features[name][rows], dtype=np.float32)
        finite = np.isfinite(x).all(axis=1)
        if not finite.all():
            raise DataError(f"Row {rows[~finite][0]} of the features {name} is not finite; extract them again.")
        return torch.from_numpy(x).to(self.device)

    def _save(self, path: Path, identity: str) -> None:
        arrays: dict[str, Any] = {"identity": np.array(identity), "iteration": np.array(self.iteration)}
        for index, heads in enumerate(self.heads):
            arrays |= {f"{key}_{index}": tensor.cpu().numpy() for key, tensor in heads.tensors().items()}
        atomic_write(path, lambda file: np.savez(file, **arrays))

    def _resume(self, path: Path, identity: str) -> None:
        held = read_npz(path, "the state of a linear probe", advice="delete it to start anew")
        if str(held.get("identity")) != identity:
            raise ConfigError(
                f"{path} is the state of a probe with other features, labels or settings; "
                "delete it or name another file."
            )
        for index, heads in enumerate(self.heads):
            for key, tensor in heads.tensors().items():
                tensor.copy_(torch.from_numpy(held[f"{key}_{index}"]))
        self.iteration = int(held["iteration"])


def _initial(config: ProbeConfig, name: str, rate: float, shape: tuple[int, int]) -> NDArray[np.float32]:
    """A head's first weights, the same whatever else is in the grid."""
    key = hashlib.sha256(canonical_json([config.seed, name, rate])).digest()
    draws = np.random.default_rng(list(key)).standard_normal(shape, dtype=np.float32)
    return draws * np.float32(config.init_std)


def _identity(
    features: Mapping[str, NDArray[np.floating]], labels: NDArray[np.int64], n_classes: int, config: ProbeConfig
) -> str:
    """A hash of what a run is made of; of the features, 64 rows of each set stand for all."""
    digest = hashlib.sha256(labels.tobytes())
    described = {}
    for name, array in features.items():
        described[name] = [*array.shape, str(array.dtype)]
        digest.update(np.ascontiguousarray(array[np.linspace(0, len(array) - 1, 64).astype(int)]).tobytes())
    digest.update(canonical_json([_STATE_FORMAT, list(described.items()), n_classes, asdict(config)]))
    return digest.hexdigest()


def torch_device(name: str | None) -> torch.device:
    """``cuda`` where torch finds one, else ``cpu``, unless named; BackendError for a CUDA device that is not there."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BackendError("torch finds no CUDA device here; use device='cpu'.")
    return torch.device(name)


@contextmanager
def threads_set(count: int | None) -> Iterator[None]:
    """Run a block on ``count`` of torch's threads, which belong to the process; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
