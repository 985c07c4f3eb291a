"""Corrupt: make a picture worse, and watch the answer change."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import snippets
from app.handlers import parse_labels
from app.parts import Page, example_pictures, labels_input, live, picture_input, python_lines, sentences
from app.playground import KEY, play
from digpt.corruptions import CORRUPTIONS, SEVERITIES


def corrupt_tab(page: Page) -> None:
    """Lay out the tab; whatever is moved is answered at once, the last position winning."""
    choices = [(name.replace("_", " "), name) for name in CORRUPTIONS]
    with gr.Row():
        with gr.Column():
            picture = picture_input("Picture", 300)
            example_pictures(page, picture)
            corruption = gr.Dropdown(choices, value="fog", label="Corruption")
            severity = gr.Slider(
                0, max(SEVERITIES), value=3, step=1, label="Severity", info="0 leaves the picture as it is."
            )
        with gr.Column():
            shown = gr.Image(label="What the model gets", interactive=False, format="png", height=300, buttons=[])
            verdict = gr.Markdown("")
            result = gr.Label(label="Probability of each label")
            labels = labels_input(page)
    python = python_lines()

    @sentences
    def run(path: str | None, names: str, kind: str, level: float) -> tuple[Any, str, Any, str]:
        found = play(page.engine, path, names, kind, level)
        code = snippets.python_corrupt(page.load_here(), path, parse_labels(names), kind, int(level), KEY)
        return found.shown(), found.sentence(), found.scores, code

    def run_if_given(path: str | None, names: str, kind: str, level: float) -> tuple[Any, str, Any, str]:
        return run(path, names, kind, level) if path else (None, "", None, "")

    inputs, outputs = [picture, labels, corruption, severity], [shown, verdict, result, python]
    live(
        [picture.change, corruption.input, severity.input, labels.blur],
        run_if_given,
        inputs,
        outputs,
        api_name="corrupt",
    )
