"""The verdict of a passport: what was checked and what was not, each with what is known of it.

    checks = checks_of(records)
    claim, scope, good = verdict_of(records, checks)

A check fails only by a bound that was set before the measurement (hashes, parity, drift). Accuracy and calibration have
no such bound here: they are measured or not, and whether they are good enough is for the reader to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from digpt.lineage import MOST_PARENTS
from digpt.results import Result
from digpt.results_table import format_value
from export.facts import UNKNOWN_LICENSE
from export.passport_records import EngineDrift, Records

State = Literal["passed", "failed", "measured", "recorded", "missing"]
WORDS: dict[State, str] = {
    "passed": "passed",
    "failed": "failed",
    "measured": "measured",
    "recorded": "recorded",
    "missing": "not measured",
}
RECORD = ("command", "data", "seed", "commit")  # what it takes to make a model again


def counted(n: int, word: str) -> str:
    """``1 set``, ``2,000 sets``."""
    return f"{n:,} {word}{'s' if n != 1 else ''}"


@dataclass(frozen=True)
class Check:
    """One line of the list; ``missing`` overrides the word for what was never measured."""

    name: str
    state: State
    said: str
    missing: str = ""

    @property
    def word(self) -> str:
        return self.missing or WORDS[self.state]


def checks_of(records: Records) -> list[Check]:
    """Every question that a passport asks, in the order of the page."""
    return [
        _files(records),
        _parity(records),
        _accuracy(records),
        _engine(records),
        _corruptions(records),
        _calibration(records),
        _drift(records),
        _abstain(records),
        _lineage(records),
        _licence(records),
    ]


def verdict_of(records: Records, checks: list[Check]) -> tuple[str, list[str], bool | None]:
    """The claim, what stands under it, and whether it is good; None: neither, for something was not measured."""
    failed = [check for check in checks if check.state == "failed"]
    missing = [check.name for check in checks if check.state == "missing"]
    sets = list(dict.fromkeys(result.dataset for document in records.documents for result in document.results))
    scope = (
        f"The figures are of {', '.join(sets)}. Whether they are good enough is yours to decide; how it fares on other "
        "images, this page does not know."
        if sets
        else "No figure of its answers was given, so this page does not know how good they are."
    )
    lacking = f"Not measured or not recorded: {', '.join(missing)}." if missing else ""
    if failed:
        claim, good = f"Not as it is: {len(failed)} of {len(checks)} checks failed", False
    elif missing:
        claim, good = f"Incomplete: {len(missing)} of {len(checks)} questions are open, nothing failed", None
    else:
        claim, good = f"All {len(checks)} questions are answered, and nothing failed", True
    return claim, [*(f"{check.name}: {check.said}" for check in failed), *([lacking] * bool(lacking)), scope], good


def _files(records: Records) -> Check:
    facts = records.facts
    if not facts.manifest:
        return Check("Files", "passed", "The checkpoint was read whole, and its checksums fit.")
    return Check(
        "Files", "passed", f"{counted(len(facts.files), 'file')} of the manifest, each with the sha256 of its export."
    )


def _parity(records: Records) -> Check:
    name = "Same answers as torch"
    if not records.facts.manifest:
        return Check(name, "recorded", "A checkpoint runs on torch itself, which engines are compared with.")
    engines, refused = records.facts.engines or {}, records.facts.manifest.get("refused") or {}
    compared = {backend: engine.get("parity") or {} for backend, engine in engines.items()}
    if not compared or not all(compared.values()):
        return Check(name, "missing", "No engine was compared with torch float32; python -m export does.")
    off = [backend for backend, parity in compared.items() if not parity.get("passed")]
    images = min(int(parity.get("images") or 0) for parity in compared.values())
    said = (
        f"{', '.join(off or compared)}: {'out of' if off else 'within'} the bounds of the precision, {images} images."
    )
    if refused:
        said += f" Refused at export, and not in here: {', '.join(refused)}."
    return Check(name, "failed" if off else "passed", said)


def _accuracy(records: Records) -> Check:
    found = [result for document in records.documents for result in records.whole_sets(document)]
    if not found:
        command = f"python -m evaluate.{records.facts.evaluation} {records.facts.shown} --output DIR"
        return Check("Accuracy", "missing", f"No results were given; {command} measures it.")
    sets = {(result.dataset, result.split): result.n for result in found}
    said = f"{counted(len(sets), 'set')}, {sum(sets.values()):,} images"
    if any(document.protocol.get("limit") or document.protocol.get("preview") for document in records.documents):
        said += ", a seeded subset of what there is"
    return Check("Accuracy", "measured", f"{said}.")


def _engine(records: Records) -> Check:
    name, own = "On the engine that runs", records.backend
    measured = list(dict.fromkeys(document.model.backend for document in records.documents))
    builds = {records.build(own, d.model.engine) for d in records.documents if d.model.backend == own}
    if "this" in builds:
        others = [engine for engine in measured if engine != own]
        said = f"Figures are of {own}, which runs when no other is asked for"
        return Check(name, "measured", said + (f", and of {', '.join(others)}." if others else "."))
    if builds:
        return _not_this_build(name, f"The figures of {own}", "unknown" in builds)
    if not measured:
        return Check(name, "missing", f"{own} runs when no other is asked for; nothing of it was measured.")
    return Check(
        name, "missing", f"The figures are of {', '.join(measured)}, but {own} runs unless another is asked for."
    )


def _not_this_build(name: str, what: str, unknown: bool) -> Check:
    if unknown:
        said = f"{what} do not say which build of the engine answered, as evaluations did before they recorded it."
        return Check(name, "missing", f"{said} Evaluate again.", "not recorded")
    said = f"{what} were measured on another build of the engine than the one that runs. Evaluate again."
    return Check(name, "missing", said, "another build")


def _corruptions(records: Records) -> Check:
    means = [
        (name, result) for document, name in records.sweeps for result in document.results if _is_mean(result, name)
    ]
    if not means:
        return Check("Corruptions", "missing", "No sweep of corruptions was given; evaluate.robustness makes one.")
    said = "; ".join(f"{name}: mean error {_text(result)}, {result.n:,} answers" for name, result in means)
    return Check("Corruptions", "measured", f"{said}.")


def _is_mean(result: Result, dataset: str) -> bool:
    return (result.dataset, result.split, result.metric) == (dataset, "mean", "error")


def _text(result: Result) -> str:
    value, _, interval = format_value(result).partition(" ")
    return f"{value} %" + (f" {interval}" if interval else "")


def _calibration(records: Records) -> Check:
    values = [100 * result.value for result in _plain(records) if result.metric == "ece"]
    if not values:
        return Check("Calibration", "missing", "No expected calibration error was given.")
    span = f"{min(values):.1f} %" if len(values) == 1 else f"{min(values):.1f} to {max(values):.1f} %"
    return Check("Calibration", "measured", f"Expected calibration error {span} by set.")


def _plain(records: Records) -> Iterator[Result]:
    """Figures of whole sets without corruption."""
    for document in records.documents:
        sweeps = {name for of, name in records.sweeps if of is document}
        for result in document.results:
            if result.dataset not in sweeps and "/" not in result.split:
                yield result


def _drift(records: Records) -> Check:
    name, own, drift = "Drift between engines", records.backend, records.drift
    if drift is None or not drift.engines:
        return Check(name, "missing", "Not given; evaluate.compare --same compares engines answer by answer.")
    builds = {engine.backend: records.build(engine.backend, engine.build) for engine in drift.engines}
    reference = str(drift.reference.get("backend"))
    builds.setdefault(reference, records.build(reference, drift.reference.get("engine")))
    engines = [engine for engine in drift.engines if builds[engine.backend] != "other"]
    if builds.get(own) == "other" or not engines:
        return _not_this_build(name, "The answers compared", False)
    check = _drifted(records, reference, engines)
    if check.state == "passed" and builds[own] == "unknown":
        return _not_this_build(name, "The answers compared", True)
    return check


def _drifted(records: Records, reference: str, engines: list[EngineDrift]) -> Check:
    name, own = "Drift between engines", records.backend
    drifted = [engine.backend for engine in engines if not engine.passed]
    steady = [engine.backend for engine in engines if engine.passed and engine.decided]
    unclear = [engine.backend for engine in engines if engine.passed and not engine.decided]
    asked = {reference, *drifted, *steady, *unclear}
    told = [f"{', '.join(drifted)} drifted from {reference}"] * bool(drifted)
    if steady:
        whence = "" if drifted else f" drift from {reference}"
        told.append(f"{', '.join(steady)} did not{whence}, as far as these answers show")
    if unclear:
        told.append(f"{', '.join(unclear)}: too few images to tell")
    left = [engine for engine in records.facts.engines or {} if engine not in asked]
    said = "; ".join(told) + "." + (f" Not compared: {', '.join(left)}." if left else "")
    if own in drifted or (drifted and own == reference):
        others = [engine for engine in steady if engine != own]
        advice = f" {own} is what runs unless another is asked for, such as {others[0]}." if others else ""
        return Check(name, "failed", said + advice)
    if own in unclear or (own == reference and not steady):
        return Check(name, "missing", said, "too few images")
    return Check(name, "missing" if own not in asked else "passed", said)


def _abstain(records: Records) -> Check:
    rule, name = records.facts.manifest.get("abstain"), "None of these"
    if not isinstance(rule, dict) or not rule.get("labels"):
        return Check(name, "missing", "No threshold: it answers with a label even where none fits.")
    labels = rule["labels"]
    said = f"A threshold for {labels[0]:,} to {labels[-1]:,} labels, from half of {rule.get('images', 0):,} images of "
    return Check(name, "measured", f"{said}{rule.get('of', 'unknown origin')}; its errors on the other half are below.")


def _lineage(records: Records) -> Check:
    record = records.facts.provenance
    lacking = [key for key in RECORD if record.get(key) is None]
    if lacking:
        return Check("Lineage", "missing", f"Not recorded: {', '.join(lacking)}.", "not recorded")
    commits = list(_commits(record, [MOST_PARENTS]))
    said = f"Command, data, seed and commit are recorded, and a chain of {counted(len(commits), 'model')}."
    if changed := sum(commit.endswith("+") for commit in commits):
        said += f" Of {counted(changed, 'model')} in it the code had changes that its commit does not hold."
    return Check("Lineage", "recorded", said)


def _commits(record: Mapping[str, Any], budget: list[int]) -> Iterator[str]:
    """The commit of a model and of all that it was made with; ``budget`` ends circles."""
    budget[0] -= 1
    yield str(record.get("commit") or "")
    parents = record.get("parents")
    for parent in parents if isinstance(parents, list) else []:
        if isinstance(parent, dict) and budget[0] > 0:
            yield from _commits(parent, budget)


def _licence(records: Records) -> Check:
    if records.license == UNKNOWN_LICENSE:
        return Check("Licence", "missing", "Not stated; --license states it.", "not stated")
    return Check("Licence", "recorded", f"Of the weights: {records.license}.")
