"""Step of training: done as a whole or not at all, with a diagnosis of the first value that is not finite."""

# pyright: reportPrivateImportUsage=false

__all__ = [
    "NotFinite",
    "Skipped",
    "Snapshot",
    "Step",
    "blame",
    "check_weights",
    "mean_metrics",
]

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from iresnet.bijections import ActNorm, Bijection, Chain, FactorOut
from iresnet.config import Config
from iresnet.devices import kept_random_state, random_state, set_random_state
from iresnet.errors import RunError
from iresnet.precision import PRECISIONS, use_precision
from iresnet.training.capture import Captured, obstacle
from iresnet.training.optim import Ema, full_tensor, keep_on_device, set_learning_rate
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
        longest: the most in a row when steps were last counted.

    Example:
        >>> Skipped(total=1, in_a_row=1).counting([0.0, 0.0, 1.0, 0.0])
        Skipped(total=4, in_a_row=1, longest=3)
    """

    total: int = 0
    in_a_row: int = 0
    longest: int = 0

    def counting(self, done: Iterable[float]) -> "Skipped":
        """Return the counts after further steps, each of which was done or not."""
        total, in_a_row, longest = self.total, self.in_a_row, 0
        for was_done in done:
            total, in_a_row = (total, 0) if was_done else (total + 1, in_a_row + 1)
            longest = max(longest, in_a_row)
        return Skipped(total, in_a_row, longest)


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
    if not found and all(_is_finite(p.grad) for p in task.parameters() if p.grad is not None):
        return "its loss or gradient was not finite, which those of its batch are with the weights of now"
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

    A step whose loss or gradient is not finite changes nothing but the random state. On a CPU it is then repeated to
    find the reason. On a GPU the device decides by itself: the host launches the work of the next steps meanwhile, or
    replays it as one graph (:mod:`iresnet.training.capture`), and asks later which steps were done.

    Args:
        accelerator: has prepared the task and the optimizer.
        task: the loss, with the model.
        optimizer: of its parameters.
        config: the recipe.
        ema: averaged weights to update, None without them.
        defers: whether the device decides; by default where there is one other than the CPU, unless weights are
            sharded or losses are scaled.

    Attributes:
        defers: see there.
        obstacle: why steps are not captured on a GPU, None if they are.
        suspect: the last batch whose step the device skipped, once there may be one.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        task: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: Config,
        ema: Ema | None,
        *,
        defers: bool | None = None,
    ):
        self.accelerator, self.task, self.optimizer, self.ema = accelerator, task, optimizer, ema
        self.own_task: Task = accelerator.unwrap_model(task)
        self.n_microbatches, self.precision = config.train.accumulate, config.train.precision
        self.clip_norm = math.inf if config.optim.clip_norm is None else config.optim.clip_norm
        self.maybe_uninitialized = True
        self.plain = accelerator.scaler is None and config.train.sharding == "ddp"  # gradients as backward left them
        self.defers = self.plain and accelerator.device.type != "cpu" if defers is None else defers
        if self.defers:
            keep_on_device(optimizer, accelerator.device)
        self.obstacle = obstacle(config, accelerator.num_processes)
        captures = self.defers and accelerator.device.type == "cuda" and not self.obstacle
        self.run = Captured(self._on_device) if captures else self._on_device
        self.suspect: tuple[Tensor, Tensor | None] | None = None
        self.names: list[str] = []

    def __call__(self, x: Tensor, y: Tensor | None, rate: float) -> dict[str, Tensor]:
        """Train on a batch.

        Args:
            x: examples, (N, *E), as stored.
            y: labels, (N,).
            rate: the learning rate.

        Returns:
            The loss and the means of :meth:`Task.forward`, the norm of the gradient before clipping, and the rate; if
            the device decides, also ``done``, 1 or 0.

        Raises:
            NotFinite: when the loss or the gradient is not finite, and the host decides; nothing was changed then.
        """
        first = self.maybe_uninitialized  # looks at ActNorms, and makes the optimizer's state
        metrics = self._deferred(x, y, rate) if self.defers and not first else self._looked_at(x, y, rate)
        # A fill, since a copy from the host would be waited for.
        return {**metrics, "lr": torch.full((), rate, device=x.device)}

    def explain(self) -> str:
        """Return what was not finite in the last step that the device skipped, as far as the weights of now show it."""
        assert self.suspect is not None
        before = {name: tensor.clone() for name, tensor in self.own_task.named_buffers()}
        with kept_random_state(), use_precision(self._precision_of_products(), self.accelerator.device):
            reason = blame(self.own_task, self._microbatches(*self.suspect))
        self.own_task.load_state_dict(before, strict=False)
        return reason

    # -- the host decides ----------------------------------------------------------------------------------------------

    def _looked_at(self, x: Tensor, y: Tensor | None, rate: float) -> dict[str, Tensor]:
        # Forward moves buffers, and all weights as long as ActNorm may initialize some.
        moved = self.own_task.state_dict() if self.maybe_uninitialized else dict(self.own_task.named_buffers())
        random, before = random_state(), {name: tensor.clone() for name, tensor in moved.items()}
        metrics, norm = self._gradient(x, y)
        if not bool(self._is_finite(metrics["loss"], norm)):
            with kept_random_state(), use_precision(self._precision_of_products(), x.device):
                raise NotFinite(self._undo(x, y, metrics["loss"], random, before))
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        self.maybe_uninitialized = False
        if self.ema:
            self.ema.update(self.own_task.model)
        metrics = {**metrics, "grad_norm": norm}
        return {**metrics, "done": torch.ones((), device=x.device)} if self.defers else metrics

    # -- the device decides --------------------------------------------------------------------------------------------

    def _deferred(self, x: Tensor, y: Tensor | None, rate: float) -> dict[str, Tensor]:
        if self.suspect is None:
            self.suspect = x.clone(), None if y is None else y.clone()
        set_learning_rate(self.optimizer, rate)
        results = self.run(x, y).clone()
        return dict(zip(self.names, results.unbind(), strict=True))

    def _on_device(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Take a step without a look from the host, undo it if something in it is not finite, and stack its metrics."""
        buffers = Snapshot(self.own_task.buffers())
        metrics, norm = self._gradient(x, y)
        done = self._is_finite(metrics["loss"], norm)
        moved = Snapshot(self._moved_by_the_optimizer())
        self.optimizer.step()
        if self.ema:
            self.ema.update(self.own_task.model)
        for snapshot in (buffers, moved):
            snapshot.restore_unless(done)
        self._keep_suspect(x, y, done)
        metrics = {**metrics, "grad_norm": norm, "done": done}
        self.names = list(metrics)
        return torch.stack([value.float() for value in metrics.values()])

    def _moved_by_the_optimizer(self) -> Iterator[Tensor]:
        yield from self.own_task.parameters()
        for numbers in (*self.optimizer.state.values(), *self.optimizer.param_groups):
            yield from (value for name, value in numbers.items() if torch.is_tensor(value) and name != "lr")
        if self.ema:
            yield from (*self.ema.model.parameters(), *self.ema.model.buffers(), self.ema.n_updates)

    def _keep_suspect(self, x: Tensor, y: Tensor | None, done: Tensor) -> None:
        for kept, new in zip(self.suspect or (), (x, y), strict=True):
            if kept is not None and new is not None and kept.shape == new.shape:
                kept.copy_(torch.where(done, kept, new))

    # -- both ----------------------------------------------------------------------------------------------------------

    def _gradient(self, x: Tensor, y: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the gradient of a batch, clipped, the means over the batch, and the norm before clipping."""
        self.optimizer.zero_grad()
        with use_precision(self._precision_of_products(), x.device):
            metrics = self._differentiate(x, y)
        if self.plain:
            grads = [p.grad for p in self.task.parameters() if p.grad is not None]
            norm = get_total_norm(grads)
            if math.isfinite(self.clip_norm):
                clip_grads_with_norm_(self.task.parameters(), self.clip_norm, norm)
            return metrics, norm
        norm = self.accelerator.clip_grad_norm_(self.task.parameters(), self.clip_norm)
        return metrics, full_tensor(torch.as_tensor(norm, device=x.device))

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

    def _is_finite(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Return whether the loss and the gradient are finite in all processes."""
        finite = torch.isfinite(loss) & torch.isfinite(norm).to(loss.device)
        if self.accelerator.num_processes > 1:
            finite = self.accelerator.reduce(finite.float(), "sum") == self.accelerator.num_processes
        return finite

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


class Snapshot:
    """Values of tensors, and the way back to them that the device may take or not.

    Args:
        tensors: that will be changed in place.

    Example:
        >>> x = torch.zeros(2)
        >>> snapshot = Snapshot([x])
        >>> snapshot.restore_unless(x.fill_(math.nan).isfinite().all()), x
        (None, tensor([0., 0.]))
    """

    def __init__(self, tensors: Iterable[Tensor]):
        self.groups: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            self.groups.setdefault(tensor.dtype, []).append(tensor.detach())
        self.values = {dtype: _in_a_row(group) for dtype, group in self.groups.items()}

    def restore_unless(self, done: Tensor) -> None:
        """Restore the values where ``done``, a number on the device, is false."""
        for dtype, group in self.groups.items():
            chosen = torch.where(done, _in_a_row(group), self.values[dtype]).split([t.numel() for t in group])
            torch._foreach_copy_(group, [part.view(t.shape) for part, t in zip(chosen, group, strict=True)])


def _in_a_row(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def mean_metrics(window: Sequence[dict[str, Tensor]]) -> Tensor:
    """Average the metrics of several steps, on their device, in the order of their names."""
    return torch.stack([torch.stack([metrics[name] for metrics in window]).float().mean() for name in window[0]])
