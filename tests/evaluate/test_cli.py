"""The commands in process: what stands on stdout and on disk, exit codes, the frozen flags."""

from __future__ import annotations

import dataclasses
import json

import pytest

from digpt.artifact import write_checkpoint
from digpt.engine import Engine
from digpt.errors import BackendError
from digpt.manifest import engine_hash, read_manifest
from digpt.results import from_json, read_results
from digpt.testing import tiny_checkpoint
from evaluate import cli, imagenet, knn, recompute, robustness, run, zeroshot
from export import pipeline

QUICK = ("--corruptions", "none")


@pytest.fixture
def rigged_engine(emoji, rigged, monkeypatch):
    """Every spec loads a rigged model: top-1 right for even concepts."""
    loads = []

    def load(spec, backend=None, *, threads=None, device="cpu", image_size=None):
        print("a library talks on stdout")
        loads.append((spec, backend, threads))
        return Engine(rigged(emoji, lambda concept, _: concept % 2, text=spec != "no-text"))

    monkeypatch.setattr(cli.Engine, "load", load)
    return loads


def test_json_leaves_stdout_to_the_document(rigged_engine, emoji_root, tmp_path, capsys):
    arguments = [
        "some.pt",
        "--data-root",
        str(emoji_root),
        "--output",
        str(tmp_path / "a" / "b"),
        "--limit",
        "12",
        *QUICK,
    ]
    assert robustness.main([*arguments, "--backend", "torch", "--threads", "1", "--batch-size", "5", "--json"]) == 0
    out, err = capsys.readouterr()
    document = from_json(json.loads(out))
    assert document == read_results(tmp_path / "a" / "b")
    assert "a library talks on stdout" in err and "images" in err
    assert rigged_engine == [("some.pt", "torch", 1)]
    assert document.protocol["limit"] == 12
    assert {result.n for result in document.results if result.split == "flat"} == {12}
    flat = next(r for r in document.results if (r.split, r.metric) == ("flat", "top1"))
    assert flat.value not in (0.0, 1.0)


def test_table_shows_percentages_with_intervals(rigged_engine, emoji_root, capsys):
    assert robustness.main(["--data-root", str(emoji_root.parent), *QUICK]) == 0  # the folder above finds it too
    out, err = capsys.readouterr()
    assert rigged_engine == [("bundled", None, None)]
    assert ", by zero-shot" in out
    row = next(line for line in out.splitlines() if "emoji unseen/flat" in line)
    assert "100.0 [100.0, 100.0]" in row and " 100 " in row  # top-5 of 100 images
    assert "not written; --output DIR keeps them" in out
    assert "talks" not in out and "talks" in err


def test_without_a_text_tower_knn_only_and_said_so(rigged_engine, emoji_root, capsys):
    assert robustness.main(["no-text", "--data-root", str(emoji_root), *QUICK]) == 0
    out, _ = capsys.readouterr()
    assert "no classification: this model has neither a linear head nor a text tower" in out
    assert "kNN" in out and "emoji seen" not in out
    for model in ("no-text", "bundled"):  # where nothing else is asked, there is nothing to say
        assert knn.main([model, "--data-root", str(emoji_root)]) == 0
        out, _ = capsys.readouterr()
        assert "kNN" in out and "no classification" not in out
    assert imagenet.main(["no-text", "--data-root", str(emoji_root)]) == 2
    assert "measure its features with evaluate.knn or evaluate.linear_probe" in capsys.readouterr().err
    assert zeroshot.main(["no-text", "--data-root", str(emoji_root)]) == 2
    assert "has no text tower" in capsys.readouterr().err


def test_the_zero_shot_command_asks_with_the_templates_named(rigged_engine, emoji_root, capsys):
    assert zeroshot.main(["--data-root", str(emoji_root), "--templates", "plain", "--json"]) == 0
    document = from_json(json.loads(capsys.readouterr().out))
    assert document.model.templates == ("{}",) and document.model.classifier == "zero-shot"
    assert {r.split for r in document.results} > {"seen", "unseen", "unseen/flat"}
    assert zeroshot.main(["--data-root", str(emoji_root), "--templates", "openia"]) == 2
    assert "'openai'" in capsys.readouterr().err


def test_a_run_is_continued_and_another_one_refused(rigged_engine, emoji_root, tmp_path, capsys):
    arguments = ["--data-root", str(emoji_root), "--output", str(tmp_path), *QUICK]
    assert robustness.main([*arguments, "--limit", "12"]) == 0
    first = (tmp_path / "results.json").read_bytes()
    shards = sorted((tmp_path / "store" / "cells").rglob("*.npz"))
    shards[1].unlink()
    (tmp_path / "results.json").unlink()
    assert robustness.main([*arguments, "--limit", "12"]) == 0
    assert f"{len(shards) - 1} shards were there already" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_bytes() == first
    assert robustness.main([*arguments, "--limit", "13"]) == 2
    assert "protocol.limit: 12 against 13" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_bytes() == first
    assert robustness.main([*arguments, "--limit", "13", "--overwrite"]) == 0
    assert (tmp_path / "results.json").read_bytes() != first


def test_recompute_needs_neither_model_nor_data(rigged_engine, emoji_root, tmp_path, capsys):
    assert robustness.main(["--data-root", str(emoji_root), "--output", str(tmp_path), *QUICK]) == 0
    written = (tmp_path / "results.json").read_bytes()
    (tmp_path / "results.json").unlink()
    rigged_engine.clear()
    assert recompute.main([str(tmp_path)]) == 0
    assert rigged_engine == [] and (tmp_path / "results.json").read_bytes() == written
    assert recompute.main([str(tmp_path / "nowhere")]) == 2
    assert "no store" in capsys.readouterr().err


def test_parts_meet_in_the_store(rigged_engine, emoji_root, tmp_path, capsys):
    whole = ["--data-root", str(emoji_root), *QUICK, "--limit", "20"]
    assert robustness.main([*whole, "--output", str(tmp_path / "whole")]) == 0
    arguments = [*whole, "--output", str(tmp_path / "parts")]
    assert robustness.main([*arguments, "--part", "2/2"]) == 0
    assert "part 2/2 is done" in capsys.readouterr().err
    assert not (tmp_path / "parts" / "results.json").exists()
    assert robustness.main([*arguments, "--part", "1/2"]) == 0  # the last part finds everything there
    names = ("results.json", "per_class.csv")
    assert [(tmp_path / "parts" / n).read_bytes() for n in names] == [
        (tmp_path / "whole" / n).read_bytes() for n in names
    ]
    assert robustness.main([*whole, "--part", "1/2"]) == 2
    assert "give --output" in capsys.readouterr().err
    assert robustness.main([*arguments, "--part", "3/2"]) == 2
    assert "I from 1 to N" in capsys.readouterr().err


def test_processes_of_a_launcher_share_the_work_and_the_first_waits(rigged_engine, emoji_root, tmp_path, monkeypatch):
    arguments = ["--data-root", str(emoji_root), *QUICK, "--limit", "20", "--output", str(tmp_path)]
    monkeypatch.setenv("WORLD_SIZE", "2")

    def other_process(seconds):
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setattr("time.sleep", slept.append)
        assert robustness.main(arguments) == 0

    slept: list[float] = []
    monkeypatch.setattr("evaluate.run.time.sleep", other_process)
    monkeypatch.setenv("RANK", "0")
    assert robustness.main(arguments) == 0
    assert (tmp_path / "results.json").exists() and slept == []


def test_the_part_that_finishes_last_prints_whichever_it_is(rigged_engine, emoji_root, tmp_path, capsys):
    arguments = ["--data-root", str(emoji_root), *QUICK, "--limit", "20", "--output", str(tmp_path), "--json"]
    assert robustness.main([*arguments, "--part", "1/2"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "part 1/2 is done; 3 shards of others are missing. The part that finishes last prints" in err
    assert robustness.main([*arguments, "--part", "2/2"]) == 0
    out, err = capsys.readouterr()
    assert from_json(json.loads(out)) == read_results(tmp_path) and "is done" not in err


def test_of_a_launcher_only_the_first_process_publishes(rigged_engine, emoji_root, tmp_path, monkeypatch, capsys):
    arguments = ["--data-root", str(emoji_root), *QUICK, "--limit", "20", "--output", str(tmp_path), "--json"]
    assert robustness.main([*arguments, "--part", "1/2"]) == 0
    capsys.readouterr()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert robustness.main(arguments) == 0  # which completes the store
    out, err = capsys.readouterr()
    assert out == "" and "process 1 of 2 is done; process 0 prints the numbers" in err
    assert not (tmp_path / "results.json").exists()
    monkeypatch.setenv("RANK", "0")
    assert robustness.main(arguments) == 0
    assert from_json(json.loads(capsys.readouterr().out)) == read_results(tmp_path)


def test_the_first_process_does_the_work_of_a_dead_one(rigged_engine, emoji_root, tmp_path, monkeypatch, capsys):
    arguments = ["--data-root", str(emoji_root), *QUICK, "--limit", "20"]
    assert robustness.main([*arguments, "--output", str(tmp_path / "whole")]) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(run, "PATIENCE", 0.0)
    assert robustness.main([*arguments, "--output", str(tmp_path / "alone")]) == 0
    assert "shards of other processes were computed here" in capsys.readouterr().err
    assert (tmp_path / "alone/results.json").read_bytes() == (tmp_path / "whole/results.json").read_bytes()


def test_waiting_ends_when_nothing_new_comes_for_long_enough(monkeypatch):
    class Growing:
        """Another shard is there after 800 and after 1,600 seconds; the third never comes."""

        def missing(self):
            return [("cell", shard) for shard in range(3)][int(min(now, 1600) // 800) :]

    now = 0.0

    def sleep(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(run.time, "sleep", sleep)
    monkeypatch.setattr(run.time, "monotonic", lambda: now)
    assert run.wait(Growing()) == 1
    assert now == 1600 + run.PATIENCE


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2"),
        ({"RANK": "1"}, "RANK=1"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 WORLD_SIZE=2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1 WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "RANK=0 WORLD_SIZE=two"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 WORLD_SIZE=0"),
    ],
)
def test_what_a_launcher_cannot_have_set_is_refused(rigged_engine, tmp_path, monkeypatch, capsys, environment, told):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert robustness.main(["--output", str(tmp_path), *QUICK]) == 2
    assert f"error: The environment has {told}: a launcher sets both" in capsys.readouterr().err
    assert rigged_engine == []  # before the model is loaded


def test_one_process_of_a_launcher_is_like_none(rigged_engine, emoji_root, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "1")
    for rank in (None, "0"):
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
        assert imagenet.main(["--data-root", str(emoji_root), "--limit", "5"]) == 0
        assert "emoji seen" in capsys.readouterr().out


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
        (["--seed", "-1"], "--seed -1 must be at least 0"),
        (["--crop-pct", "87.5"], "--crop-pct 87.5 must be a share above 0 and at most 1. Did you mean 0.875?"),
        (["--crop-pct", "0"], "--crop-pct 0 must be a share above 0 and at most 1."),
        (["--crop-pct", "nan"], "--crop-pct nan must be a share"),
        (["--sets", "imagenet-r"], "--sets chooses among the sets of the ImageNet family: give --data-root DIR"),
        (["--sets", "imagenet-r", "--data", "folder:x"], "give --data-root DIR, or no --sets"),
        (["--sets", "imagenet-rr", "--data-root", "x"], "Did you mean 'imagenet-r'"),
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


def test_mistakes_of_options_are_found_before_the_model_is_loaded(rigged_engine, emoji_root, capsys):
    for arguments in (["--seed", "-1"], ["--crop-pct", "87.5"], ["--sets", "imagenet"]):
        assert imagenet.main(arguments) == 2
    assert imagenet.main(["--data-root", "x", "--sets", "imagenet", "imagenet-c"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--sets imagenet-c is none of this command's sets: imagenet, imagenet-v2, imagenet-real." in error
    assert error.endswith("Ask imagenet-c with evaluate.robustness.")
    assert rigged_engine == []
    assert robustness.main(["--data-root", str(emoji_root), "--sets", "imagenet"]) == 2
    assert "holds the emoji set" in capsys.readouterr().err


def test_errors_of_the_engine_end_alike(emoji_root, monkeypatch, capsys):
    def load(spec, backend=None, *, threads=None, device="cpu", image_size=None):
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
    common = "spec output data_root data limit preview backend device threads image_size batch_size seed part"
    common += " overwrite json"
    classify = "templates resize crop_pct interpolation"
    assert flags(cli.EvaluateOptions) == common.split()
    assert flags(knn.KnnOptions) == [*common.split(), "k", "temperature", "reference"]
    assert flags(imagenet.ImagenetOptions) == [*common.split(), *classify.split(), "sets", "split"]
    assert flags(zeroshot.ZeroshotOptions) == [*common.split(), *classify.split(), "sets"]
    assert flags(robustness.RobustnessOptions) == [*common.split(), *classify.split(), "sets", "corruptions", "jpeg"]


def flags(options):
    return [field.name for field in dataclasses.fields(options)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "ckpt.pt"
    names = [f"thing {index}" for index in range(160)]
    write_checkpoint(path, tiny_checkpoint(labels=names))
    return path


def test_a_real_checkpoint_twice_gives_the_same_bytes(checkpoint, emoji_root, tmp_path):
    for name in ("a", "b"):
        arguments = ["--data-root", str(emoji_root), "--limit", "30", "--output", str(tmp_path / name)]
        arguments += ["--threads", "1"]
        arguments += QUICK
        assert robustness.main([str(checkpoint), *arguments]) == 0
    assert (tmp_path / "a/results.json").read_bytes() == (tmp_path / "b/results.json").read_bytes()
    document = read_results(tmp_path / "a")
    assert document.model.backend == "torch" and document.model.has_text
    assert document.model.preprocess["size"] == 32
    assert len(document.results) == 5 * 10 + 2 * 3


def test_torch_and_onnx_give_the_same_document(checkpoint, emoji_root, tmp_path):
    exported = pipeline.run(str(checkpoint), ("onnx",), tmp_path / "onnx", threads=1, parity_images=16)
    assert exported.passed
    documents = []
    for spec, backend in ((checkpoint, "torch"), (tmp_path / "onnx", "onnx")):
        arguments = ["--data-root", str(emoji_root), "--limit", "30", "--output", str(tmp_path / backend)]
        assert robustness.main([str(spec), *arguments, *QUICK, "--threads", "1"]) == 0
        documents.append(read_results(tmp_path / backend))
    ours, exported_ours = documents
    assert (ours.model.backend, exported_ours.model.backend) == ("torch", "onnx")
    engine = engine_hash(read_manifest(tmp_path / "onnx"), "onnx")
    assert (ours.model.engine, exported_ours.model.engine) == (None, engine)
    asked = dataclasses.replace(exported_ours.model, spec=str(checkpoint), backend="torch", engine=None)
    assert asked == ours.model
    for one, other in zip(ours.results, exported_ours.results, strict=True):
        assert (one.dataset, one.split, one.metric, one.n) == (other.dataset, other.split, other.metric, other.n)
        if one.metric in ("ece", "nll", "brier"):
            assert other.value == pytest.approx(one.value, rel=1e-4)
        else:
            assert other == one
