"""Where the time of a training step goes: operators by part, each with its FLOPs, its bytes and what bounds it.

Used by ``benchmarks.train_step``. FLOPs are those of ``torch.utils.flop_counter``: 2 per multiply-add, matrix products
and attention only; attention counts its dense square, and its backward pass includes recomputing the scores. Bytes are
a lower bound: every operator reads its inputs and writes its output once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

PARTS = ("patch embedding", "linear layers", "attention", "norms, GELU, residuals", "copies, casts, zeros", "losses")
EMBEDDING, INNER = "part: patch embedding", "part: transformer"
BACKWARD = "autograd::engine::evaluate_function"
# First word found in an operator's name decides, in this order, inside the transformer and in its backward pass.
KINDS = (
    ("scaled_dot_product", "attention"),
    ("mm", "linear layers"),
    ("linear", "linear layers"),
    *((word, "copies, casts, zeros") for word in ("copy", "cat", "fill", "zero", "clone", "empty")),
)


@dataclass
class Part:
    """What one part of a step takes."""

    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0


@contextmanager
def marked(objective: nn.Module) -> Iterator[None]:
    """Name the ranges of the forward pass: the patch embedding, and what runs inside encoder blocks and decoders.

    The rest of the forward pass, ordering targets included, belongs to the losses.
    """
    import train.objective.digpt as module

    def embed(original: Callable[..., Tensor], *arguments: Any) -> Tensor:
        with record_function(EMBEDDING):
            return original(*arguments)

    ranges: list[record_function] = []

    def enter(*_: object) -> None:
        ranges.append(record_function(INNER))
        ranges[-1].__enter__()

    def leave(*_: object) -> None:
        ranges.pop().__exit__(None, None, None)

    decoders = [objective.get_submodule(name) for name in ("gen", "dis")]
    handles = []
    for part in (*objective.get_submodule("encoder.blocks").children(), *decoders):
        handles += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
    try:
        with mock.patch.object(module, "embed_visible", partial(embed, module.embed_visible)):
            yield
    finally:
        for handle in handles:
            handle.remove()


def profiled(objective: nn.Module, forward: Callable[[], Tensor], item_size: int) -> dict[str, Part]:
    """Profile one forward and backward pass -> seconds and bytes by part; ``item_size``: bytes per value."""
    with marked(objective), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        forward().backward()
    events = list(recorded.events() or ())
    ranges = {
        event.sequence_nr: region(event) for event in events if event.sequence_nr >= 0 and not within_backward(event)
    }
    parts: dict[str, Part] = defaultdict(Part)
    for event in events:
        if event.name in (EMBEDDING, INNER):
            continue  # self time of a range is Python's
        backward = within_backward(event)
        origin = ranges.get(backward.sequence_nr, "") if backward else region(event)
        part = parts[part_of(event.name, origin)]
        part.seconds += event.self_cpu_time_total / 1e6
        part.bytes += item_size * moved(event.name, event.input_shapes or ())
    return dict(parts)


def ancestors(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """The event and all that encloses it, from the inside out."""
    current: FunctionEvent | None = event
    while current is not None:
        yield current
        current = current.cpu_parent


def within_backward(event: FunctionEvent) -> FunctionEvent | None:
    """The node of the backward pass in which ``event`` ran; it carries the number of its forward operator."""
    return next((outer for outer in ancestors(event) if outer.name.startswith(BACKWARD)), None)


def region(event: FunctionEvent) -> str:
    """The marked range of the forward pass around ``event``, empty outside of both."""
    return next((outer.name for outer in ancestors(event) if outer.name in (EMBEDDING, INNER)), "")


def part_of(operator: str, origin: str) -> str:
    """The part that an operator of the range ``origin`` belongs to."""
    if origin == EMBEDDING:
        return "patch embedding"
    if "AccumulateGrad" in operator:
        return "copies, casts, zeros"
    if origin != INNER:
        return "losses"
    return next((part for word, part in KINDS if word in operator), "norms, GELU, residuals")


def moved(operator: str, shapes: Sequence[Any]) -> int:
    """Values that an operator must read and write, from the shapes of its inputs; 0 for what only makes a view."""
    sizes = [math.prod(shape) for shape in shapes if shape and all(isinstance(size, int) for size in shape)]
    name = operator.removeprefix("aten::")
    if not operator.startswith("aten::") or not sizes or name in VIEWS:
        return 0
    if name in ("mm", "addmm", "bmm"):
        left, right = [shape for shape in shapes if len(shape) > 1][-2:]
        return sum(sizes) + math.prod(left[:-1]) * right[-1]
    if name in ("fill_", "zero_"):
        return sizes[0]
    if name == "sum":
        return max(sizes)
    if name.startswith("_scaled_dot_product") and name.endswith("backward"):
        return sum(sizes) + 3 * sizes[0]  # gradients of q, k and v
    return sum(sizes) if name.endswith("_") else sum(sizes) + max(sizes)


# Operators that call others, which are counted themselves, or that only change how memory is read.
VIEWS = frozenset(
    [
        "t",
        "view",
        "reshape",
        "transpose",
        "permute",
        "expand",
        "as_strided",
        "unsqueeze",
        "squeeze",
        "select",
        "slice",
        "detach",
        "alias",
        "unflatten",
        "flatten",
        "unbind",
        "chunk",
        "split",
        "narrow",
        "_unsafe_view",
        "_reshape_alias",
        "empty",
        "empty_like",
        "empty_strided",
        "resize_",
        "linear",
        "layer_norm",
        "matmul",
        "clone",
        "contiguous",
        "to",
        "_to_copy",
        "zeros",
        "zeros_like",
        "ones_like",
        "new_zeros",
        "scaled_dot_product_attention",
        "expand_as",
        "pad",
        "constant_pad_nd",
        "select_backward",
        "slice_backward",
        "stack",
        "is_nonzero",
        "item",
        "_local_scalar_dense",
        "lift_fresh",
    ]
)


def counted(forward: Callable[[], Tensor]) -> dict[str, float]:
    """FLOPs of one forward and backward pass: linear layers (with the patch embedding), attention, losses."""
    with FlopCounterMode(display=False) as counter:
        forward().backward()
    totals: dict[str, float] = defaultdict(float)
    for operator, flops in counter.get_flop_counts()["Global"].items():
        name = str(operator)
        kind = "attention" if "attention" in name else "losses" if "bmm" in name else "linear layers"
        totals[kind] += flops
    return dict(totals)


def bandwidth(best_seconds: Callable[..., float], megabytes: int = 256) -> float:
    """Bytes per second that a large copy reads and writes together."""
    source = torch.ones(megabytes * 2**18)
    return 2 * source.nbytes / best_seconds(partial(torch.empty_like(source).copy_, source), 3, 0.1)


def roofline(
    objective: nn.Module,
    forward: Callable[[], Tensor],
    optimiser_seconds: float,
    item_size: int,
    embedding_flops: float,
    trainable: int,
) -> dict[str, Part]:
    """Seconds, FLOPs and bytes of every part of a step, the optimiser included, in the order of ``PARTS``.

    Args:
        forward: computes the loss of a fixed batch.
        optimiser_seconds: what one update takes.
        item_size: bytes per value of the computing precision.
        embedding_flops: FLOPs of the patch embedding, which the counter cannot tell from other linear layers.
        trainable: number of trained values; AdamW reads four of float32 for each and writes three.
    """
    parts, flops = profiled(objective, forward, item_size), counted(forward)
    flops["linear layers"] -= embedding_flops
    flops["patch embedding"] = embedding_flops
    ordered = {name: parts.get(name, Part()) for name in PARTS}
    for name, part in ordered.items():
        part.flops = flops.get(name, 0.0)
    ordered["AdamW"] = Part(optimiser_seconds, 0.0, 7 * 4 * trainable)
    return ordered
