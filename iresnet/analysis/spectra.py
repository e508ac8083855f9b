"""Singular values of linear layers as they act on their inputs: exact, or of an operator that bounds them."""

__all__ = ["Spectrum", "spectrum"]

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from iresnet.jacobian import linearize
from iresnet.lipschitz import LipschitzConv2d
from iresnet.operators import same_conv, same_conv_transpose, torus_matrices

Product = Callable[[Tensor], Tensor]

LARGEST_SIDE, LARGEST_MATRIX = 1024, 2**24
"""Dense singular values are taken of matrices up to this smaller side and this number of elements."""

EXACT, TORUS = "exact", "circular"


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a layer, or of an operator that it is a compression of.

    Attributes:
        values: descending, (K,), in float64.
        kind: ``"exact"``, or ``"circular"`` for those of the circular convolution on a torus, of which the zero-padded
            one is a part: its k-th value is at least the k-th of the layer.
    """

    values: Tensor
    kind: str

    def at(self, n: int) -> list[float]:
        """So many of the values at most, at evenly spaced ranks, the largest and the smallest included."""
        ranks = torch.linspace(0, len(self.values) - 1, min(n, len(self.values))).round().long()
        return self.values[ranks].tolist()


@torch.no_grad()
def spectrum(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...]) -> Spectrum | None:
    r"""Singular values of a dense layer or of a convolution on images of a size.

    Args:
        layer: normalized or not; its weight as it is used in eval mode.
        shape: event shape of its input.

    Returns:
        The values; None for a layer that is too large, and no plain convolution either.

    Reference:
        The Singular Values of Convolutional Layers, Sedghi, Gupta and Long 2019, https://arxiv.org/abs/1805.10408

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.weight.data = torch.diag(torch.tensor([3.0, 4.0]))
        >>> spectrum(layer, (2,)).values.tolist()
        [4.0, 3.0]
    """
    weight = layer.weight.double()
    if isinstance(layer, nn.Linear):
        return Spectrum(torch.linalg.svdvals(weight), EXACT)
    if (
        layer.kernel_size == (1, 1)
        and layer.stride == (1, 1)
        and layer.groups == 1
        and layer.padding in ("same", (0, 0))
    ):
        pixels = shape[-2] * shape[-1]
        return Spectrum(torch.linalg.svdvals(weight[:, :, 0, 0]).repeat_interleave(pixels), EXACT)
    fan_in = torch.Size(shape)
    fan_out = layer(torch.zeros(1, *shape).to(layer.weight)).shape[1:]
    small, large = sorted((fan_in.numel(), fan_out.numel()))
    if small <= LARGEST_SIDE and small * large <= LARGEST_MATRIX:
        return Spectrum(_of_gram(_matrix(layer, fan_in, fan_out)), EXACT)
    if _is_compression(layer, fan_in, fan_out):
        return Spectrum(_on_torus(weight, (shape[-2], shape[-1])), TORUS)
    return None


def _matrix(layer: nn.Conv2d, fan_in: torch.Size, fan_out: torch.Size) -> Tensor:
    """The layer as a matrix in float64, transposed or not, with its smaller side first."""
    n = min(fan_in.numel(), fan_out.numel())
    basis = torch.eye(n, dtype=torch.float64, device=layer.weight.device)
    product, transposed = _products(layer, basis.new_zeros(n, *fan_in))
    if fan_in.numel() == n:
        return product(basis.view(n, *fan_in)).flatten(1)
    return transposed(basis.view(n, *fan_out)).flatten(1)


def _products(layer: nn.Conv2d, x: Tensor) -> tuple[Product, Product]:
    """The convolution without bias and its transpose, with the weight as it is used, in float64."""
    weight = layer.weight.double()
    if isinstance(layer, LipschitzConv2d):
        return partial(same_conv, weight=weight), partial(same_conv_transpose, weight=weight)
    plain = copy.deepcopy(layer).double()
    plain.bias = None
    jacobian = linearize(plain, x)
    return jacobian.jvp, jacobian.vjp


def _of_gram(matrices: Tensor) -> Tensor:  # (..., m, n) with m <= n -> (..., m), descending
    return torch.linalg.eigvalsh(matrices @ matrices.mH).clamp(min=0).sqrt().flip(-1)


def _is_compression(layer: nn.Conv2d, fan_in: torch.Size, fan_out: torch.Size) -> bool:
    """Whether the circular convolution on a torus that the image and its padding fit into contains the layer."""
    plain = layer.stride == (1, 1) and layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    return plain and fan_in[1:] == fan_out[1:]


def _on_torus(weight: Tensor, image_size: tuple[int, int]) -> Tensor:  # (K,), descending
    """Singular values of all frequencies; of conjugate pairs, of which one is given, twice."""
    smaller_first = weight if weight.shape[0] <= weight.shape[1] else weight.transpose(0, 1)
    values = torch.cat([_of_gram(part) for part in torus_matrices(smaller_first, image_size)])
    width = image_size[1] + weight.shape[3] - 1
    columns = torch.arange(width // 2 + 1, device=weight.device).repeat(image_size[0] + weight.shape[2] - 1)
    alone = (columns == 0) | (2 * columns == width)
    return torch.cat([values, values[~alone]]).flatten().sort(descending=True)[0]
