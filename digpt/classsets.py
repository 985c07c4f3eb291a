"""Class matrices of zero-shot evaluation, kept on disk by what they were made of. Imports without torch.

>>> cache = ClassMatrixCache()                                   # in default_cache_dir()
>>> matrix = cache.matrix(engine, imagenet_names(), template_set("openai"))
>>> matrix.shape
(1000, 512)

ImageNet's 1000 names in CLIP's 80 templates are 80,000 prompts: minutes on a processor, once per model. Nothing is
ever evicted; a set of 1000 names at width 768 is a file of 3 MB, and the directory may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digpt.engine import Engine
from digpt.errors import InputError
from digpt.files import atomic_write, canonical_json
from digpt.text import class_set_hash

_LOG = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/digpt/class_sets``, or that below ``~/.cache``; read when called.

    A relative ``XDG_CACHE_HOME`` is ignored, as the XDG Base Directory Specification demands.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "digpt" / "class_sets"


class ClassMatrixCache:
    """Text embeddings of class sets as files of ``directory`` (default: ``default_cache_dir()``), one per set.

    The key is the content: labels, templates, the model's fingerprint, and the backend, precision and engine file
    that computed them. A file that is missing, damaged or of another key is computed anew and replaced. Where nothing
    can be written, matrices are computed every time and a warning is logged. Several processes may share a directory.
    Of a running server nothing is kept or taken: its own text tower is measured, and need not be believed later.
    """

    def __init__(self, directory: str | Path | None = None) -> None:
        self.directory = default_cache_dir() if directory is None else Path(directory)

    def matrix(self, engine: Engine, labels: Sequence[str], templates: Sequence[str]) -> NDArray[np.float32]:
        """Labels -> float32 ``[C,D]`` unit rows, as ``engine.class_matrix`` gives them.

        A name that stands for several classes is embedded once; its classes get equal rows.

        Raises:
            CapabilityError: the model has no text tower.
            InputError: no labels, a template without ``{}``, or a prompt too long.
        """
        unique = list(dict.fromkeys(_strings("labels", labels)))
        row_of = {name: row for row, name in enumerate(unique)}
        if engine.info.remote:
            return engine.class_matrix(unique, templates)[[row_of[name] for name in labels]]
        path = self.path(engine, unique, _strings("templates", templates))
        rows = _read(path, (len(unique), engine.info.dim))
        if rows is None:
            rows = engine.class_matrix(unique, templates)
            _write(path, rows)
        return rows[[row_of[name] for name in labels]]

    def path(self, engine: Engine, labels: Sequence[str], templates: Sequence[str]) -> Path:
        """Where the matrix of these unique ``labels`` lies, whether it is there or not."""
        info = engine.info
        content = [class_set_hash(labels, templates, info.fingerprint), info.backend, info.precision]
        content += [info.engine] if info.engine else []
        return self.directory / f"{hashlib.sha256(canonical_json(content)).hexdigest()}.npz"


def restricted(matrix: NDArray[np.float32], classes: Sequence[int]) -> NDArray[np.float32]:
    """The rows of ``matrix`` ``[C,D]`` for a subset of its classes: float32 ``[K,D]`` in the order of ``classes``.

    For ImageNet-A and -R, whose 200 classes are all that a model may answer: column ``k`` of the scores is then
    class ``classes[k]``.

    Raises:
        ValueError: no classes, one twice, or one outside ``0..C-1``.
    """
    rows = np.asarray(classes, dtype=np.int64)
    if rows.ndim != 1 or not rows.size or rows.min() < 0 or rows.max() >= len(matrix):
        raise ValueError(f"Classes must be a list of numbers in 0..{len(matrix) - 1}.")
    if len(np.unique(rows)) != len(rows):
        raise ValueError("Classes must differ from each other.")
    return matrix[rows]


def _strings(what: str, values: Sequence[str]) -> Sequence[str]:
    if isinstance(values, str):
        raise InputError(f"{what} must be a list of strings.")
    return values


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """The matrix of a file, or None where it is not one of ours for this key: the zip's checksum finds damage."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            matrix, key = archive["matrix"], str(archive["key"])
    except Exception:  # numpy, zipfile and zlib raise many unrelated types for what is no file of ours
        return None
    fits = key == path.stem and matrix.dtype == np.float32 and matrix.shape == shape and np.isfinite(matrix).all()
    return matrix if fits else None


def _write(path: Path, matrix: NDArray[np.float32]) -> None:
    try:
        atomic_write(path, lambda file: np.savez(file, matrix=matrix, key=np.array(path.stem)), shared=True)
    except OSError as error:
        _LOG.warning("The class matrix could not be kept in %s: %s", path.parent, error)
