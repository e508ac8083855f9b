"""Samples of a density, in batches."""

__all__ = ["decode"]

from collections.abc import Callable

import torch
from torch import Tensor

from iresnet.evaluation.shares import shared
from iresnet.flows import Flow


@torch.no_grad()
def decode(
    flow: Flow, z: Tensor, *, batch_size: int = 32, progress: Callable[[int], None] = lambda done: None
) -> Tensor:
    r"""Map latents, (n, D), to data, (n, \*E), in batches that several processes share out.

    Args:
        flow: the density.
        z: the latents, the same in all processes.
        batch_size: samples that are solved together.
        progress: called with the number of samples done after each batch.

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.Affine(std=2.0), ir.StandardNormal(3))
        >>> z = flow.base.sample(5)
        >>> torch.equal(decode(flow, z, batch_size=2), flow.decode(z))
        True
    """
    found = []
    for x in shared(z.split(batch_size), flow.decode):
        found.append(x)
        progress(sum(map(len, found)))
    return torch.cat(found)
