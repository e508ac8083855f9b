"""Blocks between two bi-Lipschitz constants that are given."""

__all__ = ["BiLipschitzBlock"]

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from iresnet.bijections.base import Bijection, LogDets, Report
from iresnet.bijections.residual import ResidualBlock
from iresnet.bounds import upper_bound
from iresnet.errors import IResNetError
from iresnet.solvers import Solver


class BiLipschitzBlock(Bijection):
    r"""A residual block, scaled so that it stretches distances by mu at least and nu at most.

    .. math::
        z = c \, (x + g(x)), \quad c = \frac{\nu + \mu}{2}, \quad \mathrm{Lip}(g) \le \rho = \frac{\nu - \mu}{\nu + \mu}

    Then :math:`\mu |x - y| \le |z(x) - z(y)| \le \nu |x - y|`, and it is :math:`\mu`-strongly monotone. Not every
    strongly monotone Lipschitz map is of this form, whose Jacobians lie in a disk: rotations by 90 degrees are not.
    With :class:`~iresnet.FeedThrough` as g it is the layer :math:`\mu x + H(x)` of the reference, where H satisfies
    the quadratic constraint :math:`\langle H, x \rangle \ge |H|^2 / (\nu - \mu)`, in differences of two inputs: that is
    the same disk. So estimators, solvers, memory modes and certificates are those of residual blocks.

    Args:
        g: builds the map from its Lipschitz coefficient :math:`\rho`, the argument ``coeff``: ``partial(ir.FeedThrough,
            2, 64)``, which comes close to both constants, or a network of :mod:`iresnet.networks`, which, bounded by a
            product of norms, does not.
        mu: least stretch, positive.
        nu: largest stretch, above mu.
        parts: ``logdet``, ``solver`` and ``memory`` of a residual block.

    Attributes:
        residual: the residual block, x + g(x), which certificates and reports name.

    Raises:
        IResNetError: unless 0 < mu < nu; otherwise as :class:`~iresnet.ResidualBlock` does.

    Reference:
        Monotone, Bi-Lipschitz, and Polyak-Lojasiewicz Networks, Wang, Dvijotham and Manchester 2024,
        https://arxiv.org/abs/2402.01344

    Example:
        >>> from functools import partial
        >>> import torch, iresnet as ir
        >>> block = BiLipschitzBlock(partial(ir.FeedThrough, 2, 16), mu=0.5, nu=4.0).eval()
        >>> [round(constant, 4) for constant in block.stretch()]
        [0.5, 4.0]
        >>> x = torch.randn(5, 2)
        >>> bool(torch.allclose(block.inverse(block(x)), x, atol=1e-4))
        True
    """

    def __init__(self, g: Callable[..., nn.Module], *, mu: float = 0.25, nu: float = 4.0, **parts: Any):
        super().__init__()
        if not 0 < mu < nu < math.inf:
            raise IResNetError(f"the bi-Lipschitz constants of a block are positive, mu below nu, got mu={mu}, nu={nu}")
        self.scale = (nu + mu) / 2
        self.residual = ResidualBlock(g(coeff=(nu - mu) / (nu + mu)), **parts)

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        return self.scale * self.residual(x)

    def forward_and_logdet(self, x: Tensor, *, logdet: LogDets | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`."""
        z, value = self.residual.forward_and_logdet(x, logdet=logdet)
        return self.scale * z, value + x.shape[1:].numel() * math.log(self.scale)

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:
        """See :meth:`Bijection.inverse`."""
        return self.residual.inverse(z / self.scale, solver=solver, report=report)

    def stretch(self, lipschitz: Callable[[nn.Module], float] = upper_bound) -> tuple[float, float]:
        """See :meth:`Bijection.stretch`; the first constant is that of strong monotonicity too."""
        least, most = self.residual.stretch(lipschitz)
        return self.scale * least, self.scale * most

    def extra_repr(self) -> str:
        """Describe the scale."""
        return f"scale={self.scale:g}"
