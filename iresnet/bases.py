"""Base densities: laws of latent vectors."""

__all__ = ["BASES", "Base", "ContextNormal", "DiagonalNormal", "MixtureNormal", "StandardNormal"]

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from iresnet.context import WITHOUT_CONTEXT, AtContext, Conditional
from iresnet.devices import random_device
from iresnet.errors import IResNetError, RecipeError


class Base(nn.Module, ABC):
    """Density of latent vectors (N, D) that can be evaluated and sampled.

    Args:
        features: D.

    Attributes:
        has_rsample: whether the derivatives of samples by the parameters are those of the density.
    """

    has_rsample = True

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

    @property
    def has_moments(self) -> bool:
        """True for a density known to be normal with independent features: :meth:`moments` is there."""
        return type(self).moments is not Base.moments

    def standardize(
        self,
        z: Tensor,  # (N, D)
    ) -> Tensor:  # (N, D)
        """Map vectors such that those of this density become standard normal with independent features.

        Default: subtract the mean of :meth:`moments` and divide by the standard deviation.

        Example:
            >>> MixtureNormal(2).standardize(torch.zeros(3, 2)).shape
            torch.Size([3, 2])
        """
        mean, std = self.moments()
        return (z - mean) / std

    def moments(self) -> tuple[Tensor, Tensor]:  # (D,) or ()
        """Return mean and standard deviation of a normal density with independent features; spherical paths need them.

        Raises:
            RecipeError: for a density that is not normal with independent features.
        """
        raise RecipeError(
            f"{type(self).__name__} is not known to be normal with independent features, as spherical paths assume: "
            "take linear paths (--kind linear), or train with --model.base diagonal-normal; if it is normal, give it "
            "moments(), and else standardize() for tests of latents"
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
        return _standard_log_prob((z - self.mean) * torch.exp(-self.log_std)) - self.log_std.sum(-1)

    def sample(self, n: int, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`Base.sample`."""
        return self.mean + temperature * self.log_std.exp() * _noise(self.mean, n, self.features, generator)

    def moments(self) -> tuple[Tensor, Tensor]:
        """See :meth:`Base.moments`."""
        return self.mean, self.log_std.exp()


class MixtureNormal(Base):
    r"""Mixture of normal densities with learned weights, means and standard deviations of each feature.

    .. math:: p(z) = \sum_k w_k \, N(z; \mu_k, \mathrm{diag}(\sigma_k^2))

    For data of separate parts: blocks stretch distances by bounded factors, so that they cannot tear a single normal
    density apart without leaving bridges. At first all standard deviations are :math:`K^{-1/D}` and the means are drawn
    such that covariances add up to I; a single component is N(0, I).

    Args:
        features: D.
        components: K.

    Raises:
        RecipeError: for less than one component.

    Example:
        >>> base, z = MixtureNormal(3, components=1), torch.randn(4, 3)
        >>> bool(torch.allclose(base.log_prob(z), StandardNormal(3).log_prob(z)))
        True
    """

    has_rsample = False

    def __init__(self, features: int, components: int = 64):
        super().__init__(features)
        if components < 1:
            raise RecipeError(f"a mixture has at least 1 component, got {components}")
        std = components ** (-1 / features)
        self.logits = nn.Parameter(torch.zeros(components))
        self.mean = nn.Parameter(math.sqrt(1 - std**2) * torch.randn(components, features))
        self.log_std = nn.Parameter(torch.full((components, features), math.log(std)))

    def log_prob(self, z: Tensor) -> Tensor:
        """See :meth:`Base.log_prob`."""
        self._check(z)
        of_components = _standard_log_prob(self._by_component(z)) - self.log_std.sum(-1)
        return torch.logsumexp(self.logits.log_softmax(0) + of_components, 1)

    def standardize(self, z: Tensor) -> Tensor:
        r"""See :meth:`Base.standardize`: Rosenblatt's transform, feature after feature given those before it.

        .. math:: u_i = \Phi^{-1}(F(z_i \mid z_1, \dots, z_{i - 1}))

        Reference:
            Remarks on a Multivariate Transformation, Rosenblatt 1952, https://doi.org/10.1214/aoms/1177729394
        """
        self._check(z)
        y = self._by_component(z.double())  # so that tails are told apart up to 37 standard deviations
        before = (-0.5 * y.square() - self.log_std).cumsum(-1).roll(1, -1)
        before[..., 0] = 0
        weights = (self.logits[:, None] + before).log_softmax(1)  # of components, given the features before
        below, above = (torch.logsumexp(weights + torch.special.log_ndtr(sign * y), 1) for sign in (1, -1))
        # From the smaller tail, which is known to more digits.
        tail = torch.minimum(below, above).exp().clamp(min=torch.finfo(torch.float64).tiny)
        return torch.where(below < above, 1, -1) * torch.special.ndtri(tail)

    def _by_component(self, z: Tensor) -> Tensor:  # (N, D) -> (N, K, D)
        """Subtract the mean of each component and divide by its standard deviation."""
        return (z[:, None] - self.mean) * torch.exp(-self.log_std)

    def sample(self, n: int, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """See :meth:`Base.sample`: the temperature multiplies the standard deviations of the components."""
        ends = self.logits.detach().softmax(0).cumsum(0)
        uniform = torch.rand(n, dtype=ends.dtype, device=random_device(generator, ends), generator=generator)
        k = torch.searchsorted(ends[:-1], uniform.to(ends.device))
        return self.mean[k] + temperature * self.log_std[k].exp() * _noise(self.mean, n, self.features, generator)

    def extra_repr(self) -> str:
        """Describe the density."""
        return f"{self.features}, components={len(self.logits)}"


class ContextNormal(Base, Conditional):
    r"""Normal density whose mean and logarithm of standard deviation are affine functions of a context.

    .. math:: \mu(c) = \mu + A c, \quad \log \sigma(c) = s + B c

    A and B are 0 at first.

    Args:
        features: D.
        context: K, features of the context.

    Example:
        >>> base = ContextNormal(3, context=2)
        >>> base.at(torch.ones(5, 2)).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(self, features: int, context: int):
        super().__init__(features)
        self.context = context
        self.mean = nn.Linear(context, features)
        self.log_std = nn.Linear(context, features)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def at(self, c: Tensor) -> Base:
        """See :meth:`Conditional.at`."""
        return _Normal(self.mean(c), self.log_std(c))

    def log_prob(self, z: Tensor) -> Tensor:  # noqa: ARG002
        """Refuse to run without a context."""
        raise IResNetError(WITHOUT_CONTEXT)

    def sample(self, n: int, **_: Any) -> Tensor:  # noqa: ARG002
        """Refuse to run without a context."""
        raise IResNetError(WITHOUT_CONTEXT)


class _Normal(AtContext, DiagonalNormal):
    """Normal densities of given means and logarithms of standard deviations: of each vector, (N, D), or all, (1, D)."""

    def __init__(self, mean: Tensor, log_std: Tensor):
        Base.__init__(self, mean.shape[1])
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("log_std", log_std, persistent=False)

    def moments(self) -> tuple[Tensor, Tensor]:
        """See :meth:`Base.moments`."""
        return self.mean.squeeze(0), self.log_std.exp().squeeze(0)


BASES: dict[str, type[Base]] = {
    "standard-normal": StandardNormal,
    "diagonal-normal": DiagonalNormal,
    "mixture-normal": MixtureNormal,
}
"""Base densities by name."""


def _standard_log_prob(z: Tensor) -> Tensor:  # (*, D) -> (*,)
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))


def _noise(like: Tensor, n: int, features: int, generator: torch.Generator | None) -> Tensor:
    device = random_device(generator, like)
    return torch.randn(n, features, dtype=like.dtype, device=device, generator=generator).to(like.device)
