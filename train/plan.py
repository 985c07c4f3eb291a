"""What a recipe costs before it is started: GPU hours, memory, disk and what the loader must deliver.

    python -m train.plan emoji --gpus 1 --gpu l4
    python -m train.plan emoji pretrain --measured

FLOPs, parameters and activations are counted on the recipe's modules (``train.cost``); nothing is downloaded, and data
are listed at most. Any setting of the command may follow; a recipe with several commands then needs
the one that is meant.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from digpt.cli import Command
from digpt.errors import ConfigError
from train.config import RECIPES, TrainConfig, load_recipe, parse, resolved
from train.cost import NOTHING, Cost, Frozen, image_tower_cost, pretrain_cost, text_tower_cost, tuning_cost
from train.fit import GPUS, USABLE, Gpu, disk, memory, smallest_accumulate, verdict, with_text_tower
from train.measure import MeasuredStep, measured_pretraining, measured_segmenting, measured_tuning
from train.plan_inputs import JPEG_BYTES, bytes_of, images_in, planned_segmenter, size_note, tuned_encoder
from train.segment_cost import segment_cost
from train.share import Share
from train.targets import named_teacher

COMMANDS = ("pretrain", "finetune", "zeroshot", "segment")
GpuName = Literal["b200", "h200", "h100", "a100", "a100-40", "l40s", "l4", "a10"]
COMMAND = Command(
    "train.plan",
    __doc__,
    first={
        "RECIPE": f"One of {', '.join(RECIPES)} (default: emoji).",
        "COMMAND": f"One of {', '.join(COMMANDS)} (default: all that the recipe has).",
    },
)


@dataclass(frozen=True)
class PlanConfig:
    """Where the recipe is meant to run."""

    gpus: int = 8  # how many
    gpu: GpuName = "h100"  # of which kind
    utilisation: float = 0.4  # share of the peak that training reaches
    measured: bool = False  # measure peak and utilisation on this machine's device, with short real steps
    decode_rate: float = 150.0  # images/s that one CPU core decodes, crops and flips
    images: int | None = None  # size of the data set, where the recipe's name does not tell
    json: bool = False  # print one JSON document and nothing else

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ConfigError(f"gpus={self.gpus} must be at least 1.")
        if not 0 < self.utilisation <= 1:
            raise ConfigError(f"utilisation={self.utilisation} is a share of the peak: it lies between 0 and 1.")
        if self.decode_rate <= 0 or (self.images is not None and self.images < 1):
            raise ConfigError("decode_rate and images must be positive.")


# ------------------------------------------------------------------------------------------------ from recipe to cost


def count(command: str, config: Any) -> tuple[Cost, int, list[str]]:
    """The cost per image of one command, the text parameters in its checkpoint, and what was assumed for it."""
    if command == "pretrain":
        cost = pretrain_cost(
            config.encoder(), config.teacher, config.paradigm, config.options(), config.orders, config.precision
        )
        return cost, 0, []
    if command == "segment":
        encoder, heads, notes = planned_segmenter(config)
        return segment_cost(encoder, heads, config.precision), 0, notes
    encoder, notes = tuned_encoder(config)
    if command == "finetune":
        if not config.classes:
            notes.append("the head is counted with 1,000 classes; --classes N says otherwise")
        return tuning_cost(encoder, config.classes or 1000, precision=config.precision), 0, notes
    tower, text_parameters, width = NOTHING, 0, encoder["embed_dim"]
    if config.data == "emoji":
        notes.append("the bundled captions are embedded once, before the first step: their text tower is not counted")
    else:
        model = _open_clip_model(config.teacher)
        text, width = text_tower_cost(model)
        text_parameters = text.parameters
        if not config.freeze_text:
            notes.append(
                "the text tower is trained: its FLOPs stand under decoders, and its activations are estimated from "
                "those of the image encoder's blocks"
            )
            cost = tuning_cost(encoder, width, False, NOTHING, config.precision)
            return with_text_tower(cost, encoder, text, model), text_parameters, notes
        tower = text
        notes.append("one caption per image passes through the frozen text tower")
    if config.data == "emoji" and config.distill:
        image = image_tower_cost(config.teacher, encoder["img_size"])
        tower = Frozen(tower.flops + image.flops, tower.parameters + image.parameters)
    return tuning_cost(encoder, width, False, tower, config.precision), text_parameters, notes


def _open_clip_model(teacher: str) -> str:
    """The name of an open_clip model, of whose architecture the text tower is built."""
    named = named_teacher(teacher)
    if named is not None and named[0].library == "open_clip":
        return named[0].model
    family, _, rest = teacher.partition(":")
    if family != "open_clip":
        raise ConfigError(f"The text tower of {teacher!r} cannot be planned: name an open_clip model as --teacher.")
    return rest.partition("/")[0]


# ------------------------------------------------------------------------------------------------------- the document


def plan(recipe: str, command: str, config: Any, where: PlanConfig) -> dict[str, Any]:
    """Everything about one command as a JSON-able document; sizes in bytes, rates per second, FLOPs as numbers."""
    images = images_in(recipe, command, config, where.images)
    config = resolved(config, images or 0)
    cost, text_parameters, notes = count(command, config)
    if where.images is None:
        notes = [*size_note(recipe, command, config, images), *notes]
    total_images = config.steps * config.batch_size
    # pairs are contrasted within the whole batch; batch norm takes two crops, of any processes, at least
    gpu, most = GPUS[where.gpu], {"zeroshot": 1, "segment": config.batch_size // 2}.get(command)
    micro = Share(0, where.gpus, config.accumulate).micro_batch(config.batch_size)
    room = USABLE * gpu.memory
    fits = {
        name: smallest_accumulate(cost, config, where.gpus, room, checkpointing, most)
        for name, checkpointing in (("stored", False), ("checkpointing", True))
    }
    kinds = {name: memory(cost, config, where.gpus, micro, name == "checkpointing") for name in fits}
    return {
        "recipe": recipe,
        "command": command,
        "data": {"name": config.data, "images": images, "bytes": bytes_of(config, images)},
        "steps": config.steps,
        "batch_size": config.batch_size,
        "micro_batch": micro,
        "accumulate": config.accumulate,
        "images": total_images,
        "precision": config.precision,
        "checkpointing": config.checkpointing,
        "sharding": config.sharding,
        "parameters": {
            "encoder": cost.encoder_parameters,
            "trained": cost.trainable,
            "fixed": cost.fixed,
            "teacher": cost.frozen,
        },
        "flops_per_image": _shares(cost, 1.0),
        "flops": _shares(cost, float(total_images)),
        "time": _time(command, config, cost, where, gpu, total_images),
        "memory": {
            "gpu": where.gpu,
            "bytes": gpu.memory,
            "usable": room,
            **{name: {**dataclasses.asdict(kind), "total": kind.total} for name, kind in kinds.items()},
            "fits_as_written": kinds["checkpointing" if config.checkpointing else "stored"].total <= room,
            "smallest_accumulate": fits,
        },
        "disk": disk(cost, config, text_parameters),
        "notes": notes,
    }


def _shares(cost: Cost, images: float) -> dict[str, float]:
    parts = {"teacher": cost.teacher, "encoder": cost.encoder, "decoders": cost.decoders, "total": cost.total}
    return {name: value * images for name, value in parts.items()} | {"recomputed": cost.recomputed * images}


def _time(command: str, config: Any, cost: Cost, where: PlanConfig, gpu: Gpu, images: int) -> dict[str, float | str]:
    """Rates and hours; what checkpointing recomputes takes time, but does not count as utilisation."""
    device: str = where.gpu
    peak = gpu.bf16 if config.precision == "bf16" else gpu.fp32
    share = where.utilisation * cost.total / (cost.total + cost.recomputed * config.checkpointing)
    if where.measured:
        step = _measured(command, config, cost, config.batch_size // where.gpus // config.accumulate)
        device, peak, share = step.device, step.peak, step.share
    rate = share * peak / cost.total
    hours = images / rate / 3600
    return {
        "device": device,
        "devices": where.gpus,
        "peak_flops": peak,
        "utilisation": share,
        "device_hours": hours,
        "wall_hours": hours / where.gpus,
        "images_per_second": rate * where.gpus,
        "loader_cores": rate * where.gpus / where.decode_rate,
    }


def _measured(command: str, config: Any, cost: Cost, micro_batch: int) -> MeasuredStep:
    if command == "pretrain":
        return measured_pretraining(config, cost, micro_batch)
    if command == "segment":
        encoder, heads, _ = planned_segmenter(config)
        return measured_segmenting(encoder, heads, config, cost, micro_batch)
    encoder = tuned_encoder(config)[0]
    return measured_tuning(encoder, encoder["embed_dim"], config, cost, micro_batch)


# --------------------------------------------------------------------------------------------------------- what is read

ASSUMPTIONS = (
    "A multiply-add is 2 FLOPs, a backward pass costs twice its forward pass, the teacher only a forward pass; "
    "optimiser, loader and evaluations are not counted.",
    "Peaks are NVIDIA's dense tensor-core figures; a measured peak is that of a large matrix product.",
    "Activations are what autograd keeps of a forward pass, with memory-efficient attention and bfloat16 linear "
    "layers and convolutions; left out are temporary buffers of kernels, of the teacher and of the backward pass: "
    f"{1 - USABLE:.0%} of the memory stays free for them, for the CUDA context and for fragmentation.",
    f"A training image is {JPEG_BYTES / 1e3:.0f} kB on disk, ImageNet-1K's mean.",
)


def assumptions(where: PlanConfig, plans: Sequence[dict[str, Any]]) -> list[str]:
    """What the figures stand on."""
    reached = "measured here" if where.measured else f"assumed: {where.utilisation:.0%} of the peak"
    lines = [f"Speed is {reached}; one CPU core decodes and crops {where.decode_rate:g} images/s (assumed)."]
    lines += ASSUMPTIONS
    return lines + [f"{one['command']}: {note}." for one in plans for note in one["notes"]]


def rows(one: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of one command's table."""
    per_image, flops, time, room = one["flops_per_image"], one["flops"], one["time"], one["memory"]
    parameters, size, data = one["parameters"], one["disk"], one["data"]
    split = ", ".join(f"{part} {per_image[part] / 1e9:.3g}" for part in ("teacher", "encoder", "decoders"))
    known = "size unknown" if data["images"] is None else f"{data['images']:,} images"
    known += "" if data["bytes"] is None else f", about {_bytes(data['bytes'])}"
    batch = f"{one['batch_size']} = {time['devices']} x {one['accumulate']} x {one['micro_batch']}"
    lines = [
        ("data", f"{data['name']}: {known}"),
        ("images in total", f"{one['images']:,} in {one['steps']:,} steps of {batch} (devices x accumulate x micro)"),
        ("parameters", ", ".join(f"{name} {value / 1e6:.1f} M" for name, value in parameters.items())),
        ("GFLOP per image", f"{per_image['total'] / 1e9:.4g}: {split}"),
        ("FLOPs", f"{flops['total']:.3g}, of which the teacher {flops['teacher'] / flops['total']:.0%}"),
        ("device hours", f"{_hours(time['device_hours'])} on {time['device']}, {time['utilisation']:.1%} of its peak"),
        ("wall hours", f"{_hours(time['wall_hours'])} on {time['devices']}"),
        ("loader", f"{time['images_per_second']:,.0f} images/s: {time['loader_cores']:,.0f} CPU cores"),
    ]
    kinds = [("stored", "without checkpointing"), ("checkpointing", "with checkpointing")]
    written, other = reversed(kinds) if one["checkpointing"] else kinds
    for name, title in ((written[0], f"memory per {room['gpu']}"), (other[0], f"... {other[1]}")):
        need = room[name]
        answer = verdict(need["total"], room["usable"], room["smallest_accumulate"][name], name == written[0])
        parts = {"teacher": need["teacher"], "activations": need["activations"]}
        parts = {"model and optimiser": need["total"] - sum(parts.values()), **parts}
        detail = ", ".join(f"{part} {_bytes(value)}" for part, value in parts.items())
        lines.append((title, f"{answer}; {_bytes(need['total'])} of {_bytes(room['bytes'])}: {detail}"))
    lines.append(
        ("disk", f"checkpoints {_bytes(size['checkpoints'])}, resume state {_bytes(size['resume_state'])} at most")
    )
    return lines


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value / 1e6:.0f} MB"


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def show(document: dict[str, Any], console: Console) -> None:
    """Print the tables and what they stand on."""
    for one in document["plans"]:
        table = Table(title=f"{document['recipe']}: train.{one['command']}", show_header=False, title_justify="left")
        for name, value in rows(one):
            table.add_row(name, value)
        console.print(table)
    for line in document["assumptions"]:
        console.print(f"- {line}", soft_wrap=True, highlight=False)


def commands_of(recipe: str) -> list[str]:
    """The commands that a recipe has settings for and that can be planned.

    Raises:
        ConfigError: an unknown recipe, or one with nothing to plan.
    """
    found = []
    for command in COMMANDS:
        try:
            load_recipe(recipe, command)
        except ConfigError:
            if recipe not in RECIPES:
                raise
        else:
            found.append(command)
    if not found:
        raise ConfigError(f"Recipe {recipe} has settings for none of {', '.join(COMMANDS)}: nothing to plan.")
    return found


def _planned(recipe: str, command: str, config: TrainConfig, where: PlanConfig) -> dict[str, Any]:
    """`plan`, or what to do where an earlier stage has yet to write the checkpoint that the recipe starts from."""
    for field in ("teacher", "encoder") if recipe.startswith("bundled") else ():
        spec = str(getattr(config, field, ""))
        if spec.endswith(".pt") and not Path(spec).exists():
            raise ConfigError(f"{spec} is not there yet: train it first, or plan with its like: --{field} bundled.")
    return plan(recipe, command, config, where)


def document_of(argv: Sequence[str]) -> tuple[dict[str, Any], PlanConfig]:
    """Plan what the command line asks for: ``[RECIPE] [COMMAND] [--gpus ...] [--field value ...]``."""
    arguments = list(argv)
    positional: list[str] = []
    while arguments and not arguments[0].startswith("-") and len(positional) < 2:
        positional.append(arguments.pop(0))
    recipe = positional[0] if positional else "emoji"
    where, overrides = COMMAND.parse_known(PlanConfig, arguments)
    commands = commands_of(recipe)
    if len(positional) == 2:
        if positional[1] not in commands:
            raise ConfigError(f"Recipe {recipe} has no {positional[1]!r} to plan; it has {', '.join(commands)}.")
        commands = [positional[1]]
    if overrides and len(commands) > 1:
        raise ConfigError(
            f"Recipe {recipe} has {', '.join(commands)}: say which one {' '.join(overrides)} is for, "
            f"as in python -m train.plan {recipe} {commands[0]} {' '.join(overrides)}."
        )
    plans = [_planned(recipe, command, parse(command, [recipe, *overrides]), where) for command in commands]
    return {"recipe": recipe, "plans": plans, "assumptions": assumptions(where, plans)}, where


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan; return the exit code."""
    return COMMAND.guard(lambda: _plan(sys.argv[1:] if argv is None else argv))


def _plan(argv: Sequence[str]) -> int:
    document, where = document_of(argv)
    if where.json:
        print(json.dumps(document, indent=2))
    else:
        show(document, Console(highlight=False, emoji=False, markup=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
