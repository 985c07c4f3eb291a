"""ImageNet's 1000 classes by WordNet id, and the 200 of ImageNet-A and of ImageNet-R. Imports without torch.

>>> wnids()[:2]
('n01440764', 'n01443537')
>>> class_subset("imagenet-a")[:3]
array([ 6, 11, 13])

The tables are timm's (``timm/data/_info``), read as files: importing timm would import torch.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digpt.errors import DataError, MissingDependencyError, near_misses

CLASSES = 1000
VAL_IMAGES = 50_000
_SUBSETS = {"imagenet-a": "a", "imagenet-r": "r"}

Answers = tuple[tuple[int, ...], ...]


@cache
def wnids() -> tuple[str, ...]:
    """The 1000 WordNet ids in sorted order: label ``i`` is ``wnids()[i]``, the order of every torch model.

    Raises:
        MissingDependencyError: timm is not installed.
        DataError: its table is not 1000 sorted ids.
    """
    names = tuple(_shipped("imagenet_synsets.txt").split())
    if len(names) != CLASSES or list(names) != sorted(set(names)):
        raise DataError("timm's imagenet_synsets.txt is not 1000 sorted WordNet ids; install timm again.")
    return names


@cache
def class_numbers() -> Mapping[str, int]:
    """``{wnid: label}``."""
    return {wnid: label for label, wnid in enumerate(wnids())}


@cache
def descriptions() -> tuple[str, ...]:
    """What timm calls the 1000 classes, in the order of ``wnids()``: ``tench, Tinca tinca``. "crane" stands twice.

    Raises:
        MissingDependencyError: timm is not installed.
        DataError: its table lacks one of the classes.
    """
    lines = _shipped("imagenet_synset_to_lemma.txt").splitlines()
    lemmas = dict(line.split("\t", 1) for line in lines if "\t" in line)
    if not all(wnid in lemmas for wnid in wnids()):
        raise DataError("timm's imagenet_synset_to_lemma.txt lacks classes of ImageNet-1K; install timm again.")
    return tuple(lemmas[wnid] for wnid in wnids())


def class_subset(name: str) -> NDArray[np.int64]:
    """The 200 classes of ``imagenet-a`` or ``imagenet-r``: rising indices into ``wnids()``, int64 ``[200]``.

    Raises:
        DataError: another name, or timm's two tables of the set contradict each other.
        MissingDependencyError: timm is not installed.
    """
    return np.array(_subset(name), dtype=np.int64)


@cache
def _subset(name: str) -> tuple[int, ...]:
    if name not in _SUBSETS:
        raise DataError(
            f"{name!r} has no subset of classes; valid: {', '.join(_SUBSETS)}.{near_misses(name, _SUBSETS)}"
        )
    letter = _SUBSETS[name]
    indices = tuple(int(line) for line in _shipped(f"imagenet_{letter}_indices.txt").split())
    synsets = _shipped(f"imagenet_{letter}_synsets.txt").split()
    if len(indices) != 200 or list(indices) != sorted(set(indices)) or [wnids()[i] for i in indices] != synsets:
        raise DataError(f"timm's two tables of the 200 classes of {name} contradict each other; install timm again.")
    return indices


@cache
def shipped_real() -> Answers:
    """The ReaL labels that timm ships: 50,000 lists by file number, 3,163 of them empty.

    Equal to ``real.json`` of google-research/reassessed-imagenet (compared list by list).
    """
    return tuple(tuple(labels) for labels in json.loads(_shipped("imagenet_real_labels.json")))


def _shipped(name: str) -> str:
    """The text of one of timm's tables."""
    spec = importlib.util.find_spec("timm")  # finds the package without running it
    if spec is None or spec.origin is None:
        raise MissingDependencyError("ImageNet's class tables are timm's: pip install timm (digpt depends on it).")
    path = Path(spec.origin).parent / "data" / "_info" / name
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); install timm again.") from None
