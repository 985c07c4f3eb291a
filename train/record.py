"""What the folder of a run tells about it, read without loading the model: settings, curves, events, state, lineage.

A folder is untrusted and may belong to a run that is going on, was killed in mid-write, or used another version:
what is missing is left out, what cannot be read becomes a notice, and only a folder without a run is refused.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from digpt.artifact import FORMAT, fingerprint, load_document, migrate
from digpt.errors import CheckpointError, DataError
from digpt.lineage import number

PARTS = ("loader", "teacher", "encoder", "decoders", "optimiser", "evaluation")  # of a step, in their order
State = Literal["finished", "running", "failed", "stopped"]


@dataclass
class Curve:
    """One logged key over the steps; values may be NaN or infinite."""

    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)

    @property
    def last(self) -> float:
        """The latest value."""
        return self.y[-1]

    def recent(self, count: int = 10) -> float:
        """The mean of the latest ``count`` finite values, NaN when there are none."""
        values = [value for value in self.y if math.isfinite(value)][-count:]
        return math.fsum(value / len(values) for value in values) if values else math.nan


@dataclass
class Event:
    """Something out of the ordinary: a skipped step, a reload."""

    step: float
    kind: str
    detail: str


@dataclass
class Run:
    """One run as its folder tells it.

    Attributes:
        config: ``config.json`` with nested keys joined by dots.
        curves: training values by key; nested keys joined by dots.
        figures: what evaluations measured, by key.
        provenance: the record in ``ckpt.pt``; empty before the run has ended.
        notices: sentences about what could not be read.
        updated: when the metrics were last written, UTC.
    """

    folder: Path
    config: dict[str, Any]
    state: State = "stopped"
    curves: dict[str, Curve] = field(default_factory=dict)
    figures: dict[str, Curve] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    failure: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    updated: datetime | None = None

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name or str(self.folder)

    @property
    def command(self) -> str:
        """``pretrain`` and the like."""
        return str(self.config.get("command", "training"))

    @property
    def step(self) -> int:
        """The last step that anything was logged for."""
        ends = [curve.x[-1] for curve in (*self.curves.values(), *self.figures.values()) if curve.x]
        return int(max(ends, default=0))

    @property
    def steps(self) -> int | None:
        """Steps the run was asked for."""
        value = number(self.config.get("steps"))
        return int(value) if value and math.isfinite(value) else None

    def setting(self, name: str) -> Any:
        """The configuration's value of ``name``, at the top or, when only there, inside a section; None if unset."""
        if name in self.config:
            return self.config[name]
        return next((value for key, value in self.config.items() if key.endswith(f".{name}")), None)

    @property
    def time_split(self) -> dict[str, float]:
        """Seconds or shares of time per part, of the whole run so far."""
        split = self.provenance.get("time_split")
        if not isinstance(split, dict):
            prefix = "time_split."
            split = {key.removeprefix(prefix): c.last for key, c in self.curves.items() if key.startswith(prefix)}
        known = {str(name): value for name, raw in split.items() if (value := number(raw)) is not None}
        return dict(sorted(known.items(), key=lambda item: PARTS.index(item[0]) if item[0] in PARTS else len(PARTS)))

    @property
    def seconds(self) -> float | None:
        """Seconds of training: recorded when finished, before that estimated from steps and images/s."""
        recorded = number(self.provenance.get("seconds"))
        if recorded is not None:
            return recorded
        rate, batch = self.curves.get("images_per_second"), number(self.config.get("batch_size"))
        return self.step * batch / rate.last if rate and batch and rate.last > 0 else None

    @property
    def images_per_second(self) -> float | None:
        """Images per second over all devices: logged, or from the whole run's time (evaluations included)."""
        rate, batch = self.curves.get("images_per_second"), number(self.config.get("batch_size"))
        if rate:
            return rate.last
        return self.step * batch / self.seconds if batch and self.seconds else None


def read_run(folder: str | Path) -> Run:
    """Read a run's folder.

    Raises:
        DataError: no such folder, or no readable ``config.json`` in it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} is no run folder: it has no config.json; give the --output of a training command.")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{folder / 'config.json'} cannot be read as JSON; restore it, or train again.") from error
    if not isinstance(config, dict):
        raise DataError(f"{folder / 'config.json'} holds no settings; give the --output of a training command.")
    run = Run(folder, dict(_flat(config)))
    _read_metrics(run, folder / "metrics.jsonl")
    _read_checkpoint(run, folder / "ckpt.pt")
    _read_failure(run, folder / "failure.json")
    run.state = _state(run)
    return run


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings, their keys joined by dots; an empty mapping is a leaf."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _read_metrics(run: Run, path: Path) -> None:
    if not path.is_file():
        run.notices.append("Nothing is logged yet: there is no metrics.jsonl.")
        return
    run.updated = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    damaged = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            if not line.endswith("\n"):
                break  # being written at this moment, or cut short by a kill
            try:
                _take(run, json.loads(line))
            except (ValueError, TypeError, RecursionError):
                damaged += 1
    if damaged:
        run.notices.append(f"{damaged:,} lines of metrics.jsonl cannot be read and are left out.")


def _take(run: Run, row: dict[str, Any]) -> None:
    """Sort one line into events, figures or curves. ``TypeError``: it is no line of a run."""
    step = number(row["step"]) if isinstance(row, dict) and "step" in row else None
    if step is None or not math.isfinite(step):
        raise TypeError
    if "event" in row:
        run.events.append(Event(step, str(row["event"]), str(row.get("detail", ""))))
        return
    into = run.curves if "loss" in row or "lr" in row else run.figures
    for key, raw in _flat(row):
        value = raw if type(raw) is float else number(raw)
        if value is not None and key != "step":
            curve = into.get(key)
            if curve is None:
                curve = into[key] = Curve()
            curve.x.append(step)
            curve.y.append(value)


def _read_checkpoint(run: Run, path: Path) -> None:
    if not path.exists():
        return
    try:
        document = load_document(path)
        if isinstance(document, dict) and document.get("format") == FORMAT:
            document = migrate(document, path)
            run.fingerprint = fingerprint(document["weights"], document["config"])
    except CheckpointError as error:
        run.notices.append(str(error))
        return
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        run.notices.append(f"{path.name} has no fingerprint: it was not written by digpt, or was edited ({error!r}).")
        return
    provenance = document.get("provenance") if isinstance(document, dict) else None
    if isinstance(provenance, dict):
        run.provenance = provenance
    else:
        run.notices.append(f"{path.name} tells nothing about where it comes from.")


def _read_failure(run: Run, path: Path) -> None:
    if not path.exists():
        return
    try:
        failure = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        failure = None
    if isinstance(failure, dict):
        run.failure = failure
    else:
        run.notices.append("failure.json cannot be read.")


def _state(run: Run) -> State:
    """Finished beats running (the run itself writes the last report), and a failure counts until the run goes on."""
    done = number(run.provenance.get("steps")) or run.step
    if (run.folder / "ckpt.pt").exists() and (run.steps is None or done >= run.steps):
        return "finished"
    if _in_use(run.folder):
        return "running"
    failed = number(run.failure.get("step"))
    return "failed" if run.failure and (failed is None or failed >= run.step) else "stopped"


def _in_use(folder: Path) -> bool:
    """Whether a process trains in ``folder``. Asks for a shared lock, which it gives back at once."""
    try:
        with open(folder / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file, or a file system without locks
        return False
    return False
