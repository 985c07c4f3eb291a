"""Writes the HTML report of a training run, or one page that compares several; no network, no other files needed.

    python -m train.report runs/pretrain
    python -m train.report runs/first runs/second --output runs/comparison.html

The training loop writes the same page into the run's folder after every evaluation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from markupsafe import Markup

from digpt.charts import Series, color, element, line_chart, number, percent, split_bar
from digpt.cli import Command
from digpt.errors import ConfigError
from digpt.lineage import duration, text_of
from digpt.report import Cell, Column, cards, document, header, section, table, write_page
from train.record import Curve, Run, read_run
from train.record import number as number_of
from train.report_run import MOST_CHARTS, baseline_note, kind_of, lineage, run_page, title_of

COMMAND = Command("train.report", __doc__)
ABSENT = "not set"
PAGE = "report.html"


@dataclass(frozen=True)
class ReportConfig:
    """Which runs are told of."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR ...")]
    """Folders of runs, the --output of training commands: of one DIR/report.html is written, of several a page that
    compares them."""
    output: Path = Path("comparison.html")
    """Where the comparison goes; one run's report always goes into its own folder."""
    json: bool = False
    """Print the page's path as JSON on standard output, and nothing else there."""


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into the folder of a run, finished or not, all or nothing; return its path.

    Raises:
        DataError: the folder holds no run.
    """
    return write_page(Path(folder) / PAGE, run_page(read_run(folder)))


def write_comparison(folders: Sequence[str | Path], output: str | Path) -> Path:
    """Write one page that compares the runs in ``folders`` to ``output``; return its path. Errors as `write_report`."""
    return write_page(output, comparison_page([read_run(folder) for folder in folders]))


def main(argv: list[str] | None = None) -> int:
    """Write the report of the run given, or, given several, one comparison of them; return the exit code."""
    return COMMAND.run(ReportConfig, argv, _report)


def _report(config: ReportConfig) -> int:
    if not config.folders:
        raise ConfigError("Give the folder of a run, such as runs/pretrain.")
    several = len(config.folders) > 1
    path = write_comparison(config.folders, config.output) if several else write_report(config.folders[0])
    print(json.dumps({"report": str(path)}, ensure_ascii=False) if config.json else f"wrote {path}")
    return 0


def comparison_page(runs: Sequence[Run]) -> str:
    """Several runs side by side: headlines, one chart per logged key with a curve per run, what differs, lineages.

    Runs with batches of different sizes are drawn over the images seen, not over steps.
    """
    names = _names(runs)
    curves = _by_key([run.curves for run in runs])
    figures = _by_key([run.figures for run in runs])
    bases = {key: found for key, found in curves.items() if key.endswith("_baseline")}
    losses = [key for key in curves if key == "loss" or key.endswith("_loss")]
    causal = [key for key in losses if "_step" in key]
    rest = [key for key in curves if key not in losses and key not in bases and not key.startswith("time_split.")]

    def charts(keys: Iterable[str], found: Mapping[str, list[Curve | None]]) -> Markup:
        shown = list(keys)[:MOST_CHARTS]
        return cards(
            *(_chart(runs, names, k, found[k], bases.get(f"{k.removesuffix('_loss')}_baseline")) for k in shown)
        )

    return document(
        f"{len(runs)} runs compared",
        header(f"{len(runs)} runs compared", eyebrow="digpt training"),
        section("Runs", _overview(runs, names)),
        section("Figures", charts(figures, figures)),
        section("Losses", baseline_note(runs), charts((key for key in losses if key not in causal), curves)),
        section("Loss by causal step", charts(causal, curves)),
        section("Optimisation and other values", charts(rest, curves)),
        section(
            "Where the time goes",
            split_bar("Share of the time", {name: run.time_split for name, run in zip(names, runs, strict=True)}),
        ),
        section("Configuration", _settings(runs, names)),
        section("Lineage", *(lineage(run, name) for name, run in zip(names, runs, strict=True))),
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' names, whole paths where two are alike, numbers where even those are."""
    short = [run.name for run in runs]
    names = short if len(set(short)) == len(runs) else [str(run.folder) for run in runs]
    return names if len(set(names)) == len(runs) else [f"{i}: {name}" for i, name in enumerate(names, start=1)]


def _by_key(each: Sequence[Mapping[str, Curve]]) -> dict[str, list[Curve | None]]:
    """``{key: one curve or None per run}``, keys in order of appearance."""
    keys = dict.fromkeys(key for curves in each for key in curves)
    return {key: [curves.get(key) for curves in each] for key in keys}


def _chart(
    runs: Sequence[Run],
    names: Sequence[str],
    key: str,
    curves: Sequence[Curve | None],
    baselines: Sequence[Curve | None] | None,
) -> Markup:
    """One key, one curve per run that has it; a constant prediction's loss is dashed, in the colour of its run."""
    scales = _images_per_step(runs)
    series, kinds = [], set()
    for i, curve in enumerate(curves):
        base = baselines[i] if baselines else None
        for found, label in ((curve, names[i]), (base, f"{names[i]} baseline")):
            if found is not None:
                x = [scales[i] * step for step in found.x]
                series.append(Series(label, x, found.y, color(i), dashed=found is base))
        if curve is not None:
            kinds.add(kind_of(key, curve))
    kind = kinds.pop() if len(kinds) == 1 else "number"
    return line_chart(key, series, x_label="step" if set(scales) == {1.0} else "images seen", kind=kind)


def _images_per_step(runs: Sequence[Run]) -> list[float]:
    """What to multiply each run's steps by: 1, or the size of its batch where the runs' sizes differ and are known."""
    sizes = [number_of(run.config.get("batch_size")) for run in runs]
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(runs) and len(set(known)) > 1 else [1.0] * len(runs)


def _overview(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    """One row per run; of each figure the latest value."""
    figures = _by_key([run.figures for run in runs])
    rows: list[list[Cell]] = []
    for i, run in enumerate(runs):
        label = element("span", element("i", style=f"--c:{color(i)}"), names[i], class_="key")
        state = element("span", run.state, class_=f"state {run.state}")
        rate = run.images_per_second
        row: list[Cell] = [label, title_of(run), state, run.step, run.seconds, rate and float(f"{rate:.3g}")]
        rows.append(row + [None if curve is None else curve.last for curve in (found[i] for found in figures.values())])
    columns = [Column("run"), Column("what"), Column("state"), Column("steps", numeric=True)]
    columns += [Column("time", numeric=True, show=duration), Column("images/s", numeric=True)]
    for key, found in figures.items():
        kinds = {kind_of(key, curve) for curve in found if curve}
        columns.append(Column(key, numeric=True, show=percent if kinds == {"percent"} else number))
    return table(columns, rows)


def _settings(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    """Every setting of every run, those that differ first and highlighted."""
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    differ = [key for key in keys if len({text_of(run.config.get(key, ABSENT)) for run in runs}) > 1]
    ordered = differ + [key for key in keys if key not in differ]
    rows: list[list[Cell]] = [[key, *(text_of(run.config.get(key, ABSENT)) for run in runs)] for key in ordered]
    columns = [Column("setting"), *(Column(name) for name in names)]
    label = f"only the {len(differ)} that differ" if differ else ""
    return table(columns, rows, marked=range(len(differ)), only_marked=label)


if __name__ == "__main__":
    sys.exit(main())
