"""Step of training: done as a whole or not at all, with a diagnosis of the first value that is not finite."""

__all__ = [
    "NotFinite",
    "Skipped",
    "Step",
    "blame",
    "check_weights",
    "mean_metrics",
]

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from iresnet.bijections import ActNorm, Bijection, Chain, FactorOut
from iresnet.config import Config
from iresnet.devices import kept_random_state, random_state, set_random_state
from iresnet.errors import RunError
from iresnet.precision import PRECISIONS, use_precision
from iresnet.training.optim import Ema, full_tensor, set_learning_rate
from iresnet.training.task import Task

# -- losses and gradients that are not finite --------------------------------------------------------------------------


class NotFinite(Exception):  # noqa: N818 (what was found)
    """Step whose loss or gradient is not finite; the message names the first thing that is not."""


@dataclass(frozen=True)
class Skipped:
    """Counts of the steps that were skipped.

    Attributes:
        total: of the whole run.
        in_a_row: without a step that was done since.
    """

    total: int = 0
    in_a_row: int = 0

    def one_more(self) -> "Skipped":
        """Return the counts after another skipped step."""
        return Skipped(self.total + 1, self.in_a_row + 1)

    def recovered(self) -> "Skipped":
        """Return the counts after a step that was done."""
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
    found = [f"the weights '{name}' are not finite" for name in _non_finite(task.model.state_dict())]
    names = {module: name for name, module in task.model.named_modules()}

    def report(bijection: Bijection, outputs: tuple[Tensor, ...]) -> None:
        if not all(_is_finite(output) for output in outputs):
            found.append(f"the output of '{names[bijection]}' is not finite")

    for i, (x, y) in enumerate(batches):  # to the end: other processes may wait for what this one sends
        loss, _ = task(x, y, iterate=i == 0, report=report)
        if not _is_finite(loss):
            found.append("the loss is not finite, although the outputs of all bijections are")
        loss.backward()
    for module, name in reversed(names.items()):
        if not isinstance(module, Bijection) or isinstance(module, (Chain, FactorOut)):
            continue
        if not all(_is_finite(p.grad) for p in module.parameters() if p.grad is not None):
            found.append(f"the gradient of '{name}' is not finite")
    return next(iter(found), "the gradient is not finite, although those of all bijections are")


def check_weights(state: Mapping[str, Tensor]) -> None:
    """Refuse to save weights that are not finite.

    Args:
        state: of a model.

    Raises:
        RunError: names them.
    """
    for name in _non_finite(state):
        raise RunError(
            f"the weights '{name}' are not finite: lower --optim.lr, or set --optim.clip-norm; the last checkpoint is "
            "intact"
        )


def _non_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors with values that are not finite; waits for the device once."""
    if not state:
        return []
    finite = torch.stack([full_tensor(torch.isfinite(tensor).all()) for tensor in state.values()]).tolist()
    return [name for name, is_finite in zip(state, finite, strict=True) if not is_finite]


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


# -- steps -------------------------------------------------------------------------------------------------------------


class Step:
    """Training step: move the weights by the gradient of a batch, accumulated over microbatches to save memory.

    A step whose loss or gradient is not finite changes nothing but the random state. To know that, it waits for the
    device once, when all work of backward has been given to it.

    Args:
        accelerator: has prepared the task and the optimizer.
        task: the loss, with the model.
        optimizer: of its parameters.
        config: the recipe.
        ema: averaged weights to update, None without them.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        task: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: Config,
        ema: Ema | None,
    ):
        self.accelerator, self.task, self.optimizer, self.ema = accelerator, task, optimizer, ema
        self.own_task: Task = accelerator.unwrap_model(task)
        self.n_microbatches, self.precision = config.train.accumulate, config.train.precision
        self.clip_norm = math.inf if config.optim.clip_norm is None else config.optim.clip_norm
        self.maybe_uninitialized = True

    def __call__(self, x: Tensor, y: Tensor | None, rate: float) -> dict[str, Tensor]:
        """Train on a batch.

        Args:
            x: examples, (N, *E), as stored.
            y: labels, (N,).
            rate: the learning rate.

        Returns:
            The loss and the means of :meth:`Task.forward`, the norm of the gradient before clipping, and the rate.

        Raises:
            NotFinite: when the loss or the gradient is not finite; nothing was changed then.
        """
        # Forward moves buffers, and all weights as long as ActNorm may initialize some.
        moved = self.own_task.state_dict() if self.maybe_uninitialized else dict(self.own_task.named_buffers())
        random, before = random_state(), {name: tensor.clone() for name, tensor in moved.items()}
        self.optimizer.zero_grad()
        with use_precision(self._precision_of_products(), x.device):
            metrics = self._differentiate(x, y)
        norm = self.accelerator.clip_grad_norm_(self.task.parameters(), self.clip_norm)
        norm = full_tensor(torch.as_tensor(norm, device=x.device))
        if not self._is_finite(metrics["loss"], norm):
            with kept_random_state(), use_precision(self._precision_of_products(), x.device):
                raise NotFinite(self._undo(x, y, metrics["loss"], random, before))
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.maybe_uninitialized = False
        if self.ema:
            self.ema.update(self.own_task.model)
        # A fill, since a copy from the host would be waited for.
        return {**metrics, "grad_norm": norm, "lr": torch.full((), rate, device=x.device)}

    def _precision_of_products(self) -> str:
        """Return the precision where autocast does not apply: float32 proper also while ActNorm takes its moments."""
        return "float32" if self.precision == "float32" or self._uninitialized() else "tf32"

    def _uninitialized(self) -> bool:
        """Return whether an ActNorm has not seen data yet; False without a look once a step is done."""
        norms = [m for m in self.own_task.modules() if isinstance(m, ActNorm)] if self.maybe_uninitialized else []
        return not all(bool(norm.initialized) for norm in norms)

    def _differentiate(self, x: Tensor, y: Tensor | None) -> dict[str, Tensor]:
        """Accumulate the gradient of the batch in the parameters, and return the means over it."""
        initialized = self._initialize(x, y)
        means: dict[str, Tensor] = {}
        microbatches = self._microbatches(x, y)
        for i, (micro_x, micro_y) in enumerate(microbatches):
            weight = len(micro_x) / len(x)
            last = i == len(microbatches) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.task):
                loss, metrics = self.task(micro_x, micro_y, iterate=i == 0 and not initialized)
                self.accelerator.backward(weight * loss)
            for name, value in {"loss": loss.detach(), **metrics}.items():
                means[name] = means.get(name, 0) + weight * value
        return means

    def _microbatches(self, x: Tensor, y: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        labels = [None] * self.n_microbatches if y is None else y.chunk(self.n_microbatches)
        return list(zip(x.chunk(self.n_microbatches), labels, strict=False))

    @torch.no_grad()
    def _initialize(self, x: Tensor, y: Tensor | None) -> bool:
        """Initialize ActNorm from the full first batch in float32, where microbatches or autocast would change it.

        Returns:
            Whether that was done.
        """
        autocast = PRECISIONS[self.precision] is not None
        if (self.n_microbatches == 1 and not autocast) or not self._uninitialized():
            return False
        with kept_random_state():
            if autocast:
                Task.forward(self.own_task, x, y)  # accelerate has wrapped the task's own forward with autocast
            else:
                self.own_task(x, y)
        return True

    def _is_finite(self, loss: Tensor, norm: Tensor) -> bool:
        """Return whether the loss and the gradient are finite in all processes; waits for the device."""
        finite = torch.isfinite(loss) & torch.isfinite(norm).to(loss.device)
        if self.accelerator.num_processes > 1:
            finite = self.accelerator.reduce(finite.float(), "sum") == self.accelerator.num_processes
        return bool(finite)

    def _undo(self, x: Tensor, y: Tensor | None, loss: Tensor, random: dict, state: dict[str, Tensor]) -> str:
        """Restore what was there before the step, and return what went wrong in it."""
        self.own_task.load_state_dict(state, strict=False)
        scaler = self.accelerator.scaler
        if scaler is not None:
            scale = scaler.get_scale()
            scaler.update()  # lowers it
            if scale > 1 and bool(torch.isfinite(loss)):
                return f"the gradient overflows fp16 when the loss is scaled by {scale:g}, which is lowered"
        set_random_state(random)
        reason = blame(self.own_task, self._microbatches(x, y))
        self.own_task.load_state_dict(state, strict=False)
        return reason


def mean_metrics(window: Sequence[dict[str, Tensor]]) -> Tensor:
    """Average the metrics of several steps, on their device, in the order of their names."""
    return torch.stack([torch.stack([metrics[name] for metrics in window]).float().mean() for name in window[0]])
