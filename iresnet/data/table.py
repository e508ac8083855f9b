"""Tables: select the columns that are features, encode categories, and number the classes of a target."""

__all__ = ["ColumnSelection", "Table", "read_features", "read_table"]

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from iresnet.data.columns import Column
from iresnet.data.dataset import Split
from iresnet.data.table_files import TABLE_FILES, TableFile, TextTable, is_number
from iresnet.errors import DataError, UnknownNameError


class Table(NamedTuple):
    """Table that was read.

    Attributes:
        split: the examples, float64, shape ``(N, D)``, with labels if there is a target; NaN where values are missing.
        class_names: values of the target column, empty without.
        columns: those that became features.
    """

    split: Split
    class_names: tuple[str, ...]
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class ColumnSelection:
    """Columns of a table to read, and their roles.

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
    path: Path, selection: ColumnSelection | None = None, *, like: Sequence[Column] = (), classes: Sequence[str] = ()
) -> Table:
    """Read a table of numbers: text (``.csv``, ``.tsv``, ``.txt``, ``.data``, also with ``.gz``) or ``.parquet``.

    Columns of text are separated by commas, semicolons, tabs, bars or, failing those, white space. A first line
    without any number, or one that numbers the columns, is the header. Without one, columns are called
    ``column 1`` and so on. Every column is a feature unless the selection says otherwise.

    Args:
        path: the file.
        selection: which columns, and their roles.
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
        >>> split, class_names, columns = read_table(path, ColumnSelection(target="kind"))
        >>> split.x[0].tolist(), split.y.tolist(), class_names, [column.name for column in columns]
        ([1.5, 0.25], [1, 0, 1, 0], ('lily', 'rose'), ['length', 'width'])
    """
    selection = selection or ColumnSelection()
    file = TABLE_FILES.get(path.suffix.lower(), TextTable.read)(path)
    target = None if selection.target is None else _target(file, selection.target)
    features = _matching_features(file, like) if like else _selected_features(file, selection, target)
    one_hot = set(_positions(file, selection.one_hot)) & set(features)
    file.check_names([*features, *([] if target is None else [target])])
    x, columns = _read_features(file, features, one_hot, like, missing=selection.impute)
    if target is None:
        return Table(Split(torch.from_numpy(x)), (), columns)
    y, class_names = _read_classes(file, target, tuple(classes))
    return Table(Split(torch.from_numpy(x), torch.from_numpy(y)), class_names, columns)


def read_features(file: TableFile, like: Sequence[Column]) -> np.ndarray:  # (N, D) float64
    """Read the columns of the training data from another table, by name, with NaN where a value is missing.

    Args:
        file: the table.
        like: the columns of the training data.

    Raises:
        DataError: a column is missing, or a value is neither a number nor one of the categories.

    Example:
        >>> file = TextTable(Path("t.csv"), ["kind", "a"], ",", [(2, "lily,1"), (3, "rose,")])
        >>> read_features(file, [Column("a", 1), Column("kind", 2, categories=("lily", "rose"))]).tolist()
        [[1.0, 1.0, 0.0], [nan, 0.0, 1.0]]
    """
    features = _matching_features(file, like)
    one_hot = {i for i, column in zip(features, like, strict=True) if column.categories}
    return _read_features(file, features, one_hot, like, missing=True)[0]


# -- selection of columns, by position ---------------------------------------------------------------------------------


def _target(file: TableFile, target: str | int) -> int:
    titles = file.titles
    if str(target) in titles:
        return titles.index(str(target))
    try:
        position = int(target)
    except ValueError:
        raise UnknownNameError("column", str(target), titles) from None
    if not -file.width <= position < file.width:
        raise DataError(f"{file.path}: expected a target column in 0..{file.width - 1}, got {target}")
    return position % file.width


def _positions(file: TableFile, names: Sequence[str]) -> list[int]:
    titles = file.titles
    for name in names:
        if name not in titles:
            raise UnknownNameError("column", name, titles)
    return [titles.index(name) for name in names]


def _selected_features(file: TableFile, selection: ColumnSelection, target: int | None) -> list[int]:
    wanted = set(_positions(file, selection.columns) or range(file.width))
    features = sorted(wanted - set(_positions(file, selection.drop)) - {target})
    if not features:
        given = f"beside the target, got only {selection.target}"
        rest = "that are not dropped, got none" if target is None else given
        raise DataError(f"{file.path}: expected columns {rest}")
    return features


def _matching_features(file: TableFile, like: Sequence[Column]) -> list[int]:
    """Return the columns of another table, in its order; further ones are not read."""
    missing = [column.title for column in like if column.title not in file.titles]
    if missing:
        raise DataError(f"{file.path}: expected the columns of the training data, got none called {', '.join(missing)}")
    return _positions(file, [column.title for column in like])


# -- values ------------------------------------------------------------------------------------------------------------


def _read_features(
    file: TableFile, features: Sequence[int], one_hot: set[int], like: Sequence[Column], *, missing: bool
) -> tuple[np.ndarray, tuple[Column, ...]]:  # (N, D)
    known = {column.title: column.categories for column in like}
    numeric = [i for i in features if i not in one_hot]
    numbers = file.read_numbers(numeric, missing=missing)
    blocks = {i: values[:, None] for i, values in zip(numeric, numbers.T, strict=True)}
    categories: dict[int, tuple[str, ...]] = {}
    for i in one_hot:
        blocks[i], categories[i] = _read_categories(file, i, known.get(file.title(i), ()), missing=missing)
    columns = tuple(Column(file.names[i], i + 1, categories=categories.get(i, ())) for i in features)
    return np.concatenate([blocks[i] for i in features], axis=1), columns


def _read_categories(
    file: TableFile, column: int, known: tuple[str, ...], *, missing: bool
) -> tuple[np.ndarray, tuple[str, ...]]:  # (N, width)
    """Return a feature of zeros and ones for each category, NaN where it is missing."""
    values = file.read_texts(column)
    if "" in values and not missing:
        raise DataError(
            f"{file.locate(values.index(''), column)}: expected a category, got nothing; fill it in, or have it "
            "replaced by another of the column (--data.impute true)"
        )
    categories = known or tuple(sorted(set(values) - {""}))
    if not known and len(categories) > max(2, len(values) // 2):
        raise DataError(
            f"{file.path}, {file.describe(column)}: expected categories, got {len(categories)} values in "
            f"{len(values)} rows; drop the column (--data.drop '{file.title(column)}')"
        )
    rows = np.vstack([np.eye(len(categories)), np.full(len(categories), np.nan)])
    message = "the training data have no '{}' there"
    return rows[_numbered(file, column, values, (*categories, ""), message)], categories


def _read_classes(file: TableFile, column: int, known: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    values = file.read_texts(column)
    where = f"{file.path}, {file.describe(column)}"
    if "" in values:
        raise DataError(f"{file.locate(values.index(''), column)}: expected a class, got nothing; fill it in")
    numeric = all(map(is_number, values))
    numbers = np.array(values if numeric else [], float)
    if not (np.isfinite(numbers).all() and (numbers == numbers.round()).all()):
        raise DataError(f"{where}: expected classes, got real numbers; choose another target")
    classes = [str(int(Decimal(value))) for value in values] if numeric else values
    names = known or tuple(sorted(set(classes), key=int) if numeric else sorted(set(classes)))
    if not known and len(names) > max(2, len(values) // 2):
        raise DataError(f"{where}: expected classes, got {len(names)} values in {len(values)} rows")
    return np.array(_numbered(file, column, classes, names, "the training data have no class '{}'"), np.int64), names


def _numbered(file: TableFile, column: int, values: list[str], names: Sequence[str], message: str) -> list[int]:
    """Return the position of each value among the names, and refuse one that is none of them."""
    numbers = {name: i for i, name in enumerate(names)}
    for row, value in enumerate(values):
        if value not in numbers:
            raise DataError(f"{file.locate(row, column)}: {message.format(value)}")
    return [numbers[value] for value in values]
