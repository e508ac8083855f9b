"""Checks of the settings of training, before anything is written."""

__all__ = ["check_same", "check_settings"]

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from iresnet.config import Config, leaves
from iresnet.errors import RecipeError, RunError, UnknownNameError
from iresnet.inputs import Inputs
from iresnet.precision import PRECISIONS
from iresnet.training.distributed import SHARDINGS
from iresnet.training.tracking import check_trackers

_LARGEST = 3e38  # of float32
_WITHOUT_EFFECT = ("train.checkpoint_every", "train.keep_checkpoints")  # on what is trained


def check_settings(config: Config) -> None:
    """Refuse settings that cannot be meant.

    Raises:
        RecipeError: for a number out of its range, naming the option.
        UnknownNameError: for an unknown precision.

    Example:
        >>> from iresnet.config import TrainConfig
        >>> check_settings(Config(train=TrainConfig(epochs=0)))
        Traceback (most recent call last):
        iresnet.errors.RecipeError: --train.epochs must be at least 1, got 0
    """
    task, optim, train = config.task, config.optim, config.train
    smallest_batch = 1 if task.kind == "density" else 2  # the head has a batch norm
    for name, value, least in (
        ("data.shuffle-buffer", config.data.shuffle_buffer, 1),
        ("data.split-seed", config.data.split_seed, 0),
        ("train.epochs", train.epochs, 1),
        ("train.batch-size", train.batch_size, smallest_batch),
        ("train.logdet-parts", train.logdet_parts, 1),
        ("train.log-every", train.log_every, 1),
        ("train.snapshot-every", train.snapshot_every, 1),
        ("train.n-pictures", train.n_pictures, 0),
        ("train.checkpoint-every", train.checkpoint_every, 1),
        ("train.keep-checkpoints", train.keep_checkpoints, 1),
        ("train.accumulate", train.accumulate, 1),
        ("train.ema", train.ema or 0, 0),
        ("train.patience", 1 if train.patience is None else train.patience, 1),
        ("train.max-bad-steps", train.max_bad_steps, 0),
        ("train.seed", train.seed, 0),
        ("task.nll-weight", task.nll_weight, 0),
        ("task.ce-weight", task.ce_weight, 0),
        ("optim.lr", optim.lr, 0),
        ("optim.adam-lr", optim.adam_lr, 0),
        ("optim.weight-decay", optim.weight_decay, 0),
        ("optim.momentum", optim.momentum, 0),
        ("optim.warmup-epochs", optim.warmup_epochs, 0),
        ("optim.decay-from", optim.decay_from, 0),
        ("optim.factor", optim.factor, 0),
        ("optim.clip-norm", 0 if optim.clip_norm is None else optim.clip_norm, 0),
    ):
        if not abs(value) < _LARGEST:
            raise RecipeError(f"--{name} must be a finite number, got {value}")
        if value < least:
            raise RecipeError(f"--{name} must be at least {least}, got {value}")
    if train.ema is not None and train.ema >= 1:
        raise RecipeError(f"--train.ema must be below 1, got {train.ema}")
    if train.batch_size < smallest_batch * train.accumulate:
        raise RecipeError(
            f"--train.accumulate must be at most {train.batch_size // smallest_batch}, so that each part of a batch of "
            f"{train.batch_size} has {smallest_batch} or more, got {train.accumulate}"
        )
    if train.seed >= 2**63:
        raise RecipeError(f"--train.seed must be below 2**63, got {train.seed}")
    if train.sharding not in SHARDINGS:
        raise UnknownNameError("sharding", train.sharding, SHARDINGS)
    if train.sharding == "fsdp":
        _check_sharded(config)
    if train.precision not in PRECISIONS:
        raise UnknownNameError("precision", train.precision, PRECISIONS)
    check_trackers(config)


def _check_sharded(config: Config) -> None:
    if config.train.ema is not None:
        raise RecipeError("--train.sharding fsdp keeps no averaged weights: leave out --train.ema")
    if config.train.precision == "fp16":
        raise RecipeError("--train.sharding fsdp does not scale losses, as fp16 needs: use --train.precision bf16")


def check_same(config: Config, inputs: Inputs, old_config: Config, old_inputs: Inputs) -> None:
    """Refuse to resume with other settings.

    Names, descriptions and what checkpoints are kept may have changed, and there may be more epochs.

    Raises:
        RunError: lists what differs.
    """
    if config.train.epochs > old_config.train.epochs:
        old_config = replace(old_config, train=replace(old_config.train, epochs=config.train.epochs))
    new, old = (dict(_decisive(c)) for c in (config, old_config))
    changes = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]
    if inputs != old_inputs:
        changes.append("the data set")
    if changes:
        raise RunError(f"the run to resume was started with other settings ({'; '.join(changes)}); use another --out")


def _decisive(config: Config) -> Iterator[tuple[str, Any]]:
    """The options that change the result, by dotted name."""
    for name, value in leaves(asdict(config)):
        if name.startswith(("data.", "model.", "task.", "optim.", "train.")) and name not in _WITHOUT_EFFECT:
            yield name, value
