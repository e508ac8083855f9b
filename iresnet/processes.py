"""Processes that work on one thing together, as torchrun starts them: who they are, what they share, how they fail."""

__all__ = [
    "agreed",
    "average",
    "gather",
    "is_main",
    "joined",
    "once",
    "rank",
    "restarted",
    "world_size",
]

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from iresnet.errors import ProcessLost, RunError
from iresnet.launch import started_together

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""How long a process waits for another one that is alive and silent. One that ended is noticed at once."""

_store: Any = None  # what all processes write to, also when one of them has ended


def restarted() -> bool:
    """Whether torchrun started this process again, after one of the processes had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def rank() -> int:
    """Number of this process, 0 when it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 when this one is alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, if it did, until the end of the context.

    Raises:
        RunError: when the environment names processes that cannot be joined.
        ProcessLost: when another process ended before the work was done, or is silent for too long.

    Example:
        >>> with joined():
        ...     world_size()
        1
    """
    if not started_together() or dist.is_initialized():
        yield
        return
    _join()
    try:
        yield
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise ProcessLost(
            f"process {rank()} of {world_size()} lost the others: one of them ended or did not answer for "
            f"{PATIENCE.seconds // 60} minutes"
        ) from error
    dist.destroy_process_group()  # not after a failure: it would wait for those who are gone


def _join() -> None:
    global _store
    try:
        store, number, size = next(dist.rendezvous("env://", timeout=PATIENCE))  # pyright: ignore[reportPrivateImportUsage]
        # After a restart the store is the same one, and holds the addresses of those who have ended.
        _store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(store=_store, rank=number, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} asks for several processes, which cannot be joined "
            f"({str(error).splitlines()[0]}); start them with torchrun"
        ) from error


def _is_loss(error: RuntimeError) -> bool:
    """Whether a collective failed: gloo has no class of its own for that."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "Gloo", "NCCL"))


# -- what they share -------------------------------------------------------------------------------------------------


def average(values: Tensor) -> Tensor:
    """Mean over the processes of a tensor that each of them has."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def gather(value: T) -> list[T]:
    """What each process has, in their order, for all of them; anything that can be pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def agreed(wish: bool) -> bool:
    """Whether any process wishes so: asked on the CPU, so that nobody waits for an accelerator."""
    if world_size() == 1:
        return wish
    anyone = torch.tensor(int(wish))
    dist.all_reduce(anyone, dist.ReduceOp.MAX)
    return bool(anyone)


# -- what they say ---------------------------------------------------------------------------------------------------


def once(message: str) -> bool:
    """Whether no other process has said this before: what goes wrong everywhere is told once."""
    try:
        return _store is None or _store.add(f"said/{message}", 1) == 1
    except RuntimeError:  # whoever kept the store is gone
        return True
