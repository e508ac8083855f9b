"""Value of a map and its Jacobian product with a known direction, in one pass through its layers.

Values and tangents are one tensor: a convolution takes both at once, forward and backward, and an activation keeps only
its outputs, from which its slope follows. So a training step launches fewer and larger operations, and keeps less.
"""

__all__ = ["Joint", "can_join", "join_layer", "joins", "linear", "linearize_along", "one_after_the_other"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iresnet.devices import is_differentiating
from iresnet.jacobian import Linearization, Product, is_modified, linearize_inner
from iresnet.operators import along_first


@dataclass(frozen=True)
class Joint:
    r"""Values of N samples, followed by tangents of some of them.

    Attributes:
        tensor: values, (N, \*E), then tangents, (n, \*E).
        rows: the n samples that have tangents, as first and last plus one.
    """

    tensor: Tensor
    rows: tuple[int, int]

    @property
    def n_values(self) -> int:
        """N."""
        return len(self.tensor) - (self.rows[1] - self.rows[0])

    def split(self) -> tuple[Tensor, Tensor]:
        """Return values and tangents."""
        # Not tensor_split, whose gradients are put together from tensors of zeros.
        return self.tensor.split([self.n_values, len(self.tensor) - self.n_values])  # pyright: ignore[reportReturnType]


Rule = Callable[[Any, Joint], tuple[Tensor, Product]]
RULES: dict[Callable, Rule] = {}
"""From the ``forward`` function of a module class to its joint pass, as in :mod:`iresnet.jacobian`."""


def joins(*classes: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register the joint pass of module classes; other layers take values and tangents one after the other.

    Args:
        classes: the module classes whose ``forward`` the rule belongs to.

    Returns:
        A decorator for the rule, from the module and a :class:`Joint` to the outputs, values and tangents, and the
        product ``w -> J^T w`` for the samples that have tangents.
    """

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys((cls.forward for cls in classes), rule))
        return rule

    return register


def can_join() -> bool:
    """Return whether a joint pass pays and is right: where autograd records, and nothing else does."""
    return torch.is_grad_enabled() and (torch.compiler.is_compiling() or not is_differentiating())


def linearize_along(
    g: nn.Module,
    x: Tensor,  # (N, *E)
    v: Tensor,  # (n, *E)
    rows: tuple[int, int],
) -> tuple[Tensor, Linearization]:
    r"""Evaluate g at all samples, and linearize it at some of them, whose product with v is taken in the same pass.

    Args:
        g: the map.
        x: the samples.
        v: directions.
        rows: the n samples that have directions, as first and last plus one.

    Returns:
        g(x), (N, \*E), and the linearization at the n samples, with ``direction`` v and ``image`` J v.

    Example:
        >>> g = nn.Sequential(nn.Linear(2, 3), nn.ELU(), nn.Linear(3, 2))
        >>> x, v = torch.randn(5, 2), torch.randn(2, 2)
        >>> value, jacobian = linearize_along(g, x, v, (1, 3))
        >>> bool(torch.allclose(value, g(x))), jacobian.image.shape
        (True, torch.Size([2, 2]))
    """
    tensor, vjp = join_layer(g, Joint(torch.cat([x, v.to(x.dtype)]), rows))
    value, image = Joint(tensor, rows).split()
    at = slice(*rows)

    def jvp(u: Tensor) -> Tensor:
        return linearize_inner(g, x[at]).jvp(u)

    return value, Linearization(value[at], jvp, vjp, direction=v, image=image)


def join_layer(g: nn.Module, joint: Joint) -> tuple[Tensor, Product]:
    """Evaluate a layer of a larger map by its rule; see :func:`joins` for what is returned."""
    rule = None if is_modified(g) else RULES.get(type(g).forward)
    return rule(g, joint) if rule else one_after_the_other(g, joint)


def one_after_the_other(g: nn.Module, joint: Joint) -> tuple[Tensor, Product]:
    """Evaluate a layer at the values, then take its product with the tangents: for layers without a rule."""
    x, v = joint.split()
    start, stop = joint.rows
    at = linearize_inner(g, x[start:stop])
    others = [g(part) for part in (x[:start], x[stop:]) if len(part)]
    values = [*others[: start > 0], at.value, *others[start > 0 :]]
    return torch.cat([*values, at.jvp(v)]), at.vjp


@joins(nn.Sequential)
def _sequential(g: nn.Sequential, joint: Joint) -> tuple[Tensor, Product]:
    tensor, products = joint.tensor, []
    for layer in g:
        tensor, product = join_layer(layer, Joint(tensor, joint.rows))
        products.append(product)

    def vjp(w: Tensor) -> Tensor:
        for product in reversed(products):
            w = product(w)
        return w

    return tensor, vjp


# -- linear layers -----------------------------------------------------------------------------------------------------


def linear(joint: Joint, operator: Product, bias: Tensor | None) -> Tensor:
    """Apply a linear operator to values and tangents, and add a bias to the values.

    Args:
        joint: values and tangents.
        operator: of both, without bias; its result may be overwritten.
        bias: as it broadcasts to an event.
    """
    tensor = operator(joint.tensor)
    if bias is None:
        return tensor
    if torch.compiler.is_compiling():  # in the loop of the next operation
        is_value = torch.arange(len(tensor), device=tensor.device) < joint.n_values
        return tensor + bias.to(tensor.dtype) * along_first(is_value, tensor)
    return _AddBias.apply(tensor, bias, joint.n_values)  # pyright: ignore[reportReturnType]


class _AddBias(torch.autograd.Function):
    """Sum with a bias in the first rows, in place."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, bias: Tensor, n: int) -> Tensor:
        ctx.n, ctx.shape = n, bias.shape
        tensor[:n].add_(bias.to(tensor.dtype))
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return upstream, upstream[: ctx.n].sum_to_size(ctx.shape), None
