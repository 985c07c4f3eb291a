"""ImageNet-C: its 75 cells from folders and from archives, and what is refused."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digpt import testing_trees as trees
from digpt.data import imagenet_c
from digpt.data.imagenet import available, open_imagenet, wnids
from digpt.data.imagenet_c import CELLS, list_tar, present_cells
from digpt.data.source import SampleError
from digpt.errors import ConfigError, DataError
from digpt.robustness_metrics import ALEXNET_ERROR

CLASSES = (6, 11, 848)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


def by_cell(label: int, number: int, corruption: str, severity: int) -> int:
    """A picture that tells the cell it was written to."""
    return CELLS.index((corruption, severity)) if (corruption, severity) in CELLS else 999


def shown(data: bytes) -> int:
    return trees.class_of_color(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.fixture(autouse=True)
def forget() -> None:
    imagenet_c._list_tar.cache_clear()


def test_the_archives_hold_each_corruption_once() -> None:
    grouped = [name for names in trees.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(ALEXNET_ERROR) and len(CELLS) == 75


@pytest.mark.parametrize("layout", trees.C_LAYOUTS)
def test_every_cell_in_every_layout(tmp_path: Path, layout: trees.CLayout) -> None:
    folder = trees.write_c(tmp_path, CLASSES, layout=layout, extra=True, size=24, shows=by_cell)
    assert available(tmp_path) == ["imagenet-c"] == available(folder)
    assert present_cells(folder) == CELLS
    fingerprints = set()
    for number, (corruption, severity) in enumerate(CELLS):
        source = open_imagenet("imagenet-c", tmp_path, corruption=corruption, severity=severity)
        assert source.labels.tolist() == list(CLASSES)
        assert [shown(source.read(index)[0]) for index in range(3)] == [number] * 3
        assert source.read(2)[1] == 848 and source.name == f"imagenet-c/{corruption}/{severity}"
        fingerprints.add(source.fingerprint)
    assert len(fingerprints) == 75


@pytest.mark.parametrize("layout", ["groups", "tars"])
def test_all_layouts_have_the_same_names_and_fingerprints(tmp_path: Path, layout: trees.CLayout) -> None:
    small = {"corruptions": ("fog", "snow"), "severities": (1, 3), "size": 8}
    trees.write_c(tmp_path / "a", CLASSES, **small)
    trees.write_c(tmp_path / "b", CLASSES, layout=layout, **small)
    one, other = (open_imagenet("imagenet-c", tmp_path / r, corruption="fog", severity=3) for r in "ab")
    assert list(one.names) == list(other.names) and one.fingerprint == other.fingerprint
    assert one.sample_name(0).startswith(f"{wnids()[6]}/ILSVRC2012_val_")
    assert present_cells(tmp_path / "b" / "imagenet-c") == (("snow", 1), ("snow", 3), ("fog", 1), ("fog", 3))


def test_the_extra_corruptions_are_no_part_of_it(tmp_path: Path) -> None:
    folder = trees.write_c(tmp_path, CLASSES, layout="tars", corruptions=(), extra=True, size=8)
    assert [path.name for path in folder.iterdir()] == ["extra.tar"]
    assert available(tmp_path) == []  # they alone are not ImageNet-C
    trees.write_c(tmp_path, CLASSES, extra=True, corruptions=("fog",), severities=(1,), size=8)
    assert present_cells(folder) == (("fog", 1),)
    for name in EXTRA:
        with pytest.raises(ConfigError, match="extra"):
            open_imagenet("imagenet-c", tmp_path, corruption=name, severity=1)


def test_extra_corruptions_inside_an_archive_are_left_out(tmp_path: Path) -> None:
    files = [(f"./{name}/1/{wnids()[6]}/a.JPEG", trees.picture(5, 8)) for name in ("spatter", "fog")]
    (tmp_path / "imagenet-c").mkdir()
    write_tar(tmp_path / "imagenet-c" / "weather.tar", [*files, ("README.txt", b""), ("fog/1/checksums", b"")])
    listing = list_tar(tmp_path / "imagenet-c" / "weather.tar")
    assert len(listing.names) == 1 and len(listing.rows("fog", 1)) == 1 and len(listing.rows("fog", 2)) == 0


@pytest.mark.parametrize(
    ("corruption", "severity", "message"),
    [("fogg", 1, "'fog'"), (None, 1, "valid: gaussian_noise"), ("fog", 0, "1 to 5"), ("fog", None, "1 to 5")],
)
def test_no_such_cell(tmp_path: Path, corruption: str | None, severity: int | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_imagenet("imagenet-c", tmp_path, corruption=corruption, severity=severity)


def test_a_missing_cell_names_its_archive(tmp_path: Path) -> None:
    trees.write_c(tmp_path, CLASSES, corruptions=("fog",), severities=(1,), size=8)
    with pytest.raises(DataError, match=r"neither snow/2 nor it in weather.tar"):
        open_imagenet("imagenet-c", tmp_path, corruption="snow", severity=2)
    (tmp_path / "imagenet-c" / "fog" / "1" / wnids()[6]).rename(tmp_path / "imagenet-c" / "fog" / "1" / "0")
    with pytest.raises(DataError, match="WordNet id"):
        open_imagenet("imagenet-c", tmp_path, corruption="fog", severity=1)


# ------------------------------------------------------------------------------------------------ archives


def write_tar(path: Path, files: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = trees.write_c(tmp_path, CLASSES, layout="tars", corruptions=("fog",), severities=(1, 2), size=8)
    return folder / "weather.tar"


def listing_file(archive: Path) -> Path:
    return archive.with_name(".weather.tar.listing.npz")


def scans(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The archives that are read from end to end."""
    scanned: list[Path] = []
    scan = imagenet_c._scan

    def counted(tar: Path, size: int) -> imagenet_c.TarListing:
        scanned.append(tar)
        return scan(tar, size)

    monkeypatch.setattr(imagenet_c, "_scan", counted)
    return scanned


def test_a_listing_is_remembered_for_this_very_archive(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = scans(monkeypatch)
    first = list_tar(archive)
    assert list_tar(archive) is first and scanned == [archive]
    imagenet_c._list_tar.cache_clear()  # another process
    again = list_tar(archive)
    assert scanned == [archive] and list(again.names) == list(first.names)
    assert np.array_equal(again.spans, first.spans) and np.array_equal(again.cells, first.cells)
    write_tar(archive, [(f"fog/1/{wnids()[13]}/b.JPEG", trees.picture(13, 8))])
    assert list(list_tar(archive).names) == [f"{wnids()[13]}/b.JPEG"] and len(scanned) == 2
    os.utime(archive, ns=(0, 0))  # of the same size, but written at another time
    list_tar(archive)
    assert len(scanned) == 3


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\0" * 99])
def test_a_damaged_listing_is_made_anew(archive: Path, monkeypatch: pytest.MonkeyPatch, damage) -> None:
    whole = list_tar(archive)
    path = listing_file(archive)
    path.write_bytes(damage(path.read_bytes()))
    imagenet_c._list_tar.cache_clear()
    scanned = scans(monkeypatch)
    assert list(list_tar(archive).names) == list(whole.names) and len(scanned) == 1
    imagenet_c._list_tar.cache_clear()
    list_tar(archive)
    assert len(scanned) == 1


def test_where_nothing_can_be_written_beside_it_the_cache_is_used(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(imagenet_c.os, "access", lambda path, mode: Path(path) == cache)
    scanned = scans(monkeypatch)
    list_tar(archive, cache)
    assert not listing_file(archive).exists() and len(list(cache.iterdir())) == 1
    imagenet_c._list_tar.cache_clear()
    list_tar(archive, cache)
    assert len(scanned) == 1
    monkeypatch.setattr(imagenet_c.os, "access", lambda path, mode: False)
    imagenet_c._list_tar.cache_clear()
    list_tar(archive)  # nowhere at all: it works, every time anew
    assert len(scanned) == 2


def test_a_member_that_was_added_again_replaces_the_first(archive: Path) -> None:
    name = list_tar(archive).names[0]
    write_tar(archive, [(f"fog/1/{name}", trees.picture(777, 8))], mode="a")
    source = open_imagenet("imagenet-c", archive.parents[1], corruption="fog", severity=1)
    assert len(source) == 3 and shown(source.read(0)[0]) == 777


def test_a_cut_off_archive(archive: Path) -> None:
    with tarfile.open(archive) as opened:
        last = opened.getmembers()[-1]
    archive.write_bytes(archive.read_bytes()[: last.offset_data + last.size // 2])
    with pytest.raises(DataError, match=r"weather.tar .*download it again"):
        list_tar(archive)


def test_a_compressed_archive_or_something_else(archive: Path) -> None:
    content = archive.read_bytes()
    with tarfile.open(archive, "w:gz") as packed:
        packed.addfile(tarfile.TarInfo("fog"))
    with pytest.raises(DataError, match="unpack it"):
        list_tar(archive)
    archive.write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(DataError, match="cannot be read as a tar"):
        list_tar(archive)
    archive.write_bytes(content)
    write_tar(archive, [(f"fog/1/n99999999/{trees.val_name(1)}", b"x")], mode="a")
    with pytest.raises(DataError, match="n99999999"):
        list_tar(archive)


def test_images_that_vanish_after_listing(archive: Path) -> None:
    source = open_imagenet("imagenet-c", archive.parents[1], corruption="fog", severity=2)
    with open(archive, "r+b") as file:
        file.truncate(int(source.spans[1, 0]) + 3)  # type: ignore[attr-defined]
    with pytest.raises(SampleError, match="cut off"):
        source.read(1)


def test_processes_and_threads_read_alike(archive: Path) -> None:
    source = open_imagenet("imagenet-c", archive.parents[1], corruption="fog", severity=1)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(1) == source.read(1) and copy.fingerprint == source.fingerprint
    fresh = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fresh.read, [0, 1, 2] * 50)) == [source.read(i) for i in range(3)] * 50
