"""The measured parts of a passport: accuracy, corruptions, calibration, mistakes, drift; each says when it is missing.

parts = [accuracy(records), corruptions(records), calibration(records), mistakes(records), drift(records)]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from digpt.charts import Bar, Series, bar_chart, element, line_chart, percent
from digpt.exhibits import Exhibit, SweepExhibits
from digpt.report import Cell, Column, Shown, cards, notice, section, table, unbroken
from digpt.results import Result, ResultsDocument
from digpt.results_table import PLAIN, TITLES, format_value
from export.passport_records import EngineDrift, Records

WORST = 5  # corruptions that are shown with pictures
NOT_MEASURED = "Not measured."

Found = Mapping[tuple[str, str], Result]


def note(text: str) -> Markup:
    """A line of small print."""
    return element("p", text, class_="note")


def _on(document: ResultsDocument) -> str:
    model = document.model
    return model.backend if model.backend.endswith(model.precision) else f"{model.backend} {model.precision}"


# ---------------------------------------------------------------------------------------------------------- accuracy


def accuracy(records: Records) -> Markup:
    """Per document a chart of the figure that sums up each set, and all figures but those of a sweep."""
    parts = [part for document in records.documents for part in _accuracy(records, document)]
    return section("Accuracy", *(parts or [notice(NOT_MEASURED)]))


def _accuracy(records: Records, document: ResultsDocument) -> Iterable[Markup]:
    whole = records.whole_sets(document)
    yield bar_chart(
        f"{', '.join(dict.fromkeys(title(result.metric) for result in whole))} by set, on {_on(document)}",
        [_bar(f"{result.dataset} {result.split}", result) for result in whole],
        kind="percent",
    )
    sweeps = {name for of, name in records.sweeps if of is document}
    plain = [result for result in document.results if result.dataset not in sweeps]
    yield element("p", _protocol(document), class_="note")
    yield _figures(plain)


def _bar(label: str, result: Result) -> Bar:
    low, high = result.ci95 or (None, None)
    return Bar(label, result.value, low, high, f"{result.n:,} images")


def title(metric: str) -> str:
    """What people call a metric."""
    return TITLES.get(metric, metric.replace("_", " ").replace("top1", "top-1").replace("knn", "kNN"))


def _protocol(document: ResultsDocument) -> str:
    protocol, model = document.protocol, document.model
    parts = [f"Bars are 95 % bootstrap intervals. Protocol {protocol['name']} {str(protocol['fingerprint'])[:19]}"]
    parts += [f"answered by {model.classifier}"] if model.classifier else []
    parts += [f"a seeded subset of at most {protocol['limit']} images a set"] if protocol.get("limit") else []
    parts += ["a stratified tenth of the images"] if protocol.get("preview") else []
    return ", ".join(parts) + "."


def _figures(results: Sequence[Result]) -> Markup:
    """Sets down, metrics across: values in percent with their intervals (NLL and Brier as they are)."""
    metrics = list(dict.fromkeys(result.metric for result in results))
    found = {(r.dataset, r.split, r.metric): r for r in results}
    heads = [Column("set"), *(Column(_head(metric), True) for metric in metrics), Column("images", True)]
    rows: list[list[Cell]] = []
    for (dataset, split), n in {(r.dataset, r.split): r.n for r in results}.items():
        cells = [found.get((dataset, split, metric)) for metric in metrics]
        rows.append([unbroken(f"{dataset} {split}"), *(None if cell is None else _shown(cell) for cell in cells), n])
    return table(heads, rows)


def _percent(result: Result) -> str:
    value, _, interval = format_value(result).partition(" ")
    return f"{value} % {interval}".rstrip()


def _head(metric: str) -> str:
    return title(metric) + ("" if metric in PLAIN else ", %")


def _shown(result: Result) -> Shown:
    return Shown(result.value, format_value(result))


# ------------------------------------------------------------------------------------------------------- corruptions


def corruptions(records: Records) -> Markup:
    """Per sweep: the errors by corruption, worst first, by severity, and the worst ones in pictures."""
    parts: list[Markup] = []
    for document, exhibits in zip(records.documents, records.exhibits, strict=True):
        for dataset in [name for of, name in records.sweeps if of is document]:
            shown = next((sweep for sweep in exhibits.sweeps if sweep.dataset == dataset), None) if exhibits else None
            parts += _sweep(document, dataset, shown)
    return section("Corruptions", *(parts or [notice(NOT_MEASURED)]))


def _sweep(document: ResultsDocument, dataset: str, exhibits: SweepExhibits | None) -> Iterable[Markup]:
    found = {(r.split, r.metric): r for r in document.results if r.dataset == dataset}
    means = [r for (split, metric), r in found.items() if metric == "error" and "/" not in split and split != "mean"]
    means.sort(key=lambda result: -result.value)
    whole = found["mean", "error"]
    yield bar_chart(
        f"Top-1 error by corruption on {dataset}, on {_on(document)}: {_percent(whole)}",
        [_bar(result.split, result) for result in means],
        kind="percent",
    )
    yield note("Mean over severities, with 95 % bootstrap intervals; lower is better.")
    yield _severities(found, [result.split for result in means])
    if exhibits is None or not exhibits.corrupted:
        yield note("No pictures of it: the evaluation left no exhibits. The same command, given again, writes them.")
        return
    yield from _worst(found, exhibits)


def _severities(found: Found, names: Sequence[str]) -> Markup:
    levels = sorted({split.partition("/")[2] for split, metric in found if metric == "error" and "/" in split})
    heads = [Column("corruption"), *(Column(f"severity {level}, %", True) for level in levels), Column("mean, %", True)]
    rows: list[list[Cell]] = []
    for name in names:
        cells = [found.get((f"{name}/{level}", "error")) for level in levels]
        shown: list[Cell] = [None if r is None else Shown(r.value, f"{100 * r.value:.1f}", r.value) for r in cells]
        rows.append([name, *shown, _shown(found[name, "error"])])
    return table(heads, rows)


def _worst(found: Found, exhibits: SweepExhibits) -> Iterable[Markup]:
    """The pictures as they were, then under the worst corruptions of those that were asked at the highest severity."""
    by_split: dict[str, list[Exhibit]] = {}
    for exhibit in exhibits.corrupted:
        by_split.setdefault(exhibit.split, []).append(exhibit)
    errors = {split: found[split, "error"] for split in by_split if (split, "error") in found}
    worst = sorted(errors, key=lambda split: -errors[split].value)[:WORST]
    yield element("h3", "The worst in pictures")
    right = exhibits.clean and all(exhibit.right for exhibit in exhibits.clean)
    chosen = "Pictures that the model gets right as they are, at even ranks of its confidence" if right else "Pictures"
    yield note(f"{chosen}, at the highest severity: its answer, with the probability it gave.")
    if exhibits.clean:
        yield element("h3", "as they are")
        yield gallery([_answer(exhibit) for exhibit in exhibits.clean], four=True)
    for split in worst:
        yield element("h3", f"{split}: {percent(errors[split].value)} of {errors[split].n:,} wrong")
        yield gallery([_answer(exhibit) for exhibit in by_split[split]], four=True)


def _answer(exhibit: Exhibit) -> Markup:
    style = None if exhibit.right else "wrong"
    mark = "✓" if exhibit.right else "✗"
    said = element("span", f"{mark} {exhibit.given}", class_=style)
    return picture(exhibit, said, Markup(" "), element("span", percent(exhibit.confidence), class_="soft"))


def gallery(pictures: Sequence[Markup], *, four: bool = False) -> Markup:
    """Pictures side by side; ``four`` in a row at any width."""
    return element("div", *pictures, class_="gallery four" if four else "gallery")


def picture(exhibit: Exhibit, *caption: Markup) -> Markup:
    """One picture with a caption; for those who cannot see it, what it shows."""
    shows = f"{exhibit.label}, {exhibit.split}"
    image = element("img", src=f"data:image/webp;base64,{exhibit.picture}", alt=shows, title=exhibit.key)
    return element("figure", image, element("figcaption", *caption))


# ------------------------------------------------------------------------------------------- calibration and mistakes


def calibration(records: Records) -> Markup:
    """A reliability diagram per whole set, with its expected calibration error."""
    charts = []
    for document, exhibits in zip(records.documents, records.exhibits, strict=True):
        found = {(r.dataset, r.split): r for r in document.results if r.metric == "ece"}
        for one in exhibits.sets if exhibits else ():
            ece = found.get((one.dataset, one.split))
            said = "" if ece is None else f", ECE {_percent(ece)}"
            curve = Series("the model", [100 * value for value in one.confidence], one.accuracy)
            diagonal = Series("as sure as right", [0, 100], [0, 1], color="var(--soft)", dashed=True)
            name = f"{one.dataset} {one.split}{said}"
            charts.append(line_chart(name, [curve, diagonal], x_label="confidence in %", kind="percent"))
    if charts:
        text = (
            "How often it is right, by the probability that it gives its answer. Below the dashed line it is too sure."
        )
        return section("Calibration", note(text), cards(*charts))
    if any(result.metric == "ece" for document in records.documents for result in document.results):
        return section(
            "Calibration", notice("The errors of calibration are in the table of figures; no diagram was kept.")
        )
    return section("Calibration", notice(NOT_MEASURED))


def mistakes(records: Records) -> Markup:
    """The most confident wrong answers of each set, with the true and the given label."""
    parts: list[Markup] = []
    for exhibits in records.exhibits:
        for one in exhibits.sets if exhibits else ():
            if one.mistakes:
                parts.append(element("h3", f"{one.dataset} {one.split}: {one.wrong:,} of {one.n:,} wrong"))
                parts.append(gallery([_mistake(exhibit) for exhibit in one.mistakes], four=True))
    if not parts:
        said = (
            "None was wrong."
            if records.exhibits and all(e and e.sets for e in records.exhibits)
            else "No pictures of mistakes were kept."
        )
        return section("Confident mistakes", notice(said))
    text = "Of each set the wrong answers that it was surest of, at most one for each true class."
    return section("Confident mistakes", note(text), *parts)


def _mistake(exhibit: Exhibit) -> Markup:
    true = element("div", element("span", "is ", class_="soft"), exhibit.label)
    said = element("div", element("span", "said ", class_="soft"), element("span", exhibit.given, class_="wrong"))
    return picture(exhibit, true, said, element("div", percent(exhibit.confidence), class_="soft"))


# -------------------------------------------------------------------------------------------------------------- drift


def drift(records: Records) -> Markup:
    """What `evaluate.compare --same` found, engine by engine."""
    if records.drift is None:
        return section("Drift between engines", notice(NOT_MEASURED))
    heads = [Column("engine"), Column("set"), Column("reference, %", True), Column("engine's, %", True)]
    heads += [Column("points", True), Column("95 % paired interval", True), Column("changed", True), Column("of", True)]
    rows = [row for engine in records.drift.engines for row in _shifts(engine)]
    return section(
        "Drift between engines",
        note(f"The reference is {records.drift.reference.get('backend')}; points are the engine's error minus its."),
        *(
            notice(engine.verdict, bad=not engine.passed, good=engine.passed and engine.decided)
            for engine in records.drift.engines
        ),
        table(heads, rows),
    )


def _shifts(engine: EngineDrift) -> Iterable[list[Cell]]:
    """Means of whole sweeps, and the whole sets that belong to none."""
    swept = {mean.dataset for mean in engine.means}
    sets = [cell for cell in engine.cells if cell.dataset not in swept and "/" not in cell.split]
    for shift in [*(mean for mean in engine.means if mean.split == "mean"), *sets]:
        low, high = (100 * end for end in shift.ci95)
        yield [
            unbroken(engine.engine),
            unbroken(f"{shift.dataset} {shift.split}"),
            *(Shown(value, f"{100 * value:.2f}") for value in (shift.reference, shift.other)),
            Shown(shift.difference, f"{100 * shift.difference:+.2f}"),
            Shown(shift.ci95[0], f"[{low:+.2f}, {high:+.2f}]"),
            shift.changed,
            shift.n,
        ]
