"""Styles never seen: click a picture of a style that the bundled model was never trained on."""

from __future__ import annotations

import gradio as gr

from app import handlers
from app.examples import STYLES
from app.parts import Page, pictures, sentences


def styles_tab(page: Page) -> None:
    """Lay out the tab, or say that there is nothing to show."""
    examples, choices = page.examples, page.engine.info.choices
    if not examples:
        gr.Markdown("The bundled data set is not installed here; this tab shows its pictures.")
        return
    names = sorted({example.name for example in examples})
    labels = "" if choices else "\n".join(names)
    gr.Markdown(
        "The bundled model was trained on Noto, Twemoji and Fluent 3D drawings. It never saw these styles. "
        f"Click a picture to ask the model which of {len(choices or names):,} names it goes by."
    )
    style = gr.Radio([(title, name) for name, title in STYLES.items()], value="flat", label="Style")
    with gr.Row():
        gallery = gr.Gallery(
            pictures(examples, "flat"),
            columns=5,
            height="auto",
            object_fit="contain",
            allow_preview=False,
            show_label=False,
            buttons=[],
            elem_classes="digpt-styles",
            scale=3,
        )
        with gr.Column(scale=2):
            truth = gr.Textbox(label="It is", interactive=False)
            result = gr.Label(label="The model says", num_top_classes=5)

    @sentences
    def ask(chosen: str, event: gr.SelectData) -> tuple[str, dict[str, float]]:
        example = [example for example in examples if example.style == chosen][event.index]
        return example.name, handlers.classify(page.engine, example.path, labels, "", 5)

    style.change(lambda chosen: pictures(examples, chosen), style, gallery, api_visibility="private")
    gallery.select(ask, style, [truth, result], api_visibility="private")
