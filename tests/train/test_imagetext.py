"""Tuning on image-text pairs from shards: both towers, an open_clip text tower, a checkpoint that embeds both."""

from __future__ import annotations

import dataclasses
import io
import json
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
from digpt.errors import CapabilityError, ConfigError
from digpt.sources import load_model
from train.clock import Clock
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
    tower, text, _ = text_tower(library[0])
    tokens = open_clip.get_tokenizer(NAME)(["a photo of a cat", "rain"])
    with torch.no_grad():
        assert torch.allclose(tower(tokens), library[1].encode_text(tokens), atol=1e-5)
    assert text["tokenizer"] == f"open_clip:{NAME}" and text["tower"]["context_length"] == 77
    with pytest.raises(CapabilityError, match="openclip-h"):
        text_tower("bundled-teacher")


def test_pairs_are_tuned_counted_and_the_checkpoint_embeds_both(
    library: tuple[str, Any], shards: Path, tmp_path: Path
) -> None:
    config = config_for(library, shards, tmp_path)
    task = PairsTask(config)
    task.evaluate = lambda evaluation: {}  # type: ignore[method-assign]  # its pairs are read strictly
    path = train(task, Console(file=io.StringIO()))
    checkpoint, model = read_checkpoint(path), load_model(str(path))
    assert checkpoint.provenance["notes"]["bad_samples"] >= 2
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
