"""The method of 2019 as its paper describes it: the baseline (Behrmann et al., https://arxiv.org/abs/1811.00995).

A block computes its normalized weights anew in every call, in training after five power iterations: with the
convolution and its transpose on images of the size in use, for 1x1 convolutions with the matrix. The log-determinant is
the power series cut after five terms, with one Gaussian probe, by products of vectors with the Jacobian that autograd
takes and, in training, differentiates through. The inverse is a hundred fixed-point steps, however few would do.
"""

__all__ = ["Block2019", "SpectralConv2d", "logdet_series"]

import torch
import torch.nn.functional as F
from blocks import Bottleneck, Conv
from torch import Tensor, nn

from iresnet.bijections import Bijection


class SpectralConv2d(nn.Module):
    """A zero-padded convolution, scaled down to spectral norm ``coeff`` where it is above, in every call."""

    u: Tensor
    v: Tensor

    def __init__(self, conv: Conv, *, coeff: float = 0.9, n_power_steps: int = 5):
        super().__init__()
        self.weight, self.bias = nn.Parameter(conv.weight), nn.Parameter(conv.bias)
        self.coeff, self.n_power_steps, self.padding = coeff, n_power_steps, conv.weight.shape[-1] // 2
        size = (1, 1) if self.padding == 0 else conv.image_size  # a 1x1 convolution is the same matrix at every pixel
        self.register_buffer("v", _unit(torch.randn(1, conv.weight.shape[1], *size)))
        self.register_buffer("u", _unit(torch.randn(1, conv.weight.shape[0], *size)))

    def normalized(self) -> Tensor:
        """The weight of a call; the gradient reaches its norm with the singular vectors held constant."""
        if self.training:
            self._iterate()
        u, v = self.u.clone(), self.v.clone()  # backward may come after the next iteration
        sigma = torch.sum(u * F.conv2d(v, self.weight, padding=self.padding))
        return self.weight / torch.clamp(sigma / self.coeff, min=1.0)

    @torch.no_grad()
    def _iterate(self) -> None:
        for _ in range(self.n_power_steps):
            self.v.copy_(_unit(F.conv_transpose2d(self.u, self.weight, padding=self.padding)))
            self.u.copy_(_unit(F.conv2d(self.v, self.weight, padding=self.padding)))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.normalized(), self.bias, padding=self.padding)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm().clamp(min=1e-12)


def logdet_series(value: Tensor, x: Tensor, n_terms: int, *, create_graph: bool) -> Tensor:  # (N,)
    r"""Estimate :math:`\log\det(I + J) \approx \sum_{k \le n} (-1)^{k+1} v^T J^k v / k`, with v Gaussian.

    Args:
        value: g(x), with its graph.
        x: (N, *E).
        n_terms: n.
        create_graph: whether the estimate can be differentiated.
    """
    probe = torch.randn_like(x)
    product, total = probe, x.new_zeros(len(x))
    for k in range(1, n_terms + 1):
        (product,) = torch.autograd.grad(value, x, product, create_graph=create_graph, retain_graph=True)
        total = total + (-1) ** (k + 1) / k * (product * probe).flatten(1).sum(1)
    return total


class Block2019(Bijection):
    """z = x + g(x).

    Args:
        g: its shapes and first weights.
        n_terms: of the power series.
        n_inverse_steps: of every inverse.
    """

    def __init__(self, g: Bottleneck, *, n_terms: int = 5, n_inverse_steps: int = 100):
        super().__init__()
        self.g = g.build(SpectralConv2d)
        self.n_terms, self.n_inverse_steps = n_terms, n_inverse_steps

    def forward(self, x: Tensor) -> Tensor:
        return x + self.g(x)

    def forward_and_logdet(self, x: Tensor, *, logdet: None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        trained = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            value = self.g(x)
            total = logdet_series(value, x, self.n_terms, create_graph=trained)
        z = x + value
        return (z, total) if trained else (z.detach(), total.detach())

    @torch.no_grad()
    def inverse(self, z: Tensor, *, solve: None = None) -> Tensor:  # noqa: ARG002
        x = z
        for _ in range(self.n_inverse_steps):
            x = z - self.g(x)
        return x
