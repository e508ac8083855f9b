"""The running average of a model's weights."""

# pyright: reportPrivateImportUsage=false

__all__ = ["Ema"]

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    r"""Exponential moving average of weights, which validates and samples better than the last ones while they move.

    .. math:: \bar w \leftarrow d \bar w + (1 - d) w, \quad d = \min(\mathrm{decay}, n / (n + 9))

    at the n-th update, from 0, so that the first weights are soon forgotten. Buffers are copied.

    Args:
        model: whose weights are averaged.
        decay: between 0 and 1.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> ema = Ema(layer, 0.5)
        >>> for weight in (1.0, 2.0):
        ...     _ = nn.init.constant_(layer.weight, weight)
        ...     ema.update(layer)
        >>> round(ema.model.weight.item(), 6)
        1.9
    """

    def __init__(self, model: M, decay: float):
        self.decay = decay
        self.n_updates = 0
        self.model: M = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's present weights."""
        decay = min(self.decay, self.n_updates / (self.n_updates + 9))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for mine, other in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(other)
        self.n_updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything that an update depends on."""
        return {"n_updates": self.n_updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.n_updates = state["n_updates"]
        self.model.load_state_dict(state["model"])
