"""The commands in process: what stands on stdout and on disk, exit codes, the frozen flags."""

from __future__ import annotations

import dataclasses
import json

import pytest

from digpt.artifact import write_checkpoint
from digpt.engine import Engine
from digpt.errors import BackendError
from digpt.results import from_json, read_results
from digpt.testing import tiny_checkpoint
from evaluate import cli, knn, robustness
from export import pipeline


@pytest.fixture
def rigged_engine(emoji, rigged, monkeypatch):
    """Every spec loads a rigged model: top-1 right for even concepts."""
    loads = []

    def load(spec, backend=None, *, threads=None):
        print("a library talks on stdout")
        loads.append((spec, backend, threads))
        return Engine(rigged(emoji, lambda concept, _: concept % 2, text=spec != "no-text"))

    monkeypatch.setattr(cli.Engine, "load", load)
    return loads


def test_json_leaves_stdout_to_the_document(rigged_engine, emoji_root, tmp_path, capsys):
    arguments = ["some.pt", "--data-root", str(emoji_root), "--output", str(tmp_path / "a" / "b"), "--limit", "12"]
    assert robustness.main([*arguments, "--backend", "torch", "--threads", "1", "--batch-size", "5", "--json"]) == 0
    out, err = capsys.readouterr()
    document = from_json(json.loads(out))
    assert document == read_results(tmp_path / "a" / "b")
    assert "a library talks on stdout" in err and "images" in err
    assert rigged_engine == [("some.pt", "torch", 1)]
    assert document.protocol["limit"] == 12
    assert {result.n for result in document.results if result.split == "flat"} == {12}
    flat = next(r for r in document.results if (r.split, r.metric) == ("flat", "zeroshot_top1"))
    assert flat.value not in (0.0, 1.0)


def test_table_shows_percentages_with_intervals(rigged_engine, emoji_root, capsys):
    assert robustness.main(["--data-root", str(emoji_root.parent)]) == 0  # the folder above finds it too
    out, err = capsys.readouterr()
    assert rigged_engine == [("bundled", None, None)]
    assert "emoji, zero-shot" in out and "emoji, kNN" in out and "top1 k20" in out
    row = next(line for line in out.splitlines() if "unseen/flat" in line)
    assert "100.0 [100.0, 100.0]" in row and " 100 " in row  # top-5 of 100 images
    assert "not written; --output DIR keeps them" in out
    assert "talks" not in out and "talks" in err


def test_without_a_text_tower_knn_only_and_said_so(rigged_engine, emoji_root, capsys):
    assert robustness.main(["no-text", "--data-root", str(emoji_root)]) == 0
    out, _ = capsys.readouterr()
    assert "zero-shot: not measured, this model has no text tower" in out
    assert "emoji, kNN" in out and "emoji, zero-shot" not in out


def test_knn_command(rigged_engine, emoji_root, capsys):
    arguments = ["--k", "1", "3", "--reference", "fluent3d", "--temperature", "0.2", "--json"]
    assert knn.main(["--data-root", str(emoji_root), *arguments]) == 0
    document = from_json(json.loads(capsys.readouterr().out))
    assert {result.metric for result in document.results} == {"knn_top1_k1", "knn_top1_k3"}
    assert document.protocol["knn"]["reference"] == ["seen/fluent3d"]
    assert document.protocol["knn"]["temperature"] == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "--limit 0 must be at least 1"),
        (["--batch-size", "-3"], "--batch-size -3 must be at least 1"),
        (["--threads", "0"], "--threads 0 must be at least 1"),
        (["--data-root", "nowhere"], "nowhere"),
        (["--output", "{file}"], "cannot be a directory"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(rigged_engine, tmp_path, capsys, arguments, message):
    (tmp_path / "file").write_text("")
    assert robustness.main([argument.format(file=tmp_path / "file") for argument in arguments]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.strip() != "a library talks on stdout"]
    assert out == "" and len(lines) == 1
    assert lines[0].startswith("error: ") and message in lines[0]


def test_errors_of_the_engine_end_alike(emoji_root, monkeypatch, capsys):
    def load(spec, backend=None, *, threads=None):
        raise BackendError("first line\n  second line")

    monkeypatch.setattr(cli.Engine, "load", load)
    assert robustness.main(["--data-root", str(emoji_root)]) == 2
    assert capsys.readouterr().err.strip() == "error: first line second line"


def test_an_unknown_flag_exits_with_2(capsys):
    with pytest.raises(SystemExit) as exit_:
        robustness.main(["--limt", "3"])
    assert exit_.value.code == 2
    assert "--limit" in capsys.readouterr().err


def test_the_flags_are_frozen():
    """Scripts depend on them: adding one is fine, renaming or removing one breaks users."""
    flags = [field.name for field in dataclasses.fields(cli.EvaluateOptions)]
    assert flags == ["spec", "output", "data_root", "limit", "backend", "threads", "batch_size", "seed", "json"]
    extra = [field.name for field in dataclasses.fields(knn.KnnOptions)][len(flags) :]
    assert extra == ["k", "temperature", "reference"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "ckpt.pt"
    names = [f"thing {index}" for index in range(160)]
    write_checkpoint(path, tiny_checkpoint(labels=names))
    return path


def test_a_real_checkpoint_twice_gives_the_same_bytes(checkpoint, emoji_root, tmp_path):
    for run in ("a", "b"):
        arguments = ["--data-root", str(emoji_root), "--limit", "30", "--output", str(tmp_path / run), "--threads", "1"]
        assert robustness.main([str(checkpoint), *arguments]) == 0
    assert (tmp_path / "a/results.json").read_bytes() == (tmp_path / "b/results.json").read_bytes()
    document = read_results(tmp_path / "a")
    assert document.model.backend == "torch" and document.model.has_text
    assert document.model.preprocess["size"] == 32
    assert len(document.results) == 2 * 10 + 2 * 3


def test_torch_and_onnx_give_the_same_document(checkpoint, emoji_root, tmp_path):
    exported = pipeline.run(str(checkpoint), ("onnx",), tmp_path / "onnx", threads=1, parity_images=16)
    assert exported.passed
    documents = []
    for spec, backend in ((checkpoint, "torch"), (tmp_path / "onnx", "onnx")):
        arguments = ["--data-root", str(emoji_root), "--limit", "30", "--output", str(tmp_path / backend)]
        assert robustness.main([str(spec), *arguments, "--threads", "1"]) == 0
        documents.append(read_results(tmp_path / backend))
    ours, exported_ours = documents
    assert (ours.model.backend, exported_ours.model.backend) == ("torch", "onnx")
    asked = dataclasses.replace(exported_ours.model, spec=str(checkpoint), backend="torch")
    assert dataclasses.replace(exported_ours, model=asked) == ours
