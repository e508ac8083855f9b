"""What a recipe would cost, from real steps on small batches."""

__all__ = ["DryRun", "dry_run"]

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from iresnet.config import Config
from iresnet.data import Dataset, training_batches
from iresnet.data import load as load_data
from iresnet.runs import inputs_of
from iresnet.training.optim import make_optimiser
from iresnet.training.settings import check_settings
from iresnet.training.task import Task, make_task


@dataclass(frozen=True)
class DryRun:
    """Cost of a recipe on this machine.

    Attributes:
        parameters: how many the model has.
        loss: of the step that was run.
        state_bytes: weights, gradients and optimiser state.
        example_bytes: what one example keeps for the backward pass.
        step_seconds: time of a step, apart from its examples.
        example_seconds: time that each example adds to a step.
        batch_size: of the recipe.
        n_steps: of the whole run.
        device: where it was measured.
    """

    parameters: int
    loss: float
    state_bytes: int
    example_bytes: int
    step_seconds: float
    example_seconds: float
    batch_size: int
    n_steps: int
    device: str

    def __str__(self) -> str:
        memory = (self.state_bytes + self.batch_size * self.example_bytes) / 2**30
        seconds = self.step_seconds + self.batch_size * self.example_seconds
        return "\n".join(
            [
                f"parameters      {self.parameters:,}",
                f"loss            {self.loss:.4f} after one real step",
                f"memory          {memory:.2f} GiB estimated at batch size {self.batch_size} "
                f"({self.state_bytes / 2**20:.0f} MiB of weights and optimiser, "
                f"{self.example_bytes / 2**20:.1f} MiB an example)",
                f"time per step   {seconds:.2f} s estimated at batch size {self.batch_size} on {self.device}",
                f"full run        {self.n_steps:,} steps, {_duration(seconds * self.n_steps)} on {self.device}",
            ]
        )


def dry_run(config: Config, *, data_dir: str | Path | None = None, sizes: tuple[int, int] = (2, 6)) -> DryRun:
    """Build the full model of a recipe, run real training steps on a few examples, and estimate the whole run.

    Steps on two small batches tell the time of a step from that of its examples; the memory is what autograd keeps for
    the backward pass. Both are scaled to the recipe's batch size, which overestimates the time on devices that a few
    examples do not fill. Nothing is written.

    Args:
        config: the recipe.
        data_dir: where data sets are looked for first.
        sizes: the two batch sizes, the first of which takes one more step to warm up.

    Raises:
        IResNetError: as in training.
    """
    check_settings(config)
    dataset = load_data(config.data.name, data_dir, pad_to=config.data.pad_to, stream=config.data.stream)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = make_task(config, dataset, inputs_of(dataset, config.task.kind)).to(device).train()
    optimiser = make_optimiser(task.model, config.optim)
    loss, _, _ = _step(task, optimiser, *_first_examples(dataset, sizes[0], device))
    steps = [_step(task, optimiser, *_first_examples(dataset, size, device)) for size in sizes]
    example_seconds = max(0.0, (steps[1][2] - steps[0][2]) / (sizes[1] - sizes[0]))
    n = sum(p.numel() for p in task.parameters())
    slots = sum(t.numel() for state in optimiser.state.values() for t in state.values() if torch.is_tensor(t))
    return DryRun(
        parameters=n,
        loss=loss,
        state_bytes=4 * (2 * n + slots),
        example_bytes=steps[1][1] // sizes[1],
        step_seconds=max(0.0, steps[0][2] - sizes[0] * example_seconds),
        example_seconds=example_seconds,
        batch_size=config.train.batch_size,
        n_steps=config.train.epochs * len(training_batches(dataset, config.train.batch_size)),
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
    )


def _first_examples(dataset: Dataset, n: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    y = dataset.train.y
    return dataset.train.x[:n].to(device), None if y is None else y[:n].to(device)


def _step(task: Task, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor | None) -> tuple[float, int, float]:
    """Run one training step; return the loss, the bytes of all tensors kept for its backward pass, and the seconds."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    start = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = task(x, y)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    value = float(loss.detach())  # waits for the device
    seconds = time.perf_counter() - start
    own = {p.untyped_storage().data_ptr() for p in task.parameters()}
    return value, sum(size for pointer, size in kept.items() if pointer not in own), seconds


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
