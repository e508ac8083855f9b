"""Checkpoints: the state from which a run continues."""

__all__ = [
    "Checkpoint",
    "kept_random_state",
    "random_state",
    "read_checkpoint",
    "set_random_state",
    "write_checkpoint",
]

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from iresnet.errors import RunError
from iresnet.runs import Run, write_atomically, writing


@dataclass(frozen=True)
class Checkpoint:
    """State between two steps.

    Attributes:
        step: steps done.
        model: state of the model, unsealed.
        optimiser: state of the optimiser.
        random: states of torch's generators, by device type.
        window: metrics of the last steps that are not in ``metrics.jsonl`` yet.
        metrics_size: bytes of ``metrics.jsonl`` that belong to the steps done.
    """

    step: int
    model: dict[str, Any]
    optimiser: dict[str, Any]
    random: dict[str, torch.Tensor]
    window: list[dict[str, torch.Tensor]]
    metrics_size: int


def write_checkpoint(run: Run, checkpoint: Checkpoint) -> None:
    """Replace the run's checkpoint, as a whole."""
    buffer = io.BytesIO()
    torch.save(asdict(checkpoint), buffer)
    with writing(run.state):
        run.state.mkdir(exist_ok=True)
    write_atomically(run.state / "checkpoint.pt", buffer.getvalue())


def read_checkpoint(run: Run) -> Checkpoint:
    """Read the run's checkpoint; only tensors and plain containers are unpickled.

    Raises:
        RunError: when there is none, or it is damaged.
    """
    path = run.state / "checkpoint.pt"
    if not path.is_file():
        raise RunError(f"{run.path} has no checkpoint to resume from; remove the folder and start again")
    try:
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise RunError(f"{path} is damaged and cannot be resumed; remove the folder and start again") from error


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Give torch's generators back the state in which they were found."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def random_state() -> dict[str, Tensor]:
    """States of torch's generators, by device type."""
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def set_random_state(state: dict[str, Tensor]) -> None:
    """Restore what :func:`random_state` gave, as far as the devices are there."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
