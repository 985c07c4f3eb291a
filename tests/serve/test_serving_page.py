"""Every curl line and every Python block of docs/serving.md, run against live servers."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro

from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from serve.cli import ServeConfig
from serve.keys import Keys
from tests.docs.pages import to_run

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"
BLOCKS = to_run("docs/serving.md")
SHELL = [line for block in BLOCKS if block.language == "sh" for line in block.script.splitlines()]
PYTHON = [block.text for block in BLOCKS if block.language == "python"]
KEY, ADMIN_KEY = "user-key-0123456789", "admin-key-0123456789"


@pytest.fixture
def servers(serving: Callable[..., Any]) -> tuple[Any, Any]:
    """One without keys, and one with."""

    def engine() -> Engine:
        return Engine(FakeRuntime(dim=8))

    return serving({"emoji-tiny": engine()}), serving(
        {"emoji-tiny": engine()}, keys=Keys([KEY], [ADMIN_KEY]), available={"large": engine}
    )


def address(client: Any) -> str:
    return str(client.base_url).rstrip("/")


def test_the_curl_lines(servers: tuple[Any, Any]) -> None:
    curl = shutil.which("curl")
    assert curl is not None, "curl is one of the system's packages"
    lines = [line for line in SHELL if line.startswith("curl ")]
    assert len(lines) > 15
    started = [shlex.split(line, comments=True)[3:] for line in SHELL if line.startswith("python -m serve ")]
    assert len(lines) + len(started) == len(SHELL)
    assert [tyro.cli(ServeConfig, args=arguments).allow_url_host for arguments in started] == [
        (),
        ("images.example.org",),
    ]
    assert {block.language for block in BLOCKS} == {"sh", "python"}
    for line in lines:
        client = servers["KEY" in line]
        command = line.replace(ADDRESS, address(client)).replace("curl ", "curl --fail-with-body --noproxy '*' ", 1)
        environment = {"KEY": KEY, "ADMIN_KEY": ADMIN_KEY, "PATH": str(Path(curl).parent)}
        done = subprocess.run(
            ["/bin/sh", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        assert isinstance(json.loads(done.stdout), dict), line


def test_without_their_keys_they_are_refused(servers: tuple[Any, Any]) -> None:
    paths = re.findall(rf"{ADDRESS}(\S+) .*KEY", PAGE)
    assert len(paths) == 4
    assert {servers[1].request("POST", path).status_code for path in paths} == {401}


@pytest.mark.parametrize("block", range(len(PYTHON)))
def test_the_python_blocks(servers: tuple[Any, Any], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    found: dict[str, Any] = {}
    exec(compile(PYTHON[block].replace(ADDRESS, address(servers[0])), "docs/serving.md", "exec"), found)
    found["client"].close()
    if "embeddings" in found:
        assert found["embeddings"].shape == (2, 8)


def test_what_it_says_about_limits_is_so() -> None:
    from serve import Settings

    assert f"`--max-class-sets` ({Settings.max_class_sets})" in PAGE
    assert f"together ({Settings.max_class_set_rows:,})" in PAGE
