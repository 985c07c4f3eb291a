"""How every command parses, shows its help and ends: one command is one `Command`, and tyro reads its options.

    COMMAND = Command("evaluate.knn", __doc__, groups=GROUPS)
    COMMAND.run(KnnOptions, argv, work)  # the exit code

Exit codes are those of ``docs/command-line.md``: 0 done, 1 the answer is no, 2 refused, 130 interrupted.
"""

from __future__ import annotations

import io
import itertools
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import tyro

from digpt.cli_help import Entry, Page, entries_of, page
from digpt.errors import DigptError, near_misses

if TYPE_CHECKING:
    from rich.console import Console

REFUSED, INTERRUPTED = 2, 130  # 130 is what a shell reports for a process that SIGINT ended
NOTHING_KEPT = "nothing was kept"
CONTINUES = "give the same command again: it goes on from what --output holds"
EVERY = 30.0  # seconds between lines of progress
HELP = ("-h", "--help")
_FRAME = re.compile(r"[╭╮╰╯│─]|^ *-{3,} *$|\x1b\[[0-9;]*m")  # of tyro's boxes, drawn in UTF-8 or in ASCII
_UNREADABLE = re.compile(r"Error parsing (?:\S+/)?(?P<flag>\S+): .*'(?P<given>[^']*)'")
_NO_CHOICE = re.compile(r"invalid choice '(?P<given>.*?)' for argument '(?P<flag>\S+)'")

Options = TypeVar("Options")


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        name: what follows ``python -m``.
        about: the module's docstring: the purpose, indented examples, and what else there is to know.
        groups: headings of the help and the options (names of fields, or of what ``first`` adds) below each.
        exits: what exit codes other than 0, 2 and 130 mean here.
        after: what to do after an interruption; the sentence goes on after "interrupted; ".
        first: options that the command reads itself, ``{"--miniature": "shrink the recipe"}``, for the help.
    """

    name: str
    about: str | None
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    exits: Mapping[int, str] = field(default_factory=dict)
    after: str = NOTHING_KEPT
    first: Mapping[str, str] = field(default_factory=dict)

    @property
    def prog(self) -> str:
        return f"python -m {self.name}"

    def run(self, options: type[Options], argv: Sequence[str] | None, work: Callable[[Options], int]) -> int:
        """Parse, work, and return the exit code that ``work`` gives, or 2 or 130 after one line that says why."""
        return self.guard(lambda: work(self.parse(options, argv)))

    def guard(self, work: Callable[[], int]) -> int:
        """The exit code of ``work``; an error meant for the user and Ctrl-C become one line on standard error.

        Any other exception is a fault of the program: it keeps its traceback, and Python ends with 1.
        """
        try:
            return work()
        except DigptError as error:
            return refuse(error)
        except KeyboardInterrupt:
            print(f"interrupted; {self.after}", file=sys.stderr)
            return INTERRUPTED

    def parse(self, options: type[Options], argv: Sequence[str] | None, default: Options | None = None) -> Options:
        """Return the options in ``argv`` (default: the process's own), unset ones from ``default``.

        Raises:
            SystemExit: 0 after the help was asked for, 2 after one line about options that cannot be read.
            DigptError: as ``options`` raises.
        """
        found, unknown = self.parse_known(options, argv, default)
        if unknown:
            self._refuse_unknown(unknown, options, default)
        return found

    def parse_known(
        self, options: type[Options], argv: Sequence[str] | None, default: Options | None = None
    ) -> tuple[Options, list[str]]:
        """`parse`, and what is in ``argv`` beyond these options."""
        arguments = list(sys.argv[1:] if argv is None else argv)
        if any(argument in HELP for argument in arguments):
            shown = Page(self.prog, self.about or "", self.groups, self.exits, self.first)
            print(page(shown, entries_of(options, default)), end="")
            raise SystemExit(0)
        given: dict[str, Any] = {} if default is None else {"default": default}
        told = io.StringIO()
        try:
            with redirect_stderr(told):
                found, unknown = tyro.cli(
                    options,
                    args=arguments,
                    prog=self.prog,
                    return_unknown_args=True,
                    config=(tyro.conf.AvoidSubcommands,),
                    **given,
                )
        except SystemExit as stopped:
            if stopped.code == REFUSED:
                self._refuse_arguments(told.getvalue(), entries_of(options, default))
            raise
        print(told.getvalue(), end="", file=sys.stderr)
        return found, list(unknown)

    def _refuse_unknown(self, unknown: Sequence[str], options: type[Any], default: Any) -> NoReturn:
        flags = [argument.partition("=")[0] for argument in unknown if argument.startswith("-")]
        known = [*(flag for entry in entries_of(options, default) for flag in entry.flags), *self.first]
        wrong = f"no option {flags[0]}" if flags else f"no place for {unknown[0]!r}"
        self._end(f"There is {wrong}.{near_misses(flags[0], known) if flags else ''}")

    def _refuse_arguments(self, told: str, entries: Sequence[Entry]) -> NoReturn:
        """Say in one line what tyro says in a box, up to its first rule or empty line."""
        lines = [_FRAME.sub("", line) for line in told.splitlines()[1:]]
        body = list(itertools.takewhile(str.strip, itertools.dropwhile(lambda line: not line.strip(), lines)))
        text = " ".join(" ".join(body).split())
        if text.startswith("Missing from"):
            indent = re.match(r" *", body[0])
            names = [line.strip() for line in body if indent and re.match(rf"{indent[0]} {{4}}\S", line)]
            self._end(f"Give {' and '.join(names)}.")
        kinds = {flag: entry.value for entry in entries for flag in entry.flags}
        for pattern, verb in ((_UNREADABLE, "is no"), (_NO_CHOICE, "is none of")):
            if (wrong := pattern.match(text)) and wrong["flag"] in kinds:
                self._end(f"{wrong['flag']} {wrong['given']} {verb} {kinds[wrong['flag']]}.")
        self._end(text)

    def _end(self, sentence: str) -> NoReturn:
        print(f"error: {sentence} All options: {self.prog} --help", file=sys.stderr)
        raise SystemExit(REFUSED)


def refuse(error: Exception) -> int:
    """Print an error meant for the user as one line on standard error; return exit code 2."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return REFUSED


def progress_lines(console: Console, clock: Callable[[], float] = time.monotonic) -> Callable[[str, int, int], None]:
    """Progress where there is no terminal: a whole line now and then, and one when a thing is done."""
    begun = clock()
    told: dict[str, float] = {}

    def report(what: str, done: int, total: int) -> None:
        finished = bool(total) and done >= total
        if told.get(what) == float("inf") or not total or not (finished or clock() - told.get(what, begun) >= EVERY):
            return
        told[what] = float("inf") if finished else clock()
        console.print(f"{what} {done:,}/{total:,}", highlight=False, markup=False, soft_wrap=True)

    return report
