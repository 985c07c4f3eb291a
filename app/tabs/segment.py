"""Segment: a picture in; its classes laid over it in colours, a legend and the Python lines out."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gradio as gr

from app import handlers, snippets
from app.parts import Page, live, picture_input, python_lines, sentences

KEPT = 8  # pictures with their classes, of everybody who looks at the page


def segment_tab(page: Page) -> None:
    """Lay out the tab."""
    with gr.Row():
        with gr.Column():
            picture = picture_input("Picture", 300)
            opacity = gr.Slider(0, 1, value=0.6, step=0.05, label="Opacity of the colours")
            button = gr.Button("Segment", variant="primary")
        result = gr.Image(label="The class of every pixel", interactive=False, format="png", buttons=["download"])
    legend = gr.HTML()
    python = python_lines()
    # Moving the slider asks the model nothing. Gradio names an upload by its content, so a path is always one picture.
    segmented = lru_cache(KEPT)(lambda path: handlers.segment(page.engine, path))

    @sentences
    def run(path: str | None, strength: float) -> tuple[Any, str, str]:
        found = segmented(path)
        shares = handlers.shares(found.classes, page.engine.info.labels or ())
        code = snippets.python_segment(page.load_here(), path, found.classes.shape)
        return handlers.overlay(found, strength), handlers.legend(shares), code

    def run_if_given(path: str | None, strength: float) -> tuple[Any, str, str]:
        return run(path, strength) if path else (None, "", "")

    inputs, outputs = [picture, opacity], [result, legend, python]
    button.click(run, inputs, outputs, api_name="segment")
    live([picture.change, opacity.input], run_if_given, inputs, outputs, api_visibility="private")
