"""Tuning on image-text pairs from shards: both towers, an open_clip text tower, a checkpoint that embeds both."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import webdataset
from PIL import Image
from rich.console import Console

from digpt.artifact import read_checkpoint
from digpt.data.pairs import open_pairs
from digpt.errors import CapabilityError, ConfigError, DataError
from digpt.sources import load_model
from train import imagetext
from train.clock import Clock
from train.config import parse
from train.imagetext import PairsTask, text_tower
from train.loop import train
from train.share import Share
from train.zeroshot import ZeroshotConfig

NAME = "ViT-S-32-alt"  # the smallest of open_clip's models with its own text tower


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """A seeded open_clip model in a local file, as a spec, and the model."""
    torch.manual_seed(0)
    model = open_clip.create_model(NAME).eval()
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(model.state_dict(), path)
    return f"open_clip:{NAME}/{path}", model


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards as img2dataset writes them; one pair has no caption, one no readable image."""
    root, rng = tmp_path_factory.mktemp("laion"), np.random.default_rng(0)
    for shard in range(2):
        with webdataset.TarWriter(str(root / f"{shard:05d}.tar")) as writer:
            for number in range(10):
                color = tuple(int(value) for value in rng.integers(0, 256, 3))
                buffer = io.BytesIO()
                Image.new("RGB", (80, 64), color).save(buffer, "JPEG")
                sample = {"__key__": f"{shard:05d}{number:04d}", "jpg": buffer.getvalue()}
                if number != 3:
                    sample["txt"] = f"a wall painted in {color}".encode()
                if number == 7:
                    sample["jpg"] = b"not a picture"
                writer.write(sample)
        (root / f"{shard:05d}_stats.json").write_text(json.dumps({"successes": 10}))
    return root


def config_for(library: tuple[str, Any], shards: Path, output: Path, **changes: Any) -> ZeroshotConfig:
    base = ZeroshotConfig(
        encoder="random", depth=2, teacher=library[0], data=f"wds:{shards}", val_data=f"wds:{shards}", output=output,
        steps=3, batch_size=4, warmup=1, log_every=1, eval_every=100, workers=0, threads=1, max_errors=0.5, keep_last=0,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def test_the_text_tower_is_open_clips_number_by_number(library: tuple[str, Any]) -> None:
    text = text_tower(library[0])
    tokens = open_clip.get_tokenizer(NAME)(["a photo of a cat", "rain"])
    with torch.no_grad():
        assert torch.allclose(text.tower(tokens), library[1].encode_text(tokens), atol=1e-5)
    assert np.array_equal(text.tokenize(["a photo of a cat", "rain"]), tokens.numpy())
    assert text.entry["tokenizer"] == f"open_clip:{NAME}" and text.entry["tower"]["context_length"] == 77
    with pytest.raises(CapabilityError, match="openclip-h"):
        text_tower("bundled-teacher")


def test_the_vision_tower_is_let_go(
    library: tuple[str, Any], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []

    def load(spec: str) -> Any:
        model = load_model(spec)
        loaded.extend(weakref.ref(part) for part in (model, model.module.encoder))
        return model

    monkeypatch.setattr(imagetext, "load_model", load)
    task = PairsTask(config_for(library, shards, tmp_path))
    gc.collect()
    assert len(loaded) == 2 and all(reference() is None for reference in loaded)
    assert task.parents[0]["role"] == "text" and task.parents[0]["fingerprint"].startswith("sha256:")
    assert task.module.logit_scale.exp().item() == pytest.approx(library[1].logit_scale.exp().item())


def test_validation_pairs_that_are_missing_are_refused_before_training(
    library: tuple[str, Any], shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="captoins.csv"):
        PairsTask(config_for(library, shards, tmp_path, val_data=f"csv:{tmp_path / 'captoins.csv'}"))
    with pytest.raises(DataError, match="Did you mean"):
        PairsTask(config_for(library, shards, tmp_path, val_data="wdss:nowhere"))


def test_a_limit_is_a_seeded_choice_of_pairs(library: tuple[str, Any], shards: Path, tmp_path: Path) -> None:
    whole, some = open_pairs(f"wds:{shards}"), open_pairs(f"wds:{shards}", limit=6)
    chosen = sorted(np.random.RandomState(0).permutation(20)[:6].tolist())
    assert [some.sample_name(index) for index in range(6)] == [whole.sample_name(index) for index in chosen]
    good = next(place for place, index in enumerate(chosen) if index % 10 not in (3, 7))
    assert some.read(good) == whole.read(chosen[good]) and some.neighbour(5, 1) == 0
    assert some.fingerprint not in (whole.fingerprint, open_pairs(f"wds:{shards}", limit=7).fingerprint)
    assert open_pairs(f"wds:{shards}", limit=20).fingerprint == whole.fingerprint
    assert len(PairsTask(config_for(library, shards, tmp_path, limit=6)).data) == 6


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ("--val-data csv:x", "--val-data changes nothing with --data emoji"),
        ("--freeze-text", "--freeze-text changes nothing"),
        ("--crop.flip 0.5", "--crop changes nothing"),
        ("--data csv:x --distill 1", "--distill changes nothing with --data csv:x"),
        ("l16_laion128m --augment.flip 0.1", "--augment changes nothing"),
        ("--data csv:x --freeze-text --val-data csv:y", ""),
        ("l16_laion128m --miniature --distill 0.5 --splits val", ""),
    ],
)
def test_options_of_the_other_kind_of_data_are_refused(given: str, refused: str) -> None:
    with pytest.raises(ConfigError, match=refused) if refused else nullcontext():
        parse("zeroshot", given.split())


def test_pairs_are_tuned_counted_and_the_checkpoint_embeds_both(
    library: tuple[str, Any], shards: Path, tmp_path: Path
) -> None:
    config = config_for(library, shards, tmp_path)
    task = PairsTask(config)
    task.evaluate = lambda evaluation: {}  # type: ignore[method-assign]  # its pairs are read strictly
    path = train(task, Console(file=io.StringIO()))
    checkpoint, model = read_checkpoint(path), load_model(str(path))
    assert checkpoint.provenance["notes"]["bad_samples"] >= 2
    with pytest.raises(CapabilityError, match="openclip-h"):
        text_tower(str(path))  # its text tower is open_clip's, but not the file
    assert not torch.equal(checkpoint.weights["text"]["token_embedding.weight"], library[1].token_embedding.weight)
    assert model.text is not None and model.module.projection is not None
    tokens = torch.from_numpy(model.text.tokenize(["a wall painted in red"]))
    with torch.no_grad():
        assert torch.allclose(model.text.module(tokens), task.module.eval().text(tokens), atol=1e-5)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)


def test_the_loss_is_clips_over_the_batch(library: tuple[str, Any], shards: Path, tmp_path: Path) -> None:
    task = PairsTask(config_for(library, shards, tmp_path))
    (batch,) = next(task.batches(0, Share()))
    found = task.loss(task.module, batch, Clock())["loss"]
    with torch.no_grad():
        tokens = open_clip.get_tokenizer(NAME)(batch.texts)
        images = task.module.embed_images((batch.to(torch.device("cpu")).images - 0.5) / 0.5)
        logits = task.module.logit_scale.exp() * images @ task.module.embed_texts(tokens).T
        same = torch.arange(4)
        both = torch.nn.functional.cross_entropy(logits, same), torch.nn.functional.cross_entropy(logits.T, same)
    assert found.item() == pytest.approx((sum(both) / 2).item(), abs=1e-5)


def test_a_frozen_text_tower_stays_and_accumulation_is_refused(
    library: tuple[str, Any], shards: Path, tmp_path: Path
) -> None:
    task = PairsTask(config_for(library, shards, tmp_path, freeze_text=True))
    (batch,) = next(task.batches(0, Share()))
    task.loss(task.module, batch, Clock())["loss"].backward()
    assert all(parameter.grad is None for parameter in task.module.text.parameters())
    assert task.module.projection.weight.grad is not None
    with pytest.raises(ConfigError, match="leave accumulate at 1"):
        task.batches(0, Share(0, 1, 2))
