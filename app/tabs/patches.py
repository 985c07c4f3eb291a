"""Patches: what the model sees in the parts of a picture and where it looks, as colours laid over it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gradio as gr

from app import snippets
from app.parts import Page, example_pictures, live, picture_input, python_lines, sentences
from app.patches import attention, patches
from digpt.errors import CapabilityError

KEPT = 8  # pictures with their colours, of everybody who looks at the page
LIKENESS, ATTENTION = "What is alike", "Where it looks"


def patches_tab(page: Page) -> None:
    """Lay out the tab; a picture that is given is shown at once."""
    gr.Markdown(
        f"**{LIKENESS}**: red, green and blue are the three directions in which the patch tokens of a picture differ "
        f"most; patches of alike colours are alike to the model. **{ATTENTION}**: the brighter a patch, the more of "
        "the attention it gets by which the model gathers the features of the whole picture."
    )
    with gr.Row():
        with gr.Column():
            picture = picture_input("Picture", 300)
            example_pictures(page, picture)
            view = gr.Radio([LIKENESS, ATTENTION], value=LIKENESS, label="Show")
            opacity = gr.Slider(0, 1, value=0.6, step=0.05, label="Opacity of the colours")
            button = gr.Button("Show patches", variant="primary")
        with gr.Column():
            result = gr.Image(label="Patches", interactive=False, format="png", buttons=["download"])
            status = gr.Markdown("")
    python = python_lines()
    # As on the Segment tab: moving the slider asks the model nothing.
    colored = lru_cache(KEPT)(lambda path: patches(page.engine, path))
    attended = lru_cache(KEPT)(lambda path: attention(page.engine, path))

    @sentences
    def run(path: str | None, chosen: str, strength: float) -> tuple[Any, str, str]:
        load = page.load_here()
        if chosen == LIKENESS:
            seen, code = colored(path), snippets.python_patches(load, path)
            return seen.overlay(strength), seen.sentence, code
        try:
            seen, code = attended(path), snippets.python_attention(load, path)
        except CapabilityError as error:
            return None, str(error), ""  # where the colours would be: it is a fact about the model, no mistake
        return seen.overlay(strength), seen.sentence, code

    def run_if_given(path: str | None, chosen: str, strength: float) -> tuple[Any, str, str]:
        return run(path, chosen, strength) if path else (None, "", "")

    inputs, outputs = [picture, view, opacity], [result, status, python]
    button.click(run, inputs, outputs, api_name="patches")
    live([picture.change, view.input, opacity.input], run_if_given, inputs, outputs, api_visibility="private")
