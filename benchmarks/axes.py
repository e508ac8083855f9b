"""What scaling.py varies: one size of a training step at a time, the others held at those of a modest recipe."""

__all__ = ["AXES", "BASE", "Axis", "Changes"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from contenders import Setting, ours
from timing import Job

Changes = tuple[str, ...]
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
    changes: Changes = ()

    def build(self) -> Job:
        """The work of one step."""
        setting = Setting("", RECIPE, (1, self.side, self.side), self.batch)
        return Job(ours(setting, *self.changes).step)


BASE = Step()


def _depth(blocks: int) -> Step:
    per_scale = blocks // 3
    return Step(changes=("--model.blocks", f"[{per_scale}, {per_scale}, {per_scale}]"))


def _width(width: int) -> Step:
    return Step(changes=("--model.hidden", str(width)))


def _batch(batch: int) -> Step:
    return Step(batch=batch)


def _pixels(pixels: int) -> Step:
    return Step(side=round(pixels**0.5))


def _steps(n_steps: int, *changes: str) -> Step:
    return Step(changes=("--model.logdet.n-steps", str(n_steps), *changes))


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
    "depth": Axis("residual blocks", (3, 6, 12, 24, 48), _depth),
    "width": Axis("width (channels)", (16, 32, 64, 128, 256), _width),
    "batch": Axis("batch (images)", (8, 16, 32, 64, 128, 256), _batch),
    "image size": Axis("image (pixels)", (256, 576, 1024, 2304, 4096), _pixels),
    "Krylov steps": Axis("Krylov steps", (1, 2, 3, 6, 12, 24), _steps),
    "Krylov steps, recompute": Axis(
        "Krylov steps, recompute", (1, 2, 3, 6, 12, 24), partial(lambda n: _steps(n, "--model.memory", "recompute"))
    ),
}
"""By name."""
