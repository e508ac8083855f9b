"""Preparation of tables: fill in, add noise, center in float64; refuse data that have no density."""

__all__ = [
    "check_columns",
    "check_density",
    "find_copies",
    "is_discrete",
    "prepare",
    "separate_context",
    "smallest_step",
    "to_features",
]

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from iresnet.data.columns import Column, feature_titles
from iresnet.data.dataset import Dataset, Split
from iresnet.errors import DataError, UnknownNameError

# -- discrete columns, and copies --------------------------------------------------------------------------------------


_ROWS_PER_VALUE = 10
"""Rows for each distinct value from which on a column is discrete; so is one with a value in one of so many rows."""


def is_discrete(x: Tensor) -> Tensor:  # (N, D) -> (D,)
    """Return for each column whether it holds integers, few distinct values, or one value again and again.

    Example:
        >>> is_discrete(torch.tensor([[1.0, 0.5], [2.0, 1.0], [2.0, 0.25]])).tolist()
        [True, False]
    """
    return (x == x.round()).all(0) | _repeats(x)


def _repeats(x: Tensor) -> Tensor:  # (N, D) -> (D,)
    """Return for each column whether it has few distinct values, or one value again and again."""
    some = _some_rows(x)
    counts = [column.unique(return_counts=True)[1] for column in some.T]
    few = [
        len(count) * _ROWS_PER_VALUE <= len(some) or int(count.max()) > max(2, len(some) // _ROWS_PER_VALUE)
        for count in counts
    ]
    return torch.tensor(few)


def _some_rows(x: Tensor) -> Tensor:  # (N, D) -> (n, D)
    """Return about ten thousand rows from all over a table, which are enough to count its values."""
    return x[:: max(1, len(x) // 10_000)]


def smallest_step(x: Tensor) -> Tensor:  # (N,) -> ()
    """Return the smallest distance of two different values.

    Example:
        >>> float(smallest_step(torch.tensor([0.0, 0.25, 1.0, 0.25])))
        0.25
    """
    return x.unique().diff().min()


def find_copies(x: Tensor) -> dict[int, int]:  # (N, D)
    """Return the columns that equal an earlier one, each with the first such column.

    Example:
        >>> find_copies(torch.tensor([[1.0, 5.0, 1.0], [2.0, 6.0, 2.0]]))
        {2: 0}
    """
    first: dict[bytes, int] = {}
    earlier = {i: first.setdefault((column + 0.0).numpy().tobytes(), i) for i, column in enumerate(x.T)}  # -0 is 0
    return {i: copied for i, copied in earlier.items() if copied != i}


# -- contexts ----------------------------------------------------------------------------------------------------------


def separate_context(
    splits: Sequence[Split], columns: Sequence[Column], names: Sequence[str], where: str
) -> tuple[list[Split], tuple[Column, ...], tuple[Column, ...]]:
    """Take columns out of the features of a table: the density of the others is given them.

    Args:
        splits: examples of a table.
        columns: of the table.
        names: of the columns to take out.
        where: name of the data in error messages.

    Returns:
        The splits, whose ``y`` are the contexts, the columns that are left, and those of the contexts.

    Raises:
        DataError: when there are labels too, or no column is left.
        UnknownNameError: no column of that name.

    Example:
        >>> split = Split(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> (split,), features, context = separate_context([split], [Column("a", 1), Column("b", 2)], ["b"], "t.csv")
        >>> split.x.tolist(), split.y.tolist(), context[0].name
        ([[1.0], [3.0]], [[2.0], [4.0]], 'b')
    """
    titles = [column.title for column in columns]
    for name in names:
        if name not in titles:
            raise UnknownNameError("column", name, titles)
    if any(split.y is not None for split in splits):
        raise DataError(f"{where}: the context is a class (--data.target) or columns (--data.context), not both")
    if set(names) == set(titles):
        raise DataError(f"{where}: all columns are context (--data.context), expected others whose density is wanted")
    owners = [column.title for column in columns for _ in range(column.width)]
    is_context = torch.tensor([owner in names for owner in owners])
    separated = [Split(split.x[:, ~is_context], split.x[:, is_context].float()) for split in splits]
    features, context = (
        tuple(column for column in columns if (column.title in names) == wanted) for wanted in (False, True)
    )
    return separated, features, context


# -- data without a density --------------------------------------------------------------------------------------------


_DEPENDENT = 1e-10
"""Fraction of a column's variance that the columns before it leave unexplained, below which it depends on them."""
_N_NAMED = 8
"""Columns that a message names."""
_PIXEL_SCALES = {1.0: "whole numbers", 255.0: "multiples of 1/255", 256.0: "multiples of 1/256"}
"""Divisors by which pixels of 8 bits become real numbers, and what these are then."""
_ROUNDING = 1e-3
"""Distance of a pixel from a gray level, in levels, that is rounding."""


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
        titles = _feature_names(dataset)
        names = ", ".join(titles[i] for i in constant)
        raise DataError(
            f"{dataset.name}: constant in all {len(train)} training examples, so without a density: {names}"
            f"{_drop_advice(dataset, constant)}"
        )


def check_density(dataset: Dataset) -> None:
    """Refuse data with an unbounded likelihood: 8-bit pixels saved as real numbers, discrete or dependent columns.

    Raises:
        DataError: names the columns, and says what to do.
    """
    if len(dataset.shape) == 3:
        _check_pixels(dataset)
    if not dataset.columns:
        return
    discrete = _discrete_features(dataset)
    faults = dict(sorted({**discrete, **_dependent_features(dataset)}.items()))
    if faults:
        titles = _feature_names(dataset)
        named = "; ".join([f"{titles[i]} {fault}" for i, fault in faults.items()][:_N_NAMED])
        more = f"; and {len(faults) - _N_NAMED} more" if len(faults) > _N_NAMED else ""
        noise = ", or add uniform noise of one step to what is discrete (--data.dequantize true)" if discrete else ""
        raise DataError(
            f"{dataset.name}: columns without a density, so that a likelihood has no limit: {named}{more}"
            f"{_drop_advice(dataset, list(faults))}{noise}"
        )


def _check_pixels(dataset: Dataset) -> None:
    x = dataset.train.x
    for scale, multiples in _PIXEL_SCALES.items():
        if all(bool(((image * scale).round() - image * scale).abs().max() < _ROUNDING) for image in x):
            raise DataError(
                f"{dataset.name}: all pixels are {multiples}, saved as real numbers, so that a likelihood has no "
                "limit; save them as uint8 (0..255): noise of one level is then added to them"
            )


def _discrete_features(dataset: Dataset) -> dict[int, str]:
    """Describe the features without noise that are integers (before rounding to float32) or whose values repeat."""
    x = dataset.train.x
    repeats = _repeats(x)
    found = {}
    for i, column in enumerate(_column_of_features(dataset)):
        if column.noisy:
            continue
        if column.integer or column.categories:
            found[i] = "holds integers"
        elif repeats[i]:
            counts = x[:, i].unique(return_counts=True)[1]
            found[i] = f"takes {len(counts)} values in {len(x)} rows, one of them {int(counts.max())} times"
    return found


def _dependent_features(dataset: Dataset) -> dict[int, str]:
    """Describe the features that are a copy, or an affine function, of those before them."""
    x, titles = dataset.train.x, _feature_names(dataset)
    found = {}
    dims = x.shape[1]
    unexplained = torch.corrcoef(x.double().T).reshape(dims, dims).clone()
    for i in range(dims if len(x) > dims else 0):
        if float(unexplained[i, i]) < _DEPENDENT:
            found[i] = "follows from the columns before it"
        else:  # one step of elimination
            rest = slice(i + 1, None)
            unexplained[rest, rest] -= unexplained[rest, i, None] * unexplained[i, rest] / unexplained[i, i]
    return found | {i: f"is a copy of {titles[copied]}" for i, copied in find_copies(x).items()}


def _column_of_features(dataset: Dataset) -> list[Column]:
    return [column for column in dataset.columns for _ in range(column.width)]


def _feature_names(dataset: Dataset) -> list[str]:
    """Name the features for a message, by position and title."""
    if not dataset.columns:
        kind = "feature" if len(dataset.shape) == 1 else "channel"
        return [f"{kind} {i + 1}" for i in range(dataset.shape[0])]
    titles = zip(_column_of_features(dataset), feature_titles(dataset.columns), strict=True)
    return [f"column {column.position} ({title})" if column.name else title for column, title in titles]


def _drop_advice(dataset: Dataset, features: list[int]) -> str:
    columns = _column_of_features(dataset)
    names = list(dict.fromkeys(columns[i].title for i in features)) if columns else []
    return f"; drop the column{'s' * (len(names) > 1)} (--data.drop '[{', '.join(names)}]')" if names else ""


# -- examples ----------------------------------------------------------------------------------------------------------


_FAR = 1000
"""Standard deviations from 0 beyond which float32 is too coarse for a column: it rounds to a ten-thousandth of one."""

_KEPT_APART = 0.9
"""Fraction of the distinct values of a column that have to stay distinct in float32 without an offset."""


def prepare(
    splits: Sequence[Split], columns: Sequence[Column], where: str, *, dequantize: bool = False
) -> tuple[list[Split], tuple[Column, ...]]:
    """Turn values, in float64 and NaN where they are missing, into examples.

    A missing value becomes one of those of the training split, drawn at random: the median of all would be a value that
    comes again and again, and have no density. Noise is uniform on [0, 1) for integers and categories, so that a
    log-density is a bound of the log-probability of what was recorded, and of the smallest distance of two values for
    other discrete columns. The offset of a column of integers is an integer, so that they stay integers.

    Args:
        splits: the training split, and others; examples of shape ``(N, D)``.
        columns: of the table.
        where: name of the data in error messages.
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
    blocks = torch.cat([split.x for split in splits]).split([column.width for column in columns], dim=1)
    generator = Generator().manual_seed(0)
    features: list[Tensor] = []
    prepared: list[Column] = []
    for column, block in zip(columns, blocks, strict=True):
        values, column = _fill_missing(block.double(), column, sizes[0], where, generator)
        values, column = _to_float32(values, column, sizes[0], generator if dequantize else None)
        features.append(values)
        prepared.append(column)
    x = torch.cat(features, dim=1).split(sizes)
    return [Split(rows, split.y) for rows, split in zip(x, splits, strict=True)], tuple(prepared)


def to_features(x: Tensor, columns: Sequence[Column], u: Tensor) -> Tensor:  # (N, D) float64, (D,) -> (N, D) float32
    """Turn values of a table into features as those of the training data became ones.

    Args:
        x: values as they stand in the table, categories as zeros and ones, float64.
        columns: those of the training data.
        u: noise, uniform on [0, 1), for the columns that got any; the same for each row.

    Raises:
        DataError: a column got noise of a step that its run did not note.

    Example:
        >>> age, time = Column("age", 1, noisy=True, step=0.5), Column("time", 2, offset=1000.0)
        >>> to_features(torch.tensor([[3.0, 1002.0]]).double(), [age, time], torch.tensor([0.5, 0.5])).tolist()
        [[3.25, 2.0]]
    """
    widths = [column.width for column in columns]
    features = []
    for values, noise, column in zip(x.split(widths, dim=1), u.split(widths), columns, strict=True):
        if not column.noisy:
            features.append((values - column.offset).float())
            continue
        if not column.step and not (column.integer or column.categories):
            raise DataError(f"{column.title}: this run did not note the step of its noise; train it again")
        features.append(_add_noise(values, noise.double(), replace(column, step=column.step or 1.0)))
    return torch.cat(features, dim=1)


def _fill_missing(
    x: Tensor, column: Column, n_train: int, where: str, generator: Generator
) -> tuple[Tensor, Column]:  # (N, width)
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


def _to_float32(x: Tensor, column: Column, n_train: int, noise: Generator | None) -> tuple[Tensor, Column]:
    """Round a column to float32, with noise if it is discrete and less an offset if its values would merge."""
    column = replace(column, integer=not column.categories and bool((x == x.round()).all()))
    train = x[:n_train]
    constant = bool((train == train[0]).all())
    if noise is None or constant or not bool(is_discrete(train).all()):
        offset = 0.0 if column.categories else _offset(train, integer=column.integer)
        return (x - offset).float(), replace(column, offset=offset)
    step = 1.0 if column.integer or column.categories else float(smallest_step(x))
    u = torch.rand(x.shape, generator=noise, dtype=x.dtype)
    offset = 0.0 if column.categories else _offset((x + step * u)[:n_train], integer=column.integer)
    column = replace(column, offset=offset, noisy=True, step=step)
    return _add_noise(x, u, column), column


def _add_noise(x: Tensor, u: Tensor, column: Column) -> Tensor:  # (N, width), numbers in [0, 1) that broadcast to it
    """Add noise of one step to values in float64, and round the result, less the offset, to float32."""
    end = (x + column.step - column.offset).float()  # of the interval of value plus noise: rounding must not leave it
    below = torch.nextafter(end, torch.full_like(end, -torch.inf))
    return torch.minimum((x + column.step * u - column.offset).float(), below)


def _offset(x: Tensor, *, integer: bool) -> float:  # (n, 1)
    """Return the center of a column if float32 merges its values otherwise, and 0 for most columns."""
    median, deviation = float(x.median()), float(x.std(correction=0))
    center = float(round(median)) if integer or deviation > 1 else median
    some = _some_rows(x)
    n_centered = min(len(some.unique()), len((some - center).float().unique()))
    merged = len(some.float().unique()) < _KEPT_APART * n_centered
    far = n_centered > 1 and deviation * _FAR < float(x.abs().max())
    return center if merged or far else 0.0
