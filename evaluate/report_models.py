"""Results documents brought together: one entry per model, and only answers to the same questions.

    models = gather(read_all([Path("runs/imagenet"), Path("runs/robustness")]))

Documents of one model are merged; two documents stand in one table only where the data sets that both report were
asked alike, by their protocols.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from digpt.errors import ConfigError
from digpt.files import canonical_json
from digpt.results import ModelRef, Result, ResultsDocument, read_results
from evaluate.store import differences

Row = tuple[str, str, str]  # dataset, split, metric
_SAME = 1e-6  # a fraction moves by more than this when one answer of a million images changes


@dataclass(frozen=True)
class Source:
    """A document and where it was read."""

    path: Path
    document: ResultsDocument


@dataclass(frozen=True)
class Model:
    """One model's rows for one kind of protocol (``imagenet``, ``emoji``).

    ``notes`` say how its answers differ from what the heading of a table promises: a subset of the images, or with
    mixed protocols what differs.
    """

    label: str
    ref: ModelRef
    protocol: str
    results: Mapping[Row, Result]
    notes: tuple[str, ...] = ()

    @property
    def zero_shot(self) -> bool:
        return self.ref.classifier == "zero-shot"


@dataclass
class _Group:
    """Documents of one model while they are collected."""

    sources: list[Source] = field(default_factory=list)
    rows: dict[Row, tuple[Result, Path]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def ref(self) -> ModelRef:
        """The model, as a document that classified has it."""
        refs = [source.document.model for source in self.sources]
        return next((ref for ref in refs if ref.classifier is not None), refs[0])


def read_all(paths: Sequence[Path]) -> list[Source]:
    """Read each document; errors are those of `digpt.results.read_results`."""
    return [Source(path, read_results(path)) for path in paths]


def gather(sources: Sequence[Source], *, allow_mixed: bool = False) -> list[Model]:
    """Merge the documents of each model, in the order given.

    Documents belong to one model when weights, preprocessing, backend, precision, prompts and classifier agree.

    Raises:
        ConfigError: two documents asked different questions of one data set (with ``allow_mixed`` noted instead), or
            documents of one model give different values for one row.
    """
    groups: list[_Group] = []
    for position, source in enumerate(sources):
        found = _first_difference(source, sources[:position])
        if found and not allow_mixed:
            raise ConfigError(
                f"{source.path} and {found[0].path} were asked different questions, so their numbers cannot stand in "
                f"one table: {found[1]}. Evaluate both alike, or print them with marks by --allow-mixed."
            )
        group = _group_of(source, groups)
        if found:
            group.notes.append(f"Asked differently than {found[0].document.model.name}: {found[1]}")
        _merge(source, group)
    refs = [group.ref for group in groups]
    protocols = [group.sources[0].document.protocol["name"] for group in groups]
    return [
        Model(label, ref, protocol, {row: r for row, (r, _) in group.rows.items()}, tuple(dict.fromkeys(group.notes)))
        for label, ref, protocol, group in zip(_labels(refs, protocols), refs, protocols, groups, strict=True)
    ]


def protocol_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """Where two protocols ask different questions of a data set that both report, as ``SET: what, here against there``.

    Data sets that only one reports make no difference, nor do the parts of the protocol about them.
    """
    first, second = _sets(one), _sets(other)
    if first is None or second is None:  # from before protocols had a line per set
        shared = [str(one["name"])] if one["name"] == other["name"] else []
    else:
        shared = [name for name in first if name in second]
        for name in shared:
            for line in differences(first[name], second[name]):
                yield f"{name}: {line}"
    if not shared:
        return
    for key in dict.fromkeys([*one, *other]):
        if key in ("sets", "fingerprint"):
            continue
        mine, others = one.get(key), other.get(key)
        if isinstance(mine, dict) or isinstance(others, dict):  # a block about something only one may have asked
            if mine is None or others is None:
                continue
            mine, others = _comparable(key, mine, others)
        where = _about(key, mine, shared)
        for line in differences(mine, others, key):
            yield f"{where}: {line}"


def _sets(protocol: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the protocol says of each set; None where it has no such lines."""
    lines = protocol.get("sets")
    if not isinstance(lines, list):
        return None
    return {f"{line['dataset']}/{line['split']}": line for line in lines}


def _comparable(key: str, mine: Any, others: Any) -> tuple[Any, Any]:
    """Both blocks without what merely lists the sets that were asked."""
    if key != "classification" or not isinstance(mine, dict) or not isinstance(others, dict):
        return mine, others
    blocks = []
    for block, counterpart in ((mine, others), (others, mine)):
        kept = {name: value for name, value in block.items() if name != "splits"}
        restricted, known = block.get("restricted"), counterpart.get("restricted")
        if isinstance(restricted, dict) and isinstance(known, dict):
            kept["restricted"] = {name: count for name, count in restricted.items() if name in known}
        blocks.append(kept)
    return blocks[0], blocks[1]


def _about(key: str, block: Any, shared: Sequence[str]) -> str:
    """The set that a difference is about."""
    if key == "corruptions" and isinstance(block, dict) and isinstance(block.get("of"), str):
        return f"{block['of'].partition('/')[0]}-c-on-the-fly"
    return shared[0]


def _first_difference(source: Source, earlier: Sequence[Source]) -> tuple[Source, str] | None:
    for other in earlier:
        line = next(protocol_differences(source.document.protocol, other.document.protocol), None)
        if line is not None:
            return other, line
    return None


def _group_of(source: Source, groups: list[_Group]) -> _Group:
    """The group of the document's model whose questions are the same, or a new one at the end."""
    document = source.document
    for group in groups:
        first = group.ref
        if (
            group.sources[0].document.protocol["name"] == document.protocol["name"]
            and _answers(first) == _answers(document.model)
            and (None in (first.classifier, document.model.classifier) or _classes(first) == _classes(document.model))
            and not any(_differ(document, other.document) for other in group.sources)
        ):
            return group
    groups.append(_Group())
    return groups[-1]


def _merge(source: Source, group: _Group) -> None:
    group.notes += [*_subset(source.document.protocol), *_views(source.document.protocol)]
    for result in source.document.results:
        row = (result.dataset, result.split, result.metric)
        known = group.rows.setdefault(row, (result, source.path))
        if known[0].n != result.n or not math.isclose(known[0].value, result.value, rel_tol=_SAME, abs_tol=_SAME):
            raise ConfigError(
                f"{known[1]} and {source.path} give different values of {' / '.join(row)} for the same model "
                f"({known[0].value:.6g} and {result.value:.6g}): one of them is out of date; evaluate it again."
            )
    group.sources.append(source)


def _differ(one: ResultsDocument, other: ResultsDocument) -> bool:
    return next(protocol_differences(one.protocol, other.protocol), None) is not None


def _answers(ref: ModelRef) -> bytes:
    """What makes a model's embeddings what they are."""
    return canonical_json([ref.fingerprint, ref.backend, ref.precision, ref.preprocess])


def _classes(ref: ModelRef) -> bytes:
    """What turns them into classes; nothing where only neighbours were asked."""
    return canonical_json([ref.classifier, list(ref.templates)])


def _subset(protocol: Mapping[str, Any]) -> list[str]:
    if protocol.get("limit"):
        return [f"A seeded subset of at most {protocol['limit']:,} images per split"]
    if protocol.get("preview"):
        return [f"A stratified preview: {protocol['preview']:.0%} of the images"]
    return []


def _views(protocol: Mapping[str, Any]) -> list[str]:
    """What raises mIoU beyond the usual single view of an image."""
    asked = protocol.get("segmentation", {})
    several = [f"{len(asked['ratios'])} scales"] if len(asked.get("ratios", ())) > 1 else []
    mirrored = ["mirror images"] if asked.get("flip") else []
    return [f"mIoU with probabilities averaged over {' and '.join(several + mirrored)}"] if several or mirrored else []


def _labels(refs: Sequence[ModelRef], protocols: Sequence[str]) -> list[str]:
    """Names, with as much added as tells models of one name apart: runtime, classifier, fingerprint, preparation."""
    labels = [ref.name or ref.spec for ref in refs]
    additions = (
        [f"{ref.backend} {ref.precision}" for ref in refs],
        [ref.classifier or "no classifier" for ref in refs],
        [ref.fingerprint.removeprefix("sha256:")[:8] for ref in refs],
        [", ".join(f"{key} {value}" for key, value in _unlike(ref, refs)) for ref in refs],
    )
    for addition in additions:
        meant: dict[tuple[str, str], set[str]] = {}
        for name, more in zip(zip(labels, protocols, strict=True), addition, strict=True):
            meant.setdefault(name, set()).add(more)
        labels = [
            f"{label} ({more})" if len(meant[label, protocol]) > 1 else label
            for label, protocol, more in zip(labels, protocols, addition, strict=True)
        ]
    return labels


def _unlike(ref: ModelRef, refs: Sequence[ModelRef]) -> list[tuple[str, Any]]:
    """The preprocessing and the prompts of a model that was evaluated in several ways, as far as these differ."""
    ways = [_way(other) for other in refs if other.fingerprint == ref.fingerprint]
    return [(key, value) for key, value in _way(ref).items() if any(way.get(key) != value for way in ways)]


def _way(ref: ModelRef) -> dict[str, Any]:
    several = f" and {len(ref.templates) - 1} more" if len(ref.templates) > 1 else ""
    return {**ref.preprocess, "templates": f"{ref.templates[0]!r}{several}" if ref.templates else "none"}
