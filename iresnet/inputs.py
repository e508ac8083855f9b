"""Facts about the data that a model is built from: shape, classes, scale, columns of a table. Imports no torch."""

__all__ = ["Column", "Inputs", "level_scale", "value_range", "white_level"]

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Column:
    """Column of a table: one feature, or one for each category.

    Attributes:
        name: in the header; empty where there is none.
        position: in the file, from 1.
        integer: every value is an integer.
        noisy: uniform noise of one step was added to the values.
        offset: subtracted from the values, in float64, where float32 would merge them.
        categories: names of the categories, each of which is a feature of zeros and ones; none for numbers.
        missing: number of missing values, which were replaced.
        step: width of the noise; 0 without noise, and in runs of versions that did not note it.

    Example:
        >>> Column("weight", 3).title, Column("", 3).title, Column("kind", 2, categories=("lily", "rose")).width
        ('weight', 'column 3', 2)
    """

    name: str
    position: int
    integer: bool = False
    noisy: bool = False
    offset: float = 0.0
    categories: tuple[str, ...] = ()
    missing: int = 0
    step: float = field(default=0.0, compare=False)

    @property
    def title(self) -> str:
        """Name that options use: that of the header, or ``column 3``."""
        return self.name or f"column {self.position}"

    @property
    def width(self) -> int:
        """Number of its features."""
        return len(self.categories) or 1


@dataclass(frozen=True)
class Inputs:
    """Facts about its data that a model needs to be rebuilt without them.

    Attributes:
        shape: event shape.
        levels: values that an integer component takes, none for continuous data.
        class_names: names of the classes, empty without labels.
        mean: subtracted from the data, one number or one a channel or feature.
        std: the data is then divided by it.
        columns: of a table: names, offsets, noise and categories of its features.
        context: columns that a conditional density is given; none where that is the class.
        context_mean: subtracted from the numbers of the context, which for classes are zeros and a one; empty for a
            density without a context.
        context_std: the context is then divided by it.
    """

    shape: tuple[int, ...]
    levels: int | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    columns: tuple[Column, ...] = ()
    context: tuple[Column, ...] = ()
    context_mean: tuple[float, ...] = ()
    context_std: tuple[float, ...] = ()

    @property
    def is_conditional(self) -> bool:
        """True for a density that is given a context."""
        return bool(self.context_mean)


def level_scale(levels: int) -> tuple[float, float]:
    """Return the mean and std that map integer data, dequantized to [0, levels), to [-1/2, 1/2), as published.

    Example:
        >>> level_scale(256)
        (128.0, 256.0)
    """
    return levels / 2, float(levels)


def value_range(x: "Tensor", levels: int | None) -> float:
    """Return the range of the data, in whose units reconstruction errors are measured.

    Args:
        x: examples.
        levels: values that an integer component takes, which is then the range; none for continuous data.

    Returns:
        The number of levels, or the largest value of all examples less the smallest; 1 when all are the same.

    Example:
        >>> import torch
        >>> value_range(torch.tensor([[-1.0, 3.0]]), None), value_range(torch.tensor([[0, 16]]), 17)
        (4.0, 17.0)
    """
    return float(levels or (x.max() - x.min())) or 1.0


def white_level(x: "Tensor", levels: int | None) -> float:
    """Return the value that pictures show white, over 0, which is black.

    Args:
        x: images.
        levels: values that an integer component takes, none for continuous data.

    Returns:
        The largest level, or the largest finite value of all images.

    Example:
        >>> import torch
        >>> white_level(torch.tensor([0.5, 2.0]), None), white_level(torch.tensor([0.5, 2.0]), 17)
        (2.0, 16.0)
    """
    return float(levels - 1 if levels else x.nan_to_num(0.0, 0.0, 0.0).max().clamp(min=1e-12))
