"""Jacobian of a map g at a point x as a linear operator: value, J v and J^T w."""

__all__ = [
    "Linearization",
    "elementwise",
    "is_modified",
    "linearize",
    "linearize_inner",
    "linearizes",
    "with_known_signature",
]

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Linearization:
    r"""First-order model of g around x: ``g(x + v) ~ value + jvp(v)``.

    Attributes:
        value: g(x), shape (N, \*E).
        jvp: ``v -> J v`` for every sample at once, (N, \*E) -> (N, \*F); differentiable in v, x and the parameters.
        vjp: ``w -> J^T w``, (N, \*F) -> (N, \*E); differentiable in w, x and the parameters.
        inputs: tensors that the Jacobian depends on: x, and weights that g may no longer use when backward runs.
        relinearize: recomputes the linearization from ``inputs``, for derivatives of higher order.
        direction: a vector whose product is known already, None without one.
        image: that product.
    """

    value: Tensor  # (N, *E)
    jvp: Product
    vjp: Product
    inputs: tuple[Tensor, ...] = ()
    relinearize: "Callable[..., Linearization] | None" = None
    direction: Tensor | None = None
    image: Tensor | None = None


Rule = Callable[[Any, Tensor], Linearization]
RULES: dict[Callable, Rule] = {}
"""From the ``forward`` function of a module class to its linearization.

The key is the function and not the class, so a subclass that changes ``forward`` never meets a rule that is wrong for
it: it falls back to ``torch.func``.
"""


def linearizes(*classes: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register the linearization of module classes, which is plain differentiable forward code.

    Args:
        classes: the module classes whose ``forward`` the rule linearizes.

    Returns:
        A decorator for the rule ``(module, x) -> Linearization``.
    """

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys((cls.forward for cls in classes), rule))
        return rule

    return register


def linearize(g: Callable[[Tensor], Tensor], x: Tensor) -> Linearization:
    r"""Linearize g at x.

    Convolutions, linear layers, activations and sequences have rules: the products are plain forward code, cost about
    one forward pass each, compile, and run under autocast. Any other callable goes through ``torch.func.jvp`` and
    ``torch.func.vjp``. Both give the same numbers up to rounding.

    Args:
        g: a map that treats samples independently, a module or a function.
        x: the point, shape (N, \*E).

    Returns:
        The linearization; value and products can be differentiated, also with respect to the parameters of g.

    Example:
        >>> g = nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 3)).double()
        >>> x, v, w = torch.randn(3, 5, 3, dtype=torch.float64)
        >>> J = linearize(g, x)
        >>> bool(torch.allclose((w * J.jvp(v)).sum(), (J.vjp(w) * v).sum()))
        True
    """
    return replace(linearize_inner(g, x), inputs=(x,), relinearize=partial(linearize, g))


def linearize_inner(g: Callable[[Tensor], Tensor], x: Tensor) -> Linearization:
    """Linearize a layer of a larger map, without ``relinearize``, which only the larger map needs."""
    modified = isinstance(g, nn.Module) and is_modified(g)
    rule = None if modified else RULES.get(getattr(type(g), "forward", None))  # pyright: ignore[reportArgumentType, reportCallIssue]
    return rule(g, x) if rule else _transformed(g, x)


def is_modified(module: nn.Module) -> bool:
    """Return whether hooks, or a ``forward`` of the instance, change what the class computes.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.forward = torch.sin
        >>> is_modified(layer), is_modified(nn.Linear(2, 2))
        (True, False)
    """
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _transformed(g: Callable[[Tensor], Tensor], x: Tensor) -> Linearization:
    """Linearize by transforms of torch.func, on contiguous tensors, which every layer accepts."""
    x = x.contiguous()

    def run(x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH), _PlainNorms():  # the only attention with derivatives of all orders
            return g(x)

    try:
        value, pull_back, *_ = torch.func.vjp(run, x)
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        return _linearize_by_autograd(run, x)

    def vjp(w: Tensor) -> Tensor:
        return pull_back(w.to(value.dtype).contiguous())[0]

    def jvp(v: Tensor) -> Tensor:
        v = v.to(x.dtype).contiguous()
        if not torch.is_grad_enabled():
            return torch.func.jvp(run, (x,), (v,))[1]
        # The transpose of w -> J^T w, since in torch 2.13 derivatives of forward mode are wrong for solve and det.
        return torch.func.vjp(vjp, torch.zeros_like(value))[1](v)[0]

    return Linearization(value, jvp, vjp)


class _PlainNorms(TorchFunctionMode):
    """Mode that writes out layer and instance norms, whose third and higher derivatives are wrong in torch 2.13."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return {F.layer_norm: _layer_norm, F.instance_norm: _instance_norm}.get(func, func)(*args, **(kwargs or {}))


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    y = _standardized(x, tuple(range(-len(shape), 0)), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.instance_norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    y = _standardized(x, tuple(range(2, x.dim())), eps)
    channels = (-1, *[1] * (x.dim() - 2))
    y = y if weight is None else y * weight.view(channels)
    return y if bias is None else y + bias.view(channels)


def _standardized(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centered = x - x.mean(dims, keepdim=True)
    return centered * (centered.square().mean(dims, keepdim=True) + eps).rsqrt()


def _linearize_by_autograd(g: Callable[[Tensor], Tensor], x: Tensor) -> Linearization:
    """Linearize by autograd inside an activation checkpoint, where torch.func.vjp refuses to run."""
    keep_tensors = torch.autograd.graph.saved_tensors_hooks(
        lambda t: t, lambda t: t
    )  # instead of the checkpoint's hooks
    with torch.enable_grad(), keep_tensors:
        x = x if x.requires_grad else x.detach().requires_grad_()
        value = g(x)
        w = torch.zeros_like(value, requires_grad=True)
        (pulled_back,) = torch.autograd.grad(value, x, w, create_graph=True)

    def vjp(output: Tensor, input: Tensor, v: Tensor) -> Tensor:  # noqa: A002
        v, create_graph = v.to(output.dtype), torch.is_grad_enabled()
        with keep_tensors:
            return torch.autograd.grad(output, input, v, retain_graph=True, create_graph=create_graph)[0]

    return Linearization(value, partial(vjp, pulled_back, w), partial(vjp, value, x))


@linearizes(nn.Sequential)
def _sequential(g: nn.Sequential, x: Tensor) -> Linearization:
    layers = []
    for layer in g:
        layers.append(linearize_inner(layer, x))
        x = layers[-1].value

    def jvp(v: Tensor) -> Tensor:
        for layer in layers:
            v = layer.jvp(v)
        return v

    def vjp(w: Tensor) -> Tensor:
        for layer in reversed(layers):
            w = layer.vjp(w)
        return w

    return Linearization(x, jvp, vjp)


@linearizes(nn.Identity)
def _identity(g: nn.Identity, x: Tensor) -> Linearization:  # noqa: ARG001
    return Linearization(x, lambda v: v, lambda w: w)


@linearizes(nn.Flatten)
def _flatten(g: nn.Flatten, x: Tensor) -> Linearization:
    return Linearization(g(x), g, lambda w: w.reshape(x.shape))


@linearizes(nn.Linear)
def _linear(g: nn.Linear, x: Tensor) -> Linearization:
    weight = g.weight  # a parametrized weight is computed at each access, so once here
    return Linearization(F.linear(x, weight, g.bias), lambda v: F.linear(v, weight), lambda w: F.linear(w, weight.t()))


@linearizes(nn.Conv2d)
def _conv2d(g: nn.Conv2d, x: Tensor) -> Linearization:
    strided = any(s != 1 for s in g.stride)
    if strided or g.padding_mode != "zeros" or isinstance(g.padding, str):
        return _transformed(g, x)
    weight = g.weight
    geometry = {"padding": g.padding, "dilation": g.dilation, "groups": g.groups}
    return Linearization(
        F.conv2d(x, weight, g.bias, **geometry),
        jvp=lambda v: F.conv2d(v, weight, **geometry),
        vjp=lambda w: F.conv_transpose2d(w, weight, **geometry),
    )


def elementwise(value: Tensor, slope: Tensor) -> Linearization:
    r"""Linearize an elementwise map, whose Jacobian is the diagonal ``slope``.

    Args:
        value: the map's value, (N, \*E).
        slope: its derivative at each element, (N, \*E).
    """
    return Linearization(value, lambda v: slope * v, lambda w: slope * w)


def with_known_signature(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """Cache the signature of ``forward``, which torch computes at each call: else 3 % of the time of small blocks."""
    function.forward.__signature__ = inspect.signature(function.forward)  # pyright: ignore[reportFunctionMemberAccess]
    return function


@linearizes(nn.ReLU)
def _relu(g: nn.ReLU, x: Tensor) -> Linearization:  # noqa: ARG001
    return elementwise(F.relu(x), (x > 0).to(x.dtype))


@linearizes(nn.Softplus)
def _softplus(g: nn.Softplus, x: Tensor) -> Linearization:
    slope = torch.sigmoid(g.beta * x)
    linear = g.beta * x > g.threshold  # there torch returns x itself
    return elementwise(F.softplus(x, g.beta, g.threshold), torch.where(linear, torch.ones_like(slope), slope))


@linearizes(nn.Tanh)
def _tanh(g: nn.Tanh, x: Tensor) -> Linearization:  # noqa: ARG001
    y = torch.tanh(x)
    return elementwise(y, 1 - y.square())
