"""Search: a picture or words in, the nearest pictures of a folder or of the bundled set out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from app import handlers, snippets
from app.examples import over_white
from app.parts import Page, example_pictures, picture_input, python_lines, told
from app.search import ImageIndex
from digpt.errors import DigptError


def search_tab(page: Page, index: ImageIndex) -> None:
    """Lay out the tab. The first search builds the index, and shows the nearest of what is indexed meanwhile."""
    has_text = page.engine.info.has_text
    with gr.Row():
        with gr.Column(scale=2):
            words = gr.Textbox("", label="Words", placeholder="dog face", visible=has_text)
            picture = picture_input("Or a picture" if has_text else "Picture", 230)
            example_pictures(page, picture)
            button = gr.Button("Search", variant="primary")
        with gr.Column(scale=3):
            status = gr.Markdown(f"{len(index.pictures.names):,} {index.pictures.title} to search.")
            gallery = gr.Gallery(
                label="Nearest pictures",
                show_label=False,
                columns=4,
                height="auto",
                object_fit="contain",
                buttons=[],
                format="png",
                elem_classes="digpt-found",
            )
    python = python_lines()

    def run(path: str | None, text: str, request: gr.Request) -> Iterator[tuple[str, Any, str]]:
        try:
            query = handlers.search_query(page.engine, path, text)
            load = page.load_here()
            code = snippets.python_search(load, index.pictures.code, path, text)
            for _ in index.build():
                yield index.progress(), found(index, query), code
            yield index.progress(), found(index, query), code
        except DigptError as error:
            raise told(error) from None

    inputs, outputs = [picture, words], [status, gallery, python]
    # Words win, so those of an earlier search must not stand in a picture's way.
    picture.change(
        lambda path, text: "" if path else text,
        [picture, words],
        words,
        api_visibility="private",
        show_progress="hidden",
    )
    gr.on([button.click, words.submit], run, inputs, outputs, api_name="search", show_progress="hidden")


def found(index: ImageIndex, query: Any) -> list[tuple[Any, str]]:
    """The nearest pictures with their names and cosines, for a gallery."""
    limits = index.engine.limits
    return [(over_white(hit.data, limits), f"{hit.name}: {hit.cosine:.3f}") for hit in index.nearest(query)]
