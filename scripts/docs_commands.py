"""Write the reference of the commands: what each says to --help.

    python scripts/docs_commands.py > commands.md

All of them run in this process, since importing torch takes longer than all their helps together.
"""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "train": "Train",
    "evaluate": "Evaluate",
    "export": "Export",
    "serve": "Serve",
    "app": "The demo",
    "benchmarks": "Benchmarks",
}
WIDTH = 78  # characters of a line of help; the site shows no more without scrolling


def commands(package: str) -> list[str]:
    """The modules of a package that can be run, the package itself first."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        if path.name == "__main__.py":
            found.append(name.removesuffix(".__main__"))
        elif '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8"):
            found.append(name)
    return sorted(found)


def help_of(module: str) -> str:
    """What ``python -m MODULE --help`` prints.

    Raises:
        RuntimeError: it does not end with exit code 0.
    """
    shown = io.StringIO()
    arguments, sys.argv = sys.argv, [module, "--help"]
    code: object = "no exit code"
    try:
        with contextlib.redirect_stdout(shown), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, about modules that were imported before
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stopped:
        code = stopped.code
    finally:
        sys.argv = arguments
    if code not in (0, None):
        raise RuntimeError(f"python -m {module} --help ends with {code}.")
    text = shown.getvalue().replace(str(ROOT / f"{module.replace('.', '/')}.py"), f"python -m {module}")
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def commands_reference() -> str:
    """The page's Markdown: a section for each package, in it one for each command."""
    parts = []
    for package, title in PACKAGES.items():
        parts.append(f"## {title}")
        parts += [f"### python -m {module}\n\n```text\n{help_of(module)}\n```" for module in commands(package)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # in place of this folder
    os.environ |= {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    print(commands_reference())
