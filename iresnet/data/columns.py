"""Columns of tables: how their values became features, and how features become values of the table again."""

__all__ = ["Column", "describe", "feature_titles", "offsets", "to_columns", "to_csv", "to_values"]

import csv
import io
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from iresnet.inputs import Column


def feature_titles(columns: Sequence[Column]) -> list[str]:
    """Return a name for each feature.

    Example:
        >>> feature_titles([Column("weight", 1), Column("kind", 2, categories=("lily", "rose"))])
        ['weight', 'kind=lily', 'kind=rose']
    """
    return [
        f"{column.title}={category}" if category is not None else column.title
        for column in columns
        for category in (column.categories or (None,))
    ]


def to_columns(columns: Sequence[Column], x: Tensor) -> list[np.ndarray]:  # (N, D)
    """Turn examples into the values of their table, one array per column.

    Integers with noise are rounded down; a category is that of the largest feature; all other values keep their
    precision: float32, or float64 where an offset is added.

    Args:
        columns: the columns.
        x: examples, or samples of a model of them.

    Example:
        >>> kind, year = Column("kind", 1, categories=("lily", "rose")), Column("year", 2, True, True, 2000.0)
        >>> [values.tolist() for values in to_columns([kind, year], torch.tensor([[0.2, 0.9, 3.7]]))]
        [['rose'], [2003]]
    """
    blocks = x.detach().cpu().split([column.width for column in columns], dim=1)
    found = []
    for column, block in zip(columns, blocks, strict=True):
        if column.categories:
            found.append(np.array(column.categories)[block.numpy().argmax(1)])
            continue
        values = block[:, 0].numpy()
        if column.offset:
            values = values.astype(np.float64) + column.offset
        if column.integer and column.noisy:
            values = np.floor(values.astype(np.float64)).astype(np.int64)
        found.append(values)
    return found


def to_values(columns: Sequence[Column], x: Tensor) -> np.ndarray:  # (N, D) -> (N, D), float64
    """Turn examples into the values of their table, a feature of zeros and ones for each category.

    Example:
        >>> year = Column("year", 1, integer=True, noisy=True, offset=2000.0)
        >>> to_values([year], torch.tensor([[3.7]])).tolist()
        [[2003.0]]
    """
    if not columns:
        return x.detach().cpu().double().numpy()
    features = []
    for column, values in zip(columns, to_columns(columns, x), strict=True):
        features += [values == category for category in column.categories] or [values]
    return np.stack(features, axis=1).astype(np.float64)


def to_csv(columns: Sequence[Column], x: Tensor) -> str:  # (N, D)
    """Write examples as a table, below its header, numbers in the fewest digits that tell them apart.

    Args:
        columns: the columns; none for vectors without names.
        x: examples.

    Example:
        >>> print(to_csv([Column("a", 1), Column("n", 2, True, True)], torch.tensor([[0.1, 2.5], [1.0, 3.0]])))
        a,n
        0.1,2
        1,3
        <BLANKLINE>
    """
    columns = columns or [Column("", i + 1) for i in range(x.shape[1])]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if any(column.name for column in columns):
        writer.writerow([column.title for column in columns])
    texts = [
        [text.removesuffix(".0") if values.dtype.kind == "f" else text for text in values.astype(str).tolist()]
        for values in to_columns(columns, x)
    ]
    writer.writerows(zip(*texts, strict=True))
    return buffer.getvalue()


def offsets(columns: Sequence[Column], dims: int) -> Tensor:  # (D,)
    """Return the offset of each feature, float64; zeros without columns.

    Example:
        >>> offsets([Column("time", 1, offset=1.7e9), Column("a", 2)], 2).tolist()
        [1700000000.0, 0.0]
    """
    found = [column.offset for column in columns for _ in range(column.width)]
    return torch.tensor(found or [0.0] * dims, dtype=torch.float64)


def describe(columns: Sequence[Column]) -> list[str]:
    """Describe the changes to the values of a table, one line for each.

    Example:
        >>> describe([Column("age", 2, noisy=True, missing=4), Column("time", 3, offset=1.7e9, noisy=True)])
        ['age: 4 missing values replaced by others', 'time: read less 1700000000, ...', 'noise ... added to age, time']
    """
    notes = []
    for column in columns:
        if column.missing:
            notes.append(f"{column.title}: {column.missing} missing values replaced by others")
        if column.categories:
            notes.append(f"{column.title}: a feature for each of {', '.join(column.categories)}")
        if column.offset:
            notes.append(f"{column.title}: read less {column.offset:.17g}, so that float32 keeps its values apart")
    noisy = [column.title for column in columns if column.noisy]
    return [*notes, f"noise of one step added to {', '.join(noisy)}"] if noisy else notes
