"""Heads on bijections: classifiers, and hybrids that are classifier and density at once."""

__all__ = ["Classifier", "Hybrid"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from iresnet.bijections import Bijection, LogDets, latent_shapes
from iresnet.bounds import upper_bound
from iresnet.errors import IResNetError
from iresnet.flows import Density, Flow, check_data
from iresnet.networks import BatchNorm, LazyBatchNorm
from iresnet.precision import default_precision


class _Head(nn.Module):
    """Published head: batch norm, ReLU, mean over pixels, linear layer. Sizes are taken from the first input."""

    def __init__(self, n_classes: int):
        super().__init__()
        self.norm = LazyBatchNorm()
        self.linear = nn.LazyLinear(n_classes)

    def forward(self, features: Tensor) -> Tensor:  # (N, C, ...) -> (N, n_classes)
        pixels = features.flatten(2) if features.dim() > 2 else features.unsqueeze(2)
        with default_precision(training=self.training, device=features.device):
            return self.linear(torch.relu(self.norm(pixels)).mean(2))

    @torch.no_grad()
    def upper_bound(self, features: Tensor) -> float:  # (N, C, ...)
        r"""Return a proved Lipschitz constant of the differences between logits, in eval mode.

        With S the scales of batch norm and W the weight, the mean over P pixels gives
        :math:`|W S|_2 / \sqrt P`. The mean row of W, which moves all logits alike, is left out.
        """
        weight = self.linear.weight.double()
        scaled = (weight - weight.mean(0)) * _scales(self.norm)
        return _norm(scaled) / math.sqrt(math.prod(features.shape[2:]))


class _ImageHead(nn.Module):
    """Linear head on convolutional features of the images that a latent vector consists of.

    Latents are trained to look like noise and are no features themselves. So each image, one for each scale, passes two
    convolutions with batch norm and ReLU before the mean over its pixels.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], hidden: int, n_classes: int):
        super().__init__()
        self.shapes = shapes
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(shape[0], hidden, 3, padding=1, bias=False),  # the biases are those of batch norm
                BatchNorm(hidden),
                nn.ReLU(),
                nn.Conv2d(hidden, 2 * hidden, 3, stride=2, padding=1, bias=False),
                BatchNorm(2 * hidden),
                nn.ReLU(),
            )
            for shape in self.shapes
        )
        self.linear = nn.Linear(2 * hidden * len(self.shapes), n_classes)

    def forward(self, z: Tensor) -> Tensor:  # (N, D) -> (N, n_classes)
        vectors = z.split([math.prod(shape) for shape in self.shapes], dim=1)
        images = [v.view(len(z), *shape) for v, shape in zip(vectors, self.shapes, strict=True)]
        with default_precision(training=self.training, device=z.device):
            features = [branch(x).mean((2, 3)) for branch, x in zip(self.branches, images, strict=True)]
            return self.linear(torch.cat(features, dim=1))

    @torch.no_grad()
    def upper_bound(self, z: Tensor) -> float:  # (N, D)  # noqa: ARG002
        """Return a proved Lipschitz constant of the differences between logits, in eval mode.

        Each branch sees a part of z of its own, so the largest constant is that of all of them together.
        """
        largest = 0.0
        for branch, (_, height, width) in zip(self.branches, self.shapes, strict=True):
            pixels = math.ceil(height / 2) * math.ceil(width / 2)
            layers = branch.children()
            constants = [float(_scales(m).max()) if isinstance(m, BatchNorm) else upper_bound(m) for m in layers]
            largest = max(largest, math.prod(constants) / math.sqrt(pixels))
        weight = self.linear.weight.double()
        return _norm(weight - weight.mean(0)) * largest


def _scales(norm: BatchNorm) -> Tensor:  # (C,)
    """Return the absolute scales of batch norm in eval mode, float64."""
    assert norm.running_var is not None
    return norm.weight.double().abs() / (norm.running_var.double() + norm.eps).sqrt()


def _norm(matrix: Tensor) -> float:
    """Return the largest singular value of a matrix in float64, rounded up; infinity where weights are not finite."""
    if not bool(torch.isfinite(matrix).all()):
        return math.inf
    return float(torch.linalg.matrix_norm(matrix, 2)) * (1 + 1e-10)


def _check_classes(n_classes: int) -> None:
    if n_classes < 2:
        raise IResNetError(f"a classifier needs at least 2 classes, got {n_classes}")


class Classifier(nn.Module):
    r"""Network with a classification head; if it is a bijection, its features can be mapped back to the input.

    The head is lazy: its sizes come from the first batch (:func:`iresnet.zoo.build` has run one already).

    Args:
        network: the feature map, (N, \*E) -> (N, C, H, W) or (N, D): a :class:`~iresnet.Bijection`, or any other
            to compare with.
        n_classes: number of classes.
        event_shape: \*E, so that other data are refused; None to leave that to the layers.

    Reference:
        Invertible Residual Networks, Behrmann et al. 2019, https://arxiv.org/abs/1811.00995

    Example:
        >>> import iresnet as ir
        >>> classifier = ir.Classifier(ir.ResidualBlock(ir.networks.conv_bottleneck((3, 8, 8), 16)), n_classes=10)
        >>> classifier(torch.randn(4, 3, 8, 8)).shape
        torch.Size([4, 10])
    """

    def __init__(self, network: nn.Module, n_classes: int, *, event_shape: Sequence[int] | None = None):
        super().__init__()
        _check_classes(n_classes)
        self.network = network
        self.event_shape = None if event_shape is None else tuple(event_shape)
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
        """Compute the logits of the classes."""
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Compute the features before the head, from which :meth:`invert` recovers x; x must be finite."""
        check_data(x, "this classifier", self.event_shape or (...,), self)
        return self.network(x)

    def invert(self, z: Tensor) -> Tensor:
        """Map features of a bijection back to inputs; warn when an inverse did not converge."""
        return self.bijection.inverse(z)


class Hybrid(nn.Module):
    r"""Flow whose latent vector also feeds a classification head: :math:`\log p(x)` and :math:`p(y|x)` in one pass.

    The head need not be invertible, so nothing constrains it. Where latents consist of images (see
    :func:`~iresnet.bijections.latent_shapes`), each of these passes two convolutions, to ``hidden`` and ``2 * hidden``
    channels, with batch norm and ReLU; the means over pixels of all of them feed a linear layer. Other latents pass
    batch norm, ReLU and a linear layer.

    Args:
        flow: the density.
        n_classes: number of classes.
        hidden: channels of the head, for images.

    Raises:
        IResNetError: for fewer than two classes, or no channels.

    Reference:
        Hybrid Models with Deep and Invertible Features, Nalisnick et al. 2019, https://arxiv.org/abs/1902.02767, for
        both losses; Residual Flows for Invertible Generative Modeling, Chen et al. 2019,
        https://arxiv.org/abs/1906.02735, for a convolution on the latents of each scale.

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.ResidualBlock(ir.networks.mlp(2, 16)), ir.StandardNormal(2))
        >>> log_prob, logits = ir.Hybrid(flow, n_classes=3).log_prob_and_logits(torch.randn(5, 2))
        >>> log_prob.shape, logits.shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    def __init__(self, flow: Flow, n_classes: int, *, hidden: int = 32):
        super().__init__()
        _check_classes(n_classes)
        if not isinstance(hidden, int) or hidden < 1:
            raise IResNetError(f"the head of a hybrid needs at least 1 channel, got {hidden}")
        self.flow = flow
        shapes = latent_shapes(flow.bijection)
        images = [shape for shape in shapes if shape]
        self.head = _ImageHead(images, hidden, n_classes) if len(images) == len(shapes) else _Head(n_classes)

    @property
    def bijection(self) -> Bijection:
        """The bijection of the flow."""
        return self.flow.bijection

    def forward(self, x: Tensor) -> Tensor:  # (N, *E) -> (N, n_classes)
        """Compute the logits of the classes."""
        return self.head(self.flow.encode(x))

    def log_prob_and_logits(self, x: Tensor, *, logdet: LogDets | None = None) -> tuple[Tensor, Tensor]:
        """Compute log-densities, (N,), and logits, (N, n_classes), in one pass through the bijection."""
        density, logits = self.density_and_logits(x, logdet=logdet)
        return density.log_prob, logits

    def density_and_logits(self, x: Tensor, *, logdet: LogDets | None = None) -> tuple[Density, Tensor]:
        """Compute latent vectors with the terms of their log-density, and logits, in one pass through the bijection."""
        density = self.flow.density(x, logdet=logdet)
        return density, self.head(density.z)
