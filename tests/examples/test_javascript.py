"""The script for Node, against a live server: its cosines are the engine's, its refusals are sentences."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from digpt.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "javascript" / "embed.mjs"
IMAGES = ROOT / "examples" / "images"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="node, which runs the JavaScript example, is not installed")


def run(address: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(NODE), str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "DIGPT_URL": address}, capture_output=True, text=True, timeout=60)


def test_cosines_are_the_engines(engine: Engine, address: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    done = run(address, "dog face", IMAGES / "rocket.png", bad, IMAGES / "dog-face.png")
    assert done.returncode == 0, done.stderr
    crops = [engine.decode((IMAGES / name).read_bytes()) for name in ("rocket.png", "dog-face.png")]
    rocket, dog = engine.similarity(engine.embed_images(crops), engine.embed_texts(["dog face"]))[:, 0]
    lines = done.stdout.splitlines()
    assert lines[0] == "emoji-tiny, 192 numbers each" and len(lines) == 4
    assert [line.split()[-1] for line in lines[1:]] == ["rocket.png", "bad.png", "dog-face.png"]
    assert float(lines[1].split()[0]) == pytest.approx(rocket, abs=2e-4)
    assert float(lines[3].split()[0]) == pytest.approx(dog, abs=2e-4)
    assert "Not an image" in lines[2] and dog > rocket


def test_refusals_are_sentences(address: str) -> None:
    done = run(address)
    assert (done.returncode, done.stderr) == (2, "error: usage: node embed.mjs WORDS PICTURE...\n")
    done = run(address, "dog", IMAGES / "absent.png")
    assert done.returncode == 2 and done.stderr.startswith("error: ENOENT") and done.stderr.count("\n") == 1
    done = run(address, "x" * 100_000, IMAGES / "rocket.png")
    assert done.returncode == 2 and "characters" in done.stderr and done.stderr.count("\n") == 1
    done = run("http://127.0.0.1:1", "dog", IMAGES / "rocket.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("start it: python -m serve\n")
