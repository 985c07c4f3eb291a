"""Make docstrings readable as Markdown for the reference (an extension of griffe, named in mkdocs.yml)."""

from __future__ import annotations

import re
from typing import Any

import griffe

SESSION = re.compile(r"(?:^[ \t]*(?:>>>|\.\.\.) .*\n?)(?:^[ \t]*\S.*\n?)*", re.MULTILINE)


class Sessions(griffe.Extension):
    """Fences ``>>>`` sessions, which Markdown takes for quotations."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute that was read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """Put a fence around each session, up to the next empty line."""
    return SESSION.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)
