"""Draw the figures of docs/explanation/objective.md from the objective itself, so that they cannot disagree with it.

    python -m scripts.objective_figure                    # into docs/images; --output DIR elsewhere

A small D-iGPT with the grids of ViT-B/16 and a teacher with 16 x 16 tokens is built. Its clusters and its mask are
read from it; which pixels reach a prediction is found by gradients, and what a prediction is compared with by changing
the targets.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from digpt.encoder import VARIANTS, build_encoder, encoder_config
from scripts.drawing import Figure
from train.objective import DigptConfig, DigptObjective
from train.objective.clusters import ClusterLayout
from train.objective.spaces import TargetSpace

VARIANT, IMAGE, TEACHER_GRID = "B/16", 224, (16, 16)
ORDER = (2, 0, 3, 1)  # of the four clusters, an example
IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th", "9th")


@dataclass(frozen=True)
class Facts:
    """What the figures show, all of it taken from ``objective``.

    Attributes:
        order: the raster numbers of the clusters in the order of the example's permutation.
        sees: by branch, bool ``[K, K]``: whether the predictions of a step (the last row: of the class query) depend
            on the pixels of the cluster at a place of the order.
        predicts: by branch, for each of the K-1 steps, the place of the cluster whose targets it is compared with.
    """

    objective: DigptObjective
    order: tuple[int, ...]
    sees: dict[str, Tensor]
    predicts: dict[str, tuple[int, ...]]

    @property
    def count(self) -> int:
        """K."""
        return self.objective.units


def facts() -> Facts:
    """Build a small objective with the grids of the paper's base model, and ask it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = build_encoder(encoder_config(VARIANT, IMAGE, embed_dim=48, num_heads=3))
        config = DigptConfig(decoder_width=32, decoder_heads=2)
        objective = DigptObjective(encoder, config, TargetSpace("tokens", TEACHER_GRID, 8)).eval()
        images, targets = torch.randn(1, 3, IMAGE, IMAGE), torch.randn(1, 1 + TEACHER_GRID[0] * TEACHER_GRID[1], 8)
    permutation = torch.tensor([ORDER])
    sees, predicts = _sees(objective, images, permutation), _predicts(objective, images, targets, permutation)
    return Facts(objective, ORDER, sees, predicts)


def _sees(objective: DigptObjective, images: Tensor, permutation: Tensor) -> dict[str, Tensor]:
    """By gradients: do any pixels of the cluster at a place reach any prediction of a step?"""
    images, patch = images.clone().requires_grad_(), IMAGE // objective.layout.grid[0]
    found = {}
    for branch, prediction in objective.predict(images, permutation).items():
        steps = [*prediction[0, :-1].split(objective.layout.size), prediction[0, -1:]]
        rows = []
        for step in steps:
            (gradient,) = torch.autograd.grad(step.square().sum(), images, retain_graph=True)
            patches = torch.nn.functional.unfold(gradient, patch, stride=patch).mT  # [1,N,.]
            reached = (objective.layout.to_clusters(patches)[0] != 0).flatten(1).any(1)  # [K], raster
            rows.append(reached[permutation[0]])
        found[branch] = torch.stack(rows)
    return found


@torch.no_grad()
def _predicts(
    objective: DigptObjective, images: Tensor, targets: Tensor, permutation: Tensor
) -> dict[str, tuple[int, ...]]:
    """By changing the targets of one cluster at a time: whose loss changes with them?"""
    before = objective(images, targets, permutation).steps
    owner = ClusterLayout(TEACHER_GRID, objective.config.cluster_grid).to_clusters(
        torch.arange(TEACHER_GRID[0] * TEACHER_GRID[1])[None, :, None]
    )[0, :, :, 0]
    found: dict[str, list[int]] = {branch: [-1] * (objective.units - 1) for branch in objective.branches}
    for place, cluster in enumerate(permutation[0].tolist()):
        changed = targets.clone()
        changed[:, 1 + owner[cluster]] *= -1
        after = objective(images, changed, permutation).steps
        for branch, places in found.items():
            for step in (after[branch] != before[branch]).nonzero().flatten().tolist():
                assert places[step] < 0, "a step that is compared with two clusters"
                places[step] = place
    return {branch: tuple(places) for branch, places in found.items()}


# ------------------------------------------------------------------------------------------------------- the figures


def clusters_figure(found: Facts) -> Figure:
    """The image's and the teacher's grid, cut into clusters, in the order of an example."""
    student, teacher = found.objective.layout, found.objective.teacher_layout
    last = ORDINALS[found.count - 1]
    figure = Figure(
        760,
        340,
        "Clusters and their order",
        f"Two grids of {found.count} clusters in a random order; the {last} is out.",
    )
    _grid(figure, 30, 64, student, found.order, "encoder")
    figure.text(30, 30, f"image: {_by(student.grid)} patches", "strong")
    figure.text(30, 48, f"K = {found.count} clusters of S = {student.size} patches", "soft small")
    _grid(figure, 300, 64, teacher, found.order, "target")
    figure.text(300, 30, f"teacher: {_by(teacher.grid)} tokens", "strong")
    figure.text(300, 48, f"the same clusters, of {teacher.size} tokens", "soft small")
    figure.text(560, 30, "one order per sample", "strong")
    for place, cluster in enumerate(found.order):
        enters = place < found.count - 1
        words = f"{ORDINALS[place]}: cluster {cluster}"
        figure.box(560, 64 + 50 * place, 170, 40, words, "encoder" if enters else "plain none")
    figure.text(560, 64 + 50 * found.count + 10, f"The {last} is never encoded:\nit is only predicted.", "soft small")
    figure.text(
        30, 314, "Numbers of clusters count in raster order; the order is drawn anew for each sample.", "soft small"
    )
    return figure


def _grid(figure: Figure, x: float, y: float, layout: ClusterLayout, order: Sequence[int], kind: str) -> None:
    """Every token as a square; a cluster's name in its middle."""
    side = 224 / layout.grid[1]
    cells = layout.to_clusters(torch.arange(layout.grid[0] * layout.grid[1])[None, :, None])[0, :, :, 0]
    for place, cluster in enumerate(order):
        out = place == len(order) - 1
        rows, columns = cells[cluster] // layout.grid[1], cells[cluster] % layout.grid[1]
        corners = [
            (x + column * side, y + row * side) for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        ]
        figure.squares(corners, side, "plain" if out and kind == "encoder" else kind, data_cluster=cluster)
        left, top = x + int(columns.min()) * side, y + int(rows.min()) * side
        width, height = layout.cluster_shape[1] * side, layout.cluster_shape[0] * side
        figure.rect(left + 1, top + 1, width - 2, height - 2, f"{kind} outline", fill_opacity="0", stroke_width=2)
        figure.text(left + width / 2, top + height / 2, f"cluster {cluster}", "strong", "middle")
        figure.text(left + width / 2, top + height / 2 + LINE_BELOW, ORDINALS[place], "", "middle")


LINE_BELOW = 18  # from a cluster's name to its place


def mask_figure(found: Facts) -> Figure:
    """The mask as blocks of equal rows and columns; each says which part of the matrix it stands for."""
    mask, size = found.objective.mask, found.objective.layout.size
    edges = [*range(0, len(mask), size), len(mask)]
    names = [f"{ORDINALS[i]} cluster" for i in range(found.count - 1)] + ["class token"]
    spans = list(pairwise(edges))
    widths = [96 if stop - start > 1 else 48 for start, stop in spans]
    tokens = len(mask)
    figure = Figure(
        520, 490, "The attention mask", f"{tokens} by {tokens}: block-causal, the class token in the last cluster."
    )
    left, top = 150, 100
    figure.text(24, 30, f"{tokens} × {tokens}: may the row attend to the column?", "strong")
    y = float(top)
    for name, (start, stop), height in zip(names, spans, widths, strict=True):
        figure.text(left - 12, y + height / 2 - (2 if height > 60 else -4), name, "", "end")
        if height > 60:
            figure.text(left - 12, y + height / 2 + 15, f"{stop - start} tokens", "soft small", "end")
        x = float(left)
        for title, (first, last), width in zip(names, spans, widths, strict=True):
            if y == top:
                figure.text(x + width / 2, top - 26, title.replace(" token", "").replace(" cluster", ""), "", "middle")
            block = mask[start:stop, first:last]
            allowed = bool(block.all())
            assert allowed == bool(block.any()), "a block that is neither full nor empty"
            span = {"data_rows": f"{start}:{stop}", "data_columns": f"{first}:{last}", "data_attends": int(allowed)}
            figure.rect(x, y, width, height, "encoder" if allowed else "plain none", **span)
            if allowed:
                figure.text(x + width / 2, y + height / 2 + 5, "yes", "", "middle")
            x += width
        y += height
    figure.text(left + 120, top - 48, "column: keys and values", "soft small", "middle")
    figure.text(24, y + 28, "The class token's row and column are drawn wider than one token.", "soft small")
    return figure


def steps_figure(found: Facts) -> Figure:
    """For each decoder: which clusters' pixels reach a step's predictions, and what these are compared with."""
    figure = Figure(
        780,
        330,
        "What each step sees and predicts",
        "Two tables, Gen and Dis: clusters seen by each step, and its target.",
    )
    for number, (branch, sees) in enumerate(found.sees.items()):
        x, y = 24 + 380 * number, 30
        figure.text(x, y, f"{branch.capitalize()} decoder", "strong")
        for place in range(found.count):
            figure.text(x + 100 + 40 * place, y + 28, ORDINALS[place], "small", "middle")
        figure.text(x + 80, y + 46, "cluster's pixels seen", "soft small")
        figure.text(x + 270, y + 28, "predicts", "small", "middle")
        for step, row in enumerate(sees.tolist()):
            top, of_class = y + 58 + 52 * step, step == found.count - 1
            figure.text(x, top + 25, "class query" if of_class else f"step {step + 1}")
            for place, seen in enumerate(row):
                what = {"data_branch": branch, "data_step": step, "data_place": place, "data_sees": int(seen)}
                figure.rect(x + 82 + 40 * place, top, 36, 40, branch if seen else "plain none", **what)
                if seen:
                    figure.text(x + 100 + 40 * place, top + 25, "yes", "small", "middle")
            target = "class token" if of_class else f"{ORDINALS[found.predicts[branch][step]]} cluster"
            figure.arrow((x + 82 + 40 * found.count, top + 20), (x + 262, top + 20))
            figure.box(x + 264, top + 4, 92, 32, target, "target", "small")
    figure.text(24, 314, "Seen: by gradients of the predictions. Predicts: by changing the targets.", "soft small")
    return figure


def decoders_figure(found: Facts) -> Figure:
    """From pixels to the loss: encoder with taps, the two decoders, the frozen teacher."""
    config, layout, teacher = DigptConfig(), found.objective.layout, found.objective.teacher_layout
    tokens, depth, width = len(found.objective.mask), VARIANTS[VARIANT][3], VARIANTS[VARIANT][2]
    figure = Figure(
        872,
        520,
        "From pixels to the loss",
        "Encoder with four taps, two decoders, a frozen teacher and the cosine loss.",
    )
    figure.text(24, 30, f"encoder ({VARIANT}), N = {tokens} tokens", "strong")
    for block in range(1, depth + 1):
        y, tapped = 440 - 31 * block, block in found.objective.taps
        figure.box(40, y, 120, 25, f"block {block}", "encoder" if tapped else "plain", "small")
        if tapped:
            figure.arrow((160, y + 12), (208, y + 12))
    figure.box(40, 446, 120, 52, f"first {found.count - 1} clusters\n+ class token", "plain", "small")
    figure.box(210, 60, 34, 216, "taps", "encoder", "small")
    for branch, y in (("gen", 44), ("dis", 200)):
        predicted = f"2 … {found.count}" if branch == "gen" else f"1 … {found.count - 1}"
        figure.arrow((244, y + 56), (272, y + 56))
        figure.box(274, y + 16, 104, 80, "norm each,\nconcatenate,\nlinear", branch, "small")
        figure.arrow((378, y + 56), (402, y + 56))
        blocks = f"{config.decoder_depth} blocks of width {config.decoder_width}"
        words = f"{branch.capitalize()} decoder\n{blocks}\nself, cross, MLP"
        figure.box(404, y + 6, 176, 100, words, branch)
        figure.text(404, y + 124, f"queries: [{branch.capitalize()}] + positions", "small")
        figure.text(404, y + 140, f"of clusters {predicted}; class", "small")
        figure.arrow((580, y + 56), (604, y + 56))
        resize = f"{_by(layout.cluster_shape)} → {_by(teacher.cluster_shape)}"
        figure.box(606, y + 16, 104, 80, f"norm, linear\nto width T,\n{resize}", branch, "small")
        figure.arrow((710, y + 56), (736, y + 56))
        figure.box(738, y + 16, 100, 80, "mean of\n2 − 2·cos", "plain")
    figure.box(210, 400, 168, 60, "frozen teacher,\nthe whole image", "target")
    figure.box(
        404,
        400,
        306,
        60,
        f"{_by(teacher.grid)} tokens of width T in the same\nclusters and order, and a class token",
        "target",
        "small",
    )
    figure.arrow((378, 430), (402, 430))
    for y in (100, 256):
        figure.arrow((710, 430), (852, 430), (852, y), (840, y))
    figure.text(
        210, 492, f"C = {width}; the mask is the same in the encoder and in both attentions of a decoder.", "soft small"
    )
    return figure


def _by(grid: tuple[int, int]) -> str:
    return f"{grid[0]} × {grid[1]}"


FIGURES = {
    "objective-clusters": clusters_figure,
    "objective-mask": mask_figure,
    "objective-steps": steps_figure,
    "objective-decoders": decoders_figure,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write every figure; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=IMAGES)
    output: Path = parser.parse_args(argv).output
    found = facts()
    for name, draw in FIGURES.items():
        (output / f"{name}.svg").write_text(draw(found).render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
