"""Compare: two pictures, or a picture and a text, in; cosines out."""

from __future__ import annotations

import gradio as gr

from app import handlers, snippets
from app.parts import Page, example_pictures, picture_input, python_lines, sentences, shell_line


def compare_tab(page: Page) -> None:
    """Lay out the tab."""
    with gr.Row():
        with gr.Column():
            first = picture_input("First picture", 250)
            example_pictures(page, first)
        with gr.Column():
            second = picture_input("Second picture (optional)", 250)
            example_pictures(page, second)
    text = gr.Textbox("", label="Text (optional)", placeholder="a dog", visible=page.engine.info.has_text)
    button = gr.Button("Compare", variant="primary")
    result = gr.Dataframe(headers=["pair", "cosine"], datatype=["str", "number"], interactive=False, label="Similarity")
    gr.Markdown(
        "1 is the same direction, 0 unrelated. Compare like with like: two pictures are usually closer to each other "
        "than a picture is to a text."
    )
    with gr.Row():
        shell, python = shell_line(), python_lines()

    @sentences
    def run(a: str | None, b: str | None, words: str, request: gr.Request) -> tuple[list[list[object]], str, str]:
        pairs = handlers.similarity(page.engine, a, b, words)
        rows: list[list[object]] = [[pair, round(cosine, 4)] for pair, cosine in pairs]
        return (
            rows,
            snippets.curl_embed(page.address(request), [a, b], words, page.model),
            snippets.python_compare(page.load(request), [a, b], words),
        )

    gr.on([button.click, text.submit], run, [first, second, text], [result, shell, python], api_name="compare")
