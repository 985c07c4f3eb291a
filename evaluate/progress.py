"""What a long evaluation says while it runs, on stderr: on a terminal a bar per thing being done, elsewhere lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)
from rich.text import Text

from digpt.cli import progress_lines

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (0: it cannot be counted)."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report to nobody."""


class _Speed(ProgressColumn):
    """Images per second of the current task."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f}/s" if task.speed else "")


@contextmanager
def bars() -> Iterator[Progress]:
    """Bars on stderr that vanish when an error ends the work, so that it stands alone; in a pipe or file, lines."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield progress_lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn())
    with Bars(*columns, console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def finish() -> None:
            for task in tasks.values():
                if bar.tasks[task].total is None:
                    bar.update(task, total=1, completed=1)

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                finish()
                tasks[what] = bar.add_task(what, total=total or None)
            bar.update(tasks[what], completed=done)

        try:
            yield report
        except BaseException:
            bar.live.transient = True  # take the bars away, so that the error stands alone
            bar.live.stop()
            bar.disable = True  # or Progress.stop would print an empty line
            raise
        finish()
