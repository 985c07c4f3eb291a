"""What a bulk job says of itself: on a terminal a bar, elsewhere a line now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from digpt.cli import progress_lines

Progress: TypeAlias = Callable[[int, int], None]
"""Called with how many images are done, and how many there are."""


def no_progress(done: int, total: int) -> None:
    """Report to nobody."""


@contextmanager
def progressing() -> Iterator[Progress]:
    """A bar on standard error that stays when the work is done and vanishes when it fails; in a pipe or file, lines."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield partial(progress_lines(console), "images")
        return
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Bars(*columns, TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task("images", total=None, rate="")

        def report(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)
            speed = bars.tasks[0].speed
            bars.update(task, rate=f"{speed:,.0f}/s" if speed else "")

        try:
            yield report
        except BaseException:
            bars.live.transient = True
            raise
