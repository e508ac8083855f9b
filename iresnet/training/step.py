"""One step of training, done as a whole or not at all, and what made it fail."""

__all__ = [
    "NotFinite",
    "Skipped",
    "Step",
    "blame",
    "check_weights",
    "means_of",
]

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from iresnet.bijections import ActNorm, Bijection, Chain, FactorOut
from iresnet.config import Config
from iresnet.devices import kept_random_state, random_state, set_random_state
from iresnet.errors import RunError
from iresnet.precision import PRECISIONS, use_precision
from iresnet.training.optim import Ema, set_learning_rate
from iresnet.training.parts import whole
from iresnet.training.task import Task

# -- losses and gradients that are not finite --------------------------------------------------------------------------


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


# -- steps -------------------------------------------------------------------------------------------------------------


class Step:
    """Moves the weights by the gradient of a batch, taken in equal parts one after the other to save memory.

    A step whose loss or gradient is not finite changes nothing but the random state. Asking for that waits for the
    device, once a step, when all work of backward has been given to it.

    Args:
        accelerator: has prepared the task and the optimizer.
        task: what is trained.
        optimizer: of its parameters.
        config: the recipe.
        ema: average of the weights to keep up to date.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        task: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        config: Config,
        ema: Ema | None,
    ):
        self.accelerator, self.task, self.optimizer, self.ema = accelerator, task, optimizer, ema
        self.own_task: Task = accelerator.unwrap_model(task)
        self.n_parts, self.precision = config.train.accumulate, config.train.precision
        self.clip_norm = math.inf if config.optim.clip_norm is None else config.optim.clip_norm
        self.maybe_uninitialized = True

    def __call__(self, x: Tensor, y: Tensor | None, rate: float) -> dict[str, Tensor]:
        """Train on a batch.

        Args:
            x: examples, (N, *E), as stored.
            y: labels, (N,).
            rate: the learning rate.

        Returns:
            The loss, its parts, the norm of the gradient before clipping, and the rate.

        Raises:
            NotFinite: when nothing was done.
        """
        before = self._what_forward_changes()
        self.optimizer.zero_grad()
        with use_precision(self._flags(), x.device):
            metrics = self._differentiate(x, y)
        norm = self.accelerator.clip_grad_norm_(self.task.parameters(), self.clip_norm)
        norm = whole(torch.as_tensor(norm, device=x.device))
        if not self._is_finite(metrics["loss"], norm):
            with kept_random_state(), use_precision(self._flags(), x.device):
                raise NotFinite(self._undo(x, y, metrics["loss"], *before))
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.maybe_uninitialized = False
        if self.ema:
            self.ema.update(self.own_task.model)
        # A fill, since a copy from the host would be waited for.
        return {**metrics, "grad_norm": norm, "lr": torch.full((), rate, device=x.device)}

    def _flags(self) -> str:
        """The precision of what autocast leaves alone: float32 proper also while ActNorm takes its moments."""
        return "float32" if self.precision == "float32" or self._uninitialized() else "tf32"

    def _uninitialized(self) -> bool:
        """Whether an ActNorm has not seen data yet: asked until the first step is done."""
        norms = [m for m in self.own_task.modules() if isinstance(m, ActNorm)] if self.maybe_uninitialized else []
        return not all(bool(norm.initialized) for norm in norms)

    def _what_forward_changes(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Random state and copies of buffers; and of all weights as long as ActNorm may initialize some."""
        tensors = self.own_task.state_dict() if self.maybe_uninitialized else dict(self.own_task.named_buffers())
        return random_state(), {name: tensor.clone() for name, tensor in tensors.items()}

    def _differentiate(self, x: Tensor, y: Tensor | None) -> dict[str, Tensor]:
        """Leave the gradient of the batch in the parameters; return the means of its parts."""
        fresh = self._initialize(x, y)
        means: dict[str, Tensor] = {}
        parts = list(self._parts(x, y))
        for i, (part_x, part_y) in enumerate(parts):
            share = len(part_x) / len(x)
            last = i == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.task):
                loss, metrics = self.task(part_x, part_y, iterate=i == 0 and not fresh)
                self.accelerator.backward(share * loss)
            for name, value in {"loss": loss.detach(), **metrics}.items():
                means[name] = means.get(name, 0) + share * value
        return means

    def _parts(self, x: Tensor, y: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        labels = [None] * self.n_parts if y is None else y.chunk(self.n_parts)
        yield from zip(x.chunk(self.n_parts), labels, strict=False)

    @torch.no_grad()
    def _initialize(self, x: Tensor, y: Tensor | None) -> bool:
        """Initialize from the whole of the first batch, in float32 proper, when it will come in parts or be rounded.

        Returns:
            Whether that was done.
        """
        if (self.n_parts == 1 and PRECISIONS[self.precision] is None) or not self._uninitialized():
            return False
        # Where products are rounded, accelerate wraps the task with autocast: this goes past it.
        run = self.own_task if PRECISIONS[self.precision] is None else partial(Task.forward, self.own_task)
        with kept_random_state():
            run(x, y)
        return True

    def _is_finite(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether the loss and the gradient are finite, on all processes."""
        finite = torch.isfinite(loss) & torch.isfinite(norm).to(loss.device)
        if self.accelerator.num_processes > 1:
            finite = self.accelerator.reduce(finite.float(), "sum") == self.accelerator.num_processes
        return bool(finite)

    def _undo(self, x: Tensor, y: Tensor | None, loss: Tensor, random: dict, state: dict[str, Tensor]) -> str:
        """Put everything back to what it was before the step, and tell what went wrong in it."""
        self.own_task.load_state_dict(state, strict=False)
        scaler = self.accelerator.scaler
        if scaler is not None:
            scale = scaler.get_scale()
            scaler.update()  # lowers it
            if scale > 1 and bool(torch.isfinite(loss)):
                return f"the gradient overflows fp16 when the loss is scaled by {scale:g}, which is lowered"
        set_random_state(random)
        reason = blame(self.own_task, self._parts(x, y))
        self.own_task.load_state_dict(state, strict=False)
        return reason


def means_of(window: Sequence[dict[str, Tensor]]) -> Tensor:
    """Average the metrics of several steps, on their device, in the order of their names."""
    return torch.stack([torch.stack([metrics[name] for metrics in window]).float().mean() for name in window[0]])
