"""The loop: exact resumption through kills, refusals, the time split; on a tiny real contrastive task."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from digpt.artifact import read_checkpoint
from digpt.errors import CheckpointError, ConfigError, DigptError, MissingDependencyError
from train.config import parse, resolved
from train.loop import Clock, Interrupted, train
from train.optim import build_optimizer, decay_groups, learning_rate
from train.teacher import TeacherConfig, TeacherTask

TINY = TeacherConfig(
    trunk="", width=32, layers=1, head_width=16, embed_dim=16, text_width=32, text_layers=1, text_heads=2,
    vocab_size=400, batch_size=8, steps=12, warmup=2, log_every=1, eval_every=1000, save_every=1, threads=1,
)  # fmt: skip


def task_for(config: TeacherConfig) -> TeacherTask:
    task = TeacherTask(config)
    task.evaluate = lambda evaluation: {}  # type: ignore[method-assign]  # thousands of images: not what is tested here
    return task


def quiet() -> Console:
    return Console(file=io.StringIO())


def losses(folder: Path) -> list[tuple[int, float]]:
    return logged(folder, "loss")


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row[name]) for row in rows if name in row]


def same_weights(first: Path, second: Path) -> bool:
    a, b = read_checkpoint(first).weights, read_checkpoint(second).weights
    return all(torch.equal(value, b[group][name]) for group, named in a.items() for name, value in named.items())


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    config = dataclasses.replace(TINY, output=folder)
    train(task_for(config), quiet())
    return folder


def test_training_learns_and_writes_what_it_promises(straight: Path) -> None:
    assert {"ckpt.pt", "metrics.jsonl", "config.json"} <= {file.name for file in straight.iterdir()}
    values = losses(straight)
    assert [step for step, _ in values] == list(range(1, 13))
    assert values[-1][1] < values[0][1]
    provenance = read_checkpoint(straight / "ckpt.pt").provenance
    assert provenance["steps"] == 12 and provenance["seconds"] > 0
    assert set(provenance["time_split"]) >= {"loader", "encoder", "optimiser"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_nine_at_bad_moments_changes_no_bit(tmp_path: Path) -> None:
    """A hundred kills, most of them while a checkpoint is being written; KILLS in the environment asks for fewer."""
    kills = int(os.environ.get("KILLS", "100"))
    script = Path(__file__).with_name("kill_nine.py")
    command = [sys.executable, str(script), str(tmp_path), str(kills)]
    done = subprocess.run(command, cwd=script.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed at step") == kills
    for unfinished in (".resume.pt.tmp", ".step_", ".best.pt.tmp"):  # a quarter of the kills is aimed at each
        assert done.stdout.count(unfinished) >= max(1, kills // 10), done.stdout
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    files = {file.relative_to(straight) for file in straight.rglob("*.pt")}
    assert files == {file.relative_to(killed) for file in killed.rglob("*.pt")} and len(files) == 5
    for file in files - {Path("resume.pt")}:
        assert same_weights(straight / file, killed / file), file
    for name in ("loss", "weights"):  # of each step, and of each evaluation
        assert logged(straight, name) == logged(killed, name)
    assert len(losses(straight)) == read_checkpoint(killed / "ckpt.pt").provenance["steps"] >= 6 * kills


def test_another_configuration_is_refused_by_field_and_overwrite_restarts(straight: Path) -> None:
    other = dataclasses.replace(TINY, output=straight, lr=0.5)
    with pytest.raises(ConfigError, match=r"lr \(0.001 there, 0.5 now\).*--overwrite"):
        train(task_for(other), quiet())


def test_sigterm_saves_and_the_same_command_resumes(straight: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, output=tmp_path, save_every=1000)
    task = task_for(config)
    once = task.after_step

    def interrupt() -> None:
        once()
        os.kill(os.getpid(), signal.SIGTERM)

    task.after_step = interrupt  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="stopped at step 1"):
        train(task, quiet())
    train(task_for(config), quiet())
    assert same_weights(straight / "ckpt.pt", tmp_path / "ckpt.pt")


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, output=tmp_path, steps=1)
    train(task_for(config), quiet())
    (tmp_path / "resume.pt").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"resume\.pt"):
        train(task_for(config), quiet())


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    from train.state import RunFolder

    with (
        RunFolder(tmp_path, {}, overwrite=False),
        pytest.raises(ConfigError, match="Another process is training"),
    ):
        RunFolder(tmp_path, {}, overwrite=False)
    with RunFolder(tmp_path, {}, overwrite=False):
        pass  # free again


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_change(tmp_path: Path, clip: float) -> None:
    config = dataclasses.replace(TINY, output=tmp_path, clip=clip)
    task = task_for(config)
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    scale = task.module.clip.logit_scale
    task.loss = lambda model, batch, clock: {"loss": (scale - scale.detach()).sqrt().sum()}  # type: ignore[method-assign]
    with pytest.raises(DigptError, match=r"gradient is not finite at step 1 \(loss 0\)"):
        train(task, quiet())
    assert all(torch.equal(value, before[name]) for name, value in task.module.state_dict().items())
    assert not (tmp_path / "resume.pt").exists()


def poisoned(config: TeacherConfig, *steps: int) -> TeacherTask:
    """A task whose gradient is not finite at these 0-based steps, in one parameter."""
    task = task_for(config)
    honest, scale = task.loss, task.module.clip.logit_scale

    def loss(model: Any, batch: Any, clock: Clock) -> dict[str, torch.Tensor]:
        values = honest(model, batch, clock)
        infinite = (scale - scale.detach()).sqrt().sum()  # the root's slope at 0
        return {**values, "loss": values["loss"] + infinite} if batch.step in steps else values

    task.loss = loss  # type: ignore[method-assign]
    return task


def test_a_step_can_be_skipped_and_is_reported(straight: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, output=tmp_path, nonfinite="skip")
    train(poisoned(config, 3), quiet())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("event") == "skipped"] == [4]
    assert losses(tmp_path)[:3] == losses(straight)[:3] and 4 not in dict(losses(tmp_path))
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["step"] == 4 and failure["policy"] == "skip"
    assert failure["parameters"] == ["clip.logit_scale"]
    limited = dataclasses.replace(config, output=tmp_path / "limited", nonfinite_limit=1)
    with pytest.raises(DigptError, match="gradient is not finite at step 3"):
        train(poisoned(limited, 1, 2), quiet())


def test_a_reload_goes_back_to_the_save_and_leaves_the_step_out(straight: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, output=tmp_path, nonfinite="reload", save_every=2)
    train(poisoned(config, 3), quiet())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (event,) = [row for row in rows if "event" in row]
    assert event["event"] == "reloaded" and "from step 2, leaving out [4]" in event["detail"]
    assert losses(tmp_path)[:3] == losses(straight)[:3] and 4 not in dict(losses(tmp_path))
    with pytest.raises(DigptError, match="nothing is saved yet to reload"):
        first = dataclasses.replace(config, output=tmp_path / "first")
        train(poisoned(first, 0), quiet())


def test_a_stopped_run_goes_on_with_another_policy(straight: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, output=tmp_path)
    with pytest.raises(DigptError, match="go on from the last save with --nonfinite skip or reload"):
        train(poisoned(config, 3), quiet())
    train(poisoned(dataclasses.replace(config, nonfinite="skip"), 3), quiet())
    assert losses(tmp_path)[:3] == losses(straight)[:3] and 4 not in dict(losses(tmp_path))


def test_a_reload_repeats_the_evaluation_that_followed_the_save(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, output=tmp_path, nonfinite="reload", save_every=100, eval_every=4, steps=12)
    task, asked = poisoned(config, 5), []

    def evaluate(evaluation: Any) -> dict[str, float]:
        asked.append(1)
        return {"flat_top1": [0.5, 0.5, 0.4, 0.3][len(asked) - 1]}

    task.evaluate = evaluate  # type: ignore[method-assign]
    train(task, quiet())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["flat_top1"]) for row in rows if "flat_top1" in row] == [(4, 0.5), (8, 0.4), (12, 0.3)]
    assert read_checkpoint(tmp_path / "best.pt").provenance["step"] == 4


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, output=tmp_path, eval_every=2, keep_last=2)
    task, values = task_for(config), iter([0.1, 0.5, 0.2, 0.5, 0.4, 0.3])
    task.evaluate = lambda evaluation: {"flat_top1": next(values)}  # type: ignore[method-assign]
    train(task, quiet())
    kept = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step_00000008.pt", "step_00000010.pt"]
    best = read_checkpoint(tmp_path / "best.pt").provenance
    assert best["step"] == 4 and best["figures"]["flat_top1"] == 0.5
    assert read_checkpoint(tmp_path / "ckpt.pt").provenance["figures"]["flat_top1"] == 0.3


def test_sigterm_in_an_evaluation_loses_nothing(straight: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, output=tmp_path, eval_every=5, keep_last=0)
    task = task_for(config)

    def evaluate(evaluation: Any) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        evaluation.check()
        raise AssertionError("check() must have raised")

    task.evaluate = evaluate  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="stopped while evaluating"):
        train(task, quiet())
    again, seen = task_for(config), []
    again.evaluate = lambda evaluation: seen.append(1) or {}  # type: ignore[method-assign, func-returns-value]
    train(again, quiet())
    assert len(seen) == 3  # the one that was missed, and those after steps 10 and 12
    assert same_weights(straight / "ckpt.pt", tmp_path / "ckpt.pt")


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_loop import TINY, quiet, task_for
import dataclasses
from train.loop import train
config = dataclasses.replace(TINY, output=Path(sys.argv[2]))
size = (config.output / "resume.pt").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from digpt.errors import CheckpointError
try:
    train(task_for(config), quiet())
except CheckpointError as error:
    print("refused:", error)
"""


@pytest.mark.slow
def test_a_full_disk_leaves_the_previous_state(straight: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a disk without room."""
    config = dataclasses.replace(TINY, output=tmp_path)
    dying, steps = task_for(config), []

    def die() -> None:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt

    dying.after_step = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train(dying, quiet())
    before = (tmp_path / "resume.pt").read_bytes()
    here = Path(__file__).parent
    script = [sys.executable, "-c", FULL_DISK, str(here), str(tmp_path)]
    done = subprocess.run(script, cwd=here.parents[1], capture_output=True, text=True)
    assert "resume.pt could not be written" in done.stdout and "Make room" in done.stdout, done.stderr
    assert (tmp_path / "resume.pt").read_bytes() == before
    assert not [file for file in tmp_path.iterdir() if "tmp" in file.name]
    train(task_for(config), quiet())
    assert same_weights(straight / "ckpt.pt", tmp_path / "ckpt.pt")


def test_unknown_and_missing_trackers_are_named(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, output=tmp_path, trackers=("tensorbord",))
    with pytest.raises(ConfigError, match="tensorboard"):
        train(task_for(config), quiet())
    with pytest.raises(MissingDependencyError, match="pip install comet_ml"):
        train(task_for(dataclasses.replace(config, trackers=("comet_ml",))), quiet())


def test_tensorboard_gets_the_loss_of_each_logged_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = dataclasses.replace(TINY, output=tmp_path, steps=5, log_every=2, trackers=("tensorboard",))
    train(task_for(config), quiet())
    (file,) = (tmp_path / "digpt").glob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload().Scalars("loss")
    assert [event.step for event in events] == [2, 4, 5]
    assert {event.step: event.value for event in events} == pytest.approx(dict(losses(tmp_path)))


def test_epochs_set_steps_warm_up_and_rate() -> None:
    config = dataclasses.replace(TINY, epochs=300, warmup_epochs=40, base_lr=1.5e-4, batch_size=4096)
    full = resolved(config, 1_281_167)
    assert (full.steps, full.warmup, full.lr) == (93_835, 12_511, pytest.approx(2.4e-3))


def test_a_finished_run_is_left_as_it_is(straight: Path) -> None:
    files = {file: file.read_bytes() for file in straight.iterdir()}
    config = dataclasses.replace(TINY, output=straight)
    assert train(task_for(config), quiet()) == straight / "ckpt.pt"
    assert {file: file.read_bytes() for file in straight.iterdir()} == files


def test_overwrite_starts_again_and_keeps_what_is_not_ours(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, output=tmp_path, steps=2)
    train(task_for(config), quiet())
    (tmp_path / "notes.txt").write_text("mine")
    again = dataclasses.replace(config, lr=0.5, overwrite=True)
    train(task_for(again), quiet())
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert json.loads((tmp_path / "config.json").read_text())["lr"] == 0.5 and len(losses(tmp_path)) == 2
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"without its config\.json.*--overwrite"):
        train(task_for(config), quiet())


def test_another_teacher_behind_the_same_path_is_noticed(straight: Path) -> None:
    config = dataclasses.replace(TINY, output=straight)
    task = task_for(config)
    task.inputs = lambda: {"data": "another"}  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"data fingerprint \(.* there, 'another' now\)"):
        train(task, quiet())


def test_schedule_and_weight_decay_groups() -> None:
    config = dataclasses.replace(TINY, steps=100, warmup=10, lr=1.0, min_lr=0.1)
    assert learning_rate(0, config) == pytest.approx(0.1) and learning_rate(9, config) == pytest.approx(1.0)
    assert learning_rate(55, config) == pytest.approx(0.55) and learning_rate(100, config) == pytest.approx(0.1)
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))
    decay, plain = build_optimizer(decay_groups(module, 0.05), config).param_groups
    assert [p.ndim for p in decay["params"]] == [2] and len(plain["params"]) == 3 and plain["weight_decay"] == 0
    (exempt,) = build_optimizer(decay_groups(module, 0.05, {"0.weight"}), config).param_groups
    assert len(exempt["params"]) == 4 and exempt["weight_decay"] == 0


def test_clock_books_nested_time_once() -> None:
    clock = Clock()
    with clock.part("outer"):
        time.sleep(0.01)
        with clock.part("inner"):
            time.sleep(0.02)
    assert clock.seconds["inner"] >= 0.02 and 0.01 <= clock.seconds["outer"] < 0.02


def test_command_line_overrides_and_names_near_misses(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse("teacher", ["bundled", "--steps", "7", "--augment.rotate", "3"])
    assert config.steps == 7 and config.augment.rotate == 3
    with pytest.raises(ConfigError, match="bundled"):
        parse("teacher", ["bundeld"])
    with pytest.raises(SystemExit):
        parse("teacher", ["--stesp", "7"])
    assert "--steps" in capsys.readouterr().err
