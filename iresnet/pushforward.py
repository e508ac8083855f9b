"""Flows among the distributions of torch: samples with gradients, and log-densities that agree with themselves."""

__all__ = ["FlowTransform", "as_distribution"]

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution, constraints
from torch.distributions.transforms import Transform

from iresnet.bases import Base
from iresnet.bijections import Affine, Bijection, Chain, Logit, as_they_are
from iresnet.devices import is_readable, kept_random_state
from iresnet.errors import IResNetError
from iresnet.flows import Flow
from iresnet.lipschitz import hold_weights


class FlowTransform(Transform):
    r"""Map from latents to data, x = f^-1(z), as a transform of :mod:`torch.distributions`.

    .. math:: \log|\det dx/dz| = -\log|\det df/dx|

    Estimates of log-determinants are random, but with ``cache_size=1`` they belong to the data: as long as the
    parameters stay as they are, equal tensors get equal estimates, so that ``log_prob`` of one sample gives one number,
    of a clone of it too, in any order. New data, and parameters that an optimizer has moved, get new ones. Nothing of
    an earlier graph is used again: each call can be differentiated, by the data and by the parameters.

    In train mode power iterations advance once for each change of the parameters, so samples and their densities are
    of one map. ActNorms that no data has initialized stay as they are, and count as initialized once they are
    fitted.

    Args:
        flow: the density; its bijection is used.
        cache_size: 1, or 0 to draw estimates anew at each call.

    Shape:
        (\*, D) -> (\*, \*E).

    Raises:
        IResNetError: when the model is no flow, or the cache size neither 0 nor 1; at use, for events of another shape.

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.ResidualBlock(ir.networks.mlp(2, 16), logdet=ir.Krylov(2)), ir.StandardNormal(2))
        >>> transform = FlowTransform(flow)
        >>> z = torch.randn(3, 5, 2)
        >>> x = transform(z)
        >>> logdet = transform.log_abs_det_jacobian(z, x)
        >>> logdet.shape, torch.equal(logdet, transform.log_abs_det_jacobian(z, x.clone()))
        (torch.Size([3, 5]), True)
    """

    bijective = True
    domain = constraints.real_vector

    def __init__(self, flow: Flow, cache_size: int = 1):
        if not isinstance(flow, Flow):
            hint = "; take its .flow" if isinstance(getattr(flow, "flow", None), Flow) else ""
            raise IResNetError(f"a distribution is made of a Flow, got {type(flow).__name__}{hint}")
        if cache_size not in (0, 1):
            raise IResNetError(f"cache_size must be 0 or 1, got {cache_size}")
        super().__init__()  # torch's own cache would give out latents of old weights, with a graph that points backward
        self.flow = flow
        self.cache_size = cache_size
        self.event_shape = _event_shape(flow)
        self._salt = int(torch.randint(2**62, (), device="cpu"))
        self._normalized_for: int | None = None  # version of the parameters
        self._scored: tuple[Tensor, Tensor, Tensor] | None = None  # z and log-determinant of the x that was inverted

    @property
    def codomain(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Set of the data: real numbers, between bounds where the bijection begins with a logit."""
        return constraints.independent(_range(self.flow.bijection), len(self.event_shape))

    def with_cache(self, cache_size: int = 1) -> "FlowTransform":
        """Return the transform with another cache size."""
        return self if cache_size == self.cache_size else FlowTransform(self.flow, cache_size)

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of the data of latents of a shape."""
        return _replace_events(shape, (self.flow.base.features,), self.event_shape)

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of the latents of data of a shape."""
        return _replace_events(shape, self.event_shape, (self.flow.base.features,))

    def log_abs_det_jacobian(
        self,
        x: Tensor,  # (*, D)
        y: Tensor,  # (*, *E)
    ) -> Tensor:  # (*,)
        """Return log|det dy/dx| of latents x and data y, in the letters of torch."""
        scored, self._scored = self._scored, None
        if scored and scored[0] is y and scored[1] is x:
            return -scored[2]
        return -self._encode(y)[1]

    def _call(self, x: Tensor) -> Tensor:
        shape = self.forward_shape(x.shape)
        with self._one_map():
            return self.flow.decode(_as_batch(x, 1)).reshape(shape)

    def _inverse(self, y: Tensor) -> Tensor:
        z, logdet = self._encode(y)
        self._scored = (y, z, logdet)
        return z

    def _encode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to latents with their log-determinants, in one pass."""
        shape = self.inverse_shape(y.shape)
        with self._one_map(), self._draws_of(y):
            density = self.flow.density(_as_batch(y, len(self.event_shape)))
        return density.z.reshape(shape), density.logdet.reshape(shape[:-1])

    @contextmanager
    def _one_map(self) -> Iterator[None]:
        """Hold the weights, normalized anew when the parameters have changed."""
        version = _version(self.flow)
        fitted = self.flow.training and torch.is_grad_enabled()
        with (
            hold_weights(self.flow, iterate=version != self._normalized_for),
            as_they_are(self.flow, from_now_on=fitted),
        ):
            self._normalized_for = version
            yield

    @contextmanager
    def _draws_of(self, y: Tensor) -> Iterator[None]:
        """Draw random numbers that are a function of the data and the version of the parameters."""
        seeded = self.cache_size == 1 and is_readable(y)
        with kept_random_state() if seeded else nullcontext():
            if seeded:
                content = y.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
                facts = f"{self._salt} {_version(self.flow)} {y.dtype} {tuple(y.shape)} ".encode()
                digest = hashlib.blake2b(facts + content, digest_size=8).digest()
                torch.manual_seed(int.from_bytes(digest, "big") >> 1)
            yield


def as_distribution(flow: Flow, *, validate_args: bool | None = None) -> TransformedDistribution:
    r"""Wrap a flow as a distribution of torch, with its event shape and support.

    ``rsample`` carries the implicit gradient of the inverse, by the latents and by the parameters of the bijection and
    of the base density; ``log_prob`` agrees with itself, see :class:`FlowTransform`. So a flow can be fitted to a known
    density p by the reverse divergence :math:`E_q[\log q(x) - \log p(x)]`.

    Args:
        flow: the density. It is used, not copied: what trains the one trains the other.
        validate_args: whether to look if data are in the support, as in torch.

    Returns:
        The distribution, of batch shape ().

    Raises:
        IResNetError: when the model is no flow.

    Reference:
        Variational Inference with Normalizing Flows, Rezende and Mohamed 2015, https://arxiv.org/abs/1505.05770

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.ResidualBlock(ir.networks.mlp(2, 16)), ir.DiagonalNormal(2))
        >>> q, p = as_distribution(flow), torch.distributions.MultivariateNormal(torch.ones(2), torch.eye(2))
        >>> x = q.rsample((100,))
        >>> loss = (q.log_prob(x) - p.log_prob(x)).mean()
        >>> loss.backward()
        >>> q.event_shape, flow.base.mean.grad.shape
        (torch.Size([2]), torch.Size([2]))
    """
    transform = FlowTransform(flow)
    return TransformedDistribution(_Latents(flow.base), transform, validate_args=validate_args)


class _Latents(Distribution):
    """Base density as a distribution, which reads the parameters of the base at each use."""

    arg_constraints = {}  # noqa: RUF012 (as in torch)  # pyright: ignore[reportAssignmentType]
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, base: Base, batch_shape: Sequence[int] = ()):
        self.base = base
        super().__init__(torch.Size(batch_shape), torch.Size((base.features,)), validate_args=False)

    @property
    def has_rsample(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Availability of samples with gradients, see :class:`~iresnet.bases.Base`."""
        return self.base.has_rsample

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "_Latents":
        """Return the distribution of independent copies."""
        return _Latents(self.base, batch_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Draw latents, (\\*, D), with gradients by the parameters of the base."""
        if not self.has_rsample:
            raise IResNetError(
                f"samples of {type(self.base).__name__} have no gradients by its weights: draw them with sample(), or "
                "choose the base density diagonal-normal"
            )
        return self._draw(sample_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Draw latents, (\\*, D), without gradients."""
        with torch.no_grad():
            return self._draw(sample_shape)

    def _draw(self, sample_shape: Sequence[int]) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.base.sample(math.prod(shape[:-1])).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of latents, (\\*,)."""
        return self.base.log_prob(_as_batch(value, 1)).reshape(value.shape[:-1])


# -- what a flow is defined on -----------------------------------------------------------------------------------------


def _event_shape(flow: Flow) -> torch.Size:
    if flow.event_shape is not None:
        return torch.Size(flow.event_shape)
    with kept_random_state():
        return flow.sample(1).shape[1:]


def _replace_events(shape: Sequence[int], event: Sequence[int], other: Sequence[int]) -> torch.Size:
    batch = len(shape) - len(event)
    if batch < 0 or tuple(shape[batch:]) != tuple(event):
        sizes = ", ".join(["*", *map(str, event)])
        raise IResNetError(f"expected events of shape {tuple(event)}, that is ({sizes}), got {tuple(shape)}")
    return torch.Size([*shape[:batch], *other])


def _as_batch(x: Tensor, event_dim: int) -> Tensor:
    """Put all dimensions of a batch, none or several of them, into one."""
    return x[None] if x.dim() == event_dim else x.flatten(0, x.dim() - event_dim - 1)


def _range(bijection: Bijection) -> constraints.Constraint:
    """Return the numbers that an element of the data can be: a logit alone, after fixed scales, bounds them."""
    scales: list[Affine] = []
    for part in bijection.bijections if isinstance(bijection, Chain) else [bijection]:
        match part:
            case Affine():
                scales.append(part)
            case Logit():
                margin = part.alpha / (1 - 2 * part.alpha)
                low, high = torch.tensor(-margin), torch.tensor(1 + margin)
                for scale in reversed(scales):
                    low, high = low * scale.std + scale.mean, high * scale.std + scale.mean
                return constraints.interval(low, high)
            case _:
                break
    return constraints.real


def _version(flow: Flow) -> int:
    """Count the changes of the parameters."""
    return sum(0 if p.is_inference() else p._version for p in flow.parameters())
