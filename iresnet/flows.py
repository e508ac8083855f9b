"""Flows: a bijection with a base density."""

__all__ = [
    "BASES",
    "Base",
    "Density",
    "DiagonalNormal",
    "Flow",
    "StandardNormal",
    "check_data",
    "check_sampling",
]

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor, nn

from iresnet.assembled import Assembled
from iresnet.bijections import (
    Bijection,
    Inversion,
    LogDets,
    as_they_are,
    check_dtype,
    check_events,
    inverse_and_logdet,
    invert,
)
from iresnet.devices import is_readable, random_device
from iresnet.errors import IResNetError, RecipeError
from iresnet.lipschitz import hold_weights
from iresnet.solvers import Solver

# -- base densities ----------------------------------------------------------------------------------------------------


class Base(nn.Module, ABC):
    """Density of latent vectors (N, D) that can be evaluated and sampled.

    Args:
        features: D.
    """

    def __init__(self, features: int):
        super().__init__()
        self.features = features

    @abstractmethod
    def log_prob(
        self,
        z: Tensor,  # (N, D)
    ) -> Tensor:  # (N,)
        """Return the log-density in nats."""

    @abstractmethod
    def sample(self, n: int, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:  # (n, D)
        """Draw ``n`` vectors, with the standard deviation multiplied by ``temperature``."""

    def _check(self, z: Tensor) -> None:
        if z.dim() != 2 or z.shape[1] != self.features or not z.is_floating_point():
            raise RecipeError(
                f"this base density takes real vectors of shape (N, {self.features}), got {tuple(z.shape)}, {z.dtype}"
            )

    def moments(self) -> tuple[Tensor, Tensor]:  # (D,) or ()
        """Return mean and standard deviation of a normal density; spherical paths and tests of latents need them.

        Raises:
            RecipeError: for a density that is not normal with independent features.
        """
        raise RecipeError(
            f"{type(self).__name__} is not known to be normal: if it is, with independent features, give it moments()"
        )


class StandardNormal(Base):
    r"""Standard normal density N(0, I).

    Args:
        features: D.

    Example:
        >>> base = StandardNormal(2)
        >>> bool(torch.isclose(base.log_prob(torch.zeros(1, 2)), -torch.tensor(2 * math.pi).log()))
        True
    """

    anchor: Tensor

    def __init__(self, features: int):
        super().__init__(features)
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # carries dtype and device

    def log_prob(self, z: Tensor) -> Tensor:
        """See :meth:`Base.log_prob`."""
        self._check(z)
        return _standard_log_prob(z)

    def sample(self, n: int, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`Base.sample`."""
        return temperature * _noise(self.anchor, n, self.features, generator)

    def moments(self) -> tuple[Tensor, Tensor]:
        """See :meth:`Base.moments`."""
        return self.anchor, self.anchor + 1


class DiagonalNormal(Base):
    r"""Normal density with learned mean and standard deviation of each feature, N(0, I) at first.

    .. math:: \log p(z) = -\sum_i \tfrac{1}{2} ((z_i - \mu_i) e^{-s_i})^2 + s_i + \tfrac{1}{2} \log 2\pi

    Args:
        features: D.

    Example:
        >>> z = torch.randn(4, 3)
        >>> bool(torch.allclose(DiagonalNormal(3).log_prob(z), StandardNormal(3).log_prob(z)))
        True
    """

    def __init__(self, features: int):
        super().__init__(features)
        self.mean = nn.Parameter(torch.zeros(features))
        self.log_std = nn.Parameter(torch.zeros(features))

    def log_prob(self, z: Tensor) -> Tensor:
        """See :meth:`Base.log_prob`."""
        self._check(z)
        return _standard_log_prob((z - self.mean) * torch.exp(-self.log_std)) - self.log_std.sum()

    def sample(self, n: int, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`Base.sample`."""
        return self.mean + temperature * self.log_std.exp() * _noise(self.mean, n, self.features, generator)

    def moments(self) -> tuple[Tensor, Tensor]:
        """See :meth:`Base.moments`."""
        return self.mean, self.log_std.exp()


BASES: dict[str, type[Base]] = {"standard-normal": StandardNormal, "diagonal-normal": DiagonalNormal}
"""Base densities by name."""


def _standard_log_prob(z: Tensor) -> Tensor:
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))


def _noise(like: Tensor, n: int, features: int, generator: torch.Generator | None) -> Tensor:
    device = random_device(generator, like)
    return torch.randn(n, features, dtype=like.dtype, device=device, generator=generator).to(like.device)


# -- flows -------------------------------------------------------------------------------------------------------------


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


class Flow(Assembled):
    r"""A density on data: the base density pulled back through a bijection onto vectors.

    .. math:: \log p(x) = \log p_{base}(z) + \log|\det dz/dx|, \quad z = f(x)

    Args:
        bijection: f, (N, \*E) -> (N, D).
        base: density of z.
        event_shape: \*E, so that other data of as many elements are refused; None to refuse other numbers of elements
            alone.

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.ResidualBlock(ir.networks.mlp(2, 16)), ir.StandardNormal(2))
        >>> x = flow.sample(10)
        >>> flow.log_prob(x).shape
        torch.Size([10])
    """

    def __init__(self, bijection: Bijection, base: Base, *, event_shape: Sequence[int] | None = None):
        super().__init__()
        self.bijection = bijection
        self.base = base
        self.event_shape = None if event_shape is None else tuple(event_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return :meth:`log_prob`, so that a flow can be called."""
        return self.log_prob(x)

    def log_prob(
        self,
        x: Tensor,  # (N, *E)
        *,
        logdet: LogDets | None = None,
    ) -> Tensor:  # (N,)
        """Log-density of data in nats; stochastic unless the estimators are exact or have fixed probes.

        Integers such as pixels have no density: :func:`iresnet.dequantize` adds the uniform noise that makes the
        log-density a bound of their log-probability. Without it the result may be off by half a bit a dimension.

        Args:
            x: data, on the scale that the bijection expects: [0, levels) for dequantized images.
            logdet: for this call, replaces the estimator of every residual block.

        Raises:
            IResNetError: for integers, for data of another shape or type than the model's, and for data that are not
                finite; the last not in train mode on an accelerator, which would have to wait.

        Example:
            >>> import iresnet as ir
            >>> flow = ir.zoo.build("iresnet-multiscale", shape=(1, 4, 4), blocks=(1,), strides=(1,), hidden=4)
            >>> images = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
            >>> flow.log_prob(ir.dequantize(images, levels=256)).shape
            torch.Size([2])
        """
        return self.density(x, logdet=logdet).log_prob

    def encode_and_log_prob(self, x: Tensor, *, logdet: LogDets | None = None) -> tuple[Tensor, Tensor]:
        """Latent vectors, (N, D), and log-densities, (N,), in one pass."""
        density = self.density(x, logdet=logdet)
        return density.z, density.log_prob

    def density(self, x: Tensor, *, logdet: LogDets | None = None) -> Density:
        """Latent vectors and the terms of :meth:`log_prob`, in one pass."""
        self._check(x)
        z, total = self.bijection.forward_and_logdet(x, logdet=logdet)
        if z.shape[1:] != (self.base.features,):
            raise IResNetError(
                f"the bijection maps to events of shape {tuple(z.shape[1:])}, the base density has "
                f"{self.base.features} features; end the bijection with Flatten"
            )
        return Density(z, self.base.log_prob(z), total)

    def bits_per_dim(self, x: Tensor, *, logdet: LogDets | None = None) -> Tensor:  # (N,)
        r"""Negative log-density in bits for each element of an event.

        .. math:: -\log p(x) / (D \log 2)
        """
        return -self.log_prob(x, logdet=logdet) / (self.base.features * math.log(2))

    def encode(self, x: Tensor) -> Tensor:  # (N, *E) -> (N, D)
        """Map data to latent vectors."""
        self._check(x)
        return self.bijection(x)

    def decode(self, z: Tensor) -> Tensor:  # (N, D) -> (N, *E)
        """Map latent vectors to data; warns when an inverse did not converge."""
        check_data(z, "decoding", (self.base.features,), self, finite=False)
        return self.bijection.inverse(z)

    def decode_and_logdet(self, z: Tensor, *, logdet: LogDets | None = None) -> tuple[Tensor, Tensor]:
        r"""Map latent vectors to data, (N, \*E), with the log-determinant of the decoding, (N,), in one pass.

        .. math:: \log p(x) = \log p_{base}(z) - \log|\det dx/dz|, \quad x = f^{-1}(z)

        Both are differentiable, by z and by the parameters. The map is that of the last pass in train mode: no power
        iteration advances, and no ActNorm takes its scale from what is decoded.

        Args:
            z: latent vectors, (N, D).
            logdet: for this call, replaces the estimator of every residual block.

        Returns:
            x, and :math:`\log|\det dx/dz|`; that of :meth:`density`, of the encoding, is its negative.

        Warns:
            ConvergenceWarning: when an inverse did not converge.

        Example:
            >>> import iresnet as ir
            >>> flow = ir.Flow(ir.ResidualBlock(ir.networks.mlp(2, 16)), ir.StandardNormal(2)).eval()
            >>> x, logdet = flow.decode_and_logdet(torch.randn(5, 2))
            >>> bool(torch.allclose(logdet, -flow.density(x).logdet, atol=1e-4))
            True
        """
        check_data(z, "decoding", (self.base.features,), self, finite=False)
        with hold_weights(self, iterate=False), as_they_are(self):
            return inverse_and_logdet(self.bijection, z, logdet=logdet)

    def invert(self, z: Tensor, *, solver: Solver | None = None) -> Inversion:
        """Map latent vectors to data and report on every residual block; see :func:`iresnet.bijections.invert`.

        Args:
            z: latent vectors, (N, D).
            solver: for this call, replaces the solver of every residual block.
        """
        check_data(z, "decoding", (self.base.features,), self, finite=False)
        return invert(self.bijection, z, solver=solver)

    def sample(
        self, n: int | Sequence[int], *, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        r"""Draw data, (n, \*E), without gradients; :func:`iresnet.as_distribution` draws them with.

        Args:
            n: how many; or the shape of a batch, as in torch.distributions: () for a single event.
            temperature: multiplies the standard deviation of the latent; below 1 gives more typical samples.
            generator: source of randomness; torch's global one when None.
        """
        shape = tuple(n) if isinstance(n, Sequence) else (n,)
        check_sampling(min(shape, default=1), temperature)
        with torch.no_grad():
            x = self.decode(self.base.sample(math.prod(shape), temperature=temperature, generator=generator))
        return x.reshape(*shape, *x.shape[1:])

    def _check(self, x: Tensor) -> None:
        check_data(x, "this flow", self.event_shape or (...,), self)
        if x.shape[1:].numel() != self.base.features:
            raise IResNetError(
                f"this flow models events of {self.base.features} elements, got a batch of shape {tuple(x.shape)}; of "
                "a single event x make a batch with x[None]"
            )


def check_sampling(n: int, temperature: float) -> None:
    """Refuse what cannot be drawn."""
    if n < 1:
        raise IResNetError(f"n must be at least 1, got {n}")
    if not temperature >= 0:
        raise IResNetError(f"temperature must not be negative, got {temperature}")


def check_data(
    x: Tensor, what: str, shape: tuple[int | EllipsisType | None, ...], model: nn.Module, *, finite: bool = True
) -> None:
    """Refuse data that are not what a model takes.

    Args:
        x: what came.
        what: takes it, to begin messages with.
        shape: of an event, see :func:`~iresnet.bijections.check_events`.
        model: gives the type of numbers.
        finite: whether to look for values that are not finite, where asking makes no training step wait for its device.

    Raises:
        IResNetError: with what was expected, what came and what to do.
    """
    check_events(x, what, shape)
    check_dtype(x, what, model)
    if not finite or (model.training and not x.is_cpu) or not is_readable(x):
        return
    sound = torch.isfinite(x).flatten(1).all(1)
    if not bool(sound.all()):
        bad = torch.nonzero(~sound).flatten().tolist()
        raise IResNetError(
            f"{len(bad)} of {len(x)} samples have values that are not finite (first: number {bad[0]}); remove or "
            "impute them"
        )
