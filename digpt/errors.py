"""One exception tree: every error a user can cause is one sentence that says what to do.

Command lines print the message and exit 2; ``serve`` maps the class to an HTTP status in one place.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DigptError(Exception):
    """Base of every error whose message is meant for the user."""


class ConfigError(DigptError):
    """A configuration value or combination that cannot work; the message names the valid ones."""


class SpecError(DigptError):
    """A model spec that names nothing known."""


class CheckpointError(DigptError):
    """A checkpoint or artifact that is damaged, foreign, or written by a newer version."""


class DataError(DigptError):
    """A data set that is missing, damaged or laid out differently than expected."""


class OtherClassesError(DataError):
    """A data set with a class that is none of those it should have."""


class BackendError(DigptError):
    """A runtime that cannot be used here, or whose answers failed verification."""


class MissingDependencyError(DigptError):
    """An optional package is not installed; the message names the extra to install."""


class InputError(DigptError):
    """Something in a request that cannot be answered."""


class UnsupportedFormatError(InputError):
    """Bytes that match no allowed image format."""


class ImageTooLargeError(InputError):
    """More bytes or pixels than the limits (from the header, before decoding) or the memory allow."""


class UnreadableImageError(InputError):
    """A recognised image format that cannot be decoded (truncated, damaged)."""


class CapabilityError(InputError):
    """A request for something that this model has not (texts without a text tower, labels without a head)."""


def near_misses(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'a' or 'b'?"`` for the closest known words, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
