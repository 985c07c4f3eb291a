"""Is the evaluation right? A known checkpoint is evaluated and compared with its published figures.

    python -m evaluate.verify bundled
    python -m evaluate.verify timm:deit_tiny_patch16_224.fb_in1k --data-root data
    python -m evaluate.verify finetuned.pth --reference authors-b16-squash --data-root data

Exit code 0: every figure within its tolerance; 1: at least one is not; 2: nothing could be compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from digpt.errors import ConfigError, near_misses
from digpt.results import RESULTS_NAME, Result, ResultsDocument, read_results
from digpt.sources import BUNDLED
from evaluate.cli import TABLE_WIDTH, EvaluateOptions, check, guarded, load_engine, parse, single_process
from evaluate.progress import bars
from evaluate.references import REFERENCES, Reference, tolerance_of
from evaluate.run import run_suite
from evaluate.select import Asked, select_suite
from evaluate.suite_imagenet import SPLIT

BUNDLED_TOLERANCE = 0.3  # points: other processors round differently, which turns a few answers of hundreds


@dataclass(frozen=True)
class VerifyOptions(EvaluateOptions):
    """Options of the verification."""

    reference: str | None = None
    """Which checkpoint SPEC is, where its name does not tell: one of the names that --list prints."""
    list: bool = False
    """Print the known checkpoints and their figures."""


@dataclass(frozen=True)
class Check:
    """One figure: top-1 in percent expected and measured. ``tolerance`` in points; None: the interval decides."""

    dataset: str
    split: str
    expected: float
    measured: float
    tolerance: float | None
    passed: bool


def check_rows(
    results: Iterable[Result], expected: Mapping[tuple[str, str], float], tolerances: Mapping[tuple[str, str], float]
) -> list[Check]:
    """Compare top-1 figures with ``expected`` (percent by set and split).

    A row without a tolerance, of a subset of the images, passes where the expected figure lies within twice the reach
    of its 95 % interval: about four standard errors, for a dozen figures are compared at once.
    """
    found = []
    for result in results:
        row = (result.dataset, result.split)
        if result.metric != "top1" or row not in expected:
            continue
        value, wanted, tolerance = 100 * result.value, expected[row], tolerances.get(row)
        if tolerance is not None:
            passed = abs(value - wanted) <= tolerance + 1e-9
        else:
            low, high = result.ci95 or (0.0, 1.0)
            passed = 200 * low - value <= wanted <= 200 * high - value
        found.append(Check(*row, wanted, value, tolerance, passed))
    return found


def reference_of(options: VerifyOptions) -> tuple[str, Reference]:
    """The published figures of SPEC, by its name or by ``--reference``.

    Raises:
        ConfigError: no such reference.
    """
    name = options.reference or options.spec.partition("@")[0]
    if name not in REFERENCES:
        raise ConfigError(
            f"No published figures are known for {name!r}.{near_misses(name, REFERENCES)} Say which known checkpoint "
            f"it is with --reference; --list prints them."
        )
    return name, REFERENCES[name]


def _bundled(options: VerifyOptions) -> tuple[ResultsDocument, list[Check]]:
    """The bundled model against the results that ship beside it."""
    shipped = read_results(BUNDLED / RESULTS_NAME)
    document = _evaluated(options, Asked(sets=()), {})
    expected = {(r.dataset, r.split): 100 * r.value for r in shipped.results if r.metric == "top1"}
    whole = not (options.limit or options.preview)
    tolerances = dict.fromkeys(expected, BUNDLED_TOLERANCE) if whole else {}
    return document, check_rows(document.results, expected, tolerances)


def _published(options: VerifyOptions) -> tuple[ResultsDocument, list[Check]]:
    name, reference = reference_of(options)
    if options.data_root is None:
        raise ConfigError(f"{name} is verified on the ImageNet family: give --data-root DIR (docs/data-evaluation.md).")
    document = _evaluated(options, Asked(sets=tuple(reference.top1)), reference.preprocess, reference.zero_shot)
    expected = {(dataset, SPLIT.get(dataset, "test")): value for dataset, value in reference.top1.items()}
    whole = not (options.limit or options.preview)
    tolerances = {row: tolerance_of(row[0]) for row in expected} if whole else {}
    return document, check_rows(document.results, expected, tolerances)


def _evaluated(
    options: VerifyOptions, asked: Asked, preprocess: Mapping[str, Any], zero_shot: bool = False
) -> ResultsDocument:
    check(options)
    single_process(options, "Verification")
    with redirect_stdout(sys.stderr), bars() as progress:
        progress("model", 0, 0)
        with closing(load_engine(options)) as engine:
            if preprocess:
                own = engine.info.preprocess
                engine.runtime.info = replace(engine.info, preprocess=replace(own, **preprocess))
            outcome = run_suite(
                engine,
                select_suite(options, engine, asked),
                output=options.output,
                overwrite=options.overwrite,
                batch_size=options.batch_size,
                prefer_text=zero_shot,
                progress=progress,
            )
    assert outcome.document is not None
    return outcome.document


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, compare and print; return the exit code."""
    options = parse(VerifyOptions, argv, "evaluate.verify", "A known checkpoint against its published figures.")
    return guarded(lambda: _verify(options))


def _verify(options: VerifyOptions) -> int:
    if options.list:
        _print_known()
        return 0
    bundled = options.spec == "bundled" and options.reference is None
    document, checks = _bundled(options) if bundled else _published(options)
    if not checks:
        raise ConfigError("None of the sets with published figures is there; evaluate.doctor says what is found.")
    passed = all(row.passed for row in checks)
    if options.json:
        print(
            json.dumps({"passed": passed, "model": document.model.fingerprint, "checks": [asdict(c) for c in checks]})
        )
    else:
        _print_checks(document.model.name, checks, passed)
    return 0 if passed else 1


def _print_checks(name: str, checks: Sequence[Check], passed: bool) -> None:
    table = Table(title=f"{name}: top-1, %", title_justify="left")
    for title in ("set", "expected", "measured", "difference", "tolerance", ""):
        table.add_column(title, justify="left" if title in ("set", "") else "right")
    for row in checks:
        allowed = "2 intervals" if row.tolerance is None else f"{row.tolerance:.2f}"
        difference = f"{row.measured - row.expected:+.2f}"
        verdict = "ok" if row.passed else "OFF"
        table.add_row(
            f"{row.dataset} {row.split}", f"{row.expected:.2f}", f"{row.measured:.2f}", difference, allowed, verdict
        )
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    console.print(table)
    console.print("verified" if passed else "NOT verified: check the data with evaluate.doctor, then preprocessing")


def _print_known() -> None:
    for name, reference in REFERENCES.items():
        figures = ", ".join(f"{dataset} {value}" for dataset, value in reference.top1.items())
        print(f"{name}: {figures} ({reference.source})")


if __name__ == "__main__":
    sys.exit(main())
