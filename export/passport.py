"""The passport of a model: one self-contained HTML page that says what is known before it is shipped, and what is not.

    page = passport(read_records(facts_of("runs/onnx"), [Path("runs/robustness")], None, "apache-2.0"))

The verdict stands on top and claims no more than what was checked. The same records give the same bytes, for it
holds no time. ``docs/passport.md`` explains how to read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from digpt.charts import element, percent
from digpt.errors import ConfigError
from digpt.lineage import text_of, tree
from digpt.passport import FINGERPRINT_META, MOST_BYTES
from digpt.preprocess import Preprocess
from digpt.report import (
    Cell,
    Column,
    Shown,
    Tile,
    columns,
    document,
    header,
    notice,
    section,
    table,
    tiles,
    unbroken,
    verdict,
)
from digpt.results_table import format_value
from export.facts import Facts, licence_text, limits_of
from export.passport_checks import Check, checks_of, counted, verdict_of
from export.passport_figures import accuracy, calibration, corruptions, drift, mistakes, note, title
from export.passport_records import Records

MOST_SETTINGS = 200  # of a training configuration


def passport(records: Records) -> str:
    """The whole page.

    Raises:
        ConfigError: more pictures and figures than a page should have.
    """
    facts = records.facts
    checks = checks_of(records)
    claim, lines, good = verdict_of(records, checks)
    name = f"{facts.name}: may it be shipped?"
    page = document(
        name,
        header(name, eyebrow="model passport", lines=[_what(facts), element("code", facts.fingerprint)]),
        verdict(claim, *lines, good=good),
        tiles(_headline(records)),
        section("What was checked", _check_table(checks)),
        accuracy(records),
        corruptions(records),
        calibration(records),
        mistakes(records),
        _engines(facts),
        drift(records),
        _abstain(facts),
        _limits(records),
        _lineage(facts),
        section("Preprocessing", *_preprocessing(facts)),
        _contents(facts),
        section("Licence", element("p", licence_text(records.license))),
        section("About this page", note(_about(records))),
        meta={FINGERPRINT_META: facts.fingerprint},
    )
    size = len(page.encode("utf-8", errors="replace"))
    if size > MOST_BYTES:
        raise ConfigError(
            f"The page would have {size / 1e6:.1f} MB of {MOST_BYTES / 1e6:g} at most: give fewer --results."
        )
    return page


def _what(facts: Facts) -> str:
    skills = {"linear": "a classifier", "upernet": "a segmenter", "": "an encoder"}
    kind = "an image-text model" if facts.has_text and facts.head is None else skills[facts.head or ""]
    labels = f" of {len(facts.labels):,} labels" if facts.labels else ""
    source = Path(facts.source).name if Path(facts.source).is_absolute() else facts.source  # readers are elsewhere
    return f"{kind.capitalize()}{labels}" + (f", made from {source}" if source else "")


def _headline(records: Records) -> list[Tile]:
    """A few figures that the sections below have in full."""
    entries = []
    for document_ in records.documents:
        for result in records.whole_sets(document_)[:4]:
            interval = format_value(result).partition(" ")[2]
            about = f"{title(result.metric)} {interval}".rstrip()
            entries.append(Tile(f"{result.dataset} {result.split}", percent(result.value), about))
    for document_, name in records.sweeps:
        mean = next(r for r in document_.results if (r.dataset, r.split, r.metric) == (name, "mean", "error"))
        about = f"mean error {format_value(mean).partition(' ')[2]}".rstrip()
        entries.append(Tile("Under corruption", percent(mean.value), about))
    timings = ((records.facts.engines or {}).get(records.backend) or {}).get("timings") or {}
    if timings.get("batch_1_ms"):
        entries.append(Tile("One image", f"{timings['batch_1_ms']:.1f} ms", f"{records.backend}, where exported"))
    entries.append(
        Tile("Files", f"{sum(records.facts.files.values()) / 1e6:.1f} MB", counted(len(records.facts.files), "file"))
    )
    return entries


def _check_table(checks: Sequence[Check]) -> Markup:
    rows: list[list[Cell]] = [
        [check.name, element("span", check.word, class_=f"state {check.state}"), check.said] for check in checks
    ]
    return table([Column("question"), Column("answer"), Column("what is known")], rows)


def _engines(facts: Facts) -> Markup:
    """Parity with torch float32 and times, as measured at export; refused engines with the reason."""
    if not facts.engines:
        return section(
            "Engines", notice("Not measured: a checkpoint runs on torch; python -m export compares engines.")
        )
    heads = [Column("engine"), Column("precision"), Column("lowest cosine", True), Column("same top-1", True)]
    heads += [Column("images", True), Column("ms, batch of 1", True), Column("ms, batch of 16", True), Column("on")]
    names = list(facts.engines)
    own = [names.index(str(facts.manifest["backend"]))] if facts.manifest.get("backend") in names else []
    refused = facts.manifest.get("refused") or {}
    return section(
        "Engines",
        note("Compared with torch float32 on real images at export, and timed there. Marked: what runs by default."),
        table(heads, [_engine(name, engine) for name, engine in facts.engines.items()], marked=own),
        *(notice(f"Refused at export: {name}. {_faults(entry)}") for name, entry in refused.items()),
    )


def _engine(name: str, engine: Mapping[str, Any]) -> list[Cell]:
    parity, timings = engine.get("parity") or {}, engine.get("timings") or {}
    cosine, agreement = parity.get("cosine_min"), parity.get("agreement")
    return [
        unbroken(name),
        str(engine.get("precision", "")),
        None if cosine is None else Shown(cosine, f"1 - {1 - cosine:.1e}"),
        None if agreement is None else Shown(agreement, f"{agreement:.2%}"),
        parity.get("images"),
        *(_milliseconds(timings.get(key)) for key in ("batch_1_ms", "batch_16_ms")),
        ", ".join(map(str, engine.get("providers") or ())),
    ]


def _milliseconds(value: float | None) -> Cell:
    return None if value is None else Shown(value, f"{value:.1f}")


def _faults(entry: Mapping[str, Any]) -> str:
    faults = (entry.get("parity") or {}).get("faults") or []
    return " ".join(map(str, faults)) or "It did not match torch float32."


def _abstain(facts: Facts) -> Markup:
    """The threshold of "none of these" by number of labels, with both errors as measured."""
    rule = facts.manifest.get("abstain") or {}
    if not rule.get("labels"):
        return section("None of these", notice("Not calibrated: it answers with a label even where none fits."))
    errors = {error["labels"]: error for error in rule.get("errors") or []}
    unseen = {int(labels): rate for labels, rate in (rule.get("unseen_false_accept") or {}).items()}
    heads = [Column("labels", True), Column("none below cosine", True), Column("wrongly none", True)]
    heads += [Column("wrongly a label", True), Column("wrongly a label, unseen concepts", True)]
    rows: list[list[Cell]] = []
    for labels, cosine in zip(rule["labels"], rule["cosine"], strict=True):
        known = errors.get(labels) or {}
        rates = (known.get("false_reject"), known.get("false_accept"), unseen.get(labels))
        rows.append([labels, cosine, *(None if rate is None else Shown(rate, percent(rate)) for rate in rates)])
    said = f"{rule.get('rule', '')}; {rule.get('images', 0):,} images of {rule.get('of', 'unknown origin')}."
    return section("None of these", note(said[:1].upper() + said[1:]), table(heads, rows))


def _limits(records: Records) -> Markup:
    open_questions = [f"{check.name}: {check.said}" for check in checks_of(records) if check.state == "missing"]
    lines = [*limits_of(records.facts, records.documents), *open_questions]
    return section("Limits", element("ul", *(element("li", line) for line in lines)))


def _lineage(facts: Facts) -> Markup:
    """The model and those it was made with; then data, seed, commit, settings and versions of the last step."""
    record = facts.provenance
    if not record:
        return section("Lineage", notice("Not recorded."))
    top = {**record, "role": facts.name, "fingerprint": facts.fingerprint}
    shown: list[list[Cell]] = []
    for key in ("recipe", "data", "seed", "commit", "processes", "versions", "notes"):
        value = record.get(key)
        entries = {f"{key} {k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        shown += [[name, text_of(entry)] for name, entry in entries.items() if entry is not None]
    config = record.get("config")
    settings: list[list[Cell]] = (
        [[str(key), text_of(value)] for key, value in list(config.items())[:MOST_SETTINGS]]
        if isinstance(config, dict)
        else []
    )
    details = element("details", element("summary", "settings of the last step"), table(_PAIR, settings))
    return section(
        "Lineage", tree(top), table([Column("record"), Column("value")], shown), details if settings else None
    )


_PAIR = (Column("setting"), Column("value"))


def _preprocessing(facts: Facts) -> list[Markup]:
    how = Preprocess.from_dict(facts.preprocess)
    rows: list[list[Cell]] = [[key, text_of(value)] for key, value in asdict(how).items()]
    said = f"uint8 RGB of {how.size} x {how.size} pixels; mean and standard deviation are applied inside the model."
    return [note(said), table(_PAIR, rows)]


def _contents(facts: Facts) -> Markup:
    hashes = facts.manifest.get("files") or {}
    heads = [Column("file"), Column("MB", True), *([Column("sha256")] if hashes else [])]
    files: list[list[Cell]] = [
        [name, Shown(size, f"{size / 1e6:.1f}"), *([element("code", hashes[name]["sha256"][:16])] if hashes else [])]
        for name, size in facts.files.items()
    ]
    found = {**(facts.manifest.get("versions") or {})}
    for engine in (facts.engines or {}).values():
        found |= engine.get("versions") or {}
    versions: list[list[Cell]] = [[str(name), str(version)] for name, version in found.items()]
    shown = columns(table(heads, files), table([Column("exported with"), Column("version")], versions))
    return section("Files and versions", shown)


def _about(records: Records) -> str:
    given = ["--results ..."] * bool(records.documents) + ["--drift ..."] * bool(records.drift)
    licence = [f"--license {records.license}"] if records.license else []
    command = " ".join(["python -m export.card", records.facts.shown, *given, *licence, "--html passport.html"])
    return f"Written by {command}, from records alone: the same records give the same page. It asks no network."
