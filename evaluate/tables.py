"""The paper's Tables 1, 2 and 4 and the bundled set's, as data: published rows first, one's own below.

    tables = tables_of(gather(read_all([Path("runs/robustness")])))

`evaluate.table_formats` prints them as Markdown or LaTeX, `evaluate.report_page` as HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from digpt.results import Result
from evaluate.paper_rows import BASE, PUBLISHED_2, PUBLISHED_4, TABLE_1, TABLE_2, TABLE_4, Published
from evaluate.report_models import Model, Row

TableId = Literal["1", "2", "4", "emoji"]
Source = Literal["paper", "published", "ours"]
GROUPS: dict[Source, str] = {"paper": "The paper", "published": "Published elsewhere", "ours": "Evaluated here"}

# Where each column's value stands in a results document.
ROWS: dict[str, Row] = {
    "imagenet": ("imagenet", "val", "top1"),
    "imagenet-v2": ("imagenet-v2", "matched-frequency", "top1"),
    "imagenet-real": ("imagenet-real", "val", "top1"),
    "imagenet-a": ("imagenet-a", "test", "top1"),
    "imagenet-r": ("imagenet-r", "test", "top1"),
    "imagenet-sketch": ("imagenet-sketch", "test", "top1"),
    "error": ("imagenet-c", "mean", "error"),
    "mce": ("imagenet-c", "mean", "mce"),
    "relative-mce": ("imagenet-c", "mean", "relative_mce"),
    "on-the-fly": ("imagenet-c-on-the-fly", "mean", "error"),
    "ade20k": ("ade20k", "val", "miou"),
}
PHOTOGRAPHS = ("imagenet", "ade20k")  # protocols whose models stand in the paper's tables
EMOJI_SPLITS = ("seen", "val", "flat", "contrast", "unseen")
SHOWN_AS = "Values in %; rows evaluated here with their 95 % bootstrap interval, published rows as printed"

PAPER_C = (
    "The paper does not say which quantity this is; most likely not mCE, the error relative to AlexNet's: its MAE-B "
    "row says 37.8, while MAE's own repository gives 51.7 mCE. Compare it with none of the columns beside it; lower "
    "is better"
)
ERROR = "Top-1 error on ImageNet-C as it is, mean over 15 corruptions at 5 severities"
MCE = "That error, each corruption relative to AlexNet's; AlexNet has 100"
RELATIVE = "Its rise over the clean error, each corruption relative to AlexNet's rise"
ON_THE_FLY = "Top-1 error under corruptions made in memory: not ImageNet-C's files, and not comparable with them"
PARTIAL = "ImageNet-C was there in part, so that its mean is no row of this column"
UNREADABLE = "an empty cell of a published row is not known here, a dash is the paper's own"
ADE20K = "Tables 1 and 5 of the paper print 53.8 for ViT-B, Tables 6 and 8 print 53.6 beside the same 86.2 top-1"
OPENCLIP = "Agrees with the laion2b_s32b_b82k weights (75.25); laion400m_e32 has 72.77"


@dataclass(frozen=True)
class Value:
    """A number as printed: percent, or points where the column is signed; an interval in the same unit."""

    value: float
    interval: tuple[float, float] | None = None
    digits: int = 1


@dataclass(frozen=True)
class Column:
    """A column of numbers; ``mark`` is its footnote's. ``signed`` numbers are differences."""

    key: str
    title: str
    mark: str = ""
    signed: bool = False


@dataclass(frozen=True)
class Line:
    """A row. ``details`` are its columns of text; a value of None is a dash, an absent one an empty cell."""

    name: str
    source: Source
    group: str = ""
    details: tuple[str, ...] = ()
    values: Mapping[str, Value | None] = field(default_factory=dict)
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table of any format. ``notes`` are ``(mark, text)`` in the order of their first use."""

    id: str
    title: str
    details: tuple[str, ...]
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[tuple[str, str], ...] = ()
    remark: str = SHOWN_AS
    first: str = "Method"


class Notes:
    """Hands out the marks a, b, c of footnotes; one text has one mark."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def mark(self, text: str) -> str:
        """The mark of ``text``, new or known."""
        number = len(self._texts)
        letters = chr(ord("a") + number % 26)
        return self._texts.setdefault(text, letters * (1 + number // 26))

    def all(self) -> tuple[tuple[str, str], ...]:
        """Every mark with its text."""
        return tuple((mark, text) for text, mark in self._texts.items())


def percent(result: Result) -> Value:
    """A result's value and interval in percent."""
    interval = None if result.ci95 is None else (100 * result.ci95[0], 100 * result.ci95[1])
    return Value(100 * result.value, interval)


def tables_of(models: Sequence[Model], wanted: Iterable[TableId] = ()) -> list[Table]:
    """The tables ``wanted``, or without a wish those that a model has a number for."""
    asked = tuple(dict.fromkeys(wanted))
    made = [(name, _MAKERS[name](models)) for name in (asked or get_args(TableId))]
    return [table for _, table in made if asked or any(line.source == "ours" for line in table.lines)]


def published_lines(rows: Iterable[Published], source: Source) -> list[Line]:
    """Published rows, with the decimals they were printed with."""
    return [
        Line(
            name=row.name,
            source=source,
            group=f"{GROUPS[source]}: {row.group}" if row.group else GROUPS[source],
            details=row.details,
            values={key: None if value is None else _as_printed(value) for key, value in row.values.items()},
        )
        for row in rows
    ]


def _as_printed(value: float) -> Value:
    return Value(value, digits=len(repr(float(value)).partition(".")[2]))


def own_lines(
    models: Iterable[Model],
    keys: Sequence[str],
    rows: Mapping[str, Row],
    notes: Notes,
    details: int = 0,
    label: Callable[[Model], str] = lambda model: model.label,
) -> list[Line]:
    """One line per model that has any of the values."""
    lines = []
    for model in models:
        values = {key: percent(model.results[rows[key]]) for key in keys if rows[key] in model.results}
        # A mean over fewer corruptions is another quantity; where all are there, mCE is too.
        partial = rows.get("error") == ROWS["error"] and "error" in values and ROWS["mce"] not in model.results
        if partial:
            del values["error"]
        if values or partial:
            marks = tuple(notes.mark(text) for text in (*model.notes, *([PARTIAL] if partial else [])))
            lines.append(Line(label(model), "ours", GROUPS["ours"], ("",) * details, values, marks))
    return lines


def label_2(model: Model) -> str:
    """The name in a table that fine-tuned and zero-shot models share."""
    return f"{model.label}, zero-shot" if model.zero_shot else model.label


def _photographs(models: Iterable[Model]) -> list[Model]:
    return [model for model in models if model.protocol in PHOTOGRAPHS]


def _table_1(models: Sequence[Model]) -> Table:
    notes = Notes()
    lines = [
        replace(line, marks=(notes.mark(ADE20K),)) if line.name == "D-iGPT" and line.group.endswith(BASE) else line
        for line in published_lines(TABLE_1, "paper")
    ]
    heads = [model for model in _photographs(models) if not model.zero_shot]
    lines += own_lines(heads, ("imagenet", "ade20k"), ROWS, notes, details=2)
    return Table(
        id="1",
        title="ImageNet-1K classification and ADE20K segmentation (the paper's Table 1)",
        details=("Pretraining epochs", "Tokenizer/Teacher"),
        columns=(Column("imagenet", "ImageNet top-1"), Column("ade20k", "ADE20K mIoU")),
        lines=tuple(lines),
        notes=notes.all(),
        remark=f"{SHOWN_AS}; {UNREADABLE}",
    )


def _table_2(models: Sequence[Model]) -> Table:
    notes = Notes()
    shifted = [
        model for model in _photographs(models) if any(ROWS[key] in model.results for key in ROWS if key in _SHIFTED)
    ]
    corrupted = [
        Column("paper-c", "IN-Corruption", notes.mark(PAPER_C)),
        Column("error", "IN-C error ↓", notes.mark(ERROR)),
        Column("mce", "IN-C mCE ↓", notes.mark(MCE)),
        Column("relative-mce", "IN-C relative mCE ↓", notes.mark(RELATIVE)),
    ]
    if any(ROWS["on-the-fly"] in model.results for model in shifted):
        corrupted.append(Column("on-the-fly", "on-the-fly error ↓", notes.mark(ON_THE_FLY)))
    columns = (
        Column("imagenet", "ImageNet"),
        Column("imagenet-v2", "IN-V2"),
        Column("imagenet-real", "IN-Real"),
        Column("imagenet-a", "IN-Adversarial"),
        Column("imagenet-r", "IN-Rendition"),
        *corrupted,
        Column("imagenet-sketch", "IN-Sketch"),
    )
    keys = [column.key for column in columns if column.key in ROWS]
    lines = published_lines(TABLE_2, "paper") + published_lines(PUBLISHED_2, "published")
    lines += own_lines(shifted, keys, ROWS, notes, label=label_2)
    title = "Robustness (the paper's Table 2)"
    return Table("2", title, (), columns, tuple(lines), notes.all())


_SHIFTED = [key for key in ROWS if key not in ("imagenet", "ade20k")]


def _table_4(models: Sequence[Model]) -> Table:
    notes = Notes()
    lines = published_lines(TABLE_4, "paper")
    lines = [replace(line, marks=(notes.mark(OPENCLIP),)) if line.name == "OpenClip" else line for line in lines]
    lines += published_lines(PUBLISHED_4, "published")
    texts = [model for model in _photographs(models) if model.zero_shot]
    lines += own_lines(texts, ("imagenet",), ROWS, notes, details=3)
    return Table(
        id="4",
        title="Zero-shot ImageNet-1K classification (the paper's Table 4)",
        details=("Model", "DataSet", "Samples"),
        columns=(Column("imagenet", "top-1"),),
        lines=tuple(lines),
        notes=notes.all(),
        first="Pretraining",
    )


def _emoji(models: Sequence[Model]) -> Table:
    """Splits across; corruptions and neighbours where somebody was asked."""
    notes = Notes()
    asked = [model for model in models if model.protocol == "emoji"]
    rows: dict[str, Row] = {split: ("emoji", split, "top1") for split in EMOJI_SPLITS}
    columns = [Column(split, split) for split in EMOJI_SPLITS]
    corrupted: Row = ("emoji-c-on-the-fly", "mean", "error")
    if any(corrupted in model.results for model in asked):
        rows["error"] = corrupted
        mark = notes.mark("Top-1 error on flat under corruptions made in memory, mean over corruptions and severities")
        columns.append(Column("error", "corrupted, error ↓", mark))
    for split, metric, k in _neighbours(asked):
        key = f"knn-{split}"
        rows[key] = ("emoji", split, metric)
        columns.append(Column(key, f"kNN {split}", notes.mark(f"Top-1 over the subgroups, k = {k}")))
    keys = [column.key for column in columns]
    lines = own_lines(asked, keys, rows, notes)
    title = "The bundled emoji set, top-1 by split"
    remark = "Values in % with their 95 % bootstrap interval"
    return Table("emoji", title, (), tuple(columns), tuple(lines), notes.all(), remark, first="Model")


def _neighbours(models: Sequence[Model]) -> list[tuple[str, str, int]]:
    """``(split, metric, k)`` of the largest k that was asked, by split."""
    found: dict[str, tuple[int, str]] = {}
    for model in models:
        for dataset, split, metric in model.results:
            k = metric.removeprefix("knn_top1_k")
            if dataset == "emoji" and k != metric and k.isdigit():
                found[split] = max(found.get(split, (0, "")), (int(k), metric))
    return [(split, *found[split][::-1]) for split in EMOJI_SPLITS if split in found]


_MAKERS: dict[TableId, Callable[[Sequence[Model]], Table]] = {
    "1": _table_1,
    "2": _table_2,
    "4": _table_4,
    "emoji": _emoji,
}
