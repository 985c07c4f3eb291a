"""Properties of the D-iGPT objective, each with its positive control, and brute-force references."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from digpt.encoder import build_encoder, embed_tokens, encoder_config
from digpt.errors import ConfigError
from train.objective import DigptConfig, DigptObjective, build_paradigm, paradigm_config
from train.objective.clusters import ClusterLayout, random_permutation, visible_patches
from train.objective.digpt import tap_blocks
from train.objective.losses import MeanBaseline
from train.objective.masks import block_causal_mask

TINY: dict[str, Any] = {"decoder_width": 32, "decoder_heads": 2}
# size, patch, cluster grid, teacher's grid
ARRANGEMENTS = [
    ((64, 64), 8, (2, 2), (4, 4)),
    ((64, 64), 8, (4, 2), (8, 8)),
    ((56, 56), 14, (2, 2), (4, 4)),  # patch 14
    ((64, 64), 16, (1, 4), (4, 8)),
    ((64, 64), 16, (4, 1), (8, 4)),
    ((64, 96), 16, (2, 3), (2, 3)),  # not square
    ((64, 64), 16, (2, 2), (2, 6)),
]


def make(
    size: int | tuple[int, int] = 64,
    patch: int = 16,
    clusters: tuple[int, int] = (2, 2),
    teacher: tuple[int, int] | None = None,
    name: str = "digpt",
    **options: Any,
) -> DigptObjective:
    torch.manual_seed(0)
    config = encoder_config("Ti/16", size, patch_size=patch, embed_dim=32, num_heads=2, depth=6)
    encoder = build_encoder(config)
    grid = teacher or encoder.patch_embed.grid_size
    settings = {**TINY, "cluster_grid": clusters, **options} if name != "fd" else options
    return cast(DigptObjective, build_paradigm(name, encoder, teacher_grid=grid, teacher_width=12, **settings))


def batch(objective: DigptObjective, count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    height, width = objective.encoder.patch_embed.img_size
    tokens = objective.teacher_layout.grid[0] * objective.teacher_layout.grid[1] + 1
    images = torch.randn(count, 3, height, width, generator=generator)
    targets = torch.randn(count, tokens, 12, generator=generator) + 0.5
    return images, targets, random_permutation(count, objective.units, generator=generator)


def change_cluster(objective: DigptObjective, images: Tensor, permutation: Tensor, place: int) -> Tensor:
    """Other pixels in the cluster at ``place`` of each sample's order."""
    rows, columns = objective.layout.cluster_grid
    height, width = images.shape[2] // rows, images.shape[3] // columns
    changed = images.clone()
    for sample, cluster in enumerate(permutation[:, place].tolist()):
        top, left = cluster // columns * height, cluster % columns * width
        changed[sample, :, top : top + height, left : left + width] += 1
    return changed


def predict(objective: DigptObjective, images: Tensor, permutation: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        return objective.predict(images, permutation)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_never_encoded_cluster_changes_no_prediction(arrangement: tuple[Any, ...]) -> None:
    objective = make(*arrangement)
    images, _, permutation = batch(objective)
    before = predict(objective, images, permutation)
    after = predict(objective, change_cluster(objective, images, permutation, -1), permutation)
    control = predict(objective, change_cluster(objective, images, permutation, -2), permutation)
    for branch in ("gen", "dis"):
        assert torch.equal(before[branch], after[branch])
        assert (before[branch] - control[branch]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("arrangement", "fidelity"),
    [*((arrangement, "fixed") for arrangement in ARRANGEMENTS), ((), "official"), ((), "paper")],
)
def test_later_cluster_changes_no_earlier_prediction(arrangement: tuple[Any, ...], fidelity: str) -> None:
    objective = make(*arrangement, fidelity=fidelity)
    images, _, permutation = batch(objective)
    size = objective.layout.size
    before = predict(objective, images, permutation)
    for place in range(objective.units - 1):
        after = predict(objective, change_cluster(objective, images, permutation, place), permutation)
        for branch in ("gen", "dis"):
            difference = (before[branch] - after[branch]).abs().amax(-1)  # [B, N]
            assert (difference[:, : place * size] < 1e-6).all()
            assert difference[:, place * size :].min() > 1e-7  # the same cluster, all later ones and the class token


def test_class_token_belongs_to_the_last_encoded_cluster() -> None:
    mask = block_causal_mask(3, 4)
    assert mask[-1].all()
    assert torch.equal(mask[:, -1], torch.tensor([False] * 8 + [True] * 5))
    expected = torch.tensor([[q // 4 >= k // 4 for k in range(12)] for q in range(12)])
    assert torch.equal(mask[:12, :12], expected)


@pytest.mark.parametrize(("size", "patch", "clusters", "teacher"), ARRANGEMENTS)
def test_arrangements_against_a_brute_force_loss(
    size: tuple[int, int], patch: int, clusters: tuple[int, int], teacher: tuple[int, int]
) -> None:
    objective = make(size, patch, clusters, teacher)
    images, targets, permutation = batch(objective)
    output = objective(images, targets, permutation, return_predictions=True)
    total, steps = brute_force(objective, output.predictions, targets, permutation)
    for branch in ("gen", "dis"):
        assert output.losses[branch].item() == pytest.approx(total[branch], abs=1e-5)
        torch.testing.assert_close(output.steps[branch], torch.tensor(steps[branch]), atol=1e-5, rtol=0)
        assert output.steps[branch].shape == (objective.units - 1,)
    assert output.loss.item() == pytest.approx(total["gen"] + total["dis"], abs=1e-5)


def brute_force(
    objective: DigptObjective, predictions: Any, targets: Tensor, permutation: Tensor
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The loss, one token at a time, by cutting cluster rectangles out of the teacher's grid."""
    (rows, columns), (height, width) = objective.teacher_layout.grid, objective.teacher_layout.cluster_shape
    own, size = objective.layout.cluster_shape, objective.layout.size
    totals, by_step = {}, {}
    for branch, offset in (("gen", 1), ("dis", 0)):
        values, steps = [], [[] for _ in range(objective.units - 1)]
        for b in range(len(targets)):
            grid = targets[b, 1:].view(rows, columns, -1)
            for step in range(objective.units - 1):
                row, column = divmod(int(permutation[b, step + offset]), objective.layout.cluster_grid[1])
                want = grid[row * height : (row + 1) * height, column * width : (column + 1) * width]
                part = predictions[branch][b, step * size : (step + 1) * size].T.reshape(1, -1, *own)
                have = F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False)[0]
                for y in range(height):
                    for x in range(width):
                        loss = 2 - 2 * F.cosine_similarity(have[:, y, x], want[y, x], dim=0).item()
                        values.append(loss)
                        steps[step].append(loss)
            values.append(2 - 2 * F.cosine_similarity(predictions[branch][b, -1], targets[b, 0], dim=0).item())
        totals[branch] = sum(values) / len(values)
        by_step[branch] = [sum(step) / len(step) for step in steps]
    return totals, by_step


@pytest.mark.parametrize(
    ("clusters", "teacher", "message"),
    [
        ((3, 2), None, r"3x2 cannot divide the 4x4 patch grid.*rows in \[1, 2, 4\], columns in \[1, 2, 4\]"),
        ((1, 1), None, r"rows\*columns >= 2"),
        ((4, 4), (6, 6), r"6x6 teacher grid.*rows in \[1, 2\], columns in \[1, 2\]"),
    ],
)
def test_bad_arrangements_name_the_valid_ones(clusters: Any, teacher: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(clusters=clusters, teacher=teacher)


@pytest.mark.parametrize(("grid", "clusters"), [((4, 4), (2, 2)), ((4, 6), (2, 3)), ((4, 4), (1, 4)), ((6, 4), (3, 1))])
def test_regrouping_round_trip_and_brute_force(grid: tuple[int, int], clusters: tuple[int, int]) -> None:
    layout = ClusterLayout(grid, clusters)
    tokens = torch.randn(2, grid[0] * grid[1], 3)
    grouped = layout.to_clusters(tokens)
    assert torch.equal(layout.from_clusters(grouped), tokens)
    height, width = layout.cluster_shape
    for y in range(grid[0]):
        for x in range(grid[1]):
            cluster, inside = y // height * clusters[1] + x // width, y % height * width + x % width
            assert torch.equal(grouped[:, cluster, inside], tokens[:, y * grid[1] + x])


def test_visible_patches_equal_the_patch_embedding() -> None:
    objective = make((64, 96), 16, (2, 3))
    images, _, permutation = batch(objective)
    projection, visible = objective.encoder.patch_embed.proj, permutation[:, :-1]
    tokens = F.linear(visible_patches(images, objective.layout, visible), projection.weight.flatten(1), projection.bias)
    whole = objective.layout.to_clusters(objective.encoder.patch_embed(images))
    expected = torch.stack([whole[b, visible[b]] for b in range(len(images))]).flatten(1, 2)
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)


def test_constant_baseline_against_brute_force() -> None:
    objective = make(teacher=(4, 4))
    images, targets, permutation = batch(objective, count=5)
    output = objective(images, targets, permutation)
    unit = F.normalize(targets, dim=-1)
    clusters = objective.teacher_layout.to_clusters(unit[:, 1:])
    count = (objective.units - 1) * objective.teacher_layout.size
    mean = (clusters.mean((0, 1, 2)) * count + unit[:, 0].mean(0)) / (count + 1)
    for branch, chosen in (("gen", permutation[:, 1:]), ("dis", permutation[:, :-1])):
        picked = torch.stack([clusters[b, chosen[b]] for b in range(5)])  # [B, K-1, S_t, T]
        loss = 2 - 2 * F.cosine_similarity(picked, mean, dim=-1)
        class_loss = 2 - 2 * F.cosine_similarity(unit[:, 0], mean, dim=-1)
        torch.testing.assert_close(output.step_baselines[branch], loss.mean((0, 2)), atol=1e-5, rtol=0)
        expected = torch.cat([loss.flatten(1), class_loss[:, None]], dim=1).mean()
        torch.testing.assert_close(output.baselines[branch], expected, atol=1e-5, rtol=0)


def test_baseline_averages_over_batches_and_only_in_training() -> None:
    baseline = MeanBaseline(4)
    first, second = torch.eye(4)[0], torch.eye(4)[1]
    baseline.update(first)
    baseline.update(second)
    torch.testing.assert_close(baseline.mean, (first + second) / 2)
    objective = make().eval()
    images, targets, permutation = batch(objective)
    objective(images, targets, permutation)
    assert objective.baseline.batches == 0
    objective.train()(images, targets, permutation)
    assert objective.baseline.batches == 1


def test_fidelities_differ_as_they_should() -> None:
    fixed, official, paper = (make(fidelity=name) for name in ("fixed", "official", "paper"))
    assert all(norm is official.gen.memory.norms[0] for norm in official.gen.memory.norms)
    assert len({id(norm) for norm in fixed.gen.memory.norms}) == 4
    count = {o: sum(p.numel() for p in o.parameters()) for o in (fixed, official, paper)}
    assert count[fixed] - count[official] == 2 * 3 * 2 * 32  # two decoders, three more norms, weight and bias, width 32
    assert not any("attn1" in name or "norms" in name for name, _ in paper.named_parameters())
    assert paper.taps == (6,) and fixed.taps == (3, 4, 5, 6)
    assert fixed.no_weight_decay() == {"encoder.cls_token", "gen.query", "dis.query"}
    assert fixed.no_weight_decay() <= {name for name, _ in fixed.named_parameters()}
    assert official.no_weight_decay() == paper.no_weight_decay() == set()
    assert fixed.config.class_token_std == 0.02 and official.config.class_token_std == 0


@pytest.mark.parametrize(("depth", "taps"), [(12, (6, 8, 10, 12)), (24, (12, 16, 20, 24)), (6, (3, 4, 5, 6))])
def test_tap_rule(depth: int, taps: tuple[int, ...]) -> None:
    assert tap_blocks(DigptConfig(), depth) == taps


def test_bad_taps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"name them, for example taps=\(1, 2, 3, 4\)"):
        tap_blocks(DigptConfig(), 4)
    with pytest.raises(ConfigError, match=r"blocks 5\.\.6 would get no gradient"):
        tap_blocks(DigptConfig(taps=(2, 4)), 6)
    with pytest.warns(UserWarning, match="no gradient"):
        assert tap_blocks(DigptConfig(taps=(6, 8, 10, 12), fidelity="official"), 24) == (6, 8, 10, 12)


def test_unknown_options_name_near_misses() -> None:
    with pytest.raises(ConfigError, match="decoder_width"):
        paradigm_config("digpt", {"decoder_widht": 3})
    with pytest.raises(ConfigError, match="Did you mean 'digpt'"):
        paradigm_config("digtp", {})
    assert paradigm_config("digpt", {"cluster_grid": [4, 2]}).cluster_grid == (4, 2)


def test_permutation_is_keyed_by_its_generator() -> None:
    first, again, other = (random_permutation(8, 4, generator=torch.Generator().manual_seed(s)) for s in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first.sort(1).values, torch.arange(4).expand(8, 4))


@pytest.mark.parametrize(
    ("name", "branches"), [("gen", {"gen"}), ("gen_fd", {"gen", "dis"}), ("digpt", {"gen", "dis"})]
)
def test_every_parameter_learns(name: str, branches: set[str]) -> None:
    objective = make(name=name)
    images, targets, permutation = batch(objective)
    output = objective(images, targets, permutation)
    output.loss.backward()
    assert set(output.losses) == branches
    assert f"{min(branches)}_step1_baseline" in output.metrics()
    silent = [n for n, p in objective.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []
    assert not objective.encoder.pos_embed.requires_grad


def test_feature_distillation_reads_the_whole_image_unmasked() -> None:
    objective: Any = make(name="fd", teacher=(2, 2))
    images, targets = torch.randn(2, 3, 64, 64), torch.randn(2, 5, 12)
    output = objective(images, targets, return_predictions=True)
    tokens = objective.head.pred(embed_tokens(objective.encoder, images))
    assert output.predictions is not None and torch.equal(output.predictions["fd"], tokens)
    grid = F.interpolate(tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4)), size=(2, 2), mode="bilinear")
    resized = torch.cat([tokens[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    expected = (2 - 2 * F.cosine_similarity(resized, targets, dim=-1)).mean()
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=0)


def test_decoder_state_round_trip_is_strict() -> None:
    source, copy = make(), make()
    images, targets, permutation = batch(source)
    source(images, targets, permutation)  # moves the baseline, which travels too
    for p in source.gen.parameters():
        p.data.add_(0.1)
    state = source.decoder_state()
    copy.load_decoder_state(state)
    assert torch.equal(copy(images, targets, permutation).loss, source(images, targets, permutation).loss)
    assert not any(name.startswith("encoder.") for name in state)
    with pytest.raises(ConfigError, match=r"missing \['gen.query'\]"):
        copy.load_decoder_state({k: v for k, v in state.items() if k != "gen.query"})


def test_targets_of_another_shape_are_refused() -> None:
    objective = make()
    images, targets, permutation = batch(objective)
    with pytest.raises(ConfigError, match=r"\(17, 12\)"):
        objective(images, targets[:, 1:], permutation)
