"""The help of a command, from a dataclass of options: usage, purpose, examples, options below headings, exit codes."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

COMMAND_LINE = re.compile(r" *(python|accelerate|serve) \S")
INDENT, COLUMN = 2, 24  # where an option and its text begin
NARROWEST, WIDEST = 40, 100
KINDS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Entry:
    """One option. ``group`` is its field's name, of a nested field the outermost one's."""

    group: str
    flags: tuple[str, ...]
    value: str
    text: str
    default: str = ""
    positional: bool = False
    required: bool = False

    @property
    def shown(self) -> str:
        """What is typed."""
        return self.value if self.positional else " ".join(filter(None, (", ".join(self.flags), self.value)))

    @property
    def told(self) -> str:
        """The text, with the default unless it speaks of it."""
        if self.required and not self.positional:
            return f"{self.text} (required)"
        if not self.default or "default" in self.text:
            return self.text
        stop = "." * self.text.endswith(".")
        return f"{self.text.removesuffix('.')} (default: {self.default}){stop}".strip()


@dataclass(frozen=True)
class Page:
    """What the help shows beside the options; see `digpt.cli.Command`."""

    prog: str
    about: str
    groups: Mapping[str, Sequence[str]]
    exits: Mapping[int, str]
    first: Mapping[str, str]


def entries_of(options: type[Any], default: Any = None, prefix: str = "", group: str = "") -> list[Entry]:
    """The options that tyro reads for a dataclass, in its order, with the defaults of ``default`` or their own."""
    found: list[Entry] = []
    kinds, texts = get_type_hints(options, include_extras=True), documented(options)
    for each in dataclasses.fields(options):
        kind, extras = _unwrapped(kinds[each.name])
        value = _default(each, default)
        if tyro.conf.Suppress in extras:
            continue
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            nested = None if value is dataclasses.MISSING else value
            found += entries_of(kind, nested, f"{prefix}{_dashed(each.name)}.", group or each.name)
            continue
        positional = tyro.conf.Positional in extras
        also = [alias for extra in extras for alias in getattr(extra, "aliases", None) or ()]
        given = next((extra.metavar for extra in extras if getattr(extra, "metavar", None)), None)
        shown = given or (each.name.upper() if positional else _value(kind, tyro.conf.UseAppendAction in extras))
        found.append(
            Entry(
                group or each.name,
                () if positional else (*_flags(prefix + _dashed(each.name), kind, value), *also),
                shown,
                texts.get(each.name, ""),
                _said(value),
                positional,
                value is dataclasses.MISSING,
            )
        )
    return found


def documented(options: type[Any]) -> dict[str, str]:
    """What the source says about each field: the string below it, the comment behind it, or ``Attributes:``."""
    texts: dict[str, str] = {}
    for each in reversed(options.__mro__):
        if dataclasses.is_dataclass(each):
            texts |= _attributes(each.__doc__ or "") | _written(each)
    return {name: " ".join(text.replace("`", "").split()) for name, text in texts.items()}


def page(about: Page, entries: Sequence[Entry]) -> str:
    """The whole help, no line wider than the terminal (of 40 characters at least) or 100 characters."""
    width = max(NARROWEST, min(shutil.get_terminal_size().columns, WIDEST))
    purpose, examples, notes = _parts(about.about)
    lines = [*_wrapped(usage(about, entries), width, "  "), "", *_wrapped(purpose, width)]
    if examples:
        lines += ["", _heading("Example:" if len(examples) == 1 else "Examples:")]
        lines += [line for example in examples for line in _example(example, width)]
    for heading, rows in _grouped(about, entries):
        lines += ["", _heading(f"{heading}:")]
        lines += [line for shown, text in rows for line in _row(shown, text, width)]
    for note in notes:
        lines += ["", *_wrapped(note, width)]
    if about.exits:
        lines += ["", _heading("Exit codes:")]
        lines += [line for code, meaning in about.exits.items() for line in _row(str(code), meaning, width, 5)]
    return "\n".join(lines) + "\n"


def usage(about: Page, entries: Sequence[Entry]) -> str:
    """One line: what has to be given, and in which order."""
    own = [f"[{name}]" for name in about.first if not name.startswith("-")]
    places = [entry for entry in entries if entry.positional]
    words = [each.shown if each.required or each.shown[0] == "[" else f"[{each.shown}]" for each in places]
    words += [entry.shown for entry in entries if entry.required and not entry.positional]
    return " ".join(["usage:", about.prog, *own, *words, "[options]"])


def _unwrapped(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its annotations, and these."""
    return (get_args(kind)[0], kind.__metadata__) if get_origin(kind) is Annotated else (kind, ())


def _default(each: dataclasses.Field[Any], default: Any) -> Any:
    if default is not None:
        return getattr(default, each.name)
    return each.default if each.default_factory is dataclasses.MISSING else each.default_factory()


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _flags(name: str, kind: Any, value: Any) -> tuple[str, ...]:
    """A switch that is on is switched off by ``--no-NAME``."""
    if kind is bool and value is True:
        head, dot, tail = name.rpartition(".")
        return (f"--{name}", f"--{head}{dot}no-{tail}")
    return (f"--{name}",)


def _value(kind: Any, repeated: bool = False) -> str:
    """How a value of this type is shown: ``INT``, ``{a,b}``, ``[PATH ...]``; nothing for a switch."""
    arguments = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return "|".join(_value(each) or "{True,False}" for each in arguments if each is not type(None))
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    if get_origin(kind) is tuple:
        if arguments[-1] is not Ellipsis:
            return " ".join(map(_value, arguments))
        return _value(arguments[0]) if repeated else f"[{_value(arguments[0])} ...]"
    return "" if kind is bool else KINDS.get(kind, "TEXT")


def _said(value: Any) -> str:
    """A default; nothing for one that goes without saying, or that the text has to explain."""
    if value is dataclasses.MISSING or value is None or isinstance(value, bool):
        return ""
    return " ".join(map(_said, value)) if isinstance(value, tuple) else str(value)


def _attributes(text: str) -> dict[str, str]:
    """The section ``Attributes:`` of a class's docstring."""
    section = re.search(r"\n(\s*)Attributes:\n((?:\1\s+\S.*\n?)+)", text)
    return dict(re.findall(r"^\s+(\w+): (.+)$", section[2], re.MULTILINE)) if section else {}


def _written(options: type[Any]) -> dict[str, str]:
    """Strings below the fields, and comments behind them on the same line."""
    try:
        source = textwrap.dedent(inspect.getsource(options))
    except OSError:  # made at run time
        return {}
    body, lines, texts = ast.parse(source).body[0], source.splitlines(), {}
    assert isinstance(body, ast.ClassDef)
    for node, below in zip(body.body, [*body.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        behind = lines[(node.end_lineno or 1) - 1][node.end_col_offset :].strip()
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            texts[node.target.id] = below.value.value
        elif behind.startswith("# "):
            texts[node.target.id] = behind.removeprefix("# ")
    return texts


def _parts(about: str) -> tuple[str, list[str], list[str]]:
    """Purpose, example commands, and the paragraphs beyond them."""
    paragraphs = [part for part in about.strip().split("\n\n") if part.strip()]
    blocks = [part for part in paragraphs if all(COMMAND_LINE.match(line) for line in part.splitlines())]
    prose = [" ".join(part.replace("`", "").split()) for part in paragraphs if part not in blocks]
    examples = [line.strip() for line in (blocks[0].splitlines() if blocks else [])]
    return prose[0] if prose else "", examples, prose[1:]


def _example(line: str, width: int) -> Iterator[str]:
    """One command; what is too long goes on in another line, so that it can still be pasted."""
    command, sharp, comment = line.partition("  #")
    if len(line) + INDENT <= width:
        yield f"{' ' * INDENT}{line}"
        return
    if sharp:
        yield f"{' ' * INDENT}# {comment.strip()}"
    shown = " " * INDENT
    for word in re.findall(r"-\S+ [^-\s]\S*|\S+", command):
        if len(shown) + len(word) + 3 > width and shown.strip():
            yield f"{shown.rstrip()} \\"
            shown = " " * (3 * INDENT)
        shown += f"{word} "
    yield shown.rstrip()


def _grouped(about: Page, entries: Sequence[Entry]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Headings and their rows: arguments without a heading come first, options without one last."""
    rows: dict[str, list[tuple[str, str]]] = {name: [(name, text)] for name, text in about.first.items()}
    for entry in entries:
        rows.setdefault(entry.group, []).append((entry.shown, entry.told))
    groups = [
        (heading, [row for name in names for row in rows.pop(name, [])]) for heading, names in about.groups.items()
    ]
    places = [entry.group for entry in entries if entry.positional]
    arguments = [row for name in places for row in rows.pop(name, [])]
    rest = [row for found in rows.values() for row in found]
    found = [("Arguments", arguments), *groups, ("Other" if about.groups else "Options", rest)]
    found = [(heading, shown) for heading, shown in found if shown] or [("Options", [])]
    found[-1][1].append(("-h, --help", "This text."))
    return found


def _row(shown: str, text: str, width: int, column: int = COLUMN) -> Iterator[str]:
    head = f"{' ' * INDENT}{shown}"
    wrapped = _wrapped(text, width - column - INDENT)
    if len(head) + 2 > column + INDENT or not wrapped:
        yield from _wrapped(head.strip(), width, "    ", " " * INDENT)
    else:
        yield f"{head:{column + INDENT}}{wrapped.pop(0)}"
    yield from (f"{' ' * (column + INDENT)}{line}" for line in wrapped)


def _wrapped(text: str, width: int, later: str = "", first: str = "") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    )


def _heading(text: str) -> str:
    """Bold on a terminal."""
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[1m{text}\x1b[0m" if coloured else text
