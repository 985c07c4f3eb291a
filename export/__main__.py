"""Export a model to an artifact directory that runs without torch, if its answers stay the same.

    python -m export bundled --to onnx --output runs/onnx

Exit codes: 0 exported; 1 an engine did not match torch float32 and was not written; 2 the command was refused.
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
from rich.table import Table

from digpt.errors import ConfigError, DigptError
from export.parity import ParityReport
from export.pipeline import EngineOutcome, Outcome, run

TABLE_WIDTH = 100  # where the output is no terminal


@dataclass(frozen=True)
class ExportOptions:
    """Build engines from a model, compare each with torch float32 on real images, and write those that pass."""

    output: Path
    """The artifact directory to write."""
    spec: Annotated[str, tyro.conf.Positional] = "bundled"
    """Model: bundled, ckpt.pt, timm:NAME[@FILE], open_clip:NAME/TAG_OR_FILE, an authors' .pth."""
    to: tuple[str, ...] = ("onnx",)
    """Engines to build; available: onnx."""
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
    options = tyro.cli(ExportOptions, args=argv, prog="python -m export", description=__doc__)
    log = Console(stderr=True, highlight=False)
    try:
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
    except DigptError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
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
        "passed": outcome.passed,
        "engines": {
            engine.target: {
                "passed": engine.passed,
                "parity": engine.parity.to_dict(),
                "golden": {"passed": engine.golden.passed, "message": engine.golden.message},
                "timings": engine.timings,
            }
            for engine in outcome.engines
        },
    }


def show(outcome: Outcome, output: Path) -> None:
    """Print one table per engine, then what was written and what to type next."""
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH, highlight=False)
    for engine in outcome.engines:
        console.print(table(engine, outcome.manifest["name"]))
        for fault in (*engine.parity.faults, *(() if engine.golden.passed else (engine.golden.message,))):
            console.print(f"[red]{fault}[/red]", soft_wrap=True)
    failed = [engine.target for engine in outcome.engines if not engine.passed]
    if failed:
        console.print(f"not written, because it does not match torch float32: {', '.join(failed)}", soft_wrap=True)
    if outcome.directory is not None:
        evaluation = "segmentation" if outcome.manifest["head"] == "upernet" else "robustness"
        console.print(f"written to {output}; next:\n  python -m evaluate.{evaluation} {output}", soft_wrap=True)
        console.print(f"  python -m serve --model {output}", soft_wrap=True)


def table(engine: EngineOutcome, name: str) -> Table:
    """The figures of one engine beside their thresholds."""
    parity = engine.parity
    result = Table(title=f"{name} on {engine.target} {parity.precision} against torch fp32, {parity.images} images")
    for column in ("figure", "measured", "needed"):
        result.add_column(column, justify="left" if column == "figure" else "right")
    for row in rows(parity):
        result.add_row(*row)
    for key, value in engine.timings.items():
        what, _, unit = key.rpartition("_")
        result.add_row(what.replace("_", " "), f"{value:.2f} {unit}", "")
    return result


def rows(parity: ParityReport) -> list[tuple[str, str, str]]:
    """(figure, measured, needed) for everything that this model has."""
    bounds = parity.thresholds
    cosines = [
        ("cosine, median", parity.cosine_median, bounds.cosine_median),
        ("cosine, minimum", parity.cosine_min, bounds.cosine_min),
        *((f"cosine, batch of {n}", cosine, bounds.cosine_min) for n, cosine in parity.batch_sizes.items()),
        ("text cosine, minimum", parity.text_cosine_min, bounds.cosine_min),
    ]
    # Of a good engine only the distance from 1 says anything.
    shown = [(name, f"1 - {1 - value:.1e}", f">= {bound}") for name, value, bound in cosines if value is not None]
    if parity.agreement is not None:
        figure = f"top-1 agreement among {parity.classes} labels"
        shown.append((figure, f"{parity.agreement:.2%}", f">= {bounds.agreement:.1%}"))
    if parity.pixel_agreement is not None:
        figure = f"pixel agreement among {parity.classes} classes"
        shown.append((figure, f"{parity.pixel_agreement:.3%}", f">= {bounds.agreement:.1%}"))
    errors = [
        ("embedding, largest error", parity.max_abs_error),
        ("logits, largest error", parity.logits_max_abs_error),
        ("patch tokens, largest error", parity.patch_tokens_max_abs_error),
        ("pixel logits, largest error", parity.pixel_logits_max_abs_error),
    ]
    return shown + [(name, f"{value:.1e}", "") for name, value in errors if value is not None]


if __name__ == "__main__":
    sys.exit(main())
