"""The pages: one for each model, with tabs by what it can do. The tabs are in ``app.tabs``."""

from __future__ import annotations

import re
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from app import handlers
from app.examples import write_examples
from app.guard import Guard
from app.parts import Page
from app.search import ImageIndex, Pictures, bundled, folder
from app.tabs.classify import classify_tab
from app.tabs.compare import compare_tab
from app.tabs.corrupt import corrupt_tab
from app.tabs.patches import patches_tab
from app.tabs.search import search_tab
from app.tabs.segment import segment_tab
from app.tabs.styles import styles_tab
from digpt.data.emoji import EmojiSet
from digpt.engine import Engine
from digpt.runtime.base import RuntimeInfo

TITLE = "digpt"
LIMITS = (
    "The bundled model knows emoji-like pictures and words, not photographs. "
    "For photographs: `--model open_clip:ViT-B-16/openai`."
)
HIDDEN_FOLDER = "DIR"  # stands for a folder whose place is not told
MAX_WAITING = 32
CACHE_SWEEP_S, CACHE_AGE_S = 600, 3600
STYLESHEET = Path(__file__).with_name("demo.css")


def build_demo(
    engines: Engine | Mapping[str, Engine], *, api_here: bool = False, search_dir: str | None = None
) -> gr.Blocks:
    """Build a page for each engine, the first of which is shown first; a bar above them leads to the others.

    Args:
        api_here: whether the server that shows the pages answers /classify and /embed too.
        search_dir: the folder of pictures to search; None for the bundled set.

    Raises:
        DataError: ``search_dir`` is no folder, or there is no picture in it.
    """
    named = {engines.info.name: engines} if isinstance(engines, Engine) else dict(engines)
    emoji = handlers.load_emoji()
    searched = pictures_to_search(emoji, search_dir, api_here)
    files = tempfile.TemporaryDirectory(prefix="digpt-demo-")
    examples = write_examples(emoji, Path(files.name)) if emoji else []
    blocks = gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(CACHE_SWEEP_S, CACHE_AGE_S))
    for number, (name, engine) in enumerate(named.items()):
        page = Page(
            engine,
            examples,
            handlers.known_concepts(engine, emoji),
            ImageIndex(engine, searched) if searched else None,
            name if number else None,
            api_here,
        )
        with blocks.route(choice(name, engine.info), re.sub(r"[^\w.~-]+", "-", name)) if number else blocks:
            if len(named) > 1:
                gr.Navbar(main_page_name=choice(next(iter(named)), next(iter(named.values())).info))
            fill(page, name)
    weakref.finalize(blocks, files.cleanup)
    return blocks


def pictures_to_search(emoji: EmojiSet | None, search_dir: str | None, api_here: bool) -> Pictures | None:
    """The folder, else the bundled set where there is one; where a server keeps its folder is its own."""
    if search_dir is not None:
        return folder(search_dir, HIDDEN_FOLDER if api_here else None)
    return bundled(emoji) if emoji else None


def fill(page: Page, name: str) -> None:
    """Lay out the tabs that the page's model has an answer for."""
    info = page.engine.info
    gr.Markdown(header(name, info), elem_classes="digpt-model")
    segments = info.head == "upernet"
    classifies = info.has_text or not segments
    if segments:
        with gr.Tab("Segment"):
            segment_tab(page)
    if classifies:
        with gr.Tab("Classify"):
            classify_tab(page)
    with gr.Tab("Compare"):
        compare_tab(page)
    if page.index is not None:
        with gr.Tab("Search"):
            search_tab(page, page.index)
    if info.patch_tokens:
        with gr.Tab("Patches"):
            patches_tab(page)
    if classifies:
        with gr.Tab("Corrupt"):
            corrupt_tab(page)
        with gr.Tab("Styles never seen"):
            styles_tab(page)


def mount(
    fastapi_app: Any,
    engines: Engine | Mapping[str, Engine],
    path: str,
    *,
    guard: Callable[[], object] | None,
    max_bytes: int,
    search_dir: str | None = None,
) -> Any:
    """Put the pages under ``path`` of a FastAPI application behind a ``Guard``, and return the application."""
    pages = queued(build_demo(engines, api_here=True, search_dir=search_dir))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "SSR mode", UserWarning)  # of several pages; it is off anyway
        gr.mount_gradio_app(fastapi_app, pages, path, **options(engines))
    route = fastapi_app.routes[-1]
    assert route.path == path, "Gradio mounts its application last"
    route.app = Guard(route.app, guard, max_bytes)
    return fastapi_app


def launch(engines: Mapping[str, Engine], host: str, port: int, search_dir: str | None = None) -> None:
    """Show the pages on their own until interrupted."""
    pages = queued(build_demo(engines, search_dir=search_dir))
    for engine in engines.values():
        if engine.info.has_text and engine.info.choices:
            engine.class_matrix(engine.info.choices)  # seconds, better spent before the first click
    pages.launch(server_name=host, server_port=port, quiet=True, share=False, **options(engines))


def queued(pages: gr.Blocks) -> gr.Blocks:
    """Let at most ``MAX_WAITING`` clicks wait."""
    pages.queue(max_size=MAX_WAITING)
    return pages


def options(engines: Engine | Mapping[str, Engine]) -> dict[str, Any]:
    """What Gradio is told wherever the pages are shown. ``show_error`` is about exceptions that nobody expected."""
    loaded = [engines] if isinstance(engines, Engine) else engines.values()
    return {
        "footer_links": [],
        "run_history": False,
        "show_error": False,
        "max_file_size": max(engine.limits.max_bytes for engine in loaded),
        "ssr_mode": False,
        "enable_monitoring": False,
        "theme": theme(),
        "css": STYLESHEET.read_text(encoding="utf-8"),
    }


def theme() -> gr.themes.Base:
    """The system's own fonts, for nothing is fetched, and borders: an empty box on white is not seen without."""
    soft = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return soft.set(checkbox_border_color="*neutral_500", input_border_color="*neutral_300", input_border_width="1px")


def choice(name: str, info: RuntimeInfo) -> str:
    """How a model is called where one of several is picked."""
    return f"{name} ({info.backend} {info.precision})"


def header(name: str, info: RuntimeInfo) -> str:
    """Markdown that says which model answers, and what it knows."""
    segments = f"It gives every pixel one of {len(info.labels or ())} classes."
    return (
        f"# digpt: {name}\n"
        f"{info.backend} {info.precision}, {info.preprocess.size} x {info.preprocess.size} pixels, "
        f"{info.dim}-dimensional embeddings. Fingerprint `{info.fingerprint}`\n\n"
        f"{segments if info.head == 'upernet' else LIMITS}"
    )
