"""How accelerate spreads a training step over processes."""

__all__ = ["make_accelerator", "quietly"]

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from iresnet.processes import world_size


def make_accelerator(mixed_precision: str) -> Accelerator:
    """An accelerator for this process, whether it is alone or one of several.

    Args:
        mixed_precision: what accelerate calls the precision.
    """
    # Buffers need no broadcast: each process computes them from weights and batches that are the same for all.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    # On the CPU accelerate takes each of several processes for one that is alone, unless it is told.
    cpu = world_size() > 1 and not torch.cuda.is_available()
    AcceleratorState._reset_state()  # it would hold all runs of this process to the precision of the first
    return Accelerator(mixed_precision=mixed_precision, cpu=cpu, kwargs_handlers=[ddp])


@contextmanager
def quietly() -> Iterator[None]:
    """Keep from the user what torch says of options that accelerate passes, and of the layout of gradients."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        # Of 1x1 kernels, whose layout has two descriptions.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        yield
