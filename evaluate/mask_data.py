"""Which images with masks are asked, and where ADE20K lies. Imports without torch.

MaskData(data_spec(None, Path("data")), "val")
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from digpt.data.ade20k import ADE20K_FOLDER
from digpt.errors import ConfigError, DataError
from evaluate.suite import Subset


@dataclass(frozen=True)
class MaskData:
    """Which images are asked.

    ``spec`` is ``ade20k:DIR`` or ``masks:DIR``, None for the miniature's scenes. ``split``: None for ``val``, or for
    all splits of the scenes. ``reduce_zero``: 0 in the files of ``masks:`` is no class (None: as the model
    was trained), as it never is in ADE20K.
    """

    spec: str | None = None
    split: str | None = None
    subset: Subset = field(default_factory=Subset)
    reduce_zero: bool | None = None

    def __post_init__(self) -> None:
        if self.reduce_zero is not None and not (self.spec or "").startswith("masks:"):
            raise ConfigError("--reduce-zero is for --data masks:DIR: ADE20K has this rule by itself.")


def find_ade20k(root: Path) -> Path | None:
    """ADE20K below a data root: ``root/ADEChallengeData2016``, ``root/ade20k`` or ``root`` itself; None without."""
    candidates = [root / ADE20K_FOLDER, root / "ade20k" / ADE20K_FOLDER, root / "ade20k", root]
    return next((path for path in candidates if (path / "images").is_dir() and (path / "annotations").is_dir()), None)


def data_spec(data: str | None, data_root: Path | None) -> str | None:
    """The spec of what ``--data`` or ``--data-root`` name; None for the miniature.

    Raises:
        DataError: no ADE20K below the data root.
    """
    if data is not None or data_root is None:
        return data
    found = find_ade20k(data_root)
    if found is None:
        raise DataError(
            f"There is no ADE20K below {data_root}: unpack ADEChallengeData2016.zip there, so that "
            f"{data_root / ADE20K_FOLDER}/images exists, or name another folder by --data ade20k:DIR."
        )
    return f"ade20k:{found}"
