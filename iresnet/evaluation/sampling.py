"""Samples of a density, in batches."""

__all__ = ["sample"]

import torch
from torch import Generator, Tensor

from iresnet.evaluation.shares import shared
from iresnet.flows import Flow, check_sampling


@torch.no_grad()
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
    z = flow.base.sample(n, temperature=temperature, generator=generator)
    return torch.cat(list(shared(z.split(batch_size), flow.decode)))
