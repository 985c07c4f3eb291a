"""What the tabs share: the page they are on, and the components that several of them have."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import gradio as gr
from PIL import Image

from app import snippets
from app.examples import Example
from app.search import ImageIndex
from digpt.engine import Engine
from digpt.errors import DigptError

EXAMPLES = 5  # under a picture input
SMALL = 112  # pixels of their sides, twice of what is shown, for screens of twice the density
ERROR_S = 8
STANDALONE_ADDRESS = "http://127.0.0.1:8000"  # where `python -m serve` listens unless told otherwise
DEFAULT_LABELS = "red apple\ndog face\nrocket\npizza\nhouse"


@dataclass(frozen=True)
class Page:
    """One model's page.

    Attributes:
        examples: pictures to click on; empty where the bundled set is not installed.
        concepts: labels to suggest.
        index: what the Search tab searches; None where there is nothing.
        model: the model's name where the server has others that it would rather take; None for its default.
        api_here: whether the server that shows the page answers /classify and /embed too.
    """

    engine: Engine
    examples: list[Example]
    concepts: list[str]
    index: ImageIndex | None = None
    model: str | None = None
    api_here: bool = False

    def address(self, request: gr.Request) -> str:
        """Where the API answers: the server that this page came from, or the default of ``python -m serve``."""
        if not self.api_here:
            return STANDALONE_ADDRESS
        assert request.request is not None, "Gradio gives every event its HTTP request"
        return f"{request.request.url.scheme}://{request.request.url.netloc}"

    def load(self, request: gr.Request) -> str:
        """Python that loads the model for what the API answers: of a server by its address."""
        if not self.api_here:
            return self.load_here()
        return f"Engine.load({self.address(request) + (f'#{self.model}' if self.model else '')!r})"

    def load_here(self) -> str:
        """Python that loads the model from its files; where a server keeps these is its own."""
        info = self.engine.info
        if self.api_here:
            return f"Engine.load({info.spec if info.spec == 'bundled' else snippets.CHECKPOINT!r})"
        backend = "" if info.remote or info.backend == "torch" else f", {info.backend!r}"
        return f"Engine.load({info.spec!r}{backend})"


def sentences(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show a DigptError as the sentence it is."""

    @wraps(function)
    def wrapped(*args: Any) -> Any:
        try:
            return function(*args)
        except DigptError as error:
            raise told(error) from None

    return wrapped


def told(error: DigptError) -> gr.Error:
    """What Gradio shows as a sentence in a corner of the page."""
    return gr.Error(str(error), duration=ERROR_S, title="That cannot be done", print_exception=False)


def picture_input(label: str, height: int) -> gr.Image:
    """An image input that hands on the uploaded file untouched: the engine's decoder reads it, as behind every door."""
    image = gr.Image(label=label, sources=["upload", "clipboard"], height=height, type="filepath")
    # On the instance: for a subclass of a component Gradio writes a .pyi file beside this one. (image_mode=None hands
    # on the file as well, but Pillow opens it first, and refuses in words of its own.)
    image.preprocess = lambda payload: None if payload is None else str(payload.path)  # type: ignore[method-assign]
    return image


def example_pictures(page: Page, picture: gr.Image) -> None:
    """Drawings that fill a picture input when they are clicked."""
    shown = [example for example in page.examples if example.style == "flat"][:EXAMPLES]
    if not shown or not page.engine.info.has_text:
        return
    choices = gr.Dataset(
        components=[gr.HTML(render=False)],  # Gradio's own samples of pictures have no names to be read out
        samples=[[small_picture(example)] for example in shown],
        label="Or one of these, in a style never trained on",
        elem_classes="digpt-examples",
        type="index",
    )
    choices.click(lambda index: shown[index].path, choices, picture, api_visibility="private")


def small_picture(example: Example) -> str:
    """An example as HTML: its picture, and its name for those who do not see it."""
    with Image.open(example.path) as image:
        image.thumbnail((SMALL, SMALL))
        data = io.BytesIO()
        image.save(data, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    return f'<img src="{source}" alt="{html.escape(example.name)}" width="{SMALL // 2}" height="{SMALL // 2}">'


def labels_input(page: Page) -> gr.Textbox:
    """Where labels are typed."""
    info = page.engine.info
    return gr.Textbox(
        DEFAULT_LABELS if info.has_text else "",
        label="Labels",
        info="One per line, or separated by commas." + (" Leave empty for the model's own." if info.choices else ""),
        lines=5,
    )


def shell_line() -> gr.Code:
    """Where the line for a shell stands."""
    return _code("The same from a shell", "shell")


def python_lines() -> gr.Code:
    """Where the Python lines stand."""
    return _code("The same from Python", "python")


def _code(label: str, language: Any) -> gr.Code:
    return gr.Code(
        label=label,
        language=language,
        interactive=False,
        wrap_lines=True,
        lines=1,
        show_line_numbers=False,
        elem_classes="digpt-lines",
    )


def pictures(examples: list[Example], style: str) -> list[str]:
    """The files of one style, in the order of ``examples``."""
    return [example.path for example in examples if example.style == style]


def live(triggers: list[Any], run: Callable[..., Any], inputs: list[Any], outputs: list[Any], **api: Any) -> None:
    """Answer while something moves: without a veil over the outputs, and the last position last.

    A slider's trigger is ``input``: a key moves it without ever releasing it.
    """
    gr.on(triggers, run, inputs, outputs, show_progress="hidden", trigger_mode="always_last", **api)
