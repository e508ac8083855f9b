"""Upper and lower bounds of Lipschitz constants, in float64."""

__all__ = ["bounds", "lower_bound", "upper_bound"]

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from iresnet.activations import ACTIVATIONS, ELU, CLipSwish, CPila, Householder
from iresnet.context import Conditional, ContextShift, Shift, at_context
from iresnet.devices import device_of
from iresnet.errors import IResNetError
from iresnet.feedthrough import FeedThrough
from iresnet.jacobian import Linearization, is_modified, linearize
from iresnet.lipschitz import (
    DenseConcat,
    LipschitzConv2d,
    LipschitzLayer,
    LipschitzLinear,
    lipschitz_layers,
    replace_weights,
)
from iresnet.operators import largest_absolute_sum, same_conv, same_conv_transpose, torus_matrices

# -- upper bounds: proved --------------------------------------------------------------------------------------------

BoundRule = Callable[[Any, float], float]
BOUNDS: dict[Callable, BoundRule] = {}
"""From the ``forward`` function of a module class to the upper bound of its Lipschitz constant in a p-norm."""

_ROUNDING = 1 + 1e-10  # covers the float64 rounding of the computations below


def bounds(*classes: type[nn.Module]) -> Callable[[BoundRule], BoundRule]:
    """Register the upper bound of module classes, keyed by ``forward`` as linearizations are.

    Args:
        classes: the module classes for which the rule ``(module, p) -> bound`` holds, for p of 1, 2 and infinity.
    """

    def register(rule: BoundRule) -> BoundRule:
        BOUNDS.update(dict.fromkeys((cls.forward for cls in classes), rule))
        return rule

    return register


def upper_bound(module: nn.Module, norm: float = 2.0) -> float:
    r"""Return a number that the Lipschitz constant of ``module`` does not exceed.

    It is computed from the weights used in eval mode, normalized in float64, so it is the same on every device, and it
    includes what rounding to a layer's own type may add to its norm. In the Euclidean norm, a dense layer is bounded by
    its singular values, a convolution by those of its matrix where that is small and else by those of the circular
    convolution that contains it, a sequence by the product. A module without a rule has an infinite bound, so an
    unknown layer is never certified.

    Args:
        module: a layer or a sequence of layers.
        norm: p of the norm of inputs and outputs: 1, 2 or infinity.

    Example:
        >>> from iresnet import LipschitzLinear
        >>> g = nn.Sequential(LipschitzLinear(8, 8, coeff=0.5), nn.ELU(), LipschitzLinear(8, 8, coeff=0.5))
        >>> upper_bound(g) < 0.26
        True
        >>> upper_bound(nn.Bilinear(2, 2, 2))
        inf
    """
    if norm not in (1, 2, math.inf):
        raise IResNetError(f"Lipschitz constants are bounded in the norms 1, 2 and infinity, got {norm}")
    with torch.no_grad(), replace_weights(module, _exact_weights(module, above=True)):
        return _bound(module, norm)


def _bound(module: nn.Module, norm: float) -> float:
    rule = None if is_modified(module) else BOUNDS.get(type(module).forward)
    bound = math.inf if rule is None else rule(module, norm)
    return bound if math.isfinite(bound) else math.inf


@torch.no_grad()
def _exact_weights(module: nn.Module, *, above: bool) -> list[Tensor]:
    """Return the normalized weights of the Lipschitz layers inside, in float64.

    They are scaled up (``above``) or down by as much as rounding to the layer's own type can change the norm. Held
    weights are returned unchanged, since they are the ones in use.
    """
    weights = []
    for layer in lipschitz_layers(module):
        weight, normalization = layer.unnormalized_weight, layer.normalization
        if normalization.held is not None:
            weights.append(normalization.held.double())
            continue
        units = normalization.rounding_above if above else -normalization.rounding_below
        weights.append((1 + units * torch.finfo(weight.dtype).eps) * normalization.normalize(weight.double()))
    return weights


@bounds(nn.Sequential)
def _sequential_bound(g: nn.Sequential, norm: float) -> float:
    return math.prod(_bound(layer, norm) for layer in g)


@bounds(DenseConcat)
def _dense_concat_bound(g: DenseConcat, norm: float) -> float:
    a, b = g.weights().double().tolist()
    constants = torch.tensor([a, b * _bound(g.f, norm)], dtype=torch.float64)
    return float(torch.linalg.vector_norm(constants, norm)) * _ROUNDING


@bounds(FeedThrough)
def _feed_through_bound(g: FeedThrough, norm: float) -> float:
    r"""Bound by the quadratic constraint, whatever made the weights satisfy it.

    With the symmetric part P of I - W, and :math:`\lambda = |U^T P^{-1} U|`, it is :math:`\langle x, T \rangle \ge
    |T|^2 / \lambda` for differences of two inputs, so that :math:`|2 T - x| \le \max(1, 2 \lambda - 1) |x|`.
    """
    of_x, between = g.weights()
    u, n = torch.cat(of_x).double(), len(of_x[0])
    w = u.new_zeros(len(u), len(u))
    for k, part in enumerate(between):
        w[(k + 1) * n : (k + 2) * n, k * n : (k + 1) * n] = part
    if norm != 2 or not bool(torch.isfinite(u).all() and torch.isfinite(w).all()):
        return math.inf
    eigenvalues, vectors = torch.linalg.eigh(torch.eye(len(w), dtype=w.dtype, device=w.device) - (w + w.mT) / 2)
    rounding = 256 * torch.finfo(g.bias.dtype).eps  # of U and W in the layer's own type, which are products
    least = eigenvalues - rounding
    if not bool(least[0] > 0):
        return math.inf
    reached = _largest_singular_value(vectors.mT @ u / least.sqrt()[:, None]) + rounding / math.sqrt(least[0])
    return g.coeff * (1 + rounding / 64) * max(1.0, 2 * reached**2 - 1) * _ROUNDING


@bounds(nn.Tanh, nn.Identity, nn.Flatten, ContextShift, Shift, *ACTIVATIONS.values())
def _one(g: nn.Module, norm: float) -> float:  # noqa: ARG001
    return 1.0  # which is the contract of ACTIVATIONS; those with parameters may have rules of their own below


@bounds(nn.ELU, ELU)
def _elu_bound(g: nn.ELU, norm: float) -> float:  # noqa: ARG001
    return max(1.0, abs(g.alpha))


@bounds(Householder)
def _householder_bound(g: Householder, norm: float) -> float:
    angle = float(g.angle)
    return 1.0 if norm == 2 else max(1.0, abs(math.cos(angle)) + abs(math.sin(angle))) * _ROUNDING


@bounds(CLipSwish)
def _clipswish_bound(g: CLipSwish, norm: float) -> float:  # noqa: ARG001
    return 1.199678640257734 / 1.1044 * _ROUNDING if norm == 1 else 1.0


@bounds(CPila)
def _cpila_bound(g: CPila, norm: float) -> float:  # noqa: ARG001
    return 4 / math.e / 1.06 * _ROUNDING if norm == 1 else 1.0


@bounds(nn.Softplus)
def _softplus_bound(g: nn.Softplus, norm: float) -> float:  # noqa: ARG001
    # Above its threshold torch returns x itself: a jump, which is below rounding from the default threshold, 20, on.
    return 1.0 if g.threshold >= 20 else math.inf


@bounds(nn.Linear, LipschitzLinear)
def _linear_bound(g: nn.Linear, norm: float) -> float:
    return _largest_singular_value(g.weight) if norm == 2 else _induced_norm(g.weight, norm)


@bounds(nn.Conv2d)
def _conv2d_bound(g: nn.Conv2d, norm: float) -> float:
    # For images of any size: unfolding repeats each pixel at most kh * kw times, then a matrix acts on the patches.
    if g.padding_mode != "zeros":
        return math.inf
    groups = g.weight.reshape(g.groups, g.out_channels // g.groups, *g.weight.shape[1:])
    if norm != 2:
        return max(_induced_norm(weight, norm) for weight in groups)
    return math.sqrt(math.prod(g.kernel_size)) * _largest_singular_value(groups.flatten(2))


@bounds(LipschitzConv2d)
def _lipschitz_conv2d_bound(g: LipschitzConv2d, norm: float) -> float:
    weight = g.weight.double()
    if norm != 2:
        return _induced_norm(weight, norm)
    if g.kernel_size == (1, 1):
        return _largest_singular_value(weight[:, :, 0, 0])
    pixels = g.image_size[0] * g.image_size[1]
    small, large = sorted((g.in_channels * pixels, g.out_channels * pixels))
    if small <= 1024 and small * large <= 2**22:
        return _largest_singular_value(_dense_operator(weight, g.image_size))
    return _torus_norm(weight, g.image_size)


def _induced_norm(weight: Tensor, norm: float) -> float:
    return float(largest_absolute_sum(weight.double(), norm)) * _ROUNDING


def _largest_singular_value(matrices: Tensor) -> float:
    """Return the largest singular value of all matrices (..., m, n), from the Gram matrix on the smaller side."""
    matrices = matrices.to(torch.complex128 if matrices.is_complex() else torch.float64)
    if matrices.shape[-2] > matrices.shape[-1]:
        matrices = matrices.mH
    if not bool(torch.isfinite(matrices).all()):
        return math.inf
    largest = torch.linalg.eigvalsh(matrices @ matrices.mH)[..., -1].max()
    return math.sqrt(max(float(largest), 0.0)) * _ROUNDING


def _dense_operator(weight: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Return the zero-padded convolution as a matrix, transposed if needed to have its smaller side first."""
    from_input = weight.shape[1] <= weight.shape[0]
    shape = (min(weight.shape[:2]), *image_size)
    basis = torch.eye(math.prod(shape), dtype=weight.dtype, device=weight.device).reshape(-1, *shape)
    return (same_conv(basis, weight) if from_input else same_conv_transpose(basis, weight)).flatten(1)


def _torus_norm(weight: Tensor, image_size: tuple[int, int], *, max_numbers: int = 2**24) -> float:
    """Return the norm of the circular convolution that the zero-padded one is a compression of."""
    return max(_largest_singular_value(m) for m in torus_matrices(weight, image_size, max_numbers=max_numbers))


# -- lower bounds: found by search -----------------------------------------------------------------------------------


def lower_bound(g: nn.Module, norm: float = 2.0, *, search_steps: int = 0, n_points: int = 4) -> float:
    r"""Return the largest ratio :math:`|J u| / |u|` or :math:`|g(x) - g(y)| / |x - y|` found by search, in float64.

    Power iteration finds the directions u that are stretched most at random points. With ``search_steps``, pairs (x, y)
    then climb the gradient of their ratio: an attack on the upper bound, whose failure shows how tight it is. A map
    that depends on a context is searched at one random context a point.

    Args:
        g: a layer or a sequence of layers.
        norm: p of the norm: 1, 2 or infinity.
        search_steps: steps of the ascent.
        n_points: points at which the search starts.

    Returns:
        The largest ratio; 0 where the shape of the input is not known from the first layer.

    Reference:
        Estimating the matrix p-norm, Higham 1992, https://doi.org/10.1007/BF01396242 (power iteration in p-norms)

    Example:
        >>> from iresnet import LipschitzLinear
        >>> g = nn.Sequential(LipschitzLinear(8, 8, coeff=0.5), nn.ELU())
        >>> lower_bound(g, search_steps=50) <= upper_bound(g)
        True
    """
    shape = _input_shape(g)
    if shape is None:
        return 0.0
    generator = torch.Generator().manual_seed(0)
    device = device_of(g)
    x, u = (torch.randn(n_points, *shape, generator=generator, dtype=torch.float64).to(device) for _ in range(2))
    weights = _exact_weights(g, above=False)
    try:
        exact = _at_some_contexts(copy.deepcopy(g).double().requires_grad_(False), x, generator)
        with replace_weights(exact, weights):
            u, found = _power_iteration(linearize(exact, x), u, norm)
    except Exception:  # a user's layer may need another shape, or refuse to be copied, with any exception
        return 0.0
    with replace_weights(exact, weights):
        return max(found, _climb(exact, x, u, norm, search_steps))


def _at_some_contexts(g: nn.Module, x: Tensor, generator: torch.Generator) -> nn.Module:
    """Put a map that depends on a context at a random one for each point."""
    sizes = [part.context for part in g.modules() if isinstance(part, Conditional)]
    if not sizes:
        return g
    return at_context(g, torch.randn(len(x), sizes[0], generator=generator, dtype=x.dtype).to(x.device))


@torch.no_grad()
def _power_iteration(jacobian: Linearization, u: Tensor, norm: float) -> tuple[Tensor, float]:  # (N, *E)
    """Iterate in a p-norm; return the last directions and the largest ratio of all steps."""
    conjugate = {1: math.inf, 2: 2, math.inf: 1}[norm]
    u, largest = _unit(u, norm), 0.0
    for _ in range(50):
        image = jacobian.jvp(u)
        largest = max(largest, float(_size(image, norm).max()))
        u = _dual(jacobian.vjp(_dual(image, norm)), conjugate)
    return u, largest


def _climb(g: nn.Module, x: Tensor, u: Tensor, norm: float, search_steps: int) -> float:
    """Maximize log |g(x) - g(x + r u)| / |r u| over x and u by gradient ascent, with a distance r for each point."""
    r = torch.logspace(-2, 1, len(x), dtype=x.dtype, device=x.device)
    x, u = x.clone().requires_grad_(), u.clone().requires_grad_()
    optimizer = torch.optim.Adam([x, u], lr=0.03)
    largest = 0.0
    for _ in range(search_steps):
        step = _scale(_unit(u, norm), r)
        ratio = _size(g(x + step) - g(x), norm) / _size(step, norm)
        largest = max(largest, float(ratio.detach().max()))
        optimizer.zero_grad()
        (-(ratio + torch.finfo(ratio.dtype).tiny).log().sum()).backward()
        optimizer.step()
    return largest


def _size(u: Tensor, norm: float) -> Tensor:  # (N, *E) -> (N,)
    return torch.linalg.vector_norm(u.flatten(1), norm, dim=1)


def _scale(u: Tensor, factor: Tensor) -> Tensor:  # (N, *E), (N,) -> (N, *E)
    return u * factor.view(-1, *[1] * (u.dim() - 1))


def _unit(u: Tensor, norm: float) -> Tensor:
    size = torch.linalg.vector_norm(u, norm, dim=tuple(range(1, u.dim())), keepdim=True)
    return u / size.clamp(min=torch.finfo(u.dtype).tiny)


def _dual(u: Tensor, norm: float) -> Tensor:
    """Return the vector of size 1 in the conjugate norm that has the largest product with u."""
    if norm == 2:
        return _unit(u, norm)
    if norm == 1:
        return u.sign()
    flat = u.flatten(1)
    largest = nn.functional.one_hot(flat.abs().argmax(1), flat.shape[1])
    return (largest * flat.sign()).view_as(u)


def _input_shape(g: nn.Module) -> tuple[int, ...] | None:
    """Return the event shape that the first layer of g takes, None where it is not known."""
    widened = 1  # by an activation before that layer
    for layer in g.modules():
        if isinstance(layer, (LipschitzLayer, nn.Linear)):
            channels, *pixels = layer.input_shape if isinstance(layer, LipschitzLayer) else (layer.in_features,)
            return (channels // widened, *pixels)
        keeps_shape = isinstance(layer, (DenseConcat, FeedThrough, *ACTIVATIONS.values()))
        if next(layer.parameters(recurse=False), None) is not None and not keeps_shape:
            return None
        widened *= getattr(layer, "widening", 1)
    return None
