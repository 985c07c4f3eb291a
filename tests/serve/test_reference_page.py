"""Every request that the site's HTTP reference shows, sent by a shell to a live server."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from scripts.docs_http import ADDRESS, http_reference
from serve.keys import Keys

ADMIN_KEY = "admin-key-0123456789"


def commands() -> list[str]:
    """One a line; a backslash at an end goes on."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", http_reference(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    return [line for line in lines if line.startswith("curl ")]


def test_the_requests_are_answered(serving: Callable[..., Any], image: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(image())

    def engine() -> Engine:
        return Engine(FakeRuntime(dim=8))

    plain = serving({"emoji-tiny": engine()})
    guarded = serving({"emoji-tiny": engine()}, keys=Keys([], [ADMIN_KEY]), available={"photos": engine})
    sent = commands()
    assert len(sent) > 15
    # a class set is stored first and deleted last
    for line in sorted(sent, key=lambda line: ("-X DELETE" in line, "/class-sets" in line and "-X PUT" not in line)):
        client = guarded if "ADMIN_KEY" in line else plain
        command = line.replace(ADDRESS, f"{client.base_url}").replace(
            "curl ", "curl --fail-with-body --noproxy '*' ", 1
        )
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=tmp_path,
            env={"ADMIN_KEY": ADMIN_KEY, "PATH": f"{Path(shutil.which('curl') or '').parent}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        assert done.stdout
