"""The page: tabs over one engine, by what its model can do. What they compute is in ``app.handlers``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import gradio as gr

from app import handlers, snippets
from app.examples import STYLES, Example, write_examples
from app.guard import Guard
from digpt.engine import Engine
from digpt.errors import DigptError
from digpt.runtime.base import RuntimeInfo

TITLE = "digpt"
LIMITS = (
    "The bundled model knows emoji-like pictures and words, not photographs. "
    "For photographs: `--model open_clip:ViT-B-16/openai`."
)
DEFAULT_LABELS = "red apple\ndog face\nrocket\npizza\nhouse"
STANDALONE_ADDRESS = "http://127.0.0.1:8000"  # where `python -m serve` listens unless told otherwise
SEGMENTED_KEPT = 8  # pictures with their classes, of everybody who looks at the page
EXAMPLES = 5  # on the first tab
MAX_WAITING = 32
CACHE_SWEEP_S, CACHE_AGE_S = 600, 3600
CSS = ".digpt-model code { word-break: break-all; }"


def build_demo(engine: Engine, *, api_here: bool = False) -> gr.Blocks:
    """Build the page; ``api_here`` says that the server that shows it answers /classify and /embed too."""
    emoji = handlers.load_emoji()
    files = tempfile.TemporaryDirectory(prefix="digpt-demo-")
    examples = write_examples(emoji, Path(files.name)) if emoji else []
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(CACHE_SWEEP_S, CACHE_AGE_S)) as blocks:
        gr.Markdown(header(engine.info), elem_classes="digpt-model")
        segments = engine.info.head == "upernet"
        classifies = engine.info.has_text or not segments
        if segments:
            with gr.Tab("Segment"):
                segment_tab(engine, api_here)
        if classifies:
            with gr.Tab("Classify"):
                classify_tab(engine, examples, handlers.known_concepts(engine, emoji), api_here)
        with gr.Tab("Compare"):
            compare_tab(engine, api_here)
        if classifies:
            with gr.Tab("Styles never seen"):
                styles_tab(engine, examples)
    blocks.digpt_files = files  # removed when the page is
    return blocks


def mount(fastapi_app: Any, engine: Engine, path: str, *, guard: Callable[[], object] | None, max_bytes: int) -> Any:
    """Put the page under ``path`` of a FastAPI application behind a ``Guard``, and return the application."""
    page = queued(build_demo(engine, api_here=True))
    gr.mount_gradio_app(fastapi_app, page, path, **options(engine))
    route = fastapi_app.routes[-1]
    assert route.path == path, "Gradio mounts its application last"
    route.app = Guard(route.app, guard, max_bytes)
    return fastapi_app


def launch(engine: Engine, host: str, port: int) -> None:
    """Show the page on its own until interrupted."""
    if engine.info.has_text and engine.info.choices:
        engine.class_matrix(engine.info.choices)  # seconds, better spent before the first click
    page = queued(build_demo(engine))
    page.launch(server_name=host, server_port=port, quiet=True, share=False, **options(engine))


def queued(page: gr.Blocks) -> gr.Blocks:
    """Let at most ``MAX_WAITING`` clicks wait."""
    page.queue(max_size=MAX_WAITING)
    return page


def options(engine: Engine) -> dict[str, Any]:
    """What Gradio is told wherever the page is shown. ``show_error`` is about exceptions that nobody expected."""
    return {
        "footer_links": [],
        "run_history": False,
        "show_error": False,
        "max_file_size": engine.limits.max_bytes,
        "ssr_mode": False,
        "enable_monitoring": False,
        "theme": theme(),
        "css": CSS,
    }


def theme() -> gr.themes.Base:
    """The system's own fonts: nothing is fetched."""
    return gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def header(info: RuntimeInfo) -> str:
    """Markdown that says which model answers, and what it knows."""
    segments = f"It gives every pixel one of {len(info.labels or ())} classes."
    return (
        f"# digpt: {info.name}\n"
        f"{info.backend} {info.precision}, {info.preprocess.size} x {info.preprocess.size} pixels, "
        f"{info.dim}-dimensional embeddings. Fingerprint `{info.fingerprint}`\n\n"
        f"{segments if info.head == 'upernet' else LIMITS}"
    )


def sentences(function: Callable[..., Any]) -> Callable[..., Any]:
    """Show a DigptError as the sentence it is."""

    @wraps(function)
    def wrapped(*args: Any) -> Any:
        try:
            return function(*args)
        except DigptError as error:
            raise gr.Error(str(error), duration=8, print_exception=False) from None

    return wrapped


def classify_tab(engine: Engine, examples: list[Example], concepts: list[str], api_here: bool) -> None:
    """Picture and labels in, probabilities and the curl line out."""
    with gr.Row():
        with gr.Column():
            picture = picture_input("Picture", 270)
            if examples and engine.info.has_text:
                flat = pictures(examples, "flat")[:EXAMPLES]
                choices = gr.Dataset(
                    components=[picture],
                    samples=[[path] for path in flat],
                    label="Or a drawing in a style never trained on",
                    type="index",
                )
                choices.click(lambda index: flat[index], choices, picture, api_visibility="private")
        with gr.Column():
            labels = gr.Textbox(
                DEFAULT_LABELS if engine.info.has_text else "",
                label="Labels, one per line or separated by commas",
                info="Leave empty for the model's own." if engine.info.choices else None,
                lines=5,
            )
            suggestion = gr.Dropdown(
                concepts, value=None, label="Add a concept that the model knows", visible=bool(concepts)
            )
            button = gr.Button("Classify", variant="primary")
            with gr.Accordion("Options", open=False):
                template = gr.Textbox(
                    "",
                    label="Template, {} stands for the label",
                    placeholder=f"the model's own: {'; '.join(engine.info.templates[:3])}",
                )
                top_k = gr.Slider(1, 20, value=5, step=1, label="How many labels to show")
                none = gr.Checkbox(
                    False, label='Allow the answer "none of these"', visible=engine.info.abstain is not None
                )
    with gr.Row():
        result = gr.Label(label="Probability of each label")
        command = shell_command()

    @sentences
    def run(
        path: str | None, names: str, pattern: str, k: float, abstain: bool, request: gr.Request
    ) -> tuple[dict[str, float], str]:
        scores = handlers.classify(engine, path, names, pattern, k, abstain)
        given = handlers.parse_labels(names)
        return scores, snippets.curl_classify(api_address(request, api_here), path, given, pattern, int(k), abstain)

    def run_if_given(
        path: str | None, names: str, pattern: str, k: float, abstain: bool, request: gr.Request
    ) -> tuple[Any, str]:
        return run(path, names, pattern, k, abstain, request) if path else (None, "")

    inputs, outputs = [picture, labels, template, top_k, none], [result, command]
    gr.on([button.click, labels.submit], run, inputs, outputs, api_name="classify")
    picture.change(run_if_given, inputs, outputs, api_visibility="private")
    suggestion.input(
        lambda names, chosen: (handlers.add_label(names, chosen), None),
        [labels, suggestion],
        [labels, suggestion],
        api_visibility="private",
    )


def segment_tab(engine: Engine, api_here: bool) -> None:
    """Picture in, its classes laid over it in colours, a legend and the python line out."""
    with gr.Row():
        with gr.Column():
            picture = picture_input("Picture", 270)
            opacity = gr.Slider(0, 1, value=0.6, step=0.05, label="Opacity of the colours")
            button = gr.Button("Segment", variant="primary")
        result = gr.Image(label="The class of every pixel", interactive=False, format="png", buttons=["download"])
    legend = gr.HTML()
    command = shell_command()
    # Moving the slider asks the model nothing. Gradio names an upload by its content, so a path is always one picture.
    segmented = lru_cache(SEGMENTED_KEPT)(lambda path: handlers.segment(engine, path))

    @sentences
    def run(path: str | None, strength: float) -> tuple[Any, str, str]:
        found = segmented(path)
        shares = handlers.shares(found.classes, engine.info.labels or ())
        spec = snippets.CHECKPOINT if api_here else engine.info.spec  # where a server keeps its files is its own
        line = snippets.python_segment(spec, path, found.classes.shape)
        return handlers.overlay(found, strength), handlers.legend(shares), line

    def run_if_given(path: str | None, strength: float) -> tuple[Any, str, str]:
        return run(path, strength) if path else (None, "", "")

    inputs, outputs = [picture, opacity], [result, legend, command]
    button.click(run, inputs, outputs, api_name="segment")
    gr.on([picture.change, opacity.release], run_if_given, inputs, outputs, api_visibility="private")


def compare_tab(engine: Engine, api_here: bool) -> None:
    """Two pictures, or a picture and a text, in; cosines out."""
    with gr.Row():
        first = picture_input("First picture", 220)
        second = picture_input("Second picture (optional)", 220)
    text = gr.Textbox("", label="Text (optional)", placeholder="a dog", visible=engine.info.has_text)
    button = gr.Button("Compare", variant="primary")
    result = gr.Dataframe(headers=["pair", "cosine"], datatype=["str", "number"], interactive=False, label="Similarity")
    gr.Markdown(
        "1 is the same direction, 0 unrelated. Compare like with like: two pictures are usually closer to each other "
        "than a picture is to a text."
    )
    command = shell_command()

    @sentences
    def run(a: str | None, b: str | None, words: str, request: gr.Request) -> tuple[list[list[object]], str]:
        pairs = handlers.similarity(engine, a, b, words)
        rows: list[list[object]] = [[pair, round(cosine, 4)] for pair, cosine in pairs]
        return rows, snippets.curl_embed(api_address(request, api_here), [a, b], words)

    gr.on([button.click, text.submit], run, [first, second, text], [result, command], api_name="compare")


def styles_tab(engine: Engine, examples: list[Example]) -> None:
    """Click a picture of a style that the bundled model was never trained on."""
    if not examples:
        gr.Markdown("The bundled data set is not installed here; this tab shows its pictures.")
        return
    names = sorted({example.name for example in examples})
    labels = "" if engine.info.choices else "\n".join(names)
    gr.Markdown(
        "The bundled model was trained on Noto, Twemoji and Fluent 3D drawings. It never saw these styles. "
        f"Click a picture to ask the model which of {len(engine.info.choices or names)} names it goes by."
    )
    style = gr.Radio([(title, name) for name, title in STYLES.items()], value="flat", label="Style")
    with gr.Row():
        gallery = gr.Gallery(
            pictures(examples, "flat"),
            columns=5,
            height="auto",
            allow_preview=False,
            show_label=False,
            buttons=[],
            scale=3,
        )
        with gr.Column(scale=2):
            truth = gr.Textbox(label="It is", interactive=False)
            result = gr.Label(label="The model says", num_top_classes=5)

    @sentences
    def ask(chosen: str, event: gr.SelectData) -> tuple[str, dict[str, float]]:
        example = [example for example in examples if example.style == chosen][event.index]
        return example.name, handlers.classify(engine, example.path, labels, "", 5)

    style.change(lambda chosen: pictures(examples, chosen), style, gallery, api_visibility="private")
    gallery.select(ask, style, [truth, result], api_visibility="private")


def picture_input(label: str, height: int) -> gr.Image:
    """An image input that hands on the uploaded file untouched: the engine's decoder reads it, as behind every door."""
    image = gr.Image(label=label, sources=["upload", "clipboard"], height=height, type="filepath")
    # On the instance: for a subclass of a component Gradio writes a .pyi file beside this one.
    image.preprocess = lambda payload: None if payload is None else str(payload.path)  # type: ignore[method-assign]
    return image


def shell_command() -> gr.Code:
    """Where the curl line stands."""
    return gr.Code(
        label="The same from a shell",
        language="shell",
        interactive=False,
        wrap_lines=True,
        lines=3,
        show_line_numbers=False,
    )


def pictures(examples: list[Example], style: str) -> list[str]:
    """The files of one style, in the order of ``examples``."""
    return [example.path for example in examples if example.style == style]


def api_address(request: gr.Request, api_here: bool) -> str:
    """Where the API answers: the server that this page came from, or the default of ``python -m serve``."""
    if not api_here:
        return STANDALONE_ADDRESS
    assert request.request is not None, "Gradio gives every event its HTTP request"
    return f"{request.request.url.scheme}://{request.request.url.netloc}"
