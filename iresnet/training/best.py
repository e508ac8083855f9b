"""The best snapshot of a run, and when to wait no longer for a better one."""

__all__ = ["Best"]

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Best:
    """The snapshot with the smallest validation loss so far.

    Attributes:
        step: steps done at it, none before the first snapshot.
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
        """The best after another snapshot; a loss that is not finite is none."""
        if math.isfinite(loss) and (self.loss is None or loss < self.loss):
            return Best(step, loss)
        return Best(self.step, self.loss, self.waited + 1)

    def exhausted(self, patience: int | None) -> bool:
        """Whether so many snapshots in a row were no better."""
        return patience is not None and self.waited >= patience
