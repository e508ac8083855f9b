"""Conditioning on a context: layers that it shifts, and any module at a context, which is then an ordinary one."""

__all__ = [
    "N_HIDDEN",
    "WITHOUT_CONTEXT",
    "AtContext",
    "Conditional",
    "ContextEncoder",
    "ContextShift",
    "Shift",
    "at_context",
    "has_rows",
    "is_conditional",
    "rows_of",
]

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresnet.errors import IResNetError
from iresnet.jacobian import Linearization, Product, linearizes
from iresnet.joint import Joint, joins

Rows = slice | Tensor

# -- modules that depend on a context ----------------------------------------------------------------------------------


class Conditional(nn.Module, ABC):
    """Module that depends on a context c: at each c it is a module without one.

    Attributes:
        context: K, features of the context.
    """

    context: int

    @abstractmethod
    def at(
        self,
        c: Tensor,  # (N, K), or (1, K) for samples that share a context
    ) -> nn.Module:
        """Return the module at the features of a context."""


def is_conditional(module: nn.Module) -> bool:
    """Return whether a module, or one inside it, depends on a context."""
    return any(isinstance(part, Conditional) for part in module.modules())


def at_context(module: nn.Module, c: Tensor) -> nn.Module:
    r"""Return a module at a context: the same parameters, and no dependence on a context any more.

    Every :class:`Conditional` inside is replaced by what it is at c; nothing is copied. So blocks and chains need no
    argument for a context, and whatever works on a module works on a conditional one, once it is at a context.

    Args:
        module: with conditional modules inside.
        c: features of the context, (N, K), a row a sample; or (1, K), and then the module takes batches of any size.

    Example:
        >>> g = nn.Sequential(nn.Linear(2, 3), ContextShift(1, 3))
        >>> at_context(g, torch.ones(5, 1))(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """
    return _replaced(module, Conditional, lambda part: part.at(c))


def rows_of(module: nn.Module, rows: Rows) -> nn.Module:
    """Return a module that is at the contexts of a batch, at those of some of its samples.

    Args:
        module: of :func:`at_context`; any other is returned as it is.
        rows: a slice, an index or a mask of the samples.

    Example:
        >>> g = at_context(nn.Sequential(ContextShift(1, 2)), torch.ones(5, 1))
        >>> rows_of(g, slice(1, 3))(torch.zeros(2, 2)).shape
        torch.Size([2, 2])
    """
    return _replaced(module, Shift, lambda part: part if len(part.shift) == 1 else Shift(part.shift[rows]))


def has_rows(module: nn.Module) -> bool:
    """Return whether a module is at contexts of its own for each sample of a batch, so that others need its rows."""
    return any(isinstance(part, Shift) and len(part.shift) > 1 for part in module.modules())


def _replaced(module: nn.Module, kind: type, replace: Callable) -> nn.Module:
    """Replace all modules of a kind inside a module, and leave the module itself as it is."""
    if isinstance(module, kind):
        return replace(module)
    children = {name: None if m is None else _replaced(m, kind, replace) for name, m in module._modules.items()}
    if all(children[name] is m for name, m in module._modules.items()):
        return module
    replaced = copy.copy(module)
    replaced._modules = children
    return replaced


class ContextShift(Conditional):
    r"""Translation of features by a linear function of the context.

    .. math:: h \mapsto h + A c

    Its Lipschitz constant in h is 1, so that a map g with such layers contracts in x by the same bound at every
    context. A is 0 at first: a new model does not depend on the context.

    Args:
        context: K, features of the context.
        features: of h; those of images are channels.

    Shape:
        (N, features, \*), at a context of shape (N, K) or (1, K).

    Example:
        >>> shift = ContextShift(3, 2)
        >>> shift.at(torch.ones(1, 3))(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    def __init__(self, context: int, features: int):
        super().__init__()
        self.context = context
        self.weight = nn.Parameter(torch.zeros(features, context))

    def at(self, c: Tensor) -> "Shift":
        """See :meth:`Conditional.at`."""
        return Shift(F.linear(c, self.weight))

    def forward(self, h: Tensor) -> Tensor:  # noqa: ARG002
        """Refuse to run without a context."""
        raise IResNetError(WITHOUT_CONTEXT)

    def extra_repr(self) -> str:
        """Describe the sizes."""
        return f"context={self.context}, features={len(self.weight)}"


WITHOUT_CONTEXT = (
    "this model is conditional, p(x | context): give the context, as in log_prob(x, context=c), or use given(c)"
)


class AtContext(nn.Module):
    """Module at a context, whose buffers follow from it and are not saved; those of a copy do so no more."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "AtContext":
        copied = memo[id(self)] = copy.copy(self)
        copied._buffers = {name: None if b is None else b.detach().clone() for name, b in self._buffers.items()}
        return copied


class Shift(AtContext):
    """Translation of each sample, or of all samples, by a vector.

    Args:
        shift: (N, features), or (1, features) for all samples.
    """

    shift: Tensor

    def __init__(self, shift: Tensor):
        super().__init__()
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, h: Tensor) -> Tensor:  # (N, features, *)
        """Add the vector; see the class."""
        return h + self.broadcast(h)

    def broadcast(self, h: Tensor) -> Tensor:
        """Return the vectors as they broadcast to h, and refuse other numbers of samples."""
        if len(self.shift) > 1 and len(self.shift) != h.shape[0]:  # in this order: exported batches have any size
            raise IResNetError(
                f"a context of {len(self.shift)} rows goes with {len(self.shift)} samples, got {len(h)}; give one row "
                "a sample, or a single row for all"
            )
        return self.shift.view(*self.shift.shape, *[1] * (h.dim() - 2)).to(h.dtype)


@linearizes(Shift)
def _shift(g: Shift, x: Tensor) -> Linearization:
    return Linearization(g(x), lambda v: v, lambda w: w)


@joins(Shift)
def _join_shift(g: Shift, joint: Joint) -> tuple[Tensor, Product]:
    values, tangents = joint.split()
    return torch.cat([g(values), tangents]), lambda w: w


# -- contexts ----------------------------------------------------------------------------------------------------------


N_HIDDEN = 64
"""Units of the perceptron that encodes contexts of real numbers, in models that are built by name."""


class ContextEncoder(nn.Module):
    r"""Features of a context: standardized numbers, or the output of a perceptron for them.

    Args:
        mean: of each number of the context, (K,); classes are K numbers, one of which is 1.
        std: of each number.
        hidden: features of a perceptron of one hidden layer of this size; None takes the numbers themselves, which for
            classes is no restriction.

    Shape:
        (N, K), (K,) for a single context, or classes: int64 of shape (N,) or (); to (N, features), or (1, features).

    Example:
        >>> encoder = ContextEncoder([0.0] * 10, [1.0] * 10)
        >>> encoder(torch.tensor([3, 4])).shape, encoder(torch.tensor(3)).argmax().item()
        (torch.Size([2, 10]), 3)
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], *, hidden: int | None = None):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        self.features = hidden or len(mean)
        layers = [nn.Linear(len(mean), hidden), nn.ELU(), nn.Linear(hidden, hidden)] if hidden else []
        self.network = nn.Sequential(*layers)

    def forward(self, context: Tensor) -> Tensor:
        """Encode; see the class."""
        return self.network((self._numbers(context) - self.mean) / self.std)

    def _numbers(self, context: Tensor) -> Tensor:  # (N, K)
        """Check a context, and turn classes into numbers."""
        n = len(self.mean)
        if not isinstance(context, Tensor):
            raise IResNetError(f"a context is a tensor, got {type(context).__name__}; make one with torch.as_tensor")
        if not context.is_floating_point() and context.dim() < 2:
            if context.is_cpu and context.numel() and not 0 <= int(context.min()) <= int(context.max()) < n:
                raise IResNetError(f"the classes of the context are 0 to {n - 1}, got {context.unique().tolist()}")
            return F.one_hot(context.reshape(-1).long(), n).to(self.mean.dtype)
        numbers = context[None] if context.dim() == 1 else context
        if not numbers.is_floating_point() or numbers.shape[1:] != (n,):
            raise IResNetError(
                f"a context of this model has {n} real numbers, (N, {n}) or ({n},), got shape {tuple(context.shape)}, "
                f"{context.dtype}"
            )
        return numbers.to(self.mean.dtype)
