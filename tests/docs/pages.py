"""The fenced blocks of the documentation, and what runs them: in order, in a scratch copy of the checkout.

A block's language says what is done with it: ``sh`` is a script, ``console`` one of the lines after ``$``, ``python`` a
program or, where it opens with the comment ``# some/path.py``, that file; ``diff`` is applied to the copy. A block that
is not run has the line ``<!-- not run: REASON -->`` above it.

In a script, lines of ``make`` are left out, except that ``make run`` is the server it starts. A server goes on while
the lines after it run, until another one or the end of the page; its port 8000 is a free one here. A console that shows
a line ``error: ...`` is refused with that line.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = ("README.md", "CONTRIBUTING.md", "docs/**/*.md")
RUN = ("sh", "console", "python", "diff")
SHOWN = ("", "text", "json", "promql", "yaml")  # languages of what is looked at
FENCE = re.compile(
    r"(?:^(?P<indent> *)<!-- not run: (?P<reason>[^\n]*?) *-->\n)?"
    r"^(?P<margin> *)```(?P<language>[^\n]*)\n(?P<text>.*?)^(?P=margin)```$",
    re.DOTALL | re.MULTILINE,
)
SERVER = re.compile(r"^(?:make run|python -m serve)(?=\s|$)(?!.*&)")
START_S = 120


@dataclass(frozen=True)
class Block:
    """One fenced block. ``reason`` says why it is not run, None where it is."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def script(self) -> str:
        """The commands of a ``sh`` or ``console`` block, a continued line joined to one."""
        text = self.text
        if self.language == "console":
            text = "".join(found[1] + "\n" for found in re.finditer(r"^\$ ((?:.*\\\n)*.*)$", text, re.MULTILINE))
        return text.replace("\\\n", " ")

    @property
    def error(self) -> str | None:
        """The line that a console shows of a command that is refused."""
        found = re.search(r"^error: .+$", self.text, re.MULTILINE) if self.language == "console" else None
        return found and found[0]


def pages() -> list[str]:
    """Paths of all pages from the checkout's root."""
    return sorted(path.relative_to(ROOT).as_posix() for pattern in PATTERNS for path in ROOT.glob(pattern))


def blocks_of(page: str) -> list[Block]:
    """Every fenced block of a page, also of those that are only shown."""
    return blocks_in((ROOT / page).read_text(encoding="utf-8"), page)


def blocks_in(text: str, page: str = "") -> list[Block]:
    """Every fenced block of a page's text."""
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("margin")) + 1
        body = textwrap.dedent(match["text"])
        found.append(Block(page, line, match["language"].strip(), body, match["reason"]))
    return found


def to_run(page: str) -> list[Block]:
    """The blocks of a page that are to be run."""
    return [block for block in blocks_of(page) if block.language in RUN and block.reason is None]


def extended(script: str, options: Mapping[str, str]) -> str:
    """``script`` with more at the end of the commands that contain a key: ``{"-m train.pretrain": "--steps 2"}``."""
    for command, more in options.items():
        script = re.sub(rf"({re.escape(command)}(?![\w.])[^|&;>#\n]*?)(?= *(?:[|&;>#\n]|$))", rf"\1 {more}", script)
    return script


class Scratch:
    """A folder with the checkout's files, in which pages may write and edit; ``close`` ends its server.

    ``options`` are what :func:`extended` adds to the scripts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.options: Mapping[str, str] = {}
        self._server: subprocess.Popen[bytes] | None = None
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in filter(None, tracked.stdout.split("\0")):
            if (ROOT / name).is_file():  # not those that were deleted just now
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copyfile if name.endswith(".py") else os.symlink
                copy(ROOT / name, folder / name)
        (folder / ".venv").symlink_to(sys.prefix)
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(folder),
            "NO_PROXY": "127.0.0.1",
            "RAY_ADDRESS": "local",
        }

    def run(self, block: Block) -> str:
        """What a block prints on standard output; a command that fails fails the test with all that it said."""
        if block.language == "diff":
            return self._execute(block, ["git", "apply", "--verbose", "-"], block.text)
        if block.language == "python":
            named = re.match(r"# (\S+\.py)\n", block.text)
            if named is None:
                return self._execute(block, ["python", "-"], self._here(block.text))
            (self.folder / named[1]).write_text(block.text, encoding="utf-8")
            return ""
        said, waiting = [], ""
        for line in extended(block.script, self.options).splitlines(keepends=True):
            if SERVER.match(line):
                said.append(self._shell(block, waiting))
                waiting = ""
                self._serve(line)
            elif not line.startswith("make "):
                waiting += line
        return "".join([*said, self._shell(block, waiting)])

    def close(self) -> None:
        """End the server, if there is one."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait(60)
            self._server = None

    def _here(self, text: str) -> str:
        return text.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")

    def _shell(self, block: Block, script: str) -> str:
        return self._execute(block, ["bash", "-euo", "pipefail"], self._here(script)) if script.strip() else ""

    def _execute(self, block: Block, command: list[str], text: str) -> str:
        done = subprocess.run(
            command, input=text, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        where = f"{block.page}:{block.line}\n{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert done.returncode == (0 if block.error is None else 2), where
        assert block.error is None or block.error in done.stderr.splitlines(), where
        return done.stdout

    def _serve(self, line: str) -> None:
        """Start the server of a line in place of the last one, and wait until it is ready."""
        self.close()
        self.port = free_port()
        command = re.sub(r"^make run(.*)", r"python -m serve\1", line).partition("#")[0].replace("--port 8000", "")
        self._server = subprocess.Popen(
            ["bash", "-c", f"exec {command.strip()} --port {self.port}"], cwd=self.folder, env=self.environment
        )
        ends = time.monotonic() + START_S
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False) as client:
            while not _ready(client):
                assert self._server.poll() is None and time.monotonic() < ends, f"did not start: {line}"
                time.sleep(0.2)


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False  # it does not listen yet


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
