"""What a passport is made of: the model's facts, and the files that evaluations and comparisons of it left.

    records = read_records(facts_of("runs/onnx"), [Path("runs/robustness")], Path("runs/drift"), "apache-2.0")

Files of other models are refused, so that no figure stands on the page of a model it does not belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from digpt.errors import DataError
from digpt.exhibits import Exhibits, read_exhibits
from digpt.manifest import engine_hash
from digpt.results import Result, ResultsDocument, read_results
from digpt.results_table import swept
from digpt.shift import Shift
from export.facts import Facts

DRIFT_NAME = "drift.json"
ACCURACIES = ("top1", "miou", "probe_top1")  # what a set is summed up by, the first that it has; else kNN
Build = Literal["this", "other", "unknown"]
_LENIENT = ConfigDict(extra="ignore")


@dataclass(frozen=True)
class EngineDrift:
    """One engine against the reference, as `evaluate.compare` judged it; not ``decided``: too few images to tell."""

    __pydantic_config__ = _LENIENT

    engine: str
    model: dict[str, Any]
    passed: bool
    verdict: str
    predictions_changed: int
    predictions: int
    means: tuple[Shift, ...]
    cells: tuple[Shift, ...]
    decided: bool = True  # before there was that verdict

    @property
    def backend(self) -> str:
        return str(self.model.get("backend"))

    @property
    def build(self) -> str | None:
        """The hash of its file, None where the comparison was made before results recorded it."""
        return self.model.get("engine")


@dataclass(frozen=True)
class Drift:
    """The content of ``drift.json`` that a passport shows."""

    __pydantic_config__ = _LENIENT

    schema_version: int
    reference: dict[str, Any]
    engines: tuple[EngineDrift, ...]


_DRIFT: TypeAdapter[Drift] = TypeAdapter(Drift)


@dataclass(frozen=True)
class Records:
    """All that is known. ``exhibits`` are parallel to ``documents``, None where an evaluation left none."""

    facts: Facts
    documents: Sequence[ResultsDocument]
    exhibits: Sequence[Exhibits | None]
    drift: Drift | None
    license: str

    @property
    def backend(self) -> str:
        """The engine that runs when none is asked for; torch for a checkpoint."""
        return str(self.facts.manifest.get("backend") or "torch")

    def build(self, backend: str, engine: str | None) -> Build:
        """Whether the engine file that answered, by its hash, is the one in here; earlier results do not say."""
        if backend not in (self.facts.engines or {}):
            return "this"
        if engine is None:
            return "unknown"
        return "this" if engine == engine_hash(self.facts.manifest, backend) else "other"

    @property
    def sweeps(self) -> list[tuple[ResultsDocument, str]]:
        """Each sweep of corruptions with its document."""
        return [(document, name) for document in self.documents for name in swept(document.results)]

    def whole_sets(self, document: ResultsDocument) -> list[Result]:
        """The figure that sums up each whole set of a document."""
        chosen: dict[tuple[str, str], Result] = {}
        for result in document.results:
            key = result.dataset, result.split
            summary = result.metric in ACCURACIES or result.metric.startswith("knn_top1")
            if summary and "/" not in result.split and key not in chosen:
                chosen[key] = result
        return list(chosen.values())


def read_records(facts: Facts, results: Sequence[Path], drift: Path | None, license: str) -> Records:
    """Read what lies at ``results`` (with the exhibits beside them) and ``drift``.

    Raises:
        DataError: missing, damaged, or of another model.
    """
    documents = [read_results(path) for path in results]
    exhibits = [read_exhibits(path) for path in results]
    for document, shown in zip(documents, exhibits, strict=True):
        _refuse_other(facts, f"The results of {document.model.spec}", document.model.fingerprint)
        if shown is not None and shown.protocol != document.protocol["fingerprint"]:
            raise DataError(
                f"The exhibits beside the results of {document.model.spec} are those of another evaluation: run it "
                "again with the same --output, which continues and writes both."
            )
        if shown is not None:
            _refuse_other(facts, f"The exhibits beside the results of {document.model.spec}", shown.model)
    found = None if drift is None else read_drift(drift)
    if found is not None:
        _refuse_other(facts, f"The drift report {drift}", str(found.reference.get("fingerprint")))
    return Records(facts, documents, exhibits, found, license)


def read_drift(path: Path) -> Drift:
    """Read what ``evaluate.compare --same`` wrote; ``path`` is the file or its directory.

    Raises:
        DataError: missing or damaged.
    """
    path = path / DRIFT_NAME if path.is_dir() else path
    try:
        return _DRIFT.validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"There is no drift report at {path}; python -m evaluate.compare --same writes one.") from error
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "document"
        raise DataError(f"{path} is no drift report of evaluate.compare --same (at {where}).") from error


def _refuse_other(facts: Facts, what: str, fingerprint: str) -> None:
    if fingerprint != facts.fingerprint:
        raise DataError(
            f"{what} are those of {fingerprint[:19]}, and {facts.spec} is {facts.fingerprint[:19]}: "
            "give results of this very model."
        )
