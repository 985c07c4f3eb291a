"""The page of one training run, which ``train.report`` writes: headline, curves, events, settings, lineage."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from digpt.charts import (
    Bar,
    Format,
    Series,
    bar_chart,
    color,
    element,
    formatted,
    line_chart,
    number,
    percent,
    ramp,
    short,
    split_bar,
)
from digpt.lineage import duration, text_of, tree
from digpt.report import Cell, Column, Tile, cards, columns, document, header, notice, section, table, tiles
from train.record import Curve, Event, Run
from train.record import number as as_number

TITLES = {
    "pretrain": "Pretraining",
    "zeroshot": "Text tuning",
    "finetune": "Finetuning",
    "segment": "Segmentation",
    "teacher": "Training a teacher",
    "tokenizer": "Training a tokenizer",
}
PARADIGMS = {"digpt": "D-iGPT", "gen": "Gen alone", "gen_fd": "Gen + FD", "igpt": "iGPT"}  # others: in capitals
FACTS = {
    "image_size": "{} px",
    "teacher": "teacher {}",
    "encoder": "from {}",
    "data": "data {}",
    "batch_size": "batch {}",
    "precision": "{}",
    "seed": "seed {}",
}
CAUSAL = re.compile(r"(.+)_step(\d+)_loss")  # the loss of one step of the autoregressive order
FRACTION = re.compile(r"(^|_)(top\d+|knn|acc|accuracy|probe|utilisation|miou|macc|aacc)(_|$)")
SPEED = ("images_per_second", "utilisation")
MOST_CHARTS = 60  # of keys this module does not know
MOST_MARKS = 50  # events drawn into the charts


def run_page(run: Run) -> str:
    """The report of one run as HTML."""
    marks = _marks(run.events)
    return document(
        f"{run.name}: {title_of(run)}",
        header(title_of(run), eyebrow=str(run.folder), state=run.state, lines=[_facts(run), _as_of(run)]),
        *_warnings(run),
        tiles(_headline(run)),
        section("Figures", cards(*_grouped({n: (n, c) for n, c in run.figures.items()}, marks))),
        section("Losses", baseline_note([run]), cards(*_losses(run, marks))),
        section("Loss by causal step", cards(*_causal(run, marks))),
        section("Optimisation", cards(*(_single(run, key, marks) for key in ("lr", "grad_norm")))),
        section(
            "Where the time goes", split_bar("Share of the time", {"": run.time_split}), cards(*_speed(run, marks))
        ),
        section("Other values", *_others(run, marks)),
        section("Events", _event_table(run)),
        section("Configuration", _configuration(run)),
        section("Lineage", lineage(run, run.name)),
    )


def title_of(run: Run) -> str:
    """``Pretraining Ti/16 with D-iGPT``."""
    model = run.setting("variant") or run.setting("trunk")
    paradigm = run.setting("paradigm")
    words = [TITLES.get(run.command, run.command.capitalize()), *([str(model)] if model else [])]
    return " ".join(words + ([f"with {PARADIGMS.get(str(paradigm), str(paradigm).upper())}"] if paradigm else []))


def _facts(run: Run) -> str:
    values = {key: run.setting(key) for key in FACTS}
    told = {key: value for key, value in values.items() if isinstance(value, (str, int, float)) and value != ""}
    return " · ".join(FACTS[key].format(text_of(value)) for key, value in told.items())


def _as_of(run: Run) -> Markup:
    when = run.updated.strftime("%Y-%m-%d %H:%M UTC") if run.updated else "nothing logged"
    mark = element("div", "ckpt.pt ", element("code", run.fingerprint)) if run.fingerprint else None
    return element("small", f"last entry {when}", mark)


def _warnings(run: Run) -> list[Markup]:
    """What went wrong, then what could not be read."""
    shown = [notice(text) for text in run.notices]
    if run.failure:
        step, policy = run.failure.get("step", "?"), run.failure.get("policy", "stop")
        said = f"The gradient was not finite at step {step} (policy: {policy}). "
        said += "Lower --lr or lengthen --warmup; the state of the last save is kept." if run.state == "failed" else ""
        rows: list[list[Cell]] = [[key, text_of(value)] for key, value in run.failure.items()]
        details = element("details", element("summary", "failure.json"), table([Column("key"), Column("value")], rows))
        shown.insert(0, notice(Markup("{}{}").format(said, details), bad=run.state == "failed"))
    return shown


def _headline(run: Run) -> list[Tile]:
    steps = f"of {run.steps:,}" if run.steps else ""
    entries = [Tile("Step", f"{run.step:,}", steps)]
    if run.seconds is not None:
        entries.append(Tile("Time", duration(run.seconds), "" if "seconds" in run.provenance else "about"))
    rate, batch = run.images_per_second, as_number(run.config.get("batch_size"))
    if rate:
        seen = f"{short(run.step * batch)} images seen" if batch else ""
        entries.append(Tile("Images per second", number(float(f"{rate:.3g}")), seen))
        if run.state == "running" and batch and run.steps:
            entries.append(Tile("Time left", duration((run.steps - run.step) * batch / rate), "about"))
    if "utilisation" in run.curves:
        entries.append(Tile("Utilisation", percent(run.curves["utilisation"].last), "of the matrix-product peak"))
    return entries + [_figure_tile(name, curve) for name, curve in run.figures.items()][:6]


def _figure_tile(name: str, curve: Curve) -> Tile:
    """The latest value, and the best one when it was earlier (of accuracies: of others nobody knows what is good)."""
    kind, best = kind_of(name, curve), max((y for y in curve.y if math.isfinite(y)), default=math.nan)
    beaten = kind == "percent" and best > curve.last
    at = f"best {percent(best)} at step {number(curve.x[curve.y.index(best)])}" if beaten else ""
    return Tile(name, formatted(curve.last, kind), at)


def kind_of(name: str, curve: Curve) -> Format:
    within = all(0 <= value <= 1 for value in curve.y if math.isfinite(value))
    return "percent" if within and FRACTION.search(name) else "number"


def _marks(events: Iterable[Event]) -> list[tuple[float, str]]:
    return [(event.step, f"{event.kind} at step {event.step:.0f}") for event in events][:MOST_MARKS]


def _single(run: Run, key: str, marks: Sequence[tuple[float, str]]) -> Markup:
    curve = run.curves.get(key)
    if curve is None:
        return Markup("")
    return line_chart(key, [Series(key, curve.x, curve.y)], kind=kind_of(key, curve), marks=marks)


def _grouped(named: Mapping[str, tuple[str, Curve]], marks: Sequence[tuple[float, str]]) -> list[Markup]:
    """Charts of ``{label: (key, curve)}``, one per kind of measurement: the key's last word (``top1``), or ``knn``."""
    groups: dict[tuple[str, Format], list[Series]] = {}
    for label, (key, curve) in named.items():
        word = "knn" if key.startswith("knn") else key.rpartition("_")[2] or key
        groups.setdefault((word, kind_of(key, curve)), []).append(Series(label, curve.x, curve.y))
    return [
        line_chart(series[0].name if len(series) == 1 else word, series, kind=kind, marks=marks)
        for (word, kind), series in groups.items()
    ]


def _losses(run: Run, marks: Sequence[tuple[float, str]]) -> list[Markup]:
    """The total, then its parts; a dashed line is what the best constant prediction would lose."""
    names = [name for name in run.curves if name.endswith("_loss") and not CAUSAL.fullmatch(name)]
    parts = [series for i, name in enumerate(names) for series in _with_baseline(run, name, color(i))]
    whole = "loss" in run.curves and [run.curves[name].y for name in names] != [run.curves["loss"].y]
    return [
        _single(run, "loss", marks) if whole else Markup(""),
        line_chart("parts of the loss" if whole else "loss", parts, marks=marks),
    ]


def baseline_note(runs: Iterable[Run]) -> Markup:
    """What dashed lines mean, where there are any."""
    if not any(key.endswith("_baseline") for run in runs for key in run.curves):
        return Markup("")
    return element("p", "Dashed: what the best constant prediction would lose.", class_="soft")


def _with_baseline(run: Run, name: str, paint: str) -> list[Series]:
    constant = f"{name.removesuffix('_loss')}_baseline"
    curve, base = run.curves[name], run.curves.get(constant)
    return [Series(name, curve.x, curve.y, paint)] + (
        [Series(constant, base.x, base.y, paint, dashed=True)] if base else []
    )


def _causal(run: Run, marks: Sequence[tuple[float, str]]) -> list[Markup]:
    """Per decoder the loss of each step, and how far below a constant prediction each of them is."""
    steps: dict[str, list[tuple[int, str]]] = {}
    for name in run.curves:
        if found := CAUSAL.fullmatch(name):
            steps.setdefault(found[1], []).append((int(found[2]), name))
    charts, bars = [], []
    for decoder, found_steps in steps.items():
        ordered = sorted(found_steps)
        series = []
        for i, (step, name) in enumerate(ordered):
            paint, curve = ramp(i, len(ordered)), run.curves[name]
            series.append(Series(f"step {step}", curve.x, curve.y, paint))
            base = run.curves.get(f"{name.removesuffix('_loss')}_baseline")
            if base and base.recent() > 0:
                loss, constant = curve.recent(), base.recent()
                text = f"{loss:.3f} against {constant:.3f}"
                bars.append(Bar(f"{decoder} step {step}", 1 - loss / constant, text=text, color=paint))
        charts.append(line_chart(f"{decoder}_loss by step", series, marks=marks))
    share = bar_chart("Below a constant prediction (mean of the last 10 entries)", bars, kind="percent")
    return [*charts, share]


def _speed(run: Run, marks: Sequence[tuple[float, str]]) -> list[Markup]:
    parts = {key.partition(".")[2]: curve for key, curve in run.curves.items() if key.startswith("time_split.")}
    series = [Series(name, curve.x, curve.y) for name, curve in parts.items() if len(curve.x) > 1]
    over = line_chart("share of the time so far", series, kind="percent", marks=marks) if series else None
    return [cards(*(_single(run, key, marks) for key in SPEED), over)]


def _others(run: Run, marks: Sequence[tuple[float, str]]) -> list[Markup]:
    """Every key that no other section shows: charts, or a table of those that never changed."""
    known = {"loss", "lr", "grad_norm", *SPEED}
    rest = {
        key: curve
        for key, curve in run.curves.items()
        if key not in known and not key.endswith(("_loss", "_baseline")) and not key.startswith("time_split.")
    }
    still = {key: curve for key, curve in rest.items() if len(curve.y) > 1 and min(curve.y) == max(curve.y)}
    charts = _grouped({key: (key, curve) for key, curve in rest.items() if key not in still}, marks)
    more = len(charts) - MOST_CHARTS
    constant: list[list[Cell]] = [[key, curve.last] for key, curve in still.items()]
    return [
        cards(*charts[:MOST_CHARTS]),
        notice(f"{more} further charts are left out; metrics.jsonl has their values.") if more > 0 else Markup(""),
        table([Column("never changed"), Column("value", numeric=True)], constant),
    ]


def _event_table(run: Run) -> Markup:
    rows: list[list[Cell]] = [[event.step, event.kind, event.detail] for event in run.events]
    return table([Column("step", numeric=True), Column("event"), Column("detail")], rows)


def _configuration(run: Run) -> Markup:
    """One table per section of the settings."""
    groups: dict[str, list[list[Cell]]] = {}
    for key, value in run.config.items():
        name, _, rest = key.partition(".")
        groups.setdefault(name if rest else "", []).append([rest or key, text_of(value)])
    heads = [(Column(f"{name}." if name else "setting"), Column("value")) for name in groups]
    return columns(*(table(head, rows) for head, rows in zip(heads, groups.values(), strict=True)))


# ------------------------------------------------------------------------------------------------------- lineage


def lineage(run: Run, name: str) -> Markup:
    """The chain of parents, the run on top as ``name``; before it has ended, the inputs that its settings name."""
    if run.provenance:
        top = {**run.provenance, "role": name, "fingerprint": run.fingerprint}
        rows: list[list[Cell]] = []
        for key in ("data", "versions", "processes", "notes"):
            value = run.provenance.get(key)
            entries = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
            rows += [[name, text_of(entry)] for name, entry in entries.items() if entry is not None]
        return tree(top) + table([Column("record"), Column("value")], rows)
    inputs: list[list[Cell]] = [
        [k.removesuffix(" fingerprint"), text_of(v)] for k, v in run.config.items() if k.endswith(" fingerprint")
    ]
    return table([Column("input"), Column("fingerprint")], inputs)
