"""Which suite the options ask for: the bundled set, the ImageNet family below a directory, or the user's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from digpt.data.emoji import EmojiSet
from digpt.engine import Engine
from digpt.errors import ConfigError
from digpt.text import template_set
from evaluate.cli import EvaluateOptions
from evaluate.suite import Suite
from evaluate.suite_emoji import SPLITS, Neighbours, emoji_suite, find_emoji
from evaluate.suite_imagenet import imagenet_suite
from evaluate.suite_images import images_suite
from evaluate.sweep import Sweep

Corruptions = Literal["auto", "on-the-fly", "none"]


@dataclass(frozen=True)
class Asked:
    """What an evaluation asks for, whichever the data.

    ``sets`` are those of the ImageNet family, ``splits`` those of the bundled set. ``knn`` asks the neighbours and
    nothing else, except that of the bundled set ``emoji_knn`` asks them beside the classes. ``corruptions``: on the
    fly, for ``auto`` where images are few enough (the bundled set and the user's own pictures).
    """

    sets: Sequence[str]
    explicit: bool = False
    splits: Sequence[str] = SPLITS
    knn: Neighbours | None = None
    emoji_knn: Neighbours | None = None
    corruptions: Corruptions = "none"
    jpeg: bool = False
    own_split: str = "val"


def select_suite(options: EvaluateOptions, engine: Engine, asked: Asked) -> Suite:
    """Build the suite; errors are those of the three kinds of suite."""
    wanted = asked.corruptions != "none"
    sweep = Sweep(engine.info.preprocess.size, jpeg=asked.jpeg) if wanted else None
    templates = templates_of(options, imagenet=False)
    if options.data is not None:
        return images_suite(
            options.data,
            labels=engine.info.labels if engine.info.head == "linear" else None,
            split=asked.own_split,
            knn=asked.knn,
            sweep=sweep,
            subset=options.subset(),
            templates=templates,
        )
    if options.data_root is None or (found := find_emoji(options.data_root)) is not None:
        if asked.explicit:
            raise ConfigError(f"--sets names sets of the ImageNet family, but {options.data_root} holds the emoji set.")
        data = EmojiSet.load(None if options.data_root is None else found)
        return emoji_suite(
            data,
            splits=asked.splits,
            knn=asked.knn or asked.emoji_knn,
            sweep=sweep,
            subset=options.subset(),
            templates=templates,
        )
    return imagenet_suite(
        options.data_root,
        sets=asked.sets,
        explicit=asked.explicit,
        knn=asked.knn,
        sweep=sweep if asked.corruptions == "on-the-fly" else None,
        subset=options.subset(),
        templates=templates_of(options, imagenet=True),
    )


def templates_of(options: EvaluateOptions, *, imagenet: bool) -> tuple[str, ...] | None:
    """The prompts asked for; None for the model's own. ImageNet's default are OpenAI's 80."""
    name = getattr(options, "templates", None) or ("openai" if imagenet else "own")
    return None if name == "own" else template_set(name)
