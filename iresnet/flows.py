"""Flows: a bijection with a base density."""

__all__ = ["Density", "Flow", "check_data", "check_sampling"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor, nn

from iresnet.assembled import Assembled
from iresnet.bases import Base
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
from iresnet.context import ContextEncoder, at_context
from iresnet.devices import is_readable
from iresnet.errors import IResNetError
from iresnet.lipschitz import hold_weights
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


class Flow(Assembled):
    r"""A density on data: the base density pulled back through a bijection onto vectors.

    .. math:: \log p(x) = \log p_{base}(z) + \log|\det dz/dx|, \quad z = f(x)

    Args:
        bijection: f, (N, \*E) -> (N, D).
        base: density of z.
        event_shape: \*E, so that other data of as many elements are refused; None to refuse other numbers of elements
            alone.
        context_encoder: of a conditional density p(x | context), whose bijection and base density depend on features
            of a context; None without one.

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.ResidualBlock(ir.networks.mlp(2, 16)), ir.StandardNormal(2))
        >>> x = flow.sample(10)
        >>> flow.log_prob(x).shape
        torch.Size([10])
    """

    def __init__(
        self,
        bijection: Bijection,
        base: Base,
        *,
        event_shape: Sequence[int] | None = None,
        context_encoder: ContextEncoder | None = None,
    ):
        super().__init__()
        self.bijection = bijection
        self.base = base
        self.event_shape = None if event_shape is None else tuple(event_shape)
        self.context_encoder = context_encoder

    def given(self, context: Tensor) -> "Flow":
        r"""Return the density p(x | context), with the same parameters: a flow like any other.

        All that a flow does it does at the context: densities, samples, inverses with reports, certificates,
        distributions of torch. The context is encoded once, so for each step of an optimizer ask again.

        Args:
            context: of each sample, (N, K), or classes, (N,) int64, for batches of these N samples; or one for samples
                of any number, (K,), (1, K) or a class, ().

        Raises:
            IResNetError: when the flow depends on no context, or the context has another form than its own.

        Example:
            >>> import iresnet as ir
            >>> flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=8, context=1)
            >>> flow.given(torch.tensor([0.5])).sample(3).shape
            torch.Size([3, 2])
        """
        if self.context_encoder is None:
            raise IResNetError("this flow depends on no context; build one with iresnet.zoo.build(..., context=K)")
        features = self.context_encoder(context)
        bijection, base = at_context(self.bijection, features), at_context(self.base, features)
        flow = Flow(bijection, base, event_shape=self.event_shape)  # pyright: ignore[reportArgumentType]
        flow.training = self.training  # not of the parts, which are shared
        return flow

    def _at(self, context: Tensor | None) -> "Flow":
        return self if context is None else self.given(context)

    def forward(self, x: Tensor) -> Tensor:
        """Return :meth:`log_prob`, so that a flow can be called."""
        return self.log_prob(x)

    def log_prob(
        self,
        x: Tensor,  # (N, *E)
        *,
        context: Tensor | None = None,
        logdet: LogDets | None = None,
    ) -> Tensor:  # (N,)
        """Log-density of data in nats; stochastic unless the estimators are exact or have fixed probes.

        Integers such as pixels have no density: :func:`iresnet.dequantize` adds the uniform noise that makes the
        log-density a bound of their log-probability. Without it the result may be off by half a bit a dimension.

        Args:
            x: data, on the scale that the bijection expects: [0, levels) for dequantized images.
            context: of a conditional density, see :meth:`given`.
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
        return self.density(x, context=context, logdet=logdet).log_prob

    def encode_and_log_prob(
        self, x: Tensor, *, context: Tensor | None = None, logdet: LogDets | None = None
    ) -> tuple[Tensor, Tensor]:
        """Latent vectors, (N, D), and log-densities, (N,), in one pass."""
        density = self.density(x, context=context, logdet=logdet)
        return density.z, density.log_prob

    def density(self, x: Tensor, *, context: Tensor | None = None, logdet: LogDets | None = None) -> Density:
        """Latent vectors and the terms of :meth:`log_prob`, in one pass."""
        self._check(x)
        flow = self._at(context)
        z, total = flow.bijection.forward_and_logdet(x, logdet=logdet)
        if z.shape[1:] != (self.base.features,):
            raise IResNetError(
                f"the bijection maps to events of shape {tuple(z.shape[1:])}, the base density has "
                f"{self.base.features} features; end the bijection with Flatten"
            )
        return Density(z, flow.base.log_prob(z), total)

    def bits_per_dim(
        self, x: Tensor, *, context: Tensor | None = None, logdet: LogDets | None = None
    ) -> Tensor:  # (N,)
        r"""Negative log-density in bits for each element of an event.

        .. math:: -\log p(x) / (D \log 2)
        """
        return -self.log_prob(x, context=context, logdet=logdet) / (self.base.features * math.log(2))

    def encode(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:  # (N, *E) -> (N, D)
        """Map data to latent vectors."""
        self._check(x)
        return self._at(context).bijection(x)

    def decode(self, z: Tensor, *, context: Tensor | None = None) -> Tensor:  # (N, D) -> (N, *E)
        """Map latent vectors to data; warns when an inverse did not converge."""
        check_data(z, "decoding", (self.base.features,), self, finite=False)
        return self._at(context).bijection.inverse(z)

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
        self,
        n: int | Sequence[int],
        *,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""Draw data, (n, \*E), without gradients; :func:`iresnet.as_distribution` draws them with.

        Args:
            n: how many; or the shape of a batch, as in torch.distributions: () for a single event.
            context: of a conditional density, see :meth:`given`: of each sample, or of all.
            temperature: multiplies the standard deviation of the latent; below 1 gives more typical samples.
            generator: source of randomness; torch's global one when None.
        """
        shape = tuple(n) if isinstance(n, Sequence) else (n,)
        check_sampling(min(shape, default=1), temperature)
        with torch.no_grad():
            flow = self._at(context)
            x = flow.decode(flow.base.sample(math.prod(shape), temperature=temperature, generator=generator))
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
