"""The plain residual network, to compare with: nothing keeps it invertible."""

__all__ = ["PlainBlock"]

from itertools import pairwise

from torch import Tensor, nn

from iresnet.activations import make_activation
from iresnet.batchnorm import BatchNorm
from iresnet.operators import channels_last


class PlainBlock(nn.Module):
    r"""A pre-activation residual block with batch norm and free weights, in the shape of the invertible one.

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
            conv = nn.Conv2d(fan_in, fan_out, kernel_size, padding="same", bias=False)
            layers += [BatchNorm(fan_in), make_activation(activation), conv]
        self.g = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W)
        """Add what the layers make of the input; see the class."""
        x = channels_last(x)
        return x + self.g(x)
