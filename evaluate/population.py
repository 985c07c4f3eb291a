"""The standard models that effective robustness is measured against: their published accuracies, read from files.

    population = read_population(Path("pytorch-image-models/results"))     # timm's own tables
    population = read_population(Path("population.csv"))                   # what scripts/population.py wrote

timm publishes the accuracies of all its checkpoints (huggingface/pytorch-image-models, ``results/``, Apache-2.0). They
are data of others and not part of this package, but for the few that `evaluate.verify` checks an evaluation with
(`shipped_population`): give the report a checkout of that repository for all of them.

Shapes: M models.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digpt.errors import DataError
from digpt.files import atomic_write
from evaluate.references import REFERENCES

CLEAN = "imagenet"
SHIFTED = ("imagenet-v2", "imagenet-real", "imagenet-a", "imagenet-r", "imagenet-sketch")
SETS = (CLEAN, *SHIFTED)
STANDARD = "imagenet-1k"
# timm's file of each set. The columns for A and R hold the accuracy among their 200 classes, as this package's rows do;
# `results-imagenet-a-clean.csv` and `-r-clean.csv` (clean images among the 200 classes) are not used: the clean
# accuracy is that of all 1000 classes for every set, so that one model has one place on the horizontal axis.
TIMM_FILES = {
    "imagenet": "results-imagenet.csv",
    "imagenet-v2": "results-imagenetv2-matched-frequency.csv",
    "imagenet-real": "results-imagenet-real.csv",
    "imagenet-a": "results-imagenet-a.csv",
    "imagenet-r": "results-imagenet-r.csv",
    "imagenet-sketch": "results-sketch.csv",
}
TIMM = "timm's published results (huggingface/pytorch-image-models, Apache-2.0)"
_TAG = re.compile(r"(?:^|_)in1k(?:_\d+)?$")
# Names of other training data, of teachers that saw more, and of adversarial training, in an architecture or a tag.
_OTHERWISE = re.compile(
    r"in12k|in21k|in22k|jft|ig1b|yfcc|laion|openai|clip|webli|m30m|m38m|swag|seer"  # data, labelled or not
    r"|ssld|goog_distilled|beitv2|beit3"  # learned from a teacher or tokenizer that saw other data
    r"|(?:^|[._])(?:ap|adv|ens_adv)_in1k"  # AdvProp and adversarial training
)
_HEADER = ("model", "trained_on", *SETS)


@dataclass(frozen=True)
class Population:
    """``models`` ``[M]`` and their top-1 by set, fractions ``[M]``; NaN where a set was not measured."""

    models: tuple[str, ...]
    top1: Mapping[str, NDArray[np.float64]]
    source: str

    def __len__(self) -> int:
        return len(self.models)


def is_standard(name: str) -> bool:
    """Whether a timm checkpoint was trained on ImageNet-1K alone and without a robustness objective, by its name.

    The tag (behind the first dot) ends in ``in1k``, a resolution may follow; and the name mentions no other data
    (in12k, in21k, in22k, JFT, IG-1B, YFCC, LAION, OpenAI, CLIP, WebLI, the merged 30M/38M sets, SWAG, SEER), no teacher
    that learned from other data (SSLD, distilled BiT-M, and BEiT v2 and 3, whose tokenizer learned from CLIP) and no
    adversarial training (AdvProp, adv). These are the "standard models" of Taori et al. 2020.
    """
    _, _, tag = name.partition(".")
    return bool(_TAG.search(tag)) and not _OTHERWISE.search(name)


def shipped_population() -> Population:
    """The timm checkpoints whose figures `evaluate.references` verifies with: few, and not all of them standard models.

    Four of the seven saw ImageNet-21K, or learned from a tokenizer that learned from CLIP. Enough for a first look at
    where a model lies; give timm's own tables for a figure to publish.
    """
    rows = {name.removeprefix("timm:"): ref.top1 for name, ref in REFERENCES.items() if name.startswith("timm:")}
    top1 = {name: np.array([figures[name] / 100 for figures in rows.values()]) for name in SETS}
    return Population(tuple(rows), top1, f"{len(rows)} timm checkpoints, four of which saw more than ImageNet-1K")


def read_population(path: Path) -> Population:
    """Read timm's tables in the directory ``path``, or the CSV file that `write_population` wrote.

    Raises:
        DataError: neither is there, a column is missing, or a value is no percentage.
    """
    rows, source = (_from_timm(path), TIMM) if path.is_dir() else (_from_csv(path), path.name)
    kept = [(name, values) for name, values in rows if CLEAN in values]
    if len(kept) < 3:
        raise DataError(f"{path} holds {len(kept)} standard models with an ImageNet accuracy; a line needs at least 3.")
    top1 = {name: np.array([values.get(name, np.nan) for _, values in kept]) for name in SETS}
    return Population(tuple(name for name, _ in kept), top1, source)


def write_population(population: Population, path: Path, *, comment: str = "") -> None:
    """Write percentages as CSV under ``#`` lines of ``comment``, all or nothing."""
    buffer = io.StringIO()
    for line in comment.splitlines():
        buffer.write(f"# {line}\n")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_HEADER)
    for row, model in enumerate(population.models):
        values = [100 * population.top1[name][row] for name in SETS]
        writer.writerow([model, STANDARD, *("" if np.isnan(value) else f"{value:.2f}" for value in values)])
    atomic_write(path, buffer.getvalue().encode())


def _from_timm(root: Path) -> list[tuple[str, dict[str, float]]]:
    """Where a checkpoint was measured at two resolutions, the lower one counts: the one it was trained at."""
    found: dict[str, dict[str, float]] = {}
    sizes: dict[str, int] = {}
    for dataset, file in TIMM_FILES.items():
        for row in _rows(root / file, ("model", "img_size", "top1")):
            name = row["model"]
            if not is_standard(name):
                continue
            size = int(_figure(row["img_size"], root / file, name))
            value = _fraction(row["top1"], root / file, name)
            if dataset == CLEAN and size < sizes.get(name, size + 1):
                sizes[name] = size
                found[name] = {CLEAN: value}
            elif dataset != CLEAN and size == sizes.get(name):
                found[name][dataset] = value
    return sorted(found.items())


def _from_csv(path: Path) -> list[tuple[str, dict[str, float]]]:
    rows = (row for row in _rows(path, _HEADER) if row["trained_on"] == STANDARD)
    return [
        (row["model"], {name: _fraction(row[name], path, row["model"]) for name in SETS if row[name]}) for row in rows
    ]


def _rows(path: Path, columns: Iterable[str]) -> Iterator[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: give the folder results/ of a checkout of huggingface/pytorch-image-models, or "
            "what scripts/population.py wrote from it."
        ) from error
    reader = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}; its columns: {', '.join(reader.fieldnames or ())}.")
    for row in reader:
        yield {key: value or "" for key, value in row.items() if isinstance(key, str)}


def _figure(text: str, path: Path, model: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{path} has {text!r} where {model} should have a number.") from None


def _fraction(text: str, path: Path, model: str) -> float:
    value = _figure(text, path, model)
    if not 0 <= value <= 100:
        raise DataError(f"{path} gives {model} {value}, which is no percentage.")
    return value / 100
