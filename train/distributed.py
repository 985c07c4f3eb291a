"""Devices and processes: accelerate starts the processes and copies the model (DDP), torch's ``fully_shard`` shards it.

One process is the case of one; the same command runs under ``accelerate launch`` and ``torchrun``. accelerate's own
FSDP is not used because it is silently DDP on CPUs, where this is tested (docs/decisions/fsdp2-by-fully-shard.md).
"""

from __future__ import annotations

import atexit
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import DistributedType
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import Tensor, nn, optim
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.nn.functional import all_gather
from torch.nn.parallel import DistributedDataParallel

from digpt.errors import ConfigError, MissingDependencyError, near_misses
from train.config import TrainConfig
from train.share import Share

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def leave_group() -> None:
    """End the group of processes: its threads must not outlive the interpreter, which would abort a finished run."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Processes:
    """The processes that train together: what each computes, on what, and how they agree."""

    def __init__(self, config: TrainConfig) -> None:
        torch.set_num_threads(config.threads)
        self.config = config
        self.accelerator = Accelerator(
            # without a GPU, accelerate forms a group of processes only when it is told that CPUs are meant
            cpu=config.device == "cpu" or not torch.accelerator.is_available(),
            log_with=_trackers(config) or None,
            project_dir=str(config.output),
        )
        if torch.distributed.is_initialized():
            atexit.register(leave_group)
        kind = self.accelerator.distributed_type
        if kind == DistributedType.FSDP and not self.sharded:
            raise ConfigError("accelerate's configuration asks for FSDP: say --sharding fsdp2 as well.")
        if kind not in (*_PLAIN, DistributedType.FSDP):
            raise ConfigError(f"{kind} is not supported: use DDP, or --sharding fsdp2.")
        self.share = Share(self.accelerator.process_index, self.accelerator.num_processes, config.accumulate)
        self.share.micro_batch(config.batch_size)  # refuse a batch that does not divide

    @property
    def device(self) -> torch.device:
        return torch.device(self.accelerator.device)

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return bool(self.accelerator.is_main_process)

    @property
    def sharded(self) -> bool:
        """Whether the processes hold shards of the model instead of copies."""
        return self.config.sharding == "fsdp2"

    def wrap(self, module: nn.Module, blocks: list[nn.Module]) -> nn.Module:
        """Move ``module`` to the device, compile its blocks, and prepare it for several processes."""
        module.to(self.device)
        if self.config.compile:
            for block in blocks:
                block.compile(backend=self.config.compile)
        if self.share.world == 1:
            return module
        if not self.sharded:
            ids = [self.device.index] if self.device.type == "cuda" else None
            return DistributedDataParallel(module, device_ids=ids)
        bf16 = self.config.precision == "bf16"
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
        for block in blocks:
            fully_shard(block, mp_policy=policy)
        fully_shard(module, mp_policy=policy)  # in place
        _make_root(module)
        return module

    def accumulating(self, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Exchange gradients after the last micro-batch only."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
        if isinstance(model, DistributedDataParallel) and not last:
            return model.no_sync()
        return nullcontext()

    def autocast(self) -> AbstractContextManager[None]:
        """bfloat16 where the configuration says so."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        """Inside, every process holds the whole model, so that evaluations may call its parts as they like.

        Shards in bf16 need autocast: only a call of the model itself would cast what goes in.
        """
        shards = [part for part in model.modules() if isinstance(part, FSDPModule)]
        for part in shards:
            part.unshard()
            part.set_reshard_after_forward(False, recurse=False)
        try:
            with self.autocast() if shards else nullcontext():
                yield
        finally:
            for part in shards:
                part.set_reshard_after_forward(part is not model, recurse=False)
                part.reshard()

    def agree(self, norm: Tensor, flag: bool) -> tuple[float, bool]:
        """The gradient's norm, NaN where it is not finite in any process, and whether any raised the flag.

        The one time per step that the host waits for the device.
        """
        bad, raised = ~norm.isfinite(), torch.full((), flag, device=norm.device)
        together = torch.stack([bad.double(), raised.double(), norm.double().nan_to_num()])
        if self.share.world > 1:
            torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
        failed, asked, value = together.tolist()
        return math.nan if failed else value, bool(asked)

    def gathered(self, value: Any) -> list[Any]:
        """A picklable value of every process."""
        if self.share.world == 1:
            return [value]
        found: list[Any] = [None] * self.share.world
        torch.distributed.all_gather_object(found, value)
        return found

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return values if self.share.world == 1 else self.accelerator.reduce(values, "sum")

    def mean(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Scalars averaged over all processes."""
        stacked = torch.stack([value.detach().float().to(self.device) for value in values.values()])
        numbers = (self.total(stacked) / self.share.world).tolist()
        return dict(zip(values, numbers, strict=True))

    def wait(self) -> None:
        """Until every process is here."""
        self.accelerator.wait_for_everyone()

    def state(self, model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Any]:
        """The whole model and optimiser by parameter name, on the CPU: any number of processes can go on with it."""
        module, moments = get_state_dict(model, optimizer, options=WHOLE)
        return {"module": module, "optimizer": moments}

    def load(self, model: nn.Module, optimizer: optim.Optimizer, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state`, strict."""
        set_state_dict(
            model,
            optimizer,
            model_state_dict=state["module"],
            optim_state_dict=state["optimizer"],
            options=WHOLE,
        )

    def start_trackers(self, config: dict[str, Any]) -> None:
        """Open the trackers that the configuration names; metrics.jsonl is written in any case."""
        if self.config.trackers:
            flat = {key: value if isinstance(value, (int, float)) else str(value) for key, value in config.items()}
            self.accelerator.init_trackers("digpt", config=flat)

    def track(self, values: dict[str, float], step: int) -> None:
        """Hand numbers to the trackers."""
        if self.config.trackers:
            self.accelerator.log(values, step=step)

    def finish(self) -> None:
        """Close the trackers."""
        for tracker in self.accelerator.trackers:
            tracker.finish()


def gather(values: Tensor) -> Tensor:
    """``[B, ...]`` of every process in order of rank, ``[world*B, ...]``, with gradients to all of them."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return values
    if not values.requires_grad:
        parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, values.contiguous())
        return torch.cat(parts)
    return torch.cat(all_gather(values))


def _make_root(module: Any) -> None:
    """Have FSDP2 take ``module`` for the root: else a block that an evaluation calls first would become one."""
    module.touch = lambda: None
    register_fsdp_forward_method(module, "touch")
    with torch.no_grad():
        module.touch()
    module.reshard()


_PLAIN = tuple(kind for name in ("NO", "MULTI_CPU", "MULTI_GPU") if (kind := getattr(DistributedType, name, None)))


def _trackers(config: TrainConfig) -> list[str]:
    """The named trackers; accelerate itself would leave out a missing one without a word."""
    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    available = [str(name) for name in get_available_trackers()]
    for name in config.trackers:
        if name not in known:
            raise ConfigError(f"Unknown tracker {name!r}; valid: {', '.join(known)}.{near_misses(name, known)}")
        if name not in available:
            raise MissingDependencyError(f"The tracker {name} is not installed: pip install {name}, or leave it out.")
    return list(config.trackers)
