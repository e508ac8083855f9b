"""Upper bounds of Lipschitz constants, in float64."""

__all__ = ["bounds", "upper_bound"]

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from iresnet.activations import LipSwish, MaxMin
from iresnet.lipschitz import LipschitzConv2d, hold_weights
from iresnet.normalisation import same_conv, same_conv_transpose, torus_matrices

BoundRule = Callable[[Any], float]
BOUNDS: dict[Callable, BoundRule] = {}
"""From the ``forward`` function of a module class to the upper bound of its Lipschitz constant."""


def bounds(*classes: type[nn.Module]) -> Callable[[BoundRule], BoundRule]:
    """Register the upper bound of module classes; keyed by ``forward`` as linearisations are.

    Args:
        classes: the module classes for which the rule ``module -> bound`` holds.
    """

    def register(rule: BoundRule) -> BoundRule:
        BOUNDS.update(dict.fromkeys((cls.forward for cls in classes), rule))
        return rule

    return register


def upper_bound(module: nn.Module) -> float:
    r"""Return a number that the Lipschitz constant of ``module`` (Euclidean norm) does not exceed.

    Computed in float64 from the weights as they are used in eval mode: a dense layer by its singular values; a
    convolution by those of its matrix where that is small, else of the circular convolution that it is a compression
    of; a sequence by the product. Infinite for a module without a rule: an unknown layer is never certified.

    Args:
        module: a layer or a sequence of layers.

    Example:
        >>> from iresnet import LipschitzLinear
        >>> g = nn.Sequential(LipschitzLinear(8, 8, coeff=0.5), nn.ELU(), LipschitzLinear(8, 8, coeff=0.5))
        >>> upper_bound(g) < 0.26
        True
        >>> upper_bound(nn.Bilinear(2, 2, 2))
        inf
    """
    # Hooks, and a forward put into the instance, change what the class computes.
    changed = bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
    rule = None if changed else BOUNDS.get(type(module).forward)
    if rule is None:
        return math.inf
    with torch.no_grad(), hold_weights(module, iterate=False):
        bound = rule(module)
    return bound if math.isfinite(bound) else math.inf


@bounds(nn.Sequential)
def _sequential_bound(g: nn.Sequential) -> float:
    return math.prod(upper_bound(layer) for layer in g)


@bounds(nn.ReLU, nn.Tanh, nn.Identity, nn.Flatten, MaxMin, LipSwish)
def _one(g: nn.Module) -> float:  # noqa: ARG001
    return 1.0


@bounds(nn.ELU)
def _elu_bound(g: nn.ELU) -> float:
    return max(1.0, abs(g.alpha))


@bounds(nn.Softplus)
def _softplus_bound(g: nn.Softplus) -> float:
    # Past its threshold torch returns x itself: a jump, which is below rounding from the default threshold on.
    return 1.0 if g.threshold >= 20 else math.inf


@bounds(nn.Linear)
def _linear_bound(g: nn.Linear) -> float:
    return _largest_singular_value(g.weight)


@bounds(nn.Conv2d)
def _conv2d_bound(g: nn.Conv2d) -> float:
    """Any image size: unfolding repeats each pixel at most kh * kw times, then a matrix acts on the patches."""
    if g.padding_mode != "zeros":
        return math.inf
    groups = g.weight.flatten(1).reshape(g.groups, g.out_channels // g.groups, -1)
    return math.sqrt(math.prod(g.kernel_size)) * _largest_singular_value(groups)


@bounds(LipschitzConv2d)
def _lipschitz_conv2d_bound(g: LipschitzConv2d) -> float:
    weight = g.weight.double()
    if g.kernel_size == (1, 1):
        return _largest_singular_value(weight[:, :, 0, 0])
    pixels = g.image_size[0] * g.image_size[1]
    small, large = sorted((g.in_channels * pixels, g.out_channels * pixels))
    if small <= 1024 and small * large <= 2**22:
        return _largest_singular_value(_dense_operator(weight, g.image_size))
    return _torus_norm(weight, g.image_size)


_ROUNDING = 1 + 1e-10  # covers the float64 rounding of the decompositions below


def _largest_singular_value(matrices: Tensor) -> float:
    """Largest singular value of any of the matrices (..., m, n), from the Gram matrix on the smaller side."""
    matrices = matrices.to(torch.complex128 if matrices.is_complex() else torch.float64)
    if matrices.shape[-2] > matrices.shape[-1]:
        matrices = matrices.mH
    if not bool(torch.isfinite(matrices).all()):
        return math.inf
    largest = torch.linalg.eigvalsh(matrices @ matrices.mH)[..., -1].max()
    return math.sqrt(max(float(largest), 0.0)) * _ROUNDING


def _dense_operator(weight: Tensor, image_size: tuple[int, int]) -> Tensor:
    """The zero-padded convolution as a matrix, transposed or not, with its smaller side first."""
    from_input = weight.shape[1] <= weight.shape[0]
    shape = (min(weight.shape[:2]), *image_size)
    basis = torch.eye(math.prod(shape), dtype=weight.dtype, device=weight.device).reshape(-1, *shape)
    return (same_conv(basis, weight) if from_input else same_conv_transpose(basis, weight)).flatten(1)


def _torus_norm(weight: Tensor, image_size: tuple[int, int], *, max_numbers: int = 2**24) -> float:
    """Norm of the circular convolution that the zero-padded one is a compression of."""
    parts = torus_matrices(weight, image_size, max_numbers=max_numbers)
    return max(_largest_singular_value(part) for part in parts)
