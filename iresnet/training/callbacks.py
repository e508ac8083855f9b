"""What happens beside the training: events, and the callbacks that follow them."""

__all__ = ["BadStep", "Callback", "Event", "JsonlMetrics", "Pictures", "Snapshot", "Started", "Stepped", "Stopped"]

import json
import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iresnet.certificates import Certificate, Excess
from iresnet.errors import RunWarning
from iresnet.files import writing
from iresnet.pictures import draw
from iresnet.runs import Run
from iresnet.training.blocks import BlockState
from iresnet.training.drawings import Drawing
from iresnet.zoo import Model


@dataclass(frozen=True)
class Started:
    """Training begins, or continues, after ``step`` of ``n_steps`` steps; the first may need compiling.

    ``device`` is the name of the device, for a person; ``notes`` tell what was done to the data.
    """

    step: int
    n_steps: int
    steps_per_epoch: int
    batch_size: int
    compiled: bool = False
    device: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Stepped:
    """A step was done.

    Attributes:
        metrics: means since they were last given, every ``log_every`` steps; None in between.
        blocks: what each residual block did in this step, when metrics are given.
    """

    step: int
    epoch: float
    metrics: dict[str, float] | None = None
    blocks: Sequence[BlockState] = ()


@dataclass(frozen=True)
class BadStep:
    """A step was skipped, since its loss or gradient is not finite: ``total`` of them so far."""

    step: int
    epoch: float
    reason: str
    total: int


@dataclass(frozen=True)
class Snapshot:
    """A sealed copy of the model was saved and validated; ``excesses`` are what the sealing had to mend."""

    step: int
    epoch: float
    model: Model
    certificate: Certificate
    metrics: dict[str, float]
    drawing: Drawing
    excesses: tuple[Excess, ...] = ()


@dataclass(frozen=True)
class Stopped:
    """Training is over, complete or interrupted."""

    complete: bool


Event = Started | Stepped | BadStep | Snapshot | Stopped


class Callback(ABC):
    """Follows a training run; called by the main process only."""

    @abstractmethod
    def __call__(self, event: Event) -> None:
        """Take note of an event."""


class JsonlMetrics(Callback):
    """Appends every set of metrics to ``metrics.jsonl``, one JSON object a line.

    Args:
        run: the run folder.
        size: bytes to keep of a file that is there: what follows was written by steps that are done again.
    """

    def __init__(self, run: Run, size: int = 0):
        self.path = run.metrics_file
        with writing(self.path):
            self.path.touch()
            there = self.path.stat().st_size
            os.truncate(self.path, min(size, there))
        if there < size:
            warnings.warn(f"{self.path} has lost its end: metrics are missing", RunWarning, stacklevel=2)

    def __call__(self, event: Event) -> None:
        """Write the metrics of steps and snapshots."""
        match event:
            case Stepped(step, epoch, dict(metrics)):
                self._write({"split": "train", "step": step, "epoch": round(epoch, 4), **metrics})
            case Snapshot(step, epoch, _, certificate, metrics, drawing, excesses):
                worst = max((b.upper for b in certificate.blocks), default=math.inf)
                proved = worst if math.isfinite(worst) else None  # JSON has no infinity
                line = {"split": "validation", "step": step, "epoch": round(epoch, 4), **metrics}
                line |= drawing.metrics
                self._write({**line, "certified": certificate.certified, "largest_block_bound": proved})
                if excesses:
                    layers = {e.name: {"bound": e.bound, "coeff": e.coeff} for e in excesses}
                    self._write({"split": "excess", "step": step, "epoch": round(epoch, 4), "layers": layers})
            case BadStep(step, epoch, reason, total):
                line = {"split": "skipped", "step": step, "epoch": round(epoch, 4)}
                self._write({**line, "reason": reason, "total": total})
            case _:
                pass

    def _write(self, line: dict[str, Any]) -> None:
        line = {name: _finite(value) for name, value in line.items()}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Pictures(Callback):
    """Writes what the model draws at every snapshot into ``samples/``.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Run):
        self.run = run

    def __call__(self, event: Event) -> None:
        """Write at snapshots."""
        if isinstance(event, Snapshot):
            for name, (x, columns) in event.drawing.sheets().items():
                path = self.run.samples / f"{name}-epoch-{round(event.epoch):04d}"
                draw(x, event.drawing.inputs, path, columns=columns)
