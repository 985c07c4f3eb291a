"""Effective robustness of the paper's rows and one's own models, as tables: the gains, and the lines behind them.

study = study_of(models, read_population(Path("pytorch-image-models/results")))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from digpt.results import Result
from evaluate.effective import Baseline, Gain, Measured, effective, fit
from evaluate.paper_rows import TABLE_2, Published
from evaluate.population import CLEAN, SHIFTED, Population
from evaluate.report_models import Model
from evaluate.tables import GROUPS, PHOTOGRAPHS, ROWS, Column, Line, Notes, Source, Table, Value, label_2

TITLES = {
    "imagenet-v2": "IN-V2",
    "imagenet-real": "IN-Real",
    "imagenet-a": "IN-Adversarial",
    "imagenet-r": "IN-Rendition",
    "imagenet-sketch": "IN-Sketch",
}
BEYOND = "Its ImageNet accuracy lies outside the population's, so the line is extrapolated"
ADVERSARIAL = (
    "The images were chosen because ResNet-50 fails on them, which bends the relation: accurate standard models lie "
    "above this line too, so compare a gain with DeiT's rather than with 0"
)
REALLY_SAME = "The images are ImageNet's own, whose two accuracies move together: the interval is wider than needed"


@dataclass(frozen=True)
class Subject:
    """A model with its accuracies and their 95 % intervals, fractions, and its gain by set."""

    name: str
    source: Source
    top1: Mapping[str, Measured]
    gains: Mapping[str, Gain]
    group: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """Everything about effective robustness that a report shows."""

    population: Population
    baselines: Mapping[str, Baseline]
    subjects: tuple[Subject, ...]


def study_of(models: Sequence[Model], population: Population) -> Study | None:
    """Measure the paper's Table 2 and ``models`` against ``population``; None where no model has two accuracies.

    Raises:
        DataError: the population is too small for a line.
    """
    own = [subject for subject in map(_of_model, models) if subject is not None]
    names = [name for name in SHIFTED if any(name in subject.top1 for subject in own)]
    if not names:
        return None
    baselines = {name: fit(population, name) for name in names}
    subjects = [_with_gains(subject, baselines) for subject in [*map(_of_row, TABLE_2), *own]]
    return Study(population, baselines, tuple(subjects))


def _of_row(row: Published) -> Subject:
    top1: dict[str, Measured] = {
        name: (value / 100, None)
        for name, value in row.values.items()
        if value is not None and name in (CLEAN, *SHIFTED)
    }
    return Subject(row.name, "paper", top1, {}, f"{GROUPS['paper']}: {row.group}")


def _of_model(model: Model) -> Subject | None:
    if model.protocol not in PHOTOGRAPHS or ROWS[CLEAN] not in model.results:
        return None
    top1 = {name: _measured(model.results[ROWS[name]]) for name in (CLEAN, *SHIFTED) if ROWS[name] in model.results}
    return Subject(label_2(model), "ours", top1, {}, GROUPS["ours"], model.notes) if len(top1) > 1 else None


def _measured(result: Result) -> Measured:
    return result.value, result.ci95


def _with_gains(subject: Subject, baselines: Mapping[str, Baseline]) -> Subject:
    gains = {
        name: gain
        for name, baseline in baselines.items()
        if name in subject.top1 and (gain := effective(baseline, subject.top1[CLEAN], subject.top1[name])) is not None
    }
    return Subject(subject.name, subject.source, subject.top1, gains, subject.group, subject.notes)


def tables_of_study(study: Study) -> list[Table]:
    """Gains in points, and the lines they are measured from."""
    return [_gains(study), _lines(study)]


def _gains(study: Study) -> Table:
    notes = Notes()
    about = {"imagenet-a": ADVERSARIAL, "imagenet-real": REALLY_SAME}
    columns = tuple(
        Column(name, TITLES[name], notes.mark(about[name]) if name in about else "", signed=True)
        for name in study.baselines
    )
    lines = []
    for subject in study.subjects:
        marks = [notes.mark(text) for text in subject.notes]
        if any(gain.beyond for gain in subject.gains.values()):
            marks.append(notes.mark(BEYOND))
        values = {name: _points(gain) for name, gain in subject.gains.items()}
        if values:
            lines.append(Line(subject.name, subject.source, subject.group, (), values, tuple(marks)))
    remark = (
        "Points of top-1 above the line through standard models (Taori et al. 2020); 95 % intervals hold the model's "
        "own, on both sets, and the line's (populations resampled); the paper's rows have none"
    )
    return Table("effective", "Effective robustness", (), columns, tuple(lines), notes.all(), remark)


def _points(gain: Gain) -> Value:
    return Value(100 * gain.value, None if gain.ci95 is None else (100 * gain.ci95[0], 100 * gain.ci95[1]))


def _lines(study: Study) -> Table:
    lines = tuple(
        Line(
            name=TITLES[name],
            source="published",
            details=(
                f"{b.slope:.3f}",
                f"{b.intercept:.3f}",
                f"{b.r2:.3f}",
                f"{b.models:,}",
                f"{100 * b.clean_range[0]:.1f} to {100 * b.clean_range[1]:.1f}",
            ),
        )
        for name, b in study.baselines.items()
    )
    left_out = sum(baseline.left_out for baseline in study.baselines.values())
    zero = f"; {left_out} accuracies of exactly 0 or 100 % have no logit and are left out" if left_out else ""
    return Table(
        id="baseline",
        title="The line of standard models",
        details=("slope", "intercept", "R²", "models", "ImageNet top-1, %"),
        columns=(),
        lines=lines,
        remark=(
            "logit(shifted accuracy) = slope × logit(ImageNet accuracy) + intercept, by least squares over models that "
            "were trained on ImageNet-1K alone; ImageNet accuracy is that of all 1000 classes, also for the sets of 200"
            f"{zero}. Population: {study.population.source}"
        ),
        first="Set",
    )


def expected_curve(baseline: Baseline, clean: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Points ``(clean, expected)`` of the line, fractions."""
    for x in clean:
        yield x, float(baseline.at(x))
