"""What scaling.py varies: one size of a training step at a time, the others held at those of a modest recipe."""

__all__ = ["AXES", "BASE", "CALIBRATION", "Axis", "Step"]

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from contenders import Setting, Training, ours
from timing import Job

RECIPE = "fashion-mnist-density-32"


@dataclass(frozen=True)
class Step:
    """A training step of the recipe, which has 4-4-4 blocks of width 64, batches of 64, and three Krylov steps.

    Attributes:
        side: of the images, in pixels.
        batch: images a step.
        changes: of the recipe.
    """

    side: int = 32
    batch: int = 64
    changes: tuple[str, ...] = ()

    def training(self) -> Training:
        """The model in training."""
        return ours(Setting("", RECIPE, (1, self.side, self.side), self.batch), *self.changes)

    def build(self) -> Job:
        """The work of one step."""
        return Job(self.training().step)

    def with_batch(self, batch: int) -> "Step":
        """The same step on another number of images."""
        return replace(self, batch=batch)


BASE = Step()


def _changed(option: str, value: object, *more: str) -> Step:
    return Step(changes=(f"--model.{option}", str(value), *more))


@dataclass(frozen=True)
class Axis:
    """One size that grows.

    Attributes:
        label: of the size, for a figure.
        sizes: in growing order, of which the recipe's is one.
        step: from a size to the training step.
    """

    label: str
    sizes: tuple[int, ...]
    step: Callable[[int], Step]

    def steps(self) -> Iterator[tuple[int, Step]]:
        """The training steps by size."""
        for size in self.sizes:
            yield size, self.step(size)


AXES = {
    "depth": Axis("residual blocks", (3, 6, 12, 24, 48), lambda n: _changed("blocks", [n // 3] * 3)),
    "width": Axis("width (channels)", (16, 32, 64, 128, 256), lambda n: _changed("hidden", n)),
    "batch": Axis("batch (images)", (8, 16, 32, 64, 128, 256), BASE.with_batch),
    "image size": Axis("image (pixels)", (256, 576, 1024, 2304, 4096), lambda n: Step(side=math.isqrt(n))),
    "Krylov steps": Axis("Krylov steps", (1, 2, 3, 6, 12, 24), lambda n: _changed("logdet.n-steps", n)),
    "Krylov steps, recompute": Axis(
        "Krylov steps, recompute",
        (1, 3, 6, 12),
        lambda n: _changed("logdet.n-steps", n, "--model.memory", "recompute"),
    ),
}
"""By name; the last one keeps no graph of the blocks, so that what their Krylov spaces take would show."""

CALIBRATION = {
    "3 blocks": Step(batch=16, changes=("--model.blocks", "[1, 1, 1]")),
    "6 blocks": Step(batch=4, changes=("--model.blocks", "[2, 2, 2]")),
    "3 blocks, width 128": Step(batch=16, changes=("--model.blocks", "[1, 1, 1]", "--model.hidden", "128")),
    "3 blocks, width 32": Step(batch=32, changes=("--model.blocks", "[1, 1, 1]", "--model.hidden", "32")),
    "3 blocks, 6 Krylov steps": Step(batch=16, changes=("--model.blocks", "[1, 1, 1]", "--model.logdet.n-steps", "6")),
}
"""Small steps, none of which is on an axis, from which the cost model learns the rates of this machine."""
