"""Convolutions from many channels to few on a CPU, several pixels at a time.

A CPU computes some sixteen channels of a pixel at once, so a convolution to four leaves three quarters of it idle. To
give r x r neighbouring pixels their four channels is a convolution to sixteen, with stride r and a kernel larger by
r - 1: more products, in half the time. The transpose of a convolution from few channels to many, and what the backward
passes of both do, are convolutions to few channels too.
"""

__all__ = ["is_narrow", "narrow_conv", "one_pixel_at_a_time"]

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 16
"""Numbers of single precision that a CPU computes at once."""


def is_narrow(x: Tensor, weight: Tensor) -> bool:
    """Whether the convolution, or its transpose, gains from :func:`narrow_conv`: on a CPU, when there is a batch.

    Args:
        x: images, (N, in, H, W).
        weight: kernel, (out, in, kh, kw).
    """
    few, many = sorted(weight.shape[:2])
    k = weight.shape[2:]
    square = k[0] == k[1] and k[0] % 2 == 1 and k[0] > 1
    return _enabled and x.is_cpu and len(x) > 1 and square and many >= LANES and _side(few, x) > 1


_enabled = True


@contextmanager
def one_pixel_at_a_time() -> Iterator[None]:
    """Compute all convolutions as other devices do, for the duration of the context: to count their operations."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def _side(channels: int, x: Tensor) -> int:
    """r, the side of the square of pixels that are computed together, for so many channels: 1, 2 or 4."""
    return next((r for r in (4, 2) if channels * r * r <= LANES and x.shape[2] % r == x.shape[3] % r == 0), 1)


def narrow_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Zero-padded convolution that keeps the image size, for a square odd kernel.

    Args:
        x: images, (N, in, H, W), channels-last.
        weight: kernel, (out, in, k, k).
        bias: (out,).
    """
    # The compiler refuses functions with a rule for forward mode.
    conv = _NarrowConv if torch.compiler.is_compiling() else _NarrowConvBothModes
    return conv.apply(x, weight, bias)  # pyright: ignore[reportReturnType]


class _NarrowConv(torch.autograd.Function):
    """The convolution, whose backward is made of convolutions of the same kind."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        side = _side(len(weight), x)
        if side == 1:
            return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)
        bias = None if bias is None else bias.repeat(side * side)
        squares = F.conv2d(x, _enlarged(weight, side), bias, stride=side, padding=weight.shape[2] // 2)
        return _from_squares(squares, side)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        upstream = upstream.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels-last
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            narrow_conv(upstream, weight.transpose(0, 1).flip(2, 3)) if of_x else None,
            _of_weight(upstream, x, weight) if of_weight else None,
            upstream.sum((0, 2, 3)) if of_bias else None,
        )


class _NarrowConvBothModes(_NarrowConv):
    """The same, with derivatives in forward mode too."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        _NarrowConv.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def jvp(ctx: Any, of_x: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        total = x.new_zeros(()) if of_bias is None else of_bias[:, None, None]
        if of_x is not None:
            total = total + narrow_conv(of_x, weight)
        return total if of_weight is None else total + narrow_conv(x, of_weight)


def _of_weight(upstream: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a kernel."""
    side, size = _side(len(weight), x), weight.shape[2]
    kernel, stride = weight, (side, side)
    if side > 1:
        kernel, upstream = _enlarged(weight, side), _to_squares(upstream, side)
    grad = torch.ops.aten.convolution_backward(
        upstream, x, kernel, None, stride, (size // 2,) * 2, (1, 1), False, (0, 0), 1, (False, True, False)
    )[1]
    shifts = [(i, j) for i in range(side) for j in range(side)]
    parts = grad.reshape(len(shifts), -1, *grad.shape[1:])
    return torch.stack([parts[s, :, :, i : i + size, j : j + size] for s, (i, j) in enumerate(shifts)]).sum(0)


def _enlarged(weight: Tensor, side: int) -> Tensor:  # (out, in, k, k) -> (r r out, in, k + r - 1, k + r - 1)
    """One kernel for every pixel of a square, shifted to its place."""
    room = side - 1
    shifted = [F.pad(weight, (j, room - j, i, room - i)) for i in range(side) for j in range(side)]
    return torch.cat(shifted)


def _from_squares(y: Tensor, side: int) -> Tensor:  # (N, r r C, H/r, W/r) -> (N, C, H, W)
    n, c, h, w = y.shape
    squares = y.permute(0, 2, 3, 1).reshape(n, h, w, side, side, c // side**2)
    return squares.transpose(2, 3).reshape(n, h * side, w * side, -1).permute(0, 3, 1, 2)


def _to_squares(y: Tensor, side: int) -> Tensor:  # (N, C, H, W) -> (N, r r C, H/r, W/r)
    n, c, h, w = y.shape
    squares = y.permute(0, 2, 3, 1).reshape(n, h // side, side, w // side, side, c)
    return squares.transpose(2, 3).reshape(n, h // side, w // side, -1).permute(0, 3, 1, 2)
