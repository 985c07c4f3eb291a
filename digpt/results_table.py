"""A results document as a console prints it: sets down, metrics across, a sweep of corruptions by severity.

Console().print(render(read_results("runs/eval")))
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from digpt.corruptions import CORRUPTIONS
from digpt.results import Result, ResultsDocument

# Rows whose metric begins with one of these stand in a table of their own.
METHOD_TITLES = {"knn": "kNN", "probe": "linear probe"}
TITLES = {
    **{"top1": "top-1", "top5": "top-5", "ece": "ECE", "nll": "NLL", "brier": "Brier", "ce": "CE", "mce": "mCE"},
    **{"miou": "mIoU", "macc": "mAcc", "aacc": "aAcc"},
}
PLAIN = ("nll", "brier")  # no fractions
CALIBRATION = ("ece", *PLAIN)


def render(document: ResultsDocument) -> RenderableType:
    """Return what a console prints: the model, its tables, and what the values are."""
    model, protocol = document.model, document.protocol
    by = f", by {model.classifier}" if model.classifier else ""
    parts: list[RenderableType] = [
        Text(f"{model.name} on {model.backend} {model.precision}, fingerprint {_short(model.fingerprint)}{by}")
    ]
    for method in ("", *METHOD_TITLES):
        rows = [result for result in document.results if _method(result) == method]
        sweeps = swept(rows)
        plain = [result for result in rows if result.dataset not in sweeps]
        if plain:
            parts.append(_table(METHOD_TITLES.get(method, ""), plain))
        parts += [_sweep_table(dataset, [r for r in rows if r.dataset == dataset]) for dataset in sweeps]
    parts.append(
        f"values in % (NLL and Brier as they are), 95 % bootstrap intervals; protocol {protocol['name']} "
        f"{_short(protocol['fingerprint'])}"
    )
    # The bundled set alone is asked for classes and neighbours at once; asking for neighbours only misses nothing.
    if not model.classifier and (protocol.get("classification") or {}).get("splits"):
        parts.append("no classification: this model has neither a linear head nor a text tower")
    if protocol.get("limit"):
        parts.append(f"a seeded subset of at most {protocol['limit']} images per split")
    if protocol.get("preview"):
        parts.append(f"a stratified preview: {protocol['preview']:.0%} of the images; intervals are for all of them")
    return Group(*parts)


def format_value(result: Result) -> str:
    """``'66.1 [64.0, 68.3]'``: value and interval, in percent where it is a fraction; no interval, no brackets."""
    scale, digits = (1, 3) if result.metric in PLAIN else (100, 1)
    value = f"{scale * result.value:.{digits}f}"
    if result.ci95 is None:
        return value
    return f"{value} [{scale * result.ci95[0]:.{digits}f}, {scale * result.ci95[1]:.{digits}f}]"


def _short_value(result: Result) -> str:
    """`format_value`, calibration without its interval: a row must fit a terminal, and ``results.json`` has it."""
    if result.metric not in CALIBRATION:
        return format_value(result)
    return format_value(Result(result.dataset, result.split, result.metric, result.value, None, result.n))


def swept(results: Iterable[Result]) -> list[str]:
    """The data sets that are sweeps of corruptions: those with a mean over severities."""
    return list(dict.fromkeys(r.dataset for r in results if r.split == "mean" and r.metric == "error"))


def _method(result: Result) -> str:
    method = result.metric.partition("_")[0]
    return method if method in METHOD_TITLES else ""


def _title(metric: str) -> str:
    method, _, rest = metric.partition("_")
    metric = rest if method in METHOD_TITLES else metric
    return TITLES.get(metric, metric.replace("top1", "top-1").replace("_", " "))


def _table(title: str, results: list[Result]) -> Table:
    """Sets and splits down, metrics across."""
    metrics = list(dict.fromkeys(result.metric for result in results))
    cells = {(result.dataset, result.split, result.metric): _short_value(result) for result in results}
    table = Table(title=title or None, title_justify="left", title_style="bold")
    table.add_column("set", no_wrap=True)
    for metric in metrics:
        table.add_column(_title(metric), justify="right", no_wrap=True)
    table.add_column("images", justify="right", no_wrap=True)
    for (dataset, split), n in {(result.dataset, result.split): result.n for result in results}.items():
        values = (cells.get((dataset, split, metric), "") for metric in metrics)
        table.add_row(f"{dataset} {split}", *values, f"{n:,}")
    return table


def _sweep_table(dataset: str, results: list[Result]) -> Table:
    """Corruptions down, severities across, the mean with its interval; the mean over all of them last."""
    found = {(result.split, result.metric): result for result in results}
    names = [r.split for r in results if r.metric == "error" and "/" not in r.split and r.split != "mean"]
    severities = sorted({split.partition("/")[2] for split, _ in found if "/" in split})
    table = Table(title=f"{dataset}: top-1 error", title_justify="left", title_style="bold", show_footer=True)
    table.add_column("corruption", "mean", no_wrap=True)
    for severity in severities:
        table.add_column(severity, justify="right")
    table.add_column("mean", format_value(found["mean", "error"]), justify="right", no_wrap=True)
    normalised = any(metric == "ce" for _, metric in found)
    mce = found.get(("mean", "mce"))
    if normalised:
        footer = "" if mce is None else f"mCE {format_value(mce)}"
        table.add_column("CE", footer, justify="right", no_wrap=True)
    for name in names:
        cells = [found.get((f"{name}/{severity}", "error")) for severity in severities]
        row = ["" if cell is None else f"{100 * cell.value:.1f}" for cell in cells]
        ce = found.get((name, "ce"))
        normal = [] if not normalised else ["" if ce is None else format_value(ce)]
        table.add_row(name, *row, format_value(found[name, "error"]), *normal)
    if dataset == "imagenet-c" and mce is None:
        lacking = len(CORRUPTIONS) - sum((name, "ce") in found for name in names)
        table.caption = f"no mCE: {lacking} of {len(CORRUPTIONS)} corruptions are missing or lack a severity"
    if ("mean", "relative_mce") in found:
        table.caption = f"relative mCE {format_value(found['mean', 'relative_mce'])}"
    return table


def _short(fingerprint: str) -> str:
    return fingerprint[:19]
