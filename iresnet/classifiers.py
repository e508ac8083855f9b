"""Heads on bijections: classifiers, and hybrids that are classifier and density at once."""

__all__ = ["Classifier", "Hybrid"]

import torch
from torch import Tensor, nn

from iresnet.batchnorm import LazyBatchNorm
from iresnet.bijections import Bijection
from iresnet.errors import IResNetError
from iresnet.flows import Density, Flow, check_finite
from iresnet.logdet import LogDetEstimator


class _Head(nn.Module):
    """The published head: batch norm, ReLU, mean over pixels, linear. Sizes are taken from the first input."""

    def __init__(self, n_classes: int):
        super().__init__()
        if n_classes < 2:
            raise IResNetError(f"a classifier needs at least 2 classes, got {n_classes}")
        self.norm = LazyBatchNorm()
        self.linear = nn.LazyLinear(n_classes)

    def forward(self, features: Tensor) -> Tensor:  # (N, C, ...) -> (N, n_classes)
        pixels = features.flatten(2) if features.dim() > 2 else features.unsqueeze(2)
        return self.linear(torch.relu(self.norm(pixels)).mean(2))


class Classifier(nn.Module):
    r"""A network with a classification head; when it is a bijection, its features can be mapped back to the input.

    The head is lazy: its sizes come from the first batch (:func:`iresnet.zoo.build` has run one already).

    Args:
        network: the feature map, (N, \*E) -> (N, C, H, W) or (N, D): a :class:`~iresnet.Bijection`, or any other
            to compare with.
        n_classes: number of classes.

    Reference:
        Invertible Residual Networks, Behrmann et al. 2019, https://arxiv.org/abs/1811.00995

    Example:
        >>> import iresnet as ir
        >>> classifier = ir.Classifier(ir.ResidualBlock(ir.networks.conv_bottleneck((3, 8, 8), 16)), n_classes=10)
        >>> classifier(torch.randn(4, 3, 8, 8)).shape
        torch.Size([4, 10])
    """

    def __init__(self, network: nn.Module, n_classes: int):
        super().__init__()
        self.network = network
        self.head = _Head(n_classes)

    @property
    def bijection(self) -> Bijection:
        """The network as an invertible map.

        Raises:
            IResNetError: when it is none.
        """
        if not isinstance(self.network, Bijection):
            raise IResNetError(
                "this classifier is a plain network without inverse; train an invertible one (--model.name iresnet)"
            )
        return self.network

    def forward(self, x: Tensor) -> Tensor:  # (N, *E) -> (N, n_classes)
        """Logits of the classes."""
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Features before the head, from which :meth:`invert` recovers x; x must be finite."""
        check_finite(x, self.training)
        return self.network(x)

    def invert(self, z: Tensor) -> Tensor:
        """Map features of a bijection back to inputs; warns when an inverse did not converge."""
        return self.bijection.inverse(z)


class Hybrid(nn.Module):
    r"""A flow whose latent vector also feeds a classification head: :math:`\log p(x)` and :math:`p(y|x)` in one pass.

    Args:
        flow: the density.
        n_classes: number of classes.

    Reference:
        Hybrid Models with Deep and Invertible Features, Nalisnick et al. 2019, https://arxiv.org/abs/1902.02767

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.ResidualBlock(ir.networks.mlp(2, 16)), ir.StandardNormal(2))
        >>> log_prob, logits = ir.Hybrid(flow, n_classes=3).log_prob_and_logits(torch.randn(5, 2))
        >>> log_prob.shape, logits.shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    def __init__(self, flow: Flow, n_classes: int):
        super().__init__()
        self.flow = flow
        self.head = _Head(n_classes)

    @property
    def bijection(self) -> Bijection:
        """The bijection of the flow."""
        return self.flow.bijection

    def forward(self, x: Tensor) -> Tensor:  # (N, *E) -> (N, n_classes)
        """Logits of the classes."""
        return self.head(self.flow.encode(x))

    def log_prob_and_logits(self, x: Tensor, *, logdet: LogDetEstimator | None = None) -> tuple[Tensor, Tensor]:
        """Log-densities, (N,), and logits, (N, n_classes), from one pass through the bijection."""
        density, logits = self.density_and_logits(x, logdet=logdet)
        return density.log_prob, logits

    def density_and_logits(self, x: Tensor, *, logdet: LogDetEstimator | None = None) -> tuple[Density, Tensor]:
        """Latent vectors with the terms of their log-density, and logits, from one pass through the bijection."""
        density = self.flow.density(x, logdet=logdet)
        return density, self.head(density.z)
