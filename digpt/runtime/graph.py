"""What every engine of an artifact does around its graphs: checked inputs, tokens, capabilities, padded crops.

A backend's own file says how one file becomes a :class:`Graph`; everything else is here, once.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from digpt.errors import BackendError, InputError
from digpt.runtime.artifact import Artifact, check_identity, open_artifact
from digpt.runtime.base import (
    Golden,
    check_images,
    check_pictures,
    no_logits,
    no_patch_tokens,
    no_pixels,
    no_text,
)

IDENTITY_KEY = "digpt.identity"  # under which every engine's file carries what decides its answers


@dataclass(frozen=True)
class Graph:
    """One loaded file of an engine.

    ``run`` takes the name of an output and the rows of the one input (uint8 ``[B,H,W,3]``, int64 ``[N,L]``), and gives
    float32. ``identity`` is the JSON that the file carries, ``providers`` what really executes it.
    """

    run: Callable[[str, np.ndarray], np.ndarray]
    identity: str | None
    providers: tuple[str, ...]


class GraphRuntime(ABC):
    """One engine of an artifact directory; subclasses say how to open a file.

    Args:
        directory: as ``python -m export`` wrote it; every file is compared with its recorded hash first.
        backend: the engine, a key of the manifest's ``engines``.
        threads: threads of the computation, by default one for each CPU that this process may use.

    Raises:
        CheckpointError: a file, the format or what decides answers is not what was exported.
        BackendError: the backend cannot load the engine.
    """

    def __init__(self, directory: Path, backend: str, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise BackendError(f"threads={threads} is not a positive number.")
        threads = threads or available_cpus()
        artifact = open_artifact(Path(directory), backend)
        image = self._checked(artifact, artifact.image, threads)
        files = {"text": artifact.text, "segment": artifact.segment}
        opened = {name: self._checked(artifact, path, threads) for name, path in files.items() if path is not None}
        self._graphs = {"image": image, **opened}
        self._tokenizer = None if artifact.text is None else artifact.tokenizer()
        self.golden: Golden | None = artifact.golden
        self.info = artifact.info(providers=image.providers, threads=threads, versions=self._versions())

    def _checked(self, artifact: Artifact, path: Path, threads: int) -> Graph:
        """A graph of a file that carries the identity which the manifest states."""
        graph = self._open(artifact, path, threads)
        check_identity(artifact, path, graph.identity)
        return graph

    @abstractmethod
    def _open(self, artifact: Artifact, path: Path, threads: int) -> Graph:
        """Load ``path``; BackendError when the library refuses it."""

    @abstractmethod
    def _versions(self) -> dict[str, str]:
        """The version of every library that computes."""

    def embed(self, images: np.ndarray) -> np.ndarray:
        return self._run("image", "embedding", check_images(images, self.info.preprocess.size))

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        if self._tokenizer is None:
            raise no_text(self.info)
        return self._run("text", "embedding", self._tokenizer(texts))

    def logits(self, images: np.ndarray) -> np.ndarray:
        if self.info.head != "linear":
            raise no_logits(self.info)
        return self._run("image", "logits", check_images(images, self.info.preprocess.size))

    def patch_tokens(self, images: np.ndarray) -> np.ndarray:
        if not self.info.patch_tokens:
            raise no_patch_tokens(self.info)
        return self._run("image", "patch_tokens", check_images(images, self.info.preprocess.size))

    def pixel_logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 ``[B,H,W,3]``, sides up to the segmenter's crop -> float32 ``[B,K,H,W]``.

        The graph takes whole crops: smaller pictures are padded on the right and below with the mean colour, in grey
        levels, and the logits are cut. Torch pads to the patch alone, so the two differ there, and agree on crops.

        Raises:
            InputError: a side beyond the crop, which sliding windows never have.
        """
        if self.info.head != "upernet":
            raise no_pixels(self.info)
        images, preprocess = check_pictures(images), self.info.preprocess
        (height, width), crop = images.shape[1:3], preprocess.size
        if max(height, width) > crop:
            raise InputError(
                f"{self.info.name} on {self.info.backend} takes up to {crop} x {crop} pixels at once, not {width} x "
                f"{height}: segment in mode 'slide' with crop={crop}, or use the checkpoint on the torch backend."
            )
        padded = np.empty((len(images), crop, crop, 3), np.uint8)
        padded[:] = np.rint(255 * np.array(preprocess.mean))
        padded[:, :height, :width] = images
        return self._run("segment", "pixel_logits", padded)[:, :, :height, :width]

    def close(self) -> None:
        """Release the graphs; a closed runtime cannot be used again."""
        self._graphs = {}

    def _run(self, name: str, output: str, rows: np.ndarray) -> np.ndarray:
        graph = self._graphs.get(name)
        if graph is None:
            raise BackendError(f"{self.info.name} was closed; load it again.")
        return np.asarray(graph.run(output, rows), dtype=np.float32)


def available_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
