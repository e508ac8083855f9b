"""Variational dequantization: noise that is learned, as a bijection of each cell between integers."""

__all__ = ["VariationalDequantization"]

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresnet.bijections.base import Bijection, LogDets, Report, check_dtype, check_events
from iresnet.errors import IResNetError
from iresnet.solvers import Solver


class VariationalDequantization(Bijection):
    r"""Bijection of each cell :math:`[k, k + 1)^D` between integers k, which depends on the cell.

    .. math::
        z = k + T_k(x - k), \quad k = \lfloor x \rfloor, \quad
        T_k(v) = \mathrm{sigmoid}(e^{s(k)} \, \mathrm{logit}(v) + b(k)), \quad
        \log|\det dz/dx| = \sum_i \log T_k'(v)_i

    As the first bijection of a flow it turns uniform noise v into noise :math:`u = T_k(v)` of the density
    :math:`q(u \mid k) = 1 / T_k'(v)`: what is uniform dequantization outside is variational dequantization inside. The
    log-density of x, averaged over v, is the bound of Flow++,

    .. math::
        \log P(k) \ge E_v \big[ \log p(k + T_k(v)) + \log|\det dT_k/dv| \big]
        = E_{u \sim q} \big[ \log p(k + u) - \log q(u \mid k) \big],

    with p the density of the bijections after it. Since no mass leaves its cell, P(k), the integral of p over the cell,
    does not depend on T. The noise of one element is independent of that of the others, given all of k. The map jumps
    where cells meet, so it has no bi-Lipschitz constants.

    Args:
        encoder: from k, real numbers of shape (N, C, \*), to s and b, one after the other in (N, 2 C, \*).

    Shape:
        (N, C, \*) -> the same.

    Raises:
        IResNetError: at use, when the encoder gives another shape.

    Reference:
        Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design, Ho,
        Chen, Srinivas, Duan and Abbeel 2019, https://arxiv.org/abs/1902.00275

    Example:
        >>> noise = VariationalDequantization(torch.nn.Linear(2, 4, dtype=torch.float64))
        >>> x = torch.tensor([[0.3, 1.6], [1.9, 0.2]], dtype=torch.float64)
        >>> z, logdet = noise.forward_and_logdet(x)
        >>> bool((z.floor() == x.floor()).all()), bool(torch.allclose(noise.inverse(z), x, atol=1e-3))
        (True, True)
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        k, logits = _enter(x)
        log_scale, shift = self._encode(k)
        return _leave(k, logits * log_scale.exp() + shift)

    def forward_and_logdet(
        self,
        x: Tensor,
        *,
        logdet: LogDets | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`."""
        k, before = _enter(x)
        log_scale, shift = self._encode(k)
        after = before * log_scale.exp() + shift
        log_slope = log_scale + _log_slope(after) - _log_slope(before)
        return _leave(k, after), log_slope.flatten(1).sum(1)

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:  # noqa: ARG002
        """See :meth:`Bijection.inverse`."""
        k, logits = _enter(z)
        log_scale, shift = self._encode(k)
        return _leave(k, (logits - shift) * (-log_scale).exp())

    def _encode(self, k: Tensor) -> tuple[Tensor, Tensor]:
        check_dtype(k, "variational dequantization", self.encoder)
        code = self.encoder(k).to(k.dtype)
        if code.shape[1:] != (2 * k.shape[1], *k.shape[2:]):
            raise IResNetError(
                "the encoder of variational dequantization gives a log-scale and a shift of each element, so twice the "
                f"channels of {tuple(k.shape)}, got {tuple(code.shape)}"
            )
        log_scale, shift = code.chunk(2, dim=1)
        return log_scale, shift


def _enter(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cell of x, and the logits of its place there."""
    check_events(x, "variational dequantization")
    k = x.detach().floor()
    return k, torch.logit(_inside(k, x - k))


def _leave(k: Tensor, logits: Tensor) -> Tensor:
    """Return the point of a cell."""
    return k + _inside(k, torch.sigmoid(logits))


def _inside(k: Tensor, v: Tensor) -> Tensor:
    """Keep a place off the borders of its cell, by more than k + v is rounded."""
    border = (torch.finfo(k.dtype).eps * k.abs().clamp(min=1)).clamp(max=0.25)
    return torch.clamp(v, border, 1 - border)


def _log_slope(logits: Tensor) -> Tensor:
    """Return the logarithm of the derivative of the sigmoid."""
    return -F.softplus(logits) - F.softplus(-logits)
