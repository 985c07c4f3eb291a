"""What an evaluation leaves behind: the versioned results document, its schema, and its table.

    document = ResultsDocument(model=ModelRef.of(engine.info), protocol=with_fingerprint(protocol), results=results)
    write_results(document, "runs/eval/results.json")
    Console().print(render(read_results("runs/eval/results.json")))

``docs/results.md`` explains every field. A document holds no time, speed or version, so that two runs of one protocol
on one model write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from digpt.artifact import atomic_json, canonical_json
from digpt.errors import DataError
from digpt.runtime.base import RuntimeInfo

SCHEMA_VERSION = 1
RESULTS_NAME = "results.json"
METHOD_TITLES = {"zeroshot": "zero-shot", "knn": "kNN"}

_FINGERPRINT = r"^sha256:[0-9a-f]{64}$"
_STRICT = ConfigDict(extra="forbid", json_schema_serialization_defaults_required=True)
_Word = Annotated[str, Field(min_length=1)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Protocol = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "description": "Everything that defines the question; `fingerprint` is the sha256 of the rest.",
            "properties": {"name": {"type": "string"}, "fingerprint": {"type": "string", "pattern": _FINGERPRINT}},
            "required": ["name", "fingerprint"],
            "additionalProperties": True,
        }
    ),
]


@dataclass(frozen=True)
class Result:
    """One number. ``value`` and both ends of ``ci95`` are fractions; ``n`` is the number of images behind it."""

    __pydantic_config__ = _STRICT

    dataset: _Word
    split: _Word
    metric: _Word
    value: _Number
    ci95: tuple[_Number, _Number] | None
    n: Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class ModelRef:
    """The model that was asked; its preprocessing and templates stand here, for they are not the protocol's."""

    __pydantic_config__ = _STRICT

    spec: _Word
    fingerprint: _Word
    backend: _Word
    name: str
    precision: str
    has_text: bool
    preprocess: dict[str, Any]
    templates: tuple[str, ...]

    @classmethod
    def of(cls, info: RuntimeInfo) -> ModelRef:
        """Take the part of a runtime's own description that a result needs."""
        return cls(
            spec=info.spec,
            fingerprint=info.fingerprint,
            backend=info.backend,
            name=info.name,
            precision=info.precision,
            has_text=info.has_text,
            preprocess=info.preprocess.to_dict(),
            templates=tuple(info.templates) if info.has_text else (),
        )


@dataclass(frozen=True, kw_only=True)
class ResultsDocument:
    """One model, one protocol, its numbers: the content of ``results.json``."""

    __pydantic_config__ = _STRICT

    schema_version: int = SCHEMA_VERSION
    model: ModelRef
    protocol: _Protocol
    results: tuple[Result, ...]


_ADAPTER: TypeAdapter[ResultsDocument] = TypeAdapter(ResultsDocument)
RESULTS_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **_ADAPTER.json_schema(mode="serialization"),
}


def protocol_fingerprint(protocol: Mapping[str, Any]) -> str:
    """Return ``sha256:<hex>`` of the canonical JSON of ``protocol`` without its ``fingerprint``."""
    content = {key: value for key, value in protocol.items() if key != "fingerprint"}
    return "sha256:" + hashlib.sha256(canonical_json(content)).hexdigest()


def with_fingerprint(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``protocol`` as plain JSON values (tuples become lists) with its fingerprint added."""
    plain = json.loads(json.dumps({**protocol, "fingerprint": ""}, allow_nan=False))
    return {**plain, "fingerprint": protocol_fingerprint(plain)}


def to_json(document: ResultsDocument) -> dict[str, Any]:
    """Return the document as JSON values, after checking it against the schema.

    Raises:
        DataError: as `from_json`.
    """
    values = asdict(document)
    from_json(values)
    return cast(dict[str, Any], json.loads(json.dumps(values)))


def from_json(values: object, source: str = "The results document") -> ResultsDocument:
    """Return the document that JSON ``values`` hold.

    Raises:
        DataError: written by a newer version, not a results document, two rows of one name, or a protocol that is not
            the one its fingerprint was made for.
    """
    version = values.get("schema_version") if isinstance(values, Mapping) else None
    if not isinstance(version, int) or version < 1:
        raise DataError(f"{source} is no results document: it has no schema_version.")
    if version > SCHEMA_VERSION:
        raise DataError(f"{source} has schema version {version}, this program reads up to {SCHEMA_VERSION}; update it.")
    try:
        document = _ADAPTER.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise DataError(f"{source} is not valid at {where}: {first['msg']}.") from error
    _check(document, source)
    return document


def write_results(document: ResultsDocument, path: str | Path) -> Path:
    """Write the checked document atomically, creating the directory; return the path. Errors as `from_json`."""
    path = Path(path)
    values = to_json(document)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_json(path, values)
    return path


def read_results(path: str | Path) -> ResultsDocument:
    """Read a document; ``path`` is the file or the directory that holds ``results.json``.

    Raises:
        DataError: no such file, not JSON, or as `from_json`.
    """
    path = Path(path)
    path = path / RESULTS_NAME if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise DataError(f"There are no results at {path}; an evaluation writes them with --output DIR.") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON (half-written or foreign); run the evaluation again.") from error
    return from_json(values, str(path))


def _refuse_constant(name: str) -> None:
    """NaN and infinity are no JSON, though Python reads them."""
    raise ValueError(name)


def _check(document: ResultsDocument, source: str) -> None:
    """Refuse what the dataclasses cannot express."""
    if not isinstance(document.protocol.get("name"), str):
        raise DataError(f"{source} has a protocol without a name.")
    if document.protocol.get("fingerprint") != protocol_fingerprint(document.protocol):
        raise DataError(f"{source} has a protocol that does not match its fingerprint; it was edited by hand.")
    seen: set[tuple[str, str, str]] = set()
    for result in document.results:
        row = (result.dataset, result.split, result.metric)
        if row in seen:
            raise DataError(f"{source} has two rows for {' / '.join(row)}.")
        if result.ci95 is not None and result.ci95[0] > result.ci95[1]:
            raise DataError(f"{source} has an interval with its ends exchanged for {' / '.join(row)}.")
        seen.add(row)


def render(document: ResultsDocument) -> RenderableType:
    """Return what a console prints: the model, one table per data set and method, and what could not be measured."""
    model, protocol = document.model, document.protocol
    parts: list[RenderableType] = [
        Text(f"{model.name} on {model.backend} {model.precision}, fingerprint {_short(model.fingerprint)}")
    ]
    parts += [_table(title, rows) for title, rows in _grouped(document.results).items()]
    if "zeroshot" in protocol.get("methods", ()) and not model.has_text:
        parts.append("zero-shot: not measured, this model has no text tower")
    parts.append(
        f"values in %, 95 % bootstrap intervals; protocol {protocol['name']} {_short(protocol['fingerprint'])}"
    )
    if protocol.get("limit"):
        parts.append(f"a seeded subset of at most {protocol['limit']} images per split")
    return Group(*parts)


def format_percent(result: Result) -> str:
    """``'66.1 [64.0, 68.3]'``: value and interval in percent, the interval left out where there is none."""
    value = f"{100 * result.value:.1f}"
    return value if result.ci95 is None else f"{value} [{100 * result.ci95[0]:.1f}, {100 * result.ci95[1]:.1f}]"


def _grouped(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results by the title of their table, in order of appearance."""
    tables: dict[str, list[Result]] = {}
    for result in results:
        method = result.metric.partition("_")[0]
        tables.setdefault(f"{result.dataset}, {METHOD_TITLES.get(method, method)}", []).append(result)
    return tables


def _table(title: str, results: list[Result]) -> Table:
    """Splits down, metrics across."""
    metrics = list(dict.fromkeys(result.metric for result in results))
    cells = {(result.split, result.metric): format_percent(result) for result in results}
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("split", no_wrap=True)
    for metric in metrics:
        table.add_column(metric.partition("_")[2].replace("_", " ") or metric, justify="right", no_wrap=True)
    table.add_column("images", justify="right")
    for split, n in {result.split: result.n for result in results}.items():
        table.add_row(split, *(cells.get((split, metric), "") for metric in metrics), str(n))
    return table


def _short(fingerprint: str) -> str:
    return fingerprint[:19]
