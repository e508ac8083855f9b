"""How accelerate spreads a training step over processes."""

__all__ = ["make_accelerator", "quietly"]

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from iresnet.precision import PRECISIONS
from iresnet.processes import world_size


def make_accelerator(precision: str, device: torch.device) -> Accelerator:
    """An accelerator for this process, whether it is alone or one of several.

    Args:
        precision: a key of :data:`iresnet.precision.PRECISIONS`.
        device: of this process.
    """
    mixed = "no" if PRECISIONS[precision] is None else precision
    # Buffers need no broadcast: each process computes them from weights and batches that are the same for all.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    # On the CPU accelerate takes each of several processes for one that is alone, unless it is told.
    cpu = world_size() > 1 and device.type == "cpu"
    # It would hold all runs of this process to the precision and the device of the first.
    AcceleratorState._reset_state(reset_partial_state=True)
    with _environment(ACCELERATE_TORCH_DEVICE=str(device)):
        return Accelerator(mixed_precision=mixed, cpu=cpu, kwargs_handlers=[ddp])


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def quietly() -> Iterator[None]:
    """Keep from the user what torch says of options that accelerate passes, and of the layout of gradients."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        # Of 1x1 kernels, whose layout has two descriptions.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        yield
