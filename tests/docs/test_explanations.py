"""docs/explanation: figures show what the code does, tables what commands print, and links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from digpt.encoder import build_encoder, encoder_config
from evaluate import imagenet, knn
from scripts.hops_figure import DOORS, hops_figure
from scripts.objective_figure import FIGURES, Facts, facts
from train import pretrain
from train.config import main
from train.objective import DigptObjective, build_paradigm

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.stem: path for path in (ROOT / "docs" / "explanation").glob("*.md")}
IMAGES = ROOT / "docs" / "images"
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def found() -> Facts:
    return facts()


def drawn(name: str) -> ElementTree.Element:
    return ElementTree.parse(IMAGES / f"{name}.svg").getroot()


def shapes(figure: ElementTree.Element, attribute: str) -> list[dict[str, str]]:
    return [shape.attrib for shape in figure.iter() if attribute in shape.attrib]


def span(text: str) -> slice:
    start, stop = text.split(":")
    return slice(int(start), int(stop))


# ------------------------------------------------------------------------------------------------------------- figures


def test_the_figures_are_those_that_the_scripts_draw(found: Facts) -> None:
    for name, draw in FIGURES.items():
        assert (IMAGES / f"{name}.svg").read_text(encoding="utf-8") == draw(found).render(), name
    assert (IMAGES / "parity-hops.svg").read_text(encoding="utf-8") == hops_figure().render()


def test_the_mask_in_the_figure_is_the_mask_of_the_default_objective() -> None:
    encoder = build_encoder(encoder_config("B/16", 224, embed_dim=48, num_heads=3))
    options = {"decoder_width": 32, "decoder_heads": 2}
    objective = build_paradigm("digpt", encoder, teacher_grid=(16, 16), teacher_width=8, **options)
    assert isinstance(objective, DigptObjective) and objective.mask.shape == (148, 148)
    mask = torch.zeros_like(objective.mask)
    covered = torch.zeros(mask.shape, dtype=torch.int64)
    for block in shapes(drawn("objective-mask"), "data-attends"):
        rows, columns = span(block["data-rows"]), span(block["data-columns"])
        mask[rows, columns] = block["data-attends"] == "1"
        covered[rows, columns] += 1
    assert (covered == 1).all()
    assert torch.equal(mask, objective.mask)


def test_a_step_sees_the_clusters_up_to_its_own_and_never_the_last() -> None:
    cells = shapes(drawn("objective-steps"), "data-sees")
    assert len(cells) == 2 * 4 * 4
    for cell in cells:
        step, place = int(cell["data-step"]), int(cell["data-place"])
        assert int(cell["data-sees"]) == (place <= step and place < 3), cell


def test_gen_predicts_the_next_cluster_and_dis_the_present_one(found: Facts) -> None:
    assert found.predicts == {"gen": (1, 2, 3), "dis": (0, 1, 2)}
    words = [text.text for text in drawn("objective-steps").iter("{http://www.w3.org/2000/svg}text")]
    targets = [word for word in words if word and (word.endswith(" cluster") or word == "class token")]
    assert targets == [
        *("2nd cluster", "3rd cluster", "4th cluster", "class token"),
        *("1st cluster", "2nd cluster", "3rd cluster", "class token"),
    ]


def test_the_clusters_in_the_figure_hold_the_patches_that_the_layout_gives_them(found: Facts) -> None:
    """Corners of squares, by cluster: each cluster is a quarter of the grid, where its raster number says."""
    student = shapes(drawn("objective-clusters"), "data-cluster")[:4]
    for path in student:
        corners = [tuple(map(float, corner)) for corner in re.findall(r"M([\d.]+) ([\d.]+)h", path["d"])]
        assert len(corners) == found.objective.layout.size
        row, column = divmod(int(path["data-cluster"]), 2)
        assert min(corners) == (30 + 112 * column, 64 + 112 * row)


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.svg")), ids=lambda path: path.stem)
def test_figures_read_in_light_and_dark_and_by_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert "@media (prefers-color-scheme: dark)" in text
    assert root.attrib["role"] == "img" and root.find("{*}title") is not None and root.find("{*}desc") is not None
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for words in root.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 < float(words.attrib["x"]) < width and 0 < float(words.attrib["y"]) < height - 4, words.text


def test_the_doors_of_the_hops_are_files() -> None:
    assert [path for _, path in DOORS if not (ROOT / path).is_file()] == []


# --------------------------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize("name", sorted(PAGES))
def test_links_lead_to_files_and_headings(name: str) -> None:
    page = PAGES[name]
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, target


def test_the_objective_page_counts_tokens_as_the_objective_does(found: Facts) -> None:
    page = PAGES["objective"].read_text(encoding="utf-8")
    steps, size = found.count - 1, found.objective.teacher_layout.size
    assert f"one token of {steps * size + 1}," in page
    assert f"N = (K − 1)·S + 1 = {len(found.objective.mask)} tokens" in page


def blocks(page: str, language: str) -> list[list[str]]:
    """The lines of every fenced block of a language."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", page, re.DOTALL | re.MULTILINE)
    return [[line.strip() for line in block.splitlines()] for block in found]


def table(page: str, head: str) -> list[list[str]]:
    """The rows of the table whose first line begins with ``head``."""
    lines = iter(page.splitlines())
    next(line for line in lines if line.startswith(head))
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_sweep_is_the_one_of_the_export_page() -> None:
    """Both pages state figures that were printed once; one of them cannot change alone."""
    ours = table(PAGES["parity"].read_text(encoding="utf-8"), "| engine | predictions changed")
    export = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    theirs = {row[0]: row for row in table(export, "| engine | error, % | points")}
    assert {name for row in ours for name in row[0].split(", ")} == theirs.keys()
    for names, changed, points, interval in ours:
        for name in names.split(", "):
            _, _, their_points, their_interval, their_changed, _ = theirs[name]
            assert changed == their_changed
            numbers = [re.findall(r"-?\d+\.\d+", text.replace("−", "-")) for text in (points, interval)]
            assert numbers == [re.findall(r"-?\d+\.\d+", text) for text in (their_points, their_interval)]


def said(capsys: pytest.CaptureFixture[str], command: str) -> dict[tuple[str, str], float]:
    """Run an evaluation as the page has it; its figures by split and metric."""
    _, _, name, *options = shlex.split(command)
    assert EVALUATIONS[name]([*options, "--threads", "1", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    return {(result["split"], result["metric"]): result["value"] for result in results}


EVALUATIONS = {"evaluate.imagenet": imagenet.main, "evaluate.knn": knn.main}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_changed_protocol_costs(capsys: pytest.CaptureFixture[str]) -> None:
    """The commands of docs/explanation/protocols.md print the rows of its first table."""
    page = PAGES["protocols"].read_text(encoding="utf-8")
    commands = blocks(page, "sh")[0]
    rows = table(page, "| changed | top-1, seen")
    assert len(commands) == 7
    for command, row in zip(commands, rows, strict=True):
        values = said(capsys, command)
        shown = [f"{100 * values[split, 'top1']:.1f}" for split in ("seen", "val", "flat")]
        shown += [f"{100 * values['flat', 'ece']:.1f}", f"{values['flat', 'nll']:.2f}"]
        assert row[1:] == shown, command


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_leaking_neighbours_are_worth(capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGES["protocols"].read_text(encoding="utf-8")
    clean, leaking = (100 * said(capsys, command)["flat", "knn_top1_k10"] for command in blocks(page, "sh")[1])
    assert f"says {leaking:.1f} % instead of {clean:.1f} %" in page


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_log_of_the_objective_page(tmp_path: Path) -> None:
    """Losses and baselines of docs/explanation/objective.md, to what another processor may round otherwise."""
    lines = blocks(PAGES["objective"].read_text(encoding="utf-8"), "console")[0]
    _, _, program, *options = shlex.split(lines[0].removeprefix("$ "))[:-1]
    assert program == "train.pretrain" and main("pretrain", pretrain.run, [*options, str(tmp_path)]) == 0
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    by_step = {row["step"]: row for row in logged if "gen_loss" in row}
    shown = [line for line in lines if line.startswith("step ")]
    assert [int(line.split("/")[0].removeprefix("step ")) for line in shown] == [20, 40, 60] == list(by_step)
    for line, row in zip(shown, by_step.values(), strict=True):
        figures = dict(re.findall(r"(\w*(?:loss|baseline)) (\d\.\d+)", line))
        assert len(figures) == 5
        assert {name: row[name] for name in figures} == pytest.approx(
            {name: float(value) for name, value in figures.items()}, abs=0.02
        )
