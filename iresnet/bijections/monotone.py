"""Monotone maps, from their Cayley operators."""

__all__ = ["MonotoneBlock"]

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from iresnet.bijections.base import Bijection, LogDets, Report
from iresnet.bijections.inverse import Inverse
from iresnet.bijections.residual import RandomChunk, ResidualBlock
from iresnet.bounds import upper_bound
from iresnet.jacobian import Linearization, linearizes
from iresnet.lipschitz import hold_weights
from iresnet.logdet import LogDetEstimate, LogDetEstimator
from iresnet.solvers import Solution, Solver


class MonotoneBlock(Bijection):
    r"""A strongly monotone map F, whose Cayley operator is a contraction g.

    .. math::
        F = 2 (I + g)^{-1} - I, \quad z = 2 u - x = u - g(u) \text{ with } u + g(u) = x, \quad
        \log|\det dz/dx| = \log\det(I - J) - \log\det(I + J), \quad J = dg/du

    With :math:`L = \mathrm{Lip}(g) < 1` it is monotone and stretches distances by more than two if need be, where a
    residual block cannot:

    .. math::
        \langle F(x) - F(y), x - y \rangle \ge \tfrac{1 - L}{1 + L} |x - y|^2, \quad
        |F(x) - F(y)| \le \tfrac{1 + L}{1 - L} |x - y|

    Forward and inverse are both solves, with gradients by implicit differentiation.

    Args:
        g: as that of a :class:`~iresnet.ResidualBlock`.
        parts: its ``logdet``, ``solver`` and ``memory``. The solver is that of both directions. Both log-determinants
            take the same probe where an estimate takes one, and then the even terms of their series cancel.

    Attributes:
        resolvent: :math:`(I + g)^{-1}`, the inverse of a residual block, which certificates and reports name.

    Raises:
        IResNetError, UnknownNameError: as :class:`~iresnet.ResidualBlock` does.

    Reference:
        Invertible Monotone Operators for Normalizing Flows, Ahn et al. 2022, https://arxiv.org/abs/2210.08176

    Example:
        >>> import torch, iresnet as ir
        >>> block = MonotoneBlock(ir.networks.mlp(2, 16))
        >>> x, y = torch.randn(2, 5, 2)
        >>> bool((((block(x) - block(y)) * (x - y)).sum(1) > 0).all())
        True
    """

    def __init__(self, g: nn.Module, **parts: Any):
        super().__init__()
        self.resolvent = Inverse(ResidualBlock(g, **parts))

    @property
    def _block(self) -> ResidualBlock:
        return self.resolvent.bijection  # pyright: ignore[reportReturnType]

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`; warns as inverses do."""
        return 2 * self.resolvent(x) - x

    def forward_and_logdet(self, x: Tensor, *, logdet: LogDets | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`; warns as inverses do."""
        with hold_weights(self.resolvent):  # the solution and its log-determinant are those of the same weights
            u = self.resolvent(x)
            _, value = self._block.forward_and_logdet(u, logdet=_artanh(self._block.estimator_of(u, logdet)))
            return 2 * u - x, value

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:
        """Solve u - g(u) = z, which gives x = 2 u - z; see :meth:`Bijection.inverse`."""
        opposite = ResidualBlock(nn.Sequential(self._block.g, _Negative()), solver=solver or self._block.solver)

        def report_on_x(_: nn.Module, of_u: Solution) -> None:  # whose errors are twice those of u
            assert report is not None
            report(self._block, replace(of_u, value=2 * of_u.value - z.detach(), last_step=2 * of_u.last_step))

        return 2 * opposite.inverse(z, report=report_on_x if report else None) - z

    def stretch(self, lipschitz: Callable[[nn.Module], float] = upper_bound) -> tuple[float, float]:
        """See :meth:`Bijection.stretch`; the first constant is that of strong monotonicity too."""
        least, most = self._block.stretch(lipschitz)
        return least / most, most / least if least > 0 else math.inf


class _Negative(nn.Module):
    """Change of sign."""

    def forward(self, x: Tensor) -> Tensor:
        return -x


@linearizes(_Negative)
def _negative(g: _Negative, x: Tensor) -> Linearization:
    return Linearization(g(x), lambda v: -v, lambda w: -w)


# -- log-determinants --------------------------------------------------------------------------------------------------


def _artanh(estimator: LogDetEstimator) -> LogDetEstimator:
    if isinstance(estimator, RandomChunk):
        return RandomChunk(_Artanh(estimator.estimator), estimator.n_chunks, chosen=estimator.chosen)
    return _Artanh(estimator)


class _Artanh(LogDetEstimator):
    r"""Estimator of :math:`\log\det(I - J) - \log\det(I + J) = -2 \, \mathrm{tr} \, \mathrm{artanh} \, J`.

    Args:
        of_one: estimates each of the two.
    """

    def __init__(self, of_one: LogDetEstimator):
        self.of_one = of_one

    def direction(self, x: Tensor) -> Tensor | None:
        return self.of_one.direction(x)

    def prepare(self, jacobian: Linearization) -> Callable[[Linearization], Tensor]:
        if jacobian.direction is None:  # where the probe is a single one, both take the same
            jacobian = replace(jacobian, direction=self.direction(jacobian.value))
        plus, minus = self.of_one.prepare(jacobian), self.of_one.prepare(_negated(jacobian))
        return lambda jacobian: minus(_negated(jacobian)) - plus(jacobian)

    def estimate(self, jacobian: Linearization, *, lipschitz: float = math.inf) -> LogDetEstimate:
        plus, minus = (self.of_one.estimate(j, lipschitz=lipschitz) for j in (jacobian, _negated(jacobian)))
        return LogDetEstimate(
            minus.value - plus.value,
            minus.standard_error + plus.standard_error,
            minus.bias + plus.bias,
            minus.n_products + plus.n_products,
        )


def _negated(jacobian: Linearization) -> Linearization:
    """Return the linearization of -g."""
    again, image = jacobian.relinearize, jacobian.image
    return Linearization(
        -jacobian.value,
        lambda v: -jacobian.jvp(v),
        lambda w: -jacobian.vjp(w),
        jacobian.inputs,
        None if again is None else lambda *inputs: _negated(again(*inputs)),
        jacobian.direction,
        None if image is None else -image,
    )
