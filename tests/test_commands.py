"""What the documents promise exists: commands and their flags, make targets, links, the file tree."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Flags that scripts outside this repository rely on: they may be joined by others, never renamed.
TRAIN = {"--output", "--steps", "--seed", "--threads", "--overwrite"}
EVALUATE = {"--data-root", "--output", "--limit", "--backend", "--json"}
COMMANDS = {
    "train.teacher": TRAIN,
    "train.pretrain": TRAIN,
    "train.zeroshot": TRAIN,
    "train.finetune": TRAIN | {"--encoder", "--data", "--val-data"},
    "train.segment": TRAIN | {"--encoder", "--data", "--val-data", "--crop"},
    "train.tokenizer": TRAIN,
    "train.ablate": {"--seeds", "--steps", "--output", "--equal"},
    "train.plan": {"--gpus", "--gpu", "--utilisation", "--measured", "--json"},
    "train.convert": {"--resize"},
    "train.report": set(),
    "evaluate.imagenet": EVALUATE | {"--sets", "--data", "--preview", "--resize", "--crop-pct"},
    "evaluate.robustness": EVALUATE | {"--sets", "--data", "--preview", "--corruptions", "--part"},
    "evaluate.zeroshot": EVALUATE | {"--sets", "--templates"},
    "evaluate.knn": EVALUATE | {"--k"},
    "evaluate.linear_probe": EVALUATE | {"--iterations", "--learning-rates"},
    "evaluate.segmentation": EVALUATE
    | {"--data", "--split", "--inference", "--multi-scale", "--flip", "--reduce-zero"},
    "evaluate.compare": {"--json", "--output", "--fail-if-worse", "--alpha", "--margin"},
    "evaluate.report": {"--format", "--output", "--table", "--population", "--allow-mixed", "--json"},
    "evaluate.verify": EVALUATE | {"--reference"},
    "evaluate.doctor": {"--data-root", "--data", "--sets", "--deep", "--json"},
    "evaluate.recompute": {"--json"},
    "export": {"--to", "--output", "--image-size"},
    "export.gpu_check": {"--parity-images", "--json"},
    "export.card": {"--results", "--license", "--output", "--html", "--drift"},
    "export.push": set(),
    "serve": {"--model", "--host", "--port", "--image-size", "--available", "--keys-file", "--class-sets-dir"}
    | {"--allow-url-host", "--cors-origin"},
    "serve.offline": {"--model", "--backend", "--threads", "--batch-size", "--decode-workers", "--overwrite", "--json"}
    | {"--part-rows", "--column", "--ray", "--device", "--image-size"},
    "serve.ray": {"--model", "--host", "--port", "--replicas", "--image-size"},
    "app": {"--model", "--host", "--port", "--search-dir"},
    "benchmarks.train_step": {"--threads", "--precision", "--batch", "--rounds"},
    "benchmarks.loader": set(),
    "benchmarks.offline": {"--model", "--images", "--rounds", "--threads", "--json"},
    "benchmarks.serve": {"--model", "--parts", "--seconds", "--json"},
    "benchmarks.engines": {"--engines", "--threads", "--parity-images", "--rounds", "--json"},
    "benchmarks.class_set_cost": {"--model", "--labels"},
    "benchmarks.matmul": {"--shape", "--threads", "--json"},
}
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "data/*/*.md", "examples/**/*.md", "digpt/bundled/**/*.md")
    for path in ROOT.glob(pattern)
)
MISSPELLED = {"--limt"}  # docs/command-line.md shows how it is refused
COMMAND = re.compile(r"python3? -m ([a-z_.]+)([^`\n|#)]*)")


@cache
def flags_of(module: str) -> frozenset[str]:
    """The flags in a command's own --help, run in this process: a process each would import torch again and again."""
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), contextlib.redirect_stdout(shown):
        warnings.simplefilter("ignore", RuntimeWarning)  # runpy's, about modules that were imported before
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "argv", [module, "--help"])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert stopped.value.code in (0, None), module
    return frozenset(re.findall(r"--[a-z0-9][a-z0-9-]*", shown.getvalue()))


def documented() -> Iterator[tuple[str, str, str]]:
    """(where, module, arguments) of every ``python -m`` of ours in pages, docstrings, build and deployment files."""
    ours = {command.split(".")[0] for command in COMMANDS}
    build = [ROOT / name for name in ("Makefile", "Dockerfile", "compose.yaml", "deploy/kubernetes.yaml")]
    sources = [*PAGES, *build, *(path for package in sorted(ours) for path in sorted((ROOT / package).rglob("*.py")))]
    for path in sources:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        text = re.sub(r"\$\((\w+)\)", r"\1", text.replace("$(PY)", "python").replace('", "', " "))
        # the files that an example writes are no commands of ours
        written = {name.replace("/", ".") for name in re.findall(r"^# (\S+)\.py$", text, re.MULTILINE)}
        for module, arguments in COMMAND.findall(text):
            if module.split(".")[0] in ours and not module.endswith(".") and module not in written:
                yield path.relative_to(ROOT).as_posix(), module, arguments


@pytest.mark.parametrize("module", COMMANDS)
def test_flags_that_others_rely_on(module: str) -> None:
    assert flags_of(module) >= COMMANDS[module]


def test_documented_commands_exist_and_take_the_flags_shown() -> None:
    wrong = []
    for where, module, arguments in documented():
        path = ROOT / module.replace(".", "/")
        if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists():
            wrong.append(f"{where}: no command {module}")
            continue
        shown = set(re.findall(r"(?<!\S)--[a-z0-9][a-z0-9-]*", arguments)) - MISSPELLED
        known = flags_of(module) | {"--help"}
        if module == "train.plan":  # it takes the options of the command that it plans
            for command in {"pretrain", "finetune", "zeroshot", "segment"} & set(arguments.split()):
                known |= flags_of(f"train.{command}")
        wrong += [f"{where}: {module} has no {flag}" for flag in sorted(shown - known)]
    assert wrong == []


def test_every_command_is_documented_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [
        module for module in COMMANDS if not module.startswith("benchmarks.") and f"-m {module}" not in readme
    ] == []


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    wrong = [
        f"{path.name}: make {target}"
        for path in PAGES
        for target in re.findall(
            r"(?:^|`)make (?:[A-Z_]+=\S+ )*([a-z-]+)", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        if target not in targets
    ]
    assert wrong == []
    assert {
        "run",
        "smoke",
        "test",
        "test-all",
        "test-browser",
        "check",
        "quickstart",
        "bench",
        "docs",
        "audit",
    } <= targets


def test_links_lead_somewhere() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in PAGES
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
        if not target.startswith(("http://", "https://")) and not (path.parent / target).exists()
    ]
    assert wrong == []


def test_file_tree_of_the_documentation() -> None:
    text = (ROOT / "docs" / "explanation" / "structure.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    tree = next(block for block in blocks if block.startswith("digpt/"))
    folders: list[str] = []
    shown, missing = set(), []
    for line in tree.splitlines():
        indent = (len(line) - len(line.lstrip())) // 2
        for name in re.split(r" {2,}", line.strip())[0].split():
            path = "/".join([*(folder.rstrip("/") for folder in folders[:indent]), name.rstrip("/")])
            folders[indent:] = [name]
            shown.add(path)
            missing += [] if (ROOT / path).exists() else [path]
    assert missing == []
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "digpt").glob("*.py")} - {"digpt/__init__.py"}
    assert modules <= shown  # the library is shown whole


def test_the_checkout_wins_over_an_installed_package_of_the_same_name(tmp_path: Path) -> None:
    """Hugging Face publishes a package `evaluate`; `python -m` from the checkout must not reach it."""
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "__init__.py").write_text("raise SystemExit('the other evaluate')")
    code = "import evaluate; print(evaluate.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == str(ROOT / "evaluate" / "__init__.py"), result.stderr


def test_code_that_wants_the_other_evaluate_is_told() -> None:
    import evaluate

    with pytest.raises(AttributeError, match="Hugging Face"):
        evaluate.load  # noqa: B018 - what users of the other package call first
