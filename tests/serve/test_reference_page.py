"""Every request that the site's HTTP reference shows, sent by a shell to a live server."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from digpt.engine import Engine
from digpt.passport import FINGERPRINT_META, PASSPORT_NAME
from digpt.report import document
from digpt.runtime.fake import FakeRuntime
from scripts.docs_http import ADDRESS, http_reference
from serve.keys import Keys

ADMIN_KEY = "admin-key-0123456789"


def commands() -> list[str]:
    """One a line; a backslash at an end goes on."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", http_reference(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    return [line for line in lines if line.startswith("curl ")]


def with_passport(folder: Path) -> Engine:
    runtime = FakeRuntime(dim=8, spec=str(folder))
    page = document("passport of a model", meta={FINGERPRINT_META: runtime.info.fingerprint})
    (folder / PASSPORT_NAME).write_text(page, encoding="utf-8")
    return Engine(runtime)


def sent(line: str, client: Any, folder: Path) -> str:
    """What the server answers to a command of the page; fails where it is no success."""
    curl = shutil.which("curl")
    assert curl is not None, "curl is one of the system's packages"
    command = line.replace(ADDRESS.rstrip("/"), str(client.base_url).rstrip("/"))
    command = command.replace("curl ", "curl --fail-with-body --noproxy '*' ", 1)
    environment = {"ADMIN_KEY": ADMIN_KEY, "PATH": f"{Path(curl).parent}:/usr/bin:/bin"}
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return done.stdout


def loaded(client: Any, name: str) -> None:
    """Wait until a model that is being loaded is ready; the test's own time limit ends it."""
    key = {"Authorization": f"Bearer {ADMIN_KEY}"}
    while client.get(f"/models/{name}", headers=key).json().get("state") != "ready":
        time.sleep(0.005)


def test_the_requests_are_answered(serving: Callable[..., Any], image: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(image())
    plain = serving({"emoji-tiny": with_passport(tmp_path)})
    guarded = serving(
        {"emoji-tiny": Engine(FakeRuntime())},
        keys=Keys([], [ADMIN_KEY]),
        available={"photos": lambda: Engine(FakeRuntime())},
    )
    lines = commands()
    assert len(lines) >= 20
    answers = {}
    for line in in_order(lines):
        if "photos/unload" in line:
            loaded(guarded, "photos")
        answers[line] = sent(line, guarded if "ADMIN_KEY" in line else plain, tmp_path)
    assert all(answers.values())
    assert '"state":"unloading"' in answers[next(line for line in lines if "photos/unload" in line)]
    assert '"deleted":true' in answers[next(line for line in lines if "DELETE" in line)]


def in_order(lines: list[str]) -> list[str]:
    """A class set is stored before it is asked for, and deleted last."""
    return sorted(lines, key=lambda line: ("-X DELETE" in line, "fruit" in line and "-X PUT" not in line))
