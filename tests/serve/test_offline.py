"""Bulk embedding: its rows, what it refuses, and that kills cost nothing but time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from digpt.embeddings_file import read_about, read_embeddings
from digpt.engine import Engine
from digpt.errors import ConfigError
from digpt.preprocess import Preprocess
from digpt.runtime.fake import FakeRuntime
from serve.offline import OfflineConfig, Summary, embed, main, sentence

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, image: Callable[..., bytes]) -> Path:
    """Thirty pictures in two folders, and one file that is none."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "b").mkdir()
    for number in range(30):
        (root / ("b" if number % 2 else "") / f"{number:02d}.png").write_bytes(image(number))
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return root


def run(folder: Path, output: Path, engine: Engine | None = None, **options: object) -> Summary:
    settings = {"batch_size": 4, "part_rows": 8, "decode_workers": 2, **options}
    config = OfflineConfig(str(folder), output, **settings)  # type: ignore[arg-type]
    return embed(config, load=lambda: engine or Engine(FakeRuntime(dim=8)))


def test_a_row_per_image_with_what_the_engine_answers(folder: Path, tmp_path: Path) -> None:
    engine = Engine(FakeRuntime(dim=8))
    summary = run(folder, tmp_path / "out.parquet", engine)
    assert (summary.rows, summary.errors, summary.kept) == (31, 1, 0)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    assert set(table["fingerprint"].to_pylist()) == {engine.info.fingerprint}
    for row in table.to_pylist():
        if row["id"] == "broken.jpg":
            assert row["embedding"] is None
            assert "damaged or truncated" in row["error"]
            continue
        expected = engine.embed_images([engine.decode((folder / row["id"]).read_bytes())])[0]
        assert row["error"] is None
        assert row["embedding"] == expected.tolist()


def test_the_file_says_what_made_it(folder: Path, tmp_path: Path) -> None:
    engine = Engine(FakeRuntime(dim=8))
    run(folder, tmp_path / "out.parquet", engine)
    about, info = read_about(tmp_path / "out.parquet"), engine.info
    assert (about.spec, about.fingerprint, about.backend) == (info.spec, info.fingerprint, info.backend)
    assert (about.precision, about.dim, about.normalized) == ("fp32", 8, True)
    assert Preprocess.from_dict(about.preprocess) == info.preprocess
    assert about.digpt not in ("", "unknown")
    field = pq.read_schema(tmp_path / "out.parquet").field("embedding").type
    assert (str(field.value_type), field.list_size) == ("float", 8)
    assert {path.name for path in tmp_path.iterdir()} == {"out.parquet"}  # nothing is left beside it


def test_batches_follow_from_numbers_alone(folder: Path, tmp_path: Path) -> None:
    """Parts of 8 in batches of 4; the last part has 7 rows, one of them unreadable."""
    runtime = FakeRuntime(dim=8)
    run(folder, tmp_path / "out.parquet", Engine(runtime))
    assert runtime.batches == [4, 4] * 3 + [4, 2]


def test_what_was_computed_is_not_computed_again(folder: Path, tmp_path: Path) -> None:
    output, runtime = tmp_path / "out.parquet", FakeRuntime(dim=8)
    run(folder, output)
    whole = output.read_bytes()
    calls = 0

    class Stop(Exception):
        pass

    def progress(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:  # of nothing done, and of two parts
            raise Stop

    config = OfflineConfig(str(folder), output, batch_size=4, part_rows=8, decode_workers=2, overwrite=True)
    with pytest.raises(Stop):
        embed(config, progress, lambda: Engine(FakeRuntime(dim=8)))
    assert not output.exists()
    summary = run(folder, output, Engine(runtime))
    assert (summary.kept, sum(runtime.batches)) == (16, 14)
    assert output.read_bytes() == whole
    again = run(folder, output, Engine(runtime))
    assert (again.kept, again.errors, sum(runtime.batches)) == (31, 1, 14)  # complete: nothing to do


def test_a_differing_job_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    parts = tmp_path / "out.parquet.parts"
    parts.mkdir()
    run(folder, tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match="holds something else"):
        (parts / "notes.txt").write_text("mine")
        run(folder, output)
    (parts / "notes.txt").unlink()
    interrupt(folder, output)
    with pytest.raises(ConfigError, match=r"differs in batch_size \(batch_size: 4 there, 5 now\)"):
        run(folder, output, batch_size=5)
    with pytest.raises(ConfigError, match="differs in fingerprint, preprocess"):
        run(folder, output, Engine(FakeRuntime(dim=8, size=32)))
    rebuilt = FakeRuntime(dim=8)
    rebuilt.info = replace(rebuilt.info, engine="sha256:1")
    with pytest.raises(ConfigError, match=r"differs in engine \(engine: None there, sha256:1 now\)"):
        run(folder, output, Engine(rebuilt))
    assert run(folder, output, batch_size=5, overwrite=True).kept == 0
    with pytest.raises(ConfigError, match="from another input, model or settings"):
        run(folder, output)
    assert run(folder, output, overwrite=True).rows == 31


def interrupt(folder: Path, output: Path) -> None:
    """Leave the parts of a job that stopped before its first part."""

    def progress(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        config = OfflineConfig(str(folder), output, batch_size=4, part_rows=8)
        embed(config, progress, lambda: Engine(FakeRuntime(dim=8)))


def test_two_processes_do_not_write_one_output(folder: Path, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        with pytest.raises(ConfigError, match="Another process is writing"):
            run(folder, tmp_path / "out.parquet")

    config = OfflineConfig(str(folder), tmp_path / "out.parquet", batch_size=4, part_rows=8)
    assert embed(config, progress, lambda: Engine(FakeRuntime(dim=8))).rows == 31


def test_an_image_whose_numbers_are_not_finite_fails_alone(folder: Path, tmp_path: Path) -> None:
    class Poisoned(FakeRuntime):
        def embed(self, images: np.ndarray) -> np.ndarray:
            rows = super().embed(images)
            rows[[image.tobytes() == poison.tobytes() for image in images]] = np.nan
            return rows

    engine = Engine(Poisoned(dim=8))
    poison = engine.decode((folder / "b" / "05.png").read_bytes())
    assert run(folder, tmp_path / "out.parquet", engine).errors == 2
    errors = {row["id"]: row["error"] for row in pq.read_table(tmp_path / "out.parquet").to_pylist() if row["error"]}
    assert set(errors) == {"b/05.png", "broken.jpg"}
    assert "not finite" in errors["b/05.png"]


def test_decoding_does_not_run_away(tmp_path: Path, image: Callable[..., bytes]) -> None:
    """While the model computes a batch, only so many others are decoded: memory stays bounded."""
    for number in range(60):
        (tmp_path / f"{number:02d}.png").write_bytes(image(number))
    decoded = 0
    ahead = []

    class Counting(Engine):
        def decode(self, data: bytes) -> np.ndarray:
            nonlocal decoded
            decoded += 1
            return super().decode(data)

    class Slow(FakeRuntime):
        def embed(self, images: np.ndarray) -> np.ndarray:
            ahead.append(decoded - sum(self.batches))
            return super().embed(images)

    run(tmp_path, tmp_path / "out" / "o.parquet", Counting(Slow(dim=8, delay=0.02)), part_rows=60, decode_workers=1)
    assert len(ahead) == 15
    assert 4 < max(ahead) <= 4 * (1 + 2)  # the batch itself, one per thread, and two more


def test_killed_twice_and_complete(tmp_path: Path, image: Callable[..., bytes]) -> None:
    folder, output = tmp_path / "pictures", tmp_path / "out.parquet"
    folder.mkdir()
    for number in range(300):
        (folder / f"{number:03d}.png").write_bytes(image(number, size=(20, 20)))
    script = Path(__file__).with_name("offline_killed.py")
    command = [sys.executable, str(script), str(folder), str(output)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("killed after") == 2
    ids = pq.read_table(output)["id"].to_pylist()
    assert ids == [f"{number:03d}.png" for number in range(300)]  # nothing twice, nothing lost
    straight = tmp_path / "straight.parquet"
    run(folder, straight)
    assert straight.read_bytes() == output.read_bytes()
    assert not (tmp_path / "out.parquet.parts").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["--model", "http://127.0.0.1:1"], "cannot be reached"),
        (["--column", "image"], "has none; leave it out"),
    ],
)
def test_refusals_are_a_sentence(
    folder: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), str(tmp_path / "out.parquet"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1


def test_the_output_is_neither_a_folder_nor_in_its_own_input(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        run(folder, tmp_path)
    images = pa.table({"image": [(folder / "00.png").read_bytes()]})
    pq.write_table(images, tmp_path / "in.parquet")
    for output in (tmp_path / "in.parquet", tmp_path / "out.parquet"):
        with pytest.raises(ConfigError, match="would lie in its own input"):
            run(tmp_path, output)
    assert run(tmp_path / "in.parquet", tmp_path / "out.parquet").rows == 1


def test_the_command_prints_one_json_object(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OfflineConfig, "load", lambda self: Engine(FakeRuntime(dim=8)))
    output = tmp_path / "out.parquet"
    assert main([str(folder), str(output), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["rows"], said["errors"], said["output"]) == (31, 1, str(output))
    assert said["images_per_second"] == pytest.approx(31 / said["seconds"], rel=0.05)
    assert 0 < said["ratio"] <= 1
    rows = [ids for ids, _ in read_embeddings([output])]
    assert sum(map(len, rows)) == 30
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"no picture")
    assert main([str(broken), str(tmp_path / "none.parquet")]) == 1
    assert "1 rows; 1 inputs could not be embedded" in capsys.readouterr().out


def test_a_run_that_had_nothing_to_do_boasts_no_speed() -> None:
    done = Summary(
        "out.parquet", rows=96, errors=2, kept=96, seconds=0.01, images_per_second=0.0, ratio=0.0, fingerprint=""
    )
    assert sentence(done) == (
        "out.parquet: all 96 rows from an earlier run; 2 inputs could not be embedded, their rows say why; "
        "--overwrite begins again"
    )
    assert "90 of them kept from an earlier run" in sentence(replace(done, kept=90))
    assert "0 images/s" in sentence(replace(done, kept=90))
