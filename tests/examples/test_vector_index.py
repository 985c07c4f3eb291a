"""The example that builds an index from bulk embeddings: it finds what is there, and refuses other weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from digpt.artifact import write_checkpoint
from digpt.engine import Engine
from digpt.errors import ConfigError, DataError
from digpt.runtime.fake import FakeRuntime
from digpt.testing import tiny_checkpoint
from serve.offline import OfflineConfig, embed


@pytest.fixture(scope="module")
def example(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("vector_index")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def embedded(pictures: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, engine: Engine) -> Path:
        embed(OfflineConfig(str(pictures), tmp_path / name, part_rows=5), load=lambda: engine)
        return tmp_path / name

    return run


def test_a_picture_and_a_text_find_what_is_nearest(
    example: ModuleType, embedded: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    engine = Engine(FakeRuntime(dim=8))
    file, index = embedded("a.parquet", engine), tmp_path / "a.faiss"
    assert example.build([file], index) == 12
    found = example.query(engine, index, text=None, image=pictures / "07.png", k=3)
    assert found[0] == ("07.png", pytest.approx(1.0, abs=1e-6))
    assert len(found) == 3
    by_text = example.query(engine, index, text="a cat", image=None, k=20)
    crops = [engine.decode((pictures / f"{number:02d}.png").read_bytes()) for number in range(12)]
    cosines = engine.similarity(engine.embed_texts(["a cat"]), engine.embed_images(crops))[0]
    assert [name for name, _ in by_text] == [f"{number:02d}.png" for number in np.argsort(-cosines)]
    with pytest.raises(ConfigError, match="either --text or --image"):
        example.query(engine, index, text=None, image=None, k=1)


def test_other_weights_are_refused(example: ModuleType, embedded: Callable[..., Path], tmp_path: Path) -> None:
    engine, other = Engine(FakeRuntime(dim=8)), Engine(FakeRuntime(dim=8, size=32))
    files = [embedded("a.parquet", engine), embedded("b.parquet", other)]
    with pytest.raises(DataError, match="do not belong in one index"):
        example.build(files, tmp_path / "mixed.faiss")
    assert not (tmp_path / "mixed.faiss").exists()
    example.build(files[:1], tmp_path / "a.faiss")
    with pytest.raises(DataError, match="ask with the model that it was built with"):
        example.query(other, tmp_path / "a.faiss", text="a cat", image=None, k=1)


def test_its_commands(
    example: ModuleType,
    embedded: Callable[..., Path],
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, index = tmp_path / "ckpt.pt", tmp_path / "a.faiss"
    write_checkpoint(model, tiny_checkpoint())
    file = embedded("a.parquet", Engine.load(str(model), threads=1))
    assert example.main(["build", str(file), "--index", str(index)]) == 0
    assert "a.faiss: 12 embeddings" in capsys.readouterr().out
    asked = ["query", str(index), "--image", str(pictures / "03.png"), "--k", "2", "--model"]
    assert example.main([*asked, str(model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1.0000  03.png"
    assert len(lines) == 2
    write_checkpoint(tmp_path / "other.pt", tiny_checkpoint(seed=1))
    assert example.main([*asked, str(tmp_path / "other.pt")]) == 2
    assert "ask with the model" in capsys.readouterr().err
