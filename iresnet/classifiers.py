"""Heads on bijections: classifiers, and hybrids that are classifier and density at once."""

__all__ = ["Classifier", "Hybrid"]

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from iresnet.bijections import Bijection
from iresnet.errors import IResNetError
from iresnet.flows import Density, Flow, check_finite
from iresnet.logdet import LogDetEstimator, at_least_float32


class _BatchNorm(nn.BatchNorm1d):
    """Batch norm over the batches of all processes of a distributed run, which torch has for accelerators alone."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in nn.BatchNorm1d); (N, C, L)
        """Normalise each channel."""
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(input)
        x = at_least_float32(input)
        mean = _Mean.apply(x.mean((0, 2), keepdim=True))
        variance = _Mean.apply((x - mean).square().mean((0, 2), keepdim=True))
        self._follow(mean, variance, dist.get_world_size() * x[:, 0].numel())
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight[:, None] + self.bias[:, None]

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, n: int) -> None:
        """Move the running averages as torch does: that of the variance is of the unbiased one."""
        for average, value in ((self.running_mean, mean), (self.running_var, variance * n / (n - 1))):
            assert average is not None
            average.lerp_(value.flatten(), self.momentum or 0.0)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)


class _Mean(torch.autograd.Function):
    """Mean over the processes, of values in forward and of gradients in backward."""

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


class _LazyBatchNorm(nn.LazyBatchNorm1d):
    """Takes the number of channels from its first input."""

    cls_to_become = _BatchNorm


class _Head(nn.Module):
    """The published head: batch norm, ReLU, mean over pixels, linear. Sizes are taken from the first input."""

    def __init__(self, n_classes: int):
        super().__init__()
        if n_classes < 2:
            raise IResNetError(f"a classifier needs at least 2 classes, got {n_classes}")
        self.norm = _LazyBatchNorm()
        self.linear = nn.LazyLinear(n_classes)

    def forward(self, features: Tensor) -> Tensor:  # (N, C, ...) -> (N, n_classes)
        pixels = features.flatten(2) if features.dim() > 2 else features.unsqueeze(2)
        return self.linear(torch.relu(self.norm(pixels)).mean(2))


class Classifier(nn.Module):
    r"""A bijection with a classification head, whose features can be mapped back to the input.

    The head is lazy: its sizes come from the first batch (:func:`iresnet.zoo.build` has run one already).

    Args:
        bijection: the feature map, (N, \*E) -> (N, C, H, W) or (N, D).
        n_classes: number of classes.

    Reference:
        Invertible Residual Networks, Behrmann et al. 2019, https://arxiv.org/abs/1811.00995

    Example:
        >>> import iresnet as ir
        >>> classifier = ir.Classifier(ir.ResidualBlock(ir.networks.conv_bottleneck((3, 8, 8), 16)), n_classes=10)
        >>> classifier(torch.randn(4, 3, 8, 8)).shape
        torch.Size([4, 10])
    """

    def __init__(self, bijection: Bijection, n_classes: int):
        super().__init__()
        self.bijection = bijection
        self.head = _Head(n_classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, *E) -> (N, n_classes)
        """Logits of the classes."""
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Features before the head, from which :meth:`invert` recovers x; x must be finite."""
        check_finite(x, self.training)
        return self.bijection(x)

    def invert(self, z: Tensor) -> Tensor:
        """Map features back to inputs; warns when an inverse did not converge."""
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
