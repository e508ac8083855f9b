"""Losses and gradients that are not finite: how many, and where they come from."""

__all__ = ["NotFinite", "Skipped", "blame", "check_weights"]

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from iresnet.bijections import Bijection, Chain, FactorOut
from iresnet.errors import RunError
from iresnet.training.parts import whole
from iresnet.training.task import Task


class NotFinite(Exception):  # noqa: N818 (what was found)
    """A step whose loss or gradient is not finite; the message says where it began."""


@dataclass(frozen=True)
class Skipped:
    """Counts of the steps that were skipped.

    Attributes:
        total: in the whole run.
        in_a_row: just now.
    """

    total: int = 0
    in_a_row: int = 0

    def one_more(self) -> "Skipped":
        """After another one."""
        return Skipped(self.total + 1, self.in_a_row + 1)

    def recovered(self) -> "Skipped":
        """After a step that was done."""
        return replace(self, in_a_row=0)


def blame(task: Task, batches: Iterable[tuple[Tensor, Tensor | None]]) -> str:
    """Run a step again, from the same random state and buffers, and name the first thing in it that is not finite.

    Weights are looked at first; then the outputs of the bijections, in the order of the data; then the gradients of
    their parameters, in the order of backward. Gradients that were there are lost.

    Args:
        task: what is trained, not wrapped.
        batches: of the step, examples and labels.
    """
    task.zero_grad()
    found = [f"the weights '{name}' are not finite" for name in _sick_weights(task.model.state_dict())]
    with _watched(task.model, found.append):
        for i, (x, y) in enumerate(batches):  # to the end: other processes may wait for what this one sends
            loss, _ = task(x, y, iterate=i == 0)
            if not _finite(loss):
                found.append("the loss is not finite, although the outputs of all bijections are")
            loss.backward()
    for name, part in reversed(_bijections(task.model)):
        if not all(_finite(p.grad) for p in part.parameters() if p.grad is not None):
            found.append(f"the gradient of '{name}' is not finite")
    return next(iter(found), "the gradient is not finite, although those of all bijections are")


def check_weights(state: Mapping[str, Tensor]) -> None:
    """Refuse to save weights that are not finite.

    Args:
        state: of a model.

    Raises:
        RunError: names them.
    """
    for name in _sick_weights(state):
        raise RunError(
            f"the weights '{name}' are not finite: lower --optim.lr, or set --optim.clip-norm; the last checkpoint is "
            "intact"
        )


def _sick_weights(state: Mapping[str, Tensor]) -> list[str]:
    finite = torch.stack([whole(torch.isfinite(tensor).all()) for tensor in state.values()]).tolist() if state else []
    return [name for name, sound in zip(state, finite, strict=True) if not sound]


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _bijections(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The bijections that do the work, in the order of the data."""
    return [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(m, Bijection) and not isinstance(m, (Chain, FactorOut))
    ]


@contextmanager
def _watched(model: nn.Module, report: Callable[[str], None]) -> Iterator[None]:
    """Report each bijection whose output is not finite."""
    watched = [
        (part, name, method) for name, part in _bijections(model) for method in ("forward", "forward_and_logdet")
    ]
    own = [vars(part).get(method) for part, _, method in watched]  # sharded blocks have methods of their own
    try:
        for part, name, method in watched:
            setattr(part, method, _reporting(getattr(part, method), name, report))
        yield
    finally:
        for (part, _, method), before in zip(watched, own, strict=True):
            delattr(part, method)
            if before is not None:
                setattr(part, method, before)


def _reporting(run: Callable, name: str, report: Callable[[str], None]) -> Callable:
    def reporting(*args: Any, **kwargs: Any) -> Any:
        output = run(*args, **kwargs)
        if not all(_finite(part.detach()) for part in (output if isinstance(output, tuple) else (output,))):
            report(f"the output of '{name}' is not finite")
        return output

    return reporting
