"""Training steps of iresnet and of its baselines: same images, same loss, same everything between the blocks."""

__all__ = ["BLOCKS", "Contender", "Setting", "Training", "baseline", "contenders", "ours"]

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from baselines import Block2019, Bottleneck, NormflowsBlock, PlainBlock, swap_blocks, update_normflows
from torch import Tensor

from iresnet.bijections import Bijection
from iresnet.config import OptimConfig, load_config
from iresnet.data import Batches
from iresnet.training import Trainer
from iresnet.training.optim import make_optimizer
from iresnet.training.step import Step
from iresnet.training.task import Task

BLOCKS: dict[str, Callable[[Bottleneck], Bijection]] = {
    "2019": Block2019,
    "normflows": NormflowsBlock,
    "plain": PlainBlock,
}
"""Blocks of the baselines by name."""

ADAMAX = OptimConfig(name="adamax", lr=3e-3)
"""Optimizer of the baselines, as published and cheap; iresnet takes that of its recipe."""

Batch = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Setting:
    """Size of a benchmark.

    Attributes:
        name: for tables.
        recipe: the recipe that is trained.
        shape: of an image.
        batch: images a step.
        overrides: of the recipe.
    """

    name: str
    recipe: str
    shape: tuple[int, int, int]
    batch: int
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """Model in training.

    Attributes:
        task: model with its loss.
        batches: endless iterator.
        step: forward, backward and optimizer on the next batch.
        update: normalization of the weights after a step, for methods that need it.
        trainer: of the package, None for a baseline.
    """

    task: Task
    batches: Iterator[Batch]
    step: Callable[[], Any]
    update: Callable[[], Any] = lambda: None
    trainer: Trainer | None = None


Contender = Callable[[], Training]


def ours(setting: Setting, *changes: str, device: str = "cpu") -> Training:
    """Build the step of the package's own training loop; ``changes`` are overrides of the recipe."""
    trainer = _trainer(setting, *changes, device=device)
    trainer.task.train()
    stream = _endless(trainer.batches)
    return Training(trainer.task, stream, lambda: trainer.train_step(*next(stream)), trainer=trainer)


def baseline(setting: Setting, name: str, *changes: str, device: str = "cpu", captured: bool = False) -> Training:
    """Build a training step of the model of the recipe with the blocks of a baseline.

    Args:
        setting: the recipe and its size.
        name: a key of :data:`BLOCKS`.
        changes: overrides of the recipe.
        device: where it runs.
        captured: as one CUDA graph, by the step of the package; else as the field writes it.
    """
    trainer = _trainer(setting, *changes, device=device)
    task = swap_blocks(trainer.take_step.own_task, BLOCKS[name]).train()
    optimizer = make_optimizer(task.model, ADAMAX)
    stream = _endless(trainer.batches)
    if captured:
        take = Step(trainer.accelerator, *trainer.accelerator.prepare(task, optimizer), trainer.config, None)
        return Training(task, stream, lambda: take(*next(stream), ADAMAX.lr))

    def step() -> None:
        loss, _ = task(*next(stream))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Training(task, stream, step, partial(update_normflows, task) if name == "normflows" else lambda: None)


def contenders(setting: Setting) -> dict[str, Contender]:
    """Return builders of iresnet, first, and of all baselines."""
    return {"iresnet": partial(ours, setting), **{name: partial(baseline, setting, name) for name in BLOCKS}}


def _trainer(setting: Setting, *changes: str, device: str) -> Trainer:
    """Build the trainer of a recipe on synthetic images, smooth noise with random labels."""
    random = torch.Generator().manual_seed(0)
    channels, *pixels = setting.shape
    coarse = 256 * torch.rand(1024, channels, 8, 8, generator=random)
    x = F.interpolate(coarse, tuple(pixels), mode="bilinear").to(torch.uint8)
    y = torch.randint(0, 10, (1024,), generator=random)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        np.savez(path, x=x.numpy(), y=y.numpy())
        data = ("--data.name", str(path), "--data.pad-to", "null", "--train.batch-size", str(setting.batch))
        return Trainer(load_config(setting.recipe, (*data, *setting.overrides, *changes)), device=device)


def _endless(batches: Batches) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from batches.epoch(epoch)
