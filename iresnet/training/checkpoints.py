"""Checkpoints: the state from which a run continues."""

__all__ = ["Checkpoint", "read_checkpoint", "write_checkpoint"]

import io
import pickle
from dataclasses import asdict, dataclass
from typing import Any

import torch

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
