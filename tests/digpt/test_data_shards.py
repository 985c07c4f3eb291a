"""Webdataset shards by number, and image-text pairs; the shards are written by the webdataset package itself."""

from __future__ import annotations

import errno
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

import digpt.data.shards as shards_module
from digpt.data.images import open_images
from digpt.data.pairs import open_pairs
from digpt.data.shards import ShardIndex, Shards, expand, scan_shard
from digpt.data.source import Names, OpenFiles, SampleError
from digpt.errors import DataError

COUNTS = (4, 3, 5)


def write_shards(root: Path, sample: Callable[[int], dict[str, Any]], counts: tuple[int, ...] = COUNTS) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, count in enumerate(counts):
        with webdataset.TarWriter(str(root / f"{shard:05d}.tar")) as writer:
            for _ in range(count):
                writer.write({"__key__": f"sample{number:04d}", **sample(number)})
                number += 1
    return root


def labelled(number: int) -> dict[str, Any]:
    return {"jpg": b"image%d" % number, "cls": number % 7, "json": {"width": 8}}


def noting(scanned: list[str]) -> Callable[[Path], ShardIndex]:
    """The scan, which notes the shards that it was asked for."""

    def scan(path: Path) -> ShardIndex:
        scanned.append(path.name)
        return scan_shard(path)

    return scan


def pair(number: int) -> dict[str, Any]:
    return {"png": b"image%d" % number, "txt": f"caption {number} é"}


def test_samples_are_numbered_over_all_shards(tmp_path: Path) -> None:
    root = write_shards(tmp_path, labelled)
    shards = Shards.open(f"{root}/{{00000..00002}}.tar")
    assert shards.counts.tolist() == list(COUNTS) and len(shards) == 12
    for number in (11, 0, 4, 7, 3):
        assert shards.read(number, (".jpg", ".cls")) == {".jpg": b"image%d" % number, ".cls": b"%d" % (number % 7)}
    assert shards.sample_name(7) == "00002.tar: sample0007"
    with pytest.raises(IndexError):
        shards.locate(12)
    restored = pickle.loads(pickle.dumps(shards))
    assert restored.read(5, (".jpg",)) == {".jpg": b"image5"} and restored.fingerprint == shards.fingerprint


def test_patterns_of_every_kind(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "a", labelled)
    other = write_shards(tmp_path / "b", labelled, (2,))
    three = [root / f"{number:05d}.tar" for number in range(3)]
    for pattern in (f"{root}/{{00000..00002}}.tar", f"{root}/0000{{0,1,2}}.tar", f"{root}/*.tar", str(root)):
        assert expand(pattern) == three
    assert expand(f"{root}::{other}/00000.tar") == [*three, other / "00000.tar"]
    assert expand(f"{tmp_path}/{{a,b}}/{{00000..00000}}.tar") == [three[0], other / "00000.tar"]
    for pattern, words in [
        (f"{root}/{{00000..00003}}.tar", "no shard .*00003"),
        (f"{root}/{{x}}.tar", "mean nothing"),
        (f"{tmp_path}/none/*.tar", "no shard"),
        ("https://host/{00..01}.tar", "mount or copy"),
        ("pipe:aws s3 cp x -", "mount or copy"),
    ]:
        with pytest.raises(DataError, match=words):
            expand(pattern)


def test_stated_counts_are_believed_until_the_shard_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_shards(tmp_path, labelled)
    (root / "sizes.json").write_text(json.dumps({"00000.tar": 4, "00001.tar": 2}))
    (root / "00002_stats.json").write_text(json.dumps({"count": 9, "successes": 7}))
    scanned: list[str] = []
    monkeypatch.setattr(shards_module, "scan_shard", noting(scanned))
    shards = Shards.open(str(root))
    assert shards.counts.tolist() == [4, 2, 7] and scanned == []
    assert shards.read(3, (".jpg",)) == {".jpg": b"image3"} and scanned == ["00000.tar"]
    with pytest.raises(DataError, match="holds 3 samples, but 2 are stated.*delete the outdated"):
        shards.read(4, (".jpg",))
    assert shards.read(6, (".jpg",)) == {".jpg": b"image7"}  # the first of the last shard
    with pytest.raises(SampleError, match="ends after 5 samples") as caught:
        shards.read(11, (".jpg",))
    assert caught.value.kind == "missing sample"


def test_the_cache_saves_the_scan_and_a_changed_shard_is_scanned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = write_shards(tmp_path / "data", labelled), tmp_path / "cache"
    before = Shards.open(str(root), cache)
    scanned: list[str] = []
    monkeypatch.setattr(shards_module, "scan_shard", noting(scanned))
    again = Shards.open(str(root), cache)
    assert again.read(9, (".jpg",)) == before.read(9, (".jpg",)) and scanned == []
    assert not [path for path in (cache / "shards").iterdir() if path.name.startswith(".")]
    for path in cache.glob("shards/*.index"):
        path.write_bytes(b"PK damaged")
    assert Shards.open(str(root), cache).read(9, (".jpg",)) == before.read(9, (".jpg",)) and scanned == ["00002.tar"]
    write_shards(root, labelled, (4, 3, 30))
    grown = Shards.open(str(root), cache)
    assert grown.counts.tolist() == [4, 3, 30] and grown.fingerprint != before.fingerprint


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = write_shards(tmp_path / "data", labelled), tmp_path / "cache"
    (tmp_path / "file").write_bytes(b"")  # where root asks too, no folder can be made below a file
    shards = Shards.open(str(root), tmp_path / "file" / "cache")
    assert shards.counts.tolist() == list(COUNTS) and shards.read(9, (".jpg",)) == {".jpg": b"image9"}

    def full(*paths: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert Shards.open(str(root), cache).read(9, (".jpg",)) == {".jpg": b"image9"}
    assert list((cache / "shards").iterdir()) == []  # not even half a file


def test_a_shard_cut_short_keeps_what_is_before_the_cut(tmp_path: Path) -> None:
    root = write_shards(tmp_path, lambda number: {"jpg": bytes([number]) * 3000})
    (root / "sizes.json").write_text(json.dumps({f"{i:05d}.tar": count for i, count in enumerate(COUNTS)}))
    path = root / "00002.tar"
    with tarfile.open(path) as archive:
        third = archive.getmembers()[2]
    with path.open("r+b") as file:
        file.truncate(third.offset_data + 1000)
    shards = Shards.open(str(root))
    kinds = {}
    for number in range(7, 12):
        try:
            assert shards.read(number, (".jpg",)) == {".jpg": bytes([number]) * 3000}
        except SampleError as error:
            kinds[number] = error.kind
    assert kinds == {9: "truncated", 10: "missing sample", 11: "missing sample"}


def test_stand_ins_come_from_the_same_shard_first(tmp_path: Path) -> None:
    shards = Shards.open(str(write_shards(tmp_path, labelled)))
    assert [shards.neighbour(6, attempt) for attempt in range(1, 5)] == [4, 5, 6, 4]
    assert shards.locate(shards.neighbour(6, 9))[0] == 2 and shards.locate(shards.neighbour(6, 10))[0] == 0
    with pytest.raises(DataError, match="no uncompressed tar"):
        (tmp_path / "00000.tar").write_bytes(b"no tar")
        Shards.open(str(tmp_path))


def test_labelled_shards(tmp_path: Path) -> None:
    root = write_shards(tmp_path, labelled)
    (root / "classes.txt").write_text("\n".join("abcdefg") + "\n")
    source = open_images(f"wds:{root}/{{00000..00002}}.tar")
    assert source.read(8) == (b"image8", 1) and source.classes == tuple("abcdefg")
    assert source.counts is not None and source.counts.tolist() == list(COUNTS)
    write_shards(root, lambda number: {"jpg": b"x"} if number else {"cls": 1})
    broken = open_images(f"wds:{root}")
    kinds = []
    for number in (0, 1):
        with pytest.raises(SampleError) as caught:
            broken.read(number)
        kinds.append(caught.value.kind)
    assert kinds == ["no image", "no label"]


def test_the_training_shards_never_pass_for_the_validation_ones(tmp_path: Path) -> None:
    for split, counts in (("train", COUNTS), ("val", (2,))):
        write_shards(tmp_path / split, labelled, counts)
    pattern = f"wds:{tmp_path}/train/{{00000..00002}}.tar"
    assert len(open_images(pattern, "train")) == len(open_images(pattern, "val", whole=True)) == 12
    with pytest.raises(DataError, match="not of the split val: write {split}"):
        open_images(pattern, "val")
    for spec in (f"wds:{tmp_path}/{{split}}/*.tar", f"wds:{tmp_path}"):
        assert len(open_images(spec, "val")) == 2 and len(open_images(spec, "train")) == 12


def test_pairs_of_shards_and_their_errors(tmp_path: Path) -> None:
    source = open_pairs(f"wds:{write_shards(tmp_path, pair)}")
    assert source.read(7) == (b"image7", "caption 7 é") and len(source) == 12
    assert open_pairs(str(tmp_path)).fingerprint == source.fingerprint
    kinds: dict[int, dict[str, Any]] = {
        0: {"jpg": b"x", "json": {"caption": " said in json "}},
        1: {"jpg": b"x", "txt": "  "},
        2: {"txt": "a caption alone"},
        3: {"jpg": b"x", "json": {"caption": None}},
    }
    write_shards(tmp_path / "bad", kinds.__getitem__, (4,))
    bad = open_pairs(f"wds:{tmp_path / 'bad'}")
    assert bad.read(0) == (b"x", "said in json")
    found = {}
    for number in (1, 2, 3):
        with pytest.raises(SampleError) as caught:
            bad.read(number)
        found[number] = caught.value.kind
    assert found == {1: "no caption", 2: "no image", 3: "no caption"}


@pytest.mark.parametrize(("suffix", "comma"), [(".csv", ","), (".tsv", "\t")])
def test_pairs_of_a_list(tmp_path: Path, suffix: str, comma: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"a")
    lines = [
        ("id", "filepath", "title"),
        ("1", "images/a.png", '"red, ""ripe"" apple"'),
        ("2", "images/b.png", "gone"),
        ("3",),
    ]
    file = tmp_path / f"pairs{suffix}"
    file.write_text("".join(comma.join(line) + "\n" for line in lines))
    source = open_pairs(f"csv:{file}")
    assert len(source) == 3 and source.read(0) == (b"a", 'red, "ripe" apple')
    kinds = []
    for number in (1, 2):
        with pytest.raises(SampleError) as caught:
            source.read(number)
        kinds.append(caught.value.kind)
    assert kinds == ["unreadable file", "damaged row"] and source.neighbour(2, 1) == 0
    file.write_text(f"id{comma}url\n1{comma}x\n")
    with pytest.raises(DataError, match="no column filepath or path.*its header names id, url"):
        open_pairs(str(file))


def test_an_unknown_kind_of_pairs_names_the_near_miss() -> None:
    with pytest.raises(DataError, match="'wd'.*Did you mean 'wds'"):
        open_pairs("wd:shards")


def test_open_files_are_bounded(tmp_path: Path) -> None:
    files = OpenFiles(limit=2)
    for name in "abcab":
        (tmp_path / name).write_bytes(name.encode() * 4)
        assert files.read(tmp_path / name, 1, 9) == name.encode() * 3
        assert len(files) <= 2
    files.close()
    assert len(files) == 0
    with pytest.raises(SampleError, match="cannot be read"):
        files.read(tmp_path / "none", 0, 1)


def test_packed_names_are_the_strings() -> None:
    words = ["", "a/ü.png", "b\udcff", "", "c"]
    names = Names(words)
    assert list(names) == words and names[-1] == "c" and names[1:3] == words[1:3] and len(names) == 5
    assert np.array_equal(names.ends, np.array([0, 8, 10, 10, 11]))
    with pytest.raises(IndexError):
        names[5]
