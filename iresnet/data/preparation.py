"""Make examples of the values of a table, and refuse columns that have no density."""

__all__ = [
    "check_columns",
    "check_density",
    "is_discrete",
    "prepare",
    "sample",
]

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from iresnet.data.columns import Column, feature_titles
from iresnet.data.dataset import Dataset, Split
from iresnet.errors import DataError

# -- columns without a density -----------------------------------------------------------------------------------------


_FEW = 10
"""A column of so many rows for each value has few values, and a value in one of so many rows comes again and again."""
_FOLLOWS = 1e-10
"""Share of a column's variance that the columns before it leave open, below which it follows from them."""
_SHOWN = 8
"""Columns that a message names."""
_SCALES = {1.0: "whole numbers", 255.0: "multiples of 1/255", 256.0: "multiples of 1/256"}
"""What pixels of 8 bits were divided by, and what they became."""
_TO = 1e-3
"""Distance of a pixel from a gray level, in levels, that is rounding."""


def is_discrete(x: Tensor) -> Tensor:  # (N, D) -> (D,)
    """Whether each column holds integers, or few values, or one value again and again.

    Example:
        >>> is_discrete(torch.tensor([[1.0, 0.5], [2.0, 1.0], [2.0, 0.25]])).tolist()
        [True, False]
    """
    return (x == x.round()).all(0) | _recurs(x)


def _recurs(x: Tensor) -> Tensor:  # (N, D) -> (D,)
    some = sample(x)
    counts = [column.unique(return_counts=True)[1] for column in some.T]
    few = [len(count) * _FEW <= len(some) or int(count.max()) > max(2, len(some) // _FEW) for count in counts]
    return torch.tensor(few)


def sample(x: Tensor) -> Tensor:  # (N, D) -> (n, D)
    """About ten thousand rows from all over a table, which tell enough of its values."""
    return x[:: max(1, len(x) // 10_000)]


def check_columns(dataset: Dataset) -> None:
    """Refuse vectors and images that cannot be standardized: a single example, or a feature that is constant.

    Raises:
        DataError: names the columns.
    """
    train = dataset.train
    if len(train) < 2:
        raise DataError(f"{dataset.name}: a mean and a standard deviation need at least 2 training examples, got 1")
    values = train.x.transpose(0, 1).flatten(1)
    constant = [i for i, feature in enumerate(values) if bool((feature == feature[0]).all())]
    if constant:
        titles = _titles(dataset)
        names = ", ".join(titles[i] for i in constant)
        raise DataError(
            f"{dataset.name}: constant in all {len(train)} training examples, so without a density: {names}"
            f"{_drop(dataset, constant)}"
        )


def check_density(dataset: Dataset) -> None:
    """Refuse what has no density, so that a likelihood would have no limit: pixels saved as real numbers, and columns
    of tables.

    Raises:
        DataError: names the columns, and says what to do.
    """
    if len(dataset.shape) == 3:
        _check_pixels(dataset)
    if not dataset.columns:
        return
    discrete = dict(_discrete(dataset))
    faults = dict(sorted({**discrete, **dict(_dependent(dataset))}.items()))
    if faults:
        titles = _titles(dataset)
        shown = "; ".join([f"{titles[i]} {fault}" for i, fault in faults.items()][:_SHOWN])
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        noise = ", or add uniform noise of one step to what is discrete (--data.dequantize true)" if discrete else ""
        raise DataError(
            f"{dataset.name}: columns without a density, so that a likelihood has no limit: {shown}{more}"
            f"{_drop(dataset, list(faults))}{noise}"
        )


def _check_pixels(dataset: Dataset) -> None:
    """Refuse images of real numbers all of which are gray levels."""
    x = dataset.train.x
    for scale, called in _SCALES.items():
        if all(bool(((image * scale).round() - image * scale).abs().max() < _TO) for image in x):
            raise DataError(
                f"{dataset.name}: all pixels are {called}, saved as real numbers, so that a likelihood has no limit; "
                "save them as uint8 (0..255): noise of one level is then added to them"
            )


def _discrete(dataset: Dataset) -> Iterator[tuple[int, str]]:
    """Columns that got no noise, of integers (before they were rounded to float32) or of values that recur."""
    x = dataset.train.x
    recurs = _recurs(x)
    owners = [column for column in dataset.columns for _ in range(column.width)]
    for i, column in enumerate(owners):
        if column.noisy:
            continue
        if column.integer or column.categories:
            yield i, "holds integers"
        elif recurs[i]:
            counts = x[:, i].unique(return_counts=True)[1]
            yield i, f"takes {len(counts)} values in {len(x)} rows, one of them {int(counts.max())} times"


def _dependent(dataset: Dataset) -> Iterator[tuple[int, str]]:
    """Columns that are a copy, or an affine function, of those before them."""
    x, titles = dataset.train.x, _titles(dataset)
    dims = x.shape[1]
    left = torch.corrcoef(x.double().T).reshape(dims, dims).clone()  # what the columns before leave open
    for i in range(dims if len(x) > dims else 0):
        if float(left[i, i]) < _FOLLOWS:
            yield i, "follows from the columns before it"
        else:
            left[i + 1 :, i + 1 :] -= left[i + 1 :, i, None] * left[i, i + 1 :] / left[i, i]
    first: dict[bytes, int] = {}
    for i, column in enumerate(x.T):
        earlier = first.setdefault(column.contiguous().numpy().tobytes(), i)
        if earlier != i:
            yield i, f"is a copy of {titles[earlier]}"


def _titles(dataset: Dataset) -> list[str]:
    """What to call the features in a message: position and name."""
    if not dataset.columns:
        kind = "feature" if len(dataset.shape) == 1 else "channel"
        return [f"{kind} {i + 1}" for i in range(dataset.shape[0])]
    owners = [column for column in dataset.columns for _ in range(column.width)]
    titles = zip(owners, feature_titles(dataset.columns), strict=True)
    return [f"column {column.position} ({title})" if column.name else title for column, title in titles]


def _drop(dataset: Dataset, features: list[int]) -> str:
    """How to leave features out."""
    owners = [column.title for column in dataset.columns for _ in range(column.width)]
    names = list(dict.fromkeys(owners[i] for i in features)) if owners else []
    return f"; drop the column{'s' * (len(names) > 1)} (--data.drop '[{', '.join(names)}]')" if names else ""


# -- examples ----------------------------------------------------------------------------------------------------------


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
    noisy = noise is not None and _is_discrete_column(x[:n_train])
    step = _step(x, column) if noisy else 0.0
    spread = x + step * torch.rand(x.shape, generator=noise, dtype=x.dtype) if noisy else x
    offset = 0.0 if column.categories else _offset(spread[:n_train], integer=column.integer)
    rounded = (spread - offset).float()
    found = _below(rounded, (x + step - offset).float()) if noisy else rounded
    return found, replace(column, offset=offset, noisy=noisy)


def _is_discrete_column(x: Tensor) -> bool:  # (n, width)
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
