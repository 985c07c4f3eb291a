"""Write a model card in Hugging Face's format, or a passport, from what a model and its results record.

    python -m export.card runs/pretrain/ckpt.pt --license apache-2.0
    python -m export.card runs/onnx --results runs/robustness --output runs/onnx/README.md
    python -m export.card runs/onnx --results runs/robustness --drift runs/drift --html passport.html

The card: YAML front matter (library, licence, tags, metrics), then lineage, preprocessing, engines, figures and limits
as text. The passport: one HTML page that says what is known before a model is shipped. No figure is typed by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from digpt.artifact import atomic_write
from digpt.cli import Command
from digpt.errors import ConfigError, DataError
from digpt.manifest import MANIFEST_NAME
from digpt.passport import PASSPORT_NAME
from digpt.preprocess import Preprocess
from digpt.results import ResultsDocument, read_results
from digpt.results_table import PLAIN, TITLES, format_value, swept
from export.facts import UNKNOWN_LICENSE, Facts, facts_of, licence_text, limits_of
from export.passport import passport
from export.passport_records import read_records

COMMAND = Command("export.card", __doc__)


@dataclass(frozen=True)
class CardOptions:
    """Write a model card from what an artifact directory or checkpoint, and its results, record."""

    spec: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ARTIFACT_OR_CKPT")]
    """An artifact directory that python -m export wrote, or a ckpt.pt."""
    results: tuple[Path, ...] = ()
    """Files results.json (or their directories) of evaluations of this model."""
    license: str = UNKNOWN_LICENSE
    """The weights' licence as the hub names it, such as apache-2.0."""
    output: Path | None = None
    """File to write the card to, usually README.md in the directory to be pushed (default: standard output)."""
    html: Path | None = None
    """File to write the passport to, an HTML page, instead of a card on standard output; of an artifact directory also
    as passport.html in there, where a server finds it."""
    drift: Path | None = None
    """For the passport: what evaluate.compare --same was given as --output."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace files that are there."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the files that were written, or the card's text, as JSON on standard output, and nothing else there."""


@dataclass(frozen=True)
class Texts:
    """What only a person can write, as Markdown; the defaults say no more than the records do."""

    introduction: str = ""
    figures: str = ""
    notes: str = ""
    limits: str = ""
    licence: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the card, the passport or both; return the exit code: 0, or 2 after one line about what went wrong."""
    return COMMAND.run(CardOptions, argv, _card)


def _card(options: CardOptions) -> int:
    pages = written(options)
    text = "" if pages else card_of(options)
    for path, content in pages.items():
        try:
            atomic_write(path, content.encode("utf-8", errors="replace"))
        except OSError as error:
            raise ConfigError(f"{error.filename} cannot be written: {error.strerror}.") from error
        print(f"wrote {path}", file=sys.stderr)
    if options.json:
        print(json.dumps({"written": [str(path) for path in pages], "card": text or None}, ensure_ascii=False))
    else:
        print(text, end="")
    return 0


def written(options: CardOptions) -> dict[Path, str]:
    """The text of every file to write.

    Raises:
        ConfigError: a file is there already, or options that do not fit.
        SpecError, CheckpointError, DataError: no model, damaged files, or results of another model.
    """
    if options.drift is not None and options.html is None:
        raise ConfigError("--drift is for the passport: add --html FILE.")
    pages = [] if options.html is None else [options.html]
    if options.html is not None and (Path(options.spec) / MANIFEST_NAME).is_file():
        pages += [path for path in [Path(options.spec) / PASSPORT_NAME] if path.resolve() != options.html.resolve()]
    for path in [*pages, *([] if options.output is None else [options.output])]:
        if path.exists() and not options.overwrite:
            raise ConfigError(f"{path} exists; add --overwrite to replace it.")
    found = {} if options.output is None else {options.output: card_of(options)}
    if pages:
        records = read_records(facts_of(options.spec), options.results, options.drift, options.license)
        found |= dict.fromkeys(pages, passport(records))
    return found


def card_of(options: CardOptions) -> str:
    """The card that the options ask for. Errors as `written`."""
    documents = [read_results(path) for path in options.results]
    return card(facts_of(options.spec), documents, license=options.license)


def card(facts: Facts, documents: Sequence[ResultsDocument], *, license: str, texts: Texts | None = None) -> str:
    """The whole card as Markdown.

    Raises:
        DataError: results of another model.
    """
    texts = texts or Texts()
    for document in documents:
        if document.model.fingerprint != facts.fingerprint:
            raise DataError(
                f"The results of {document.model.spec} are those of {document.model.fingerprint[:19]}, and "
                f"{facts.spec} is {facts.fingerprint[:19]}: give results of this very model."
            )
    sections = [
        front_matter(facts, documents, license),
        f"# {facts.name}\n\n{texts.introduction.strip() or _introduction(facts)}",
        "\n".join(["## What it is", *_what(facts)]),
        "\n".join(["## Lineage", *_lineage(facts)]),
        "\n".join(["## Preprocessing", *_preprocessing(facts.preprocess)]),
        "\n".join(["## Engines", *engines_table(facts.engines)]) if facts.engines else "",
        "\n".join(["## Figures", *_figures(documents, texts.figures)]),
        texts.notes.strip(),
        texts.limits.strip() or "\n".join(["## Limits", *(f"- {line}" for line in limits_of(facts, documents))]),
        texts.licence.strip() or f"## Licence\n{licence_text(license)}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def front_matter(facts: Facts, documents: Sequence[ResultsDocument], license: str) -> str:
    """The YAML that hubs read: whole sets, and of a sweep of corruptions the mean; the interval stands in the name."""
    from huggingface_hub import EvalResult, ModelCardData

    measured = [
        EvalResult(
            task_type=facts.pipeline,
            dataset_type=result.dataset,
            dataset_name=f"{result.dataset} {result.split}",
            dataset_split=result.split,
            metric_type=result.metric,
            metric_name=_metric_name(document, index),
            metric_value=result.value,
        )
        for document in documents
        for index, result in enumerate(document.results)
        if result.split == "mean" or ("/" not in result.split and result.dataset not in swept(document.results))
    ]
    data = ModelCardData(
        library_name="digpt",
        license=license,
        pipeline_tag=facts.pipeline,
        tags=["digpt", "image-encoder", *sorted(facts.engines or {})],
        model_name=facts.name if measured else None,
        eval_results=measured or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _metric_name(document: ResultsDocument, index: int) -> str:
    result, model = document.results[index], document.model
    value, _, interval = format_value(result).partition(" ")
    unit = "" if result.metric in PLAIN else " %"
    within = f", 95 % interval {interval.strip('[]').replace(',', ' to')}{unit}" if interval else ""
    title = TITLES.get(result.metric, result.metric)
    return f"{title} {value}{unit}{within}, {result.n:,} images, {model.backend} {model.precision}"


def _introduction(facts: Facts) -> str:
    skills = ["an embedding of an image"]
    if facts.has_text:
        skills.append("an embedding of a text in the same space, and so classes by any names")
    if facts.head == "linear":
        skills.append(
            f"one of {len(facts.labels or ()):,} classes" if facts.labels else "the logits of its linear head"
        )
    if facts.head == "upernet":
        skills.append(f"one of {len(facts.labels or ()):,} classes for every pixel")
    command = f"python -m export.card {facts.shown}"
    return f"A vision encoder of digpt. It gives {'; '.join(skills)}.\n\nWritten by `{command}` from recorded figures."


def _what(facts: Facts) -> list[str]:
    shape = f"{facts.shape}; fingerprint" if facts.shape else "Fingerprint"
    lines = [f"{shape} `{facts.fingerprint}`."]
    lines += [
        "",
        "| file | MB |",
        "|---|--:|",
        *(f"| {name} | {size / 1e6:.1f} |" for name, size in facts.files.items()),
    ]
    return [
        *lines,
        "",
        "```sh",
        f"python -m serve --model {facts.shown}",
        f"python -m evaluate.{facts.evaluation} {facts.shown}",
        "```",
    ]


def _lineage(facts: Facts) -> list[str]:
    record = facts.provenance
    lines = chain(facts.name, facts.fingerprint, {"command": facts.source or None, **record})
    split = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in record.get("time_split", {}).items())
    told = [f"The last command's time: {split}."] if split else []
    if versions := record.get("versions"):
        told.append(f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.")
    return [*lines, "", " ".join(told)] if told else lines


def chain(role: str, fingerprint: str, record: Mapping[str, Any], depth: int = 0) -> list[str]:
    """One line per model of the lineage, parents indented below; what was not recorded is left out."""
    told = [f"`{record.get('command') or 'not recorded'}`"]
    if record.get("steps") is not None:
        told.append(f"{record['steps']} steps")
    if record.get("seconds") is not None:
        told.append(f"{record['seconds']:.0f} s")
    figures = ", ".join(f"{name} {value:.1%}" for name, value in record.get("figures", {}).items())
    line = f"{'  ' * depth}- **{role}** `{fingerprint[:19]}`: {', '.join(told)}" + (f" ({figures})" if figures else "")
    lines = [line]
    for parent in record.get("parents", []):
        lines += chain(parent["role"], parent["fingerprint"], parent, depth + 1)
    return lines


def _preprocessing(values: Mapping[str, Any]) -> list[str]:
    how = Preprocess.from_dict(values)
    resize = f"resize `{how.resize}` ({how.interpolation}), crop_pct {how.crop_pct:g}"
    reading = f"alpha `{how.alpha}`, EXIF orientation {'applied' if how.exif else 'ignored'}"
    return [
        f"uint8 RGB of {how.size} x {how.size} pixels: {resize}; {reading}.",
        f"Mean {list(how.mean)} and standard deviation {list(how.std)} are applied inside.",
    ]


def engines_table(engines: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Parity with torch float32 and times of each engine, as they were measured at export."""
    lines = ["Compared with torch float32 on real images when it was exported; times are that machine's.", ""]
    lines += ["| engine | lowest cosine | same top-1 | images | batch of 1, ms | batch of 16, ms | on |"]
    lines.append("|---|--:|--:|--:|--:|--:|---|")
    for name, engine in engines.items():
        parity, timings = engine.get("parity") or {}, engine.get("timings") or {}
        cells = (
            f"{name} {engine.get('precision', '')}",
            _cell(parity.get("cosine_min"), lambda cosine: f"1 - {1 - cosine:.1e}"),
            _cell(parity.get("agreement"), "{:.2%}".format),
            _cell(parity.get("images"), "{:,}".format),
            _cell(timings.get("batch_1_ms"), "{:.1f}".format),
            _cell(timings.get("batch_16_ms"), "{:.1f}".format),
            ", ".join(engine.get("providers", ())),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(value: Any, shown: Any) -> str:
    return "" if value is None else str(shown(value))


def _figures(documents: Sequence[ResultsDocument], introduction: str) -> list[str]:
    lines = [introduction] if introduction else []
    for document in documents:
        model, protocol = document.model, document.protocol
        by = f", by {model.classifier}" if model.classifier else ""
        how = f"Protocol {protocol['name']} `{protocol['fingerprint'][:19]}` on {model.backend} {model.precision}{by}:"
        lines += [*([""] if lines else []), how, "", *figures_table(document)]
    return lines or ["None were given."]


def figures_table(document: ResultsDocument) -> list[str]:
    """All results with their intervals but those of single cells of the sweep, then the sweep by severity."""
    sweeps = swept(document.results)
    lines = ["| set | metric | value | 95 % interval | n |", "|---|---|--:|--:|--:|"]
    for result in document.results:
        if result.dataset not in sweeps:
            value, _, interval = format_value(result).partition(" ")
            unit = "" if result.metric in PLAIN else " %"
            cells = (result.split, result.metric, value + unit, interval.strip("[]").replace(",", " to"))
            lines.append(f"| {' | '.join(cells)} | {result.n:,} |")
    for dataset in sweeps:
        lines += ["", *sweep_table(dataset, document)]
    return lines


def sweep_table(dataset: str, document: ResultsDocument) -> list[str]:
    """Top-1 error in percent: corruptions down, severities across, the mean with its interval."""
    found = {(r.split, r.metric): r for r in document.results if r.dataset == dataset}
    names = [split for split, metric in found if metric == "error" and "/" not in split]
    lines = [f"Top-1 error in %, `{dataset}`, by severity:", "", "| corruption | 1 | 2 | 3 | 4 | 5 | mean |"]
    lines.append("|---|" + "--:|" * 6)
    for name in names:
        cells = [found.get((f"{name}/{severity}", "error")) for severity in range(1, 6)]
        values = ["" if cell is None else f"{100 * cell.value:.1f}" for cell in cells]
        lines.append(f"| {name} | {' | '.join(values)} | {format_value(found[name, 'error'])} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
