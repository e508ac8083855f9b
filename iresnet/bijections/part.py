"""Log-determinants of one part of a batch, which stands for all of it."""

__all__ = ["one_part"]

from collections.abc import Callable

import torch
from torch import Tensor


def one_part(
    forward: Callable[[Tensor], Tensor],
    forward_and_logdet: Callable[[Tensor], tuple[Tensor, Tensor]],
    x: Tensor,  # (N, *E)
    n_parts: int,
) -> tuple[Tensor, Tensor]:  # (N, *E), (N,)
    """Run both directions of a block, each on its share of the batch.

    Of n parts of the batch one is drawn. Its log-determinants count n times, all others are zero: every sample has the
    right expectation, value and gradient, and the mean over the batch is that of the part.

    Args:
        forward: x -> z, for the samples outside of the part.
        forward_and_logdet: x -> z and log-determinants, for the samples in it.
        x: the batch; one smaller than the number of parts is not divided.
        n_parts: n.
    """
    if n_parts == 1 or len(x) < n_parts:
        return forward_and_logdet(x)
    chosen = int(torch.randint(n_parts, ()))
    sizes = [len(part) for part in x.tensor_split(n_parts)]
    before, part, after = x.split([sum(sizes[:chosen]), sizes[chosen], sum(sizes[chosen + 1 :])])
    z, logdet = forward_and_logdet(part)
    z = torch.cat([forward(before) if len(before) else before, z, forward(after) if len(after) else after])
    return z, torch.cat([logdet.new_zeros(len(before)), n_parts * logdet, logdet.new_zeros(len(after))])
