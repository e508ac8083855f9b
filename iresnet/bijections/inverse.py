"""Inverses: of a bijection, as a bijection of its own, and with their log-determinants."""

__all__ = ["Inverse", "inverse_and_logdet"]

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from iresnet.bijections.base import Bijection, Chain, LogDets, Report
from iresnet.bijections.reshape import FactorOut
from iresnet.bounds import upper_bound
from iresnet.lipschitz import hold_weights
from iresnet.solvers import Solver


class Inverse(Bijection):
    r"""The inverse of a bijection f, which is a bijection too.

    .. math:: z = f^{-1}(x), \quad \log|\det dz/dx| = -\log|\det df/dz|

    That of a residual block is solved in forward, and its log-determinant taken at the solution. After another residual
    block it makes an implicit block, :math:`z + g_z(z) = x + g_x(x)`: forward solves with g_z, the inverse with g_x,
    gradients are implicit, and both maps are certified. A residual block stretches distances less than twofold; an
    inverse one has no such limit.

    Args:
        bijection: f, whose inverse has to have a log-determinant.

    Reference:
        Implicit Normalizing Flows, Lu et al. 2021, https://arxiv.org/abs/2103.09527

    Example:
        >>> import iresnet as ir
        >>> g_x, g_z = (ir.networks.mlp(2, 16) for _ in range(2))
        >>> implicit = ir.Chain([ir.ResidualBlock(g_x), Inverse(ir.ResidualBlock(g_z))]).eval()
        >>> x = torch.randn(5, 2)
        >>> z, logdet = implicit.forward_and_logdet(x)
        >>> bool(torch.allclose(z + g_z(z), x + g_x(x), atol=1e-4))
        True
    """

    def __init__(self, bijection: Bijection):
        super().__init__()
        self.bijection = bijection

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`; warns as inverses do."""
        with hold_weights(self.bijection):
            return self.bijection.inverse(x)

    def forward_and_logdet(self, x: Tensor, *, logdet: LogDets | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`; warns as inverses do."""
        with hold_weights(self.bijection):  # the solution and its log-determinant are those of the same weights
            return inverse_and_logdet(self.bijection, x, logdet=logdet)

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:  # noqa: ARG002
        """Apply the bijection itself."""
        return self.bijection(z)

    def stretch(self, lipschitz: Callable[[nn.Module], float] = upper_bound) -> tuple[float, float]:
        """See :meth:`Bijection.stretch`."""
        lower, upper = self.bijection.stretch(lipschitz)
        return 1 / upper, 1 / lower if lower > 0 else math.inf


def inverse_and_logdet(
    bijection: Bijection,
    z: Tensor,  # (N, *F)
    *,
    logdet: LogDets | None = None,
) -> tuple[Tensor, Tensor]:  # (N, *E), (N,)
    r"""Map z back to x with the log-determinant of that, in one pass: that of a block is taken where it was solved.

    .. math:: \log|\det dx/dz| = -\log|\det dz/dx|

    Args:
        bijection: the map; those that a :class:`Chain` or a :class:`FactorOut` holds are inverted one by one.
        z: latents.
        logdet: replaces the estimators of the residual blocks.

    Returns:
        x, and log|det dx/dz| of every sample.

    Example:
        >>> import iresnet as ir
        >>> chain = Chain([ir.Squeeze(), ir.Flatten((4, 1, 1))])
        >>> x, logdet = inverse_and_logdet(chain, torch.ones(2, 4))
        >>> x.shape, logdet.tolist()
        (torch.Size([2, 1, 2, 2]), [0.0, 0.0])
    """
    match bijection:
        case Chain():
            total = z.new_zeros(len(z))
            for inner in reversed(bijection.bijections):
                z, part = inverse_and_logdet(inner, z, logdet=logdet)  # pyright: ignore[reportArgumentType]
                total = total + part
            return z, total
        case Inverse():
            return bijection.bijection.forward_and_logdet(z, logdet=logdet)
        case FactorOut():
            out, latents = bijection.split_latents(z)
            kept, total = inverse_and_logdet(bijection.rest, latents, logdet=logdet)
            return torch.cat([out, kept], dim=1), total
    x = bijection.inverse(z)
    return x, -bijection.forward_and_logdet(x, logdet=logdet)[1]
