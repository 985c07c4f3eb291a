"""Twenty thousand images through two times ``kill -9``, with the command and the bundled model."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from digpt.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
IMAGES, PART, BATCH = 20_000, 1024, 64


def bmp(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return buffer.getvalue()


def write_shards(folder: Path) -> list[str]:
    """Twenty shards of a thousand; the ids that they give."""
    ids = []
    for shard in range(20):
        with tarfile.open(folder / f"{shard:02d}.tar", "w") as archive:
            for number in range(shard * IMAGES // 20, (shard + 1) * IMAGES // 20):
                data = bmp(number)
                info = tarfile.TarInfo(f"{number:05d}.bmp")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
                ids.append(f"{shard:02d}.tar/{number:05d}")
    return ids


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_thousand_images_killed_twice(tmp_path: Path) -> None:
    shards, output = tmp_path / "shards", tmp_path / "out.parquet"
    shards.mkdir()
    ids = write_shards(shards)
    command = [sys.executable, "-m", "serve.offline", str(shards), str(output), "--threads", "1", "--json"]
    command += ["--batch-size", str(BATCH), "--part-rows", str(PART), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parts = tmp_path / "out.parquet.parts"
    for goal in (4, 11):  # of 20
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        while len(list(parts.glob("part-*"))) < goal:
            assert child.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert not output.exists()
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["errors"]) == (IMAGES, 0)
    assert summary["kept"] >= 11 * PART
    print(summary)
    table = pq.read_table(output)
    assert table["id"].to_pylist() == ids  # complete, in order, nothing twice
    engine = Engine.load("bundled", threads=1)
    for start in (0, 5 * PART, IMAGES - IMAGES % PART):  # batches before, between and after the kills
        crops = [engine.decode(bmp(number)) for number in range(start, min(start + BATCH, IMAGES))]
        found = np.array(table["embedding"][start : start + len(crops)].to_pylist(), np.float32)
        np.testing.assert_allclose(found, engine.embed_images(crops), rtol=0, atol=1e-6)
