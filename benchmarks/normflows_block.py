"""Blocks of the package normflows in the place of iresnet's, with its own defaults.

In training: ``LipschitzCNN`` (Swish, coefficient 0.97 each layer, five power iterations after each step by
``update_lipschitz``, as in its examples) in ``flows.Residual``: the unbiased estimator of Residual Flows with two exact
terms and a geometric number of further ones, a Neumann series for the gradient, which is taken in forward. To evaluate,
the estimator has twenty exact terms. Inverses are its fixed-point iteration; of a trained map, whose ELUs and weights
its layers then carry, so that it solves the same equations.
"""

__all__ = ["NormflowsBlock", "update"]

from functools import partial

import normflows as nf
import torch
from blocks import Bottleneck, Conv
from normflows.nets.lipschitz import InducedNormConv2d
from torch import Tensor, nn

from iresnet.bijections import Bijection

update = partial(nf.utils.update_lipschitz, n_iterations=5)
"""Normalize the weights of a model, as its examples do after every step."""


class NormflowsBlock(Bijection):
    """z = x + g(x).

    Args:
        g: its shapes, and its weights when ``carry``.
        carry: compute g itself, instead of a new network of its shapes.
        tol: change of an element at which the inverse stops; the package's own criterion when None, about 0.003.
    """

    def __init__(self, g: Bottleneck, *, carry: bool = False, tol: float | None = None):
        super().__init__()
        kernels = [conv.weight.shape[-1] for conv in g.convs]
        net = g.build(_carrying) if carry else nf.nets.LipschitzCNN(g.channels, kernels)
        self.flow = nf.flows.Residual(net)  # its inverse is the direction from data to latent
        self.tolerances = {} if tol is None else {"atol": tol**2, "rtol": 0.0}  # it compares them with squares

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.iresblock(x)

    def forward_and_logdet(self, x: Tensor, *, logdet: None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return self.flow.inverse(x)

    @torch.no_grad()
    def inverse(self, z: Tensor, *, solve: None = None) -> Tensor:  # noqa: ARG002
        return self.flow.iresblock._inverse_fixed_point(z, **self.tolerances)


def _carrying(conv: Conv) -> nn.Module:
    out, fan_in, kernel, _ = conv.weight.shape
    layer = InducedNormConv2d(fan_in, out, kernel, stride=1, padding=kernel // 2, n_iterations=5)
    layer.weight.data, layer.bias.data = conv.weight, conv.bias
    layer(torch.zeros(1, fan_in, *conv.image_size))  # learns the size of its images
    layer.compute_weight(update=True, n_iterations=50)
    return layer
