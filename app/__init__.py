"""The Gradio demo: try a model with your own pictures, labels and words.

    python -m app --model bundled

| file | what it is for |
|---|---|
| demo.py | the pages: one for each model, tabs by what it can do |
| tabs/ | one file for each tab: components, what is called when |
| parts.py | components that several tabs have |
| guard.py | what a mounted page may be asked |
| handlers.py | labels, probabilities, similarities, segments, without Gradio |
| search.py | pictures embedded once, and the nearest to a picture or words |
| patches.py | patch tokens as colours |
| playground.py | a corrupted picture, and what the model says to it |
| examples.py | pictures of never-trained styles to click on |
| snippets.py | the shell and Python lines that reproduce what is on screen |
| cli.py | the command line |

``serve`` mounts it at /demo with ``mount``. Gradio takes seconds to import, so it is only imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr

    from digpt.engine import Engine

MAX_BYTES = 64 * 1024 * 1024

__all__ = ["build_demo", "mount"]


def build_demo(engine: Engine | Mapping[str, Engine]) -> gr.Blocks:
    """Build the page of one engine, or one page for each by its name."""
    from app import demo

    return demo.build_demo(engine)


def mount(
    fastapi_app: Any,
    engine: Engine | Mapping[str, Engine],
    path: str = "/demo",
    *,
    guard: Callable[[], object] | None = None,
    max_bytes: int = MAX_BYTES,
    search_dir: str | None = None,
    cards: str | None = None,
) -> Any:
    """Put the page for ``engine`` under ``path`` of a FastAPI application, and return the application.

    Args:
        engine: of several by their names, the first is shown first.
        guard: raises a DigptError, for the application to answer, while an engine must not be asked.
        max_bytes: of one request.
        search_dir: the folder of pictures that can be searched; None for the bundled set.
        cards: where the application shows the passport of the model ``{name}``; None where it shows none to browsers.
    """
    from app import demo

    return demo.mount(fastapi_app, engine, path, guard=guard, max_bytes=max_bytes, search_dir=search_dir, cards=cards)
