"""The commands of docs/bulk.md, run as they stand; what they write goes into a temporary folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "bulk.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^ *```sh\n(.*?)^ *```$", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line.strip() for block in BLOCKS for line in block.splitlines()]


def run(command: str, folder: Path) -> str:
    """A command's standard output, with ``runs/bulk`` replaced by ``folder``."""
    program, *arguments = shlex.split(command.replace("runs/bulk", str(folder)))
    assert program == "python"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_do_what_the_page_says(tmp_path: Path) -> None:
    assert len(COMMANDS) == 5
    said = [run(command, tmp_path) for command in COMMANDS]
    assert "pictures.parquet: 3 rows; " in said[0]
    assert "pictures.faiss: 3 embeddings" in said[1]
    assert next(line.split()[1] for line in said[2].splitlines()) == "red-apple.png"
    assert said[3].splitlines()[0] == "1.0000  rocket.png"
    ours, ray = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("pictures", "ray"))
    assert ours.equals(ray, check_metadata=True)
