"""Files of embeddings: what they say about themselves, and that weights are never mixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from digpt.embeddings_file import About, about_files, embeddings_schema, embeddings_table, read_about, read_embeddings
from digpt.errors import DataError
from digpt.runtime.fake import FakeRuntime

INFO = FakeRuntime(dim=4).info
ROWS = np.arange(20, dtype=np.float32).reshape(5, 4)


def table(fingerprint: str = INFO.fingerprint, first: int = 0) -> pa.Table:
    """Five rows, the second without an embedding."""
    about = About.of(INFO, "sha256:job")
    schema = embeddings_schema(About(**{**vars(about), "fingerprint": fingerprint}))
    errors = [None, "no picture", None, None, None]
    return embeddings_table(schema, [str(first + row) for row in range(5)], ROWS + first, errors, fingerprint)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    for number in range(2):
        pq.write_table(table(first=5 * number), tmp_path / f"{number}.parquet", row_group_size=3)
    files = sorted(tmp_path.iterdir())
    found = list(read_embeddings(files, fingerprint=INFO.fingerprint, batch_rows=2))
    assert [name for ids, _ in found for name in ids] == ["0", "2", "3", "4", "5", "7", "8", "9"]
    rows = np.concatenate([rows for _, rows in found])
    kept = np.array([0, 2, 3, 4])
    np.testing.assert_array_equal(rows, np.concatenate([ROWS[kept], ROWS[kept] + 5]))
    assert rows.dtype == np.float32
    assert about_files(files) == About.of(INFO, "sha256:job")
    assert pq.read_table(files[0])["embedding"].to_pylist()[1] is None


def test_files_of_two_models_do_not_mix(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "a.parquet")
    pq.write_table(table("sha256:other"), tmp_path / "b.parquet")
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    with pytest.raises(DataError, match=r"b.parquet comes from other weights \(sha256:other\) than .*a.parquet"):
        next(read_embeddings(files))
    with pytest.raises(DataError, match="a.parquet comes from fake with fingerprint .*, not from sha256:wanted"):
        next(read_embeddings(files[:1], fingerprint="sha256:wanted"))


def test_rows_of_two_models_in_one_file_are_found(tmp_path: Path) -> None:
    """As a concatenation by another tool leaves them: the metadata of the first."""
    path = tmp_path / "joined.parquet"
    joined = pa.Table.from_batches(
        [*table().to_batches(), *table("sha256:other").replace_schema_metadata(table().schema.metadata).to_batches()]
    )
    pq.write_table(joined, path)
    with pytest.raises(DataError, match="mixes embeddings of .* and sha256:other"):
        list(read_embeddings([path]))


def test_other_files_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("text")
    newer = table().replace_schema_metadata({"digpt": '{"format": "digpt-embeddings", "version": 99}'})
    pq.write_table(newer, tmp_path / "newer.parquet")
    for name, message in (
        ("missing", "There is no"),
        ("other", "holds no embeddings that digpt wrote"),
        ("text", "cannot be read as Parquet"),
        ("newer", "newer digpt"),
    ):
        with pytest.raises(DataError, match=message):
            read_about(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match="no files"):
        about_files([])
