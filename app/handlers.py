"""What the tabs compute: plain functions of an engine and of what a person typed, without Gradio."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from digpt.data.ade20k import palette
from digpt.data.emoji import EmojiSet
from digpt.engine import Engine
from digpt.errors import DataError, InputError

MAX_LABELS = 4096
MAX_SHOWN = 1024  # pixels of a segmented picture's longer side


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


def classify(
    engine: Engine, path: str | None, labels: str, template: str, top_k: float, abstain: bool = False
) -> dict[str, float]:
    """Score a picture: ``{label: probability}``, best first. Without labels the model's own are used.

    ``abstain`` adds "none of these".
    """
    names, pattern = parse_labels(labels), template.strip()
    templates = [pattern] if names and pattern else None
    return scores(engine, crop(engine, path), names or None, templates, int(top_k), abstain)


def scores(
    engine: Engine,
    picture: np.ndarray,
    labels: Sequence[str] | None,
    templates: Sequence[str] | None,
    top_k: int,
    abstain: bool = False,
) -> dict[str, float]:
    """Score one crop uint8 ``[H,W,3]``: ``{label: probability}``, best first."""
    best = engine.classify([picture], labels, templates, top_k=top_k, abstain=abstain)[0]
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


def search_query(engine: Engine, path: str | None, words: str) -> np.ndarray:
    """What to search for, a unit row float32 ``[1,D]``: words by the model's own templates, else a picture.

    Raises:
        InputError: there is neither, or the picture is none.
    """
    if words.strip():
        return engine.class_matrix([words.strip()])
    if not path:
        raise InputError("Type words or give a picture to search for.")
    return engine.embed_images([crop(engine, path)])


@dataclass(frozen=True, eq=False)
class Segmented:
    """A picture as it is shown, uint8 ``[h,w,3]``, and the class of each of its pixels, uint8 ``[h,w]``."""

    picture: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True)
class Share:
    """A class that was found: its name, its colour (R, G, B) and the fraction of the pixels that it has."""

    name: str
    color: tuple[int, int, int]
    fraction: float


def segment(engine: Engine, path: str | None) -> Segmented:
    """Segment the file at ``path`` whole; above ``MAX_SHOWN`` pixels a side it gets its classes in the size shown.

    Raises:
        InputError: there is none, or it is no picture.
    """
    if not path:
        raise InputError("Give a picture first.")
    picture = engine.decode_whole(Path(path).read_bytes())
    factor = min(1.0, MAX_SHOWN / max(picture.shape[:2]))
    height, width = (max(1, round(side * factor)) for side in picture.shape[:2])
    shown = np.asarray(Image.fromarray(picture).resize((width, height))) if factor < 1 else picture
    return Segmented(shown, engine.segment(picture, size=(height, width)))


def overlay(segmented: Segmented, opacity: float) -> np.ndarray:
    """The picture under the colours of its classes: uint8 ``[h,w,3]``; opacity 0 is the picture, 1 the colours."""
    colors = palette(int(segmented.classes.max()) + 1)[segmented.classes]
    mixed = segmented.picture * np.float32(1 - opacity) + colors * np.float32(opacity)
    return np.rint(mixed).astype(np.uint8)


def shares(classes: np.ndarray, names: Sequence[str]) -> list[Share]:
    """The classes found in uint8 ``[h,w]``, the largest first."""
    counts = np.bincount(classes.ravel(), minlength=len(names))
    found = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)].tolist()
    colors = palette(len(names)).tolist()
    return [Share(names[index], tuple(colors[index]), float(counts[index] / classes.size)) for index in found]


def legend(found: Sequence[Share]) -> str:
    """Classes with their colours and percentages, as HTML."""
    entries = [
        f'<li style="display: inline-block; margin-right: 1.5em"><span style="display: inline-block; width: 1em; '
        f'height: 1em; vertical-align: middle; border: 1px solid; background: rgb{share.color}"></span> '
        f"{html.escape(share.name)} {share.fraction:.1%}</li>"
        for share in found
    ]
    return f'<ul style="list-style: none; padding: 0">{"".join(entries)}</ul>'


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
    if engine.info.choices:
        return sorted(engine.info.choices)
    return sorted(concept.name for concept in emoji.concepts) if emoji and engine.info.has_text else []
