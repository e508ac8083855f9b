"""State of a training between two steps, as checkpoints save and restore it, and the best snapshot so far."""

__all__ = ["Best", "TrainingState"]

import math
import warnings
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from iresnet.collectives import average, is_main, world_size
from iresnet.devices import random_state, seed_all, set_random_state
from iresnet.errors import RunWarning
from iresnet.training.checkpoints import Checkpoint
from iresnet.training.distributed import Strategy
from iresnet.training.optim import Ema
from iresnet.training.step import Skipped, mean_metrics


@dataclass(frozen=True)
class Best:
    """Snapshot with the smallest validation loss so far.

    Attributes:
        step: steps done at it, None before the first snapshot.
        loss: its validation loss.
        waited: snapshots since then.

    Example:
        >>> best = Best().updated(10, 2.0).updated(20, 1.5).updated(30, 1.7)
        >>> best
        Best(step=20, loss=1.5, waited=1)
        >>> best.exhausted(patience=1), best.exhausted(patience=2), best.exhausted(patience=None)
        (True, False, False)
    """

    step: int | None = None
    loss: float | None = None
    waited: int = 0

    def updated(self, step: int, loss: float) -> "Best":
        """Return the best after another snapshot. A non-finite loss never counts as better."""
        if math.isfinite(loss) and (self.loss is None or loss < self.loss):
            return Best(step, loss)
        return Best(self.step, self.loss, self.waited + 1)

    def exhausted(self, patience: int | None) -> bool:
        """Return whether ``patience`` snapshots in a row were no better."""
        return patience is not None and self.waited >= patience


class TrainingState:
    """Everything that steps and snapshots change, saved and restored together.

    Args:
        accelerator: of this process.
        strategy: holds the model and the optimizer.
        ema: averaged weights, None without them.

    Attributes:
        step: steps done.
        best: the best snapshot.
        skipped: counts of the steps that were skipped.
        window: metrics of the steps since they were last logged, on the device.
    """

    def __init__(self, accelerator: Accelerator, strategy: Strategy, ema: Ema | None):
        self.accelerator, self.strategy, self.ema = accelerator, strategy, ema
        self.step = 0
        self.best, self.skipped = Best(), Skipped()
        self.window: list[dict[str, Tensor]] = []

    def settle(self) -> int:
        """Count the steps of the window that the device skipped, and drop their metrics; waits for the device.

        Returns:
            Their number.
        """
        waiting = [metrics for metrics in self.window if "done" in metrics]
        if not waiting:
            return 0
        flags = torch.stack([metrics.pop("done") for metrics in waiting]).tolist()
        before, self.skipped = self.skipped.total, self.skipped.counting(flags)
        known = self.window[: -len(waiting)]
        self.window = [*known, *(metrics for metrics, done in zip(waiting, flags, strict=True) if done)]
        return self.skipped.total - before

    def log_window(self) -> dict[str, float]:
        """Average the metrics over the window and the processes, and start a new window; waits for the device."""
        window, self.window = self._reduced_window(), []
        return dict(zip(window[0], mean_metrics(window).tolist(), strict=True))

    def _reduced_window(self) -> list[dict[str, Tensor]]:
        """Average each step's metrics over the processes."""
        if world_size() == 1 or not self.window:
            return self.window
        names = list(self.window[0])
        rows = [torch.stack([metrics[name].double() for name in names]) for metrics in self.window]
        return [dict(zip(names, row, strict=True)) for row in average(torch.stack(rows))]

    def checkpoint(self, metrics_size: int) -> Checkpoint:
        """Collect the state of all processes, in each of them.

        Args:
            metrics_size: bytes of ``metrics.jsonl`` so far.
        """
        scaler = self.accelerator.scaler
        return Checkpoint(
            step=self.step,
            model=self.strategy.model_state(),
            optimizer=self.strategy.optimizer_state(),
            average=self.ema.state_dict() if self.ema else None,
            scaler=scaler.state_dict() if scaler is not None else None,
            random=gather_object([random_state()]),
            window=self._reduced_window(),
            metrics_size=metrics_size,
            best=asdict(self.best),
            skipped=asdict(self.skipped),
        )

    def restore(self, checkpoint: Checkpoint, seed: int) -> None:
        """Restore a checkpoint.

        Args:
            checkpoint: what to restore.
            seed: of new random numbers, where the saved states are of other processes or another kind of device.

        Warns:
            RunWarning: when random numbers are others than without the interruption.
        """
        self.strategy.load(checkpoint.model, checkpoint.optimizer)
        if self.ema and checkpoint.average:
            self.ema.load_state_dict(checkpoint.average)
        if self.accelerator.scaler is not None and checkpoint.scaler:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)
        self.step = checkpoint.step
        self.best, self.skipped = Best(**checkpoint.best), Skipped(**checkpoint.skipped)
        device = self.accelerator.device
        self.window = [{name: tensor.to(device) for name, tensor in metrics.items()} for metrics in checkpoint.window]
        self._restore_randomness(checkpoint, seed)

    def _restore_randomness(self, checkpoint: Checkpoint, seed: int) -> None:
        rank, n = self.accelerator.process_index, self.accelerator.num_processes
        here = "a GPU" if self.accelerator.device.type == "cuda" else "the CPU"
        before = {"a GPU" if "cuda" in state else "the CPU" for state in checkpoint.random}
        if len(checkpoint.random) == n and before == {here}:
            set_random_state(checkpoint.random[rank])
            return
        seed_all(seed + 1 + rank + n * self.step)
        if is_main():
            warnings.warn(
                f"the run was saved by {len(checkpoint.random)} processes on {' and '.join(before)} and continues with "
                f"{n} on {here}: with other noise and probes than without the interruption",
                RunWarning,
                stacklevel=2,
            )
