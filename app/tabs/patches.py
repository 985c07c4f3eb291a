"""Patches: what the model sees in the parts of a picture, as colours laid over it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gradio as gr

from app import snippets
from app.parts import Page, example_pictures, live, picture_input, python_lines, sentences
from app.patches import patches

KEPT = 8  # pictures with their colours, of everybody who looks at the page


def patches_tab(page: Page) -> None:
    """Lay out the tab; a picture that is given is shown at once."""
    gr.Markdown(
        "Red, green and blue are the three directions in which the patch tokens of a picture differ most: "
        "patches of alike colours are alike to the model."
    )
    with gr.Row():
        with gr.Column():
            picture = picture_input("Picture", 270)
            example_pictures(page, picture)
            opacity = gr.Slider(0, 1, value=0.6, step=0.05, label="Opacity of the colours")
            button = gr.Button("Show patches", variant="primary")
        with gr.Column():
            result = gr.Image(label="Patches", interactive=False, format="png", buttons=["download"])
            status = gr.Markdown("")
    python = python_lines()
    # As on the Segment tab: moving the slider asks the model nothing.
    colored = lru_cache(KEPT)(lambda path: patches(page.engine, path))

    @sentences
    def run(path: str | None, strength: float) -> tuple[Any, str, str]:
        seen = colored(path)
        sentence = f"{seen.grid} x {seen.grid} patches; the colours hold {seen.variance:.0%} of their variance."
        return seen.overlay(strength), sentence, snippets.python_patches(page.load_here(), path)

    def run_if_given(path: str | None, strength: float) -> tuple[Any, str, str]:
        return run(path, strength) if path else (None, "", "")

    inputs, outputs = [picture, opacity], [result, status, python]
    button.click(run, inputs, outputs, api_name="patches")
    live([picture.change, opacity.input], run_if_given, inputs, outputs, api_visibility="private")
