"""Every paradigm over two processes, copied (DDP) or sharded (FSDP2, block by block): the losses of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from digpt.encoder import build_encoder, encoder_config
from train.objective import PARADIGMS, build_paradigm
from train.objective.clusters import random_permutation
rank, world, mode, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group("gloo", rank=rank, world_size=world)
widths = {"tokens": 12, "pixels": 768, "codes": 10}
found = {}
for name, entry in PARADIGMS.items():
    for kind in entry.kinds:
        torch.manual_seed(0)
        encoder = build_encoder(encoder_config("Ti/16", 64, embed_dim=32, num_heads=2, depth=4))
        options = {} if name in ("fd", "kd", "eva") else {"decoder_width": 32, "decoder_heads": 2, "decoder_depth": 1}
        if name in ("digpt", "gen", "igpt", "gen_fd"):
            options["taps"] = (1, 2, 3, 4)
        paradigm = build_paradigm(
            name, encoder, target_kind=kind, teacher_grid=(4, 4), teacher_width=widths[kind], **options
        )
        paradigm.set_grad_checkpointing(mode == "fsdp2")
        model = paradigm
        if world > 1 and mode == "ddp":
            model = DistributedDataParallel(paradigm)
        elif world > 1:
            mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
            for block in paradigm.blocks():
                fully_shard(block, mesh=mesh)
            fully_shard(paradigm, mesh=mesh)
        optimizer = torch.optim.SGD(paradigm.parameters(), lr=0.1)
        losses = []
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            images = torch.randn(4, 3, 64, 64, generator=generator)
            shape = {"tokens": (4, 17, 12), "pixels": (4, 16, 768), "codes": (4, 16)}[kind]
            targets = torch.randn(shape, generator=generator)
            targets = (targets.abs() * 3).long() if kind == "codes" else targets
            order = random_permutation(4, paradigm.units, generator=generator)
            rows = slice(rank * 4 // world, (rank + 1) * 4 // world)
            loss = model(images[rows], targets[rows], order[rows]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mean = loss.detach() / world
            if world > 1:
                dist.all_reduce(mean)
            losses.append(mean.item())
        found[f"{name} {kind}"] = losses
if rank == 0:
    json.dump(found, open(path, "w"))
if world > 1:
    dist.destroy_process_group()
"""


def losses(folder: Path, world: int, mode: str) -> dict[str, list[float]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    path, root = folder / f"{mode}{world}.json", Path(__file__).parents[2]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(world), mode, str(path)], cwd=root, env=environment
        )
        for rank in range(world)
    ]
    assert [run.wait(timeout=250) for run in runs] == [0] * world
    found: dict[str, list[float]] = json.loads(path.read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_two_processes_train_what_one_does(tmp_path: Path, mode: str) -> None:
    """Three steps: the later losses also need equal gradients. FSDP2 runs with activation checkpointing."""
    one, two = losses(tmp_path, 1, mode), losses(tmp_path, 2, mode)
    assert set(one) == set(two) and len(one) == 14
    for pair, expected in one.items():
        assert two[pair] == pytest.approx(expected, abs=1e-5), pair
        assert len(set(expected)) == 3
