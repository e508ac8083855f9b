"""Optimizers and learning-rate schedules, by name."""

__all__ = ["OPTIMIZERS", "SCHEDULES", "learning_rate", "make_optimizer", "set_learning_rate"]

import math
from collections.abc import Callable

import torch
from torch import nn

from iresnet.config import OptimConfig
from iresnet.errors import RecipeError, UnknownNameError
from iresnet.training.muon import Muon

OPTIMIZERS: dict[str, Callable[[nn.Module, OptimConfig], torch.optim.Optimizer]] = {
    "adam": lambda model, c: torch.optim.Adam(model.parameters(), lr=c.lr, weight_decay=c.weight_decay),
    "adamax": lambda model, c: torch.optim.Adamax(model.parameters(), lr=c.lr, weight_decay=c.weight_decay),
    "adamw": lambda model, c: torch.optim.AdamW(model.parameters(), lr=c.lr, weight_decay=c.weight_decay),
    "muon": lambda model, c: Muon(model, lr=c.lr, adam_lr=c.adam_lr, momentum=c.momentum, weight_decay=c.weight_decay),
    "sgd": lambda model, c: torch.optim.SGD(
        model.parameters(), lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay, nesterov=c.nesterov
    ),
}
"""Optimizers of a model, by name."""


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer of a configuration.

    Raises:
        UnknownNameError: for an unknown optimizer or schedule.
        RecipeError: for a learning rate that is not positive, or Nesterov momentum without momentum.

    Example:
        >>> type(make_optimizer(nn.Linear(2, 2), OptimConfig(name="sgd"))).__name__
        'SGD'
    """
    if config.name not in OPTIMIZERS:
        raise UnknownNameError("optimizer", config.name, OPTIMIZERS)
    if config.schedule not in SCHEDULES:
        raise UnknownNameError("schedule", config.schedule, SCHEDULES)
    if not min(config.lr, config.adam_lr) > 0 or config.weight_decay < 0:
        raise RecipeError(
            f"--optim.lr and --optim.adam-lr must be positive and --optim.weight-decay not negative, got {config.lr}, "
            f"{config.adam_lr} and {config.weight_decay}"
        )
    if config.nesterov and (config.name != "sgd" or config.momentum == 0):
        raise RecipeError(
            f"--optim.nesterov is for sgd with momentum, got {config.name} with --optim.momentum {config.momentum}"
        )
    optimizer = OPTIMIZERS[config.name](model, config)
    for group in optimizer.param_groups:
        group["lr_ratio"] = group["lr"] / config.lr
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of an optimizer from :func:`make_optimizer`; groups with a rate of their own keep its ratio."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_ratio"]


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
