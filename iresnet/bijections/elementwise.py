"""Fixed elementwise maps between data and the model's scale."""

__all__ = ["Affine", "Logit"]

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iresnet.bijections.base import Bijection, LogDets, Report, check_events
from iresnet.bounds import upper_bound
from iresnet.devices import is_readable
from iresnet.errors import IResNetError
from iresnet.solvers import Solver


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
        return z, -self.std.log().expand(x.shape[1:]).sum().to(z.dtype).expand(len(x))

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
        slope = F.softplus(z) + F.softplus(-z) + torch.log(z.new_tensor(1 - 2 * self.alpha))
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
