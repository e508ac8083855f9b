"""Widgets of the page: tabs for what the model can do, each wired to the model behind it."""

__all__ = ["build"]

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from torch import Tensor

from iresnet.classifiers import Hybrid
from iresnet.data.columns import Column, to_columns
from iresnet.data.examples import describe_events
from iresnet.errors import IResNetError
from iresnet.evaluation import kinds_of
from iresnet.page.markup import finding
from iresnet.page.served import ServedModel

CANVAS = 280
"""Height and width of the square that is drawn on, in pixels."""


def build(served: ServedModel, header: str, certificate: str) -> gr.Blocks:
    """Lay out the page; tabs that do not apply to the model are left out.

    Args:
        served: the model.
        header: markup of its description.
        certificate: markup of its certificate.
    """
    one = _OneAtATime()
    with gr.Blocks(title="iresnet", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(header)
        example = gr.State(None)  # as it was recorded, the last one that was looked at
        with gr.Tabs():
            with gr.Tab("Example"):
                if served.is_image:
                    _image(served, example, one)
                else:
                    _row(served, example, one)
            if served.directions:
                with gr.Tab("Directions"):
                    _directions(served, example, one)
            if served.is_image and served.bijection:
                with gr.Tab("Interpolate"):
                    _interpolation(served, one)
            if served.flow:
                with gr.Tab("Sample"):
                    _samples(served, one)
            with gr.Tab("Certificate"):
                gr.HTML(certificate)
    return blocks


class _OneAtATime:
    """Decorator of what events call: the model answers one at a time, and errors of the user become messages."""

    def __init__(self):
        self._lock = threading.Lock()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(*values: Any) -> Any:
            try:
                with self._lock:  # evaluations hold the normalized weights of the model
                    return function(*values)
            except (IResNetError, OSError) as error:
                raise gr.Error(str(error), duration=None, print_exception=False) from error

        return guarded


# -- an example --------------------------------------------------------------------------------------------------------


def _image(served: ServedModel, example: gr.State, one: _OneAtATime) -> None:
    """Let an image be drawn, uploaded or taken from the training data, and show what is found about it."""
    kind = describe_events(served.inputs.shape)
    with gr.Row():
        with gr.Column(min_width=300):
            pad = _canvas() if served.can_be_drawn else None
            file = gr.File(label=f"Upload: {kind}, as an image or an array (.npy)", height=150)
            another = gr.Button("A training example", visible=served.examples is not None)
            number = gr.State(0)
        with gr.Column(min_width=300):
            note = gr.Markdown("Draw, or upload an image." if pad else "Upload an array.")
            with gr.Row():
                seen = _picture("what the model sees", height=230)
                decoded = _picture("its latent, decoded", height=230, visible=served.bijection is not None)
            facts = gr.HTML()
            classes = _classes(served)

    def show(x: Tensor, how: str) -> list[Any]:
        found = served.examine(x)
        pictures = [served.picture(x), None if found.decoded is None else served.picture(found.decoded)]
        told = finding(found, served.inputs, served.reference)
        return [x, how, *pictures, told, _label(served, found.predictions)]

    outputs = [example, note, seen, decoded, facts, classes]
    if pad:

        @one
        def from_drawing(drawing: dict[str, Any]) -> list[Any]:
            if (image := drawing["composite"]) is None:
                return [gr.skip()] * len(outputs)
            height, width = served.inputs.shape[1:]
            scaled = f"Your drawing, scaled from {image.width}x{image.height} to {width}x{height} pixels"
            return show(served.from_drawing(image), f"{scaled} and {served.inputs.levels} levels.")

        pad.input(from_drawing, pad, outputs, trigger_mode="always_last", show_progress="hidden")
        pad.clear(_blank, None, pad)

    @one
    def from_file(path: str | None) -> list[Any]:
        if path is None:
            return [gr.skip()] * len(outputs)
        return show(served.read(path), f"Your file {Path(path).name}.")

    @one
    def from_training(n: int) -> list[Any]:
        return [n + 1, *show(served.example(n), f"Training example {n + 1}.")]

    file.change(from_file, file, outputs)
    another.click(from_training, number, [number, *outputs])


def _canvas() -> gr.Sketchpad:
    return gr.Sketchpad(
        _blank(),  # pyright: ignore[reportArgumentType] (a dictionary, as its value is)
        label="Draw",
        type="pil",
        canvas_size=(CANVAS, CANVAS),
        fixed_canvas=True,
        layers=False,
        sources=(),
        transforms=(),
        brush=gr.Brush(default_size=22, colors=["#ffffff", "#999999"], color_mode="fixed"),
    )


def _blank() -> dict[str, Any]:
    return {"background": Image.new("RGB", (CANVAS, CANVAS)), "layers": [], "composite": None}


def _row(served: ServedModel, example: gr.State, one: _OneAtATime) -> None:
    """Let the values of a row be filled in, and show what is found about it."""
    with gr.Row():
        with gr.Column(min_width=300):
            with gr.Row(elem_classes="fields"):
                fields = [_field(column, *span) for column, span in zip(served.columns, served.ranges(), strict=True)]
            with gr.Row():
                look = gr.Button("Look at this row", variant="primary")
                another = gr.Button("A training row", visible=served.examples is not None)
            number = gr.State(0)
        with gr.Column(min_width=300):
            facts = gr.HTML()
            classes = _classes(served)

    @one
    def examine(*values: Any) -> list[Any]:
        x = served.from_values(list(values))
        found = served.examine(x)
        return [x, finding(found, served.inputs, served.reference), _label(served, found.predictions)]

    @one
    def from_training(n: int) -> list[Any]:
        return [n + 1, *served.to_values(served.example(n))]

    outputs = [example, facts, classes]
    look.click(examine, fields, outputs)
    another.click(from_training, number, [number, *fields]).then(examine, fields, outputs)


def _field(column: Column, low: float, middle: float, high: float) -> Any:
    if column.categories:
        return gr.Dropdown(list(column.categories), value=column.categories[0], label=column.title, min_width=130)
    digits = 0 if column.integer else 4
    return gr.Number(
        round(middle, digits) if column.integer else float(f"{middle:.4g}"),
        label=column.title,
        info=f"mostly {low:.4g} to {high:.4g}",
        min_width=130,
    )


def _classes(served: ServedModel) -> gr.Label:
    return gr.Label(label="classes", num_top_classes=5, show_heading=False, visible=served.classifier is not None)


def _label(served: ServedModel, predictions: Any) -> dict[str, float] | None:
    if predictions is None:
        return None
    return dict(zip(served.inputs.class_names, predictions.probabilities[0].tolist(), strict=True))


# -- latents -----------------------------------------------------------------------------------------------------------


def _directions(served: ServedModel, example: gr.State, one: _OneAtATime) -> None:
    """Let a latent be moved along its principal directions, and show what it decodes to at once."""
    assert served.directions
    n = len(served.directions.axes)
    source = "training examples" if served.examples is not None else "samples"
    starts = ["the mean of the latents", "the example of the first tab"]
    starts += [f"training example {i + 1}" for i in range(8)] if served.examples is not None else []
    gr.Markdown(
        f"The {n} directions in which latents of {source} vary most hold {served.directions.share:.0%} of their "
        "variance. The sliders are in standard deviations."
    )
    with gr.Row(elem_classes="live"):  # on a phone the picture comes first, and stays in sight
        with gr.Column(min_width=300):
            start = gr.Dropdown(starts, value=starts[0], label="start from")
            sliders = [gr.Slider(-4, 4, 0, step=0.1, label=f"direction {i + 1}") for i in range(n)]
            reset = gr.Button("Back to the start")
        with gr.Column(min_width=300):
            shown = _shown(served, "decoded", height=300)

    @one
    def move(example: Tensor | None, start: str, *steps: float) -> Any:
        origin = None
        if start == starts[1]:
            if example is None:
                raise IResNetError("there is no example yet: choose one in the first tab")
            origin = example
        elif start != starts[0]:
            origin = served.example(starts.index(start) - 2)
        return _show(served, served.move(origin, list(steps)))

    inputs = [example, start, *sliders]
    for widget in (start, *sliders):
        widget.change(move, inputs, shown, trigger_mode="always_last", show_progress="hidden")
    reset.click(lambda: [0.0] * n, None, sliders)


def _interpolation(served: ServedModel, one: _OneAtATime) -> None:
    """Let two images be uploaded or taken from the training data, and show the path between them."""
    kind = describe_events(served.inputs.shape)
    with gr.Row():
        first, last = (gr.File(label=f"{name}: {kind}", height=150) for name in ("First", "Last"))
    kinds = kinds_of(served.model)
    with gr.Row():
        path = gr.Radio(list(kinds), value=kinds[-1], label="path through the latent space")
        steps = gr.Slider(3, 15, 9, step=1, label="images on the path")
    with gr.Row():
        go = gr.Button("Interpolate", variant="primary")
        another = gr.Button("Between two training examples", visible=served.examples is not None)
    number = gr.State(0)
    picture = _picture("from the first to the last")

    def draw(ends: tuple[Tensor, Tensor], kind: str, n: int) -> Image.Image:
        return served.picture(served.path(*ends, steps=int(n), kind=kind), columns=-(-int(n) // (1 + (n > 5))))

    @one
    def between_files(first: str | None, last: str | None, kind: str, n: float) -> Any:
        if first is None or last is None:
            raise IResNetError("a path needs two ends: upload a first and a last image")
        return draw((served.read(first), served.read(last)), kind, int(n))

    @one
    def between_examples(number: int, kind: str, n: float) -> list[Any]:
        return [number + 2, draw((served.example(number), served.example(number + 1)), kind, int(n))]

    go.click(between_files, [first, last, path, steps], picture)
    another.click(between_examples, [number, path, steps], [number, picture])


def _samples(served: ServedModel, one: _OneAtATime) -> None:
    """Let samples be drawn at a temperature."""
    names = served.inputs.class_names if isinstance(served.model, Hybrid) else ()
    most, some = (64, 16) if served.is_image else (2000, 500) if served.inputs.shape == (2,) else (200, 10)
    with gr.Row():
        with gr.Column(min_width=300):
            temperature = gr.Slider(0, 1.5, 1.0, step=0.05, label="temperature", info="below 1: more typical samples")
            n = gr.Slider(1, most, some, step=1, label="how many")
            of_class = gr.Dropdown(["any", *names], value="any", label="class", visible=bool(names))
            seed = gr.Number(0, label="seed", precision=0, minimum=0)
            go = gr.Button("Sample", variant="primary")
        with gr.Column(min_width=300):
            shown = _shown(served, "samples")

    @one
    def draw(temperature: float, n: float, name: str, seed: int) -> Any:
        label = None if name == "any" else names.index(name)
        return _show(served, served.samples(int(n), temperature=temperature, label=label, seed=seed))

    go.click(draw, [temperature, n, of_class, seed], shown)


# -- data --------------------------------------------------------------------------------------------------------------


def _picture(label: str, *, height: int = 420, visible: bool = True) -> gr.Image:
    return gr.Image(
        label=label,
        format="png",
        height=height,
        min_width=140,
        interactive=False,
        buttons=["download"],
        elem_classes="picture",
        visible=visible,
    )


def _shown(served: ServedModel, label: str, *, height: int = 420) -> gr.Image | gr.Dataframe:
    """Return the widget that shows data: a picture of images and of points in the plane, a table of longer rows."""
    if served.is_image or served.inputs.shape == (2,):
        return _picture(label, height=height)
    return gr.Dataframe(headers=[column.title for column in served.columns], label=label, interactive=False)


def _show(served: ServedModel, x: Tensor) -> Any:
    if served.is_image or served.inputs.shape == (2,):
        return served.picture(x)
    return [list(row) for row in zip(*(_rounded(values) for values in to_columns(served.columns, x)), strict=True)]


def _rounded(values: Any) -> list[Any]:
    return [float(f"{value:.5g}") if isinstance(value, float) else value for value in values.tolist()]
