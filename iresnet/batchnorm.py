"""Batch norm over the batches of all processes of a distributed run, which torch has for accelerators alone."""

__all__ = ["BatchNorm", "LazyBatchNorm"]

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from iresnet.operators import at_least_float32


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    r"""Batch norm of each channel over the whole batch and all pixels, of vectors and of images.

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
        mean = _Mean.apply(x.mean((0, *pixels), keepdim=True))
        variance = _Mean.apply((x - mean).square().mean((0, *pixels), keepdim=True))
        self._follow(mean, variance, dist.get_world_size() * x[:, 0].numel())
        weight, bias = (p.view(-1, *[1] * len(pixels)) for p in (self.weight, self.bias))
        return (x - mean) * (variance + self.eps).rsqrt() * weight + bias

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (the name in torch)
        """Any number of pixels."""

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, n: int) -> None:
        """Move the running averages as torch does: that of the variance is of the unbiased one."""
        for average, value in ((self.running_mean, mean), (self.running_var, variance * n / (n - 1))):
            assert average is not None
            average.lerp_(value.flatten(), self.momentum or 0.0)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)


class LazyBatchNorm(nn.modules.batchnorm._LazyNormBase, BatchNorm):
    """Takes the number of channels from its first input."""

    cls_to_become = BatchNorm


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
