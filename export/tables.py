"""The figures of an export as tables: one of all engines, and one of an engine that failed, beside what it needed."""

from __future__ import annotations

from rich.table import Table

from digpt.runtime.timing import speed
from export.abstain import Calibration
from export.parity import ParityReport
from export.pipeline import EngineOutcome, Outcome

TABLE_WIDTH = 120  # where the output is no terminal
BASELINE = "onnx"  # the engine that others are compared with, in float32


def summary(outcome: Outcome) -> Table:
    """One row per engine; the speed is the geometric mean of the images per second at batch 1 and 16."""
    name, images = outcome.manifest["name"], outcome.engines[0].parity.images
    result = Table(title=f"{name} against torch fp32, {images} images")
    result.add_column("engine", no_wrap=True)
    result.add_column("precision")
    for column in ("cosine median", "cosine min", "agreement", "ms, batch 1", "images/s, batch 16", "speed / onnx"):
        result.add_column(column, justify="right")
    result.add_column("passed")
    speeds = {engine.target: speed(engine.timings) for engine in outcome.engines}
    for engine in outcome.engines:
        parity, timings = engine.parity, engine.timings
        agreement = parity.agreement if parity.agreement is not None else parity.pixel_agreement
        result.add_row(
            engine.target,
            parity.precision,
            near_one(parity.cosine_median),
            near_one(parity.cosine_min),
            "-" if agreement is None else f"{agreement:.2%}",
            f"{timings['batch_1_ms']:.2f}",
            f"{16_000 / timings['batch_16_ms']:.1f}",
            f"{speeds[engine.target] / speeds[BASELINE]:.2f}" if BASELINE in speeds else "-",
            "yes" if engine.passed else "[red]no[/red]",
        )
    return result


def abstain_line(calibration: Calibration) -> str:
    """At which cosine the model answers "none of these", and how often it is wrong about that."""
    if calibration.rule is None:
        return f'"none of these" is not calibrated: {calibration.reason}'
    parts = []
    for at, error in enumerate(calibration.errors):
        cosine = calibration.rule.cosine[at]
        rates = f"{error.false_reject:.1%} wrongly none, {error.false_accept:.1%} wrongly a label"
        parts.append(f"  {error.labels:>5,} labels: below cosine {cosine:.3f}; {rates}")
        if at < len(calibration.unseen):
            parts[-1] += f"; unseen concepts, {calibration.unseen[at].false_accept:.1%}"
    of = f"half of {calibration.images:,} images of {calibration.of}"
    title = f'"none of these", calibrated on {of}; rates are those of the other half:'
    return "\n".join([title, *parts])


def details(engine: EngineOutcome, name: str) -> Table:
    """The figures of one engine beside their thresholds."""
    parity = engine.parity
    result = Table(title=f"{name} on {engine.target} {parity.precision} against torch fp32, {parity.images} images")
    for column in ("figure", "measured", "needed"):
        result.add_column(column, justify="left" if column == "figure" else "right")
    for row in rows(parity):
        result.add_row(*row)
    return result


def near_one(value: float) -> str:
    """Of a good engine only the distance from 1 says anything."""
    return f"1 - {1 - value:.1e}"


def rows(parity: ParityReport) -> list[tuple[str, str, str]]:
    """(figure, measured, needed) for everything that this model has."""
    bounds = parity.thresholds
    cosines = [
        ("cosine, median", parity.cosine_median, bounds.cosine_median),
        ("cosine, minimum", parity.cosine_min, bounds.cosine_min),
        *((f"cosine, batch of {n}", cosine, bounds.cosine_min) for n, cosine in parity.batch_sizes.items()),
        ("text cosine, minimum", parity.text_cosine_min, bounds.cosine_min),
    ]
    shown = [(name, near_one(value), f">= {bound}") for name, value, bound in cosines if value is not None]
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
