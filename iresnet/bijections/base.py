"""The contract of an invertible map with a log-determinant, and the composition of such maps."""

__all__ = ["Bijection", "Chain", "Solve"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from iresnet.logdet import LogDetEstimator
from iresnet.solvers import Solution

if TYPE_CHECKING:
    from iresnet.bijections.residual import ResidualBlock

Solve = Callable[["ResidualBlock", Tensor], Solution]
"""How a residual block is inverted: from the block and its output to the solution for its input."""


class Bijection(nn.Module, ABC):
    r"""An invertible map x -> z. Forward is from data to latent, and a log-determinant is always *added*.

    .. math:: \log p(x) = \log p(z) + \log |\det dz/dx|

    Event shapes are written \*E (of x) and \*F (of z).
    """

    @abstractmethod
    def forward(
        self,
        x: Tensor,  # (N, *E)
    ) -> Tensor:  # (N, *F)
        """Map x to z, without the cost of a log-determinant."""

    @abstractmethod
    def forward_and_logdet(
        self,
        x: Tensor,  # (N, *E)
        *,
        logdet: LogDetEstimator | None = None,
    ) -> tuple[Tensor, Tensor]:  # (N, *F), (N,)
        """Map x to z and return log|det dz/dx| of every sample, in nats.

        Args:
            x: data.
            logdet: for this call, replaces the estimator of every residual block inside.
        """

    @abstractmethod
    def inverse(
        self,
        z: Tensor,  # (N, *F)
        *,
        solve: Solve | None = None,
    ) -> Tensor:  # (N, *E)
        """Map z back to x.

        Args:
            z: latents.
            solve: for this call, solves every residual block inside, and has the solutions to report. Without it a
                block uses its own solver, and warns when a sample did not converge.
        """


class Chain(Bijection):
    """Bijections one after the other: the first is nearest to the data.

    Args:
        bijections: the parts, in the order of the forward direction.

    Example:
        >>> import torch, iresnet as ir
        >>> chain = ir.Chain([ir.Affine(mean=1.0, std=2.0), ir.Flatten((3, 2, 2))])
        >>> z, logdet = chain.forward_and_logdet(torch.ones(5, 3, 2, 2))
        >>> z.shape, bool(torch.allclose(logdet, torch.tensor(-12 * 0.6931472)))
        (torch.Size([5, 12]), True)
    """

    def __init__(self, bijections: Iterable[Bijection]):
        super().__init__()
        self.bijections = nn.ModuleList(bijections)

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        for bijection in self.bijections:
            x = bijection(x)
        return x

    def forward_and_logdet(self, x: Tensor, *, logdet: LogDetEstimator | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`."""
        total = x.new_zeros(len(x))
        for bijection in self.bijections:
            x, part = bijection.forward_and_logdet(x, logdet=logdet)  # pyright: ignore[reportCallIssue]
            total = total + part
        return x, total

    def inverse(self, z: Tensor, *, solve: Solve | None = None) -> Tensor:
        """See :meth:`Bijection.inverse`."""
        for bijection in reversed(self.bijections):
            z = bijection.inverse(z, solve=solve)  # pyright: ignore[reportCallIssue]
        return z
