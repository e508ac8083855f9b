"""A bijection with a base density."""

__all__ = ["Density", "Flow", "check_finite", "check_sampling"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iresnet.bijections import Bijection, Inversion, invert
from iresnet.distributions import Base
from iresnet.errors import IResNetError
from iresnet.logdet import LogDetEstimator
from iresnet.solvers import Solver


@dataclass(frozen=True)
class Density:
    r"""A batch after one pass through a flow: latent vectors, and the two terms of their log-density, in nats.

    Attributes:
        z: latent vectors, (N, D).
        log_prior: :math:`\log p_{base}(z)`, (N,).
        logdet: :math:`\log|\det dz/dx|`, (N,).
    """

    z: Tensor
    log_prior: Tensor
    logdet: Tensor

    @property
    def log_prob(self) -> Tensor:  # (N,)
        """The log-density, the sum of the two."""
        return self.log_prior + self.logdet


class Flow(nn.Module):
    r"""A density on data: the base density pulled back through a bijection onto vectors.

    .. math:: \log p(x) = \log p_{base}(z) + \log|\det dz/dx|, \quad z = f(x)

    Args:
        bijection: f, (N, \*E) -> (N, D).
        base: density of z.

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.ResidualBlock(ir.networks.mlp(2, 16)), ir.StandardNormal(2))
        >>> x = flow.sample(10)
        >>> flow.log_prob(x).shape
        torch.Size([10])
    """

    def __init__(self, bijection: Bijection, base: Base):
        super().__init__()
        self.bijection = bijection
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        """Same as :meth:`log_prob`."""
        return self.log_prob(x)

    def log_prob(
        self,
        x: Tensor,  # (N, *E)
        *,
        logdet: LogDetEstimator | None = None,
    ) -> Tensor:  # (N,)
        """Log-density of data in nats; stochastic unless the estimator is exact.

        Args:
            x: data, on the scale that the bijection expects: [0, levels) for dequantised images.
            logdet: for this call, replaces the estimator of every residual block.

        Raises:
            IResNetError: for data that are not finite; not in train mode on an accelerator, which would have to wait.
        """
        return self.density(x, logdet=logdet).log_prob

    def encode_and_log_prob(self, x: Tensor, *, logdet: LogDetEstimator | None = None) -> tuple[Tensor, Tensor]:
        """Latent vectors, (N, D), and log-densities, (N,), in one pass."""
        density = self.density(x, logdet=logdet)
        return density.z, density.log_prob

    def density(self, x: Tensor, *, logdet: LogDetEstimator | None = None) -> Density:
        """Latent vectors and the terms of :meth:`log_prob`, in one pass."""
        check_finite(x, self.training)
        z, total = self.bijection.forward_and_logdet(x, logdet=logdet)
        if z.shape[1:] != (self.base.features,):
            raise IResNetError(
                f"the bijection maps to events of shape {tuple(z.shape[1:])}, the base density has "
                f"{self.base.features} features; end the bijection with Flatten"
            )
        return Density(z, self.base.log_prob(z), total)

    def bits_per_dim(self, x: Tensor, *, logdet: LogDetEstimator | None = None) -> Tensor:  # (N,)
        r"""Negative log-density in bits for each element of an event.

        .. math:: -\log p(x) / (D \log 2)
        """
        return -self.log_prob(x, logdet=logdet) / (x[0].numel() * math.log(2))

    def encode(self, x: Tensor) -> Tensor:  # (N, *E) -> (N, D)
        """Map data to latent vectors."""
        check_finite(x, self.training)
        return self.bijection(x)

    def decode(self, z: Tensor) -> Tensor:  # (N, D) -> (N, *E)
        """Map latent vectors to data; warns when an inverse did not converge."""
        return self.bijection.inverse(z)

    def invert(self, z: Tensor, *, solver: Solver | None = None) -> Inversion:
        """Map latent vectors to data and report on every residual block; see :func:`iresnet.bijections.invert`.

        Args:
            z: latent vectors, (N, D).
            solver: for this call, replaces the solver of every residual block.
        """
        return invert(self.bijection, z, solver=solver)

    def sample(self, n: int, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw data, (n, \*E), without gradients.

        Args:
            n: how many.
            temperature: multiplies the standard deviation of the latent; below 1 gives more typical samples.
            generator: source of randomness; torch's global one when None.
        """
        check_sampling(n, temperature)
        with torch.no_grad():
            return self.decode(self.base.sample(n, temperature=temperature, generator=generator))


def check_sampling(n: int, temperature: float) -> None:
    """Refuse what cannot be drawn."""
    if n < 1:
        raise IResNetError(f"n must be at least 1, got {n}")
    if not temperature >= 0:
        raise IResNetError(f"temperature must not be negative, got {temperature}")


def check_finite(x: Tensor, training: bool) -> None:  # (N, *E)
    """Refuse data that are not finite, where asking does not make a training step wait for its device."""
    if (training and not x.is_cpu) or x.is_meta or torch.compiler.is_compiling():
        return
    finite = torch.isfinite(x).flatten(1).all(1)
    if not bool(finite.all()):
        bad = torch.nonzero(~finite).flatten().tolist()
        raise IResNetError(
            f"{len(bad)} of {len(x)} samples have values that are not finite (first: number {bad[0]}); remove or "
            "impute them"
        )
