"""The import rules of the code base, read from the sources; each rule has a control that proves it can fail.

A rule is a function from ``{path: source}`` to a list of violations, so that the controls can hand it made-up sources.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("digpt", "train", "evaluate", "export", "serve", "app")
ENTRY_OF_SERVE = ("serve/__main__.py", "serve/cli.py")  # may reach app, lazily, to mount the demo
# Who may import what, as path prefixes. A heavy dependency has one owner, so that replacing it touches one place.
OWNERS = {
    "fastapi": ("serve/",),
    "starlette": ("serve/",),
    "uvicorn": ("serve/",),
    "gradio": ("app/",),
    "playwright": ("scripts/",),
    "mkdocs": ("scripts/",),
    "griffe": ("scripts/",),
    "onnx": ("export/",),
    "onnx_ir": ("export/",),
    "onnxscript": ("export/",),
    "torch.onnx": ("export/",),
    "torch_tensorrt": ("export/", "digpt/runtime/tensorrt.py"),
    "tensorrt": ("export/", "digpt/runtime/tensorrt.py"),
    "onnxruntime": ("digpt/runtime/onnx.py", "export/build_int8.py"),
    "openvino": ("digpt/runtime/openvino.py",),
    "cv2": ("digpt/corruptions/",),
    "ray": ("serve/ray.py", "serve/offline_ray.py"),
    "pyarrow": ("digpt/embeddings_file.py", "serve/offline"),
    "httpx": ("digpt/runtime/remote.py", "digpt/client.py", "serve/fetch.py"),
    "prometheus_client": ("serve/metrics.py",),
    "opentelemetry": ("serve/tracing.py",),
    "huggingface_hub": ("export/",),
}
BACKENDS = (
    "onnxruntime",
    "opentelemetry",
    "openvino",
    "ray",
    "tensorrt",
    "torch_tensorrt",
)  # imported when used, never before
# An exported encoder is served from a process without torch: these modules, and all they import, stay free of it.
TORCH_FREE = (
    "digpt.errors",
    "digpt.preprocess",
    "digpt.artifact",
    "digpt.engine",
    "digpt.runtime",
    "digpt.runtime.base",
    "digpt.runtime.onnx",
    "digpt.runtime.remote",
    "digpt.runtime.openvino",
    "digpt.runtime.fake",
    "digpt.data.emoji",
    "digpt.data.imagenet",
    "digpt.data.ade20k",
    "digpt.data.scenes",
    "digpt.corruptions",
    "digpt.classsets",
    "digpt.client",
    "digpt.probe",
    "serve.cli",
    "app.cli",
)
NEEDS_TORCH = ("torch", "torchvision", "torch_tensorrt", "timm", "open_clip", "accelerate", "safetensors.torch")
AT_IMPORT = (
    "argparse.ArgumentParser",
    "logging.basicConfig",
    "logging.config",
    "os.environ",
    "os.getenv",
    "sys.argv",
    "tyro.cli",
)
MAX_LINES = 400

Sources = dict[str, str]


@dataclass(frozen=True)
class Use:
    """One module that a file imports (or, for ``torch.onnx``, reaches as an attribute)."""

    module: str
    line: int
    lazy: bool
    typing_only: bool


def read_sources(*folders: str) -> Sources:
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def within(module: str, owner: str) -> bool:
    return module == owner or module.startswith(owner + ".")


def dotted(node: ast.AST) -> str | None:
    """``a.b.c`` of a chain of attributes that starts at a name, else None."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := dotted(node.value)):
        return f"{head}.{node.attr}"
    return None


def aliases(tree: ast.AST) -> dict[str, str]:
    """What the names that a file imports stand for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def meaning(node: ast.AST, names: dict[str, str]) -> str:
    """The dotted name that ``node`` stands for, its first part looked up in ``names``; empty for anything else."""
    head, _, tail = (dotted(node) or "").partition(".")
    return names.get(head, head) + (f".{tail}" if tail else "")


def imported(node: ast.AST, path: str, names: dict[str, str]) -> list[str]:
    """Absolute module names that one statement or call imports; of ``from a import b`` both ``a`` and ``a.b``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = module_name(path).split(".")
            package = package if path.endswith("/__init__.py") else package[:-1]
            package = package[: len(package) - node.level + 1]
            base = ".".join([*package, base] if base else package)
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call) and meaning(node.func, names) in ("importlib.import_module", "__import__"):
        return [named(arg) for arg in node.args[:1]]
    return [name] if isinstance(node, ast.Attribute) and (name := meaning(node, names)) in OWNERS else []


def named(argument: ast.AST) -> str:
    """The module a call imports: its constant, or that of an f-string up to the first gap."""
    first = argument.values[0] if isinstance(argument, ast.JoinedStr) and argument.values else argument
    return str(first.value).rstrip(".") if isinstance(first, ast.Constant) else "a computed name"


@cache
def uses(path: str, source: str) -> tuple[Use, ...]:
    tree = ast.parse(source)
    names = aliases(tree)

    def visit(node: ast.AST, lazy: bool, typing_only: bool) -> Iterator[Use]:
        for name in imported(node, path, names):
            yield Use(name, getattr(node, "lineno", 0), lazy, typing_only)
        for child in ast.iter_child_nodes(node):
            in_body = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and child in node.body
            guarded = isinstance(node, ast.If) and child in node.body
            types = guarded and dotted(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
            yield from visit(child, lazy or in_body or isinstance(node, ast.Lambda), typing_only or types)

    return tuple(visit(tree, False, False))


def crossed_packages(sources: Sources) -> list[str]:
    """Packages import digpt and never each other; only serve's entry point reaches app, and only lazily."""
    found = []
    for path, source in sources.items():
        package = path.split("/")[0]
        for use in uses(path, source):
            other = use.module.split(".")[0]
            excepted = path in ENTRY_OF_SERVE and use.module in ("app", "app.mount") and use.lazy
            if other in PACKAGES and other not in (package, "digpt") and not excepted:
                found.append(f"{path}:{use.line} {package} imports {use.module}")
    return found


def foreign_dependencies(sources: Sources) -> list[str]:
    """Each heavy dependency is imported by its owner alone."""
    return [
        f"{path}:{use.line} imports {use.module}, which belongs to {' and '.join(owners)}"
        for path, source in sources.items()
        for use in uses(path, source)
        for dependency, owners in OWNERS.items()
        if within(use.module, dependency) and not path.startswith(owners)
    ]


def eager_backends(sources: Sources) -> list[str]:
    """A backend is imported by the function that needs it: without it, everything else still works."""
    return [
        f"{path}:{use.line} imports {use.module} when it is imported itself"
        for path, source in sources.items()
        for use in uses(path, source)
        if not use.lazy and not use.typing_only and any(within(use.module, backend) for backend in BACKENDS)
    ]


def computed_imports(sources: Sources) -> list[str]:
    """No import that this test cannot read."""
    return [
        f"{path}:{use.line} imports {use.module}"
        for path, source in sources.items()
        for use in uses(path, source)
        if use.module == "a computed name"
    ]


def torch_at_import(sources: Sources) -> list[str]:
    """Modules of TORCH_FREE import nothing that needs torch when they are imported, not even through another module."""
    by_module = {module_name(path): (path, source) for path, source in sources.items()}
    found = []
    for start in (name for name in TORCH_FREE if name in by_module):
        seen, pending = set(), [(start, start)]
        while pending:
            name, chain = pending.pop()
            # Importing a.b.c runs a and a.b first.
            parents = [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
            pending += [(parent, f"{chain} > {parent}") for parent in parents if parent not in seen]
            if name in seen or name not in by_module:
                continue
            seen.add(name)
            for use in uses(*by_module[name]):
                if use.lazy or use.typing_only:
                    continue
                if any(within(use.module, heavy) for heavy in NEEDS_TORCH):
                    found.append(f"{chain} > {use.module} (line {use.line})")
                pending.append((use.module, f"{chain} > {use.module}"))
    return found


def run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes that importing a module evaluates: not function bodies, not the ``__main__`` guard."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            pending += [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
        elif isinstance(node, ast.If) and "__main__" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, ast.Lambda):
            pending += ast.iter_child_nodes(node)


def work_at_import(sources: Sources) -> list[str]:
    """No argument parsing, logging set-up or environment read happens when a module is imported."""
    found = []
    for path, source in sources.items():
        tree = ast.parse(source)
        names = aliases(tree)
        for node in run_at_import(tree):
            name = meaning(node, names)
            # The shortest chain only: os.environ.get holds os.environ as well.
            if name in AT_IMPORT or (name.rpartition(".")[0] == "logging.config"):
                found.append(f"{path}:{getattr(node, 'lineno', 0)} {name} at import")
    return found


def silent_entry_points(sources: Sources) -> list[str]:
    """A module that can be run opens its docstring with the command that runs it."""
    found = []
    for path, source in sources.items():
        tree = ast.parse(source)
        guard = any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)
        if not guard and not path.endswith("/__main__.py"):
            continue
        name = module_name(path).removesuffix(".__main__")
        as_module = path.startswith(tuple(f"{package}/" for package in (*PACKAGES, "benchmarks")))
        commands = [f"python -m {name}"] if as_module else [f"python {path}", f"python -m {name}"]
        opening = (ast.get_docstring(tree) or "").splitlines()[:6]
        known = "|".join(re.escape(command) for command in commands)
        if not any(re.match(rf"(.*``|\s*)({known})(?![\w.])", line) for line in opening):
            found.append(f"{path} does not open with `{commands[0]}`")
    return found


def long_files(sources: Sources) -> list[str]:
    counts = {path: source.count("\n") for path, source in sources.items()}
    return [f"{path}: {lines} lines" for path, lines in counts.items() if lines > MAX_LINES]


PRODUCT = read_sources(*PACKAGES)
EXAMPLES = read_sources("examples")
EVERYTHING = PRODUCT | EXAMPLES | read_sources("tests", "scripts", "benchmarks", "data")
TORCH_VIA_NEIGHBOUR = {
    "digpt/__init__.py": "",
    "digpt/engine.py": "from digpt.helper import x",
    "digpt/helper.py": "import timm",
}
BROKEN: list[tuple[Callable[[Sources], list[str]], Sources]] = [
    (crossed_packages, {"digpt/a.py": "import train.loop"}),
    (crossed_packages, {"train/a.py": "def f():\n    from evaluate import knn"}),
    (crossed_packages, {"evaluate/a.py": "import importlib\nx = importlib.import_module('train.loop')"}),
    (crossed_packages, {"evaluate/a.py": "import importlib as il\nil.import_module('train.loop')"}),
    (crossed_packages, {"evaluate/a.py": "from importlib import import_module as im\nim(f'train.{n}')"}),
    (crossed_packages, {"serve/__main__.py": "import app"}),
    (crossed_packages, {"examples/a.py": "from serve.settings import Settings"}),
    (crossed_packages, {"serve/cli.py": "def f():\n    from app import handlers"}),
    (crossed_packages, {"serve/routes.py": "def f():\n    import app"}),
    (foreign_dependencies, {"digpt/a.py": "def f():\n    from fastapi import FastAPI"}),
    (foreign_dependencies, {"digpt/engine.py": "import onnxruntime as ort"}),
    (foreign_dependencies, {"train/a.py": "import torch\ndef f(m):\n    torch.onnx.export(m)"}),
    (foreign_dependencies, {"train/a.py": "from torch import onnx"}),
    (foreign_dependencies, {"train/a.py": "import torch as t\ndef f(m):\n    t.onnx.export(m)"}),
    (foreign_dependencies, {"serve/a.py": "import gradio"}),
    (eager_backends, {"digpt/runtime/onnx.py": "import onnxruntime"}),
    (computed_imports, {"digpt/a.py": "import importlib\nimportlib.import_module(name)"}),
    (torch_at_import, {"digpt/errors.py": "import torch.nn as nn"}),
    (torch_at_import, {"digpt/errors.py": "try:\n    import torch\nexcept ImportError:\n    torch = None"}),
    (torch_at_import, TORCH_VIA_NEIGHBOUR),
    (torch_at_import, {**TORCH_VIA_NEIGHBOUR, "digpt/engine.py": "from .helper import x"}),
    (torch_at_import, {"digpt/__init__.py": "import torch", "digpt/errors.py": ""}),
    (work_at_import, {"app/a.py": "import os\nKEY = os.environ.get('KEY')"}),
    (work_at_import, {"app/a.py": "from os import environ as e\ndef f(key=e['KEY']): ..."}),
    (work_at_import, {"app/a.py": "import logging\nlogging.basicConfig()"}),
    (work_at_import, {"app/a.py": "import logging.config\nlogging.config.dictConfig({})"}),
    (work_at_import, {"app/a.py": "import argparse\nif True:\n    parser = argparse.ArgumentParser()"}),
    (silent_entry_points, {"train/a.py": '"""No command."""\nif __name__ == "__main__":\n    pass'}),
    (silent_entry_points, {"export/__main__.py": '"""X.\n\n    python -m exporter\n"""'}),
    (long_files, {"app/a.py": "\n" * (MAX_LINES + 1)}),
]
LAWFUL: list[tuple[Callable[[Sources], list[str]], Sources]] = [
    (crossed_packages, {"train/a.py": "from digpt.artifact import read_checkpoint\nfrom train import loop"}),
    (crossed_packages, {"serve/__main__.py": "def main():\n    import app"}),
    (foreign_dependencies, {"export/onnx.py": "import torch\ntorch.onnx.export", "app/a.py": "import gradio"}),
    (foreign_dependencies, {"digpt/runtime/onnx.py": "import onnxruntime"}),
    (eager_backends, {"digpt/runtime/onnx.py": "def f():\n    import onnxruntime"}),
    (computed_imports, {"train/config.py": "import importlib\nimportlib.import_module(f'train.recipes.{n}')"}),
    (torch_at_import, {**TORCH_VIA_NEIGHBOUR, "digpt/engine.py": "def f():\n    from digpt.helper import x"}),
    (torch_at_import, {"digpt/errors.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"}),
    (work_at_import, {"app/a.py": "import os\ndef f():\n    return os.environ['X']\ng = lambda: os.getenv('X')"}),
    (silent_entry_points, {"train/a.py": '"""X.\n\n    python -m train.a --steps 2\n"""\nif "__main__": 1'}),
    (silent_entry_points, {"scripts/a.py": '"""X.\n\n    python scripts/a.py\n"""\nif "__main__": 1'}),
    (long_files, {"app/a.py": "\n" * MAX_LINES}),
]


RULES = [crossed_packages, foreign_dependencies, eager_backends, computed_imports, torch_at_import, work_at_import]


@pytest.mark.parametrize("rule", RULES)
def test_packages_keep_the_rule(rule: Callable[[Sources], list[str]]) -> None:
    assert rule(PRODUCT) == []


def test_examples_stand_on_the_library_alone() -> None:
    assert crossed_packages(EXAMPLES) == []


@pytest.mark.parametrize("rule", [silent_entry_points, long_files])
def test_every_file_keeps_the_rule(rule: Callable[[Sources], list[str]]) -> None:
    assert rule(EVERYTHING) == []


@pytest.mark.parametrize(("rule", "sources"), BROKEN)
def test_a_violation_is_found(rule: Callable[[Sources], list[str]], sources: Sources) -> None:
    assert rule(sources)


@pytest.mark.parametrize(("rule", "sources"), LAWFUL)
def test_what_is_allowed_is_not_reported(rule: Callable[[Sources], list[str]], sources: Sources) -> None:
    assert rule(sources) == []


def test_torch_free_modules_import_where_torch_is_missing() -> None:
    block = "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'timm', 'open_clip']))"
    code = f"{block}; import importlib; [importlib.import_module(name) for name in {TORCH_FREE}]"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_tests_are_no_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []  # tests/train would shadow train
