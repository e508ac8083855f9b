"""iresnet and its baselines in training: same images, same loss, same everything between the blocks."""

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
from behrmann2019 import Block2019
from blocks import Bottleneck, swapped
from normflows_block import NormflowsBlock, update
from plain import PlainBlock
from torch import Tensor

from iresnet.bijections import Bijection
from iresnet.config import OptimConfig, load_config
from iresnet.data import Batches
from iresnet.training import Trainer
from iresnet.training.optim import make_optimizer
from iresnet.training.task import Task

BLOCKS: dict[str, Callable[[Bottleneck], Bijection]] = {
    "2019": Block2019,
    "normflows": NormflowsBlock,
    "plain": PlainBlock,
}
"""Baselines, by name."""

ADAMAX = OptimConfig(name="adamax", lr=3e-3)
"""What the baselines are trained with: as published, and little work. iresnet has what its recipe says."""

Batch = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Setting:
    """A size of the work.

    Attributes:
        name: for tables.
        recipe: that is trained.
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
    """A model in training.

    Attributes:
        task: its loss.
        batches: without an end.
        step: forward, backward and optimizer, on the next batch.
        update: normalizes the weights after a step, where a method does so.
    """

    task: Task
    batches: Iterator[Batch]
    step: Callable[[], Any]
    update: Callable[[], Any] = lambda: None


Contender = Callable[[], Training]


def ours(setting: Setting, *changes: str) -> Training:
    """The step of the training loop, which users get; ``changes`` are of the recipe."""
    trainer = _trainer(setting, *changes)
    trainer.task.train()
    stream = _endless(trainer.batches)
    return Training(trainer.task, stream, lambda: trainer.train_step(*next(stream)))


def baseline(setting: Setting, name: str) -> Training:
    """The blocks of a baseline in the model of the recipe."""
    trainer = _trainer(setting)
    task = swapped(trainer.task, BLOCKS[name]).train()
    optimizer = make_optimizer(task.model, ADAMAX)
    stream = _endless(trainer.batches)

    def step() -> None:
        loss, _ = task(*next(stream))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Training(task, stream, step, partial(update, task) if name == "normflows" else lambda: None)


def contenders(setting: Setting) -> dict[str, Contender]:
    """All of them, iresnet first."""
    return {"iresnet": partial(ours, setting), **{name: partial(baseline, setting, name) for name in BLOCKS}}


def _trainer(setting: Setting, *changes: str) -> Trainer:
    """The trainer of a recipe on images that only look like some: smooth noise, with random labels."""
    random = torch.Generator().manual_seed(0)
    channels, *pixels = setting.shape
    coarse = 256 * torch.rand(1024, channels, 8, 8, generator=random)
    x = F.interpolate(coarse, tuple(pixels), mode="bilinear").to(torch.uint8)
    y = torch.randint(0, 10, (1024,), generator=random)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        np.savez(path, x=x.numpy(), y=y.numpy())
        data = ("--data.name", str(path), "--data.pad-to", "null", "--train.batch-size", str(setting.batch))
        return Trainer(load_config(setting.recipe, (*data, *setting.overrides, *changes)))


def _endless(batches: Batches) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from batches.epoch(epoch)
