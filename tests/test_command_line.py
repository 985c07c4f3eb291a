"""Every command shows its help alike, refuses alike and ends alike; docs/command-line.md says how."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro
from rich.console import Console

from digpt.cli import Command, progress_lines
from digpt.cli_help import entries_of
from digpt.errors import ConfigError
from tests.test_commands import COMMANDS, flags_of

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
WIDTH = 80


def started(module: str, *arguments: str) -> tuple[int | str | None, str, str]:
    """Exit code, standard output and standard error of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, about modules that were imported before
        patch.setenv("COLUMNS", str(WIDTH))
        patch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    return stopped.value.code, out.getvalue(), err.getvalue()


@cache
def shown(module: str) -> str:
    code, out, err = started(module, "--help")
    assert (code, err) == (0, "")
    return out


def examples(text: str) -> list[str]:
    """The commands below ``Example:`` or ``Examples:``, each in one line."""
    block = re.search(r"^Examples?:\n((?:  .+\n)+)", text, re.MULTILINE)
    assert block, "no example"
    return [" ".join(line.split()) for line in block[1].replace("\\\n", " ").splitlines()]


def sections(text: str) -> dict[str, list[str]]:
    """The options and arguments below each heading."""
    found = re.findall(r"^([A-Z][A-Za-z ]+):\n((?:  .+\n)+)", text, re.MULTILINE)
    return {head: re.findall(r"^  (\S.*)$", body, re.MULTILINE) for head, body in found}


@pytest.mark.parametrize("module", COMMANDS)
def test_help_begins_with_the_purpose_and_an_example(module: str) -> None:
    text = shown(module)
    usage, purpose = text.split("\n\n")[:2]
    assert usage.startswith(f"usage: python -m {module} ") and len(usage.splitlines()) == 1
    assert purpose[0].isupper() and purpose[-1] in ".?;"
    head = "\n".join(text.splitlines()[:8])
    assert f"  python -m {module}" in head or f"  accelerate launch -m {module}" in head
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert "\x1b" not in text and "{None}" not in text and "\n\n\n" not in text


@pytest.mark.parametrize("module", COMMANDS)
def test_every_option_has_a_text_and_a_heading(module: str) -> None:
    found = sections(shown(module))
    options = [row for head, rows in found.items() if head not in ("Examples", "Example", "Exit codes") for row in rows]
    assert len(options) <= 11 or len(found) > 3
    assert "Other" not in found
    bare = re.compile(r"--[a-z][\w.-]*(, --[a-z][\w.-]*)*( [A-Z{\[]+[^a-z ]*)*( \(default: .*\))?")  # no text
    for row in re.split(r"\n(?=  \S)|\n\n", shown(module)):
        entry = " ".join(row.split())
        assert not bare.fullmatch(entry), entry
        assert len(re.findall(r"\(default", entry)) <= 1, entry


@pytest.mark.parametrize("module", COMMANDS)
def test_examples_use_flags_that_exist(module: str) -> None:
    commands = examples(shown(module))
    assert 1 <= len(commands) <= 4
    for command in commands:
        name = re.search(r"-m ([a-z_.]+)|serve run ([a-z_.]+):", command)
        assert name and module in name.groups(), command
        assert set(re.findall(r"(?<!\S)--[a-z0-9][a-z0-9-]*", command)) <= flags_of(module), command


@pytest.mark.parametrize("module", COMMANDS)
def test_what_cannot_be_read_is_refused_in_one_line(module: str) -> None:
    code, out, err = started(module, "--no-such-option", "3")
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("module", sorted(set(COMMANDS) - {"app", "serve", "serve.ray", "train.ablate"}))
def test_scripts_can_have_the_result_as_json(module: str) -> None:
    """Of all but servers, and tables of ablations, which are Markdown."""
    assert "--json" in flags_of(module)


@dataclass(frozen=True)
class Inner:
    """A nested dataclass.

    Attributes:
        depth: how deep.
    """

    depth: int = 2
    exact: bool = True  # to the bit


@dataclass(frozen=True)
class Sample:
    """Options of a command that is there for these tests."""

    place: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PLACE")]
    """Where."""
    limit: int | None = None
    """At most so many (default: all)."""
    seed: Annotated[int, tyro.conf.arg(aliases=("--of",))] = 0
    """Decides."""
    order: Literal["up", "down"] = "up"
    """Of the numbers."""
    inner: Inner = Inner()


COMMAND = Command("sample", "Say what was read.\n\n    python -m sample here --limit 3\n", after="nothing is lost")


def test_the_help_of_a_sample(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        COMMAND.parse(Sample, ["here", "-h"])
    assert capsys.readouterr().out == (
        "usage: python -m sample PLACE [options]\n\nSay what was read.\n\nExample:\n"
        "  python -m sample here --limit 3\n\nArguments:\n  PLACE                   Where.\n\nOptions:\n"
        "  --limit INT             At most so many (default: all).\n"
        "  --seed, --of INT        Decides (default: 0).\n"
        "  --order {up,down}       Of the numbers (default: up).\n"
        "  --inner.depth INT       how deep (default: 2).\n"
        "  --inner.exact, --inner.no-exact\n                          to the bit\n"
        "  -h, --help              This text.\n"
    )
    defaults = {entry.shown: entry.default for entry in entries_of(Sample, Sample(Path("x"), seed=7))}
    assert defaults["--seed, --of INT"] == "7"


@pytest.mark.parametrize("columns", ["1", "20"])
def test_a_terminal_too_narrow_for_the_help_gets_40_columns(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as stopped:
        COMMAND.parse(Sample, ["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert not stopped.value.code and max(map(len, lines)) <= 40 and "  --limit INT             At most so" in lines


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Give PLACE."),
        (["x", "--limit", "many"], "--limit many is no INT."),
        (["x", "--seed", "many"], "--seed many is no INT."),
        (["x", "--order", "odd"], "--order odd is none of {up,down}."),
        (["x", "--limit"], "Missing value for argument '--limit'."),
        (["x", "--limti", "3"], "There is no option --limti. Did you mean '--limit'?"),
        (["x", "y"], "There is no place for 'y'."),
    ],
)
def test_refusals_say_what_is_wrong(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        COMMAND.parse(Sample, arguments)
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert err.startswith(f"error: {told}") and err.endswith("All options: python -m sample --help\n")


def test_how_a_command_ends(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(sample: Sample) -> int:
        raise ConfigError("two\n  lines")

    def interrupt(sample: Sample) -> int:
        raise KeyboardInterrupt

    def fault(sample: Sample) -> int:
        raise ZeroDivisionError

    assert [COMMAND.run(Sample, ["x"], lambda sample: sample.seed + 1), COMMAND.run(Sample, ["x"], refuse)] == [1, 2]
    assert capsys.readouterr().err == "error: two lines\n"
    assert COMMAND.run(Sample, ["x"], interrupt) == 130
    assert capsys.readouterr().err == "interrupted; nothing is lost\n"
    with pytest.raises(ZeroDivisionError):
        COMMAND.run(Sample, ["x"], fault)


def test_colour_is_for_terminals_and_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def told(no_color: str) -> str:
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setenv("TERM", "xterm")
        with contextlib.redirect_stdout(Terminal()) as out, pytest.raises(SystemExit):
            COMMAND.parse(Sample, ["-h"])
        return out.getvalue()

    assert "\x1b[1mOptions:\x1b[0m" in told("") and "\x1b" not in told("1")


def test_progress_in_a_pipe_is_whole_lines_now_and_then() -> None:
    out, now = io.StringIO(), [0.0]
    report = progress_lines(Console(file=out), clock=lambda: now[0])
    for done in range(1, 101):
        now[0] += 1.0
        report("[images]", done, 100)
    report("[images]", 100, 100)
    report("uncounted", 5, 0)
    assert out.getvalue() == "[images] 30/100\n[images] 60/100\n[images] 90/100\n[images] 100/100\n"


def commands_of_the_page() -> Iterator[str]:
    for before, block in re.findall(r"([^\n]*)\n+```sh\n(.*?)```", PAGE, re.DOTALL):
        if not before.startswith("<!-- not run: "):
            yield from block.splitlines()


@pytest.mark.parametrize("command", list(commands_of_the_page()))
def test_the_page_is_right(command: str) -> None:
    module, *arguments = command.removeprefix("python -m ").split()
    code, out, err = started(module, *arguments)
    assert (code, err) == (0, "")
    assert out.startswith("usage: ") if "--help" in arguments else json.loads(out)["recipe"] == "emoji"


def test_the_refusal_on_the_page_is_what_is_said() -> None:
    command, said = re.findall(r"^\$ python -m (.+)\n(error: .+)$", PAGE, re.MULTILINE)[0]
    module, *arguments = command.split()
    assert started(module, *arguments) == (2, "", f"{said}\n")


def interrupted(command: Sequence[str], begun: Path) -> tuple[int, str]:
    """Exit code and standard error of a process that gets SIGINT once ``begun`` is there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        while not begun.exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        return process.wait(120), process.communicate()[1]
    finally:
        process.kill()


@pytest.mark.slow
def test_ctrl_c_of_a_training_saves_and_says_so(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    command = ["train.tokenizer", "--output", output, "--threads", "1", "--log-every", "1", "--save-every", "1"]
    code, err = interrupted(command, tmp_path / "run" / "resume.pt")
    assert code == 130 and "Traceback" not in err and "\x1b" not in err and "\r" not in err
    assert re.search(r"^interrupted: stopped .* the same command resumes it", err.splitlines()[-1])


@pytest.mark.slow
def test_ctrl_c_of_an_evaluation_says_how_to_go_on(tmp_path: Path) -> None:
    command = ["evaluate.robustness", "bundled", "--output", str(tmp_path / "out"), "--threads", "1"]
    code, err = interrupted(command, tmp_path / "out" / "store")
    assert code == 130 and "Traceback" not in err and "\x1b" not in err and "\r" not in err
    assert err.splitlines()[-1] == "interrupted; give the same command again: it goes on from what --output holds"
