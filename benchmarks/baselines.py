"""Blocks to compare with, of the same shapes and initial weights: the method of 2019, normflows, a plain ResNet.

:func:`swap_blocks` puts them in the place of the residual blocks of a model. normflows comes with the extra ``bench``;
only its own block needs it.
"""

__all__ = [
    "Block2019",
    "Bottleneck",
    "Conv",
    "NormflowsBlock",
    "PlainBlock",
    "SpectralConv2d",
    "bottleneck_of",
    "free_conv",
    "logdet_series",
    "normalize_normflows",
    "swap_blocks",
    "update_normflows",
]

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import iresnet as ir
from iresnet.bijections import Bijection
from iresnet.lipschitz import LipschitzConv2d

Module = TypeVar("Module", bound=nn.Module)

# -- maps g, and blocks in their place -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conv:
    """Convolution of a map g: normalized weight (out, in, k, k), bias (out,), and the size of its images."""

    weight: Tensor
    bias: Tensor
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Bottleneck:
    """Map g of "same" convolutions with ELUs in between.

    Attributes:
        convs: in the order of the map.
        preactivation: whether an ELU comes before the first convolution.
    """

    convs: tuple[Conv, ...]
    preactivation: bool

    @property
    def channels(self) -> list[int]:
        """Channels of the input and of the output of each convolution."""
        return [self.convs[0].weight.shape[1], *(conv.weight.shape[0] for conv in self.convs)]

    def build(self, layer: Callable[[Conv], nn.Module], *, inplace: bool = False) -> nn.Sequential:
        """Build the map with other layers; ``inplace`` lets ELUs overwrite the outputs of convolutions."""
        layers: list[nn.Module] = [nn.ELU()] if self.preactivation else []
        for conv in self.convs:
            layers += [layer(conv), nn.ELU(inplace=inplace)]
        return nn.Sequential(*layers[:-1])


@torch.no_grad()
def bottleneck_of(g: nn.Module) -> Bottleneck:
    """Read shapes and normalized weights of a map of :func:`iresnet.networks.conv_bottleneck`."""
    layers = list(g.children())
    convs = [layer for layer in layers if isinstance(layer, LipschitzConv2d)]
    assert len(convs) + sum(isinstance(layer, nn.ELU) for layer in layers) == len(layers), g
    weights = [conv.normalization.normalize(conv.unnormalized_weight).clone() for conv in convs]
    return Bottleneck(
        tuple(Conv(w, conv.bias.clone(), conv.image_size) for w, conv in zip(weights, convs, strict=True)),
        preactivation=isinstance(layers[0], nn.ELU),
    )


def swap_blocks(module: Module, block: Callable[[Bottleneck], Bijection]) -> Module:
    """Copy a module, with other blocks in the place of its residual blocks."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ir.ResidualBlock):
                setattr(parent, name, block(bottleneck_of(child.g)).train(child.training))
    return module


# -- 2019 ------------------------------------------------------------------------------------------------------------


class SpectralConv2d(nn.Module):
    """Zero-padded convolution whose weight is scaled down to spectral norm ``coeff`` in every call."""

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
        """Return the normalized weight; the gradient of its norm holds the singular vectors constant."""
        if self.training:
            with torch.no_grad():
                for _ in range(self.n_power_steps):
                    self.v.copy_(_unit(F.conv_transpose2d(self.u, self.weight, padding=self.padding)))
                    self.u.copy_(_unit(F.conv2d(self.v, self.weight, padding=self.padding)))
        u, v = self.u.clone(), self.v.clone()  # backward may come after the next iteration
        sigma = torch.sum(u * F.conv2d(v, self.weight, padding=self.padding))
        return self.weight / torch.clamp(sigma / self.coeff, min=1.0)

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
    """Residual block of 2019 as its paper describes it (Behrmann et al., https://arxiv.org/abs/1811.00995).

    Weights are normalized in every call, in training after five power iterations: with the convolution and its
    transpose on images of the size in use, for 1x1 convolutions with the matrix. The log-determinant is the power
    series cut after five terms with one Gaussian probe; autograd takes its Jacobian products and, in training,
    differentiates through them. The inverse is a hundred fixed-point steps, however few would do.

    Args:
        g: shapes and initial weights.
        n_terms: of the power series.
        n_inverse_steps: of every inverse.
    """

    def __init__(self, g: Bottleneck, *, n_terms: int = 5, n_inverse_steps: int = 100):
        super().__init__()
        self.g = g.build(SpectralConv2d)
        self.n_terms, self.n_inverse_steps = n_terms, n_inverse_steps

    def forward(self, x: Tensor) -> Tensor:
        return x + self.g(x)

    def forward_and_logdet(self, x: Tensor, *, logdet: object = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            value = self.g(x)
            total = logdet_series(value, x, self.n_terms, create_graph=create_graph)
        z = x + value
        return (z, total) if create_graph else (z.detach(), total.detach())

    @torch.no_grad()
    def inverse(self, z: Tensor, *, solver: object = None, report: object = None) -> Tensor:  # noqa: ARG002
        x = z
        for _ in range(self.n_inverse_steps):
            x = z - self.g(x)
        return x


# -- normflows -------------------------------------------------------------------------------------------------------


class NormflowsBlock(Bijection):
    """Residual block of the package normflows with its own defaults.

    In training: ``LipschitzCNN`` (Swish, coefficient 0.97 each layer, five power iterations after each step by
    ``update_lipschitz``, as in its examples) in ``flows.Residual``: the unbiased estimator of Residual Flows with two
    exact terms and a geometric number of further ones, a Neumann series for the gradient, which is taken in forward.
    In evaluation the estimator has twenty exact terms. The inverse is its fixed-point iteration. With ``carry`` its
    layers take the ELUs and weights of g, so that it solves the same equations as the block that it replaces.

    Args:
        g: shapes, and with ``carry`` also weights.
        carry: compute g itself instead of a new network of its shapes.
        tol: change of an element at which the inverse stops; if None, the criterion of the package, about 0.003.
    """

    def __init__(self, g: Bottleneck, *, carry: bool = False, tol: float | None = None):
        import normflows as nf

        super().__init__()
        kernels = [conv.weight.shape[-1] for conv in g.convs]
        net = g.build(_induced_norm_conv) if carry else nf.nets.LipschitzCNN(g.channels, kernels)
        self.flow = nf.flows.Residual(net)  # its inverse is the direction from data to latent
        self.tolerances = {} if tol is None else {"atol": tol**2, "rtol": 0.0}  # it compares them with squares

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.iresblock(x)

    def forward_and_logdet(self, x: Tensor, *, logdet: object = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return self.flow.inverse(x)

    @torch.no_grad()
    def inverse(self, z: Tensor, *, solver: object = None, report: object = None) -> Tensor:  # noqa: ARG002
        return self.flow.iresblock._inverse_fixed_point(z, **self.tolerances)


def _induced_norm_conv(conv: Conv) -> nn.Module:
    from normflows.nets.lipschitz import InducedNormConv2d

    out, fan_in, kernel, _ = conv.weight.shape
    layer = InducedNormConv2d(fan_in, out, kernel, stride=1, padding=kernel // 2, n_iterations=5)
    layer.weight.data, layer.bias.data = conv.weight, conv.bias
    layer(torch.zeros(1, fan_in, *conv.image_size))  # learns the size of its images
    layer.compute_weight(update=True, n_iterations=50)
    return layer


def update_normflows(module: nn.Module) -> None:
    """Normalize the weights of a model, as the examples of normflows do after every step."""
    import normflows as nf

    nf.utils.update_lipschitz(module, n_iterations=5)


def normalize_normflows(module: nn.Module) -> list[Tensor]:
    """Normalize the weights of a model and return them."""
    from normflows.nets.lipschitz import InducedNormConv2d

    update_normflows(module)
    return [layer.compute_weight(update=False) for layer in module.modules() if isinstance(layer, InducedNormConv2d)]


# -- plain -----------------------------------------------------------------------------------------------------------


class PlainBlock(Bijection):
    """Plain residual block, a lower bound of the cost: no constraint, no log-determinant (zero instead), no inverse.

    Its weights are channels-last, and its activations are in place.
    """

    def __init__(self, g: Bottleneck):
        super().__init__()
        self.g = g.build(free_conv, inplace=True).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return x + self.g(x)

    def forward_and_logdet(self, x: Tensor, *, logdet: object = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return self(x), x.new_zeros(len(x))

    def inverse(self, z: Tensor, *, solver: object = None, report: object = None) -> Tensor:
        raise NotImplementedError("the floor is not inverted")


def free_conv(conv: Conv) -> nn.Conv2d:
    """Build a convolution without constraint."""
    out, fan_in, *kernel = conv.weight.shape
    layer = nn.Conv2d(fan_in, out, (kernel[0], kernel[1]), padding="same")
    layer.weight.data, layer.bias.data = conv.weight, conv.bias
    return layer
