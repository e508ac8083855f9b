"""Process group of a command: join the processes that torchrun started, then average, gather and agree with them.

Processes are started by :mod:`iresnet.launch`, or torchrun; that module stays without torch, which this one needs.
"""

__all__ = [
    "any_process",
    "average",
    "gather",
    "is_first_to_say",
    "is_main",
    "process_group",
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
"""Time that a process waits for another one that is alive and silent. One that ended is noticed at once."""

_store: Any = None  # shared by all processes; still there when one of them has ended


# -- membership --------------------------------------------------------------------------------------------------------


def rank() -> int:
    """Return the number of this process, 0 when it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 when this one is alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this is the process that writes and prints."""
    return rank() == 0


def restarted() -> bool:
    """Return whether torchrun started this process again, after one of the processes had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started until the end of the context; do nothing when it started none.

    Raises:
        RunError: when the environment names processes that cannot be joined.
        ProcessLost: when another process ended before the work was done, or is silent for too long.

    Example:
        >>> with process_group():
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
        # A collective that fails raises a class of its own with NCCL, and with gloo none.
        if not isinstance(error, dist.DistError) and not any(n in str(error) for n in ("gloo", "Gloo", "NCCL")):
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


# -- collectives -------------------------------------------------------------------------------------------------------


def average(values: Tensor) -> Tensor:
    """Average a tensor over the processes."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world_size()


def gather(value: T) -> list[T]:
    """Collect the values of all processes, in the order of their ranks, in each of them; a value can be pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process. They ask on the CPU, so nobody waits for an accelerator."""
    if world_size() == 1:
        return flag
    found = torch.tensor(int(flag))
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def is_first_to_say(message: str) -> bool:
    """Return whether no other process has said this before: what goes wrong everywhere is told once."""
    try:
        return _store is None or _store.add(f"said/{message}", 1) == 1
    except RuntimeError:  # the process that kept the store is gone
        return True
