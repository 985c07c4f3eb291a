"""The line for a shell that gives what is on screen."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

CHECKPOINT = "CKPT.pt"  # stands for a model whose place is not told


def curl_classify(
    address: str, path: str | None, labels: Sequence[str], template: str, top_k: int, abstain: bool = False
) -> str:
    """``POST /classify`` with one file. ``--form-string`` because curl reads a file where a value begins with @."""
    parts = [_file(path)]
    parts += [f"--form-string {shlex.quote(f'labels={label}')}" for label in labels]
    if labels and template.strip():
        parts.append(f"--form-string {shlex.quote(f'templates={template.strip()}')}")
    parts.append(f"-F top_k={top_k}")
    if abstain:
        parts.append("-F abstain=true")
    return _curl(f"{address}/classify", parts)


def curl_embed(address: str, paths: Sequence[str | None], text: str) -> str:
    """``POST /embed`` with files and a text; embeddings have length 1, so their products are the cosines."""
    parts = [_file(path) for path in paths if path]
    if text.strip():
        parts.append(f"--form-string {shlex.quote(f'texts={text.strip()}')}")
    return _curl(f"{address}/embed", parts)


def python_segment(spec: str, path: str | None, size: Sequence[int]) -> str:
    """Load the model, segment a file to ``size`` (height, width) and write ``classes.png``: class numbers as grey."""
    name = Path(path).name if path else "image.png"
    code = (
        "from pathlib import Path; from PIL import Image; from digpt.engine import Engine; "
        f"engine = Engine.load({spec!r}); picture = engine.decode_whole(Path({name!r}).read_bytes()); "
        f"Image.fromarray(engine.segment(picture, size={tuple(size)})).save('classes.png')"
    )
    return f"python -c {shlex.quote(code)}"


def _file(path: str | None) -> str:
    name = Path(path).name if path else "image.png"
    return f"-F {shlex.quote(f'files=@{name}')}"


def _curl(url: str, parts: Sequence[str]) -> str:
    return " \\\n  ".join([f"curl -s {shlex.quote(url)}", *parts])
