"""The servers being measured and their clients, each a process of its own that ends with its block."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from socket import socket

from benchmarks.serve.load import Order, Report

START_S = 300.0
STOP_S = 10.0


@contextmanager
def server(name: str, spec: str, backend: str | None, *more: str) -> Iterator[tuple[int, int]]:
    """Run ``ours``, ``litserve`` or ``naive`` with a model and ``more`` flags; yields port and process id.

    Raises:
        RuntimeError: it does not answer.
    """
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    module = ["serve", "--no-demo"] if name == "ours" else ["benchmarks.serve.rivals", name]
    command = [sys.executable, "-m", *module, "--model", spec, "--port", str(port)]
    command += [*(["--backend", backend] if backend else []), *more]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        end = time.monotonic() + START_S
        health = {"ours": "/health/ready", "litserve": "/health", "naive": "/openapi.json"}[name]
        while not answers(port, health):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{' '.join(command)} does not start; run it to see why.")
            time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # LitServe leaves its own processes behind


def answers(port: int, path: str) -> bool:
    """Whether a GET is answered 200."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def start_clients(order: Order) -> subprocess.Popen[str]:
    """Begin to carry out ``order`` in another process."""
    clients = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serve.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert clients.stdin is not None
    clients.stdin.write(json.dumps(asdict(order)))
    clients.stdin.close()
    return clients


def finish(clients: subprocess.Popen[str]) -> Report:
    """Wait for the report of ``start_clients``."""
    assert clients.stdout is not None
    with clients.stdout as lines:
        content = lines.read()
    if clients.wait() != 0:
        raise RuntimeError("The process of the clients failed; its error is above.")
    return Report(**json.loads(content))


def memory(pid: int) -> float:
    """MiB of memory that a process holds now."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) / 1024
