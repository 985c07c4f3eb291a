"""Checkpoints: the round trip, atomic writes, refusals, migration, and what the fingerprint sees."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from digpt.artifact import (
    FORMAT,
    VERSION,
    Checkpoint,
    atomic_json,
    atomic_write,
    fingerprint,
    read_checkpoint,
    write_checkpoint,
)
from digpt.errors import CheckpointError
from digpt.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return tiny_checkpoint()


def test_round_trip_keeps_every_bit(tiny: Checkpoint, tmp_path: Path) -> None:
    checkpoint = copy.deepcopy(tiny)
    checkpoint.weights["decoders"] = {"gen.token": torch.randn(1, 1, 8)}
    written = write_checkpoint(tmp_path / "new" / "ckpt.pt", checkpoint)
    loaded = read_checkpoint(tmp_path / "new" / "ckpt.pt")
    assert loaded.config == checkpoint.config and loaded.provenance == checkpoint.provenance
    assert loaded.weights.keys() == checkpoint.weights.keys()
    for group, named in checkpoint.weights.items():
        assert loaded.weights[group].keys() == named.keys()
        for name, tensor in named.items():
            assert torch.equal(loaded.weights[group][name], tensor)
    assert written == loaded.fingerprint == checkpoint.fingerprint
    assert written.startswith("sha256:") and len(written) == len("sha256:") + 64


def test_file_layout_is_the_documented_one(tiny: Checkpoint, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ckpt.pt", tiny)
    document = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    assert list(document) == ["format", "version", "config", "weights", "provenance"]
    assert (document["format"], document["version"]) == (FORMAT, VERSION)


def test_views_do_not_drag_their_storage_along(tiny: Checkpoint, tmp_path: Path) -> None:
    checkpoint = copy.deepcopy(tiny)
    checkpoint.weights["decoders"] = {"slice": torch.zeros(4_000_000)[:10]}
    write_checkpoint(tmp_path / "ckpt.pt", checkpoint)
    assert (tmp_path / "ckpt.pt").stat().st_size < 2_000_000


def test_half_precision_storage(tiny: Checkpoint, tmp_path: Path) -> None:
    full, half = tmp_path / "full.pt", tmp_path / "half.pt"
    before = write_checkpoint(full, tiny)
    after = write_checkpoint(half, tiny, dtype="float16")
    assert half.stat().st_size < 0.6 * full.stat().st_size
    loaded = read_checkpoint(half)
    weight = tiny.weights["encoder"]["blocks.0.mlp.fc1.weight"]
    assert torch.equal(loaded.weights["encoder"]["blocks.0.mlp.fc1.weight"], weight.half().float())
    assert after == loaded.fingerprint != before
    assert write_checkpoint(tmp_path / "again.pt", loaded) == after  # float32 storage of the rounded values


CHANGES: dict[str, Any] = {
    "weight": lambda c: c.weights["encoder"][
        "norm.bias" if "norm.bias" in c.weights["encoder"] else "fc_norm.bias"
    ].add_(1e-7),
    "head": lambda c: c.weights["head"]["weight"].mul_(1.0001),
    "text": lambda c: c.weights["text"]["ln_final.bias"].add_(1e-7),
    "name": lambda c: c.weights["text"].update(renamed=c.weights["text"].pop("ln_final.bias")),
    "shape": lambda c: c.weights["head"].update(weight=c.weights["head"]["weight"].reshape(48, 32)),
    "mean": lambda c: c.config["preprocess"].update(mean=[0.5, 0.5, 0.4]),
    "pooling": lambda c: c.config.update(pooling="token"),
    "heads": lambda c: c.config["encoder"].update(num_heads=6),
    "scale": lambda c: c.config["text"].update(logit_scale=20.5),
    "template": lambda c: c.config["text"].update(templates=["an icon of {}"]),
    "tokenizer": lambda c: c.config["text"].update(tokenizer=c.config["text"]["tokenizer"] + " "),
    "labels": lambda c: c.config["labels"].reverse(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprint_sees(change: str, tiny: Checkpoint) -> None:
    changed = copy.deepcopy(tiny)
    CHANGES[change](changed)
    assert changed.fingerprint != tiny.fingerprint


def test_fingerprint_ignores_what_answers_do_not_depend_on(tiny: Checkpoint) -> None:
    changed = copy.deepcopy(tiny)
    changed.provenance["command"] = "another"
    changed.config["objective"] = {"name": "digpt"}
    changed.weights["decoders"] = {"gen": torch.ones(3)}
    changed.weights["encoder"] = dict(reversed(changed.weights["encoder"].items()))
    changed.config = dict(reversed(changed.config.items()))
    changed.weights["head"]["weight"] = changed.weights["head"]["weight"].T.contiguous().T  # another memory layout
    assert changed.fingerprint == tiny.fingerprint


def test_fingerprint_is_the_documented_hash() -> None:
    import hashlib

    weights = {"encoder": {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([[3.0]])}}
    config = {"architecture": "timm", "encoder": {}, "preprocess": {"size": 8}, "pooling": "avg", "labels": ["é"]}
    expected = hashlib.sha256()
    expected.update(b"encoder.a[1, 1]" + bytes.fromhex("00004040"))
    expected.update(b"encoder.b[2]" + bytes.fromhex("0000803f00000040"))
    tail = '{"architecture":"timm","encoder":{},"head":null,"labels":["é"],"pooling":"avg",'
    expected.update((tail + '"preprocess":{"size":8},"text":null}').encode())
    assert fingerprint(weights, config) == f"sha256:{expected.hexdigest()}"


# ------------------------------------------------------------------------------------------------------- refusals


def test_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "teacher.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"No such file.*Did you mean 'teacher\.pt'"):
        read_checkpoint(tmp_path / "techer.pt")
    with pytest.raises(CheckpointError, match="is a directory"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_half_written(share: float, tiny: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    write_checkpoint(path, tiny)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"incomplete|damaged") as caught:
        read_checkpoint(path)
    assert "again" in str(caught.value) and "\n" not in str(caught.value)


def test_flipped_weight_byte_is_noticed(tiny: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    write_checkpoint(path, tiny)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"plain text", b"\x89PNG\r\n\x1a\n", b"\x80\x04K\x01.", b"PK\x03\x04 and no more"])
def test_foreign_bytes(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "ckpt.pt")
    assert "\n" not in str(caught.value) and str(tmp_path / "ckpt.pt") in str(caught.value)


def test_foreign_torch_files(tmp_path: Path) -> None:
    for content in ({"weight": torch.zeros(2)}, [1, 2], torch.zeros(3), {"format": "other", "version": 1}):
        torch.save(content, tmp_path / "ckpt.pt")
        with pytest.raises(CheckpointError, match=r"not a digpt checkpoint.*timm:NAME@ckpt\.pt"):
            read_checkpoint(tmp_path / "ckpt.pt")


def test_newer_version(tmp_path: Path) -> None:
    torch.save({"format": FORMAT, "version": VERSION + 1}, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match=rf"version {VERSION + 1}; this digpt reads up to {VERSION}. Upgrade"):
        read_checkpoint(tmp_path / "ckpt.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("weights"), "lacks 'weights'"),
        (lambda d: d.pop("version"), "states no version"),
        (lambda d: d.update(version=-1), "no migration"),
        (lambda d: d["config"].pop("preprocess"), "config lacks preprocess"),
        (lambda d: d["config"].update(archtecture="timm"), "Did you mean 'architecture'"),
        (lambda d: d["config"].update(architecture="keras"), "valid: timm, open_clip"),
        (lambda d: d["weights"].update(decoder={}), "Unknown weight group 'decoder'"),
        (lambda d: d["weights"].pop("encoder"), "needs the weight group 'encoder'"),
    ],
)
def test_edited_documents(change: Any, message: str, tiny: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    write_checkpoint(path, tiny)
    document = torch.load(path, weights_only=True)
    change(document)
    torch.save(document, path)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_version_0_is_migrated(tiny: Checkpoint, tmp_path: Path) -> None:
    """The layout before release: one flat state_dict and ``image_size``; the model it gives is the same."""
    flat = {f"{group}.{name}": tensor for group, named in tiny.weights.items() for name, tensor in named.items()}
    config = {key: tiny.config[key] for key in ("encoder", "head", "text", "labels")}
    torch.save(
        {"format": FORMAT, "version": 0, "config": {**config, "image_size": 32}, "state_dict": flat}, tmp_path / "0.pt"
    )
    migrated = read_checkpoint(tmp_path / "0.pt")
    assert migrated.config["preprocess"]["size"] == 32 and migrated.config["architecture"] == "timm"
    assert torch.equal(migrated.weights["head"]["weight"], tiny.weights["head"]["weight"])
    assert migrated.weights["encoder"].keys() == tiny.weights["encoder"].keys()
    write_checkpoint(tmp_path / "1.pt", migrated)
    assert torch.load(tmp_path / "1.pt", weights_only=True)["version"] == VERSION
    from digpt.sources import load_model

    images = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    write_checkpoint(tmp_path / "now.pt", tiny)
    with torch.inference_mode():
        then, now = (load_model(str(tmp_path / name)).module(images) for name in ("0.pt", "now.pt"))
    assert torch.equal(then, now)


# -------------------------------------------------------------------------------------------------- atomic writes


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def fail(file: Any) -> None:
        file.write(b"half of the new")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="fire"):
        atomic_write(path, fail)
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_killed_write_keeps_the_old_file(tmp_path: Path) -> None:
    """kill -9 in the middle of a write; the next write succeeds and leaves nothing behind."""
    path = tmp_path / "file"
    atomic_write(path, b"old")
    code = (
        "import sys, time\nfrom digpt.files import atomic_write\n"
        "def slow(file):\n"
        "    file.write(b'new' * 100_000); file.flush(); print('writing', flush=True); time.sleep(60)\n"
        f"atomic_write({str(path)!r}, slow)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert path.read_bytes() == b"old"
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_reader_never_sees_a_partial_file(tmp_path: Path) -> None:
    import threading

    path = tmp_path / "file"
    contents = {bytes([value]) * 200_000 for value in range(8)}
    atomic_write(path, next(iter(contents)))
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                atomic_write(path, content)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            assert path.read_bytes() in contents
    finally:
        stop.set()
        thread.join()


def test_writers_of_a_shared_path_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On several machines they may even have the same process id."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "file"

    def slow(file: Any) -> None:
        file.write(b"slow ")
        atomic_write(path, b"quick", shared=True)
        assert path.read_bytes() == b"quick"
        file.write(b"writer")

    atomic_write(path, slow, shared=True)
    assert path.read_bytes() == b"slow writer" and [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    atomic_json(tmp_path / "a.json", {"x": 1.5, "name": "é"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic_json(tmp_path / "a.json", {"x": float("nan")})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "x": 1.5,\n  "name": "é"\n}\n'
