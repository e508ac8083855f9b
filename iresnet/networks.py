"""The maps g of residual blocks, built from contractive layers."""

__all__ = ["conv_bottleneck", "dense_concat", "mlp"]

from itertools import pairwise

from torch import nn

from iresnet.activations import make_activation
from iresnet.errors import IResNetError
from iresnet.lipschitz import DenseConcat, LipschitzConv2d, LipschitzLinear
from iresnet.renamed import accept_old_names


@accept_old_names
def conv_bottleneck(
    shape: tuple[int, int, int],
    hidden: int,
    *,
    coeff: float | None = 0.9,
    activation: str = "elu",
    preactivation: bool = True,
    normalization: str = "power",
    n_steps: int | None = None,
) -> nn.Sequential:
    r"""The convolutional map of the 2019 paper: 3x3, 1x1, 3x3, with activations before each.

    .. math:: g = W_3 \phi W_2 \phi W_1 \phi, \quad \mathrm{Lip}(g) \le c^3

    Args:
        shape: (C, H, W) of input and output.
        hidden: channels in between.
        coeff: Lipschitz coefficient of each convolution, in (0, 1); None for no constraint.
        activation: name in :data:`iresnet.activations.ACTIVATIONS`.
        preactivation: whether an activation comes first; the published models leave it out in their first block.
        normalization: see :data:`iresnet.normalization.NORMALIZATIONS`.
        n_steps: its iterations, the default of the normalization when None.

    Raises:
        IResNetError: when ``coeff`` is outside (0, 1) or a size is not positive.
        UnknownNameError: for an unknown activation.

    Reference:
        Invertible Residual Networks, Behrmann et al. 2019, https://arxiv.org/abs/1811.00995

    Example:
        >>> import torch
        >>> g = conv_bottleneck((3, 8, 8), 16)
        >>> g(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """
    channels, height, width = _positive("shape", shape)
    bounded = {"normalization": normalization, "n_steps": n_steps}
    sizes = pairwise(_positive("hidden", (channels, hidden, hidden, channels)))
    layers: list[nn.Module] = []
    for (fan_in, fan_out), kernel_size in zip(sizes, (3, 1, 3), strict=True):
        layers += [
            make_activation(activation),
            LipschitzConv2d(fan_in, fan_out, kernel_size, coeff, image_size=(height, width), **bounded),
        ]
    return nn.Sequential(*layers if preactivation else layers[1:])


@accept_old_names
def dense_concat(
    shape: tuple[int, ...],
    hidden: int,
    *,
    depth: int = 3,
    coeff: float | None = 0.9,
    activation: str = "elu",
    normalization: str = "power",
    n_steps: int | None = None,
) -> nn.Sequential:
    r"""The map of invertible DenseNets: every layer sees the outputs of all before it.

    .. math:: g = W_d h_{d-1} \cdots h_1, \quad h_i(x) = [a_i x, b_i \phi(W_i x)], \quad \mathrm{Lip}(g) \le c

    The weights are 3x3 convolutions, the last one 1x1, or dense layers for vectors. Its bound is near c where that of
    the other maps here is a power of c, so c may be larger at the same contraction.

    Args:
        shape: (C, H, W) or (D,) of input and output.
        hidden: channels that each layer adds.
        depth: number of layers.
        coeff: Lipschitz coefficient of each layer, in (0, 1); None for no constraint.
        activation: name in :data:`iresnet.activations.ACTIVATIONS`.
        normalization: see :data:`iresnet.normalization.NORMALIZATIONS`.
        n_steps: its iterations, the default of the normalization when None.

    Raises:
        IResNetError: when ``coeff`` is outside (0, 1) or a size is not positive.
        UnknownNameError: for an unknown activation.

    Reference:
        Invertible DenseNets with Concatenated LipSwish, Perugachi-Diaz, Tomczak and Bhulai 2021,
        https://arxiv.org/abs/2102.02694

    Example:
        >>> import torch
        >>> dense_concat((3, 8, 8), 16)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """
    channels, *pixels = _positive("shape", shape)
    _positive("hidden and depth", (hidden, depth))
    bounded = {"normalization": normalization, "n_steps": n_steps}

    def layer(fan_in: int, fan_out: int, kernel_size: int) -> nn.Module:
        if not pixels:
            return LipschitzLinear(fan_in, fan_out, coeff, **bounded)
        return LipschitzConv2d(fan_in, fan_out, kernel_size, coeff, image_size=(pixels[0], pixels[1]), **bounded)

    widths = [channels + i * hidden for i in range(depth)]
    grow = [DenseConcat(nn.Sequential(layer(w, hidden, 3), make_activation(activation))) for w in widths[:-1]]
    return nn.Sequential(*grow, layer(widths[-1], channels, 1))


@accept_old_names
def mlp(
    features: int,
    hidden: int,
    *,
    depth: int = 3,
    coeff: float | None = 0.9,
    activation: str = "elu",
    normalization: str = "power",
    n_steps: int | None = None,
) -> nn.Sequential:
    r"""A contractive multi-layer perceptron for vectors.

    .. math:: g = W_d \phi \cdots \phi W_1, \quad \mathrm{Lip}(g) \le c^d

    Args:
        features: size of input and output.
        hidden: size of the layers in between.
        depth: number of dense layers.
        coeff: Lipschitz coefficient of each layer, in (0, 1); None for no constraint.
        activation: name in :data:`iresnet.activations.ACTIVATIONS`.
        normalization: see :data:`iresnet.normalization.NORMALIZATIONS`.
        n_steps: its iterations, the default of the normalization when None.

    Raises:
        IResNetError: when ``coeff`` is outside (0, 1) or a size is not positive.
        UnknownNameError: for an unknown activation.

    Example:
        >>> import torch
        >>> mlp(2, 64)(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """
    sizes = _positive("features, hidden and depth", (features, *[hidden] * (depth - 1), features, depth))[:-1]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layer = LipschitzLinear(fan_in, fan_out, coeff, normalization=normalization, n_steps=n_steps)
        layers += [layer, make_activation(activation)]
    return nn.Sequential(*layers[:-1])


def _positive(name: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if min(sizes) < 1:
        raise IResNetError(f"{name} must be positive, got {sizes}")
    return sizes
