"""What the report's tables leave out: a part of ImageNet-C is no row of the column of all of it."""

from __future__ import annotations

from digpt.results import ModelRef, Result
from digpt.runtime.fake import FakeRuntime
from evaluate.report_models import Model
from evaluate.table_formats import markdown
from evaluate.tables import PARTIAL, tables_of


def robust(name: str, **metrics: float) -> Model:
    rows = {("imagenet", "val", "top1"): 0.8} | {("imagenet-c", "mean", metric): v for metric, v in metrics.items()}
    results = {row: Result(*row, value, None, 50) for row, value in rows.items()}
    return Model(name, ModelRef.of(FakeRuntime().info, "linear head"), "imagenet", results)


def test_a_mean_over_a_part_of_imagenet_c_is_not_shown_as_that_of_all() -> None:
    (table,) = tables_of([robust("whole", error=0.402, mce=0.512), robust("part", error=0.123)], ["2"])
    lines = {line.name: line for line in table.lines}
    assert set(lines["whole"].values) == {"imagenet", "error", "mce"}
    assert set(lines["part"].values) == {"imagenet"}
    (mark,) = [mark for mark, text in table.notes if text == PARTIAL]
    assert lines["part"].marks == (mark,) and lines["whole"].marks == ()
    assert "12.3" not in markdown(table)
