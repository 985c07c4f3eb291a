"""What the commands of docs/bulk.md answer; they run as they stand."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.docs.pages import Scratch, to_run


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_do_what_the_page_says(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    indexed, read, over_ray = (scratch.run(block) for block in to_run("docs/bulk.md"))
    lines = indexed.splitlines()
    assert any("pictures.parquet: 3 rows; " in line for line in lines)
    assert "pictures.faiss: 3 embeddings" in indexed
    found = [line.split()[1] for line in lines if line.endswith(".png")]
    assert (found[0], found[3]) == ("red-apple.png", "rocket.png")
    assert "1.0000  rocket.png" in lines
    assert read == "3 (3, 192)\n"
    ours, ray = (pq.read_table(tmp_path / f"runs/bulk/{name}.parquet") for name in ("pictures", "ray"))
    assert over_ray and ours.equals(ray, check_metadata=True)
