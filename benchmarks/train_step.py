"""Images/s of our D-iGPT training step beside a straightforward one and the machine's matrix product, and a roofline.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --threads 2 --precision bf16 --batch 8 --rounds 5

One step is forward, backward and AdamW for ViT-B/16 at 224 px with both decoders; the teacher is left out: its tokens
are random. The three take turns within one run, so that a busy neighbour hits all of them: ours (``train.objective``,
``train.optim``), ``benchmarks.straightforward_step``, and a 4096-cubed matrix product in the same precision. Both steps
start from the same weights and get the same batch, so after every update their losses must agree to 1 %.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Literal, cast

import torch
import tyro
from torch import Tensor, nn

from benchmarks.matmul import best_seconds
from benchmarks.roofline import Part, bandwidth, counted, roofline
from benchmarks.straightforward_step import StepShape, StraightforwardStep
from digpt.cli import Command
from digpt.encoder import build_encoder, encoder_config
from digpt.errors import ConfigError
from train.config import TrainConfig
from train.objective import DigptConfig, DigptObjective, build_paradigm
from train.optim import build_optimizer, decay_groups

AGREE = 1e-2  # largest relative difference of the two losses
BETAS = (0.9, 0.95)


COMMAND = Command(
    "benchmarks.train_step",
    __doc__,
    {
        "What is measured": ("rounds", "batch", "precision", "compile", "matrix", "lr", "seed", "json"),
        "Model": ("variant", "image_size", "layers", *(f"decoder_{part}" for part in ("width", "heads", "depth"))),
        "Teacher": ("teacher_grid", "teacher_width"),
        "Compute": ("threads",),
    },
    {1: "the two losses disagree"},
)


@dataclass(frozen=True)
class Options:
    """What is measured."""

    threads: int = 2
    """CPU threads."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where a matrix product is faster in it than in fp32."""
    batch: Annotated[int, tyro.conf.arg(aliases=("--batch-size",))] = 8
    """Images per step."""
    rounds: int = 3
    """Rounds; each runs both steps, with a matrix product before, between and after. One more is not counted."""
    variant: str = "B/16"
    """Shape of the encoder."""
    image_size: int = 224
    """Side in pixels."""
    layers: int | None = None
    """Encoder blocks; the variant's own when left out."""
    decoder_width: int = 1024
    """Of both decoders."""
    decoder_heads: int = 32
    """Attention heads of each block."""
    decoder_depth: int = 2
    """Blocks of each decoder."""
    teacher_grid: tuple[int, int] = (16, 16)
    """OpenCLIP-H/14 at 224 px."""
    teacher_width: int = 1024
    """Likewise."""
    matrix: int = 4096
    """Side of the matrix product."""
    compile: str = ""
    """torch.compile backend for our blocks, as in ``train.pretrain --compile``; empty: off."""
    lr: float = 1e-4
    """Learning rate."""
    seed: int = 0
    """Of the weights and the batch."""
    json: bool = False
    """Print the figures as JSON on standard output, and nothing else there."""

    def __post_init__(self) -> None:
        for name in ("threads", "batch", "rounds", "matrix"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")


@dataclass(frozen=True)
class Report:
    """Seconds and losses by round of ``ours`` and the ``straightforward`` step; the FLOPs are those of our step."""

    ours: list[float]
    straightforward: list[float]
    losses: list[tuple[float, float]]
    products: list[float]  # FLOPs per second of the matrix product, by round: mean of before, between and after
    flops: float  # of one step
    images: int
    bandwidth: float  # bytes per second
    parts: dict[str, Part]

    @property
    def matmul_flops(self) -> float:
        """The matrix product's FLOPs per second, median over the rounds."""
        return statistics.median(self.products)

    def share(self, seconds: list[float]) -> float:
        """FLOP rate of a step as a share of the matrix product's of the same round, median over the rounds."""
        pairs = zip(seconds, self.products, strict=True)
        return statistics.median(self.flops / taken / product for taken, product in pairs)

    @property
    def ratios(self) -> list[float]:
        """How many times our images/s are those of the straightforward step, by round."""
        return [slow / fast for slow, fast in zip(self.straightforward, self.ours, strict=True)]

    @property
    def speedup(self) -> float:
        """The median over the rounds of :attr:`ratios`, whose two sides ran one after the other."""
        return statistics.median(self.ratios)

    @property
    def difference(self) -> float:
        """The largest relative difference between the two losses, over all rounds."""
        return max(abs(ours - other) / abs(other) for ours, other in self.losses)


class Step:
    """Forward, backward, update: :meth:`run` returns the seconds taken and the loss before the update."""

    def __init__(
        self, forward: Callable[[], Tensor], optimizer: torch.optim.Optimizer, autocast: Callable[[], torch.autocast]
    ) -> None:
        self._forward, self.optimizer, self._autocast = forward, optimizer, autocast
        self.update_seconds: list[float] = []

    def loss(self) -> Tensor:
        """Compute the loss of the fixed batch, with its graph."""
        with self._autocast():
            return self._forward()

    def run(self) -> tuple[float, float]:
        start = time.perf_counter()
        loss = self.loss()
        loss.backward()
        before = time.perf_counter()
        self.optimizer.step()
        self.update_seconds.append(time.perf_counter() - before)
        self.optimizer.zero_grad()
        return time.perf_counter() - start, float(loss.detach())


def chosen_precision(asked: str) -> tuple[str, str]:
    """The precision to measure in and why, by timing a small matrix product in both."""
    a = torch.randn(192, 192)
    b = a.bfloat16()
    times = best_seconds(partial(torch.matmul, a, a), 3, 0.02), best_seconds(partial(torch.matmul, b, b), 3, 0.02)
    fact = f"here a matrix product in bf16 runs at {times[0] / times[1]:.2g} x the rate of fp32"
    if asked != "auto":
        return asked, fact
    return ("bf16" if times[1] < times[0] else "fp32"), fact


def build_ours(options: Options) -> DigptObjective:
    """Our objective, its weights drawn from the seed."""
    torch.manual_seed(options.seed)
    overrides = {} if options.layers is None else {"depth": options.layers}
    config = DigptConfig(
        decoder_width=options.decoder_width,
        decoder_heads=options.decoder_heads,
        decoder_depth=options.decoder_depth,
    )
    encoder = build_encoder(encoder_config(options.variant, options.image_size, **overrides), config.class_token_std)
    built = build_paradigm(
        "digpt", encoder, teacher_grid=options.teacher_grid, teacher_width=options.teacher_width, config=config
    )
    return cast(DigptObjective, built)


def build_straightforward(options: Options, ours: DigptObjective) -> StraightforwardStep:
    """The straightforward step with a copy of our weights."""
    encoder = ours.encoder
    step = StraightforwardStep(
        StepShape(
            image_size=options.image_size,
            patch_size=encoder.patch_embed.patch_size[0],
            width=encoder.embed_dim,
            depth=len(encoder.blocks),
            heads=cast(int, encoder.blocks[0].get_submodule("attn").num_heads),
            decoder_width=options.decoder_width,
            decoder_heads=options.decoder_heads,
            decoder_depth=options.decoder_depth,
            teacher_grid=options.teacher_grid,
            teacher_width=options.teacher_width,
            taps=ours.taps,
        )
    )
    weights = {name: value for name, value in ours.state_dict().items() if not name.startswith("baseline.")}
    step.load_state_dict(weights)
    return step


def batch_of(options: Options, units: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random images, teacher tokens and cluster orders, from the seed."""
    generator = torch.Generator().manual_seed(options.seed + 1)
    tokens = 1 + options.teacher_grid[0] * options.teacher_grid[1]
    images = torch.randn(options.batch, 3, options.image_size, options.image_size, generator=generator)
    targets = torch.randn(options.batch, tokens, options.teacher_width, generator=generator)
    return images, targets, torch.rand(options.batch, units, generator=generator).argsort(dim=1)


def build_steps(options: Options, precision: str) -> tuple[Step, Step, DigptObjective]:
    """Our step and the straightforward one, on the same weights and batch, and our objective."""
    ours = build_ours(options)
    other = build_straightforward(options, ours)
    batch = batch_of(options, ours.units)
    decay = TrainConfig.weight_decay
    config = TrainConfig(lr=options.lr, betas=BETAS, weight_decay=decay)
    optimizer = build_optimizer(decay_groups(ours, decay, ours.no_weight_decay()), config)
    plain = torch.optim.AdamW(
        decay_groups(other, decay, ours.no_weight_decay()), lr=options.lr, betas=BETAS, weight_decay=decay
    )
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16")
    steps = (
        Step(lambda: ours(*batch).loss, optimizer, autocast),
        Step(lambda: cast(Tensor, other(*batch)), plain, autocast),
    )
    return steps[0], steps[1], ours


def measure(options: Options, precision: Literal["fp32", "bf16"]) -> Report:
    """Run all rounds and profile our step once."""
    ours, other, objective = build_steps(options, precision)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    sides = torch.randn(2, options.matrix, options.matrix).to(dtype)
    flops = sum(counted(ours.loss).values())
    ours.optimizer.zero_grad()
    if options.compile:
        for block in objective.blocks():
            block.compile(backend=options.compile)
    pairs, products = [], []
    for number in range(options.rounds + 1):
        taken, seconds = {}, [seconds_of_product(sides)]
        for step in (ours, other) if number % 2 else (other, ours):
            taken[step] = step.run()
            seconds.append(seconds_of_product(sides))
        pairs.append((taken[ours], taken[other]))
        products.append(2 * options.matrix**3 / statistics.mean(seconds))
    timed = pairs[1:]
    update = statistics.median(ours.update_seconds[1:])
    patches = embedding_flops(objective, options.batch)
    parts = roofline(objective, ours.loss, update, dtype.itemsize, patches, trained(objective))
    return Report(
        ours=[mine[0] for mine, _ in timed],
        straightforward=[its[0] for _, its in timed],
        losses=[(mine[1], its[1]) for mine, its in pairs],
        products=products[1:],
        flops=flops,
        images=options.batch,
        bandwidth=bandwidth(best_seconds),
        parts=parts,
    )


def seconds_of_product(sides: Tensor) -> float:
    """Seconds of one product of the two square matrices ``[2,n,n]``."""
    start = time.perf_counter()
    torch.matmul(sides[0], sides[1])
    return time.perf_counter() - start


def embedding_flops(objective: DigptObjective, batch: int) -> float:
    """Forward and weight gradient of the patch projection over the visible patches; pixels need no gradient."""
    tokens = batch * (objective.units - 1) * objective.layout.size
    return 2 * 2 * tokens * objective.encoder.patch_embed.proj.weight.numel()


def trained(module: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def shown(report: Report) -> str:
    """The report as Markdown."""
    lines = ["| step | images/s, median | best | GFLOP/s | share of the matrix product |", "|---|--:|--:|--:|--:|"]
    for name, seconds in (("ours", report.ours), ("straightforward", report.straightforward)):
        middle = statistics.median(seconds)
        rate = report.flops / middle
        lines.append(
            f"| {name} | {report.images / middle:.3f} | {report.images / min(seconds):.3f} | {rate / 1e9:.1f} | "
            f"{report.share(seconds):.1%} |"
        )
    lines.append(f"| matrix product | | | {report.matmul_flops / 1e9:.1f} | 100 % |")
    lines += [
        "",
        f"Ours is {report.speedup:.3f} x as fast (median of {len(report.ours)} rounds, "
        f"{min(report.ratios):.3f} to {max(report.ratios):.3f}).",
        f"Loss {report.losses[0][0]:.6f} and {report.losses[0][1]:.6f} at first, {report.losses[-1][0]:.6f} and "
        f"{report.losses[-1][1]:.6f} after {len(report.losses) - 1} updates; largest relative difference "
        f"{report.difference:.1e} (allowed: {AGREE:g}).",
        f"FLOPs: {report.flops / report.images / 1e9:.1f} G per image for both, counted on our step: 2 per "
        "multiply-add, matrix products and attention (dense), forward and backward.",
        "",
        *roofline_table(report),
    ]
    return "\n".join(lines)


def roofline_table(report: Report) -> list[str]:
    """Where our step's time goes, as Markdown lines."""
    total = sum(part.seconds for part in report.parts.values())
    lines = [
        f"Our step by part, one profiled step of {total:.2f} s; copies move {report.bandwidth / 1e9:.1f} GB/s here.",
        "",
        "| part | s | share | GFLOP | GFLOP/s | of the matrix product | GB | s at copy speed | s at matrix rate |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, part in report.parts.items():
        rate = part.flops / part.seconds if part.seconds else 0.0
        work = f"{rate / 1e9:.1f} | {rate / report.matmul_flops:.0%}" if part.flops else " | "
        lines.append(
            f"| {name} | {part.seconds:.3f} | {part.seconds / total:.1%} | {part.flops / 1e9:.1f} | {work} | "
            f"{part.bytes / 1e9:.2f} | {part.bytes / report.bandwidth:.3f} | {part.flops / report.matmul_flops:.3f} |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    return COMMAND.run(Options, argv, _train_step)


def _train_step(options: Options) -> int:
    torch.set_num_threads(options.threads)
    precision, fact = chosen_precision(options.precision)
    report = measure(options, cast(Literal["fp32", "bf16"], precision))
    title = f"{options.variant}, {options.image_size} px, batch {options.batch}, {precision}, {options.threads} threads"
    if options.json:
        figures = {"precision": precision, "speedup": report.speedup, "difference": report.difference}
        print(json.dumps({**figures, **asdict(report)}))
    else:
        print(f"{title}; {fact}.\n\n{shown(report)}")
    return 0 if report.difference < AGREE else 1


if __name__ == "__main__":
    sys.exit(main())
