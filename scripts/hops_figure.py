"""Draw the figure of docs/explanation/parity.md: the hops of a checkpoint, and what is compared at each of them.

    python -m scripts.hops_figure                    # into docs/images; --output FILE elsewhere

Names of engines, batch sizes and bounds are read from the code that applies them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from digpt.runtime import ARTIFACT_BACKENDS, MODEL_BACKENDS
from digpt.runtime.precision import GOLDEN_TOLERANCE, THRESHOLDS
from export.parity import BATCH_SIZES
from scripts.drawing import Figure

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "parity-hops.svg"
DOORS = (  # what a door is called, and where its code lies
    ("evaluation", "evaluate/compute.py"),
    ("HTTP", "serve/api.py"),
    ("demo", "app/handlers.py"),
    ("bulk jobs", "serve/offline.py"),
    ("Ray", "serve/ray.py"),
)


def hops_figure() -> Figure:
    """Checkpoint, artifact, engine and doors from left to right; below them what holds each hop together."""
    gate, start = THRESHOLDS["fp32"], GOLDEN_TOLERANCE["fp32"]
    engines = [name for name in ARTIFACT_BACKENDS]
    figure = Figure(
        900,
        440,
        "The hops of a checkpoint",
        "From the checkpoint through an artifact or directly to an engine, and from there to every door.",
    )
    figure.box(24, 60, 150, 80, "checkpoint\nweights, settings,\nfingerprint", "encoder")
    figure.box(254, 60, 184, 80, "artifact\nengines, golden images,\nsealed manifest", "target")
    figure.box(518, 60, 150, 80, "engine\nuint8 crop in,\nfloat32 out", "gen")
    figure.arrow((174, 100), (252, 100))
    figure.arrow((438, 100), (516, 100))
    figure.text(213, 90, "export", "small", "middle")
    figure.text(477, 90, "load", "small", "middle")
    figure.arrow((99, 60), (99, 28), (593, 28), (593, 58))
    figure.text(346, 22, f"no export: {', '.join(name for name in MODEL_BACKENDS)}", "small", "middle")
    for number, (door, _) in enumerate(DOORS):
        y = 40 + 44 * number
        figure.arrow((668, 100), (700, 100), (700, y + 16), (726, y + 16))
        figure.box(728, y, 148, 32, door, "dis")
    figure.box(518, 180, 150, 64, "one preprocessing\nfile bytes → uint8 crop", "plain", "small")
    figure.arrow((593, 180), (593, 142))
    _note(figure, 24, "same weights?", ["sha256 of weights and", "of every setting that", "changes an answer"])
    bounds = f"median and lowest ≥ {gate.cosine_min}"
    sizes = ", ".join(map(str, BATCH_SIZES))
    _note(
        figure,
        190,
        "same answers? (the gate)",
        ["cosine to torch float32:", bounds, f"at batches of {sizes};", "who fails is not written"],
    )
    cosine, error = start["cosine"], start["relative_error"]
    _note(
        figure,
        430,
        "same files, same answers here?",
        [
            "sha256 of every file, identity in",
            "each; golden answers recomputed:",
            f"cosine ≥ {cosine}, error ≤ {error}",
        ],
    )
    _note(figure, 690, "same at every door?", ["equal batches: the same bits;", "other batches: within 1e-5"])
    figure.text(24, 400, f"Engines of an artifact: {', '.join(engines[:5])},", "soft small")
    figure.text(24, 416, f"{', '.join(engines[5:])}. Bounds are those of float32; others have their own.", "soft small")
    return figure


def _note(figure: Figure, x: float, head: str, lines: Sequence[str]) -> None:
    """A check: what it asks, and how."""
    figure.text(x, 296, head, "strong")
    figure.text(x, 316, "\n".join(lines), "small")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the figure; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=PICTURE)
    output: Path = parser.parse_args(argv).output
    output.write_text(hops_figure().render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
