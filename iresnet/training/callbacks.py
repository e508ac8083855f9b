"""Events of a training run, and the callbacks that follow them: metrics, block states, pictures and cost."""

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
from iresnet.data import dequantize
from iresnet.errors import RunWarning
from iresnet.files import writing
from iresnet.inputs import Inputs, value_range
from iresnet.lipschitz import LipschitzLayer
from iresnet.pictures import draw, image_grid, scatter
from iresnet.processes import world_size
from iresnet.runs import Run
from iresnet.training.parts import whole
from iresnet.zoo import Model

# -- states of blocks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockState:
    """One residual block after a training step.

    Attributes:
        name: path of the block in the model, as in a certificate.
        sigmas: by path of each Lipschitz layer, the estimated norm of its weight before normalization: the layer
            divides by it, over its coefficient, where it is above the coefficient.
        grad_norm: norm of the gradient of its parameters as it was applied, clipped; NaN without one.
        logdet: mean of the last log-determinants in this process, in nats; NaN when none were computed.
    """

    name: str
    sigmas: dict[str, float]
    grad_norm: float
    logdet: float


@torch.no_grad()
def block_states(model: nn.Module) -> list[BlockState]:
    """Look at every residual block; this waits for the device once. Processes that share a model do so together.

    Args:
        model: as the last step left it, with the gradients.

    Example:
        >>> import iresnet as ir
        >>> block = ir.ResidualBlock(ir.networks.mlp(2, 8, coeff=0.9))
        >>> ir.Flow(block, ir.StandardNormal(2)).log_prob(torch.randn(16, 2)).sum().backward()
        >>> (state,) = block_states(block)
        >>> len(state.sigmas), state.grad_norm > 0
        (3, True)
    """
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, ResidualBlock)}
    layers = {name: _sigmas(name, block) for name, block in blocks.items()}
    scalars: list[Tensor] = []
    for name, block in blocks.items():
        scalars += [_grad_norm(block), _mean_logdet(block), *layers[name].values()]
    numbers = iter(torch.stack([s.float() for s in scalars]).tolist() if scalars else [])
    states = []
    for name in blocks:
        grad_norm, logdet = next(numbers), next(numbers)
        states.append(BlockState(name, {layer: next(numbers) for layer in layers[name]}, grad_norm, logdet))
    return states


def _sigmas(name: str, block: ResidualBlock) -> dict[str, Tensor]:
    found = {}
    for path, layer in block.named_modules(prefix=name):
        if isinstance(layer, LipschitzLayer) and layer.normalized:
            found[path] = layer.normalization.sigma(whole(layer.unnormalized_weight))
    return found


def _grad_norm(block: ResidualBlock) -> Tensor:
    gradients = [p.grad for p in block.parameters() if p.grad is not None]
    return whole(nn.utils.get_total_norm(gradients)) if gradients else _nan(block)


def _mean_logdet(block: ResidualBlock) -> Tensor:
    return _nan(block) if block.last_logdet is None else block.last_logdet.mean()


def _nan(block: ResidualBlock) -> Tensor:
    return torch.full((), torch.nan, device=next(block.parameters()).device)


# -- pictures ----------------------------------------------------------------------------------------------------------


N_RECONSTRUCTED = 16
"""Examples that are reconstructed at a snapshot."""


@dataclass(frozen=True)
class Drawing:
    r"""Examples on the scale of the data, of shape (n, \*E).

    Attributes:
        inputs: what the data are.
        n: pictures that are wanted of each kind, at most.
        samples: drawn from the model; None for a classifier, or when none are wanted.
        data: validation examples.
        reconstructions: the same, through the latent and back; None for a plain network, which has no way back.
    """

    inputs: Inputs
    n: int
    samples: Tensor | None
    data: Tensor
    reconstructions: Tensor | None

    @property
    def metrics(self) -> dict[str, float]:
        """The largest ``reconstruction_error``, if any, in units of the data's range: 1 is from black to white."""
        if self.reconstructions is None:
            return {}
        scale = value_range(self.data, self.inputs.levels)
        return {"reconstruction_error": float((self.reconstructions - self.data).abs().max()) / scale}

    def sheets(self) -> dict[str, tuple[Tensor, int | None]]:
        """What to draw, by name, with the columns of a grid of images."""
        found: dict[str, tuple[Tensor, int | None]] = {}
        if self.samples is not None:
            found["samples"] = self.samples, None
        n = min(self.n, len(self.data))
        if n and len(self.inputs.shape) == 3 and self.reconstructions is not None:  # data above their reconstructions
            found["reconstructions"] = torch.cat([self.data[:n], self.reconstructions[:n]]), n
        return found

    def pictures(self) -> dict[str, Image.Image]:
        """The sheets as pictures; none of data that are neither images nor points in the plane."""
        sheets = {name: (x.detach().float().cpu(), columns) for name, (x, columns) in self.sheets().items()}
        if len(self.inputs.shape) == 3:
            return {name: image_grid(x, levels=self.inputs.levels, columns=n) for name, (x, n) in sheets.items()}
        return {name: scatter(x) for name, (x, _) in sheets.items()} if self.inputs.shape == (2,) else {}


@torch.no_grad()
def make_drawing(model: Model, inputs: Inputs, x: Tensor, n: int) -> Drawing:
    """Sample and reconstruct, from the same latents and noise each time.

    Args:
        model: the model, sealed.
        inputs: what the data are.
        x: examples, as stored; the first :data:`N_RECONSTRUCTED` are reconstructed, whatever n is.
        n: samples to draw, and pictures to show.
    """
    x = x[:N_RECONSTRUCTED]
    if isinstance(model, Classifier):
        x = x.float()
        invertible = isinstance(model.network, Bijection)
        return Drawing(inputs, n, None, x, model.invert(model.features(x)) if invertible else None)
    flow = model.flow if isinstance(model, Hybrid) else model
    samples = flow.sample(n, generator=torch.Generator().manual_seed(0)) if n else None
    x = dequantize(x, levels=inputs.levels, generator=torch.Generator().manual_seed(0))
    return Drawing(inputs, n, samples, x, flow.decode(flow.encode(x)))


# -- events and callbacks ----------------------------------------------------------------------------------------------


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


# -- cost --------------------------------------------------------------------------------------------------------------


PERIOD = 60.0
"""Seconds between notes, besides those at snapshots."""


class Spending(Callback):
    """Keeps ``cost.json``: parameters, and for every process that trained the run its steps and seconds.

    A process that was killed has noted all but its last minute. One that does no step notes nothing. Of several
    processes the first notes its own CPU time, and how many they were.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Run):
        self.run = run
        noted = run.read_json("cost.json")
        self.parameters: int | None = noted.get("parameters")
        sessions = noted.get("sessions")
        self.before = sessions if isinstance(sessions, list) else []

    def __call__(self, event: Event) -> None:
        """Count steps; write at snapshots, every minute and at the end."""
        match event:
            case Started(step):
                self.first = self.step = self.written = step
                self.started = datetime.now(UTC).isoformat(timespec="seconds")
                self.begun = self.noted = time.monotonic(), time.process_time()
            case Stepped(step):
                self.step = step
                if time.monotonic() - self.noted[0] > PERIOD:
                    self._write()
            case Snapshot(_, _, model):
                self.parameters = _count(model)
                self._write()
            case Stopped() if self.step > self.written:
                self._write()

    def _write(self) -> None:
        self.written, self.noted = self.step, (time.monotonic(), time.process_time())
        wall, cpu = (round(now - then, 1) for now, then in zip(self.noted, self.begun, strict=True))
        session = {
            "started": self.started,
            "from_step": self.first,
            "to_step": self.step,
            "wall_seconds": wall,
            "cpu_seconds": cpu,
            "processes": world_size(),
        }
        self.run.write_json("cost.json", {"parameters": self.parameters, "sessions": [*self.before, session]})


def _count(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
