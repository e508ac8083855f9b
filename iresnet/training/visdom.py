"""Live windows on a visdom server."""

__all__ = ["IMAGES", "WINDOWS", "VisdomTracker"]

import functools
import importlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker
from PIL import Image

WINDOWS: dict[str, tuple[str, str]] = {
    "loss": ("loss", "loss"),
    "bits_per_dim": ("bits/dim", "bits/dim"),
    "accuracy": ("accuracy", "share"),
    "log_prior": ("log p(z)", "nats"),
    "logdet": ("log-det", "nats"),
    "reconstruction_error": ("reconstruction error", "largest, of the data's range"),
}
"""Windows by metric: the title, and what is on the vertical axis. Each has a line for training and for validation."""

COLORS = {"train": np.array([[31, 119, 180]]), "validation": np.array([[255, 127, 14]])}
"""Of the lines of a window."""

LOGARITHMIC = ("reconstruction_error",)
"""Windows with a logarithmic axis."""

IMAGES = ("samples", "reconstructions")
"""Windows of images."""


class VisdomTracker(GeneralTracker):
    """Shows the curves of :data:`WINDOWS` and the latest :data:`IMAGES` in an environment of a visdom server.

    At every start, after a break too, the curves are drawn anew from the metrics file, so they have no gap.

    Args:
        server: host, with or without ``http://``.
        port: of the server.
        env: environment to show the run in.
        metrics_file: ``metrics.jsonl`` of the run.
        timeout: seconds to wait for an answer.
    """

    name = "visdom"
    requires_logging_directory = False

    def __init__(self, server: str, port: int, env: str, metrics_file: Path, *, timeout: float = 10.0):
        super().__init__()
        self.address: dict[str, Any] = {"server": server, "port": port, "env": env}
        self.metrics_file = metrics_file
        self.timeout = timeout
        self.last_step = {"train": 0, "validation": 0}  # of what is drawn
        self.drawn: set[str] = set()  # windows of curves
        self.client: Any = None

    @property
    def tracker(self) -> Any:
        """The visdom client."""
        return self.client

    def start(self) -> None:
        """Connect, and draw what the metrics file holds, in place of what windows of these names show.

        Raises:
            ConnectionError: when there is no server.
        """
        self.client = self._connect()
        self.drawn.clear()
        self.last_step = dict.fromkeys(self.last_step, 0)
        history = self._history()
        for window in () if any(history.values()) else (*WINDOWS, *IMAGES):
            self.client.close(window)  # of another run of this name
        for split, lines in history.items():
            curves: dict[str, list[tuple[int, float]]] = {}
            for line in lines:
                for name, number in _shown(line).items():
                    curves.setdefault(name, []).append((line["step"], number))
                self.last_step[split] = line["step"]
            for name, points in curves.items():
                self._draw(split, name, points)

    def _connect(self) -> Any:
        visdom: Any = importlib.import_module("visdom")
        logging.getLogger("visdom").setLevel(logging.ERROR)  # it announces every session
        try:
            client = visdom.Visdom(**self.address, use_incoming_socket=False, raise_exceptions=True)
        except ConnectionError as error:
            port = self.address["port"]
            raise ConnectionError(
                f"no visdom server at {self.address['server']}, port {port}; start one there with: visdom -port {port}"
            ) from error
        client.session.request = functools.partial(client.session.request, timeout=self.timeout)
        # Asked before each point; the client's own way costs a request, and prints where there is no answer.
        client.win_exists = lambda win, env=None: win in self.drawn
        return client

    def log(self, values: dict, step: int | None = None, **_: Any) -> None:
        """Add points to the curves.

        Args:
            values: numbers by ``train/NAME`` and ``validation/NAME``; those without a window are passed over.
            step: of the training.
        """
        for split, last in self.last_step.items():
            shown = _shown({name: values.get(f"{split}/{name}") for name in WINDOWS})
            if step is None or step <= last or not shown:
                continue
            for name, number in shown.items():
                self._draw(split, name, [(step, number)])
            self.last_step[split] = step

    def log_images(self, values: Mapping[str, Image.Image], step: int | None = None, **_: Any) -> None:
        """Replace the images of these names."""
        for name, picture in values.items():
            title = f"{name}, step {step}"
            options = {"title": title, "width": picture.width + 20, "height": picture.height + 40}
            self._check(self.client.image(np.asarray(picture).transpose(2, 0, 1), win=name, opts=options), name)

    def _draw(self, split: str, name: str, points: Sequence[tuple[int, float]]) -> None:
        x, y = np.asarray(points, float).T
        self._check(self.client.line(y, x, win=name, name=split, update="append", opts=_options(split, name)), name)
        self.drawn.add(name)

    def _check(self, answer: Any, window: str) -> None:
        """The client hands on whatever the server says; a window's name means that it was drawn."""
        if answer != window:
            raise ConnectionError(f"the visdom server answered '{' '.join(str(answer).split())[:100]}'")

    def _history(self) -> dict[str, list[dict[str, Any]]]:
        lines: dict[str, list[dict[str, Any]]] = {split: [] for split in self.last_step}
        for line in _whole_lines(self.metrics_file):
            if line["split"] in lines:
                lines[line["split"]].append(line)
        return lines


def _shown(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that have windows; not a loss that is the bits/dim."""
    shown = {name: metrics[name] for name in WINDOWS if metrics.get(name) is not None}
    if shown.get("loss") == shown.get("bits_per_dim"):
        shown.pop("loss", None)
    return shown


def _options(split: str, name: str) -> dict[str, Any]:
    """How a curve looks: points are marked where there are few, and nothing lies under the window's buttons."""
    title, unit = WINDOWS[name]
    size = {"width": 400, "height": 320, "margintop": 90, "marginbottom": 50, "marginright": 20}
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}
    vertical = {"title": unit, "exponentformat": "power", "type": "log" if name in LOGARITHMIC else "linear"}
    layout = {"legend": legend, "yaxis": vertical, "xaxis": {"title": "step"}}
    marks = {"markers": split == "validation", "markersize": 6, "linecolor": COLORS[split], "showlegend": True}
    return {"title": title, **size, **marks, "layoutopts": {"plotly": layout}}


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines that are written to their end: another one may be under way."""
    with path.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.endswith("\n"))
