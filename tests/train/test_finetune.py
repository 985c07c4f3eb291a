"""Finetuning: the README's own line on scikit-learn's digits, timm's parameter groups, moving averages, drop path."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shlex
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

from digpt.artifact import read_checkpoint
from digpt.engine import Engine
from digpt.errors import ConfigError, DataError
from digpt.preprocess import Preprocess
from train import finetune
from train.clock import Clock
from train.config import parse
from train.drop_path import KeyedDropPath
from train.finetune import FinetuneConfig, FinetuneTask
from train.loop import train
from train.share import Share
from train.sources import EmojiClasses

ROOT = Path(__file__).resolve().parents[2]
QUICK = {
    "--steps": "50",
    "--warmup": "5",
    "--batch-size": "32",
    "--threads": "1",
    "--workers": "0",
    "--eval-every": "50",
}
TINY = FinetuneConfig(
    encoder="random", depth=2, steps=4, batch_size=8, warmup=1, log_every=1, eval_every=100, threads=1, splits=(),
    keep_last=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DIR/train/CLASS/N.png and DIR/val/CLASS/N.png of scikit-learn's digits."""
    root, data = tmp_path_factory.mktemp("digits"), load_digits()
    for number, (image, label) in enumerate(zip(data.images[:900], data.target[:900], strict=True)):
        folder = root / ("val" if number % 4 == 0 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray((image * 15.9).astype("uint8"))
        pixels.resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return root


def readme_command() -> list[str]:
    """The arguments of the README's finetuning line."""
    found = re.search(r"^python -m train\.finetune (--data .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert found is not None
    return shlex.split(found[1])


def test_the_readmes_line_finetunes_on_a_folder_of_pictures_and_the_result_serves(digits: Path, tmp_path: Path) -> None:
    arguments = [part.replace("my-pictures", str(digits)) for part in readme_command()]
    arguments = [str(tmp_path / "run") if part == "runs/mine" else part for part in arguments]
    quick = [part for pair in QUICK.items() for part in pair]
    path = finetune.run(parse("finetune", [*arguments, *quick]))
    figures = read_checkpoint(path).provenance["figures"]
    assert figures["val_top1"] > 0.5  # chance is 0.1
    assert {"val_top1_shortest", "val_top1_squash"} <= set(figures)
    engine = Engine.load(str(path), threads=1)
    files = sorted((digits / "val").rglob("*.png"))[::4]
    answers = engine.classify([engine.decode(file.read_bytes()) for file in files], top_k=1)
    right = [answer[0].label == file.parent.name for answer, file in zip(answers, files, strict=True)]
    assert np.mean(right) > 0.5
    assert {row["step"] for row in map(json.loads, (path.parent / "metrics.jsonl").read_text().splitlines())} >= {50}


def test_a_folder_without_a_validation_split_is_refused_with_what_to_do(digits: Path, tmp_path: Path) -> None:
    """Before anything is trained."""
    config = dataclasses.replace(TINY, data=f"folder:{digits / 'train'}", output=tmp_path, workers=0)
    with pytest.raises(DataError, match="has no split val, nor any other: make train/ and val/.* --val-data"):
        FinetuneTask(config)
    with pytest.raises(DataError, match=r"There is no .*valid\.$"):
        FinetuneTask(dataclasses.replace(config, val_data=f"folder:{digits / 'valid'}"))
    FinetuneTask(dataclasses.replace(config, val_data=f"folder:{digits / 'val'}"))


def test_labels_are_numbered_as_in_training_where_a_class_is_missing(digits: Path, tmp_path: Path) -> None:
    others = [folder for folder in (digits / "val").iterdir() if folder.name != "3"]
    for folder in others:
        shutil.copytree(folder, tmp_path / "val" / folder.name)
    pictures = {"data": f"folder:{digits}", "val_data": f"folder:{tmp_path / 'val'}", "workers": 0}
    for count in (0, 10):  # saying what the data say anyway changes nothing
        task = FinetuneTask(dataclasses.replace(TINY, **pictures, classes=count, output=tmp_path))
        source = task._validation
        assert source is not None and source.labels is not None
        assert set(source.labels.tolist()) == set(range(10)) - {3}
        assert all(str(label) == source.sample_name(i).split("/")[0] for i, label in enumerate(source.labels))
    with pytest.raises(ConfigError, match="names 10 classes, not 9: leave --classes out"):
        FinetuneTask(dataclasses.replace(TINY, **pictures, classes=9, output=tmp_path))
    with pytest.raises(ConfigError, match="names .* classes, not 10: leave --classes out"):
        FinetuneTask(dataclasses.replace(TINY, classes=10, output=tmp_path))


def test_validation_with_other_classes_than_nameless_training_data_is_refused(digits: Path, tmp_path: Path) -> None:
    """Numbers are all that labels have then, and a missing class would shift them."""
    with webdataset.TarWriter(str(tmp_path / "00000.tar")) as writer:
        for label in range(10):
            picture = next((digits / "train" / str(label)).iterdir()).read_bytes()
            writer.write({"__key__": f"{label:04d}", "png": picture, "cls": str(label)})
    given = {"data": f"wds:{tmp_path / '00000.tar'}", "val_data": f"folder:{digits / 'val'}", "workers": 0}
    config = dataclasses.replace(TINY, **given, classes=10, output=tmp_path / "run")
    assert FinetuneTask(config).data.classes == tuple("0123456789")
    with pytest.raises(DataError, match="names 10 classes, but .* were said to have 12"):
        FinetuneTask(dataclasses.replace(config, classes=12))
    with pytest.raises(ConfigError, match="does not name its classes: say how many"):
        FinetuneTask(dataclasses.replace(config, classes=0))


@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_squash_takes_the_whole_image_in_evaluation_and_in_the_checkpoint(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resize: Any
) -> None:
    used: dict[str, float] = {}

    def none_right(source: Any, preprocess: Preprocess, *others: Any) -> Any:
        used[preprocess.resize] = preprocess.crop_pct
        return [(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), torch.tensor([-1]))]

    monkeypatch.setattr(finetune, "evaluation_batches", none_right)
    config = dataclasses.replace(TINY, data=f"folder:{digits}", workers=0, steps=1, output=tmp_path, resize=resize)
    checkpoint = read_checkpoint(train(FinetuneTask(config), Console(file=io.StringIO())))
    assert used == {"shortest": 0.875, "squash": 1.0}
    served = Preprocess.from_dict(checkpoint.config["preprocess"])
    assert (served.resize, served.crop_pct) == (resize, used[resize])


def test_a_limit_is_a_seeded_choice_of_the_bundled_images(tmp_path: Path) -> None:
    whole, some = FinetuneTask(TINY).data, FinetuneTask(dataclasses.replace(TINY, limit=16)).data
    assert isinstance(whole, EmojiClasses) and isinstance(some, EmojiClasses)
    assert len(some) == 16 < len(whole) and some.fingerprint != whole.fingerprint
    chosen = np.sort(np.random.RandomState(0).permutation(len(whole))[:16])
    assert torch.equal(some.emoji.rgba, whole.emoji.rgba[chosen])
    assert torch.equal(some.emoji.concepts, whole.emoji.concepts[chosen])
    first, second = (some.emoji.batch(step) for step in (0, 1))
    assert sorted([*first.items, *second.items]) == list(range(16))  # 8 a step: an epoch
    assert len(some.split("val")[0]) == len(whole.split("val")[0])
    beyond = FinetuneTask(dataclasses.replace(TINY, limit=10**6)).data
    assert len(beyond) == len(whole) and beyond.fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ("--val-data folder:x", "--val-data changes nothing with --data emoji"),
        ("--data folder:x --splits val", "--splits changes nothing with --data folder:x"),
        ("--data folder:x --augment.flip 0.1", "--augment changes nothing"),
        ("--data folder:x --val-data folder:y --photo.no-exif", ""),
        ("b16_in1k --miniature --splits val", ""),
    ],
)
def test_options_of_the_other_kind_of_data_are_refused(given: str, refused: str) -> None:
    with pytest.raises(ConfigError, match=refused) if refused else nullcontext():
        parse("finetune", given.split())


def test_layer_decay_and_weight_decay_are_timms(tmp_path: Path) -> None:
    task = FinetuneTask(dataclasses.replace(TINY, layer_decay=0.5, weight_decay=0.3, output=tmp_path))
    scale = {id(p): group["lr_scale"] for group in task.parameter_groups() for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in task.parameter_groups() for p in group["params"]}
    module = task.module
    assert scale[id(module.head.weight)] == 1.0
    assert scale[id(module.blocks[1].mlp.fc1.weight)] == 0.5 and scale[id(module.blocks[0].mlp.fc1.weight)] == 0.25
    assert scale[id(module.patch_embed.proj.weight)] == scale[id(module.pos_embed)] == 0.125
    assert module.pos_embed.requires_grad and decay[id(module.pos_embed)] == 0.0
    assert decay[id(module.head.weight)] == 0.3 and decay[id(module.head.bias)] == 0.0
    assert module.head.weight.std().item() == pytest.approx(2e-5, rel=0.2)


def first_loss(config: FinetuneConfig, rows: Any = None) -> torch.Tensor:
    task = FinetuneTask(config)
    (batch,) = next(task.batches(0, Share()))
    task.module.train()
    return task.loss(task.module, batch, Clock())["loss"]


def test_drop_path_is_a_function_of_the_sample(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, drop_path=0.5, output=tmp_path)
    assert torch.equal(first_loss(config), first_loss(config))
    drop = KeyedDropPath(0.5, 0, seed=0).train()
    epochs, items = np.zeros(4000, dtype=np.int64), np.arange(4000)
    drop.draw(epochs, items, torch.device("cpu"))
    ones = drop(torch.ones(4000, 1, 1)).flatten()
    assert set(ones.tolist()) == {0.0, 2.0} and float(ones.mean()) == pytest.approx(1.0, abs=0.06)
    drop.draw(epochs[::-1], items[::-1], torch.device("cpu"))  # another order, the same samples
    assert torch.equal(drop(torch.ones(4000, 1, 1)).flatten().flip(0), ones)
    other = KeyedDropPath(0.5, 1, seed=0).train()
    other.draw(epochs, items, torch.device("cpu"))
    assert not torch.equal(other(torch.ones(4000, 1, 1)).flatten(), ones)
    assert torch.equal(drop.eval()(torch.ones(3, 1, 1)), torch.ones(3, 1, 1))


@pytest.mark.slow
def test_the_moving_average_is_kept_and_survives_a_resumption(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, ema=0.5, save_every=2, output=tmp_path / "straight")
    straight = read_checkpoint(train(FinetuneTask(config), Console(file=io.StringIO())))
    dying, steps = FinetuneTask(dataclasses.replace(config, output=tmp_path / "killed")), []
    after_step = dying.after_step

    def die() -> None:
        after_step()
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt

    dying.after_step = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train(dying, Console(file=io.StringIO()))
    resumed = FinetuneTask(dying.config)
    again = read_checkpoint(train(resumed, Console(file=io.StringIO())))
    for group, named in straight.weights.items():
        for name, value in named.items():
            assert torch.equal(value, again.weights[group][name]), name
    current = resumed.module.state_dict()["head.bias"]
    assert not torch.equal(again.weights["head"]["bias"], current)  # the average, not the last weights
    with pytest.raises(ConfigError, match="--sharding ddp"):
        FinetuneTask(dataclasses.replace(config, sharding="fsdp2"))


def test_positions_are_interpolated_to_another_image_size(digits: Path, tmp_path: Path) -> None:
    data = f"folder:{digits}"
    config = dataclasses.replace(TINY, encoder="bundled", image_size=96, data=data, workers=0, output=tmp_path)
    task = FinetuneTask(config)
    assert task.module.pos_embed.shape == (1, 1 + 36, 192) and task.preprocess.size == 96
    (batch,) = next(task.batches(0, Share()))
    assert batch.images.shape == (8, 3, 96, 96) and batch.targets.shape == (8, 10)
