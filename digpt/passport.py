"""Where a model's passport lies (a page that ``python -m export.card --html`` writes), and whose it is.

    page = read_passport(engine.info.spec, engine.info.fingerprint)    # None where the model has none

It lies beside the model's files and is none of them: a manifest seals what decides the answers, and a passport is
written later, when these were measured. The page names the fingerprint that it is about, and is nobody else's.
"""

from __future__ import annotations

from pathlib import Path

from digpt.errors import SpecError

PASSPORT_NAME = "passport.html"
FINGERPRINT_META = "model-fingerprint"
MOST_BYTES = 3_000_000
_HEAD = 4096  # characters within which a page names its model


def passport_path(spec: str) -> Path | None:
    """Where the passport of an artifact directory or a checkpoint lies, there or not; None for other models."""
    path = Path(spec)
    if path.is_dir():
        return path / PASSPORT_NAME
    if not path.is_file():
        from digpt.sources import checkpoint_path  # needs torch, as the models do that it knows by name

        try:
            path = checkpoint_path(spec)
        except SpecError:
            return None
    return path.parent / PASSPORT_NAME


def read_passport(spec: str, fingerprint: str) -> str | None:
    """The page of a model; None where there is none, where it is another model's, or larger than `MOST_BYTES`."""
    path = passport_path(spec)
    if path is None or not path.is_file() or path.stat().st_size > MOST_BYTES:
        return None
    page = path.read_text(encoding="utf-8", errors="replace")
    return page if f'name="{FINGERPRINT_META}" content="{fingerprint}"' in page[:_HEAD] else None
