"""Embed a folder with an engine of random answers, through two times ``kill -9``.

    python tests/serve/offline_killed.py FOLDER OUT.parquet

A process of its own, since it forks: one that has threads must not.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

from digpt.engine import Engine
from digpt.runtime.fake import FakeRuntime
from serve.offline import OfflineConfig, embed


def work(config: OfflineConfig, delay: float) -> None:
    embed(config, load=lambda: Engine(FakeRuntime(dim=8, delay=delay)))


def main(folder: str, output: str) -> None:
    config = OfflineConfig(folder, Path(output), batch_size=4, part_rows=8, decode_workers=2)
    fork = multiprocessing.get_context("fork")
    parts = Path(f"{output}.parts")
    for goal in (6, 20):  # of 38 parts
        child = fork.Process(target=work, args=(config, 0.02))
        child.start()
        while len(list(parts.glob("part-*"))) < goal:
            assert child.is_alive(), "it ended before it was killed"
            time.sleep(0.001)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert not config.output.exists()
        print(f"killed after {len(list(parts.glob('part-*')))} parts", flush=True)
    last = fork.Process(target=work, args=(config, 0.0))
    last.start()
    last.join()
    assert last.exitcode == 0, last.exitcode


if __name__ == "__main__":
    main(*sys.argv[1:])
