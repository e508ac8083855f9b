"""Contract of parametrizations that keep the operator norm of a weight at or below a coefficient."""

__all__ = ["Normalization", "PerThread"]

import math
import threading
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from iresnet.devices import is_transforming
from iresnet.errors import IResNetError
from iresnet.precision import use_precision


class PerThread(threading.local):
    """Value that each thread sets for itself; copies and pickles start with the default.

    It is not a context variable, since compiled code cannot read those.

    Args:
        value: the default.

    Example:
        >>> counter = PerThread(1)
        >>> counter.value = 2
        >>> thread = threading.Thread(target=lambda: print(counter.value))
        >>> thread.start(), thread.join()
        1
        (None, None)
    """

    def __init__(self, value: Any = None):
        self.default = value
        self.value = value

    def __reduce__(self) -> tuple[type, tuple[Any]]:
        """Keep only the default."""
        return type(self), (self.default,)


class Normalization(nn.Module, ABC):
    r"""Parametrization that scales a weight down to norm ``coeff`` when its norm is above it.

    .. math:: W \mapsto W \min(1, c / \sigma(W))

    Args:
        coeff: c, the largest norm allowed, in (0, 1); None for no constraint, c infinite.

    Raises:
        IResNetError: when ``coeff`` is outside (0, 1).
    """

    norm: float = 2.0
    """p of the operator norm that is bounded, from the p-norm to the p-norm."""

    idempotent: bool = True
    """Whether a normalized weight, or a smaller one, is normalized to itself: then it may replace the parameter."""

    rounding_above: float = 0.0
    """Rounding units of its type by which a normalized weight may be larger than one computed in float64."""

    rounding_below: float = 128.0
    """Rounding units by which it may be smaller; more where the norm is an upper bound, which is rounded up."""

    def __init__(self, coeff: float | None):
        super().__init__()
        if coeff is not None and not 0.0 < coeff < 1.0:
            raise IResNetError(
                "coeff is the Lipschitz bound of a layer and must lie in (0, 1) for x + g(x) to be invertible, got "
                f"{coeff}; None (null in a recipe) leaves the layer unconstrained"
            )
        self.coeff = math.inf if coeff is None else float(coeff)
        self._held = PerThread()

    @property
    def held(self) -> Tensor | None:
        """The normalized weight that this thread holds, see :func:`~iresnet.lipschitz.hold_weights`."""
        return self._held.value

    def hold(self, weight: Tensor | None) -> None:
        """Let this thread use a normalized weight; None to compute it at each use."""
        self._held.value = weight

    @property
    def constrained(self) -> bool:
        """True if there is a coefficient; without one the weight is returned unchanged and its norm only monitored."""
        return math.isfinite(self.coeff)

    @abstractmethod
    def sigma(self, weight: Tensor) -> Tensor:
        """Return the differentiable estimate or bound of the operator norm, a scalar, without changing the state."""

    def advance(self, weight: Tensor) -> None:
        """Update the state, if there is one, once for each use in train mode."""

    def converge(self, weight: Tensor, *, tol: float = 1e-6, max_steps: int = 2000) -> None:
        """Sharpen :meth:`sigma` until it changes by less than ``tol`` relative, in at most ``max_steps`` steps."""

    def forward(self, weight: Tensor) -> Tensor:
        """Normalize the weight, after an update of the state in train mode.

        The state is not updated in a backward pass, where checkpoints repeat the forward pass, nor under transforms of
        :mod:`torch.func`, which allow no state.
        """
        if self.held is not None:
            return self.held
        if self._advances():
            self.advance(weight)
        return self.normalize(weight)

    def _advances(self) -> bool:
        """Return whether a use updates the state."""
        # Outside of backward passes the graph task is -1, which compiled code cannot read.
        return self.training and (
            torch.compiler.is_compiling() or (torch._C._current_graph_task_id() == -1 and not is_transforming())
        )

    def normalize(self, weight: Tensor) -> Tensor:
        """Scale the weight with the present state."""
        # The norm is computed in full float32 even where the surrounding products are not.
        with use_precision("float32", weight.device):
            return weight * self._scale(self.sigma(weight))

    def _scale(self, norms: Tensor) -> Tensor:
        """Return the factors that bring norms above the coefficient down to it."""
        return torch.clamp(norms / self.coeff, min=1.0).reciprocal()

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take a weight that is assigned to the layer as the unnormalized one."""
        return weight
