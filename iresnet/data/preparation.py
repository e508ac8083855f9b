"""Make examples of the values of a table: fill gaps, add noise to integers, keep values apart in float32."""

__all__ = ["prepare"]

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from iresnet.data.columns import Column
from iresnet.data.dataset import Split
from iresnet.data.discrete import is_discrete, sample
from iresnet.errors import DataError

_FAR = 1000
"""Standard deviations from 0 beyond which float32 is too coarse for a column: it rounds to a ten-thousandth of one."""

_APART = 0.9
"""Share of the values of a column that float32 has to keep apart as they are."""


def prepare(
    splits: Sequence[Split], columns: Sequence[Column], where: str, *, dequantize: bool = False
) -> tuple[list[Split], tuple[Column, ...]]:
    """Turn values, in float64 and NaN where they are missing, into examples.

    A missing value becomes one of those of the training split, drawn at random: the median of all would be a value that
    comes again and again, and have no density. Noise is uniform on [0, 1) for integers and categories, so that a
    log-density is a bound of the log-probability of what was recorded, and of the smallest distance of two values for
    other discrete columns. What is subtracted from a column of integers is one, so that they stay integers.

    Args:
        splits: the training split, and others; examples of shape ``(N, D)``.
        columns: of the table.
        where: what to name in an error.
        dequantize: add noise to discrete columns, the same every time.

    Returns:
        The splits in float32, and the columns with what was done to them.

    Raises:
        DataError: nothing but missing values in a column of the training split.

    Example:
        >>> split = Split(torch.tensor([[1.0], [torch.nan], [2.0], [9.0]], dtype=torch.float64))
        >>> (filled,), (column,) = prepare([split], [Column("age", 1)], "people.csv")
        >>> filled.x[1, 0] in (1.0, 2.0, 9.0), column.missing
        (True, 1)
    """
    sizes = [len(split) for split in splits]
    values = torch.cat([split.x for split in splits]).split([column.width for column in columns], dim=1)
    generator = Generator().manual_seed(0)
    parts: list[Tensor] = []
    prepared: list[Column] = []
    for column, part in zip(columns, values, strict=True):
        x, column = _fill(part.double(), column, sizes[0], where, generator)
        x, column = _rounded(x, column, sizes[0], generator if dequantize else None)
        parts.append(x)
        prepared.append(column)
    x = torch.cat(parts, dim=1).split(sizes)
    return [Split(part, split.y) for part, split in zip(x, splits, strict=True)], tuple(prepared)


def _fill(
    x: Tensor, column: Column, n_train: int, where: str, generator: Generator
) -> tuple[Tensor, Column]:  # (N, width)
    """Put values of the training split in place of those that are missing."""
    gaps = x.isnan().any(1)
    n = int(gaps.sum())
    if n == 0:
        return x, column
    known = x[:n_train][~gaps[:n_train]]
    if len(known) == 0:
        raise DataError(
            f"{where}: {column.title} has no value in the training split; drop it (--data.drop '{column.title}')"
        )
    x = x.clone()
    x[gaps] = known[torch.randint(len(known), (n,), generator=generator)]
    return x, replace(column, missing=n)


def _rounded(x: Tensor, column: Column, n_train: int, noise: Generator | None) -> tuple[Tensor, Column]:  # (N, width)
    """A column in float32: with noise if it is discrete, and less what would be lost."""
    column = replace(column, integer=not column.categories and bool((x == x.round()).all()))
    noisy = noise is not None and _recurs(x[:n_train])
    step = _step(x, column) if noisy else 0.0
    spread = x + step * torch.rand(x.shape, generator=noise, dtype=x.dtype) if noisy else x
    offset = 0.0 if column.categories else _offset(spread[:n_train], integer=column.integer)
    rounded = (spread - offset).float()
    found = _below(rounded, (x + step - offset).float()) if noisy else rounded
    return found, replace(column, offset=offset, noisy=noisy)


def _recurs(x: Tensor) -> bool:  # (n, width)
    """Whether a column is discrete; a constant one is nothing at all, with or without noise."""
    return bool(is_discrete(x).all() and (x != x[0]).any())


def _step(x: Tensor, column: Column) -> float:  # (N, width)
    """The distance of values that follow each other."""
    return 1.0 if column.integer or column.categories else float(x.unique().diff().min())


def _offset(x: Tensor, *, integer: bool) -> float:  # (n, 1)
    """What to subtract from a column so that float32 keeps its values apart; 0 for most columns."""
    median, deviation = float(x.median()), float(x.std(correction=0))
    center = float(round(median)) if integer or deviation > 1 else median
    some = sample(x)
    apart = min(len(some.unique()), len((some - center).float().unique()))
    merged = len(some.float().unique()) < _APART * apart
    far = apart > 1 and deviation * _FAR < float(x.abs().max())
    return center if merged or far else 0.0


def _below(x: Tensor, end: Tensor) -> Tensor:
    """Keep what was rounded up to the end of its cell within it."""
    return torch.minimum(x, torch.nextafter(end, torch.full_like(end, -torch.inf)))
