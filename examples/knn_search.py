"""Search a folder of pictures: the nearest to words, or to a picture.

python examples/knn_search.py examples/images --words 'dog face'
python examples/knn_search.py examples/images --picture examples/images/rocket.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from digpt.data.images import open_images
from digpt.engine import Engine
from digpt.errors import ConfigError, DigptError


def search(
    folder: Annotated[Path, tyro.conf.Positional],
    words: str | None = None,
    picture: Path | None = None,
    model: str = "bundled",
    k: int = 5,
) -> list[tuple[str, float]]:
    """Print and return the nearest pictures with their cosines, the best first.

    Args:
        folder: pictures, in folders or not.
        words: what to search for; needs a model with a text tower.
        picture: what to search for instead; any model will do.
        model: a model spec, or the URL of a running server.
        k: how many to find.
    """
    engine, images = Engine.load(model), open_images(f"folder:{folder}")
    if words is not None:
        query = engine.class_matrix([words])  # in the templates that the model was tuned with
    elif picture is not None:
        query = engine.embed_images([engine.decode(picture.read_bytes())])
    else:
        raise ConfigError("Say what to search for: --words or --picture.")
    rows = engine.embed_images([engine.decode(images.read(number)[0]) for number in range(len(images))])
    cosines = engine.similarity(query, rows)[0]
    nearest = np.argsort(-cosines, kind="stable")[:k]
    found = [(images.sample_name(number), float(cosines[number])) for number in nearest.tolist()]
    for name, cosine in found:
        print(f"{cosine:.4f}  {name}")
    return found


if __name__ == "__main__":
    try:
        tyro.cli(search, description=__doc__)
    except (DigptError, OSError) as error:
        sys.exit(f"error: {error}")
