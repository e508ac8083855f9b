"""Columns that have no density: values that come again and again, copies, and what follows from other columns."""

__all__ = ["check_columns", "check_density", "is_discrete", "sample"]

from collections.abc import Iterator

import torch
from torch import Tensor

from iresnet.data.columns import feature_titles
from iresnet.data.dataset import Dataset
from iresnet.errors import DataError

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
