"""Rotations of vectors, and of the channels of images, learned."""

__all__ = ["Orthogonal"]

import torch
from torch import Tensor

from iresnet.bijections.base import Report, check_events
from iresnet.bijections.reshape import Isometry
from iresnet.cayley import Rotation
from iresnet.solvers import Solver


class Orthogonal(Isometry):
    r"""Rotation of features, or of the channels at each pixel, by a learned orthogonal matrix.

    .. math::
        z = Q x, \quad Q = (I - Z) (I + Z)^{-1}, \quad Z = X - X^T, \quad x = Q^T z, \quad \log|\det dz/dx| = 0

    Distances stay, so certificates are those of what is around it. It mixes what maps on single features, such as
    :class:`ActNorm` and :class:`Spline`, do not. Q is random at first.

    Args:
        channels: size of dimension 1 of the input, its features or channels.

    Attributes:
        matrix: called, it returns Q.

    Shape:
        (N, channels, \*) -> the same.

    Reference:
        Orthogonalizing Convolutional Layers with the Cayley Transform, Trockman and Kolter 2021,
        https://arxiv.org/abs/2104.07167

    Example:
        >>> rotation, x = Orthogonal(3), torch.randn(5, 3, 4, 4)
        >>> z = rotation(x)
        >>> bool(torch.allclose(z.norm(dim=1), x.norm(dim=1), atol=1e-5))
        True
        >>> bool(torch.allclose(rotation.inverse(z), x, atol=1e-5))
        True
    """

    def __init__(self, channels: int):
        super().__init__()
        self.matrix = Rotation(channels)

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        return self._times(self.matrix(), x)

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:  # noqa: ARG002
        """See :meth:`Bijection.inverse`."""
        return self._times(self.matrix().mT, z)

    def _times(self, matrix: Tensor, x: Tensor) -> Tensor:
        check_events(x, f"Orthogonal({len(matrix)})", (len(matrix), ...))
        return torch.einsum("oc,nc...->no...", matrix, x)
