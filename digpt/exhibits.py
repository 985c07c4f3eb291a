"""What an evaluation shows beside its numbers: reliability diagrams, confident mistakes, pictures under corruption.

    write_exhibits(exhibits, "runs/eval/exhibits.json")
    exhibits = read_exhibits("runs/eval")    # None where an evaluation left none

The results document (`digpt.results`) has the numbers; this file has what people look at, so that a report can show it
without model or data. Pictures are what the model was given, as WebP files in base64. ``docs/results.md`` explains it.
"""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from digpt.errors import DataError
from digpt.files import atomic_json

EXHIBITS_NAME = "exhibits.json"
SCHEMA_VERSION = 1
SIDE = 160  # pixels; larger pictures are shrunk to it
QUALITY = 85  # of WebP
_WEBP = b"RIFF", b"WEBP"
_STRICT = ConfigDict(extra="forbid")


def _checked_webp(text: str) -> str:
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("a picture is no base64") from error
    if (data[:4], data[8:12]) != _WEBP:
        raise ValueError("a picture is no WebP file")
    return text


_Share = Annotated[float, Field(ge=0, le=1)]
_Picture = Annotated[str, AfterValidator(_checked_webp)]


@dataclass(frozen=True)
class Exhibit:
    """One picture and what the model made of it.

    ``key`` names it in its data set, ``label`` is the true class, ``given`` the model's, at a probability of
    ``confidence``. ``right`` is kept, since an image may have several true classes, of which ``label`` is the first.
    """

    __pydantic_config__ = _STRICT

    split: str
    key: str
    label: str
    given: str
    right: bool
    confidence: _Share
    picture: _Picture


@dataclass(frozen=True)
class SetExhibits:
    """A set without corruption. The diagram's bins are those that hold images: mean confidence, accuracy, images.

    ``mistakes`` are the most confident of ``wrong`` wrong answers, at most one for each true class.
    """

    __pydantic_config__ = _STRICT

    dataset: str
    split: str
    n: Annotated[int, Field(ge=1)]
    wrong: Annotated[int, Field(ge=0)]
    confidence: tuple[_Share, ...]
    accuracy: tuple[_Share, ...]
    count: tuple[int, ...]
    mistakes: tuple[Exhibit, ...]

    def __post_init__(self) -> None:
        if not len(self.confidence) == len(self.accuracy) == len(self.count):
            raise ValueError("a reliability diagram has as many confidences as accuracies and counts")


@dataclass(frozen=True)
class SweepExhibits:
    """A few pictures of a sweep under every corruption at the highest severity (``split`` is ``fog/5``).

    ``clean`` are the same pictures as they were; none where the sweep's clean images were not asked.
    """

    __pydantic_config__ = _STRICT

    dataset: str
    clean: tuple[Exhibit, ...]
    corrupted: tuple[Exhibit, ...]


@dataclass(frozen=True, kw_only=True)
class Exhibits:
    """The content of ``exhibits.json``; ``model`` and ``protocol`` are the fingerprints of the results beside it."""

    __pydantic_config__ = _STRICT

    schema_version: int = SCHEMA_VERSION
    model: str
    backend: str
    protocol: str
    sets: tuple[SetExhibits, ...]
    sweeps: tuple[SweepExhibits, ...]


_ADAPTER: TypeAdapter[Exhibits] = TypeAdapter(Exhibits)


def picture_of(pixels: NDArray[np.uint8]) -> str:
    """A uint8 RGB image ``[H, W, 3]`` as an exhibit's picture, no side longer than `SIDE`."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    return base64.b64encode(buffer.getvalue()).decode()


def write_exhibits(exhibits: Exhibits, path: str | Path) -> None:
    """Write the file atomically."""
    atomic_json(path, asdict(exhibits), shared=True)


def read_exhibits(path: str | Path) -> Exhibits | None:
    """Read the exhibits beside ``results.json``; ``path`` is that file or its directory. None where there are none.

    Raises:
        DataError: damaged, or of a newer version.
    """
    path = Path(path)
    path = (path if path.is_dir() else path.parent) / EXHIBITS_NAME
    if not path.is_file():
        return None
    try:
        exhibits = _ADAPTER.validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise DataError(f"{path} is not valid at {where}: {first['msg']}; run the evaluation again.") from error
    if exhibits.schema_version > SCHEMA_VERSION:
        raise DataError(f"{path} is of a newer version ({exhibits.schema_version}); update this program.")
    return exhibits
