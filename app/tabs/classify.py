"""Classify: a picture and labels in, probabilities and the lines that reproduce them out."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import handlers, snippets
from app.parts import Page, example_pictures, labels_input, picture_input, python_lines, sentences, shell_line


def classify_tab(page: Page) -> None:
    """Lay out the tab; a picture that is given is classified at once."""
    info = page.engine.info
    with gr.Row():
        with gr.Column():
            picture = picture_input("Picture", 300)
            example_pictures(page, picture)
            result = gr.Label(label="Probability of each label")
        with gr.Column():
            labels = labels_input(page)
            suggestion = gr.Dropdown(
                page.concepts, value=None, label="Add a concept that the model knows", visible=bool(page.concepts)
            )
            none = gr.Checkbox(False, label='Allow the answer "none of these"', visible=info.abstain is not None)
            button = gr.Button("Classify", variant="primary")
            with gr.Accordion("Options", open=False):
                template = gr.Textbox(
                    "",
                    label="Template, {} stands for the label",
                    placeholder=f"the model's own: {'; '.join(info.templates[:3])}",
                )
                top_k = gr.Slider(1, 20, value=5, step=1, label="How many labels to show")
            shell, python = shell_line(), python_lines()

    @sentences
    def run(
        path: str | None, names: str, pattern: str, k: float, abstain: bool, request: gr.Request
    ) -> tuple[dict[str, float], str, str]:
        scores = handlers.classify(page.engine, path, names, pattern, k, abstain)
        asked = (path, handlers.parse_labels(names), pattern, int(k), abstain)
        return (
            scores,
            snippets.curl_classify(page.address(request), *asked, page.model),
            snippets.python_classify(page.load(request), *asked),
        )

    def run_if_given(
        path: str | None, names: str, pattern: str, k: float, abstain: bool, request: gr.Request
    ) -> tuple[Any, str, str]:
        return run(path, names, pattern, k, abstain, request) if path else (None, "", "")

    inputs, outputs = [picture, labels, template, top_k, none], [result, shell, python]
    gr.on([button.click, labels.submit], run, inputs, outputs, api_name="classify")
    gr.on([picture.change, none.input], run_if_given, inputs, outputs, api_visibility="private")
    suggestion.input(
        lambda names, chosen: (handlers.add_label(names, chosen), None),
        [labels, suggestion],
        [labels, suggestion],
        api_visibility="private",
    )
