"""Tracker that draws live curves and images on a visdom server."""

__all__ = ["IMAGES", "WINDOWS", "VisdomTracker"]

import functools
import importlib
import json
import logging
from collections.abc import Mapping, Sequence
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
"""Title and label of the vertical axis by metric. Each window has a line for training and one for validation."""

COLORS = {"train": np.array([[31, 119, 180]]), "validation": np.array([[255, 127, 14]])}
"""Colors of the lines of a window."""

LOGARITHMIC = ("reconstruction_error",)
"""Windows with a logarithmic axis."""

IMAGES = ("samples", "reconstructions")
"""Windows of images."""


class VisdomTracker(GeneralTracker):
    """Tracker that draws the curves of :data:`WINDOWS` and the latest :data:`IMAGES` on a visdom server.

    At every start, after a failure too, the curves are drawn again from the metrics file, so they have no gap.

    Args:
        server: host, with or without ``http://``.
        port: of the server.
        env: visdom environment of the run.
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
        self.last_step = {"train": 0, "validation": 0}  # that is drawn
        self.drawn: set[str] = set()  # windows of curves
        self.client: Any = None

    @property
    def tracker(self) -> Any:
        """Client of the visdom server."""
        return self.client

    def start(self) -> None:
        """Connect, and replace the windows by curves of the metrics file.

        Raises:
            ConnectionError: when there is no server.
        """
        self.client = self._connect()
        self.drawn.clear()
        self.last_step = dict.fromkeys(self.last_step, 0)
        history: dict[str, list[dict[str, Any]]] = {split: [] for split in self.last_step}
        with self.metrics_file.open(encoding="utf-8") as file:
            for text in file:
                if text.endswith("\n") and (line := json.loads(text))["split"] in history:  # else it is being written
                    history[line["split"]].append(line)
        for window in () if any(history.values()) else (*WINDOWS, *IMAGES):
            self.client.close(window)  # of another run of this name
        for split, lines in history.items():
            curves: dict[str, list[tuple[int, float]]] = {}
            for line in lines:
                for name, number in _with_window(line).items():
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
        # Called before each point; the client's own sends a request, and prints when there is no answer.
        client.win_exists = lambda win, env=None: win in self.drawn
        return client

    def log(self, values: dict, step: int | None = None, **_: Any) -> None:
        """Add points to the curves.

        Args:
            values: numbers by ``train/NAME`` and ``validation/NAME``; those without a window are skipped.
            step: of the training.
        """
        for split, last in self.last_step.items():
            shown = _with_window({name: values.get(f"{split}/{name}") for name in WINDOWS})
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
        """Refuse an answer other than the name of the window, which means that it was drawn."""
        if answer != window:
            raise ConnectionError(f"the visdom server answered '{' '.join(str(answer).split())[:100]}'")


def _with_window(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that have windows, without a loss that equals the bits/dim."""
    shown = {name: metrics[name] for name in WINDOWS if metrics.get(name) is not None}
    if shown.get("loss") == shown.get("bits_per_dim"):
        shown.pop("loss", None)
    return shown


def _options(split: str, name: str) -> dict[str, Any]:
    """Return the plot options of a curve: validation has few points, so they are marked."""
    title, unit = WINDOWS[name]
    size = {"width": 400, "height": 320, "margintop": 90, "marginbottom": 50, "marginright": 20}
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}
    vertical = {"title": unit, "exponentformat": "power", "type": "log" if name in LOGARITHMIC else "linear"}
    layout = {"legend": legend, "yaxis": vertical, "xaxis": {"title": "step"}}
    marks = {"markers": split == "validation", "markersize": 6, "linecolor": COLORS[split], "showlegend": True}
    return {"title": title, **size, **marks, "layoutopts": {"plotly": layout}}
