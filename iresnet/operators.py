"""Linear operators given by weights, zero-padded convolutions and dense layers, and the memory layout of images."""

__all__ = [
    "WeightStack",
    "along_first",
    "at_least_float32",
    "channels_last",
    "largest_absolute_sum",
    "same_conv",
    "same_conv_transpose",
    "to_events",
    "to_vectors",
    "torus_matrices",
    "unit_vectors",
]

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.linalg import vector_norm

from iresnet.devices import is_differentiating
from iresnet.precision import autocasts

# -- layout ----------------------------------------------------------------------------------------------------------
# Convolutions are up to five times faster where the channels of a pixel are adjacent in memory.


def channels_last(x: Tensor) -> Tensor:
    """Return images, of the same shape, in channels-last memory format, and other tensors unchanged.

    A single image is made contiguous: its convolutions are as fast, and in torch 2.13 the instance norm of one image
    has wrong gradients where the upstream gradient is channels-last.
    """
    if x.dim() != 4:
        return x
    if len(x) == 1:
        return x.contiguous()
    pixels = x.permute(0, 2, 3, 1)  # not contiguous(memory_format=...), which torch.vmap refuses
    return x if pixels.is_contiguous() else pixels.contiguous().permute(0, 3, 1, 2)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert to float32 at least, for reductions and small solves after products in any type."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def to_vectors(x: Tensor) -> Tensor:  # (N, *E) -> (N, D)
    """Flatten events in the memory order of :func:`channels_last`: a view where they have it."""
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).flatten(1)


def to_events(v: Tensor, shape: torch.Size) -> Tensor:  # (N, D) -> (N, *E)
    """Undo :func:`to_vectors`.

    Args:
        v: vectors.
        shape: (N, *E); N is not used.
    """
    if len(shape) != 4:
        return v.view(-1, *shape[1:])
    return v.view(-1, *shape[2:], shape[1]).permute(0, 3, 1, 2)


# -- products --------------------------------------------------------------------------------------------------------


def _same_padding(kernel: tuple[int, int]) -> tuple[int, int]:
    """Return the zeros before the first row and column; an even kernel has one more at the end, as in torch."""
    return (kernel[0] - 1) // 2, (kernel[1] - 1) // 2


def same_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with zero padding that keeps the image size, for odd and even kernels.

    Args:
        x: images, (N, in, H, W).
        weight: kernel, (out, in, kh, kw).
        bias: (out,).
    """
    kh, kw = weight.shape[2:]
    top, left = _same_padding((kh, kw))
    x = channels_last(x)
    if _few_channels(x, weight):
        return _Conv.apply(x, weight, bias) if torch.is_grad_enabled() else _conv(x, weight, bias)  # pyright: ignore[reportReturnType]
    if kh % 2 and kw % 2:
        return F.conv2d(x, weight, bias, padding=(top, left))
    return F.conv2d(F.pad(x, (left, kw // 2, top, kh // 2)), weight, bias)


def same_conv_transpose(y: Tensor, weight: Tensor) -> Tensor:
    """Apply the transpose of :func:`same_conv` without bias.

    Args:
        y: images, (N, out, H, W).
        weight: kernel, (out, in, kh, kw).
    """
    kernel = (weight.shape[2], weight.shape[3])
    top, left = _same_padding(kernel)
    y = channels_last(y)
    if _few_channels(y, weight):
        return _Transpose.apply(y, weight) if torch.is_grad_enabled() else _transpose(y, weight)  # pyright: ignore[reportReturnType]
    if kernel[0] % 2 and kernel[1] % 2:
        return F.conv_transpose2d(y, weight, padding=(top, left))
    full = F.conv_transpose2d(y, weight)
    return full[..., top : top + y.shape[2], left : left + y.shape[3]]


# -- images of few channels on a CPU -----------------------------------------------------------------------------------
# There a convolution to fewer than eight channels takes up to five times as long as the matrix product that it is, and
# so does the gradient of its kernel.

FEW = 8


def _few_channels(x: Tensor, weight: Tensor) -> bool:
    """Return whether x is convolved with a kernel from or to few channels in a way that pays here."""
    out, fan_in, kh, kw = weight.shape
    return (
        min(out, fan_in) < FEW < max(out, fan_in)
        and kh * kw > 1
        and kh % 2 == kw % 2 == 1
        and len(x) > 1
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and not autocasts(x.device)
        and (torch.compiler.is_compiling() or not is_differentiating())
    )


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out, _, *kernel = weight.shape
    if out >= FEW:
        return F.conv2d(x, weight, bias, padding=_same_padding((kernel[0], kernel[1])))
    y = _to_few_channels(x, weight.permute(2, 3, 0, 1))
    return y if bias is None else y.add_(bias.view(-1, 1, 1))


def _transpose(y: Tensor, weight: Tensor) -> Tensor:
    _, fan_in, *kernel = weight.shape
    if fan_in >= FEW:
        return F.conv_transpose2d(y, weight, padding=_same_padding((kernel[0], kernel[1])))
    return _to_few_channels(y, weight.flip(2, 3).permute(2, 3, 1, 0))


def _to_few_channels(x: Tensor, taps: Tensor) -> Tensor:  # (N, in, H, W), (kh, kw, out, in) -> (N, out, H, W)
    """Multiply each pixel with all taps of the kernel, and add up what each image gets."""
    kh, kw, out, fan_in = taps.shape
    products = taps.flatten(0, 2) @ to_vectors(x).view(-1, fan_in).t()
    images = products.view(kh, kw, out, len(x), *x.shape[2:])
    y = torch.empty((len(x), out, *x.shape[2:]), dtype=x.dtype, memory_format=torch.channels_last)
    return y.copy_(_sum_moved(_sum_moved(images, -2, kh // 2, -1), -1, kw // 2, -1).transpose(0, 1))


def _sum_moved(images: Tensor, dim: int, zero: int, step: int) -> Tensor:  # (k, ...) -> (...)
    """Add up images, each moved along a dimension: number ``zero`` not, those after it by ``step`` more each.

    What is moved out is lost. Where autograd does not record, the image that is not moved is overwritten.
    """
    total, size = images[zero], images.shape[dim]
    for i, image in enumerate(images):
        by = step * (i - zero)
        rest = size - abs(by)
        if by == 0 or rest <= 0:
            continue
        source, target = max(-by, 0), max(by, 0)
        moved = image.narrow(dim, source, rest)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():  # which sums without stores in between
            total = total + F.pad(moved, (*[0, 0] * (-1 - dim), target, source))
        else:
            total.narrow(dim, target, rest).add_(moved)
    return total


def _kernel_gradient(x: Tensor, y: Tensor, kernel: Sequence[int]) -> Tensor:  # -> (out, in, kh, kw)
    """Return the gradient of <y, conv(x, W)> with respect to W."""
    if y.shape[1] < FEW:  # that of the transposed convolution, whose kernel is turned around
        return _kernel_gradient(y, x, kernel).transpose(0, 1).flip(2, 3)
    weight = x.new_empty(y.shape[1], x.shape[1], *kernel)
    fixed = ([1, 1], list(_same_padding((kernel[0], kernel[1]))), [1, 1], False, [0, 0], 1)
    return torch.ops.aten.convolution_backward(y, x, weight, None, *fixed, [False, True, False])[1]


# All three are derivatives of the trilinear form <y, conv(x, W)>, so that the backward pass of each consists of the
# other two, to any order.


class _Conv(torch.autograd.Function):
    """Convolution of x with W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _conv(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        upstream = channels_last(upstream)
        return (
            same_conv_transpose(upstream, weight) if ctx.needs_input_grad[0] else None,
            _KernelGradient.apply(x, upstream, weight.shape[2:]) if ctx.needs_input_grad[1] else None,  # pyright: ignore[reportReturnType]
            upstream.sum((0, 2, 3)) if ctx.biased else None,
        )


class _Transpose(torch.autograd.Function):
    """Transposed convolution of y with W."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(y, weight)
        return _transpose(y, weight)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        y, weight = ctx.saved_tensors
        upstream = channels_last(upstream)
        return (
            same_conv(upstream, weight) if ctx.needs_input_grad[0] else None,
            _KernelGradient.apply(upstream, y, weight.shape[2:]) if ctx.needs_input_grad[1] else None,  # pyright: ignore[reportReturnType]
        )


class _KernelGradient(torch.autograd.Function):
    """Gradient of <y, conv(x, W)> with respect to W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, kernel: Sequence[int]) -> Tensor:
        ctx.save_for_backward(x, y)
        return _kernel_gradient(x, y, kernel)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, y = ctx.saved_tensors
        return (
            same_conv_transpose(y, upstream) if ctx.needs_input_grad[0] else None,
            same_conv(x, upstream) if ctx.needs_input_grad[1] else None,
            None,
        )


# -- several weights at once -------------------------------------------------------------------------------------------


class WeightStack:
    r"""Operators of several weights of one shape, without bias, each applied to its own vector in batched products.

    A convolution reads the side with fewer channels in windows, one for each pixel, so that a matrix does the rest.

    Args:
        weights: of dense layers, (G, out, in), or "same" convolutions, (G, out, in, kh, kw).

    Example:
        >>> stack = WeightStack(torch.stack([torch.eye(2), 3 * torch.eye(2)]))
        >>> stack.apply(torch.ones(2, 2))
        tensor([[1., 1.],
                [3., 3.]])
    """

    def __init__(self, weights: Tensor):
        out, fan_in, *kernel = weights.shape[1:]
        self.kernel = kernel if math.prod(kernel) > 1 else []  # none where each pixel is on its own
        self.reads_input = not self.kernel or fan_in <= out
        if self.reads_input:
            self.matrices = weights.flatten(2)  # (G, out, in kh kw)
        else:  # those of the transposed convolution, whose kernel is turned around
            self.matrices = weights.flip(3, 4).transpose(1, 2).flatten(2)  # (G, in, out kh kw)
        self.before = [(k - 1) // 2 if self.reads_input else k // 2 for k in self.kernel]

    def apply(self, u: Tensor) -> Tensor:  # (G, in) or (G, in, H, W)
        """Apply each operator."""
        return self._from_windows(u) if self.reads_input else self._to_windows(u)

    def apply_transpose(self, v: Tensor) -> Tensor:  # (G, out) or (G, out, H, W)
        """Apply the transpose of each operator."""
        return self._to_windows(v) if self.reads_input else self._from_windows(v)

    def stretches(self, us: Tensor) -> Tensor:  # (G, in, ...) -> (G,)
        """Return |W u| / |u| of each operator and its vector, a lower bound of its norm."""
        return vector_norm(self.apply(unit_vectors(us)).flatten(1), dim=1)

    def iterate(self, us: Tensor, n_steps: int, tol: float) -> Tensor:  # (G, in, ...)
        """Run power iterations from unit vectors, of each operator until its vector changes by less than ``tol``."""
        first, moving = us, torch.ones(len(us), dtype=torch.bool, device=us.device)
        for _ in range(n_steps):
            last, us = us, unit_vectors(self.apply_transpose(self.apply(us)))
            if tol > 0:
                us = torch.where(along_first(moving, us), us, last)
                moving &= vector_norm((us - last).flatten(1), dim=1) >= tol
                if not bool(moving.any()):
                    break
        # A zero weight maps u to 0, where it would stay for ever; any old direction does as well.
        return torch.where(along_first(vector_norm(us.flatten(1), dim=1) > 0.5, us), us, first)

    def _from_windows(self, u: Tensor) -> Tensor:
        columns = _windows(u, self.kernel, self.before) if self.kernel else u.view(*u.shape[:2], -1)
        return (self.matrices @ columns).view(len(u), -1, *u.shape[2:])

    def _to_windows(self, v: Tensor) -> Tensor:
        columns = self.matrices.mT @ v.reshape(*v.shape[:2], -1)
        if not self.kernel:
            return columns.view(len(v), -1, *v.shape[2:])
        return _overlap(columns, self.kernel, self.before, v.shape[2:])


def unit_vectors(us: Tensor) -> Tensor:  # (G, ...)
    """Scale vectors to length 1; zeros stay."""
    return us / along_first(vector_norm(us.flatten(1), dim=1).clamp(min=torch.finfo(us.dtype).tiny), us)


def along_first(numbers: Tensor, like: Tensor) -> Tensor:  # (G,), (G, ...) -> (G, 1, ...)
    """Reshape numbers, to broadcast along the first dimension of another tensor."""
    return numbers.view(-1, *[1] * (like.dim() - 1))


def _windows(u: Tensor, kernel: Sequence[int], before: Sequence[int]) -> Tensor:  # (N, C kh kw, H W)
    """Copy the window of each pixel, of zeros outside of the image, ``before`` of which are above and to the left."""
    (kh, kw), (top, left) = kernel, before
    padded = F.pad(u, (left, kw - 1 - left, top, kh - 1 - top))
    return padded.unfold(2, kh, 1).unfold(3, kw, 1).permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)


def _overlap(columns: Tensor, kernel: Sequence[int], before: Sequence[int], size: Sequence[int]) -> Tensor:
    """Add up windows where they lie: the transpose of :func:`_windows`."""
    if not columns.is_cpu:
        return _fold(columns, kernel, before, size)
    images = columns.view(len(columns), -1, *kernel, *size).permute(2, 3, 0, 1, 4, 5)
    return _sum_moved(_sum_moved(images, -2, before[0], 1), -1, before[1], 1)


def _fold(columns: Tensor, kernel: Sequence[int], before: Sequence[int], size: Sequence[int]) -> Tensor:
    """Add up windows in one operation, which takes up to five times as long on a CPU."""
    (kh, kw), (top, left), (height, width) = kernel, before, size
    whole = F.fold(columns, (height + kh - 1, width + kw - 1), (kh, kw))
    return whole[..., top : top + height, left : left + width]


def torus_matrices(
    weight: Tensor, image_size: tuple[int, int], *, max_numbers: float = 2**24
) -> Iterator[Tensor]:  # (frequencies, out, in) at a time
    """Yield the circular convolution on the torus of side H + kh - 1, W + kw - 1: one complex matrix per frequency.

    The zero-padded convolution on H x W is this one between an embedding and a restriction, so its norm is no larger.
    The matrices of a real kernel come in conjugate pairs; one of each pair is given.

    Args:
        weight: kernel, (out, in, kh, kw).
        image_size: (H, W).
        max_numbers: complex numbers in memory at a time; the default is 256 MiB in double precision.
    """
    kh, kw = weight.shape[2:]
    height, width = image_size[0] + kh - 1, image_size[1] + kw - 1
    taps = weight.reshape(*weight.shape[:2], kh * kw)
    rows = torch.arange(kh, device=weight.device).repeat_interleave(kw)
    columns = torch.arange(kw, device=weight.device).repeat(kh)
    p, q = torch.meshgrid(
        torch.arange(height, device=weight.device), torch.arange(width // 2 + 1, device=weight.device), indexing="ij"
    )
    turns = p.reshape(-1, 1).double() * rows / height + q.reshape(-1, 1).double() * columns / width
    phases = torch.polar(torch.ones_like(turns), -2 * math.pi * turns)  # (frequencies, taps)
    phases = phases.to(torch.complex128 if weight.dtype == torch.float64 else torch.complex64)
    chunk_size = int(max(1, min(max_numbers // taps[..., 0].numel(), len(phases))))
    for chunk in phases.split(chunk_size):
        yield torch.einsum("fk,oik->foi", chunk, taps.to(chunk.dtype))


def largest_absolute_sum(weight: Tensor, norm: float) -> Tensor:
    """Return the induced 1-norm or infinity-norm of a weight's operator; an upper bound for strided or cropped ones.

    Args:
        weight: (out, in) or (out, in, kh, kw).
        norm: 1 or infinity.
    """
    taps = weight.abs().reshape(*weight.shape[:2], -1).sum(2)
    return taps.sum(0 if norm == 1 else 1).amax()
