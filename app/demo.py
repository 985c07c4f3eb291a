"""The pages: one for each model, with tabs by what it can do. The tabs are in ``app.tabs``."""

from __future__ import annotations

import re
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

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
from digpt.passport import passport_path, read_passport
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
# Gradio's lists of choices open again when the Tab key leaves their field, and are a stop of their own.
TAB_LEAVES_LISTS = """() => document.addEventListener("keydown", event => {
  if (event.key !== "Tab" || event.target.getAttribute("role") !== "combobox") return;
  event.stopPropagation();
  document.querySelectorAll("[role=listbox]").forEach(list => list.tabIndex = -1);
}, true)"""


def build_demo(
    engines: Engine | Mapping[str, Engine],
    *,
    api_here: bool = False,
    search_dir: str | None = None,
    cards: str | None = None,
) -> gr.Blocks:
    """Build a page for each engine, the first of which is shown first; a bar above them leads to the others.

    Args:
        api_here: whether the server that shows the pages answers /classify and /embed too.
        search_dir: the folder of pictures to search; None for the bundled set.
        cards: where that server shows the passport of the model ``{name}``; None where it shows none.

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
            gr.Markdown(
                header(name, engine.info, passport(name, engine.info, api_here, cards)), elem_classes="digpt-model"
            )
            with gr.Tabs(overflow_behavior="wrap"):  # a menu would hide most of them on a phone
                fill(page)
    weakref.finalize(blocks, files.cleanup)
    return blocks


def pictures_to_search(emoji: EmojiSet | None, search_dir: str | None, api_here: bool) -> Pictures | None:
    """The folder, else the bundled set where there is one; where a server keeps its folder is its own."""
    if search_dir is not None:
        return folder(search_dir, HIDDEN_FOLDER if api_here else None)
    return bundled(emoji) if emoji else None


def fill(page: Page) -> None:
    """Lay out the tabs that the page's model has an answer for."""
    info = page.engine.info
    segments = info.head == "upernet"
    classifies = info.has_text or not segments
    if segments:
        with tab("Segment"):
            segment_tab(page)
    if classifies:
        with tab("Classify"):
            classify_tab(page)
    with tab("Compare"):
        compare_tab(page)
    if page.index is not None:
        with tab("Search"):
            search_tab(page, page.index)
    if info.patch_tokens:
        with tab("Patches"):
            patches_tab(page)
    if classifies:
        with tab("Corrupt"):
            corrupt_tab(page)
        with tab("Styles never seen"):
            styles_tab(page)


def tab(name: str) -> gr.Tab:
    """A tab whose button says by an id which panel it opens: Gradio tells screen readers only then."""
    return gr.Tab(name, elem_id=f"tab-{name.lower().replace(' ', '-')}")


def mount(
    fastapi_app: Any,
    engines: Engine | Mapping[str, Engine],
    path: str,
    *,
    guard: Callable[[], object] | None,
    max_bytes: int,
    search_dir: str | None = None,
    cards: str | None = None,
) -> Any:
    """Put the pages under ``path`` of a FastAPI application behind a ``Guard``, and return the application."""
    pages = queued(build_demo(engines, api_here=True, search_dir=search_dir, cards=cards))
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
        "js": TAB_LEAVES_LISTS,
    }


def theme() -> gr.themes.Base:
    """The system's own fonts, for nothing is fetched; borders, without which an empty box on white is not seen; and
    colours of text and of its ground that are at least 4.5 : 1 apart (WCAG 2.2, 1.4.3).
    """
    soft = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return soft.set(
        checkbox_border_color="*neutral_500",
        input_border_color="*neutral_300",
        input_border_width="1px",
        block_border_width="1px",
        body_text_color_subdued="*neutral_600",
        link_text_color_dark="*primary_400",
        block_label_text_color="*primary_600",
        block_title_text_color="*primary_600",
        checkbox_label_background_fill_selected="*primary_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
    )


def choice(name: str, info: RuntimeInfo) -> str:
    """How a model is called where one of several is picked."""
    return f"{name} ({info.backend} {info.precision})"


def passport(name: str, info: RuntimeInfo, api_here: bool, cards: str | None) -> str:
    """Markdown that says where the model's passport is: a server's page, or a file of whoever runs the demo alone."""
    path = passport_path(info.spec)
    if path is None or read_passport(info.spec, info.fingerprint) is None:
        return "It came without a passport." if cards or not api_here else ""
    if cards:
        return f"What was checked about it: [its passport]({cards.format(name=quote(name))})."
    if api_here:
        return ""
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"What was checked about it: its passport, `{shown}`."


def header(name: str, info: RuntimeInfo, checked: str) -> str:
    """Markdown that says which model answers, what it knows, and where to read what was checked about it."""
    segments = f"It gives every pixel one of {len(info.labels or ())} classes."
    return (
        f"# digpt: {name}\n"
        f"{info.backend} {info.precision}, {info.preprocess.size} x {info.preprocess.size} pixels, "
        f"{info.dim}-dimensional embeddings. Fingerprint `{info.fingerprint}`\n\n"
        f"{segments if info.head == 'upernet' else LIMITS} {checked}"
    )
