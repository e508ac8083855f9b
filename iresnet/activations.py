"""Activations with Lipschitz constant 1, and their linearizations."""

__all__ = ["ACTIVATIONS", "LipSwish", "MaxMin", "make_activation"]

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresnet.errors import IResNetError, UnknownNameError
from iresnet.jacobian import Linearization, elementwise, linearizes


class MaxMin(nn.Module):
    """Activation that sorts pairs of channels: the first half becomes the maxima, the second the minima.

    Its Jacobian is a permutation, so gradients keep their norm.

    Reference:
        Sorting Out Lipschitz Function Approximation, Anil, Lucas and Grosse 2019, https://arxiv.org/abs/1811.05381

    Example:
        >>> MaxMin()(torch.tensor([[1.0, 5.0, 3.0, 2.0]]))
        tensor([[3., 5., 1., 2.]])
    """

    def forward(self, x: Tensor) -> Tensor:  # (N, C, ...)
        """Sort channel i against channel i + C/2."""
        a, b = self.halves(x)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split the channels into the two that are compared."""
        if x.shape[1] % 2:
            raise IResNetError(f"MaxMin sorts pairs of channels and needs an even number of them, got {x.shape[1]}")
        return x.tensor_split(2, dim=1)  # pyright: ignore[reportReturnType]


@linearizes(MaxMin)
def _maxmin(g: MaxMin, x: Tensor) -> Linearization:
    a, b = g.halves(x)
    keep = a >= b

    def swap(v: Tensor) -> Tensor:  # a symmetric permutation: its own transpose
        c, d = v.tensor_split(2, dim=1)
        return torch.cat([torch.where(keep, c, d), torch.where(keep, d, c)], dim=1)

    return Linearization(swap(x), swap, swap)


class LipSwish(nn.Module):
    r"""Swish activation scaled to Lipschitz constant at most 1, with a learned positive slope.

    .. math:: x \, \mathrm{sigmoid}(\beta x) / 1.1, \quad \beta = \mathrm{softplus}(b)

    Reference:
        Residual Flows for Invertible Generative Modeling, Chen et al. 2019, https://arxiv.org/abs/1906.02735

    Example:
        >>> x = torch.linspace(-9, 9, 999)
        >>> bool((LipSwish()(x).diff().abs() <= x.diff()).all())
        True
    """

    def __init__(self):
        super().__init__()
        self.b = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise."""
        return x * torch.sigmoid(F.softplus(self.b) * x) / 1.1


@linearizes(LipSwish)
def _lipswish(g: LipSwish, x: Tensor) -> Linearization:
    beta_x = F.softplus(g.b) * x
    s = torch.sigmoid(beta_x)
    return elementwise(x * s / 1.1, s * (1 + beta_x * (1 - s)) / 1.1)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "maxmin": MaxMin,
    "lipswish": LipSwish,
}
"""Activations with Lipschitz constant 1 in the norms 1, 2 and infinity, by name; certificates rely on the constant."""


def make_activation(name: str) -> nn.Module:
    """Build the activation of that name.

    Args:
        name: a key of :data:`ACTIVATIONS`.

    Raises:
        UnknownNameError: lists the valid names.

    Example:
        >>> make_activation("elu")
        ELU(alpha=1.0)
    """
    if name not in ACTIVATIONS:
        raise UnknownNameError("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()
