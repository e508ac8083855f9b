"""Whitening of the patches of images, fitted to data."""

__all__ = ["Root", "Whitening"]

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresnet.bijections.base import Bijection, LogDets, Report, check_events
from iresnet.bounds import upper_bound
from iresnet.errors import IResNetError
from iresnet.solvers import Solver


class Whitening(Bijection):
    r"""Affine map of each patch of an image, after which the pixels of a patch are uncorrelated: the identity at first.

    .. math::
        z = C^{-1/2} (x - \mu), \quad x = \mu + C^{1/2} z, \quad \log|\det dz/dx| = -\frac{n}{2} \log \det C

    with :math:`\mu` and C the mean and the covariance of the d = channels p^2 numbers of the n patches of an image,
    which lie side by side. :meth:`fit` takes them from data, and no optimizer moves them. Neighboring pixels and colors
    are nearly equal, so a density has to stretch their differences by far; that takes many contractive blocks, or this
    one map. Of all maps that whiten, :math:`C^{-1/2}` moves points least, so that what it gives still is an image.

    Args:
        channels: of the images.
        patch: p, its height and width.

    Shape:
        (N, channels, H, W) -> the same, H and W multiples of p.

    Raises:
        IResNetError: for sizes below 1; at use, for images of another shape.

    Reference:
        The "Independent Components" of Natural Scenes are Edge Filters, Bell and Sejnowski 1997,
        https://doi.org/10.1016/S0042-6989(97)00121-1

    Example:
        >>> x = torch.rand(100, 3, 4, 4) + torch.rand(100, 1, 4, 4)  # the brightness is common to all colors
        >>> whitening = Whitening(3, patch=1)
        >>> whitening.fit(x)
        >>> rows = whitening(x).movedim(1, -1).flatten(0, 2)
        >>> bool(torch.allclose(rows.T.cov(), torch.eye(3), atol=1e-2))
        True
        >>> bool(torch.allclose(whitening.inverse(whitening(x)), x, atol=1e-5))
        True
    """

    mean: Tensor

    def __init__(self, channels: int, patch: int = 4):
        super().__init__()
        if min(channels, patch) < 1:
            raise IResNetError(f"Whitening takes channels and a patch of at least 1, got {channels} and {patch}")
        self.channels, self.patch = channels, patch
        d = channels * patch**2
        self.register_buffer("mean", torch.zeros(d))
        self.root = Root(d)

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        r"""Take mean and covariance of the patches of images.

        Args:
            x: images, (N, channels, H, W).

        Raises:
            IResNetError: for images that are not finite, and patches whose numbers are linearly dependent.
        """
        patches = self._patches(x).movedim(1, -1).flatten(0, 2).double()
        mean = patches.mean(0)
        covariance = (patches - mean).T @ (patches - mean) / len(patches)
        if not bool(torch.isfinite(covariance).all()):
            raise IResNetError(f"whitening is fitted to finite images, got {len(x)} with others among them")
        eigenvalues, basis = torch.linalg.eigh(covariance)
        if eigenvalues[0] <= torch.finfo(torch.float32).eps * eigenvalues[-1]:
            raise IResNetError(
                f"whitening needs images whose patches vary in all {len(mean)} numbers, got {len(patches)} patches "
                f"with variances from {eigenvalues[0]:g} to {eigenvalues[-1]:g} along their main directions: take "
                "smaller patches"
            )
        self.mean.copy_(mean)
        self.root.matrix.copy_((basis * eigenvalues.rsqrt()) @ basis.mT)

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        return self.forward_and_logdet(x)[0]

    def forward_and_logdet(
        self,
        x: Tensor,
        *,
        logdet: LogDets | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`."""
        matrix, logdet_of_one = self.root()
        patches = self._patches(x) - self.mean[:, None, None]
        logdet_of_all = math.prod(patches.shape[2:]) * logdet_of_one
        z = F.pixel_shuffle(_times(matrix, patches), self.patch)
        return z, logdet_of_all.to(x.dtype).expand(x.shape[0])

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:  # noqa: ARG002
        """See :meth:`Bijection.inverse`."""
        patches = _times(self.root.inverse(), self._patches(z)) + self.mean[:, None, None]
        return F.pixel_shuffle(patches, self.patch)

    def stretch(self, lipschitz: Callable[[nn.Module], float] = upper_bound) -> tuple[float, float]:  # noqa: ARG002
        """See :meth:`Bijection.stretch`."""
        eigenvalues = torch.linalg.eigvalsh(self.root.matrix.double())
        return float(eigenvalues[0]), float(eigenvalues[-1])

    def _patches(self, x: Tensor) -> Tensor:  # (N, channels, H, W) -> (N, d, H / p, W / p)
        check_events(x, f"Whitening({self.extra_repr()})", (self.channels, None, None))
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise IResNetError(
                f"whitening of patches of {self.patch}x{self.patch} pixels takes images of a multiple of these, got "
                f"{x.shape[2]}x{x.shape[3]}; take another size of patches, or pad the images"
            )
        return F.pixel_unshuffle(x, self.patch)

    def extra_repr(self) -> str:
        """Describe the map."""
        return f"{self.channels}, patch={self.patch}"


def _times(matrix: Tensor, patches: Tensor) -> Tensor:  # (N, d, H / p, W / p) -> the same
    return torch.einsum("oc,nchw->nohw", matrix, patches)


class Root(nn.Module):
    """Symmetric and positive definite matrix of size d, the identity at first.

    Called, it returns the matrix and its log-determinant. That and the inverse are computed from the matrix as it was
    rounded, so that an inverse undoes the map in any precision.
    """

    matrix: Tensor

    def __init__(self, d: int):
        super().__init__()
        self.register_buffer("matrix", torch.eye(d))

    def forward(self) -> tuple[Tensor, Tensor]:  # (d, d), ()
        """Factorize; without a wait for the device."""
        return self.matrix, 2 * self._factor().diagonal().log().sum()

    def inverse(self) -> Tensor:  # (d, d)
        """Compute the inverse matrix."""
        return torch.cholesky_inverse(self._factor())

    def _factor(self) -> Tensor:
        return torch.linalg.cholesky_ex(self.matrix)[0]
