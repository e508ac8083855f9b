"""Dry runs, which measure the cost of a recipe, and checks that a training fits into memory."""

__all__ = [
    "DryRun",
    "check_model_fits",
    "check_step_fits",
    "dry_run",
]

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from iresnet import zoo
from iresnet.capacity import SAMPLE_BYTES, check_room, has_room, parameter_bytes
from iresnet.collectives import world_size
from iresnet.config import Config, check
from iresnet.data import Dataset, training_batches
from iresnet.data import load as load_data
from iresnet.devices import choose_device, describe_device, kept_random_state
from iresnet.errors import IResNetError, RunError
from iresnet.inputs import Inputs
from iresnet.models import inputs_of, model_options
from iresnet.normalization import PowerIteration
from iresnet.precision import use_precision
from iresnet.training.capture import obstacle
from iresnet.training.cost import DEVICES, Count, Prediction, StepCounts, Workload, count, duration, predict, table
from iresnet.training.distributed import make_accelerator
from iresnet.training.optim import make_optimizer, total_steps
from iresnet.training.step import NotFinite, Step
from iresnet.training.task import Task, make_task
from iresnet.training.tracking import check_trackers

# -- memory ------------------------------------------------------------------------------------------------------------


Batch = tuple[Tensor, Tensor | None]

COPIES = 3
"""Tensors that a training keeps of each parameter, at least: itself, its gradient, and a sealed copy at snapshots."""

SIZES = (2, 3)
"""Examples of the two batches from which the memory of a step on any batch follows; a classifier's head needs two."""


def check_model_fits(config: Config, inputs: Inputs, device: torch.device) -> None:
    """Refuse a model too large to be trained, without building it.

    Raises:
        RecipeError: names the memory that it takes, the memory that there is, and the options to lower.
    """
    name, options = model_options(config, inputs)
    try:
        size = parameter_bytes(name, inputs.shape, options) if name in zoo.ARCHITECTURES else 0.0
    except IResNetError:  # is raised again when the model is built
        return
    except OverflowError:  # of the count itself
        size = math.inf
    remedy = "lower --model.hidden or --model.blocks" + ", or --model.depth" * ("depth" in options)
    check_room(COPIES * size, device, "a training of this model", remedy)


def check_step_fits(task: Task, config: Config, dataset: Dataset, device: torch.device) -> None:
    """Refuse a batch too large for a step, judged by steps of a copy on a few examples, and too many pictures.

    Raises:
        RecipeError: names the memory that a step takes, the memory that there is, and the options to lower.
    """
    n = -(-config.train.batch_size // (world_size() * config.train.accumulate))
    with kept_random_state(), torch.compiler.set_stance("force_eager"):
        task = copy.deepcopy(task).to(device).train()

        def counted(size: int) -> Count:
            task.zero_grad()
            batch = _first_examples(dataset, size, device)
            return count(lambda: _backward(task, batch, config.train.precision))

        remedy = "lower --train.batch-size" + ", or raise --train.accumulate" * (n > 2)
        first = counted(SIZES[0])
        if not has_room(first.memory * n / SIZES[0], device):  # at least what it takes: nothing shrinks with the batch
            memory = StepCounts(SIZES, first, counted(SIZES[1])).at(n).memory
            check_room(memory, device, f"a step on {n} examples", remedy)
    n = config.train.n_pictures
    check_room(
        SAMPLE_BYTES * n * dataset.train.x[0].numel(), device, f"drawing {n} samples", "lower --train.n-pictures"
    )


def _first_examples(dataset: Dataset, n: int, device: torch.device) -> Batch:
    y = dataset.train.y
    return dataset.train.x[:n].to(device), None if y is None else y[:n].to(device)


def _backward(task: Task, batch: Batch, precision: str) -> Tensor:
    with use_precision(precision, batch[0].device):
        loss, _ = task(*batch)
    loss.backward()
    return loss.detach()


# -- dry runs ----------------------------------------------------------------------------------------------------------


NUMBERS = (1, 8, 64)
"""Numbers of devices for which predictions are made."""


@dataclass(frozen=True)
class DryRun:
    """Cost of a recipe, measured on this machine and predicted for others.

    Attributes:
        parameters: number of parameters of the model.
        loss: of the step that was run.
        state_bytes: weights, gradients and optimizer state.
        example_bytes: bytes that one example adds to the peak memory of a step.
        seconds: time of a step on a full batch; None if it does not fit into the device's memory.
        timed: whether such a step was timed, and not extrapolated from two smaller ones.
        batch_size: of the recipe.
        total_steps: of the whole run.
        device: on which it was measured.
        workload: counted work of the run.
    """

    parameters: int
    loss: float
    state_bytes: int
    example_bytes: int
    seconds: float | None
    timed: bool
    batch_size: int
    total_steps: int
    device: str
    workload: Workload

    def predictions(self) -> Iterator[Prediction]:
        """Predict the cost on each type and number of devices that the batch can be divided among."""
        for device in DEVICES:
            for n in NUMBERS:
                if self.batch_size % n == 0:
                    yield predict(self.workload, device, n)

    def __str__(self) -> str:
        return f"{self._measured()}\n\n{self._predicted()}"

    def _measured(self) -> str:
        memory = (self.state_bytes + self.batch_size * self.example_bytes) / 2**30
        return "\n".join(
            [
                f"measured on {self.device}",
                f"parameters      {self.parameters:,}",
                f"loss            {self.loss:.4f} after one real step",
                f"memory          {memory:.2f} GiB estimated at batch size {self.batch_size} "
                f"({self.state_bytes / 2**20:.0f} MiB of weights and optimizer, "
                f"{self.example_bytes / 2**20:.1f} MiB an example)",
                f"time per step   {self._time()}",
                f"full run        {self.total_steps:,} steps"
                + ("" if self.seconds is None else f", {duration(self.seconds * self.total_steps)}"),
            ]
        )

    def _time(self) -> str:
        if self.seconds is None:
            remedy = "lower --train.batch-size or raise --train.accumulate"
            return f"not measured: a batch of {self.batch_size} does not fit here; {remedy}"
        how = "timed" if self.timed else "estimated from a few examples"
        return f"{self.seconds:.3g} s at batch size {self.batch_size}, {how}"

    def _predicted(self) -> str:
        step = self.workload.counts.at(self.batch_size)
        left_out = [n for n in NUMBERS if self.batch_size % n]
        lines = [
            f"predicted, not measured: batches of {self.batch_size} over all devices in {self.workload.precision}, "
            f"{step.flops / 1e12:.3g} TFLOP, {step.bytes / 1e9:.3g} GB moved and {step.kernels:,} kernels a step",
            table(self.predictions()),
        ]
        if left_out:
            numbers = " or ".join(map(str, left_out))
            lines.append(f"a batch of {self.batch_size} cannot be divided among {numbers} devices")
        return "\n".join(lines)


def dry_run(
    config: Config,
    *,
    data_dir: str | Path | None = None,
    device: str | torch.device = "auto",
    sizes: tuple[int, int] = (2, 6),
) -> DryRun:
    """Build the full model of a recipe, run real training steps, and estimate the whole run.

    Steps on two small batches are counted: operations, bytes and memory are linear in the examples, and
    :mod:`iresnet.training.cost` predicts from them the cost on other devices. On a GPU, steps on a full batch are
    timed, since a few examples do not fill it; on the CPU, where those may take minutes, their time is extrapolated
    from the two batches. Nothing is written.

    Args:
        config: the recipe.
        data_dir: where data sets are looked for first.
        device: where to run, see :func:`~iresnet.devices.choose_device`.
        sizes: the two batch sizes; the first takes one more step to warm up.

    Raises:
        IResNetError: as in training.
    """
    check(config)
    check_trackers(config)
    dataset = load_data(config.data.name, data_dir, **config.data.options)
    device = choose_device(device)
    inputs = inputs_of(dataset, config.task.kind, conditional=config.task.conditional)
    check_model_fits(config, inputs, device)
    task = make_task(config, dataset, inputs).to(device).train()
    optimizer = make_optimizer(task.model, config.optim)
    batches = [_first_examples(dataset, size, device) for size in sizes]

    def step(batch: Batch) -> tuple[float, float]:
        """Run one training step as the loop does, and return the loss and the seconds."""
        start, precision = time.perf_counter(), config.train.precision
        with use_precision("float32" if precision == "float32" else "tf32", device):  # backward too
            optimizer.zero_grad()
            loss = _backward(task, batch, precision)
            optimizer.step()
        value = float(loss)  # waits for the device
        return value, time.perf_counter() - start

    loss, _ = step(batches[0])
    seconds = [step(batch)[1] for batch in batches]
    slots = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    state_bytes = 2 * _bytes(task.parameters()) + _bytes(slots)
    batch_size, on_cpu = config.train.batch_size, device.type == "cpu"
    resident = () if dataset.stream else (dataset.train.x, dataset.train.y)  # a stream is moved batch by batch
    workload = Workload(
        counts=_counts(task, step, batches),
        batch_size=batch_size,
        total_steps=total_steps(config.train, len(training_batches(dataset, batch_size))),
        parameters=sum(p.numel() for p in task.parameters()),
        resident_bytes=state_bytes + _bytes([*task.buffers(), *resident]),
        precision=config.train.precision,
        captured=obstacle(config) is None,
    )
    return DryRun(
        parameters=workload.parameters,
        loss=loss,
        state_bytes=state_bytes,
        example_bytes=workload.counts.at(batch_size).memory // batch_size,
        seconds=_extrapolated(seconds, sizes, batch_size)
        if on_cpu
        else _timed(task, config, device, _first_examples(dataset, batch_size, device)),
        timed=not on_cpu,
        batch_size=batch_size,
        total_steps=workload.total_steps,
        device=describe_device(device),
        workload=workload,
    )


def _extrapolated(seconds: Sequence[float], sizes: tuple[int, int], n: int) -> float:
    """Return the time of a step on n examples, linear in them, from those on two batches."""
    of_example = max(0.0, (seconds[1] - seconds[0]) / (sizes[1] - sizes[0]))
    return max(0.0, seconds[0] - sizes[0] * of_example) + n * of_example


def _timed(task: Task, config: Config, device: torch.device, batch: Batch) -> float | None:
    """Return the median time of five steps as the loop takes them; None if the batch does not fit into memory."""
    accelerator = make_accelerator(config.train.precision, device)
    prepared, optimizer = accelerator.prepare(task, make_optimizer(task.model, config.optim))
    step = Step(accelerator, prepared, optimizer, config, None)

    def seconds() -> float:
        start = time.perf_counter()
        float(step(*batch, config.optim.lr)["loss"])  # waits for the device
        return time.perf_counter() - start

    try:
        return median([seconds() for _ in range(12)][-5:])  # a GPU replays them after some
    except torch.OutOfMemoryError:
        return None
    except NotFinite as fault:
        raise RunError(f"a step on a full batch cannot be timed: {fault}") from fault


def _counts(task: Task, step: Callable[[Batch], Any], batches: Sequence[Batch]) -> StepCounts:
    """Count a step on two batches, uncompiled and with all power iterations, as a GPU runs them."""
    for module in task.modules():
        if isinstance(module, PowerIteration):
            module.tol = 0.0
    with torch.compiler.set_stance("force_eager"):
        small, large = (count(lambda batch=batch: step(batch)) for batch in batches)
    return StepCounts((len(batches[0][0]), len(batches[1][0])), small, large)


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
