"""Export a model to an artifact directory that runs without torch, if its answers stay the same.

python -m export bundled --output runs/onnx
python -m export runs/finetune/ckpt.pt --to onnx onnx-int8 --output runs/onnx --overwrite
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from digpt.cli import Command
from digpt.errors import ConfigError
from digpt.next_command import measuring_as_recorded
from export.pipeline import Outcome, run
from export.tables import TABLE_WIDTH, abstain_line, details, summary

COMMAND = Command(
    "export",
    __doc__,
    {
        "Model": ("spec", "image_size", "text", "patch_tokens"),
        "Engines": ("to", "parity_images", "images"),
        "Output": ("output", "overwrite", "json"),
        "Compute": ("threads",),
    },
    {1: "an engine that was asked for differs from torch float32 and was not written (of those that auto tries one "
        "is enough)"},
    after="nothing was written; start again",
)  # fmt: skip


@dataclass(frozen=True)
class ExportOptions:
    """Build engines from a model, compare each with torch float32 on real images, and write those that pass."""

    output: Path
    """The artifact directory to write."""
    spec: Annotated[str, tyro.conf.Positional] = "bundled"
    """Model: bundled, ckpt.pt, timm:NAME[@FILE], open_clip:NAME/TAG_OR_FILE, an authors' .pth."""
    to: tuple[str, ...] = ("auto",)
    """Engines: onnx, onnx-int8, openvino, openvino-bf16, openvino-int8, aoti, tensorrt, tensorrt-fp16, tensorrt-bf16;
    auto: what runs well here."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace an artifact that is there."""
    images: Path | None = None
    """Folder of images to compare on (default: the bundled emoji)."""
    parity_images: int = 256
    """How many images to compare on."""
    text: bool = True
    """Export the text tower, where there is one."""
    patch_tokens: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Add the patch tokens [B,N,C] as an output."""
    image_size: int | None = None
    """Side of the crops in pixels, another than the model's own: the position table is interpolated."""
    threads: int | None = None
    """CPU threads while measuring (default: the backends' choice)."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the figures as JSON on standard output, and nothing else there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Export and print the figures; return the exit code."""
    return COMMAND.run(ExportOptions, argv, _export)


def _export(options: ExportOptions) -> int:
    log = Console(stderr=True, highlight=False)
    if options.threads is not None and options.threads < 1:
        raise ConfigError(f"--threads {options.threads} must be at least 1.")
    with redirect_stdout(sys.stderr):  # the exporter's libraries print what they like
        outcome = run(
            options.spec,
            options.to,
            options.output,
            overwrite=options.overwrite,
            threads=options.threads,
            images=options.images,
            parity_images=options.parity_images,
            text=options.text,
            patch_tokens=options.patch_tokens,
            image_size=options.image_size,
            progress=lambda line: log.print(f"[dim]{line}[/dim]"),
        )
    if options.json:
        print(json.dumps(document(outcome), indent=2, ensure_ascii=False))
    else:
        show(outcome, options.output)
    return 0 if outcome.passed else 1


def document(outcome: Outcome) -> dict[str, Any]:
    """The figures of an export as JSON values, whether or not anything was written."""
    return {
        "output": None if outcome.directory is None else str(outcome.directory),
        "name": outcome.manifest["name"],
        "fingerprint": outcome.manifest["fingerprint"],
        "backend": outcome.manifest["backend"],
        "passed": outcome.passed,
        "peak_memory_mb": outcome.manifest["peak_memory_mb"],
        "abstain": outcome.manifest["abstain"],
        "engines": {
            engine.target: {
                "passed": engine.passed,
                "parity": engine.parity.to_dict(),
                "golden": {"passed": engine.golden.passed, "message": engine.golden.message},
                "timings": engine.timings,
                "notes": list(engine.notes),
            }
            for engine in outcome.engines
        },
    }


def show(outcome: Outcome, output: Path) -> None:
    """Print one table of all engines, what is wrong with those that fail, and what to type next."""
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH, highlight=False)
    console.print(summary(outcome))
    refused = [engine for engine in outcome.engines if not engine.passed]
    for engine in refused:
        console.print(details(engine, outcome.manifest["name"]))
        golden = () if engine.golden.passed else (engine.golden.message,)
        for fault in (*engine.parity.faults, *golden, *engine.notes):
            console.print(f"[red]{fault}[/red]", soft_wrap=True)
    if refused:
        names = ", ".join(engine.target for engine in refused)
        console.print(f"not written, because it does not match torch float32: {names}", soft_wrap=True)
    console.print(abstain_line(outcome.calibration), soft_wrap=True)
    if memory := outcome.manifest["peak_memory_mb"]:
        console.print(f"peak memory {memory:,.0f} MB")
    if outcome.directory is not None:
        console.print(f"written to {output}, runs on {outcome.manifest['backend']}; next:", soft_wrap=True)
        measure = measuring_as_recorded(output, outcome.manifest["source"]["provenance"])
        console.print(f"  {measure}", soft_wrap=True, markup=False)
        console.print(f"  python -m serve --model {output}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
