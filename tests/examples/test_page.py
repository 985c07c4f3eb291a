"""docs/examples.md: its commands and lines, run as they stand, print what the page shows."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^(<!-- not run: .+ -->\n)?```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")


def steps() -> Iterator[tuple[str, str, str]]:
    """What the page runs, in order: the language, what is run, and what it shows of the output."""
    for excused, language, text in BLOCK.findall(PAGE):
        if excused:
            continue
        if language == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                yield language, *part.split("\n", 1)
        else:
            yield language, text, ""


def run(command: str, address: str) -> str:
    """A command's standard output."""
    program, *arguments = shlex.split(command)
    path = {"python": sys.executable, "node": shutil.which("node")}[program]
    if path is None:
        pytest.skip("node, which runs the JavaScript example, is not installed; the commands before it ran")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DIGPT_URL": address}
    done = subprocess.run([path, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def agree(printed: str, shown: str) -> None:
    """The same words, and numbers that other hardware rounds otherwise at most."""
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown)
    found, expected = ([float(number) for number in NUMBER.findall(text)] for text in (printed, shown))
    assert found == pytest.approx(expected, rel=0.05, abs=0.01)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_shows_what_its_commands_print(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    languages = []
    for language, code, shown in steps():
        languages.append(language)
        code = code.replace("runs/examples", str(tmp_path))
        if language == "sh":
            assert run(code, address).splitlines()[0] == "emoji-tiny, 192 numbers each"
        elif language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(code, {})
            assert "Prediction(label='Food & Drink'" in printed.getvalue()
        else:
            agree(run(code, address).replace(str(tmp_path), "runs/examples"), shown)
    assert languages == ["console"] * 4 + ["python", "console", "sh"]
