"""Contractive maps g for residual blocks, batch norm over processes, and the plain block to compare with."""

__all__ = [
    "BatchNorm",
    "LazyBatchNorm",
    "PlainBlock",
    "conv_bottleneck",
    "dense_concat",
    "mlp",
]

from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from iresnet.activations import make_activation, widening
from iresnet.context import ContextShift
from iresnet.errors import IResNetError
from iresnet.lipschitz import DenseConcat, LipschitzConv2d, LipschitzLinear
from iresnet.operators import at_least_float32, channels_last
from iresnet.renamed import accept_old_names

# -- contractive maps --------------------------------------------------------------------------------------------------


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
    context: int = 0,
) -> nn.Sequential:
    r"""Build the convolutional map of the 2019 paper: 3x3, 1x1, 3x3, with activations before each.

    .. math:: g = W_3 \phi W_2 \phi W_1 \phi, \quad \mathrm{Lip}(g) \le c^3

    Args:
        shape: (C, H, W) of input and output.
        hidden: channels in between.
        coeff: Lipschitz coefficient of each convolution, in (0, 1); None for no constraint.
        activation: name in :data:`iresnet.activations.ACTIVATIONS`.
        preactivation: whether an activation comes first; the published models leave it out in their first block.
        normalization: see :data:`iresnet.normalization.NORMALIZATIONS`.
        n_steps: its iterations, the default of the normalization when None.
        context: features of a context that shifts the outputs of all linear maps; 0 without one.

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
    options = {"normalization": normalization, "n_steps": n_steps}
    sizes = pairwise(_positive("hidden", (channels, hidden, hidden, channels)))
    layers: list[nn.Module] = []
    for (features, fan_out), kernel_size in zip(sizes, (3, 1, 3), strict=True):
        fan_in = features * widening(activation) if layers or preactivation else features
        conv = LipschitzConv2d(fan_in, fan_out, kernel_size, coeff, image_size=(height, width), **options)
        layers += [make_activation(activation), conv, *_shifts(context, fan_out)]
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
    context: int = 0,
) -> nn.Sequential:
    r"""Build the map of invertible DenseNets: every layer takes the outputs of all layers before it.

    .. math:: g = W_d h_{d-1} \cdots h_1, \quad h_i(x) = [a_i x, b_i \phi(W_i x)], \quad \mathrm{Lip}(g) \le c

    The weights are 3x3 convolutions, the last one 1x1, or dense layers for vectors. The bound is near c, where that of
    the other maps is a power of c, so c may be larger for the same contraction.

    Args:
        shape: (C, H, W) or (D,) of input and output.
        hidden: channels that each layer adds, times those that the activation makes of each.
        depth: number of layers. What the paper calls depth 3 and growth 172 has ``depth=4``, and ``hidden=86`` with the
            activation clipswish, which makes two channels of each.
        coeff: Lipschitz coefficient of each layer, in (0, 1); None for no constraint.
        activation: name in :data:`iresnet.activations.ACTIVATIONS`.
        normalization: see :data:`iresnet.normalization.NORMALIZATIONS`.
        n_steps: its iterations, the default of the normalization when None.
        context: features of a context that shifts the outputs of all linear maps; 0 without one.

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
    options = {"normalization": normalization, "n_steps": n_steps}

    def layer(fan_in: int, fan_out: int, kernel_size: int) -> nn.Module:
        if not pixels:
            return LipschitzLinear(fan_in, fan_out, coeff, **options)
        return LipschitzConv2d(fan_in, fan_out, kernel_size, coeff, image_size=(pixels[0], pixels[1]), **options)

    widths = [channels + i * hidden * widening(activation) for i in range(depth)]
    grow = [
        DenseConcat(nn.Sequential(layer(w, hidden, 3), *_shifts(context, hidden), make_activation(activation)))
        for w in widths[:-1]
    ]
    return nn.Sequential(*grow, layer(widths[-1], channels, 1), *_shifts(context, channels))


@accept_old_names
def mlp(
    features: int,
    hidden: int,
    *,
    depth: int = 3,
    coeff: float | None = 0.9,
    activation: str = "elu",
    preactivation: bool = False,
    normalization: str = "power",
    n_steps: int | None = None,
    context: int = 0,
) -> nn.Sequential:
    r"""Build a contractive multi-layer perceptron for vectors.

    .. math:: g = W_d \phi \cdots \phi W_1, \quad \mathrm{Lip}(g) \le c^d

    Args:
        features: size of input and output.
        hidden: size of the layers in between.
        depth: number of dense layers.
        coeff: Lipschitz coefficient of each layer, in (0, 1); None for no constraint.
        activation: name in :data:`iresnet.activations.ACTIVATIONS`.
        preactivation: whether an activation comes first, as in Residual Flows.
        normalization: see :data:`iresnet.normalization.NORMALIZATIONS`.
        n_steps: its iterations, the default of the normalization when None.
        context: features of a context that shifts the outputs of all linear maps; 0 without one.

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
    for features_in, fan_out in pairwise(sizes):
        fan_in = features_in * widening(activation) if layers or preactivation else features_in
        layer = LipschitzLinear(fan_in, fan_out, coeff, normalization=normalization, n_steps=n_steps)
        layers += [make_activation(activation), layer, *_shifts(context, fan_out)]
    return nn.Sequential(*layers if preactivation else layers[1:])


def _shifts(context: int, features: int) -> list[nn.Module]:
    return [ContextShift(context, features)] if context else []


def _positive(name: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if min(sizes) < 1:
        raise IResNetError(f"{name} must be positive, got {sizes}")
    return sizes


# -- batch norm over processes -----------------------------------------------------------------------------------------


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    r"""Batch norm of each channel over the batch of all processes and all pixels, of vectors and of images.

    Shape:
        (N, C) or (N, C, H, W), the same out.

    Example:
        >>> y = BatchNorm(3)(5 + 2 * torch.randn(64, 3, 4, 4))
        >>> bool(y.mean((0, 2, 3)).abs().max() < 1e-5)
        True
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in torch)
        """Normalize each channel."""
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(input)
        x = at_least_float32(input)
        pixels = list(range(2, x.dim()))
        mean = _MeanOfProcesses.apply(x.mean((0, *pixels), keepdim=True))
        variance = _MeanOfProcesses.apply((x - mean).square().mean((0, *pixels), keepdim=True))
        self._update_averages(mean, variance, dist.get_world_size() * x[:, 0].numel())
        weight, bias = (p.view(-1, *[1] * len(pixels)) for p in (self.weight, self.bias))
        return (x - mean) * (variance + self.eps).rsqrt() * weight + bias

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (the name in torch)
        """Accept any number of pixels."""

    @torch.no_grad()
    def _update_averages(self, mean: Tensor, variance: Tensor, n: int) -> None:
        """Update the running averages as torch does, that of the variance with the unbiased one."""
        for average, value in ((self.running_mean, mean), (self.running_var, variance * n / (n - 1))):
            assert average is not None
            average.lerp_(value.flatten(), self.momentum or 0.0)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)


class LazyBatchNorm(nn.modules.batchnorm._LazyNormBase, BatchNorm):
    """Batch norm that takes the number of channels from its first input."""

    cls_to_become = BatchNorm


class _MeanOfProcesses(torch.autograd.Function):
    """Mean over the processes, of values in the forward pass and of gradients in the backward pass."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004
        return _mean(values)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # noqa: ARG004  # pyright: ignore[reportIncompatibleMethodOverride]
        return _mean(upstream)


def _mean(values: Tensor) -> Tensor:
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


# -- the plain block ---------------------------------------------------------------------------------------------------


class PlainBlock(nn.Module):
    r"""Pre-activation residual block with batch norm and unconstrained weights, with the layers of the invertible one.

    .. math:: z = x + W_3 \phi B_3 W_2 \phi B_2 W_1 \phi B_1 x

    with 3x3, 1x1 and 3x3 convolutions W, batch norms B and the activation :math:`\phi`. It is no
    :class:`~iresnet.Bijection`: two inputs may have one output, and batch norm mixes the samples of a training batch.

    Args:
        channels: of input and output.
        hidden: channels in between.
        activation: name in :data:`iresnet.activations.ACTIVATIONS`.

    Reference:
        Identity Mappings in Deep Residual Networks, He et al. 2016, https://arxiv.org/abs/1603.05027

    Example:
        >>> import torch
        >>> PlainBlock(3, 16)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(self, channels: int, hidden: int, *, activation: str = "relu"):
        super().__init__()
        layers: list[nn.Module] = []
        sizes = pairwise((channels, hidden, hidden, channels))
        for (fan_in, fan_out), kernel_size in zip(sizes, (3, 1, 3), strict=True):
            conv = nn.Conv2d(fan_in * widening(activation), fan_out, kernel_size, padding="same", bias=False)
            layers += [BatchNorm(fan_in), make_activation(activation), conv]
        self.g = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W)
        """Add the branch to the input; see the class."""
        x = channels_last(x)
        return x + self.g(x)
