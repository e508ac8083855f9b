"""Normalization that scales each channel of a weight, which drives the channels to be orthogonal."""

__all__ = ["AlmostOrthogonal"]

import torch
import torch.nn.functional as F
from torch import Tensor

from iresnet.errors import IResNetError
from iresnet.parametrization import Normalization
from iresnet.precision import use_precision


class AlmostOrthogonal(Normalization):
    r"""Parametrization by almost-orthogonal rescaling, an upper bound of the norm without iterated vectors.

    .. math::
        W \mapsto W \,\mathrm{diag}(d), \quad
        d_j \leftarrow \min\Bigl(1, \; c \, \bigl(\textstyle\sum_i A_{ij} \, d_i / d_j\bigr)^{-1/2}\Bigr), \quad
        A_{ij} = |W^T W|_{ij},

    from d = 1 on, ``n_steps`` times. For a convolution, :math:`A_{ij}` is the sum of the absolute values of the
    correlation of kernels i and j, over all shifts. Where W has fewer outputs than inputs, its rows are scaled in the
    same way.

    Every d of these bounds the norm by c: with the :math:`q = d` of the step before, the matrix
    :math:`\mathrm{diag}(\sum_i A_{ij} q_i / q_j) - W^T W`, multiplied by diag(q) from both sides, is diagonally
    dominant, and so positive semidefinite, at each frequency of a convolution. The zero-padded convolution is a
    compression of that on the infinite plane. One step is AOL; more are the rescaling of SDP-based Lipschitz layers,
    whose q, learned there, is here the one with which every channel spends its whole bound. In the limit a normalized
    weight is normalized to itself.

    The bound is tight where the channels are orthogonal, and loose for random ones: training has to turn them. There is
    no state, so train and eval mode agree, and sealing changes nothing.

    Args:
        weight: the weight to normalize, (out, in) or (out, in, kh, kw).
        coeff: c, the largest norm allowed, in (0, 1); None for no constraint.
        image_size: not used; the bound holds for images of every size.
        n_steps: the updates of d, each valid; 1 for AOL as published.

    Reference:
        Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz Networks, Prach and Lampert 2022,
        https://arxiv.org/abs/2208.03160; A Unified Algebraic Perspective on Lipschitz Neural Networks, Araujo et al.
        2023, https://arxiv.org/abs/2303.03169

    Example:
        >>> from iresnet import LipschitzLinear
        >>> layer = LipschitzLinear(4, 4, coeff=0.5, normalization="aol")
        >>> layer.weight = torch.diag(torch.tensor([10.0, 1.0, 1.0, 0.1]))
        >>> [round(float(size), 4) for size in layer.weight.detach().diag()]
        [0.5, 0.5, 0.5, 0.1]
    """

    rounding_above = 32.0

    def __init__(self, weight: Tensor, *, coeff: float | None, image_size: tuple[int, int], n_steps: int = 5):  # noqa: ARG002
        super().__init__(coeff)
        if n_steps < 1:
            raise IResNetError(f"n_steps, the updates of the scales, is at least 1, got {n_steps}")
        self.n_steps = n_steps

    def sigma(self, weight: Tensor) -> Tensor:
        r"""Return an upper bound of the norm, :math:`\max_j (\sum_i A_{ij})^{1/2}`: at most c for what is unchanged."""
        return _correlations(weight).sum(0).amax().clamp(min=torch.finfo(weight.dtype).tiny).sqrt()

    def normalize(self, weight: Tensor) -> Tensor:
        """Scale the columns, or the rows where these are fewer."""
        with use_precision("float32", weight.device):
            scales = self._scales(_correlations(weight))
            channels = (-1, 1) if _has_fewer_outputs(weight) else (1, -1)
            return weight * scales.view(*channels, *[1] * (weight.dim() - 2))

    def _scales(self, correlations: Tensor) -> Tensor:  # (n, n) -> (n,)
        scales = torch.ones_like(correlations[0])
        for _ in range(self.n_steps):
            sums = correlations @ scales / scales
            scales = torch.clamp(sums / self.coeff**2, min=1.0).rsqrt()
        return scales

    def extra_repr(self) -> str:
        """Describe the parametrization."""
        return f"coeff={self.coeff}, n_steps={self.n_steps}"


def _has_fewer_outputs(weight: Tensor) -> bool:
    return weight.shape[0] < weight.shape[1]


def _correlations(weight: Tensor) -> Tensor:  # (out, in, ...) -> (n, n)
    """Return the absolute correlations of the kernels of two channels, summed over all shifts, on the smaller side."""
    with use_precision("float32", weight.device):
        channels = weight if _has_fewer_outputs(weight) else weight.transpose(0, 1)
        if weight[0, 0].numel() == 1:
            vectors = channels.flatten(1)
            return (vectors @ vectors.mT).abs()
        kh, kw = weight.shape[2:]
        return F.conv2d(channels, channels, padding=(kh - 1, kw - 1)).abs().sum((2, 3))
