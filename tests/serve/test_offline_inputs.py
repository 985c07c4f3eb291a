"""What bulk embedding reads: the images, their ids and order, from folders, shards and Parquet files."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import serve.offline_inputs
from digpt.errors import ConfigError, DataError
from serve.offline_inputs import FolderInputs, Inputs, Item, ParquetInputs, ShardInputs, open_inputs


def items(inputs: Inputs, size: int = 3) -> list[Item]:
    """Everything, some at a time, as a job asks for it."""
    opened = [inputs.open(start, min(start + size, len(inputs))) for start in range(0, len(inputs), size)]
    return [item for read in opened for item in read()]


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_a_folder_is_read_whole_in_order_and_links_once(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    for folder in (root / "a", root / ".hidden", root / "old.parquet.parts", other):
        folder.mkdir(parents=True)
    for name in ("b.PNG", "a/c.jpg", ".hidden/x.jpg", "notes.txt", "._b.png", "old.parquet.parts/y.png"):
        (root / name).write_bytes(name.encode())
    (other / "d.webp").write_bytes(b"linked")
    (root / "z").symlink_to(other)
    (root / "a" / "back").symlink_to(root)  # a circle
    inputs = open_inputs(str(root))
    assert isinstance(inputs, FolderInputs)
    assert items(inputs) == [("a/c.jpg", b"a/c.jpg"), ("b.PNG", b"b.PNG"), ("z/d.webp", b"linked")]
    before = inputs.fingerprint
    assert open_inputs(f"folder:{root}").fingerprint == before
    (root / "b.PNG").write_bytes(b"longer than before")
    assert open_inputs(str(root)).fingerprint != before
    (root / "b.PNG").unlink()
    assert items(inputs)[1][0] == "b.PNG"
    assert "cannot be read" in str(items(inputs)[1][1])  # listed, and gone when it is read


def test_names_that_are_no_text_are_spelt_out(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    assert items(open_inputs(str(tmp_path))) == [("caf\\xe9.png", b"x")]


def test_shards_are_read_by_key(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    shard(tmp_path / "0.tar", {"a.jpg": b"A", "a.txt": b"text", "b.txt": b"no image", "c.png": b"C"})
    shard(tmp_path / "more" / "0.tar", {"a.jpg": b"other A"})
    inputs = open_inputs(f"{tmp_path}/0.tar::{tmp_path}/more/0.tar")
    assert isinstance(inputs, ShardInputs)
    found = items(inputs, 2)
    assert [name for name, _ in found] == ["0.tar/a", "0.tar/b", "0.tar/c", "more/0.tar/a"]
    assert [data for _, data in found] == [b"A", "0.tar: b has no image.", b"C", b"other A"]


def test_a_shard_that_is_cut_off_fails_for_its_missing_samples_only(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", {f"{number}.jpg": bytes([number]) * 600 for number in range(4)})
    (tmp_path / "sizes.json").write_text('{"0.tar": 4}')
    path.write_bytes(path.read_bytes()[: 1536 * 2 + 512 + 100])
    found = items(open_inputs(str(tmp_path)))
    assert [name for name, _ in found] == ["0.tar/0", "0.tar/1", "0.tar/2", "0.tar/sample 3"]
    assert [data for _, data in found[:2]] == [b"\0" * 600, b"\1" * 600]
    assert "cut off" in str(found[2][1])
    assert "ends after 3 samples" in str(found[3][1])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_parquet_of_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    """Files in order, row groups and batches of any size, and a read that begins anywhere."""
    data = [None if number == 17 else bytes([number]) for number in range(50)]
    for name, span, rows in (("a", slice(0, 40), 19), ("b", slice(40, 50), 4)):
        columns = {"jpg": pa.array(data[span], kind), "width": list(range(len(data[span])))}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=rows)
    inputs = open_inputs(str(tmp_path))
    assert isinstance(inputs, ParquetInputs)
    names = [f"a.parquet:{row}" for row in range(40)] + [f"b.parquet:{row}" for row in range(10)]
    expected = [
        (name, "The row has no bytes." if cell is None else cell) for name, cell in zip(names, data, strict=True)
    ]
    assert items(inputs, 7) == expected
    for start, stop in ((38, 43), (0, 2), (45, 50), (18, 21)):
        assert inputs.open(start, stop)() == expected[start:stop]


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    images = [{"bytes": b"A", "path": "a.png"}, {"bytes": None, "path": "b.png"}, None]
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(images, struct), "label": [1, 2, 3], "id": [7, 8, 9]})
    pq.write_table(table, tmp_path / "train.parquet")
    found = items(open_inputs(str(tmp_path / "train.parquet")))
    assert found == [("7", b"A"), ("8", "The row has no bytes."), ("9", "The row has no bytes.")]


def test_several_columns_of_bytes_must_be_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"left": [b"L"], "right": [b"R"], "__key__": ["k"]}), path)
    with pytest.raises(DataError, match="several columns of bytes, so name one: --column left"):
        open_inputs(str(path))
    assert items(open_inputs(str(path), "right")) == [("k", b"R")]
    assert open_inputs(str(path), "right").fingerprint != open_inputs(str(path), "left").fingerprint
    with pytest.raises(DataError, match="no column 'rihgt' of bytes; it has left, right. Did you mean 'right'"):
        open_inputs(str(path), "rihgt")
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(DataError, match="no column of bytes"):
        open_inputs(str(path))


def test_what_cannot_be_input_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder, .tar or .parquet file"):
        open_inputs(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="holds neither images"):
        open_inputs(str(tmp_path))
    with pytest.raises(DataError, match="not on this machine"):
        open_inputs("s3://bucket/images")
    (tmp_path / "a.png").write_bytes(b"x")
    shard(tmp_path / "0.tar", {"a.jpg": b"A"})
    with pytest.raises(DataError, match=r"say which is meant: folder:.* or wds:"):
        open_inputs(str(tmp_path))
    assert len(open_inputs(f"wds:{tmp_path}")) == len(open_inputs(f"folder:{tmp_path}")) == 1
    with pytest.raises(ConfigError, match="--column names a column of Parquet"):
        open_inputs(f"wds:{tmp_path}", "image")
    with pytest.raises(DataError, match="holds no .parquet files"):
        open_inputs(f"parquet:{tmp_path}")


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"no Parquet")
    with pytest.raises(DataError, match="a.parquet cannot be read as Parquet"):
        open_inputs(str(path))
    columns = {"jpg": [bytes([number]) * 1000 for number in range(40)]}
    pq.write_table(pa.table(columns), path, row_group_size=20, compression="zstd", use_dictionary=False)
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="a.parquet is damaged"):
        items(open_inputs(str(path)))


class Flaky:
    """Reads that fail ``times`` times with one fault before they succeed."""

    def __init__(self, fault: int, times: int) -> None:
        self.fault, self.times = fault, times

    def __call__(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def reading(*arguments: Any, **options: Any) -> Any:
            if self.times:
                self.times -= 1
                raise OSError(self.fault, os.strerror(self.fault), "x")
            return read(*arguments, **options)

        return reading


@pytest.mark.parametrize("fault", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_fault_that_passes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int) -> None:
    monkeypatch.setattr(serve.offline_inputs, "PAUSES_S", (0.0, 0.0))
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(b"a")
    tar = shard(tmp_path / "0.tar", {"x.png": b"x"})
    folder, shards = open_inputs(str(tmp_path / "pictures")), open_inputs(str(tar))
    for times in (1, 2, 3):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", Flaky(fault, times)(Path.read_bytes))
            if times < 3:
                assert items(folder) == [("a.png", b"a")]
            else:
                with pytest.raises(DataError, match="a.png cannot be read .*give the same command again"):
                    items(folder)
        for module, name in ((os, "pread"), (tarfile, "open")):  # of the samples, and of the shard's index
            shards = open_inputs(str(tar))
            with monkeypatch.context() as patch:
                patch.setattr(module, name, Flaky(fault, times)(getattr(module, name)))
                if times < 3:
                    assert items(shards) == [("0.tar/x", b"x")]
                else:
                    with pytest.raises(DataError, match="0.tar cannot be read .*give the same command again"):
                        items(shards)


def test_a_fault_that_stays_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.offline_inputs, "PAUSES_S", (60.0,))
    (tmp_path / "a.png").write_bytes(b"a")
    inputs = open_inputs(str(tmp_path))
    for fault in (errno.ENOENT, errno.EACCES, errno.EISDIR):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", Flaky(fault, 1)(Path.read_bytes))
            ((name, said),) = items(inputs)
        assert name == "a.png" and isinstance(said, str) and os.strerror(fault) in said
