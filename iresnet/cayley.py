"""Orthogonal matrices by the Cayley map: as weights, by a normalization, and as rotations."""

__all__ = ["Cayley", "Rotation", "cayley"]

import torch
from torch import Tensor, nn

from iresnet.errors import IResNetError
from iresnet.parametrization import Normalization
from iresnet.precision import use_precision


def cayley(weight: Tensor) -> Tensor:  # (m, n) -> (m, n)
    r"""Map a matrix to one with orthonormal columns, or rows where it has fewer rows.

    .. math::
        \begin{pmatrix} X \\ Y \end{pmatrix} \mapsto
        \begin{pmatrix} I - Z \\ -2 Y \end{pmatrix} (I + Z)^{-1}, \quad Z = X - X^T + Y^T Y,

    with X square. The symmetric part of I + Z is at least I, so it is well conditioned, and derivatives of all orders
    exist. Square matrices become rotations that turn nothing by exactly 180 degrees.

    Args:
        weight: any matrix; 0 is mapped to the identity.

    Reference:
        Orthogonalizing Convolutional Layers with the Cayley Transform, Trockman and Kolter 2021,
        https://arxiv.org/abs/2104.07167

    Example:
        >>> q = cayley(torch.randn(5, 3, dtype=torch.float64))
        >>> bool(torch.allclose(q.mT @ q, torch.eye(3, dtype=torch.float64)))
        True
    """
    if weight.shape[0] < weight.shape[1]:
        return cayley(weight.mT).mT
    n = weight.shape[1]
    x, y = weight[:n], weight[n:]
    z, identity = x - x.mT + y.mT @ y, torch.eye(n, dtype=weight.dtype, device=weight.device)
    inverse = torch.linalg.solve_ex(identity + z, identity)[0]  # never singular; without a wait for the device
    return torch.cat([(identity - z) @ inverse, -2 * y @ inverse])


class Cayley(Normalization):
    r"""Parametrization whose singular values are all the coefficient: an orthogonal matrix, times c.

    .. math:: W \mapsto c \, \mathrm{cayley}(W)

    Gradients keep their norm through such a layer, so none of its bound is wasted; what a layer cannot do is to leave
    directions out. There is no state, so train and eval mode agree, and sealing changes nothing. Unlike other
    normalizations it changes small weights too, and normalized ones.

    Args:
        weight: the weight, (out, in) or (out, in, 1, 1).
        coeff: c, in (0, 1).
        image_size: not used.

    Raises:
        IResNetError: for larger kernels, whose zero-padded convolution is not orthogonal for any of its weights but
            trivial ones, and without a coefficient.

    Reference:
        Orthogonalizing Convolutional Layers with the Cayley Transform, Trockman and Kolter 2021,
        https://arxiv.org/abs/2104.07167

    Example:
        >>> from iresnet import LipschitzLinear
        >>> layer = LipschitzLinear(3, 5, coeff=0.5, normalization="cayley")
        >>> [round(float(size), 4) for size in torch.linalg.svdvals(layer.weight.detach())]
        [0.5, 0.5, 0.5]
    """

    idempotent = False
    rounding_above = 64.0

    def __init__(self, weight: Tensor, *, coeff: float | None, image_size: tuple[int, int]):  # noqa: ARG002
        super().__init__(coeff)
        if coeff is None:
            raise IResNetError("the normalization 'cayley' makes every singular value the coefficient, got coeff=None")
        if weight[0, 0].numel() > 1:
            raise IResNetError(
                "the normalization 'cayley' is for dense layers and 1x1 convolutions, got a kernel of "
                f"{'x'.join(map(str, weight.shape[2:]))}; take 'aol' or 'gram', which bound larger ones at every step"
            )

    def sigma(self, weight: Tensor) -> Tensor:
        """Return the norm of the normalized weight, which is the coefficient."""
        return weight.new_full((), self.coeff)

    def normalize(self, weight: Tensor) -> Tensor:
        """Map the weight to an orthogonal one, times the coefficient."""
        with use_precision("float32", weight.device):
            return self.coeff * cayley(weight.flatten(1)).view(weight.shape)

    def extra_repr(self) -> str:
        """Describe the parametrization."""
        return f"coeff={self.coeff}"


class Rotation(nn.Module):
    r"""Rotation matrix that is learned, :math:`Q = (I - Z) (I + Z)^{-1}` with :math:`Z = X - X^T`, random at first.

    Args:
        n: its number of rows and columns.

    Example:
        >>> q = Rotation(3)()
        >>> bool(torch.allclose(q @ q.mT, torch.eye(3), atol=1e-5))
        True
    """

    def __init__(self, n: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, n))
        nn.init.normal_(self.weight, std=(2 * n) ** -0.5)  # Z of norm about 2, so angles of up to 130 degrees

    def forward(self) -> Tensor:  # (n, n)
        """Return the matrix."""
        with use_precision("float32", self.weight.device):
            return cayley(self.weight)
