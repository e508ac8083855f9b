"""Elementwise maps: fixed ones between data and the model's scale, and a learned scale and shift."""

__all__ = [
    "ActNorm",
    "Affine",
    "Logit",
    "as_they_are",
]

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from iresnet.bijections.base import Bijection, LogDets, Report, check_events
from iresnet.bounds import upper_bound
from iresnet.devices import is_differentiating, is_readable, is_transforming
from iresnet.errors import IResNetError
from iresnet.precision import without_autocast
from iresnet.renamed import old_attribute
from iresnet.solvers import Solver

# -- fixed -------------------------------------------------------------------------------------------------------------


class Affine(Bijection):
    r"""Standardize with fixed numbers.

    .. math:: z = (x - m) / s, \quad \log|\det dz/dx| = -\sum_i \log s_i

    Args:
        mean: m, a number or a tensor that broadcasts against an event (one a channel: (C, 1, 1)).
        std: s > 0, likewise.

    Shape:
        (N, \*E) -> the same.

    Raises:
        IResNetError: when ``std`` is not positive and finite.

    Example:
        >>> Affine(mean=128.0, std=256.0)(torch.tensor([[0.0, 256.0]]))
        tensor([[-0.5000,  0.5000]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Tensor = 0.0, std: float | Tensor = 1.0):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.get_default_dtype()).clone())
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.get_default_dtype()).clone())
        if not bool((self.std > 0).all() & torch.isfinite(self.std).all() & torch.isfinite(self.mean).all()):
            raise IResNetError(f"Affine needs a finite mean and a finite positive std, got {mean} and {std}")

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        self._check(x)
        return (x - self.mean) / self.std

    def forward_and_logdet(
        self,
        x: Tensor,
        *,
        logdet: LogDets | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`."""
        z = self(x)
        return z, -self.std.log().expand(x.shape[1:]).sum().to(z.dtype).expand(x.shape[0])

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:  # noqa: ARG002
        """See :meth:`Bijection.inverse`."""
        self._check(z)
        return z * self.std + self.mean

    def stretch(self, lipschitz: Callable[[nn.Module], float] = upper_bound) -> tuple[float, float]:  # noqa: ARG002
        """See :meth:`Bijection.stretch`."""
        return 1 / float(self.std.max()), 1 / float(self.std.min())

    def _check(self, x: Tensor) -> None:
        check_events(x, "Affine")
        event = tuple(x.shape[1:])
        for tensor in (self.mean, self.std):
            sizes = zip(reversed(tensor.shape), reversed(event), strict=False)
            if tensor.dim() > len(event) or any(size not in (1, n) for size, n in sizes):
                raise IResNetError(
                    f"Affine has a mean of shape {tuple(self.mean.shape)} and a std of shape {tuple(self.std.shape)}, "
                    f"which do not broadcast to events of shape {event}, got batches {tuple(x.shape)}"
                )

    def extra_repr(self) -> str:
        """Describe the map."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


class Logit(Bijection):
    r"""Stretch the unit interval over the real line.

    .. math:: z = \mathrm{logit}(\alpha + (1 - 2\alpha) x), \quad x \in [0, 1]

    Args:
        alpha: keeps the ends finite, in (0, 0.5).

    Shape:
        (N, \*E) -> the same.

    Raises:
        IResNetError: when ``alpha`` is outside (0, 0.5), and on a CPU for data that have no
            logit.

    Reference:
        Density Estimation using Real NVP, Dinh, Sohl-Dickstein and Bengio 2017, https://arxiv.org/abs/1605.08803

    Example:
        >>> x = torch.tensor([[0.0, 0.25, 1.0]])
        >>> bool(torch.allclose(Logit().inverse(Logit()(x)), x, atol=1e-6))
        True
    """

    def __init__(self, alpha: float = 0.05):
        super().__init__()
        if not 0 < alpha < 0.5:
            raise IResNetError(f"alpha must lie in (0, 0.5), got {alpha}")
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        check_events(x, "Logit")
        if x.is_cpu and is_readable(x) and x.numel():
            low, high = (float(bound) for bound in x.detach().aminmax())
            margin = self.alpha / (1 - 2 * self.alpha)  # within it lies what the inverse gives
            if not -margin <= low <= high <= 1 + margin:
                raise IResNetError(f"Logit takes numbers in [0, 1], got {low:g} to {high:g}; scale the data before it")
        return torch.logit(self.alpha + (1 - 2 * self.alpha) * x)

    def forward_and_logdet(
        self,
        x: Tensor,
        *,
        logdet: LogDets | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`."""
        z = self(x)
        # dz/dy = 1 / (y (1 - y)) with y = sigmoid(z), so log dz/dy = softplus(z) + softplus(-z).
        slope = F.softplus(z) + F.softplus(-z) + math.log(1 - 2 * self.alpha)
        return z, slope.flatten(1).sum(1)

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:  # noqa: ARG002
        """See :meth:`Bijection.inverse`."""
        check_events(z, "Logit")
        return (torch.sigmoid(z) - self.alpha) / (1 - 2 * self.alpha)

    def stretch(self, lipschitz: Callable[[nn.Module], float] = upper_bound) -> tuple[float, float]:  # noqa: ARG002
        """See :meth:`Bijection.stretch`; the map is infinitely steep at the ends of its domain."""
        return 4 * (1 - 2 * self.alpha), math.inf

    def extra_repr(self) -> str:
        """Describe the map."""
        return f"alpha={self.alpha}"


# -- learned -----------------------------------------------------------------------------------------------------------


class ActNorm(Bijection):
    r"""Scale and shift for each channel (or feature), initialized from data.

    .. math:: z = (x + b) e^{s}, \quad \log|\det dz/dx| = HW \sum_c s_c

    The first batch seen in train mode sets b and s such that each channel of z has mean 0 and variance 1 there (a
    constant one: mean 0), over all processes of a distributed run. That it happened is a buffer, so a loaded model is
    not initialized again.

    Args:
        channels: size of dimension 1 of the input.

    Shape:
        (N, C, \*) -> the same.

    Reference:
        Glow: Generative Flow with Invertible 1x1 Convolutions, Kingma and Dhariwal 2018,
        https://arxiv.org/abs/1807.03039

    Example:
        >>> x = 5 + 3 * torch.randn(1000, 2)
        >>> z = ActNorm(2)(x)
        >>> bool(z.mean().abs() < 1e-5), bool((z.std() - 1).abs() < 1e-2)
        (True, True)
    """

    initialized: Tensor
    initialised = old_attribute("initialised", "initialized")

    def __init__(self, channels: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        # A number and no bool: averages of models, which take means of buffers too, know no means of those.
        self.register_buffer("initialized", torch.tensor(0.0))
        self._known_initialized = False  # spares the wait for the device that reading the buffer costs
        self.register_load_state_dict_pre_hook(_rename)
        self.register_load_state_dict_post_hook(_forget)

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        self._check(x)
        self._initialize_once(x)
        shift, log_scale = _broadcast(self.shift, x), _broadcast(self.log_scale, x)
        if torch.compiler.is_compiling() or is_differentiating() or not torch.is_grad_enabled():
            return (x + shift) * log_scale.exp()
        return _ShiftAndScale.apply(x, shift, log_scale)  # pyright: ignore[reportReturnType]

    def forward_and_logdet(
        self,
        x: Tensor,
        *,
        logdet: LogDets | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`."""
        z = self(x)
        return z, (self.log_scale.sum() * math.prod(x.shape[2:])).to(x.dtype).expand(x.shape[0])

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:  # noqa: ARG002
        """See :meth:`Bijection.inverse`."""
        self._check(z)
        return z * _broadcast((-self.log_scale).exp(), z) - _broadcast(self.shift, z)

    def stretch(self, lipschitz: Callable[[nn.Module], float] = upper_bound) -> tuple[float, float]:  # noqa: ARG002
        """See :meth:`Bijection.stretch`."""
        scale = self.log_scale.detach().double().exp()
        return float(scale.min()), float(scale.max())

    def _check(self, x: Tensor) -> None:
        check_events(x, f"ActNorm({len(self.shift)})", (len(self.shift), ...))

    @torch.no_grad()
    def _initialize_once(self, x: Tensor) -> None:
        if not self.training or self._known_initialized:
            return
        if not bool(self.initialized):
            if is_transforming():
                raise IResNetError(
                    "ActNorm takes its scale from the first batch in train mode, which it cannot under transforms of "
                    "torch.func: run one batch through the model before"
                )
            with without_autocast(x.device):
                count, mean, variance = _moments(x)
            if not count:  # an empty batch: the next one will tell
                return
            self.shift.copy_(-mean)
            # A constant channel, such as a padded one, keeps its scale: dividing by nothing would blow up its shift.
            self.log_scale.copy_(-0.5 * torch.log(torch.where(variance > 1e-8, variance, 1.0)))
            self.initialized.fill_(1.0)
        self._known_initialized = True


@contextmanager
def as_they_are(module: nn.Module, *, from_now_on: bool = False) -> Iterator[None]:
    """Keep ActNorms that no data has initialized as they are for the duration of the context.

    For samples that a model drew itself: a scale that were taken from them would make another model of it.

    Args:
        module: the ActNorms inside it are kept.
        from_now_on: count them as initialized afterwards too, since their parameters are being fitted.

    Example:
        >>> norm = ActNorm(2)
        >>> with as_they_are(norm):
        ...     _ = norm(5 + torch.randn(10, 2))
        >>> norm.shift.tolist(), bool(norm.initialized)
        ([0.0, 0.0], False)
    """
    waiting = [m for m in module.modules() if isinstance(m, ActNorm) and not m._known_initialized]
    for norm in waiting:
        norm._known_initialized = True
        if from_now_on:
            norm.initialized.fill_(1.0)
    try:
        yield
    finally:
        for norm in waiting:
            norm._known_initialized = from_now_on


class _ShiftAndScale(torch.autograd.Function):
    """Map z = (x + b) e^s, with half of the operations that autograd takes: the derivative by s is z itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, log_scale: Tensor) -> Tensor:
        z = (x + shift).mul_(log_scale.exp())
        ctx.save_for_backward(z, log_scale)
        ctx.shape = shift.shape
        return z

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        z, log_scale = ctx.saved_tensors
        of_x = upstream * log_scale.exp()
        return of_x, of_x.sum_to_size(ctx.shape), (upstream * z).sum_to_size(ctx.shape)


def _rename(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:  # noqa: ARG001
    """Take the state of an older release."""
    if f"{prefix}initialised" in state:
        state[f"{prefix}initialized"] = state.pop(f"{prefix}initialised")


def _forget(module: nn.Module, incompatible_keys: Any) -> None:  # noqa: ARG001
    module._known_initialized = False  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]


def _broadcast(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.view(-1, *[1] * (x.dim() - 2))


def _moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Count, mean and variance of each channel, over the batches of all processes."""
    values = x.transpose(0, 1).flatten(1).double()
    total = values.sum(1)
    sums = torch.stack([torch.full_like(total, values.shape[1]), total, values.square().sum(1)])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    mean = sums[1] / sums[0]
    return int(sums[0, 0]), mean, (sums[2] / sums[0] - mean.square()).clamp(min=0)
