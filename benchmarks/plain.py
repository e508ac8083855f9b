"""The plain residual network: what nobody needs to invert costs this much, the floor."""

__all__ = ["PlainBlock", "free_conv"]

import torch
from blocks import Bottleneck, Conv
from torch import Tensor, nn

from iresnet.bijections import Bijection


class PlainBlock(Bijection):
    """z = x + g(x) with free weights, channels-last and with activations in place: without constraint, log-determinant
    (zero instead) and inverse."""

    def __init__(self, g: Bottleneck):
        super().__init__()
        self.g = g.build(free_conv, inplace=True).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return x + self.g(x)

    def forward_and_logdet(self, x: Tensor, *, logdet: None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return self(x), x.new_zeros(len(x))

    def inverse(self, z: Tensor, *, solve: None = None) -> Tensor:
        raise NotImplementedError("the floor is not inverted")


def free_conv(conv: Conv) -> nn.Conv2d:
    out, fan_in, *kernel = conv.weight.shape
    layer = nn.Conv2d(fan_in, out, (kernel[0], kernel[1]), padding="same")
    layer.weight.data, layer.bias.data = conv.weight, conv.bias
    return layer
