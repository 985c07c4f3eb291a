"""Every paradigm with every kind of target: gradients, checkpointing, losses by hand, constant baselines, refusals."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from digpt.encoder import build_encoder, embed_tokens, encoder_config
from digpt.errors import ConfigError
from train.objective import PARADIGMS, Paradigm, TargetSpace, build_paradigm, paradigm_config
from train.objective.clusters import random_permutation

PAIRS = [(name, kind) for name, entry in PARADIGMS.items() for kind in entry.kinds]
WIDTHS = {"tokens": 12, "pixels": 16 * 16 * 3, "codes": 10}
DECODERS: dict[str, dict[str, Any]] = {
    "digpt": {"decoder_width": 32, "decoder_heads": 2},
    "mae": {"decoder_width": 32, "decoder_heads": 2, "decoder_depth": 2},
}
DECODERS |= dict.fromkeys(("gen", "igpt", "gen_fd"), DECODERS["digpt"])


def make(name: str, kind: Any = "tokens", teacher: tuple[int, int] = (4, 4), **options: Any) -> Paradigm:
    torch.manual_seed(0)
    encoder = build_encoder(encoder_config("Ti/16", 64, embed_dim=32, num_heads=2, depth=6))
    settings = {**DECODERS.get(name, {}), **options}
    return build_paradigm(name, encoder, target_kind=kind, teacher_grid=teacher, teacher_width=WIDTHS[kind], **settings)


def batch(paradigm: Paradigm, count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    space = paradigm.space
    images = torch.randn(count, 3, 64, 64, generator=generator)
    if space.kind == "codes":
        targets = torch.randint(0, space.width, (count, space.count), generator=generator)
    else:
        tokens = space.count + (space.kind == "tokens")
        targets = torch.randn(count, tokens, space.width, generator=generator) + 0.3
    return images, targets, random_permutation(count, paradigm.units, generator=generator)


def test_the_table_of_pairs() -> None:
    assert {name: entry.kinds for name, entry in PARADIGMS.items()} == {
        "digpt": ("tokens", "pixels", "codes"),
        "gen": ("tokens", "pixels", "codes"),
        "igpt": ("pixels",),
        "gen_fd": ("tokens",),
        "fd": ("tokens",),
        "kd": ("tokens",),
        "mae": ("tokens", "pixels", "codes"),
        "eva": ("tokens",),
    }


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_every_trainable_parameter_gets_a_gradient_in_every_step(name: str, kind: str) -> None:
    paradigm = make(name, kind)
    for step in range(2):
        images, targets, permutation = batch(paradigm)
        paradigm.zero_grad()
        paradigm(images, targets, permutation.roll(step, dims=0)).loss.backward()
        trained = {n: p for n, p in paradigm.named_parameters() if p.requires_grad}
        assert [n for n, p in trained.items() if p.grad is None or not p.grad.any()] == []
    assert "encoder.cls_token" in trained and "encoder.pos_embed" not in trained


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_checkpointing_recomputes_every_block_and_changes_no_gradient(name: str, kind: str) -> None:
    gradients, calls = [], []
    for enable in (False, True):
        paradigm = make(name, kind)
        paradigm.set_grad_checkpointing(enable)
        count: Counter[int] = Counter()
        for number, block in enumerate(paradigm.blocks()):
            block.register_forward_pre_hook(lambda *_, number=number, count=count: count.update([number]))
        images, targets, permutation = batch(paradigm)
        paradigm(images, targets, permutation).loss.backward()
        gradients.append({n: p.grad for n, p in paradigm.named_parameters() if p.requires_grad})
        calls.append(count)
        assert set(count) == set(range(len(paradigm.blocks())))
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient, atol=1e-6, rtol=1e-6)
    assert set(calls[0].values()) == {1}
    # timm runs the whole encoder of FD and KD in one piece, where the last block is not recomputed
    assert all(calls[1][number] == 2 for number in calls[1] if name not in ("fd", "kd") or number != 5)


@pytest.mark.parametrize(
    ("name", "decoder_blocks"),
    [("digpt", 4), ("gen", 2), ("igpt", 2), ("gen_fd", 2), ("fd", 0), ("kd", 0), ("mae", 2), ("eva", 0)],
)
def test_blocks_are_the_encoders_then_the_decoders(name: str, decoder_blocks: int) -> None:
    paradigm = make(name, "pixels" if name == "igpt" else "tokens")
    blocks = paradigm.blocks()
    assert blocks[:6] == list(paradigm.encoder.blocks) and len(blocks) == 6 + decoder_blocks
    assert len({id(block) for block in blocks}) == len(blocks)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_loss_of_a_batch_is_the_mean_over_its_parts(name: str, kind: str) -> None:
    """Else several processes would not train what one does."""
    paradigm = make(name, kind, teacher=(2, 2) if kind == "tokens" else (4, 4)).eval()
    images, targets, permutation = batch(paradigm, 6)
    with torch.no_grad():
        whole = paradigm(images, targets, permutation).loss
        parts = [paradigm(images[i::2], targets[i::2], permutation[i::2]).loss for i in (0, 1)]
        other = paradigm(images, targets.flip(0), permutation).loss
    torch.testing.assert_close(whole, (parts[0] + parts[1]) / 2, atol=1e-6, rtol=1e-6)
    assert (whole - other).abs() > 1e-5


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_equal_permutations_give_equal_losses_and_others_do_not(name: str, kind: str) -> None:
    paradigm = make(name, kind).eval()
    images, targets, permutation = batch(paradigm)
    with torch.no_grad():
        first, again = (paradigm(images, targets, permutation).loss for _ in range(2))
        other = paradigm(images, targets, permutation.flip(1)).loss
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (paradigm.units == 1)
    assert paradigm.units == {"fd": 1, "kd": 1, "mae": 16, "eva": 16}.get(name, 4)


def test_permutation_of_another_shape_is_refused() -> None:
    for name in ("digpt", "mae", "eva"):
        paradigm = make(name)
        images, targets, permutation = batch(paradigm)
        with pytest.raises(ConfigError, match=rf"\[B, units\] = \(4, {paradigm.units}\)"):
            paradigm(images, targets, permutation[:, 1:])


def token_losses(space: TargetSpace, prediction: Tensor, target: Tensor) -> Tensor:
    """``[B,N,W]`` and a batch of targets without class token -> ``[B,N]``."""
    if space.kind == "tokens":
        return 2 - 2 * F.cosine_similarity(prediction, target, dim=-1)
    if space.kind == "pixels":
        return ((prediction - target) ** 2).mean(-1)
    return -prediction.log_softmax(-1).gather(-1, target[..., None])[..., 0]


def unpermuted(paradigm: Any, permutation: Tensor, tokens: Tensor, clusters: slice) -> Tensor:
    """The target tokens ``[B, M*S, .]`` of the permuted clusters, cut out of the grid one by one."""
    grid = tokens.reshape(len(tokens), 4, 4, -1)
    picked = []
    for sample, order in enumerate(permutation.tolist()):
        parts = [grid[sample, c // 2 * 2 : c // 2 * 2 + 2, c % 2 * 2 : c % 2 * 2 + 2] for c in order[clusters]]
        picked.append(torch.cat([part.reshape(4, -1) for part in parts]))
    return torch.stack(picked)


@pytest.mark.parametrize("kind", ["pixels", "codes"])
@pytest.mark.parametrize("name", ["digpt", "gen"])
def test_causal_paradigms_on_pixels_and_codes_by_hand(name: str, kind: str) -> None:
    paradigm: Any = make(name, kind)
    images, targets, permutation = batch(paradigm)
    output = paradigm(images, targets, permutation, return_predictions=True)
    tokens = targets[..., None] if kind == "codes" else targets
    total = 0.0
    for branch, clusters in (("gen", slice(1, None)), ("dis", slice(None, -1))):
        if branch in output.losses:
            wanted = unpermuted(paradigm, permutation, tokens, clusters)
            wanted = wanted[..., 0] if kind == "codes" else wanted
            losses = token_losses(paradigm.space, output.predictions[branch][:, :-1], wanted)  # no class token
            torch.testing.assert_close(output.losses[branch], losses.mean(), atol=1e-5, rtol=1e-5)
            expected = losses.view(4, 3, 4).mean((0, 2))
            torch.testing.assert_close(output.steps[branch], expected, atol=1e-5, rtol=1e-5)
            total += losses.mean().item()
    assert output.loss.item() == pytest.approx(total, abs=1e-5)
    assert set(output.losses) == ({"gen", "dis"} if name == "digpt" else {"gen"})


def test_igpt_is_gen_on_pixels() -> None:
    outputs = []
    for name in ("igpt", "gen"):
        paradigm = make(name, "pixels")
        outputs.append(paradigm(*batch(paradigm)).loss)
    assert torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("kind", ["tokens", "pixels", "codes"])
def test_mae_by_hand(kind: str) -> None:
    paradigm: Any = make("mae", kind)
    images, targets, permutation = batch(paradigm)
    output = paradigm(images, targets, permutation, return_predictions=True)
    prediction = output.predictions["mae"]
    assert prediction.shape == (4, 17, WIDTHS[kind]) and paradigm.visible == 4
    patches = targets[:, 1:] if kind == "tokens" else targets
    losses = token_losses(paradigm.space, prediction[:, :-1], patches)
    expected = []
    for sample, order in enumerate(permutation.tolist()):
        chosen = [losses[sample, patch].item() for patch in order[4:]]  # 12 of 16 are hidden
        if kind == "tokens":
            chosen.append(2 - 2 * F.cosine_similarity(prediction[sample, -1], targets[sample, 0], dim=0).item())
        expected.append(sum(chosen) / len(chosen))
    assert output.loss.item() == pytest.approx(sum(expected) / 4, abs=1e-5)
    assert set(output.losses) == set(output.baselines) == {"mae"}


@pytest.mark.parametrize("name", ["mae", "eva"])
def test_hidden_pixels_change_no_prediction_and_visible_ones_do(name: str) -> None:
    paradigm: Any = make(name)
    images, targets, permutation = batch(paradigm, 2)
    before = paradigm(images, targets, permutation, return_predictions=True).predictions[name]
    seen = 0
    for patch in range(16):
        changed = images.clone()
        changed[:, :, patch // 4 * 16 : patch // 4 * 16 + 16, patch % 4 * 16 : patch % 4 * 16 + 16] += 1
        after = paradigm(changed, targets, permutation, return_predictions=True).predictions[name]
        different = (after - before).abs().amax((1, 2)) > 1e-6
        if name == "mae":
            assert different.tolist() == [patch in order[:4].tolist() for order in permutation]
        seen += int(different.sum())
    assert seen == 2 * paradigm.visible


def test_mae_predictions_do_not_depend_on_the_order_inside_visible_and_hidden() -> None:
    paradigm: Any = make("mae")
    images, targets, permutation = batch(paradigm)
    shuffled = torch.cat([permutation[:, :4].flip(1), permutation[:, 4:].flip(1)], dim=1)
    one, other, third = (
        paradigm(images, targets, order, return_predictions=True).predictions["mae"]
        for order in (permutation, shuffled, permutation.roll(1, 1))
    )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert (one - third).abs().max() > 1e-3


def test_eva_by_hand() -> None:
    paradigm: Any = make("eva")
    images, targets, permutation = batch(paradigm)
    output = paradigm(images, targets, permutation, return_predictions=True)
    from train.objective.masks import block_mask

    hidden = block_mask(permutation, (4, 4), 7)  # 40 % of 16, rounded up
    assert paradigm.units - paradigm.visible == 7
    losses = token_losses(paradigm.space, output.predictions["eva"], targets[:, 1:])
    torch.testing.assert_close(output.loss, losses[hidden].mean(), atol=1e-5, rtol=1e-5)
    nothing = embed_tokens(paradigm.encoder, images)  # control: with nothing hidden the encoder is the plain one
    tokens = paradigm._embed(images, torch.zeros_like(hidden))
    for block in paradigm.encoder.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(tokens, nothing, atol=1e-5, rtol=1e-5)


def test_masked_loss_on_another_grid_weighs_tokens_by_their_hidden_share() -> None:
    paradigm: Any = make("mae", teacher=(2, 2))
    images, targets, permutation = batch(paradigm)
    output = paradigm(images, targets, permutation, return_predictions=True)
    prediction = output.predictions["mae"]
    hidden = torch.ones(4, 16).scatter(1, permutation[:, :4], 0.0).view(4, 1, 4, 4)
    weights = F.avg_pool2d(hidden, 2).flatten(1)  # halving bilinearly averages 2 x 2
    resized = F.avg_pool2d(prediction[:, :-1].transpose(1, 2).unflatten(2, (4, 4)), 2).flatten(2).transpose(1, 2)
    losses = token_losses(paradigm.space, resized, targets[:, 1:])
    class_loss = 2 - 2 * F.cosine_similarity(prediction[:, -1], targets[:, 0], dim=-1)
    expected = ((losses * weights).sum(1) + class_loss) / (weights.sum(1) + 1)
    torch.testing.assert_close(output.loss, expected.mean(), atol=1e-5, rtol=1e-5)


def test_kd_by_hand() -> None:
    paradigm: Any = make("kd")
    images, targets, _ = batch(paradigm)
    output = paradigm(images, targets)
    embedding = embed_tokens(paradigm.encoder, images)[:, 1:].mean(1)
    predicted = embedding @ paradigm.head.pred.weight.T + paradigm.head.pred.bias
    expected = (2 - 2 * F.cosine_similarity(predicted, targets[:, 0], dim=-1)).mean()
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)
    other = targets.clone()
    other[:, 1:] = torch.randn(4, 16, 12)
    assert torch.equal(paradigm(images, other).loss, output.loss)  # patch tokens do not matter


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if pair[1] != "tokens"])
def test_baseline_is_the_loss_of_the_best_constant(name: str, kind: str) -> None:
    """On the first batch exactly: the mean square of the predicted pixels, the entropy of the predicted codes."""
    paradigm: Any = make(name, kind)
    images, targets, permutation = batch(paradigm)
    output = paradigm(images, targets, permutation)
    for branch, baseline in output.baselines.items():
        if name == "mae":
            chosen = torch.stack([targets[b, permutation[b, 4:]] for b in range(4)])
        else:
            clusters = slice(1, None) if branch == "gen" else slice(None, -1)
            chosen = unpermuted(paradigm, permutation, targets[..., None] if kind == "codes" else targets, clusters)
        if kind == "pixels":
            assert baseline.item() == pytest.approx((chosen**2).mean().item(), abs=1e-5)
            continue
        # the causal baselines count every cluster, as each is predicted equally often over many samples
        every = chosen.flatten() if name == "mae" else targets.flatten()
        frequency = torch.bincount(every, minlength=10) / every.numel()
        expected = -frequency[chosen.flatten()].log().mean()
        assert baseline.item() == pytest.approx(expected.item(), abs=1e-5)


def test_code_baseline_learns_the_frequencies_and_pixels_need_none() -> None:
    space = TargetSpace("codes", (2, 2), 4)
    baseline = space.baseline()
    for codes in ([0, 0, 0, 1], [0, 0, 2, 2]):
        baseline.update(space.summary(torch.tensor(codes)[:, None]))
    torch.testing.assert_close(baseline.mean, torch.tensor([5, 1, 2, 0]) / 8)
    assert baseline(space.summary(torch.tensor([0, 1])[:, None])).item() == pytest.approx(
        -(torch.tensor([5 / 8, 1 / 8]).log().mean().item())
    )
    assert baseline(space.summary(torch.tensor([[3]]))).item() == pytest.approx(-torch.tensor(1e-6).log().item())
    pixels = TargetSpace("pixels", (2, 2), 12)
    assert pixels.baseline()(pixels.summary(torch.full((5, 12), 0.5))).item() == 0.25


def test_targets_of_the_wrong_kind_are_refused() -> None:
    images, _, permutation = batch(make("gen", "codes"))
    with pytest.raises(ConfigError, match="Codes must be int64"):
        make("gen", "codes")(images, torch.zeros(4, 16), permutation)
    with pytest.raises(ConfigError, match=r"\[patches\] = \(16,\)"):
        make("gen", "codes")(images, torch.zeros(4, 17, dtype=torch.int64), permutation)
    with pytest.raises(ConfigError, match=r"\[patches, p\*p\*3\] = \(16, 768\)"):
        make("gen", "pixels")(images, torch.zeros(4, 17, 768), permutation)


def test_invalid_pairs_and_grids_name_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match="'igpt' learns from pixels, not from 'tokens'"):
        make("igpt")
    with pytest.raises(ConfigError, match="'eva' learns from tokens, not from 'codes'; digpt, gen, mae can"):
        make("eva", "codes")
    with pytest.raises(ConfigError, match="must lie on the patch grid 4x4, not on 2x2"):
        make("mae", "codes", teacher=(2, 2))
    with pytest.raises(ConfigError, match="only teacher tokens can be resized"):
        make("digpt", "pixels", teacher=(8, 8))
    with pytest.raises(ConfigError, match="mask_ratio=1.5 must lie between 0 and 1"):
        paradigm_config("mae", {"mask_ratio": 1.5})
    with pytest.raises(ConfigError, match="leaves 0 of 16 patches visible"):
        make("mae", mask_ratio=0.99)
    with pytest.raises(ConfigError, match="Did you mean 'mask_ratio'"):
        make("eva", mask_raito=0.5)
    with pytest.raises(ConfigError, match="'mae' takes a MaeConfig, not a DigptConfig"):
        encoder = build_encoder(encoder_config("Ti/16", 64, embed_dim=32, num_heads=2, depth=6))
        config = paradigm_config("digpt", {})
        build_paradigm("mae", encoder, teacher_grid=(4, 4), teacher_width=12, config=config)
    with pytest.raises(ConfigError, match="Did you mean 'tokens'"):
        TargetSpace("token", (4, 4), 12)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_no_weight_decay_names_exist_and_decoder_state_travels(name: str, kind: str) -> None:
    source, copy = make(name, kind), make(name, kind)
    assert source.no_weight_decay() <= {n for n, _ in source.named_parameters()}
    assert any("token" in n or "query" in n for n in source.no_weight_decay())
    images, targets, permutation = batch(source)
    source(images, targets, permutation)
    with torch.no_grad():
        for parameter, value in source.named_parameters():
            if not parameter.startswith("encoder."):
                value.add_(0.1)
    copy.load_decoder_state(source.decoder_state())
    source.eval(), copy.eval()
    assert torch.equal(source(images, targets, permutation).loss, copy(images, targets, permutation).loss)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("width", [512, 768, 1024])
def test_decoder_depths_and_widths_of_the_paper(depth: int, width: int) -> None:
    """Table 8's decoders (and MAE's 8 blocks) around B/16 at 224 px with OpenCLIP-H's targets: shapes, without data."""
    with torch.device("meta"):
        encoder = build_encoder(encoder_config("B/16", 224))
        options: dict[str, Any] = {"decoder_width": width, "decoder_heads": width // 32, "decoder_depth": depth}
        paradigm: Any = build_paradigm("digpt", encoder, teacher_grid=(16, 16), teacher_width=1024, **options)
        images, targets = torch.zeros(2, 3, 224, 224), torch.zeros(2, 257, 1024)
        permutation = torch.zeros(2, 4, dtype=torch.int64)
        output = paradigm(images, targets, permutation, return_predictions=True)
    assert output.predictions["gen"].shape == output.predictions["dis"].shape == (2, 148, 1024)
    per_block = 4 * width * 2  # four norms
    per_block += (3 * width * width + 3 * width) * 2 + 2 * (width * width + width)  # two attentions
    per_block += 8 * width * width + 5 * width  # MLP
    assert sum(p.numel() for p in paradigm.gen.blocks.parameters()) == depth * per_block
    assert paradigm.gen.memory.proj.weight.shape == (depth * width, 4 * 768)
