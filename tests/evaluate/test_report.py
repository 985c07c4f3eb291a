"""The report: layouts, merging and refusing, effective robustness, and the command line."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digpt.errors import ConfigError
from digpt.results import ModelRef, Result, ResultsDocument, with_fingerprint, write_results
from evaluate.effective import expit, logit
from evaluate.population import SETS, SHIFTED
from evaluate.report import main
from evaluate.report_models import Model, Source, gather, protocol_differences
from evaluate.table_formats import markdown
from evaluate.tables import Table, tables_of

IMAGES = {
    "imagenet": ("val", 50_000),
    "imagenet-real": ("val", 46_837),
    "imagenet-v2": ("matched-frequency", 10_000),
    "imagenet-a": ("test", 7_500),
    "imagenet-r": ("test", 30_000),
    "imagenet-sketch": ("test", 50_889),
}
CORRUPTED = {"error": 0.402, "mce": 0.512, "relative_mce": 0.655}


def result(dataset: str, split: str, metric: str, value: float, n: int) -> Result:
    return Result(dataset, split, metric, value, (value - 0.01, value + 0.01), n)


def document(
    model_name: str,
    top1: dict[str, float],
    more: tuple[Result, ...] = (),
    *,
    classifier: str | None = "linear head",
    model: dict[str, Any] | None = None,
    **protocol: Any,
) -> ResultsDocument:
    """A document of the ImageNet family; ``top1`` in fractions by set."""
    lines = [
        {"dataset": key, "split": IMAGES[key][0], "images": IMAGES[key][1], "fingerprint": f"sha256:{key}"}
        for key in top1
    ]
    restricted = {key: 200 for key in top1 if key in ("imagenet-a", "imagenet-r")}
    values = {
        "name": "imagenet",
        "version": 1,
        "sets": lines,
        "limit": None,
        "preview": None,
        "seed": 0,
        "classification": {"top": [1, 5], "restricted": restricted},
        **protocol,
    }
    rows = tuple(result(key, IMAGES[key][0], "top1", value, IMAGES[key][1]) for key, value in top1.items())
    return ResultsDocument(
        model=reference(model_name, classifier, **(model or {})),
        protocol=with_fingerprint(values),
        results=(*rows, *more),
    )


def reference(name: str, classifier: str | None, **changes: Any) -> ModelRef:
    values: dict[str, Any] = {
        "spec": name,
        "fingerprint": f"sha256:{name}",
        "backend": "torch",
        "name": name,
        "precision": "float32",
        "has_text": classifier == "zero-shot",
        "preprocess": {"size": 224},
        "templates": (),
        "classifier": classifier,
    }
    return ModelRef(**{**values, **changes})


def emoji(name: str, top1: dict[str, float], more: tuple[Result, ...] = (), **protocol: Any) -> ResultsDocument:
    sets = [{"dataset": "emoji", "split": key, "images": 100, "fingerprint": f"sha256:{key}"} for key in top1]
    values = {"name": "emoji", "version": 2, "sets": sets, "limit": None, "seed": 0, **protocol}
    rows = tuple(result("emoji", key, "top1", value, 100) for key, value in top1.items())
    return ResultsDocument(
        model=reference(name, "zero-shot"), protocol=with_fingerprint(values), results=(*rows, *more)
    )


def models(*documents: ResultsDocument, **options: Any) -> list[Model]:
    return gather([Source(Path(f"d{n}"), each) for n, each in enumerate(documents)], **options)


def corruptions(**values: float) -> tuple[Result, ...]:
    return tuple(result("imagenet-c", "mean", metric, value, 75 * 50_000) for metric, value in values.items())


def cells(table: Table, name: str) -> dict[str, str]:
    """A row of the Markdown by the titles of its columns."""
    rows = [line.split(" | ") for line in markdown(table).splitlines() if line.startswith("|")]
    row = next(row for row in reversed(rows) if row[0].startswith(f"| {name}"))
    return {re.sub("<.*", "", title.strip("| ")): cell.strip("| ") for title, cell in zip(rows[0], row, strict=True)}


# --------------------------------------------------------------------------------------------------------- layouts

MARKDOWN = """### The bundled emoji set, top-1 by split

| Model | seen | val | flat | contrast | unseen | corrupted, error ↓<sup>a</sup> | kNN val<sup>b</sup> |
| --- | --: | --: | --: | --: | --: | --: | --: |
| **Evaluated here** |  |  |  |  |  |  |  |
| first | 90.0 [89.0, 91.0] | 40.0 [39.0, 41.0] |  |  |  | 55.5 [54.5, 56.5] |  |
| b_2 \\| 100%<sup>c,d</sup> | 80.0 [79.0, 81.0] |  |  |  |  |  | 12.0 [11.0, 13.0] |

Values in % with their 95 % bootstrap interval.

<sup>a</sup> Top-1 error on flat under corruptions made in memory, mean over corruptions and severities.

<sup>b</sup> Top-1 over the subgroups, k = 20.

<sup>c</sup> Asked differently than first: emoji/seen: limit: 10 against null.

<sup>d</sup> A seeded subset of at most 10 images per split.
"""
LATEX = r"""\begin{table}
\centering
\caption{The bundled emoji set, top-1 by split}
\label{tab:emoji}
\begin{tabular}{lrrrrrrr}
\toprule
Model & seen & val & flat & contrast & unseen & corrupted, error $\downarrow$\textsuperscript{a} & kNN val\textsuperscript{b} \\
\midrule
\multicolumn{8}{l}{\emph{Evaluated here}} \\
first & 90.0 {\scriptsize $[89.0, 91.0]$} & 40.0 {\scriptsize $[39.0, 41.0]$} &  &  &  & 55.5 {\scriptsize $[54.5, 56.5]$} &  \\
b\_2 \textbar{} 100\%\textsuperscript{c,d} & 80.0 {\scriptsize $[79.0, 81.0]$} &  &  &  &  &  & 12.0 {\scriptsize $[11.0, 13.0]$} \\
\bottomrule
\end{tabular}

{\footnotesize Values in \% with their 95 \% bootstrap interval.
\par \textsuperscript{a} Top-1 error on flat under corruptions made in memory, mean over corruptions and severities.
\par \textsuperscript{b} Top-1 over the subgroups, k = 20.
\par \textsuperscript{c} Asked differently than first: emoji/seen: limit: 10 against null.
\par \textsuperscript{d} A seeded subset of at most 10 images per split.
\par}
\end{table}
"""  # noqa: E501 - as it is written
FIRST, EMPTY = '<td data-v="80.0" class="num">80.0 [79.0, 81.0]</td>', '<td class="num"></td>'
HTML = f'{FIRST}{EMPTY * 5}<td data-v="12.0" class="num">12.0 [11.0, 13.0]</td></tr>'


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    """Two made-up documents of the bundled set on disk, the second of a subset."""
    one = emoji("first", {"seen": 0.9, "val": 0.4}, (result("emoji-c-on-the-fly", "mean", "error", 0.555, 100),))
    knn = tuple(result("emoji", "val", f"knn_top1_k{k}", value, 100) for k, value in ((10, 0.11), (20, 0.12)))
    two = emoji("b_2 | 100%", {"seen": 0.8}, knn, limit=10)
    return [str(write_results(each, tmp_path / name / "results.json")) for name, each in (("1", one), ("2", two))]


def test_layout_in_every_format(pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*pair, "--allow-mixed"]) == 0
    assert capsys.readouterr().out == MARKDOWN
    out = tmp_path / "out"
    assert main([*pair, "--allow-mixed", "--format", "latex", "html", "--output", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.tex"]
    assert (out / "report.tex").read_text() == LATEX
    page = (out / "report.html").read_text()
    assert HTML in page and "<h2>The bundled emoji set, top-1 by split</h2>" in page
    assert page.count('<tr class="marked">') == 2 and "kNN val<sup>b</sup>" in page
    assert "http" not in page.replace("http-equiv", "")  # needs nothing from anywhere


def test_the_papers_rows_come_first_and_ours_carry_intervals() -> None:
    sets = {"imagenet": 0.862, "imagenet-v2": 0.764, "imagenet-a": 0.563}
    found = tables_of(models(document("mine", sets, corruptions(**CORRUPTED))))
    assert [table.id for table in found] == ["1", "2"]  # no zero-shot model, no emoji
    one, two = found
    sources = [line.source for line in two.lines]
    assert sources == ["paper"] * 12 + ["published"] * 3 + ["ours"]
    assert cells(one, "mine") == {
        "Method": "mine",
        "Pretraining epochs": "",
        "Tokenizer/Teacher": "",
        "ImageNet top-1": "86.2 [85.2, 87.2]",
        "ADE20K mIoU": "",
    }
    mine = cells(two, "mine")
    assert (mine["IN-V2"], mine["IN-Adversarial"], mine["IN-Real"]) == ("76.4 [75.4, 77.4]", "56.3 [55.3, 57.3]", "")
    assert "| FD | 300 | CLIP | 84.8 | - |" in markdown(one) and "| BEiT | 800 | DALLE | 84.0 |  |" in markdown(one)


def test_the_corruption_columns_never_mix() -> None:
    memory = result("imagenet-c-on-the-fly", "mean", "error", 0.35, 75 * 50_000)
    both = models(
        document("disk", {"imagenet": 0.8}, corruptions(**CORRUPTED)), document("ram", {"imagenet": 0.7}, (memory,))
    )
    (table,) = tables_of(both, ["2"])
    disk, ram, paper = cells(table, "disk"), cells(table, "ram"), cells(table, "D-iGPT")
    names = ("IN-Corruption", "IN-C error ↓", "IN-C mCE ↓", "IN-C relative mCE ↓", "on-the-fly error ↓")
    assert [disk[name][:4] for name in names] == ["", "40.2", "51.2", "65.5", ""]
    assert [ram[name][:4] for name in names] == ["", "", "", "", "35.0"]
    assert [paper[name] for name in names] == ["24.7", "", "", "", ""]
    notes = dict(table.notes)
    marked = {column.title: notes[column.mark] for column in table.columns if column.mark}
    assert "most likely not mCE" in marked["IN-Corruption"] and "51.7" in marked["IN-Corruption"]
    assert "not comparable" in marked["on-the-fly error ↓"]
    (without,) = tables_of(both[:1], ["2"])
    assert "on-the-fly" not in markdown(without)


def test_zero_shot_models_stand_in_tables_2_and_4_alone() -> None:
    found = tables_of(models(document("clip", {"imagenet": 0.6834, "imagenet-r": 0.777}, classifier="zero-shot")))
    assert [table.id for table in found] == ["2", "4"]
    assert cells(found[0], "clip")["Method"] == "clip, zero-shot"
    assert cells(found[1], "clip")["top-1"] == "68.3 [67.3, 69.3]"
    assert cells(found[1], "CLIP openai")["top-1"] == "75.54"  # as printed, not rounded


# --------------------------------------------------------------------------------------------- merging and refusing


def test_documents_of_one_model_are_merged() -> None:
    one = document("mine", {"imagenet": 0.862, "imagenet-real": 0.896})
    two = document("mine", {"imagenet": 0.862, "imagenet-r": 0.643})  # R's restriction is no difference
    (merged,) = models(one, two)
    assert {row[0] for row in merged.results} == {"imagenet", "imagenet-real", "imagenet-r"}
    assert merged.notes == ()
    neighbours = document("mine", {}, (result("imagenet", "val", "knn_top1_k20", 0.7, 50_000),), classifier=None)
    assert len(models(one, neighbours)) == len(models(neighbours, one)) == 1
    assert [m.label for m in models(one, document("other", {"imagenet": 0.862}))] == ["mine", "other"]


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"backend": "onnx", "precision": "float16"}, "mine (onnx float16)"),
        ({"fingerprint": "sha256:0123456789"}, "mine (01234567)"),
        ({"templates": ("a {}",)}, "mine (templates 'a {}')"),
        ({"preprocess": {"size": 224, "crop_pct": 0.875}}, "mine (crop_pct 0.875)"),
    ],
)
def test_models_that_answer_differently_are_not_merged(changes: dict[str, Any], label: str) -> None:
    both = models(document("mine", {"imagenet": 0.862}), document("mine", {"imagenet": 0.861}, model=changes))
    assert [len(both), both[1].label] == [2, label]


def test_conflicting_values_are_refused() -> None:
    one, other = document("mine", {"imagenet": 0.862}), document("mine", {"imagenet": 0.86198})
    with pytest.raises(
        ConfigError, match=r"d0 and d1 give different values of imagenet / val / top1.*0\.862.*0\.86198"
    ):
        models(one, other)
    with pytest.raises(ConfigError, match="different values"):
        models(one, other, allow_mixed=True)


IMAGENET_LINE = {"dataset": "imagenet", "split": "val", "images": 50_000, "fingerprint": "sha256:imagenet"}
MADE = {"of": "imagenet/val", "side": 224}


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({}, {"limit": 100}, "imagenet/val: limit: 100 against null"),
        ({}, {"preview": 0.1}, "imagenet/val: preview: 0.1 against null"),
        ({}, {"seed": 1}, "imagenet/val: seed: 1 against 0"),
        ({}, {"version": 2}, "imagenet/val: version: 2 against 1"),
        ({}, {"name": "images"}, 'imagenet/val: name: "images" against "imagenet"'),
        ({}, {"sets": [{**IMAGENET_LINE, "images": 9}]}, "imagenet/val: images: 9 against 50000"),
        ({}, {"sets": [{**IMAGENET_LINE, "fingerprint": "sha256:x"}]}, "imagenet/val: fingerprint"),
        ({}, {"classification": {"top": [1]}}, "imagenet/val: classification.top"),
        ({"corruptions": MADE}, {"corruptions": {**MADE, "side": 384}}, "imagenet-c-on-the-fly: corruptions.side"),
        ({"knn": {"k": [10]}}, {"knn": {"k": [20]}}, "imagenet/val: knn.k.0: 20 against 10"),
    ],
)
def test_different_questions_are_refused(one: dict[str, Any], other: dict[str, Any], message: str) -> None:
    documents = document("a", {"imagenet": 0.8}, **one), document("b", {"imagenet": 0.7}, **other)
    with pytest.raises(ConfigError, match=f"d1 and d0 were asked different questions.*{re.escape(message)}"):
        models(*documents)
    mixed = models(*documents, allow_mixed=True)
    assert mixed[0].notes == () and f"Asked differently than a: {message}" in mixed[1].notes[0]


def test_questions_about_other_sets_make_no_difference() -> None:
    one = document("a", {"imagenet": 0.8}, corruptions={"side": 224}).protocol
    other = document("b", {"imagenet": 0.7, "imagenet-r": 0.5}, knn={"k": [20]}).protocol
    assert list(protocol_differences(one, other)) == []
    apart = document("c", {"imagenet-a": 0.5}, limit=10).protocol
    assert list(protocol_differences(one, apart)) == []
    old = {"name": "emoji", "version": 1, "splits": ["seen"]}  # from before protocols had a line per set
    assert list(protocol_differences(old, emoji("e", {"seen": 0.5}).protocol)) != []


def test_with_mixed_protocols_one_model_may_have_two_rows() -> None:
    whole, part = document("a", {"imagenet": 0.8}), document("a", {"imagenet": 0.75}, limit=100)
    found = models(whole, part, allow_mixed=True)
    assert [model.results["imagenet", "val", "top1"].value for model in found] == [0.8, 0.75]


# ------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    sets = dict(zip(SETS, (0.862, 0.764, 0.896, 0.563, 0.643, 0.485), strict=True))
    found = {"b16": document("d_igpt_b16", sets, corruptions(**CORRUPTED))}
    clip = dict(zip(("imagenet", "imagenet-v2", "imagenet-r"), (0.6834, 0.6188, 0.777), strict=True))
    found["clip"] = document("<i>clip</i>", clip, classifier="zero-shot")
    return [str(write_results(each, tmp_path / name / "results.json").parent) for name, each in found.items()]


@pytest.fixture
def population(tmp_path: Path) -> str:
    """60 models on one line for every set: slope 1.1, intercept -0.8."""
    path = tmp_path / "population.csv"
    with open(path, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["model", "trained_on", *SETS])
        for row, clean in enumerate(np.linspace(0.6, 0.87, 60)):
            shifted = float(expit(1.1 * logit(clean) - 0.8))
            writer.writerow([f"m{row}", "imagenet-1k", 100 * clean, *[100 * shifted] * len(SHIFTED)])
    return str(path)


def test_effective_robustness_of_the_papers_rows_and_ours(
    runs: list[str], population: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*runs, "--population", population, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [table["table"] for table in found["tables"]] == ["1", "2", "4"]
    effective = found["effective_robustness"]
    assert effective["baselines"]["imagenet-r"] == pytest.approx(
        {"slope": 1.1, "intercept": -0.8, "r2": 1.0, "models": 60}
    )
    gains = {(row["source"], row["name"]): row["values"] for row in effective["rows"]}
    expected = 100 * (0.777 - float(expit(1.1 * logit(0.6834) - 0.8)))
    assert gains["ours", "<i>clip</i>, zero-shot"]["imagenet-r"]["value"] == pytest.approx(expected)
    assert gains["ours", "<i>clip</i>, zero-shot"]["imagenet-r"]["ci95"][0] > 20
    assert set(gains["ours", "<i>clip</i>, zero-shot"]) == {"imagenet-v2", "imagenet-r"}
    mine, paper = gains["ours", "d_igpt_b16"]["imagenet-r"], gains["paper", "D-iGPT"]["imagenet-r"]
    assert len(effective["rows"]) == 12 + 2
    assert mine["ci95"] is not None and paper["ci95"] is None


def test_the_page_draws_each_set_and_prints_the_fit(runs: list[str], population: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert main([*runs, "--population", population, "--output", str(path)]) == 0  # the format is the suffix's
    page = path.read_text()
    assert page.count('class="scatter"') == 5 and page.count("slope 1.10, intercept -0.80, R² 1.00") == 5
    assert "60 standard models" in page and page.count('class="large"') == 5 + 2
    assert "<i>clip</i>" not in page and "&lt;i&gt;clip&lt;/i&gt;" in page
    assert "default-src &#39;none&#39;" in page


def test_tables_can_be_asked_for(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([runs[0], "--table", "4", "2", "4"]) == 0
    shown = capsys.readouterr().out
    assert re.findall("^### .*Table (.)", shown, re.MULTILINE) == ["4", "2"]
    assert "OpenClip" in shown and "Population: 7 timm checkpoints" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "at least one DIR"),
        (["{runs}", "--format", "html", "latex"], "one format"),
        (["{runs}", "--json", "--format", "html"], "one format"),
        (["{runs}", "--format", "html", "latex", "--output", "{runs}/results.json"], "is a file"),
        (["{runs}/nowhere"], "no results at"),
        (["{runs}", "--population", "nowhere.csv"], "pytorch-image-models"),
    ],
)
def test_usage_errors(runs: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([argument.format(runs=runs[0]) for argument in arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.out == ""


def test_results_of_ones_own_pictures_have_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the folder of pictures is called imagenet."""
    write_results(document("mine", {"imagenet": 0.9}, name="images"), tmp_path / "results.json")
    assert main([str(tmp_path)]) == 2
    assert "None of these results stand in a table" in capsys.readouterr().err


def test_bad_flags_end_with_exit_code_2() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--table", "3"])
    assert stopped.value.code == 2


def test_a_file_that_cannot_be_written_is_told(runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert main([runs[0], "--output", str(tmp_path / "taken" / "page.html")]) == 2
