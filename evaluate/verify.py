"""Is the evaluation right? A known checkpoint is evaluated and compared with its published figures.

python -m evaluate.verify bundled
python -m evaluate.verify timm:deit_tiny_patch16_224.fb_in1k --data-root data
python -m evaluate.verify finetuned.pth --reference authors-b16-squash --data-root data
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
from evaluate.cli import TABLE_WIDTH, EvaluateOptions, check, command, load_engine, single_process
from evaluate.progress import bars
from evaluate.references import REFERENCES, Reference, tolerance_of
from evaluate.run import run_suite
from evaluate.select import Asked, select_suite
from evaluate.suite_imagenet import SPLIT

COMMAND = command("verify", __doc__, {1: "a figure differs from the published one", 2: "none could be compared"})
TAIL = 3.167e-5  # of a normal distribution beyond four standard errors: a dozen figures are compared at once
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
    """One figure: top-1 in percent expected and measured, and the lowest and highest that pass."""

    dataset: str
    split: str
    expected: float
    measured: float
    images: int
    allowed: tuple[float, float]
    passed: bool


@dataclass(frozen=True)
class Verification:
    """The figures that were compared, and those that could not be: ``missing`` are sets and splits without images."""

    document: ResultsDocument
    checks: list[Check]
    missing: list[tuple[str, str]]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def check_rows(
    results: Iterable[Result],
    expected: Mapping[tuple[str, str], float],
    tolerances: Mapping[tuple[str, str], float],
    *,
    sampled: bool = False,
) -> list[Check]:
    """Compare top-1 figures with ``expected``, by set and split; it and ``tolerances`` are in percent.

    Rows of a subset of the images (``sampled``) may also be off by chance: see `sampled_range`.
    """
    found = []
    for result in results:
        row = (result.dataset, result.split)
        if result.metric != "top1" or row not in expected:
            continue
        value, wanted, tolerance = 100 * result.value, expected[row], tolerances[row]
        allowed = wanted - tolerance, wanted + tolerance
        low, high = allowed = sampled_range(*allowed, result.n) if sampled else allowed
        found.append(Check(*row, wanted, value, result.n, allowed, low - 1e-9 <= value <= high + 1e-9))
    return found


def sampled_range(low: float, high: float, n: int) -> tuple[float, float]:
    """Where a sample of ``n`` images lies if the rate of all images lies in ``low..high``; all in percent.

    About four standard errors, exactly: binomial quantiles of the expected rate, for of few images the measured one
    says little (none right of fifty is an interval without width). Images are drawn without replacement, so it is a
    little too wide.
    """
    from scipy.stats import binom  # takes a moment to import

    lowest, highest = max(low, 0.0) / 100, min(high, 100.0) / 100
    return 100 * float(binom.ppf(TAIL, n, lowest)) / n, 100 * float(binom.isf(TAIL, n, highest)) / n


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


def _bundled(options: VerifyOptions) -> Verification:
    """The bundled model against the results that ship beside it."""
    shipped = read_results(BUNDLED / RESULTS_NAME)
    document = _evaluated(options, Asked(sets=()), {})
    expected = {(r.dataset, r.split): 100 * r.value for r in shipped.results if r.metric == "top1"}
    return _compared(options, document, expected, dict.fromkeys(expected, BUNDLED_TOLERANCE))


def _published(options: VerifyOptions) -> Verification:
    name, reference = reference_of(options)
    if options.data_root is None:
        raise ConfigError(f"{name} is verified on the ImageNet family: give --data-root DIR (docs/data-evaluation.md).")
    document = _evaluated(options, Asked(sets=tuple(reference.top1)), reference.preprocess, reference.zero_shot)
    expected = {(dataset, SPLIT.get(dataset, "test")): value for dataset, value in reference.top1.items()}
    return _compared(options, document, expected, {row: tolerance_of(row[0]) for row in expected})


def _compared(
    options: VerifyOptions,
    document: ResultsDocument,
    expected: Mapping[tuple[str, str], float],
    tolerances: Mapping[tuple[str, str], float],
) -> Verification:
    sampled = bool(options.limit or options.preview)
    checks = check_rows(document.results, expected, tolerances, sampled=sampled)
    if not checks:
        raise ConfigError("None of the sets with published figures is there; evaluate.doctor says what is found.")
    there = {(check.dataset, check.split) for check in checks}
    return Verification(document, checks, [row for row in expected if row not in there])


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
    return COMMAND.run(VerifyOptions, argv, _verify)


def _verify(options: VerifyOptions) -> int:
    if options.list:
        _print_known()
        return 0
    bundled = options.spec == "bundled" and options.reference is None
    verification = _bundled(options) if bundled else _published(options)
    if options.json:
        print(json.dumps(_values(verification)))
    else:
        _print_checks(verification)
    return 0 if verification.passed else 1


def _values(verification: Verification) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "passed": verification.passed,
        "model": verification.document.model.fingerprint,
        "checks": [asdict(check) for check in verification.checks],
        "missing": [{"dataset": dataset, "split": split} for dataset, split in verification.missing],
    }


def _print_checks(verification: Verification) -> None:
    table = Table(title=f"{verification.document.model.name}: top-1, %", title_justify="left")
    for title in ("set", "images", "expected", "measured", "difference", "passes", ""):
        table.add_column(title, justify="left" if title in ("set", "") else "right")
    for row in verification.checks:
        low, high = row.allowed
        table.add_row(
            f"{row.dataset} {row.split}",
            f"{row.images:,}",
            f"{row.expected:.2f}",
            f"{row.measured:.2f}",
            f"{row.measured - row.expected:+.2f}",
            f"{low:.2f} to {high:.2f}",
            "ok" if row.passed else "OFF",
        )
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    console.print(table)
    if verification.missing:
        named = ", ".join(f"{dataset} {split}" for dataset, split in verification.missing)
        console.print(f"not compared, for there are no images: {named}", highlight=False, soft_wrap=True)
    off = "NOT verified: check the data with evaluate.doctor, then preprocessing"
    console.print("verified" if verification.passed else off)


def _print_known() -> None:
    for name, reference in REFERENCES.items():
        figures = ", ".join(f"{dataset} {value}" for dataset, value in reference.top1.items())
        print(f"{name}: {figures} ({reference.source})")


if __name__ == "__main__":
    sys.exit(main())
