"""Segmentation: what a run writes, its exact resumption, parameter groups, the loss, dropout of channels, starts."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from digpt.artifact import Checkpoint, read_checkpoint, write_checkpoint
from digpt.data.emoji import EmojiSet
from digpt.data.scenes import SUBGROUPS, SceneSet
from digpt.encoder import build_encoder, encoder_config
from digpt.errors import ConfigError, DigptError
from digpt.preprocess import Preprocess
from digpt.segment_inference import predict
from digpt.segment_metrics import Scores, confusion
from digpt.segmentation import build_segmenter
from digpt.sources import load_model
from train.channel_drop import KeyedDropout2d
from train.config import Interrupted, load_recipe, parse
from train.loop import train
from train.optim import build_optimizer, learning_rate, set_learning_rate
from train.pixel_loss import pixel_loss, segment_losses
from train.segment import SegmentTask, SegmentTrainConfig
from train.share import Share

TINY = SegmentTrainConfig(
    encoder="random", depth=2, crop=32, scale=(128, 32), channels=16, aux_channels=8, scenes=12, scene_classes=4,
    eval_scenes=3, steps=4, batch_size=4, warmup=1, log_every=1, eval_every=100, threads=1, workers=0, keep_last=0,
    drop_path=0.4, dropout=0.4, splits=("val",),
)  # fmt: skip


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run that nothing interrupted."""
    return train(SegmentTask(dataclasses.replace(TINY, output=tmp_path_factory.mktemp("straight"))), quiet())


# --------------------------------------------------------------------------------------------------- what a run writes


def test_the_checkpoint_rebuilds_a_segmenter_with_the_figures_that_it_states(straight: Path) -> None:
    checkpoint = read_checkpoint(straight)
    config, head = checkpoint.config, checkpoint.config["head"]
    assert config["architecture"] == "timm" and config["pooling"] == "avg"
    assert config["labels"] == ["background", *SUBGROUPS[:3]]
    assert head == {
        "type": "upernet", "blocks": [0, 0, 1, 1], "channels": 16, "crop": 32, "dropout": 0.4, "aux_channels": 8,
        "reduce_zero": False,
    }  # fmt: skip
    assert config["preprocess"]["size"] == 32 and config["encoder"]["img_size"] == 32
    assert set(checkpoint.weights) == {"encoder", "head"}
    assert {name.partition(".")[0] for name in checkpoint.weights["head"]} == {"pyramid", "upernet", "fcn"}
    assert not [name for name in checkpoint.weights["encoder"] if name.startswith(("norm", "fc_norm", "head"))]
    assert checkpoint.weights["head"]["upernet.fuse.1.num_batches_tracked"] == 4

    segmenter = build_segmenter(config, checkpoint.weights)
    scenes = SceneSet(EmojiSet.load(), "val", size=32, count=3, n_classes=4)
    total = np.zeros((4, 4), dtype=np.int64)
    for number in range(3):
        image, label = scenes.pixels(number)
        total += confusion(predict(segmenter, image, TINY.inference_config()), label, 4)
    scores = Scores.of(total)
    assert checkpoint.provenance["figures"] == {
        "val_miou": pytest.approx(scores.miou, abs=1e-4),
        "val_macc": pytest.approx(scores.macc, abs=1e-4),
        "val_aacc": pytest.approx(scores.aacc, abs=1e-4),
    }


def test_several_scenes_at_once_and_several_processes_give_the_same_figures() -> None:
    """Together, two ranks count the pixels that one process counts."""
    task = SegmentTask(dataclasses.replace(TINY, eval_scenes=5))
    task.module.eval()
    counted: list[torch.Tensor] = []

    class Rank:
        device = torch.device("cpu")

        def __init__(self, share: Share) -> None:
            self.share = share

        def check(self) -> None:
            """Nobody asks to stop."""

        def total(self, values: torch.Tensor) -> torch.Tensor:
            counted.append(values)
            return values

    with torch.no_grad():
        for share in (Share(), Share(0, 2), Share(1, 2)):
            task.evaluate(Rank(share))
    whole, first, second = counted
    assert whole.sum() == 5 * 32 * 32 and first.sum() == 3 * 32 * 32
    assert torch.equal(first + second, whole)


# --------------------------------------------------------------------------------------------------------- resumption


@pytest.mark.parametrize("stopped_by", ["a kill between saves", "SIGTERM"])
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(
    straight: Path, tmp_path: Path, stopped_by: str
) -> None:
    """Weights, the statistics of batch norm, and so the draws of drop path and dropout."""
    config = dataclasses.replace(TINY, output=tmp_path, save_every=2)
    dying, steps = SegmentTask(config), []

    def stop() -> None:
        steps.append(1)
        if stopped_by == "SIGTERM" and len(steps) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if len(steps) == 3:  # one step beyond the last save
            raise KeyboardInterrupt

    dying.after_step = stop  # type: ignore[method-assign]
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        train(dying, quiet())
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert state["done"] == (1 if stopped_by == "SIGTERM" else 2)
    resumed, whole = read_checkpoint(train(SegmentTask(config), quiet())), read_checkpoint(straight)
    for group, named in whole.weights.items():
        for name, value in named.items():
            assert torch.equal(resumed.weights[group][name], value), (group, name)
    assert resumed.provenance["figures"] == whole.provenance["figures"]
    assert whole.weights["head"]["upernet.fuse.1.running_mean"].abs().max() > 0


# -------------------------------------------------------------------------------------------- optimiser, schedule, loss


def test_learning_rates_decay_by_layer_and_vectors_tokens_and_positions_have_no_weight_decay() -> None:
    task = SegmentTask(dataclasses.replace(TINY, depth=3, layer_decay=0.65, weight_decay=0.3, warmup=0, lr=2.0))
    named = {id(p): name for name, p in task.module.named_parameters()}
    optimizer = build_optimizer(task.parameter_groups(), task.config)
    set_learning_rate(optimizer, 0, task.config)
    found = {named[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert set(found) == set(named.values())
    powers = {"encoder.cls_token": 4, "encoder.pos_embed": 4, "encoder.patch_embed": 4}
    powers |= {f"encoder.blocks.{number}": 3 - number for number in range(3)}
    powers |= {"pyramid": 0, "upernet": 0, "fcn": 0}
    for name, group in found.items():
        (power,) = [power for start, power in powers.items() if name == start or name.startswith(start + ".")]
        assert group["lr_scale"] == pytest.approx(0.65**power), name
        assert group["lr"] == pytest.approx(2.0 * 0.65**power), name
    plain = {name for name, group in found.items() if group["weight_decay"] == 0.0}
    vectors = {name for name in found if name.endswith("bias") or ".norm" in name}
    norms = {name for name, p in task.module.named_parameters() if name.endswith("weight") and p.ndim == 1}
    assert plain == vectors | norms | {"encoder.pos_embed", "encoder.cls_token"}
    assert {group["weight_decay"] for name, group in found.items() if name not in plain} == {0.3}
    assert {"pyramid.up4.0.weight", "upernet.fuse.0.weight", "encoder.patch_embed.proj.weight"} <= set(found) - plain


@pytest.mark.parametrize(
    ("power", "shares"), [(1.0, {10: 1.0, 60: 0.5, 109: 0.01}), (2.0, {10: 1.0, 60: 0.25, 109: 1e-4})]
)
def test_the_rate_rises_linearly_and_falls_as_a_polynomial(power: float, shares: dict[int, float]) -> None:
    config = dataclasses.replace(TINY, steps=110, warmup=10, lr=3.0, power=power)
    expected = {0: 0.1, 4: 0.5, 9: 1.0, 110: 0.0} | shares
    assert {step: learning_rate(step, config) for step in expected} == {
        step: pytest.approx(3.0 * share) for step, share in expected.items()
    }


def enlarged(values: np.ndarray) -> np.ndarray:
    """``[h,w]`` twice as large, bilinearly between the centres of pixels, constant beyond the outer ones."""
    height, width = values.shape
    result = np.zeros((2 * height, 2 * width))
    for row in range(2 * height):
        for column in range(2 * width):
            y, x = (np.clip((at + 0.5) / 2 - 0.5, 0, n - 1) for at, n in ((row, height), (column, width)))
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = values[top, left] * (1 - x + left) + values[top, right] * (x - left)
            lower = values[bottom, left] * (1 - x + left) + values[bottom, right] * (x - left)
            result[row, column] = upper * (1 - y + top) + lower * (y - top)
    return result


def test_the_loss_is_a_mean_over_all_pixels_to_which_ignored_ones_add_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 2, 3, generator=generator)
    labels = torch.randint(0, 3, (2, 4, 6), generator=generator)
    labels[0, 1:, 2:5], labels[1, 0] = 255, 255
    total = 0.0
    for image in range(2):
        large = np.stack([enlarged(part.double().numpy()) for part in logits[image]])
        for row in range(4):
            for column in range(6):
                label = int(labels[image, row, column])
                if label != 255:
                    exponents = np.exp(large[:, row, column])
                    total -= np.log(exponents[label] / exponents.sum())
    assert pixel_loss(logits, labels).item() == pytest.approx(total / (2 * 4 * 6), rel=1e-6)
    assert pixel_loss(logits, torch.full_like(labels, 255)).item() == 0.0


def test_the_auxiliary_loss_counts_two_fifths() -> None:
    logits, labels = torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64)
    both = segment_losses((logits, 2 * logits), labels)
    assert both["main_loss"].item() == pixel_loss(logits, labels).item()
    assert both["aux_loss"].item() == pixel_loss(2 * logits, labels).item()
    assert both["loss"].item() == pytest.approx(both["main_loss"].item() + 0.4 * both["aux_loss"].item())
    assert segment_losses((logits, None), labels) == {"loss": both["main_loss"]}
    task = SegmentTask(dataclasses.replace(TINY, aux_channels=0))
    assert task.module.fcn is None and len(task.drops) == 2 + 1  # two paths of the second block, one classifier


# ------------------------------------------------------------------------------------------------------------- dropout


def dropped(drop: KeyedDropout2d, items: np.ndarray, epoch: int = 0) -> torch.Tensor:
    """``[B,C]``: what becomes of ones."""
    drop.draw(np.full_like(items, epoch), items, torch.device("cpu"))
    maps = drop(torch.ones(len(items), drop.channels, 3, 2))
    assert torch.equal(maps, maps[:, :, :1, :1].expand_as(maps))  # whole channels
    return maps[:, :, 0, 0]


def test_dropout_of_channels_is_a_function_of_the_sample() -> None:
    items = np.arange(400)
    drop = KeyedDropout2d(0.2, 64, 0, seed=0).train()
    first = dropped(drop, items)
    assert set(first.unique().tolist()) == {0.0, 1.25}
    assert first.mean().item() == pytest.approx(1.0, abs=0.0125)  # four standard deviations of 25,600 draws
    assert torch.equal(dropped(drop, items[::-1].copy()).flip(0), first)  # another order, the same samples
    assert torch.equal(dropped(KeyedDropout2d(0.2, 64, 0, seed=0).train(), items), first)
    others = [
        dropped(drop, items, epoch=1),
        dropped(KeyedDropout2d(0.2, 64, 0, seed=1).train(), items),
        dropped(KeyedDropout2d(0.2, 64, 1, seed=0).train(), items),  # the other head
        first.roll(1, 0),
    ]
    for other in others:  # as often equal as independent draws are
        assert (other == first).float().mean().item() == pytest.approx(0.8**2 + 0.2**2, abs=0.02)
    assert torch.equal(drop.eval()(torch.ones(3, 64, 1, 1)), torch.ones(3, 64, 1, 1))
    with pytest.raises(RuntimeError, match=r"draw must be called"):
        drop.train()(torch.ones(3, 64, 1, 1))


def test_both_heads_drop_with_draws_of_their_own_and_nothing_else_is_random() -> None:
    task = SegmentTask(dataclasses.replace(TINY, channels=8))
    keyed = [part for part in task.module.modules() if isinstance(part, KeyedDropout2d)]
    assert [part.channels for part in keyed] == [8, 8] and len({part.number for part in keyed}) == 2
    assert not [part for part in task.module.modules() if isinstance(part, nn.Dropout2d)]
    images = torch.rand(4, 3, 32, 32)
    task.module.train()
    for drop in task.drops:
        drop.draw(np.zeros(4, dtype=np.int64), np.arange(4), torch.device("cpu"))
    assert torch.equal(task.module(images)[0], task.module(images)[0])


# -------------------------------------------------------------------------------------------------------------- starts


def start(spec: str, **changes: Any) -> SegmentTask:
    return SegmentTask(dataclasses.replace(TINY, encoder=spec, **changes))


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A checkpoint as train.pretrain writes it, of 32 px and with statistics of its own."""
    options = encoder_config("Ti/16", 32, depth=2)
    torch.manual_seed(1)
    encoder = build_encoder(options)
    preprocess = Preprocess(size=32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    config = {"architecture": "timm", "encoder": options, "preprocess": preprocess.to_dict(), "pooling": "avg"}
    config |= {"head": None, "text": None, "labels": None}
    write_checkpoint(tmp_path / "ckpt.pt", Checkpoint(config, {"encoder": encoder.state_dict()}, {"steps": 7}))
    return tmp_path / "ckpt.pt"


def test_an_encoder_of_ours_starts_with_its_weights_statistics_and_interpolated_positions(pretrained: Path) -> None:
    task, source = start(str(pretrained), crop=64), load_model(str(pretrained))
    given, ours = source.module.encoder.state_dict(), task.module.encoder.state_dict()
    assert set(ours) == set(given)
    assert all(torch.equal(ours[name], value) for name, value in given.items() if name != "pos_embed")
    assert given["pos_embed"].shape == (1, 1 + 4, 192) and ours["pos_embed"].shape == (1, 1 + 16, 192)
    assert torch.equal(ours["pos_embed"][:, 0], given["pos_embed"][:, 0])
    assert task.module.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert task.data.reader.crop.mean == (0.1, 0.2, 0.3)
    (parent,) = task.parents
    assert parent["role"] == "encoder" and parent["fingerprint"] == source.fingerprint and parent["steps"] == 7
    assert task.inputs()["encoder"] == source.fingerprint
    assert all(p.requires_grad for p in task.module.parameters())


def test_a_file_of_timms_leaves_its_final_norm_and_its_classifier_behind(tmp_path: Path) -> None:
    torch.manual_seed(2)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=10)
    torch.save(vit.state_dict(), tmp_path / "vit.pt")
    task = start(f"timm:vit_tiny_patch16_224@{tmp_path / 'vit.pt'}", crop=64)
    given, ours = vit.state_dict(), task.module.encoder.state_dict()
    assert set(given) - set(ours) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert torch.equal(ours["blocks.11.mlp.fc2.weight"], given["blocks.11.mlp.fc2.weight"])
    assert task.segment.blocks == (3, 5, 7, 11) and task.module.pyramid.up2.in_channels == 192


def test_a_text_tuned_checkpoint_starts_without_its_text_and_projection() -> None:
    task, given = start("bundled", crop=64), load_model("bundled").module.encoder.state_dict()
    ours = task.module.encoder.state_dict()
    assert {name.partition(".")[0] for name in set(given) - set(ours)} == {"fc_norm"}
    assert torch.equal(ours["patch_embed.proj.weight"], given["patch_embed.proj.weight"])
    assert ours["pos_embed"].shape == given["pos_embed"].shape  # 64 px is its own size


def test_a_random_start_follows_the_seed() -> None:
    first, again, other = (start("random", seed=seed).module.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(again[name], value) for name, value in first.items())
    for name in ("encoder.blocks.0.attn.qkv.weight", "upernet.fuse.0.weight"):
        assert not torch.equal(other[name], first[name])
    assert start("random").parents == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "bundled-teacher"}, "bundled-teacher is no plain ViT of timm"),
        ({"crop": 40}, "40 is not a multiple of patch_size=16; try 32 or 48"),
        ({"encoder": "bundled", "crop": 40}, "40 is not a multiple of the patch, 16; try 32 or 48"),
        ({"crop": 16, "scale": (64, 16)}, "crop=16 is a single patch.*: use 32"),
        ({"encoder": "nowhere/ckpt.pt"}, "--encoder nowhere/ckpt.pt does not exist: pretrain it first"),
        ({"encoder": "bundeld"}, "Unknown model 'bundeld'.* 'bundled'"),
        ({"blocks": (0, 0, 0, 0)}, r"blocks=\(0, 0, 0, 0\) must end with the encoder's last block, 1"),
        ({"blocks": (0, 0, 1, 2)}, r"blocks=\(0, 0, 1, 2\) must end with the encoder's last block, 1"),
        ({"splits": ("vla",)}, "no split 'vla'.*'val'"),
        ({"data": "ade20k:nowhere"}, "There is no nowhere/images"),
        ({"batch_size": 4, "accumulate": 4}, "two crops at least"),
        ({"sharding": "fsdp2"}, "leave --sharding at ddp"),
        ({"power": 0.0}, "power is above 0"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DigptError, match=message) as raised:
        SegmentTask(dataclasses.replace(TINY, **changes))
    assert "\n" not in str(raised.value)


def test_blocks_that_end_with_the_last_are_read() -> None:
    task = start("random", depth=4, blocks=(1, 1, 2, 3))
    assert task.module.config.blocks == (1, 1, 2, 3)
    images = torch.rand(2, 3, 32, 32)
    sum(F.mse_loss(part, part + 1) for part in task.module.eval()(images)).backward()
    assert all(p.grad is not None for p in task.module.parameters())


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ("--val-data masks:x", "--val-data changes nothing with --data scenes"),
        ("--reduce-zero", "--reduce-zero changes nothing with --data scenes"),
        ("--no-reduce-zero", "--reduce-zero changes nothing with --data scenes"),
        ("--data ade20k:x --splits val", "--splits changes nothing with --data ade20k:x"),
        ("--data masks:x --scenes 5", "--scenes changes nothing"),
        ("b16_in1k --eval-scenes 5", "--eval-scenes changes nothing with --data ade20k:data"),
        ("--data masks:x --scene-classes 5", "--scene-classes changes nothing"),
        ("--inference whole", "--inference changes nothing with --data scenes"),
        ("--data masks:x --data-root y", "--data-root changes nothing"),
        ("--encoder bundled --variant B/16", "--variant shapes a random encoder"),
        ("--encoder random --variant B/16 --depth 3", ""),
        ("--data masks:x --reduce-zero --val-data masks:y", ""),
        ("b16_in1k --miniature --splits val --scenes 9", ""),
    ],
)
def test_options_of_other_data_are_refused(given: str, refused: str) -> None:
    with pytest.raises(ConfigError, match=refused) if refused else nullcontext():
        parse("segment", given.split())


def test_micro_batches_are_part_of_the_run_because_batch_norm_sees_them(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, steps=1, output=tmp_path)
    train(SegmentTask(config), quiet())
    with pytest.raises(ConfigError, match=r"accumulate \(1 there, 2 now\)"):
        train(SegmentTask(dataclasses.replace(config, accumulate=2)), quiet())


def test_the_scale_follows_the_crop_unless_it_is_given() -> None:
    assert parse("segment", ["--crop", "128"]).fitted == (512, 128)
    assert parse("segment", ["--crop", "128", "--scale", "300", "150"]).fitted == (300, 150)
    full = load_recipe("b16_in1k", "segment")
    assert full.fitted == (2048, 512) and full.to_dict()["scale"] == [2048, 512]
    assert full.inference_config().stride == 341
