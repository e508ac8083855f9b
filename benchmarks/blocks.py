"""Put other residual blocks in the place of a model's, with the same shapes and the same weights to start from."""

__all__ = ["Bottleneck", "bottleneck_of", "swapped"]

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

import iresnet as ir
from iresnet.lipschitz import LipschitzConv2d

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Conv:
    """A convolution of a map g: its normalized weight (out, in, k, k), bias (out,), and the size of its images."""

    weight: Tensor
    bias: Tensor
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Bottleneck:
    """A map g of ELUs and "same" convolutions: all that a block in its place needs to know.

    Attributes:
        convs: in the order of the map, with an ELU between two.
        preactivation: whether an ELU comes before the first.
    """

    convs: tuple[Conv, ...]
    preactivation: bool

    @property
    def channels(self) -> list[int]:
        """Of the input and of the output of each convolution."""
        return [self.convs[0].weight.shape[1], *(conv.weight.shape[0] for conv in self.convs)]

    def build(self, layer: Callable[[Conv], nn.Module], *, inplace: bool = False) -> nn.Sequential:
        """Put layers together; ``inplace`` overwrites what the convolutions return, never the input of the map."""
        layers: list[nn.Module] = [nn.ELU()] if self.preactivation else []
        for conv in self.convs:
            layers += [layer(conv), nn.ELU(inplace=inplace)]
        return nn.Sequential(*layers[:-1])


@torch.no_grad()
def bottleneck_of(g: nn.Module) -> Bottleneck:
    """Read a map of :func:`iresnet.networks.conv_bottleneck`."""
    layers = list(g.children())
    convs = [layer for layer in layers if isinstance(layer, LipschitzConv2d)]
    assert len(convs) + sum(isinstance(layer, nn.ELU) for layer in layers) == len(layers), g
    weights = [conv.normalization.normalize(conv.unnormalized_weight).clone() for conv in convs]
    return Bottleneck(
        tuple(Conv(w, conv.bias.clone(), conv.image_size) for w, conv in zip(weights, convs, strict=True)),
        preactivation=isinstance(layers[0], nn.ELU),
    )


def swapped(module: Module, block: Callable[[Bottleneck], ir.Bijection]) -> Module:
    """A copy of a module with other blocks in the place of its residual blocks; all else stays what it is."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ir.ResidualBlock):
                setattr(parent, name, block(bottleneck_of(child.g)).train(child.training))
    return module
