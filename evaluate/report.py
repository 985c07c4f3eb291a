"""Results of several models as the paper's tables, the published rows beside one's own, and effective robustness.

    python -m evaluate.report runs/robustness
    python -m evaluate.report runs/b16 runs/l16 --format markdown latex html --output runs/report
    python -m evaluate.report runs/b16 --format html --output b16.html --population pytorch-image-models/results

DIR is what an evaluation was given as --output, or a results.json. Documents of one model are merged. Documents whose
protocols ask different questions of one data set are refused: ``docs/evaluation.md`` says why.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from digpt.cli import Command
from digpt.errors import ConfigError, DataError
from digpt.files import atomic_write
from evaluate.effective_tables import Study, study_of, tables_of_study
from evaluate.population import read_population, shipped_population
from evaluate.report_models import Model, gather, read_all
from evaluate.report_page import page
from evaluate.table_formats import latex, markdown, to_values
from evaluate.tables import Table, TableId, tables_of

COMMAND = Command("evaluate.report", __doc__)
Format = Literal["markdown", "latex", "html"]
SUFFIXES: dict[Format, str] = {"markdown": ".md", "latex": ".tex", "html": ".html"}
STEM = "report"


@dataclass(frozen=True)
class ReportOptions:
    """Options of the report."""

    directories: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Results: what evaluations were given as --output, or results.json files."""
    format: tuple[Format, ...] = ()
    """One or several of markdown, latex, html (default: what --output ends in, else markdown)."""
    output: Path | None = None
    """File, or for several formats a directory that then holds report.md, report.tex, report.html (default: print)."""
    table: tuple[TableId, ...] = ()
    """1 (ImageNet and ADE20K), 2 (robustness), 4 (zero-shot), emoji (default: all that there is a number for)."""
    population: str = "shipped"
    """For effective robustness: shipped (seven models), none, the folder results/ of a checkout of
    huggingface/pytorch-image-models (hundreds), or a CSV file that scripts/population.py wrote from it."""
    allow_mixed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print results of different protocols in one table, with a mark that says what differs."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the tables as JSON on standard output, and nothing else there."""


@dataclass(frozen=True)
class Report:
    """What is written, in whichever format."""

    models: Sequence[Model]
    tables: Sequence[Table]
    study: Study | None

    @property
    def study_tables(self) -> list[Table]:
        return [] if self.study is None else tables_of_study(self.study)

    def text(self, form: Format) -> str:
        """The whole report in one format."""
        if form == "html":
            return page(self.tables, self.study_tables, self.study, [model.label for model in self.models])
        write = markdown if form == "markdown" else latex
        return "\n".join(write(table) for table in [*self.tables, *self.study_tables])

    def values(self) -> dict[str, Any]:
        """JSON values."""
        values: dict[str, Any] = {"tables": [to_values(table) for table in self.tables], "effective_robustness": None}
        if self.study is not None:
            values["effective_robustness"] = {
                **to_values(self.study_tables[0]),
                "unit": "points",
                "population": self.study.population.source,
                "baselines": {
                    name: {
                        "slope": baseline.slope,
                        "intercept": baseline.intercept,
                        "r2": baseline.r2,
                        "models": baseline.models,
                    }
                    for name, baseline in self.study.baselines.items()
                },
            }
        return values


def report_of(options: ReportOptions) -> Report:
    """Read, merge and tabulate.

    Raises:
        ConfigError: no directory, nothing to tabulate, or documents that cannot stand in one table.
        DataError: a document or the population cannot be read.
    """
    if not options.directories:
        raise ConfigError("Give at least one DIR, the --output of an evaluation, such as runs/robustness.")
    models = gather(read_all(options.directories), allow_mixed=options.allow_mixed)
    tables = tables_of(models, options.table)
    if not tables:
        raise ConfigError(
            "None of these results stand in a table: tables are made of the ImageNet family (--data-root), "
            "ADE20K and the bundled emoji set. --table 1 prints the published rows alone."
        )
    study = None
    if options.population == "shipped":
        if not options.table or "2" in options.table:
            study = study_of(models, shipped_population())
    elif options.population != "none":
        study = study_of(models, read_population(Path(options.population)))
        if study is None:
            print("effective robustness: no model here has ImageNet and a shifted set", file=sys.stderr)
    return Report(models, tables, study)


def targets(options: ReportOptions) -> dict[Format, Path | None]:
    """Each format with the file it goes to; None is standard output.

    Raises:
        ConfigError: formats and ``--output`` that do not fit.
    """
    output = options.output
    named: list[Format] = [form for form, suffix in SUFFIXES.items() if output is not None and output.suffix == suffix]
    default: list[Format] = [] if options.json and output is None else ["markdown"]
    forms: list[Format] = list(dict.fromkeys(options.format)) or named or default
    if output is None:
        if (options.json and forms) or len(forms) > 1:
            raise ConfigError("Standard output takes one format: give --output DIR, or fewer of --format and --json.")
        return dict.fromkeys(forms)
    if output.is_dir() or len(forms) > 1 or not output.suffix:
        if output.exists() and not output.is_dir():
            raise ConfigError(f"--output {output} is a file; {len(forms)} formats need a directory.")
        return {form: output / f"{STEM}{SUFFIXES[form]}" for form in forms}
    return {forms[0]: output}


def main(argv: Sequence[str] | None = None) -> int:
    """Write or print the report; return the exit code."""
    return COMMAND.run(ReportOptions, argv, _report)


def _report(options: ReportOptions) -> int:
    written = targets(options)
    report = report_of(options)
    for form, path in written.items():
        text = report.text(form)
        if path is None:
            print(text, end="")
            continue
        try:
            atomic_write(path, text.encode("utf-8", errors="replace"))
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}.") from error
        print(f"written to {path}", file=sys.stderr)
    if options.json:
        print(json.dumps(report.values(), indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
