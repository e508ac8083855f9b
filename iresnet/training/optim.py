"""Optimisers and learning-rate schedules, by name."""

__all__ = ["OPTIMISERS", "SCHEDULES", "learning_rate", "make_optimiser"]

import math
from collections.abc import Callable

import torch
from torch import nn

from iresnet.config import OptimConfig
from iresnet.errors import RecipeError, UnknownNameError

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def make_optimiser(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimiser of a configuration.

    Raises:
        UnknownNameError: for an unknown optimiser or schedule.
        RecipeError: for a learning rate that is not positive.

    Example:
        >>> type(make_optimiser(nn.Linear(2, 2), OptimConfig(name="sgd"))).__name__
        'SGD'
    """
    if config.name not in OPTIMISERS:
        raise UnknownNameError("optimiser", config.name, OPTIMISERS)
    if config.schedule not in SCHEDULES:
        raise UnknownNameError("schedule", config.schedule, SCHEDULES)
    if not config.lr > 0 or config.weight_decay < 0:
        raise RecipeError(f"lr must be positive and weight_decay not negative, got {config.lr}, {config.weight_decay}")
    extra = {"momentum": config.momentum} if config.name == "sgd" else {}
    return OPTIMISERS[config.name](model.parameters(), lr=config.lr, weight_decay=config.weight_decay, **extra)


def _constant(config: OptimConfig, epoch: float, epochs: int) -> float:  # noqa: ARG001
    return 1.0


def _cosine(config: OptimConfig, epoch: float, epochs: int) -> float:
    progress = (epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def _linear(config: OptimConfig, epoch: float, epochs: int) -> float:
    return min(1.0, (1 - epoch / epochs) / max(1 - config.decay_from, 1e-9))


def _step(config: OptimConfig, epoch: float, epochs: int) -> float:  # noqa: ARG001
    return config.factor ** sum(epoch >= milestone for milestone in config.milestones)


SCHEDULES: dict[str, Callable[[OptimConfig, float, int], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "step": _step,
}
"""Factor of the learning rate at a fractional epoch of a run of so many epochs, apart from warm-up."""


def learning_rate(config: OptimConfig, epoch: float, epochs: int) -> float:
    """Learning rate at a point of the run: a pure function, so that a resumed run has no schedule to restore.

    Args:
        config: the schedule.
        epoch: epochs done, with fraction.
        epochs: epochs of the whole run.

    Example:
        >>> config = OptimConfig(lr=0.1, warmup_epochs=10, schedule="step", milestones=(60, 120, 160))
        >>> [round(learning_rate(config, epoch, 200), 6) for epoch in (5, 10, 60, 199)]
        [0.05, 0.1, 0.02, 0.0008]
    """
    warmup = min(1.0, epoch / config.warmup_epochs) if config.warmup_epochs else 1.0
    return config.lr * warmup * SCHEDULES[config.schedule](config, epoch, epochs)
