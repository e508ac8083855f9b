"""Samples of a density, in batches."""

__all__ = ["decode", "sample"]

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from iresnet.evaluation.shares import shared
from iresnet.flows import Flow, check_sampling


def sample(
    flow: Flow, n: int, *, temperature: float = 1.0, generator: Generator | None = None, batch_size: int = 32
) -> Tensor:
    r"""Draw data, (n, \*E), as :meth:`iresnet.Flow.sample` does, in batches that several processes share out.

    Args:
        flow: the density.
        n: how many.
        temperature: multiplies the standard deviation of the latent.
        generator: source of the latents, in the same state in all processes; torch's global one when None.
        batch_size: samples that are solved together.

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.Affine(std=2.0), ir.StandardNormal(3))
        >>> x = sample(flow, 5, generator=Generator().manual_seed(0), batch_size=2)
        >>> torch.equal(x, flow.sample(5, generator=Generator().manual_seed(0)))
        True
    """
    check_sampling(n, temperature)
    with torch.no_grad():
        z = flow.base.sample(n, temperature=temperature, generator=generator)
    return decode(flow, z, batch_size=batch_size)


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
        >>> decode(ir.Flow(ir.Affine(mean=1.0), ir.StandardNormal(2)), torch.zeros(1, 2))
        tensor([[1., 1.]])
    """
    found = []
    for x in shared(z.split(batch_size), flow.decode):
        found.append(x)
        progress(sum(map(len, found)))
    return torch.cat(found)
