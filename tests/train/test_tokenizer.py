"""Our own discrete tokenizer: its codebook by hand, its training, its file."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from digpt.errors import CheckpointError, ConfigError
from train.keyed import keyed_bits
from train.targets import load_tokenizer
from train.targets.tokenizer_model import RESTART, Codebook, TokenizerCheckpoint, VqConfig, VqTokenizer

TINY = VqConfig(patch_size=4, codebook_size=12, code_width=6, width=8)
DOTS = VqConfig(patch_size=4, codebook_size=4, code_width=2, decay=0.9, restart_below=0.05)


def pictures(count: int = 16, size: int = 16) -> Tensor:
    """Blocky pictures of few colours, so that codes have something to find."""
    generator = torch.Generator().manual_seed(3)
    colours = torch.rand(5, 3, generator=generator)
    chosen = torch.randint(0, 5, (count, size // 4, size // 4), generator=generator)
    return F.interpolate(colours[chosen].permute(0, 3, 1, 2), scale_factor=4)


def checkpoint(model: VqTokenizer) -> TokenizerCheckpoint:
    return TokenizerCheckpoint(model.config, model.state_dict(), {"command": "test", "numbers": (1, 2)})


def test_codes_are_the_nearest_of_the_codebook_in_raster_order() -> None:
    model, images = VqTokenizer(TINY).eval(), pictures(3)
    codes = model.codes(images)
    assert codes.shape == (3, 16) and codes.dtype == torch.int64
    features = model.features(images)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3, 4, 4))
    for y in range(4):
        for x in range(4):
            distance = (features[1, y, x] - model.codebook.codes).square().sum(-1)
            assert codes[1, y * 4 + x] == distance.argmin()
    wide = model.codes(pictures(2, 16).repeat(1, 1, 1, 2))  # 4 x 8 codes
    assert wide.shape == (2, 32)
    assert model.decode(codes, (4, 4)).shape == (3, 3, 16, 16)


def unit(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_codebook_follows_the_mean_of_its_features() -> None:
    book = Codebook(DOTS, seed=1)
    book.codes.copy_(unit(0, 90, 180, 270))
    features = unit(10, 20, 80, 170, 190, 200, 275)
    book.follow(features)
    # the first update of a bias-corrected average takes the batch as it is
    expected = [features[:2], features[2:3], features[3:6], features[6:]]
    for code, members in enumerate(expected):
        torch.testing.assert_close(book.codes[code], F.normalize(members.sum(0), dim=0))
    torch.testing.assert_close(book.usage, torch.tensor([2.0, 1.0, 3.0, 1.0]))
    later = unit(0, 90, 180, 270)
    before = [members.sum(0) for members in expected]
    book.follow(later)
    weight = 0.1 / (1 - 0.9**2)
    for code in range(4):
        mixed = before[code] * (1 - weight) + later[code] * weight
        torch.testing.assert_close(book.codes[code], F.normalize(mixed, dim=0))


def test_codes_out_of_use_start_again_at_a_feature_keyed_by_seed_and_update() -> None:
    features = unit(*range(0, 40, 2))  # all near code 0
    books = []
    for seed in (1, 1, 2):
        book = Codebook(DOTS, seed)
        book.codes.copy_(unit(0, 90, 180, 270))
        book.updates.fill_(5)
        book.follow(features)
        books.append(book)
    draws = keyed_bits(1, np.array([5]), np.zeros(1, np.int64), 4, RESTART)[0] % np.uint64(20)
    for code in (1, 2, 3):
        torch.testing.assert_close(books[0].codes[code], features[int(draws[code])])
    assert torch.equal(books[0].codes, books[1].codes) and not torch.equal(books[0].codes, books[2].codes)
    assert books[0].usage[1:].tolist() == [1.0] * 3 and books[0].usage[0] > 1


def test_fresh_features_point_everywhere_once_their_statistics_are_known() -> None:
    model, images = VqTokenizer(TINY), pictures()
    collapsed = F.normalize(model._raw(images), dim=-1).flatten(0, 2)
    model(images)
    spread = model.features(images).flatten(0, 2)
    assert spread.mean(0).norm() < 0.4 < collapsed.mean(0).norm()
    raw = model._raw(images).flatten(0, 2)
    torch.testing.assert_close(spread, F.normalize((raw - raw.mean(0)) / raw.std(0, correction=0), dim=-1))
    model(pictures().flip(1))
    weight, other = 0.1 / (1 - 0.9**2), model._raw(pictures().flip(1)).flatten(0, 2)
    torch.testing.assert_close(model.scale.mean, raw.mean(0) * (1 - weight) + other.mean(0) * weight)


def test_gradients_pass_straight_through_to_the_encoder_and_not_to_the_codebook() -> None:
    model, images = VqTokenizer(dataclasses.replace(TINY, commitment=0.0)).eval(), pictures(2)
    first = cast(torch.nn.Conv2d, model.encoder[0])
    features = model.features(images)
    nearest = model.codebook.codes[model.codebook.nearest(features.detach().flatten(0, 2))].view_as(features)
    free = nearest.clone().requires_grad_(True)
    reconstruction = ((model.decoder(free.permute(0, 3, 1, 2)) + 1) / 2 - images).square().mean()
    (wanted,) = torch.autograd.grad(reconstruction, free)
    (expected,) = torch.autograd.grad(features, first.weight, wanted)
    losses = model(images)
    losses["loss"].backward()
    assert losses["loss"].item() == pytest.approx(reconstruction.item(), abs=1e-6)
    torch.testing.assert_close(first.weight.grad, expected, atol=1e-7, rtol=1e-4)
    assert all(p.grad is not None for p in model.parameters())
    assert "codebook.codes" in model.state_dict() and "codebook.codes" not in dict(model.named_parameters())
    before = model.codebook.codes.clone()
    model(images)
    assert torch.equal(model.codebook.codes, before)  # in eval mode nothing follows
    model.train()(images)
    assert not torch.equal(model.codebook.codes, before)


def test_training_learns_to_reconstruct_with_many_codes_and_repeats_to_the_bit() -> None:
    images = pictures()

    def trained() -> tuple[VqTokenizer, list[float], float]:
        torch.manual_seed(0)
        model = VqTokenizer(TINY, seed=4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        errors = []
        for _ in range(60):
            values = model(images)
            optimizer.zero_grad()
            values["loss"].backward()
            optimizer.step()
            errors.append(values["reconstruction"].item())
        return model, errors, values["perplexity"].item()

    (model, errors, perplexity), (again, _, _) = trained(), trained()
    assert errors[-1] < images.var().item() / 4 < errors[0]
    assert perplexity > 3
    assert len(model.eval().codes(images).unique()) >= 4
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_file_round_trip_and_fingerprint(tmp_path: Path) -> None:
    model, images = VqTokenizer(TINY, seed=2).eval(), pictures(2)
    fingerprint = checkpoint(model).write(tmp_path / "t.pt")
    loaded = load_tokenizer(tmp_path / "t.pt")
    assert loaded.fingerprint == fingerprint and fingerprint.startswith("sha256:") and len(fingerprint) == 71
    assert loaded.provenance == {"command": "test", "numbers": [1, 2]}
    assert (loaded.patch_size, loaded.codebook_size) == (4, 12)
    assert torch.equal(loaded.codes(images), model.codes(images))
    assert torch.load(tmp_path / "t.pt", weights_only=True)["format"] == "digpt-tokenizer"
    with torch.no_grad():
        cast(torch.nn.Conv2d, model.decoder[0]).weight.add_(1)
        assert checkpoint(model).write(tmp_path / "t.pt") == fingerprint  # the decoder decides no code
        model.codebook.codes[0] *= -1
        changed = checkpoint(model).write(tmp_path / "t.pt")
    assert changed != fingerprint
    half = checkpoint(model).write(tmp_path / "half.pt", "float16")
    assert load_tokenizer(tmp_path / "half.pt").fingerprint == half != changed
    assert not list(tmp_path.glob("*.tmp*"))


def test_files_that_are_not_tokenizers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    checkpoint(VqTokenizer(TINY)).write(path)
    document = torch.load(path, weights_only=True)
    torch.save({**document, "version": 9}, path)
    with pytest.raises(CheckpointError, match="tokenizer version 9; this digpt reads 1"):
        load_tokenizer(path)
    torch.save({**document, "config": {**document["config"], "code_width": 7}}, path)
    with pytest.raises(CheckpointError, match="Train the tokenizer again"):
        load_tokenizer(path)
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"no tokenizer: make one with python -m train\.tokenizer"):
        load_tokenizer(path)
    with pytest.raises(CheckpointError, match="No such file"):
        load_tokenizer(tmp_path / "u.pt")


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="patch_size=14 must be a power of two"):
        VqConfig(patch_size=14)
    with pytest.raises(ConfigError, match="codebook_size=1 must be at least 2"):
        VqConfig(codebook_size=1)
    with pytest.raises(ConfigError, match="decay=1"):
        VqConfig(decay=1.0)


TWO = """
import sys, torch, torch.distributed as dist
from train.targets.tokenizer_model import VqConfig, VqTokenizer
rank, world, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if world > 1:
    dist.init_process_group("gloo", rank=rank, world_size=world)
torch.manual_seed(0)
model = VqTokenizer(VqConfig(patch_size=4, codebook_size=16, code_width=4, width=8, restart_below=0.5), seed=3)
images = torch.rand(5, 8, 3, 8, 8)
for batch in images:
    model(batch.chunk(world)[rank])
state = {n: v for n, v in model.state_dict().items() if n.startswith(("codebook.", "scale."))}
torch.save(state, f"{path}/{world}_{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_keep_the_codebook_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    runs = [
        subprocess.Popen([sys.executable, "-c", TWO, str(rank), str(world), str(tmp_path)], cwd=root, env=environment)
        for rank, world in ((0, 1), (0, 2), (1, 2))
    ]
    assert [run.wait(timeout=120) for run in runs] == [0, 0, 0]
    one, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(value, first[name], atol=1e-5, rtol=1e-5)
