"""Build a vector index from bulk embeddings and ask it, with the model's fingerprint checked on the way.

    python -m serve.offline examples/images emoji.parquet
    python examples/vector_index.py build emoji.parquet --index emoji.faiss
    python examples/vector_index.py query emoji.faiss --text 'red apple'
    python examples/vector_index.py query emoji.faiss --image examples/images/rocket.png --model http://127.0.0.1:8000

Needs faiss: pip install faiss-cpu. Distances between embeddings of two models mean nothing, so files of different
weights do not get into one index, and only the model whose fingerprint it carries may ask it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import faiss
import numpy as np
import tyro

from digpt.embeddings_file import about_files, read_embeddings
from digpt.engine import Engine
from digpt.errors import ConfigError, DataError, DigptError


@dataclass(frozen=True)
class Build:
    """Build an index from files of embeddings of one model."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """What python -m serve.offline wrote."""
    index: Path
    """The index to write; the ids go into INDEX.json beside it."""


@dataclass(frozen=True)
class Query:
    """Find what is nearest to a text or an image."""

    index: Annotated[Path, tyro.conf.Positional]
    """What build wrote."""
    text: str | None = None
    image: Path | None = None
    model: str = "bundled"
    """The model that the embeddings come from: a spec, or the URL of a server that serves it."""
    k: int = 5
    """How many to find."""


def build(files: Sequence[Path], path: Path) -> int:
    """Write an index of exact cosine, batch by batch, and return how many embeddings it holds.

    Raises:
        DataError: files that are none of digpt's, or of different weights.
    """
    about = about_files(files)
    if not about.normalized:
        raise DataError(f"{files[0]} holds embeddings of any length, and this index takes inner products of unit rows.")
    index, ids = faiss.IndexFlatIP(about.dim), []
    for names, rows in read_embeddings(files, fingerprint=about.fingerprint):
        index.add(rows)
        ids += names
    faiss.write_index(index, str(path))
    document = {"fingerprint": about.fingerprint, "spec": about.spec, "ids": ids}
    beside(path).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return len(ids)


def query(engine: Engine, path: Path, *, text: str | None, image: Path | None, k: int) -> list[tuple[str, float]]:
    """The ``k`` nearest ids with their cosines, best first.

    Raises:
        DataError: ``engine`` is not the model of the index.
        ConfigError: neither a text nor an image, or both.
    """
    if (text is None) == (image is None):
        raise ConfigError("Give either --text or --image.")
    document = json.loads(beside(path).read_text(encoding="utf-8"))
    if engine.info.fingerprint != document["fingerprint"]:
        raise DataError(
            f"{path} was built with {document['spec']} ({document['fingerprint']}), and {engine.info.spec} is "
            f"{engine.info.fingerprint}; ask with the model that it was built with."
        )
    asked = engine.embed_texts([text]) if text else engine.embed_images([engine.decode(Path(image or "").read_bytes())])
    scores, rows = faiss.read_index(str(path)).search(np.ascontiguousarray(asked), k)
    found = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
    return [(document["ids"][row], score) for row, score in found if row >= 0]


def beside(path: Path) -> Path:
    """Where the ids and the fingerprint of an index lie."""
    return path.with_name(path.name + ".json")


def main(argv: Sequence[str] | None = None) -> int:
    """Build or query; return the exit code."""
    try:
        options = tyro.extras.subcommand_cli_from_dict({"build": Build, "query": Query}, args=argv, description=__doc__)
        if isinstance(options, Build):
            print(f"{options.index}: {build(options.files, options.index):,} embeddings")
            return 0
        engine = Engine.load(options.model)
        for name, score in query(engine, options.index, text=options.text, image=options.image, k=options.k):
            print(f"{score:.4f}  {name}")
    except (DigptError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
