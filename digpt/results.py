"""What an evaluation leaves behind: the versioned results document and its schema.

    document = ResultsDocument(model=ModelRef.of(engine.info), protocol=with_fingerprint(protocol), results=results)
    write_results(document, "runs/eval/results.json")
    document = read_results("runs/eval/results.json")

``docs/results.md`` explains every field, `digpt.results_table` prints it. A document holds no time, speed or version,
so that two runs of one protocol on one model write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema

from digpt.artifact import atomic_json, canonical_json
from digpt.errors import DataError
from digpt.runtime.base import RuntimeInfo

SCHEMA_VERSION = 3
RESULTS_NAME = "results.json"

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
    """The model that was asked; its preprocessing and templates stand here, for they are not the protocol's.

    ``classifier`` is what answered for the classes: ``linear head``, ``zero-shot``, or None where none did. ``engine``
    is the hash of an artifact's files that computed; None where the weights did, and before version 3.
    """

    __pydantic_config__ = _STRICT

    spec: _Word
    fingerprint: _Word
    backend: _Word
    name: str
    precision: str
    has_text: bool
    preprocess: dict[str, Any]
    templates: tuple[str, ...]
    classifier: str | None
    engine: str | None = None

    @classmethod
    def of(cls, info: RuntimeInfo, classifier: str | None = None) -> ModelRef:
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
            classifier=classifier,
            engine=info.engine,
        )


def other_answers(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """How two records of one model (`ModelRef` as a mapping) were made to answer differently: ``crop_pct 1.0 / 0.875``.

    Options such as ``--crop-pct`` and ``--templates`` change the answers of a model, not its fingerprint.
    """
    a, b = one["preprocess"], other["preprocess"]
    found = [f"{name} {a.get(name)} / {b.get(name)}" for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
    if list(one["templates"]) != list(other["templates"]):
        found.append(f"templates ({len(one['templates'])} / {len(other['templates'])})")
    return found


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
    if version < SCHEMA_VERSION:
        older = cast(Mapping[str, Any], values)
        values = {**(_from_version_1(older) if version < 2 else older), "schema_version": SCHEMA_VERSION}
    try:
        document = _ADAPTER.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise DataError(f"{source} is not valid at {where}: {first['msg']}.") from error
    _check(document, source)
    return document


def _from_version_1(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Version 1 named top-1 and top-5 after their classifier, which stands with the model since."""
    rows, model = values.get("results"), values.get("model")
    if isinstance(rows, list) and isinstance(model, Mapping):
        renamed = [
            {**row, "metric": row["metric"].removeprefix("zeroshot_")}
            if isinstance(row, Mapping) and isinstance(row.get("metric"), str)
            else row
            for row in rows
        ]
        asked = any(row != before for row, before in zip(renamed, rows, strict=True))
        return {**values, "results": renamed, "model": {"classifier": "zero-shot" if asked else None, **model}}
    return values


def write_results(document: ResultsDocument, path: str | Path) -> Path:
    """Write the checked document atomically, creating the directory; return the path. Errors as `from_json`."""
    path = Path(path)
    values = to_json(document)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_json(path, values, shared=True)
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
