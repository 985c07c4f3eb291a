"""Batch norm over two processes against torch's own over both batches at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from train.sync_norm import CpuSyncBatchNorm, synchronised

STEPS = 2


def model() -> nn.Sequential:
    """Two batch norms, one of them nested, with weights and statistics that are not the initial ones."""
    torch.manual_seed(0)
    built = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.3), nn.Sequential(nn.BatchNorm2d(4)))
    for part in built.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.5)
            nn.init.normal_(part.bias)
            assert part.running_mean is not None
            part.running_mean.normal_()
    return built


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Maps whose halves have different means, and what the loss multiplies them with."""
    generator = torch.Generator().manual_seed(step)
    maps = torch.randn(6, 3, 5, 4, generator=generator) + torch.arange(6.0)[:, None, None, None]
    return maps, torch.randn(6, 4, 5, 4, generator=generator)


def trained(built: nn.Module, rows: slice) -> dict[str, Any]:
    """Outputs, gradients of the maps and summed gradients of the parameters in a few steps over some rows."""
    found: dict[str, Any] = {"outputs": [], "maps": []}
    for step in range(STEPS):
        maps, factor = (value[rows] for value in batch(step))
        maps.requires_grad_(True)
        output = built(maps)
        (output * factor).sum().backward()
        found["outputs"].append(output.detach())
        found["maps"].append(maps.grad)
    found["gradients"] = {name: p.grad for name, p in built.named_parameters()}
    found["state"] = {name: value.clone() for name, value in built.state_dict().items()}
    return found


def one_of_two(rank: int, folder: str) -> None:
    """A process with half of each batch; writes what it found."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    built = model().train()
    before = {name: value.clone() for name, value in built.state_dict().items()}
    synchronised(built, torch.device("cpu"))
    after = built.state_dict()
    assert list(before) == list(after) and all(torch.equal(after[name], value) for name, value in before.items())
    norms = [part for part in built.modules() if isinstance(part, nn.BatchNorm2d)]
    assert [type(part) for part in norms] == [CpuSyncBatchNorm] * 2 and all(part.training for part in norms)
    assert [part.momentum for part in norms] == [0.3, 0.1]
    found = trained(built, slice(3 * rank, 3 * rank + 3))
    found["half"] = norms[1](batch(0)[1][3 * rank : 3 * rank + 3].bfloat16()).detach()
    built.eval()
    found["eval"] = built(batch(9)[0]).detach()
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_outputs_gradients_and_statistics_of_the_joined_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    joined = model().train()
    whole = trained(joined, slice(0, 6))
    for key in ("outputs", "maps"):
        for step in range(STEPS):
            both = torch.cat([part[key][step] for part in parts])
            assert torch.allclose(both, whole[key][step], atol=1e-5), (key, step)
    for name, gradient in whole["gradients"].items():
        assert torch.allclose(sum(part["gradients"][name] for part in parts), gradient, atol=1e-3, rtol=1e-5), name
    for part in parts:
        for name, value in whole["state"].items():
            assert torch.allclose(part["state"][name], value, atol=1e-6), name
        assert part["state"]["1.num_batches_tracked"] == STEPS
    half = joined[2][0](batch(0)[1].bfloat16())
    assert parts[0]["half"].dtype == torch.bfloat16
    assert torch.allclose(torch.cat([part["half"] for part in parts]).float(), half.float(), atol=0.05)
    joined.eval()
    assert all(torch.allclose(part["eval"], joined(batch(9)[0]), atol=1e-5) for part in parts)
    alone = trained(model().train(), slice(0, 3))["outputs"][0]  # the control: a half's own statistics differ
    assert not torch.allclose(parts[0]["outputs"][0], alone, atol=0.1)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_changes_in_a_single_process(device: str) -> None:
    built = model()
    synchronised(built, torch.device(device))
    assert [type(part) for part in built.modules() if isinstance(part, nn.BatchNorm2d)] == [nn.BatchNorm2d] * 2
