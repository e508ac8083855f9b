"""Tables of numbers in text files."""

__all__ = ["read_table"]

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from iresnet.data.dataset import Split
from iresnet.data.reading import raw_bytes, reading
from iresnet.errors import DataError, UnknownNameError

_DELIMITERS = (",", ";", "\t", "|")


def read_table(path: Path, *, target: str | int | None = None) -> tuple[Split, tuple[str, ...]]:
    """Read a table of numbers: ``.csv``, ``.tsv``, ``.txt`` or ``.data``, also with ``.gz`` after it.

    Columns are separated by commas, semicolons, tabs, bars or, failing those, white space. A first line
    without any number is the header. Every column is a feature, except for ``target``.

    Args:
        path: the file.
        target: the column that is the class label, by name or by position (from 0, or from the end,
            -1 being the last); its values may be text.

    Returns:
        The examples, float32, shape ``(N, D)``, with their labels, and the class names: the values of
        the target column in numerical or alphabetical order.

    Raises:
        DataError: text, NaN, an infinite number or a missing value, with its line and column; an empty
            or ragged table; a target that is not a class.
        UnknownNameError: no column of that name.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "flowers.csv"
        >>> _ = path.write_text("length,width,kind\\n1.5,0.25,rose\\n2.5,0.5,lily\\n2,0.75,rose\\n1,0.5,lily\\n")
        >>> split, class_names = read_table(path, target="kind")
        >>> split.x[0].tolist(), split.y.tolist(), class_names
        ([1.5, 0.25], [1, 0, 1, 0], ('lily', 'rose'))
    """
    with reading(path, "text file in UTF-8"):
        text = raw_bytes(path).decode("utf-8-sig")
    table = _parse(path, text)
    column = None if target is None else _column(table, target)
    features = [i for i in range(table.width) if i != column]
    if not features:
        raise DataError(f"{path}: expected columns beside the target, got only {target}")
    x = torch.from_numpy(_numbers(table, features))
    if column is None:
        return Split(x), ()
    y, class_names = _classes(table, column)
    return Split(x, torch.from_numpy(y)), class_names


@dataclass(frozen=True)
class _Table:
    path: Path
    delimiter: str | None  # None: white space
    header: list[str] | None
    lines: list[tuple[int, str]]  # the lines of data, with their numbers in the file
    width: int

    def fields(self, line: str) -> list[str]:
        return _fields(line, self.delimiter)

    def name(self, column: int) -> str:
        return f"column {column + 1}" + (f" ({self.header[column]})" if self.header else "")


def _fields(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    return [field.strip() for field in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _parse(path: Path, text: str) -> _Table:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path}: expected a table of numbers, got an empty file")
    delimiter = _delimiter(lines[0][1])
    first = _fields(lines[0][1], delimiter)
    header = None if any(_is_number(field) for field in first) else first
    data = lines[1:] if header else lines
    if not data:
        raise DataError(f"{path}: expected rows of numbers, got only the header {', '.join(first)[:100]}")
    if header and (not all(header) or len(set(header)) < len(header)):
        raise DataError(f"{path}, line {lines[0][0]}: expected a name of its own for each column, got {header}"[:300])
    return _Table(path, delimiter, header, data, len(first))


def _delimiter(line: str) -> str | None:
    mark = next((mark for mark in _DELIMITERS if mark in line), None)
    if mark == "\t" and any(_is_number(field.split()[0]) for field in line.split(mark) if len(field.split()) > 1):
        return None  # tabs among other white space, as in "1 \t2   3"
    return mark


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _column(table: _Table, target: str | int) -> int:
    if table.header and target in table.header:
        return table.header.index(str(target))
    try:
        position = int(target)
    except ValueError:
        raise UnknownNameError("column", str(target), table.header or map(str, range(table.width))) from None
    if not -table.width <= position < table.width:
        raise DataError(f"{table.path}: expected a target column in 0..{table.width - 1}, got {target}")
    return position % table.width


def _numbers(table: _Table, columns: list[int]) -> np.ndarray:  # (N, D) float32
    try:
        numbers = np.loadtxt(
            io.StringIO("\n".join(line for _, line in table.lines)),
            delimiter=table.delimiter,
            usecols=columns,
            quotechar='"',
            comments=None,
            ndmin=2,
        )
    except ValueError as error:
        raise DataError(_fault(table, columns) or f"{table.path}: expected a table of numbers ({error})") from error
    with np.errstate(over="ignore"):
        x = numbers.astype(np.float32)
    if len(x) != len(table.lines) or not np.isfinite(x).all() or not _even(table):
        raise DataError(_fault(table, columns) or f"{table.path}: expected one row of numbers per line")
    return x


def _even(table: _Table) -> bool:
    """Whether every line has as many columns as the first; selecting columns hides surplus ones."""

    def width(line: str) -> int:
        simple = table.delimiter is not None and '"' not in line
        return line.count(str(table.delimiter)) + 1 if simple else len(table.fields(line))

    return all(width(line) == table.width for _, line in table.lines)


def _fault(table: _Table, columns: Sequence[int]) -> str | None:
    """Describe the first field that is not a finite number, or the first line of another length."""
    largest = float(np.finfo(np.float32).max)
    for number, line in table.lines:
        fields = table.fields(line)
        if len(fields) != table.width:
            return f"{table.path}, line {number}: expected {table.width} columns, got {len(fields)}"
        for column in columns:
            field = fields[column]
            if not _is_number(field) or not abs(float(field)) <= largest:
                return (
                    f"{table.path}, line {number}, {table.name(column)}: expected a finite number, "
                    f"got '{field[:50]}'; correct or remove the line"
                )
    return None


def _classes(table: _Table, column: int) -> tuple[np.ndarray, tuple[str, ...]]:
    values = [table.fields(line)[column] for _, line in table.lines]
    if "" in values:
        number = table.lines[values.index("")][0]
        raise DataError(f"{table.path}, line {number}, {table.name(column)}: expected a class, got nothing; fill it in")
    numeric = all(map(_is_number, values))
    if numeric and not all(math.isfinite(float(value)) and float(value).is_integer() for value in values):
        raise DataError(
            f"{table.path}, {table.name(column)}: expected classes, got real numbers; choose another target"
        )
    classes = [str(int(float(value))) for value in values] if numeric else values
    names = sorted(set(classes), key=int) if numeric else sorted(set(classes))
    if len(names) > max(2, len(values) // 2):
        raise DataError(
            f"{table.path}, {table.name(column)}: expected classes, got {len(names)} values in {len(values)} rows"
        )
    index = {name: i for i, name in enumerate(names)}
    return np.array([index[value] for value in classes], np.int64), tuple(names)
