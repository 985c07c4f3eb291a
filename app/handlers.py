"""What the tabs compute: plain functions of an engine and of what a person typed, without Gradio."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from digpt.data.emoji import EmojiSet
from digpt.engine import Engine
from digpt.errors import DataError, InputError

MAX_LABELS = 4096


def parse_labels(text: str) -> list[str]:
    """Split labels at commas and line ends; white space around them and repeated ones are dropped.

    Raises:
        InputError: more than ``MAX_LABELS``.
    """
    labels = list(dict.fromkeys(label for part in re.split(r"[,\n]", text) if (label := part.strip())))
    if len(labels) > MAX_LABELS:
        raise InputError(f"{len(labels)} labels are too many for this page; give at most {MAX_LABELS}.")
    return labels


def crop(engine: Engine, path: str | None) -> np.ndarray:
    """Decode the file at ``path`` with the engine's decoder; InputError if there is none."""
    if not path:
        raise InputError("Give a picture first.")
    return engine.decode(Path(path).read_bytes())


def classify(engine: Engine, path: str | None, labels: str, template: str, top_k: float) -> dict[str, float]:
    """Score a picture: ``{label: probability}``, best first. Without labels the model's own are used."""
    names, pattern = parse_labels(labels), template.strip()
    return scores(engine, crop(engine, path), names or None, [pattern] if names and pattern else None, int(top_k))


def scores(
    engine: Engine, picture: np.ndarray, labels: Sequence[str] | None, templates: Sequence[str] | None, top_k: int
) -> dict[str, float]:
    """Score one crop uint8 ``[H,W,3]``: ``{label: probability}``, best first."""
    best = engine.classify([picture], labels, templates, top_k=top_k)[0]
    return {prediction.label: prediction.score for prediction in best}


def similarity(engine: Engine, first: str | None, second: str | None, text: str) -> list[tuple[str, float]]:
    """Cosine of the first picture with the second, with the text, and of these two: those that can be computed."""
    pictures = {"first picture": crop(engine, first)}
    if second:
        pictures["second picture"] = crop(engine, second)
    words = text.strip()
    if not second and not words:
        raise InputError("Give a second picture or a text to compare with.")
    rows = [engine.embed_images(list(pictures.values()))]
    if words:
        rows.append(engine.embed_texts([words]))
    names = [*pictures, *([f"“{words}”"] if words else [])]
    cosine = engine.similarity(np.concatenate(rows), np.concatenate(rows))
    pairs = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
    return [(f"{names[a]} and {names[b]}", float(cosine[a, b])) for a, b in pairs]


def add_label(labels: str, chosen: str | None) -> str:
    """Append a suggested label on a line of its own, unless it is there already."""
    if not chosen or chosen in parse_labels(labels):
        return labels
    return f"{labels.rstrip()}\n{chosen}".lstrip()


def load_emoji() -> EmojiSet | None:
    """The bundled set, or None where it does not lie beside the code; the demo then has no suggestions from it."""
    try:
        return EmojiSet.load()
    except DataError:
        return None


def known_concepts(engine: Engine, emoji: EmojiSet | None) -> list[str]:
    """Labels to suggest: the model's own, else the names of the bundled set."""
    if engine.info.labels:
        return sorted(engine.info.labels)
    return sorted(concept.name for concept in emoji.concepts) if emoji and engine.info.has_text else []
