"""Parquet files of embeddings: their columns, what they say about the model, and reading them with that checked.

>>> about = about_files(["photos.parquet"], fingerprint=engine.info.fingerprint)
>>> for ids, embeddings in read_embeddings(["photos.parquet"]):
...     index.add(embeddings)

Columns: ``id`` (string), ``embedding`` (``fixed_size_list<float32>``, null where the input could not be embedded),
``fingerprint`` of the weights that gave it (string), ``error`` (string, null where there is an embedding).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from digpt.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from digpt.runtime.base import RuntimeInfo

KEY = b"digpt"  # of the schema's metadata
FORMAT = "digpt-embeddings"
VERSION = 1
BATCH_ROWS = 16_384


@dataclass(frozen=True)
class About:
    """What a file of embeddings says about itself.

    ``job`` identifies the input and the settings (a hash), ``digpt`` is the version that wrote the file,
    ``normalized`` whether every embedding has length 1.
    """

    model: str
    spec: str
    fingerprint: str
    backend: str
    precision: str
    preprocess: dict[str, Any]
    dim: int
    job: str
    normalized: bool = True
    digpt: str = ""

    @classmethod
    def of(cls, info: RuntimeInfo, job: str) -> About:
        """What files say whose embeddings come from the runtime of ``info``."""
        try:
            version = metadata.version("digpt")
        except metadata.PackageNotFoundError:  # run from a checkout that was never installed
            version = "unknown"
        return cls(
            model=info.name,
            spec=info.spec,
            fingerprint=info.fingerprint,
            backend=info.backend,
            precision=info.precision,
            preprocess=info.preprocess.to_dict(),
            dim=info.dim,
            job=job,
            digpt=version,
        )


def embeddings_schema(about: About) -> pa.Schema:
    """The columns of a file, with ``about`` as their metadata."""
    import pyarrow as pa

    said = {"format": FORMAT, "version": VERSION, **asdict(about)}
    columns = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32(), about.dim)),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("error", pa.string()),
    ]
    return pa.schema(columns, metadata={KEY: json.dumps(said, ensure_ascii=False)})


def embeddings_table(
    schema: pa.Schema, ids: Sequence[str], embeddings: np.ndarray, errors: Sequence[str | None], fingerprint: str
) -> pa.Table:
    """Rows as a table: ``embeddings`` float32 ``[N,D]``, of which those count whose error is None."""
    import pyarrow as pa

    failed = np.array([error is not None for error in errors], dtype=bool)
    values = pa.array(np.ascontiguousarray(embeddings, np.float32).reshape(-1))
    columns = [
        pa.array(ids, pa.string()),
        pa.FixedSizeListArray.from_arrays(values, type=schema.field("embedding").type, mask=pa.array(failed)),
        pa.array([fingerprint] * len(ids), pa.string()),
        pa.array(errors, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def read_about(path: str | Path) -> About:
    """What one file says about itself; reads its last bytes only.

    Raises:
        DataError: missing, no Parquet file, or one that holds no embeddings of digpt.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        held = (pq.read_schema(path).metadata or {}).get(KEY)
        said = json.loads(held) if held else {}
    except FileNotFoundError:
        raise DataError(f"There is no {path}.") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}).") from None
    if said.get("format") != FORMAT:
        raise DataError(f"{path} holds no embeddings that digpt wrote; make some: python -m serve.offline INPUT OUT.")
    if said["version"] > VERSION:
        raise DataError(f"{path} was written by a newer digpt; upgrade this one.")
    return About(**{field.name: said[field.name] for field in fields(About)})


def about_files(paths: Sequence[str | Path], *, fingerprint: str | None = None) -> About:
    """What several files say alike, if they come from the same weights.

    Args:
        fingerprint: of the model that is going to ask; None if any will do.

    Raises:
        DataError: no files, files of different weights, or of other weights than ``fingerprint``.
    """
    if not paths:
        raise DataError("There are no files of embeddings to read.")
    found = [read_about(path) for path in paths]
    for path, about in zip(paths, found, strict=True):
        if fingerprint is not None and about.fingerprint != fingerprint:
            raise DataError(
                f"{path} comes from {about.spec} with fingerprint {about.fingerprint}, not from {fingerprint}: "
                "distances between the two mean nothing. Load that model, or embed again."
            )
        if about.fingerprint != found[0].fingerprint:
            raise DataError(
                f"{path} comes from other weights ({about.fingerprint}) than {paths[0]} ({found[0].fingerprint}): "
                "embeddings of two models do not belong in one index."
            )
    return found[0]


def read_embeddings(
    paths: Sequence[str | Path], *, fingerprint: str | None = None, batch_rows: int = BATCH_ROWS
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Ids and embeddings float32 ``[B,D]``, ``batch_rows`` rows of a file at a time; rows without one are left out.

    Raises:
        DataError: as `about_files`, or a row that comes from other weights than its file says.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    expected = about_files(paths, fingerprint=fingerprint).fingerprint
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_rows, columns=["id", "embedding", "fingerprint"]):
                others = [value for value in pc.unique(batch["fingerprint"]).to_pylist() if value != expected]
                if others:
                    raise DataError(f"{path} mixes embeddings of {expected} and {others[0]}; embed its input again.")
                kept = batch.filter(pc.is_valid(batch["embedding"]))
                column = kept["embedding"]
                values = column.flatten().to_numpy(zero_copy_only=False)
                yield kept["id"].to_pylist(), values.reshape(len(column), column.type.list_size)
