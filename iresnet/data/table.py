"""Tables: which columns are features, which is the class, and which are left out."""

__all__ = ["Choice", "Table", "read_table"]

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from iresnet.data.columns import Column
from iresnet.data.dataset import Split
from iresnet.data.sources import ParquetSource, Source, TextSource, is_integer, is_number
from iresnet.errors import DataError, UnknownNameError


class Table(NamedTuple):
    """A table that was read.

    Attributes:
        split: the examples, float64, shape ``(N, D)``, with labels if there is a target; NaN where values are missing.
        class_names: values of the target column, empty without.
        columns: those that became features.
    """

    split: Split
    class_names: tuple[str, ...]
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Choice:
    """What is read of a table.

    Attributes:
        target: the column that is the class label, by name or by position (from 0, or from the end, -1 being the last).
        columns: those that are read beside it; all when empty.
        drop: columns that are left out.
        one_hot: columns of categories: a feature of zeros and ones for each.
        impute: let values be missing, for :func:`~iresnet.data.preparation.prepare` to fill in.
    """

    target: str | int | None = None
    columns: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    one_hot: tuple[str, ...] = ()
    impute: bool = False


def read_table(
    path: Path, choice: Choice | None = None, *, like: Sequence[Column] = (), classes: Sequence[str] = ()
) -> Table:
    """Read a table of numbers: text (``.csv``, ``.tsv``, ``.txt``, ``.data``, also with ``.gz``) or ``.parquet``.

    Columns of text are separated by commas, semicolons, tabs, bars or, failing those, white space. A first line
    without any number, or one that numbers the columns, is the header. Without one, columns are called
    ``column 1`` and so on. Every column is a feature, but for what is chosen.

    Args:
        path: the file.
        choice: which columns, and how.
        like: columns of another table, which this one has to have, in any order, with their categories alone.
        classes: the only ones that the target column may have.

    Returns:
        The table. Class names are the values of the target column in numerical or alphabetical order.

    Raises:
        DataError: text, NaN, an infinite number or a missing value, with its line and column; an empty
            or ragged table; a target that is not a class.
        UnknownNameError: no column of that name.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "flowers.csv"
        >>> _ = path.write_text("length,width,kind\\n1.5,0.25,rose\\n2.5,0.5,lily\\n2,0.75,rose\\n1,0.5,lily\\n")
        >>> split, class_names, columns = read_table(path, Choice(target="kind"))
        >>> split.x[0].tolist(), split.y.tolist(), class_names, [column.name for column in columns]
        ([1.5, 0.25], [1, 0, 1, 0], ('lily', 'rose'), ['length', 'width'])
    """
    choice = choice or Choice()
    source = ParquetSource.read(path) if path.suffix.lower() == ".parquet" else TextSource.read(path)
    label = None if choice.target is None else _target(source, choice.target)
    chosen = _alike(source, like) if like else _chosen(source, choice, label)
    one_hot = set(_named(source, choice.one_hot)) & set(chosen)
    source.check_names([*chosen, *([] if label is None else [label])])
    x, columns = _features(source, chosen, one_hot, like, missing=choice.impute)
    if label is None:
        return Table(Split(x), (), columns)
    y, class_names = _classes(source, label, tuple(classes))
    return Table(Split(x, torch.from_numpy(y)), class_names, columns)


def _features(
    source: Source, chosen: Sequence[int], one_hot: set[int], like: Sequence[Column], *, missing: bool
) -> tuple[Tensor, tuple[Column, ...]]:  # (N, D)
    known = {column.title: column.categories for column in like}
    numeric = [i for i in chosen if i not in one_hot]
    parts = {i: part[:, None] for i, part in zip(numeric, source.numbers(numeric, missing=missing).T, strict=True)}
    categories: dict[int, tuple[str, ...]] = {}
    for i in one_hot:
        parts[i], categories[i] = _categories(source, i, known.get(source.title(i), ()), missing=missing)
    columns = tuple(Column(source.names[i], i + 1, categories=categories.get(i, ())) for i in chosen)
    return torch.from_numpy(np.concatenate([parts[i] for i in chosen], axis=1)), columns


def _target(source: Source, target: str | int) -> int:
    titles = source.titles
    if str(target) in titles:
        return titles.index(str(target))
    try:
        position = int(target)
    except ValueError:
        raise UnknownNameError("column", str(target), titles) from None
    if not -source.width <= position < source.width:
        raise DataError(f"{source.path}: expected a target column in 0..{source.width - 1}, got {target}")
    return position % source.width


def _named(source: Source, names: Sequence[str]) -> list[int]:
    titles = source.titles
    for name in names:
        if name not in titles:
            raise UnknownNameError("column", name, titles)
    return [titles.index(name) for name in names]


def _chosen(source: Source, choice: Choice, label: int | None) -> list[int]:
    wanted = set(_named(source, choice.columns) or range(source.width))
    features = sorted(wanted - set(_named(source, choice.drop)) - {label})
    if not features:
        rest = f"beside the target, got only {choice.target}" if label is not None else "that are not dropped, got none"
        raise DataError(f"{source.path}: expected columns {rest}")
    return features


def _alike(source: Source, like: Sequence[Column]) -> list[int]:
    """The columns of another table, in its order; further ones are not read."""
    missing = [column.title for column in like if column.title not in source.titles]
    if missing:
        raise DataError(
            f"{source.path}: expected the columns of the training data, got none called {', '.join(missing)}"
        )
    return _named(source, [column.title for column in like])


def _categories(
    source: Source, column: int, known: tuple[str, ...], *, missing: bool
) -> tuple[np.ndarray, tuple[str, ...]]:  # (N, width)
    """A feature of zeros and ones for each category, NaN where it is missing."""
    values = source.texts(column)
    gap = next((row for row, value in enumerate(values) if not value), None)
    if gap is not None and not missing:
        raise DataError(
            f"{source.place(gap, column)}: expected a category, got nothing; fill it in, or have it replaced by "
            "another of the column (--data.impute true)"
        )
    categories = known or tuple(sorted(set(values) - {""}))
    if not known and len(categories) > max(2, len(values) // 2):
        raise DataError(
            f"{source.path}, {source.called(column)}: expected categories, got {len(categories)} values in "
            f"{len(values)} rows; drop the column (--data.drop '{source.title(column)}')"
        )
    kinds = np.vstack([np.eye(len(categories)), np.full(len(categories), np.nan)])
    index = {name: i for i, name in enumerate((*categories, ""))}
    unknown = next((row for row, value in enumerate(values) if value not in index), None)
    if unknown is not None:
        raise DataError(f"{source.place(unknown, column)}: the training data have no '{values[unknown]}' there")
    return kinds[[index[value] for value in values]], categories


def _classes(source: Source, column: int, known: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    values = source.texts(column)
    where = f"{source.path}, {source.called(column)}"
    if "" in values:
        raise DataError(f"{source.place(values.index(''), column)}: expected a class, got nothing; fill it in")
    numeric = all(map(is_number, values))
    if numeric and not is_integer(np.array(values, float)):
        raise DataError(f"{where}: expected classes, got real numbers; choose another target")
    classes = [str(int(Decimal(value))) for value in values] if numeric else values
    names = known or (sorted(set(classes), key=int) if numeric else sorted(set(classes)))
    if not known and len(names) > max(2, len(values) // 2):
        raise DataError(f"{where}: expected classes, got {len(names)} values in {len(values)} rows")
    index = {name: i for i, name in enumerate(names)}
    unknown = next((row for row, value in enumerate(classes) if value not in index), None)
    if unknown is not None:
        raise DataError(f"{source.place(unknown, column)}: the training data have no class '{classes[unknown]}'")
    return np.array([index[value] for value in classes], np.int64), tuple(names)
