"""Events of a training run and the callbacks that record them: metrics, states of blocks, pictures and cost."""

__all__ = [
    "BadStep",
    "BlockState",
    "Callback",
    "Drawing",
    "Event",
    "JsonlMetrics",
    "Pictures",
    "Snapshot",
    "Spending",
    "Started",
    "Stepped",
    "Stopped",
    "block_states",
    "make_drawing",
]

import json
import math
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from iresnet.bijections import Bijection, ResidualBlock
from iresnet.certificates import Certificate, Excess
from iresnet.classifiers import Classifier, Hybrid
from iresnet.collectives import world_size
from iresnet.data import Split, dequantize
from iresnet.errors import RunWarning
from iresnet.files import writing
from iresnet.inputs import Inputs, value_range
from iresnet.lipschitz import LipschitzLayer
from iresnet.pictures import draw, image_grid, scatter
from iresnet.runs import Run
from iresnet.training.optim import full_tensor
from iresnet.zoo import Model

# -- states of blocks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockState:
    """State of a residual block after a training step.

    Attributes:
        name: path of the block in the model, as in a certificate.
        sigmas: estimated norm of the unnormalized weight of each Lipschitz layer, by path; normalization scales the
            weight down where it exceeds the coefficient.
        grad_norm: norm of the clipped gradient of its parameters; NaN without a gradient.
        logdet: mean of the last log-determinants in this process, in nats; NaN when none were computed.
    """

    name: str
    sigmas: dict[str, float]
    grad_norm: float
    logdet: float


@torch.no_grad()
def block_states(model: nn.Module) -> list[BlockState]:
    """Read the states of all residual blocks, waiting for the device once; all processes have to take part.

    Args:
        model: with the gradients of the last step.

    Example:
        >>> import iresnet as ir
        >>> block = ir.ResidualBlock(ir.networks.mlp(2, 8, coeff=0.9))
        >>> ir.Flow(block, ir.StandardNormal(2)).log_prob(torch.randn(16, 2)).sum().backward()
        >>> (state,) = block_states(block)
        >>> len(state.sigmas), state.grad_norm > 0
        (3, True)
    """
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, ResidualBlock)}
    sigmas = {
        name: {
            path: layer.normalization.sigma(full_tensor(layer.unnormalized_weight))
            for path, layer in block.named_modules(prefix=name)
            if isinstance(layer, LipschitzLayer) and layer.normalized
        }
        for name, block in blocks.items()
    }
    scalars: list[Tensor] = []
    for name, block in blocks.items():
        nan = torch.full((), torch.nan, device=next(block.parameters()).device)
        gradients = [p.grad for p in block.parameters() if p.grad is not None]
        scalars.append(full_tensor(nn.utils.get_total_norm(gradients)) if gradients else nan)
        scalars.append(nan if block.last_logdet is None else block.last_logdet.mean())
        scalars += sigmas[name].values()
    numbers = iter(torch.stack([s.float() for s in scalars]).tolist() if scalars else [])
    states = []
    for name in blocks:
        grad_norm, logdet = next(numbers), next(numbers)
        states.append(BlockState(name, {path: next(numbers) for path in sigmas[name]}, grad_norm, logdet))
    return states


# -- pictures ----------------------------------------------------------------------------------------------------------


N_RECONSTRUCTED = 16
"""Examples that are reconstructed at a snapshot."""


@dataclass(frozen=True)
class Drawing:
    r"""Samples and reconstructions of a model on the scale of the data, each of shape (n, \*E).

    Attributes:
        inputs: facts about the data.
        n: most pictures of each kind.
        samples: drawn from the model; None for a classifier, or when none are wanted.
        data: validation examples.
        reconstructions: the same, encoded and decoded; None for a plain network, which has no inverse.
    """

    inputs: Inputs
    n: int
    samples: Tensor | None
    data: Tensor
    reconstructions: Tensor | None

    @property
    def metrics(self) -> dict[str, float]:
        """Largest ``reconstruction_error`` in units of the data's range, if there are reconstructions."""
        if self.reconstructions is None:
            return {}
        scale = value_range(self.data, self.inputs.levels)
        return {"reconstruction_error": float((self.reconstructions - self.data).abs().max()) / scale}

    def sheets(self) -> dict[str, tuple[Tensor, int | None]]:
        """Return the examples to draw by name, with the columns of a grid of images."""
        found: dict[str, tuple[Tensor, int | None]] = {}
        if self.samples is not None:
            found["samples"] = self.samples, None
        n = min(self.n, len(self.data))
        if n and len(self.inputs.shape) == 3 and self.reconstructions is not None:  # data above their reconstructions
            found["reconstructions"] = torch.cat([self.data[:n], self.reconstructions[:n]]), n
        return found

    def pictures(self) -> dict[str, Image.Image]:
        """Draw the sheets, unless the data are neither images nor points in the plane."""
        sheets = {name: (x.detach().float().cpu(), columns) for name, (x, columns) in self.sheets().items()}
        if len(self.inputs.shape) == 3:
            return {name: image_grid(x, levels=self.inputs.levels, columns=n) for name, (x, n) in sheets.items()}
        return {name: scatter(x) for name, (x, _) in sheets.items()} if self.inputs.shape == (2,) else {}


@torch.no_grad()
def make_drawing(model: Model, inputs: Inputs, examples: Split, n: int) -> Drawing:
    """Sample and reconstruct, with the same latents and noise at each call.

    Args:
        model: the sealed model.
        inputs: facts about the data.
        examples: as stored; the first :data:`N_RECONSTRUCTED` are reconstructed, for any n, and a density that depends
            on a context is sampled at theirs.
        n: samples to draw, and pictures to show.
    """
    x = examples.x[:N_RECONSTRUCTED]
    if isinstance(model, Classifier):
        x = x.float()
        invertible = isinstance(model.network, Bijection)
        return Drawing(inputs, n, None, x, model.invert(model.features(x)) if invertible else None)
    flow = model.flow if isinstance(model, Hybrid) else model
    x = dequantize(x, levels=inputs.levels, generator=torch.Generator().manual_seed(0))
    of_samples = of_x = None
    if inputs.is_conditional and examples.y is not None:
        of_samples, of_x = examples.y[torch.arange(n) % len(examples)], examples.y[: len(x)]
    samples = flow.sample(n, context=of_samples, generator=torch.Generator().manual_seed(0)) if n else None
    return Drawing(inputs, n, samples, x, flow.decode(flow.encode(x, context=of_x), context=of_x))


# -- events and callbacks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """Start of a training, or its continuation after ``step`` of ``total_steps`` steps.

    Attributes:
        compiled: whether the first step compiles the blocks.
        device: description of the device.
        notes: changes that were made to the data.
    """

    step: int
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    compiled: bool = False
    device: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Stepped:
    """Step that was done.

    Attributes:
        metrics: means over the steps since the last metrics, every ``log_every`` steps; None in between.
        blocks: states of the residual blocks, whenever there are metrics.
    """

    step: int
    epoch: float
    metrics: dict[str, float] | None = None
    blocks: Sequence[BlockState] = ()


@dataclass(frozen=True)
class BadStep:
    """Step that was skipped since its loss or gradient is not finite, one of ``total`` so far."""

    step: int
    epoch: float
    reason: str
    total: int


@dataclass(frozen=True)
class Snapshot:
    """Sealed copy of the model that was saved and validated, with the excesses that sealing repaired."""

    step: int
    epoch: float
    model: Model
    certificate: Certificate
    metrics: dict[str, float]
    drawing: Drawing
    excesses: tuple[Excess, ...] = ()


@dataclass(frozen=True)
class Stopped:
    """End of a training, complete or interrupted."""

    complete: bool


Event = Started | Stepped | BadStep | Snapshot | Stopped


class Callback(ABC):
    """Callback of a training run, in the main process only."""

    @abstractmethod
    def __call__(self, event: Event) -> None:
        """Handle an event."""


class JsonlMetrics(Callback):
    """Writer of ``metrics.jsonl``, one JSON object a line.

    Args:
        run: the run folder.
        size: bytes to keep of an existing file: the rest was written by steps that are done again.
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
                line = {"split": "validation", "step": step, "epoch": round(epoch, 4), **metrics}
                line |= drawing.metrics
                self._write({**line, "certified": certificate.certified, "largest_block_bound": worst})
                if excesses:
                    layers = {e.name: {"bound": e.bound, "coeff": e.coeff} for e in excesses}
                    self._write({"split": "excess", "step": step, "epoch": round(epoch, 4), "layers": layers})
            case BadStep(step, epoch, reason, total):
                line = {"split": "skipped", "step": step, "epoch": round(epoch, 4)}
                self._write({**line, "reason": reason, "total": total})
            case _:
                pass

    def _write(self, line: dict[str, Any]) -> None:
        # JSON has no infinity and no NaN.
        line = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class Pictures(Callback):
    """Writer of pictures into ``samples/`` at every snapshot.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Run):
        self.run = run

    def __call__(self, event: Event) -> None:
        """Draw at snapshots."""
        if isinstance(event, Snapshot):
            for name, (x, columns) in event.drawing.sheets().items():
                path = self.run.samples / f"{name}-epoch-{round(event.epoch):04d}"
                draw(x, event.drawing.inputs, path, columns=columns)


# -- cost --------------------------------------------------------------------------------------------------------------


PERIOD = 60.0
"""Seconds between writes, besides those at snapshots."""


class Spending(Callback):
    """Writer of ``cost.json``: parameters, and the steps and seconds of every session that trained the run.

    A session that was killed has written all but its last minute; one that does no step writes nothing. Of several
    processes the first writes its own CPU time, and their number.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Run):
        self.run = run
        saved = run.read_json("cost.json")
        self.parameters: int | None = saved.get("parameters")
        sessions = saved.get("sessions")
        self.before = sessions if isinstance(sessions, list) else []

    def __call__(self, event: Event) -> None:
        """Count steps, and write at snapshots, every minute and at the end."""
        match event:
            case Started(step):
                self.first_step = self.step = self.written_step = step
                self.started = datetime.now(UTC).isoformat(timespec="seconds")
                self.start = self.last_write = time.monotonic(), time.process_time()
            case Stepped(step):
                self.step = step
                if time.monotonic() - self.last_write[0] > PERIOD:
                    self._write()
            case Snapshot(_, _, model):
                self.parameters = sum(parameter.numel() for parameter in model.parameters())
                self._write()
            case Stopped() if self.step > self.written_step:
                self._write()

    def _write(self) -> None:
        self.written_step, self.last_write = self.step, (time.monotonic(), time.process_time())
        wall, cpu = (round(now - then, 1) for now, then in zip(self.last_write, self.start, strict=True))
        session = {
            "started": self.started,
            "from_step": self.first_step,
            "to_step": self.step,
            "wall_seconds": wall,
            "cpu_seconds": cpu,
            "processes": world_size(),
        }
        self.run.write_json("cost.json", {"parameters": self.parameters, "sessions": [*self.before, session]})
