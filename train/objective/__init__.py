"""Pretraining objectives behind one seam: ``build_paradigm(name, encoder, ...)``.

A new paradigm is a ``Paradigm`` subclass, a frozen configuration and one line in ``PARADIGMS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from timm.models.vision_transformer import VisionTransformer

from digpt.errors import ConfigError, near_misses
from train.objective.base import ObjectiveOutput, Paradigm
from train.objective.digpt import DigptConfig, DigptObjective, GenFdObjective, GenObjective
from train.objective.distill import FdConfig, FdObjective, KdConfig, KdObjective
from train.objective.masked import EvaConfig, EvaObjective, MaeConfig, MaeObjective
from train.objective.spaces import TargetKind, TargetSpace


class ParadigmEntry(NamedTuple):
    """An objective, its configuration, and the kinds of target it can learn from."""

    build: Callable[..., Paradigm]
    config: type
    kinds: tuple[TargetKind, ...]


EVERY: tuple[TargetKind, ...] = ("tokens", "pixels", "codes")
PARADIGMS: dict[str, ParadigmEntry] = {
    "digpt": ParadigmEntry(DigptObjective, DigptConfig, EVERY),
    "gen": ParadigmEntry(GenObjective, DigptConfig, EVERY),
    "igpt": ParadigmEntry(GenObjective, DigptConfig, ("pixels",)),
    "gen_fd": ParadigmEntry(GenFdObjective, DigptConfig, ("tokens",)),
    "fd": ParadigmEntry(FdObjective, FdConfig, ("tokens",)),
    "kd": ParadigmEntry(KdObjective, KdConfig, ("tokens",)),
    "mae": ParadigmEntry(MaeObjective, MaeConfig, EVERY),
    "eva": ParadigmEntry(EvaObjective, EvaConfig, ("tokens",)),
}


def paradigm_entry(name: str, target_kind: str | None = None) -> ParadigmEntry:
    """The table's line for ``name``; ConfigError for an unknown name, or a kind of target it cannot learn from."""
    if name not in PARADIGMS:
        raise ConfigError(f"Unknown paradigm {name!r}; valid: {', '.join(PARADIGMS)}.{near_misses(name, PARADIGMS)}")
    entry = PARADIGMS[name]
    if target_kind is not None and target_kind not in entry.kinds:
        others = ", ".join(other for other, line in PARADIGMS.items() if target_kind in line.kinds) or "no paradigm"
        raise ConfigError(
            f"Paradigm {name!r} learns from {' or '.join(entry.kinds)}, not from {target_kind!r}; {others} can."
        )
    return entry


def paradigm_config(name: str, options: Mapping[str, Any]) -> Any:
    """The frozen configuration of paradigm ``name``; unknown names and keys raise ConfigError with near misses."""
    kind = paradigm_entry(name).config
    known = [field.name for field in fields(kind)]
    for key in options:
        if key not in known:
            raise ConfigError(f"Paradigm {name!r} has no option {key!r}; valid: {known}.{near_misses(key, known)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


def build_paradigm(
    name: str,
    encoder: VisionTransformer,
    *,
    target_kind: TargetKind = "tokens",
    teacher_grid: tuple[int, int],
    teacher_width: int,
    config: Any = None,
    **options: Any,
) -> Paradigm:
    """Build paradigm ``name`` around ``encoder``, from its ``config`` or from the configuration's fields.

    ``target_kind``, ``teacher_grid`` and ``teacher_width`` are the target's ``kind``, ``grid`` and ``width``.

    Raises:
        ConfigError: a name, option, kind of target or grid that cannot work; the message names the valid ones.
    """
    entry = paradigm_entry(name, target_kind)
    config = paradigm_config(name, options) if config is None else config
    if type(config) is not entry.config:
        raise ConfigError(f"Paradigm {name!r} takes a {entry.config.__name__}, not a {type(config).__name__}.")
    return entry.build(encoder, config, TargetSpace(target_kind, (teacher_grid[0], teacher_grid[1]), teacher_width))


__all__ = [
    "PARADIGMS",
    "DigptConfig",
    "DigptObjective",
    "EvaConfig",
    "EvaObjective",
    "FdConfig",
    "FdObjective",
    "GenFdObjective",
    "GenObjective",
    "KdConfig",
    "KdObjective",
    "MaeConfig",
    "MaeObjective",
    "ObjectiveOutput",
    "Paradigm",
    "ParadigmEntry",
    "TargetKind",
    "TargetSpace",
    "build_paradigm",
    "paradigm_config",
    "paradigm_entry",
]
