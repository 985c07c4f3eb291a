"""The lines for a shell and for Python that give what is on screen."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

CHECKPOINT = "CKPT.pt"  # stands for a model whose place is not told
ENGINE = "from digpt.engine import Engine"


def curl_classify(
    address: str,
    path: str | None,
    labels: Sequence[str],
    template: str,
    top_k: int,
    abstain: bool = False,
    model: str | None = None,
) -> str:
    """``POST /classify`` with one file. ``--form-string`` because curl reads a file where a value begins with @."""
    parts = [_file(path), *_model(model)]
    parts += [f"--form-string {shlex.quote(f'labels={label}')}" for label in labels]
    if labels and template.strip():
        parts.append(f"--form-string {shlex.quote(f'templates={template.strip()}')}")
    parts.append(f"-F top_k={top_k}")
    if abstain:
        parts.append("-F abstain=true")
    return _curl(f"{address}/classify", parts)


def curl_embed(address: str, paths: Sequence[str | None], text: str, model: str | None = None) -> str:
    """``POST /embed`` with files and a text; embeddings have length 1, so their products are the cosines."""
    parts = [*(_file(path) for path in paths if path), *_model(model)]
    if text.strip():
        parts.append(f"--form-string {shlex.quote(f'texts={text.strip()}')}")
    return _curl(f"{address}/embed", parts)


def python_classify(
    load: str, path: str | None, labels: Sequence[str], template: str, top_k: int, abstain: bool = False
) -> str:
    """``Engine.classify`` of one file; ``load`` is Python that gives the engine, here and below."""
    arguments = ["[picture]"]
    if labels:
        arguments.append(repr(list(labels)))
        if template.strip():
            arguments.append(repr([template.strip()]))
    arguments.append(f"top_k={top_k}")
    if abstain:
        arguments.append("abstain=True")
    return _python(load, _picture(path), f"print(engine.classify({', '.join(arguments)})[0])")


def python_compare(load: str, paths: Sequence[str | None], text: str) -> str:
    """The cosines of files and a text with one another."""
    names = [_name(path) for path in paths if path]
    lines = [f"pictures = [engine.decode(Path(name).read_bytes()) for name in {names!r}]"]
    lines.append("rows = engine.embed_images(pictures)")
    if not text.strip():
        return _python(load, *lines, "print(engine.similarity(rows, rows))")
    lines.append(f"words = engine.embed_texts([{text.strip()!r}])")
    return _python(load, *lines, "print(engine.similarity(rows, rows), engine.similarity(rows, words))")


def python_search(load: str, pictures: str, path: str | None, text: str) -> str:
    """The nearest of ``pictures``, Python that calls ``bundled`` or ``folder`` of ``app.search``."""
    asked = (
        [f"query = engine.class_matrix([{text.strip()!r}])"]
        if text.strip()
        else [_picture(path), "query = engine.embed_images([picture])"]
    )
    return _python(
        load,
        f"index = ImageIndex(engine, {pictures})",
        *asked,
        "for hit in index.nearest(query):\n    print(hit.name, hit.cosine)",
        imports=[f"from app.search import ImageIndex, {pictures.partition('(')[0]}"],
    )


def python_patches(load: str, path: str | None) -> str:
    """The colours of a file's patches, as ``patches.png``."""
    return _python(
        load,
        _picture(path),
        "colors, variance = patch_colors(engine.patch_tokens([picture])[0])",
        "Image.fromarray(colors).save('patches.png')",
        imports=["from PIL import Image", "from app.patches import patch_colors"],
    )


def python_attention(load: str, path: str | None) -> str:
    """The attention that a file's patches get, as ``attention.png``."""
    return _python(
        load,
        _picture(path),
        "maps = engine.attention_maps([picture])[0]  # [heads, h, w]",
        "Image.fromarray(attention_colors(maps)).save('attention.png')",
        imports=["from PIL import Image", "from app.patches import attention_colors"],
    )


def python_corrupt(load: str, path: str | None, labels: Sequence[str], corruption: str, severity: int, key: str) -> str:
    """``Engine.classify`` of one file after a corruption; severity 0 leaves it as it is."""
    lines = [_picture(path)]
    if severity:
        lines.append(f"picture = corrupt(picture, {corruption!r}, {severity}, key={key!r})")
    chosen = f", {list(labels)!r}" if labels else ""
    return _python(
        load,
        *lines,
        f"print(engine.classify([picture]{chosen})[0])",
        imports=["from digpt.corruptions import corrupt"] if severity else [],
    )


def python_segment(load: str, path: str | None, size: Sequence[int]) -> str:
    """The classes of a file's pixels at ``size`` (height, width), as ``classes.png``: class numbers as grey."""
    return _python(
        load,
        f"picture = engine.decode_whole(Path({_name(path)!r}).read_bytes())",
        f"classes = engine.segment(picture, size={tuple(size)})",
        "Image.fromarray(classes).save('classes.png')",
        imports=["from PIL import Image"],
    )


def _name(path: str | None) -> str:
    return Path(path).name if path else "image.png"


def _picture(path: str | None) -> str:
    return f"picture = engine.decode(Path({_name(path)!r}).read_bytes())"


def _python(load: str, *lines: str, imports: Sequence[str] = ()) -> str:
    path = ["from pathlib import Path"] if any("Path(" in line for line in lines) else []
    return "\n".join([*path, *imports, ENGINE, "", f"engine = {load}", *lines])


def _model(name: str | None) -> list[str]:
    return [f"--form-string {shlex.quote(f'model={name}')}"] if name else []


def _file(path: str | None) -> str:
    return f"-F {shlex.quote(f'files=@{_name(path)}')}"


def _curl(url: str, parts: Sequence[str]) -> str:
    return " \\\n  ".join([f"curl -s {shlex.quote(url)}", *parts])
