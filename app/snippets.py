"""The curl line that gives the numbers on screen."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path


def curl_classify(address: str, path: str | None, labels: Sequence[str], template: str, top_k: int) -> str:
    """``POST /classify`` with one file. ``--form-string`` because curl reads a file where a value begins with @."""
    parts = [_file(path)]
    parts += [f"--form-string {shlex.quote(f'labels={label}')}" for label in labels]
    if labels and template.strip():
        parts.append(f"--form-string {shlex.quote(f'templates={template.strip()}')}")
    parts.append(f"-F top_k={top_k}")
    return _curl(f"{address}/classify", parts)


def curl_embed(address: str, paths: Sequence[str | None], text: str) -> str:
    """``POST /embed`` with files and a text; embeddings have length 1, so their products are the cosines."""
    parts = [_file(path) for path in paths if path]
    if text.strip():
        parts.append(f"--form-string {shlex.quote(f'texts={text.strip()}')}")
    return _curl(f"{address}/embed", parts)


def _file(path: str | None) -> str:
    name = Path(path).name if path else "image.png"
    return f"-F {shlex.quote(f'files=@{name}')}"


def _curl(url: str, parts: Sequence[str]) -> str:
    return " \\\n  ".join([f"curl -s {shlex.quote(url)}", *parts])
