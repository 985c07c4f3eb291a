"""Where the split of a data set lies: ``train`` and ``val`` under timm's words for them."""

from __future__ import annotations

from pathlib import Path

from digpt.errors import DataError

_SYNONYMS = (("train", "training"), ("val", "validation", "valid", "eval", "test"))


def spellings(split: str) -> tuple[str, ...]:
    """The split's own name first, then timm's other words for it."""
    group = next((group for group in _SYNONYMS if split in group), ())
    return (split, *(word for word in group if word != split))


def split_path(path: str, split: str | None, whole: bool = False) -> Path:
    """The folder or tar of a split below ``path``, or where ``{split}`` in it leads.

    ``path`` itself for no split; and, where it has no splits, for ``train``, or with ``whole`` for any.

    Raises:
        DataError: the path or the split does not exist.
    """
    if "{split}" in path:
        candidates = [Path(path.replace("{split}", word)) for word in spellings(split or "train")]
        found = next((candidate for candidate in candidates if candidate.exists()), candidates[0])
        split = None
    else:
        found = Path(path)
    if not found.exists():
        raise DataError(f"There is no {found}.")
    if split is None:
        return found
    if found.is_dir():
        for word in spellings(split):
            for inner in (found / word, found / f"{word}.tar"):
                if inner.exists():
                    return inner
    others = [word for group in _SYNONYMS for word in group if (found / word).exists()]
    if not others and (whole or split in _SYNONYMS[0]):
        return found
    if not others:
        raise DataError(f"{found} has no split {split}, nor any other: make train/ and {split}/ in it (docs/data.md).")
    raise DataError(f"{found} has no split {split}; it has {', '.join(others)}.")


def shard_pattern(pattern: str, split: str | None, whole: bool = False) -> str:
    """The pattern of a split's shards: a folder's split, or ``{split}`` replaced.

    Raises:
        DataError: the pattern leaves no room for a split other than ``train``.
    """
    if "{split}" in pattern:
        return pattern.replace("{split}", split or "train")
    if Path(pattern).is_dir():
        return str(split_path(pattern, split, whole))
    if whole or split is None or split in _SYNONYMS[0]:
        return pattern
    raise DataError(f"The shards {pattern} are not of the split {split}: write {{split}} where its name belongs.")
