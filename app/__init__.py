"""The Gradio demo: classify with your own labels, compare, look at drawing styles the model never saw, or segment.

    python -m app --model bundled

| file | what it is for |
|---|---|
| demo.py | the page: tabs, components, what is called when |
| guard.py | what a mounted page may be asked |
| handlers.py | what the tabs compute, without Gradio |
| examples.py | pictures of never-trained styles to click on |
| snippets.py | the shell line that reproduces what is on screen |
| cli.py | the command line |

``serve`` mounts it at /demo with ``mount``. Gradio takes seconds to import, so it is only imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr

    from digpt.engine import Engine

MAX_BYTES = 64 * 1024 * 1024

__all__ = ["build_demo", "mount"]


def build_demo(engine: Engine) -> gr.Blocks:
    """Build the page for one engine."""
    from app import demo

    return demo.build_demo(engine)


def mount(
    fastapi_app: Any,
    engine: Engine,
    path: str = "/demo",
    *,
    guard: Callable[[], object] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Any:
    """Put the page for ``engine`` under ``path`` of a FastAPI application, and return the application.

    Args:
        guard: raises a DigptError, for the application to answer, while the engine must not be asked.
        max_bytes: of one request.
    """
    from app import demo

    return demo.mount(fastapi_app, engine, path, guard=guard, max_bytes=max_bytes)
