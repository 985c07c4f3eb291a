"""What training costs per image: floating-point operations, parameters and activation memory, counted on the modules.

Everything is built and run on the ``meta`` device: shapes are computed, numbers are not, and no weights are downloaded.
A multiply-add counts as two operations and a backward pass as twice its forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from digpt.encoder import build_encoder, finetuned_config
from digpt.errors import ConfigError, SpecError, near_misses
from digpt.segmentation import Segmenter
from train.objective import Paradigm, build_paradigm
from train.targets import Target, teacher_skeleton

PROBE = 2  # images of a counted forward pass
MEASURE_SECONDS = 0.5  # the best of what fits into this counts
LARGEST_CUDA, LARGEST_ELSEWHERE = 4096, 1024
SMALLEST = 128
PATIENCE = 0.25  # seconds that one product may take


@dataclass(frozen=True)
class Cost:
    """One training image: FLOPs (backward included), bytes of activations; and the parameters behind them.

    Attributes:
        teacher: FLOPs of what is frozen, forward only.
        encoder: FLOPs of the encoder, forward and backward.
        decoders: FLOPs of everything else that is trained, forward and backward.
        recomputed: FLOPs that activation checkpointing adds: one more forward pass of every block.
        encoder_parameters: of the encoder, fixed positions included.
        trainable: parameters that get a gradient.
        fixed: parameters of the trained module that get none.
        frozen: parameters of the teacher.
        activations: bytes kept from the forward for the backward pass.
        checkpointed: the same with activation checkpointing.
        block_activations: bytes of the largest block, which checkpointing recomputes one at a time.
        block_parameters: parameters of the largest block.
    """

    teacher: float
    encoder: float
    decoders: float
    recomputed: float
    encoder_parameters: int
    trainable: int
    fixed: int
    frozen: int
    activations: float
    checkpointed: float
    block_activations: float
    block_parameters: int

    @property
    def total(self) -> float:
        """FLOPs per image without recomputation: what a utilisation is measured by."""
        return self.teacher + self.encoder + self.decoders


@dataclass(frozen=True)
class Frozen:
    """FLOPs per image, forward only, and parameters of what is not trained."""

    flops: float = 0.0
    parameters: int = 0


NOTHING = Frozen()


def pretrain_modules(
    encoder: Mapping[str, Any], teacher: str, paradigm: str = "digpt", options: Any = None, device: str = "meta"
) -> tuple[Paradigm, Target]:
    """Objective and target with fresh weights on ``device``: the shapes of a run, without its weights or its data.

    Raises:
        ConfigError, SpecError: as the objective, the encoder and the target.
    """
    target = teacher_skeleton(teacher, encoder["img_size"], encoder["patch_size"], device=device)
    with torch.device(device):
        objective = build_paradigm(
            paradigm,
            build_encoder(dict(encoder)),
            target_kind=target.kind,
            teacher_grid=target.grid,
            teacher_width=target.width,
            config=options,
        )
    return objective.to(device).train(), target


def pretrain_cost(
    encoder: Mapping[str, Any],
    teacher: str,
    paradigm: str = "digpt",
    options: Any = None,
    orders: int = 1,
    precision: str = "bf16",
) -> Cost:
    """The cost of pretraining the encoder of timm's arguments ``encoder`` (``digpt.encoder.encoder_config``).

    ``options`` is the paradigm's configuration, its own default when None; with ``orders`` the student sees an image
    that often for one pass of the teacher. A named, ``timm:`` or ``open_clip:`` teacher is built from its architecture;
    a teacher that is a local file is read.

    Raises:
        ConfigError, SpecError: as the objective, the encoder and the target.
    """
    objective, target = pretrain_modules(encoder, teacher, paradigm, options)
    images = torch.empty(PROBE, 3, *objective.encoder.patch_embed.img_size, device="meta")
    order = torch.empty(PROBE, objective.units, dtype=torch.int64, device="meta")
    teacher_flops, targets = _flops(lambda: target(images))
    return counted(
        objective,
        objective.blocks(),
        lambda: objective(images, targets, order).loss,
        objective.set_grad_checkpointing,
        Frozen(teacher_flops[""] / PROBE, _parameters(target) if isinstance(target, nn.Module) else 0),
        repeats=orders,
        precision=precision,
    )


class Tuned(nn.Module):
    """An encoder as it is tuned (mean of the patch tokens, then ``fc_norm``) and one linear layer on top."""

    def __init__(self, encoder: Any, outputs: int, bias: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.embed_dim, outputs, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """``[B,3,h,w]`` -> ``[B,outputs]``."""
        return self.head(self.encoder(images))


def tuning_cost(
    encoder: Mapping[str, Any], outputs: int, bias: bool = True, frozen: Frozen = NOTHING, precision: str = "bf16"
) -> Cost:
    """The cost of finetuning (``outputs`` classes) or text tuning (``outputs`` the width of the embedding).

    ``encoder`` holds timm's arguments. The whole image is encoded and every parameter trained; ``frozen`` stands beside
    it. The losses themselves are not counted.
    """
    with torch.device("meta"):
        module = Tuned(build_encoder(finetuned_config(dict(encoder))), outputs, bias)
        images = torch.empty(PROBE, 3, *module.encoder.patch_embed.img_size)
    module.train()
    checkpointing = module.encoder.set_grad_checkpointing
    return counted(module, list(module.encoder.blocks), lambda: module(images), checkpointing, frozen, 1, precision)


def image_tower_cost(teacher: str, image_size: int | tuple[int, int]) -> Frozen:
    """A teacher's forward pass over one image."""
    target = teacher_skeleton(teacher, image_size)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    images = torch.empty(PROBE, 3, height, width, device="meta")
    flops, _ = _flops(lambda: target(images))
    return Frozen(flops[""] / PROBE, _parameters(target) if isinstance(target, nn.Module) else 0)


def text_tower_cost(model: str) -> tuple[Frozen, int]:
    """The text tower of open_clip's ``model`` over one caption, and the width of its embedding.

    Raises:
        SpecError: open_clip has no such model.
        ConfigError: its text tower is a Hugging Face model, whose architecture is not part of open_clip.
    """
    config = open_clip.get_model_config(model)
    if config is None:
        raise SpecError(f"open_clip has no model {model!r}.{near_misses(model, open_clip.list_models())}")
    if "hf_model_name" in config["text_cfg"]:
        raise ConfigError(f"The text tower of {model} comes from Hugging Face: plan with a model of open_clip's own.")
    # the vision tower is only there because the class wants one
    vision, quick_gelu = {"layers": 1, "width": 64}, config.get("quick_gelu", False)
    with torch.device("meta"):
        clip = open_clip.CustomTextCLIP(config["embed_dim"], vision, config["text_cfg"], quick_gelu=quick_gelu)
        captions = torch.empty(PROBE, clip.context_length, dtype=torch.int64)
    clip.eval()
    flops, _ = _flops(lambda: clip.encode_text(captions))
    return Frozen(flops[""] / PROBE, _parameters(clip.text)), int(config["embed_dim"])


def counted(
    module: Paradigm | Tuned | Segmenter,
    blocks: Sequence[nn.Module],
    forward: Callable[[], Tensor],
    set_checkpointing: Callable[[bool], None],
    frozen: Frozen,
    repeats: int,
    precision: str,
) -> Cost:
    """Count ``forward``, which runs ``module`` on ``PROBE`` images, ``repeats`` times per image."""
    flops, _ = _flops(forward)
    decoders = sum(_flops_of(part, name, flops) for name, part in module.named_children() if name != "encoder")
    names = [name for name, part in module.named_modules() if any(part is block for block in blocks)]
    scale = repeats / PROBE
    kept, largest = _kept_bytes(module, blocks, forward, precision)
    set_checkpointing(True)
    checkpointed, _ = _kept_bytes(module, (), forward, precision)
    set_checkpointing(False)
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return Cost(
        teacher=frozen.flops,
        encoder=3 * (flops[""] - decoders) * scale,
        decoders=3 * decoders * scale,
        recomputed=sum(flops.get(name, 0.0) for name in names) * scale,
        encoder_parameters=_parameters(module.encoder),
        trainable=trainable,
        fixed=_parameters(module) - trainable,
        frozen=frozen.parameters,
        activations=kept * scale,
        checkpointed=checkpointed * scale,
        block_activations=largest * scale,
        block_parameters=max(_parameters(block) for block in blocks),
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _flops(forward: Callable[[], Tensor]) -> tuple[dict[str, float], Tensor]:
    """FLOPs of ``forward`` by name of the module inside that which it calls, ``""`` for all of it; and its result."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        result = forward()
    counts = {name.partition(".")[2]: float(sum(ops.values())) for name, ops in counter.get_flop_counts().items()}
    return {**counts, "": float(counter.get_total_flops())}, result


def _flops_of(module: nn.Module, name: str, flops: dict[str, float]) -> float:
    """Those of a submodule, or of its parts where it was never called itself."""
    if name in flops:
        return flops[name]
    return sum(_flops_of(part, f"{name}.{child}", flops) for child, part in module.named_children())


def _kept_bytes(
    module: nn.Module, blocks: Iterable[nn.Module], forward: Callable[[], Tensor], precision: str
) -> tuple[float, float]:
    """Bytes that autograd keeps of one ``forward`` as a GPU would run it, and the most that one of ``blocks`` adds.

    Parameters, buffers and their bfloat16 copies are not counted; what several operations keep counts once.
    """
    as_on_gpu = _AsOnGpu(precision == "bf16")
    own = [*module.parameters(), *module.buffers()]
    ignored = {tensor.untyped_storage()._cdata for tensor in own}
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice
    total, began, largest = 0, 0, 0

    def pack(tensor: Tensor) -> None:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage._cdata in ignored or storage._cdata in storages or as_on_gpu.is_copy(storage):
            return
        storages[storage._cdata] = storage
        total += storage.nbytes()

    def enter(block: nn.Module, arguments: Any) -> None:
        nonlocal began
        began = total

    def leave(block: nn.Module, arguments: Any, output: Any) -> None:
        nonlocal largest
        largest = max(largest, total - began)

    hooks = [block.register_forward_pre_hook(enter) for block in blocks]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    with saved_tensors_hooks(pack, lambda nothing: nothing), as_on_gpu:
        forward()
    for hook in hooks:
        hook.remove()
    return total, largest


class _AsOnGpu(TorchFunctionMode):
    """Run attention as the memory-efficient kernel, linear layers and convolutions as bfloat16 autocast would on a GPU.

    ``meta`` has neither: attention would keep its [N,N] weights, and every activation would be float32.
    """

    def __init__(self, bf16: bool) -> None:
        super().__init__()
        self.bf16 = bf16
        self._copies: dict[int, Tensor] = {}  # by identity of the parameter: autocast casts each once

    def is_copy(self, storage: torch.UntypedStorage) -> bool:
        """Whether ``storage`` is a parameter's bfloat16 copy."""
        return any(copy.untyped_storage()._cdata == storage._cdata for copy in self._copies.values())

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _efficient_attention(*args, **kwargs)
        if self.bf16 and func in (F.linear, F.conv2d, F.conv_transpose2d, torch.conv2d):
            args = tuple(self._lower(value) for value in args)
            kwargs = {name: self._lower(value) for name, value in kwargs.items()}
        elif self.bf16 and func is F.layer_norm:
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if not isinstance(value, nn.Parameter):
            return value.to(torch.bfloat16)
        if id(value) not in self._copies:
            self._copies[id(value)] = value.to(torch.bfloat16)
        return self._copies[id(value)]


def _efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **others: Any,
) -> Tensor:
    """The kernel that CUDA chooses under a mask: keeps query, key, value, output and one number per row."""
    bias = None
    if attn_mask is not None:
        size = (*query.shape[:-1], key.shape[-2])
        bias = attn_mask.to(query.dtype).expand(size)
    keep = torch.is_grad_enabled()
    output: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, keep, dropout_p, is_causal, scale=scale
    )[0]
    return output


def utilisation(flops_per_image: float, images_per_second: float, peak_flops: float) -> float:
    """Share of ``peak_flops`` (operations per second) that training at ``images_per_second`` uses."""
    return flops_per_image * images_per_second / peak_flops


@cache
def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second that a large square matrix product reaches on ``device``, measured once.

    A product of two [n,n] matrices counts 2*n^3 operations; n grows to 4096 on a GPU and 1024 elsewhere, or as far as
    one product takes a moment. The fastest counts: a busy neighbour only ever slows one down. About a second.
    """
    largest = LARGEST_CUDA if device.type == "cuda" else LARGEST_ELSEWHERE
    size = SMALLEST
    product = _timed_product(size, device, dtype)
    while size < largest and product() * 8 < PATIENCE:
        size *= 2
        product = _timed_product(size, device, dtype)
    end = time.perf_counter() + MEASURE_SECONDS
    best = product()
    while time.perf_counter() < end:
        best = min(best, product())
    return 2 * size**3 / best


def _timed_product(size: int, device: torch.device, dtype: torch.dtype) -> Callable[[], float]:
    """A function that multiplies two square matrices and returns the seconds; called once already, so warm."""
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))

    def product() -> float:
        _wait(device)
        start = time.perf_counter()
        torch.matmul(left, right)
        _wait(device)
        return time.perf_counter() - start

    product()
    return product


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
