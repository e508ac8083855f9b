"""Activations with Lipschitz constant 1, and their linearizations."""

__all__ = [
    "ACTIVATIONS",
    "CLipSwish",
    "CPila",
    "ELU",
    "MONOTONE",
    "Householder",
    "LipSwish",
    "MaxMin",
    "make_activation",
    "widening",
]

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresnet.devices import is_differentiating
from iresnet.errors import IResNetError, UnknownNameError
from iresnet.jacobian import Linearization, Product, elementwise, linearize_inner, linearizes
from iresnet.joint import Joint, joins, one_after_the_other

# -- ELU ---------------------------------------------------------------------------------------------------------------


class ELU(nn.ELU):
    r"""ELU of torch in half of its time and memory: x for x > 0, and else :math:`e^x - 1`.

    It keeps its value for backward, as the next layer does, where torch's keeps its argument. On a CPU it computes a
    power of two, for which processors have instructions; the absolute error is that of rounding.

    Reference:
        Fast and Accurate Deep Network Learning by Exponential Linear Units, Clevert, Unterthiner and Hochreiter 2015,
        https://arxiv.org/abs/1511.07289

    Example:
        >>> ELU()(torch.tensor([0.5, 20.0]).log())
        tensor([-0.5000,  2.9957])
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in torch)
        """Apply elementwise."""
        if self.alpha != 1 or self.inplace or is_differentiating() or torch.compiler.is_compiling():
            return super().forward(input)
        return _Elu.apply(input) if torch.is_grad_enabled() else _elu(input)  # pyright: ignore[reportReturnType]


CACHED = 2**17
"""Numbers of a block that stays in a processor's second cache from one operation to the next."""


def _elu(x: Tensor, out: Tensor | None = None) -> Tensor:
    if torch.compiler.is_compiling():
        return torch.where(x > 0, x, x.exp() - 1)
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return F.elu(x) if out is None else torch.ops.aten.elu.out(x, out=out)
    y = torch.empty_like(x) if out is None else out
    for x_block, y_block in _in_blocks(x, y):
        torch.clamp(x_block, max=0, out=y_block).exp_().sub_(1)
        torch.maximum(x_block, y_block, out=y_block)
    return y


def _in_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Divide samples into blocks on which a CPU does one elementwise operation after the other in its cache."""
    n, size = len(tensors[0]), tensors[0].numel()
    if tensors[0].device.type != "cpu" or size <= CACHED:
        return iter([tensors])
    return zip(*(tensor.split(max(1, n * CACHED // size)) for tensor in tensors), strict=True)


def _times_slope(v: Tensor, y: Tensor) -> Tensor:
    r"""Multiply with the slope of the ELU where its value is y, :math:`1 + \min(y, 0)`."""
    return torch.ops.aten.elu_backward(v, 1.0, 1.0, 1.0, True, y)


class _Elu(torch.autograd.Function):
    """ELU that keeps its value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = _elu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _times_slope(upstream, *ctx.saved_tensors)


@linearizes(nn.ELU, ELU)
def _linearize_elu(g: nn.ELU, x: Tensor) -> Linearization:
    if is_differentiating() or torch.compiler.is_compiling() or g.alpha != 1:
        y = F.elu(x, g.alpha)
        return elementwise(y, torch.where(x > 0, torch.ones_like(y), y + g.alpha))
    y: Any = _Elu.apply(x)
    product = partial(_times_slope, y=y)
    return Linearization(y, product, product)


@joins(nn.ELU, ELU)
def _join_elu(g: nn.ELU, joint: Joint) -> tuple[Tensor, Product]:
    if g.alpha != 1:
        return one_after_the_other(g, joint)
    outputs: Any = _JointElu.apply(joint.tensor, joint.rows)
    return outputs, partial(_times_slope, y=outputs[slice(*joint.rows)].detach())


class _JointElu(torch.autograd.Function):
    r"""ELU y of the values and its slope times the tangents, :math:`t = s v` with :math:`s = 1 + \min(y, 0)`.

    Only the outputs are kept: :math:`ds\,v = s'\,v\,dx = [y < 0]\,t\,dx`.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, rows: tuple[int, int]) -> Tensor:
        x, v = Joint(inputs, rows).split()
        if torch.compiler.is_compiling():  # to one loop, which rather computes twice than stores
            at = x[slice(*rows)]
            outputs = torch.cat([_elu(x), v * torch.where(at > 0, 1.0, at.exp())])
        else:
            outputs = torch.empty_like(inputs)
            y, t = Joint(outputs, rows).split()
            _elu(x, out=y)
            torch.ops.aten.elu_backward.grad_input(v, 1.0, 1.0, 1.0, True, y[slice(*rows)], grad_input=t)
        ctx.rows = rows
        ctx.save_for_backward(outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, at = ctx.rows, slice(*ctx.rows)
        (y, t), of_both = Joint(ctx.saved_tensors[0], rows).split(), Joint(upstream, rows).split()
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return _joint_gradient(y, t, *of_both, rows), None
        grads = torch.empty_like(upstream)
        for part, of, slope in zip(Joint(grads, rows).split(), of_both, (y, y[at]), strict=True):
            torch.ops.aten.elu_backward.grad_input(of, 1.0, 1.0, 1.0, True, slope, grad_input=part)
        # Where y < 0, since it is above -2.
        grads[at].addcmul_(torch.ops.aten.hardtanh_backward(t, y[at], -2.0, 0.0), of_both[1])
        return grads, None


def _joint_gradient(y: Tensor, t: Tensor, of_y: Tensor, of_t: Tensor, rows: tuple[int, int]) -> Tensor:
    """Return the gradients of values and tangents, as operations that autograd and the compiler know."""
    at, others = y[slice(*rows)], (rows[0], len(y) - rows[1])
    by_slopes = F.pad(torch.where(at < 0, t, 0) * of_t, (*[0] * (2 * t.dim() - 2), *others))
    return torch.cat([_times_slope(of_y, y) + by_slopes, _times_slope(of_t, at)])


# -- others ------------------------------------------------------------------------------------------------------------


class MaxMin(nn.Module):
    """Activation that sorts pairs of channels: the first half becomes the maxima, the second the minima.

    Its Jacobian is a permutation, so gradients keep their norm.

    Reference:
        Sorting Out Lipschitz Function Approximation, Anil, Lucas and Grosse 2019, https://arxiv.org/abs/1811.05381

    Example:
        >>> MaxMin()(torch.tensor([[1.0, 5.0, 3.0, 2.0]]))
        tensor([[3., 5., 1., 2.]])
    """

    def forward(self, x: Tensor) -> Tensor:  # (N, C, ...)
        """Sort channel i against channel i + C/2."""
        if is_differentiating() or torch.compiler.is_compiling():
            return _sort(x)
        return _MaxMin.apply(x) if torch.is_grad_enabled() else _sort(x)  # pyright: ignore[reportReturnType]


def _sort(x: Tensor) -> Tensor:
    a, b = _pairs(x, "MaxMin")
    return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)


def _pairs(x: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Split the channels into those that come first in their pair, and those that come second."""
    if x.shape[1] % 2:
        raise IResNetError(f"{activation} takes pairs of channels and needs an even number of them, got {x.shape[1]}")
    return x.tensor_split(2, dim=1)  # pyright: ignore[reportReturnType]


def _swap(v: Tensor, kept: Tensor) -> Tensor:
    """Exchange the channels of all pairs but those that are kept; it is its own transpose.

    A mean of weights 0 and 1 is exact, and on a CPU faster than a selection.
    """
    (first, second), kept = v.tensor_split(2, dim=1), kept.to(v.dtype)
    return torch.cat([torch.lerp(second, first, kept), torch.lerp(first, second, kept)], dim=1)


class _MaxMin(torch.autograd.Function):
    """Sorted pairs. Torch's gradients of maximum and minimum take seven times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(torch.ge(*_pairs(x, "MaxMin")))
        return _sort(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _swap(upstream, *ctx.saved_tensors)


@linearizes(MaxMin)
def _linearize_maxmin(g: MaxMin, x: Tensor) -> Linearization:
    product = partial(_swap, kept=torch.ge(*_pairs(x, "MaxMin")).to(x.dtype))
    return Linearization(g(x), product, product)


class Householder(nn.Module):
    r"""Activation that reflects pairs of channels on one side of a learned line onto the other.

    .. math::
        z \mapsto z - 2 \min(v^T z, 0) \, v, \quad v = (\sin(\theta/2), -\cos(\theta/2))

    for the pair z of channels i and i + C/2. Its Jacobian is the identity or a reflection, so gradients keep their
    norm. Its constant is 1 in the Euclidean norm, and :math:`|\cos\theta| + |\sin\theta|` in the norms 1 and infinity.
    The angle, one for all pairs, starts at :math:`\pi/2`, which is :class:`MaxMin`; at 0 the second channel of each
    pair becomes minus its absolute value.

    Reference:
        Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100, Singla, Singla and Feizi 2021,
        https://arxiv.org/abs/2108.04062

    Example:
        >>> x = torch.tensor([[1.0, 5.0, 3.0, 2.0]])
        >>> bool(torch.allclose(Householder()(x), MaxMin()(x)))
        True
    """

    def __init__(self):
        super().__init__()
        self.angle = nn.Parameter(torch.tensor(math.pi / 2))

    def normal(self) -> tuple[Tensor, Tensor]:
        """Return the two coordinates of the line's unit normal v."""
        return (self.angle / 2).sin(), -(self.angle / 2).cos()

    def forward(self, x: Tensor) -> Tensor:  # (N, C, ...)
        """Reflect channels i and i + C/2."""
        return self._reflect(x, self._side(x).clamp(max=0))

    def _side(self, x: Tensor) -> Tensor:
        (a, b), (p, q) = _pairs(x, "Householder"), self.normal()
        return p * a + q * b

    def _reflect(self, x: Tensor, distance: Tensor) -> Tensor:
        p, q = self.normal()
        return x - 2 * torch.cat([p * distance, q * distance], dim=1)


@linearizes(Householder)
def _householder(g: Householder, x: Tensor) -> Linearization:
    below = g._side(x) < 0

    def reflect(v: Tensor) -> Tensor:  # symmetric: its own transpose
        return g._reflect(v, torch.where(below, g._side(v), 0))

    return Linearization(reflect(x), reflect, reflect)


class LipSwish(nn.Module):
    r"""Swish activation scaled to Lipschitz constant at most 1, with a learned positive slope.

    .. math:: x \, \mathrm{sigmoid}(\beta x) / 1.1, \quad \beta = \mathrm{softplus}(b)

    Reference:
        Residual Flows for Invertible Generative Modeling, Chen et al. 2019, https://arxiv.org/abs/1906.02735

    Example:
        >>> x = torch.linspace(-9, 9, 999)
        >>> bool((LipSwish()(x).diff().abs() <= x.diff()).all())
        True
    """

    def __init__(self):
        super().__init__()
        self.b = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise."""
        return x * torch.sigmoid(F.softplus(self.b) * x) / 1.1


@linearizes(LipSwish)
def _lipswish(g: LipSwish, x: Tensor) -> Linearization:
    beta_x = F.softplus(g.b) * x
    s = torch.sigmoid(beta_x)
    return elementwise(x * s / 1.1, s * (1 + beta_x * (1 - s)) / 1.1)


class CLipSwish(nn.Module):
    r"""Concatenated LipSwish: two channels of each, smooth, one steep where the other is flat.

    .. math::
        [f(x), f(-x)] / 1.004, \quad f(x) = x \, \mathrm{sigmoid}(\beta x) / 1.1, \quad \beta = \mathrm{softplus}(b)

    The slopes of :math:`1.1 f` at x and -x add up to 1, and lie between :math:`(1 \pm u) / 2`, where
    :math:`u \tanh u = 1`. So whatever :math:`\beta` is, the constant in the Euclidean norm is
    :math:`\sqrt{(1 + u^2) / 2} / 1.1044 = 0.99996`, in the 1-norm :math:`u / 1.1044 = 1.0863`, and in the
    infinity-norm :math:`(1 + u) / 2.2088 = 0.9959`.

    Shape:
        (N, C, \*) -> (N, 2 C, \*).

    Reference:
        Invertible DenseNets with Concatenated LipSwish, Perugachi-Diaz, Tomczak and Bhulai 2021,
        https://arxiv.org/abs/2102.02694

    Example:
        >>> CLipSwish()(torch.zeros(1, 3)).shape
        torch.Size([1, 6])
    """

    widening = 2

    def __init__(self):
        super().__init__()
        self.lipswish = LipSwish()

    def forward(self, x: Tensor) -> Tensor:  # (N, C, ...)
        """Apply to each channel."""
        return self.both(self.lipswish(x), x)

    def both(self, y: Tensor, x: Tensor) -> Tensor:  # (N, 2 C, ...)
        """Concatenate f(x) and f(-x), or their tangents, from those of the first and of x: f(-x) = f(x) - x / 1.1."""
        return torch.cat([y, y - x / 1.1], dim=1) / 1.004


@linearizes(CLipSwish)
def _clipswish(g: CLipSwish, x: Tensor) -> Linearization:
    first = linearize_inner(g.lipswish, x)

    def vjp(w: Tensor) -> Tensor:
        of_first, of_second = w.tensor_split(2, dim=1)
        return (first.vjp(of_first + of_second) - of_second / 1.1) / 1.004

    return Linearization(g.both(first.value, x), lambda v: g.both(first.jvp(v), v), vjp)


class CPila(nn.Module):
    r"""Concatenated Pila: two channels of each, smooth, and linear on one side each, so that gradients do not vanish.

    .. math::
        [p(x - 0.2), \, p(-x - 0.2)] / 1.06, \quad
        p(t) = t \text{ for } t > 0, \text{ else } (t - 5 t^2 + 12.5 t^3) \, e^{5 t}

    It has constant 1 in the norms 2 and infinity. In the 1-norm it is that of x = 0, :math:`4 / (1.06 e)`.

    Shape:
        (N, C, \*) -> (N, 2 C, \*).

    Reference:
        Invertible Monotone Operators for Normalizing Flows, Ahn et al. 2022, https://arxiv.org/abs/2210.08176

    Example:
        >>> CPila()(torch.zeros(1, 3)).shape
        torch.Size([1, 6])
    """

    widening = 2

    def forward(self, x: Tensor) -> Tensor:  # (N, C, ...)
        """Apply to each channel."""
        t = self.arguments(x)
        s = 5 * t.clamp(max=0)
        return (F.relu(t) + s * (1 - s + s.square() / 2) * s.exp() / 5) / 1.06

    def arguments(self, x: Tensor) -> Tensor:  # (N, 2 C, ...)
        """Return what p is applied to."""
        return torch.cat([x - 0.2, -x - 0.2], dim=1)


@linearizes(CPila)
def _cpila(g: CPila, x: Tensor) -> Linearization:
    s = 5 * g.arguments(x).clamp(max=0)
    slope, negative_slope = ((1 - s + s.square() * (1 + s) / 2) * s.exp() / 1.06).tensor_split(2, dim=1)

    def vjp(w: Tensor) -> Tensor:
        first, second = w.tensor_split(2, dim=1)
        return slope * first - negative_slope * second

    return Linearization(g(x), lambda v: torch.cat([slope * v, -negative_slope * v], dim=1), vjp)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": ELU,
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "maxmin": MaxMin,
    "householder": Householder,
    "lipswish": LipSwish,
    "clipswish": CLipSwish,
    "cpila": CPila,
}
"""Activations by name, of Lipschitz constant 1 in the Euclidean norm, on which certificates rely.

In the norms 1 and infinity it is 1 as well, but for those with a rule of their own in :mod:`iresnet.bounds`. One that
makes several channels of each has their number as ``widening``.
"""


MONOTONE = ("elu", "relu", "softplus")
"""Names of those that act on each element, with slopes in [0, 1]: quadratic constraints rely on it."""


def make_activation(name: str) -> nn.Module:
    """Build the activation of that name.

    Args:
        name: a key of :data:`ACTIVATIONS`.

    Raises:
        UnknownNameError: lists the valid names.

    Example:
        >>> make_activation("elu")
        ELU(alpha=1.0)
    """
    if name not in ACTIVATIONS:
        raise UnknownNameError("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def widening(name: str) -> int:
    """Return how many channels the activation of that name makes of each.

    Args:
        name: a key of :data:`ACTIVATIONS`.

    Raises:
        UnknownNameError: lists the valid names.

    Example:
        >>> widening("elu"), widening("cpila")
        (1, 2)
    """
    return getattr(make_activation(name), "widening", 1)
