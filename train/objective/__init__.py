"""Pretraining objectives behind one seam: ``build_paradigm(name, encoder, ...)``.

A new paradigm is a ``Paradigm`` subclass, a frozen configuration and one line in ``PARADIGMS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from digpt.errors import ConfigError, near_misses
from train.objective.base import ObjectiveOutput, Paradigm, TargetKind
from train.objective.digpt import DigptConfig, DigptObjective, GenFdObjective, GenObjective
from train.objective.distill import FdConfig, FdObjective

# name -> (objective, its configuration)
PARADIGMS: dict[str, tuple[Callable[..., Paradigm], type]] = {
    "digpt": (DigptObjective, DigptConfig),
    "gen": (GenObjective, DigptConfig),
    "gen_fd": (GenFdObjective, DigptConfig),
    "fd": (FdObjective, FdConfig),
}


def paradigm_config(name: str, options: Mapping[str, Any]) -> Any:
    """The frozen configuration of paradigm ``name``; unknown names and keys raise ConfigError with near misses."""
    if name not in PARADIGMS:
        raise ConfigError(f"Unknown paradigm {name!r}; valid: {', '.join(PARADIGMS)}.{near_misses(name, PARADIGMS)}")
    kind = PARADIGMS[name][1]
    known = [field.name for field in fields(kind)]
    for key in options:
        if key not in known:
            raise ConfigError(f"Paradigm {name!r} has no option {key!r}; valid: {known}.{near_misses(key, known)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


def build_paradigm(
    name: str,
    encoder: VisionTransformer,
    *,
    teacher_grid: tuple[int, int],
    teacher_width: int,
    config: Any = None,
    **options: Any,
) -> Paradigm:
    """Build paradigm ``name`` around ``encoder``, from its ``config`` or from the configuration's fields."""
    config = paradigm_config(name, options) if config is None else config
    return PARADIGMS[name][0](encoder, config, teacher_grid, teacher_width)


__all__ = [
    "PARADIGMS",
    "DigptConfig",
    "DigptObjective",
    "FdConfig",
    "FdObjective",
    "GenFdObjective",
    "GenObjective",
    "ObjectiveOutput",
    "Paradigm",
    "TargetKind",
    "build_paradigm",
    "paradigm_config",
]
