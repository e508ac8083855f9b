"""Files of tables: text and Parquet, read column by column."""

__all__ = [
    "LARGEST",
    "MISSING",
    "ParquetSource",
    "Source",
    "TextSource",
    "check_apart",
    "is_integer",
    "is_number",
]

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from iresnet.data.reading import raw_bytes, reading
from iresnet.errors import DataError

LARGEST = float(np.finfo(np.float32).max)
EXACT = 2.0**53
"""Up to here float64 holds every integer."""
MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
"""How files write that a value is missing, in lower case."""


class Source(ABC):
    """A file of a table.

    Attributes:
        path: the file.
        names: of the columns; each is empty where there is none.
    """

    def __init__(self, path: Path, names: Sequence[str]):
        self.path = path
        self.names = list(names)

    @property
    def width(self) -> int:
        """How many columns there are."""
        return len(self.names)

    @property
    def titles(self) -> list[str]:
        """What options call the columns."""
        return [self.title(i) for i in range(self.width)]

    def title(self, column: int) -> str:
        """The name, or ``column 3`` without one."""
        return self.names[column] or f"column {column + 1}"

    def called(self, column: int) -> str:
        """A column in a message: name and position."""
        return f"column {column + 1}" + (f" ({self.names[column]})" if self.names[column] else "")

    def drop(self, column: int) -> str:
        """How to leave a column out, for a message."""
        return f"drop the column (--data.drop '{self.title(column)}')"

    @abstractmethod
    def place(self, row: int, column: int) -> str:
        """Where a value stands."""

    @abstractmethod
    def numbers(self, columns: Sequence[int], *, missing: bool) -> np.ndarray:  # (N, D) float64
        """The values of columns of finite numbers.

        Args:
            columns: which.
            missing: take NaN for what is missing, which is refused otherwise.

        Raises:
            DataError: anything else, with its place.
        """

    @abstractmethod
    def texts(self, column: int) -> list[str]:
        """The values of a column as text; empty where one is missing."""

    def check_names(self, used: Sequence[int]) -> None:
        """Refuse columns that have no name where others have.

        Raises:
            DataError: says which.
        """
        if not any(self.names):
            return
        for i in used:
            if not self.names[i]:
                raise DataError(
                    f"{self.path}: expected a name of its own for each column, got none for column {i + 1}; if it "
                    f"numbers the rows, drop it (--data.drop 'column {i + 1}')"
                )

    def fault(self, row: int, column: int, value: str) -> DataError:
        """The error of a value that is no finite number."""
        title = self.title(column)
        numbers = [is_number(text) for text in self.texts(column)]
        if value.lower() in MISSING:
            advice = (
                f"fill it in, have it replaced by another of the column (--data.impute true), or drop the column "
                f"(--data.drop '{title}')"
            )
        elif 2 * sum(numbers) < len(numbers):
            advice = (
                f"the column holds no numbers: drop it (--data.drop '{title}') or make features of its categories "
                f"(--data.one-hot '{title}')"
            )
        else:
            advice = "correct or remove the line"
        return DataError(f"{self.place(row, column)}: expected a finite number, got '{value[:50]}'; {advice}")


def is_number(field: str) -> bool:
    """Whether a text is a number, or says that there is none.

    Example:
        >>> is_number("1e3"), is_number("red")
        (True, False)
    """
    try:
        float(field)
    except ValueError:
        return False
    return True


def is_integer(values: np.ndarray) -> bool:
    """Whether all values, but for NaN, are integers.

    Example:
        >>> is_integer(np.array([1.0, np.nan, 3.0])), is_integer(np.array([0.5]))
        (True, False)
    """
    known = values[~np.isnan(values)]
    return bool(np.isfinite(known).all() and (known == np.round(known)).all())


def check_apart(where: str, values: Iterable[Any], x: np.ndarray, drop: str) -> None:  # (N,)
    """Refuse a column in which integers that differ became one number in float64.

    Args:
        where: the column, for the message.
        values: as the file has them, without loss; only looked at when some are large.
        x: the same in float64.
        drop: how to leave the column out.

    Raises:
        DataError: says how many numbers are left.

    Example:
        >>> check_apart("t.csv, column 1", [2**60, 2**60 + 1], np.array([2.0**60, 2.0**60]), "drop it")
        Traceback (most recent call last):
        iresnet.errors.DataError: t.csv, column 1: 2 different integers beyond 2**53 become 1 in float64; subtract ...
    """
    large = np.abs(x) > EXACT
    if not large.any():
        return
    n, left = len({value for value, is_large in zip(values, large, strict=True) if is_large}), len(np.unique(x[large]))
    if n > left:
        raise DataError(
            f"{where}: {n} different integers beyond 2**53 become {left} in float64; subtract one of them from all, or "
            f"divide them, before they are written, or {drop}"
        )


# -- text --------------------------------------------------------------------------------------------------------------


_DELIMITERS = (",", ";", "\t", "|")


class TextSource(Source):
    """A table whose columns are separated by a mark, or by white space.

    Args:
        path: the file.
        names: of the columns.
        delimiter: the mark; none for white space.
        lines: those of data, with their numbers in the file.
    """

    def __init__(self, path: Path, names: Sequence[str], delimiter: str | None, lines: list[tuple[int, str]]):
        super().__init__(path, names)
        self.delimiter = delimiter
        self.lines = lines

    @classmethod
    def read(cls, path: Path) -> "TextSource":
        """Read a file, and tell its header from its rows.

        Raises:
            DataError: no text, no rows, or a header that names no columns.
        """
        with reading(path, "text file in UTF-8", "save it as UTF-8"):
            text = raw_bytes(path).decode("utf-8-sig")
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        if not lines:
            raise DataError(f"{path}: expected a table of numbers, got an empty file")
        delimiter = _delimiter(lines[0][1])
        first = _fields(lines[0][1], delimiter)
        header = _is_header(path, first, [_fields(line, delimiter) for _, line in lines[1:11]])
        if header and len(lines) == 1:
            raise DataError(f"{path}: expected rows of numbers, got only the header {', '.join(first)[:100]}")
        names = [name for name in first if name]
        if header and (not names or len(set(names)) < len(names)):
            raise DataError(
                f"{path}, line {lines[0][0]}: expected a name of its own for each column, got {first}"[:300]
            )
        return cls(path, first if header else [""] * len(first), delimiter, lines[1:] if header else lines)

    def place(self, row: int, column: int) -> str:
        """See :meth:`Source.place`."""
        return f"{self.path}, line {self.lines[row][0]}, {self.called(column)}"

    def numbers(self, columns: Sequence[int], *, missing: bool) -> np.ndarray:
        """See :meth:`Source.numbers`."""
        x = None if missing or not columns else self._fast(columns)
        if x is None or len(x) != len(self.lines) or not self._even() or not (np.abs(x) <= LARGEST).all():
            x = self._careful(columns, missing)
        for column, values in zip(columns, x.T, strict=True):
            texts = (fields[column] for fields in self._rows())
            exact = (None if text.lower() in MISSING else Decimal(text) for text in texts)
            check_apart(f"{self.path}, {self.called(column)}", exact, values, self.drop(column))
        return x

    def _fast(self, columns: Sequence[int]) -> np.ndarray | None:
        """All numbers at once; nothing when there is anything else."""
        try:
            return np.loadtxt(
                io.StringIO("\n".join(line for _, line in self.lines)),
                delimiter=self.delimiter,
                usecols=columns,
                quotechar='"',
                comments=None,
                ndmin=2,
            )
        except ValueError:
            return None

    def _even(self) -> bool:
        """Whether every line has as many columns as the first; selecting columns hides surplus ones."""

        def width(line: str) -> int:
            simple = self.delimiter is not None and '"' not in line
            return line.count(str(self.delimiter)) + 1 if simple else len(_fields(line, self.delimiter))

        return all(width(line) == self.width for _, line in self.lines)

    def _careful(self, columns: Sequence[int], missing: bool) -> np.ndarray:
        """Number by number, so that the first that is none can be named."""
        x = np.empty((len(self.lines), len(columns)))
        for row, fields in enumerate(self._rows()):
            for i, column in enumerate(columns):
                field = fields[column]
                if missing and field.lower() in MISSING:
                    x[row, i] = np.nan
                elif is_number(field) and abs(float(field)) <= LARGEST:
                    x[row, i] = float(field)
                else:
                    raise self.fault(row, column, field)
        return x

    def _rows(self) -> Iterator[list[str]]:
        for number, line in self.lines:
            fields = _fields(line, self.delimiter)
            if len(fields) != self.width:
                raise DataError(f"{self.path}, line {number}: expected {self.width} columns, got {len(fields)}")
            yield fields

    def texts(self, column: int) -> list[str]:
        """See :meth:`Source.texts`."""
        values = [fields[column] for fields in self._rows()]
        return ["" if value.lower() in MISSING else value for value in values]


def _fields(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    return [field.strip() for field in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _delimiter(line: str) -> str | None:
    mark = next((mark for mark in _DELIMITERS if mark in line), None)
    if mark == "\t" and any(is_number(field.split()[0]) for field in line.split(mark) if len(field.split()) > 1):
        return None  # tabs among other white space, as in "1 \t2   3"
    return mark


def _is_header(path: Path, first: list[str], rows: list[list[str]]) -> bool:
    """Whether a first line holds names: no numbers, or those of the columns, as of a frame without names."""
    if not any(map(is_number, first)):
        return True
    numbered = [field for i, field in enumerate(first) if field or i > 0]  # row numbers have no name
    real = bool(rows) and all("." in field or "e" in field for row in rows for field in row)
    if numbered == [str(i + 1) for i in range(len(numbered))]:
        return len(first) > 2 and real
    if numbered != [str(i) for i in range(len(numbered))]:
        return False
    if len(first) > 2 or len(numbered) < len(first) or real:
        return True
    raise DataError(
        f"{path}, line 1: {', '.join(first)} may be the numbers of the columns or a row; write names there, or above it"
    )


# -- Parquet -----------------------------------------------------------------------------------------------------------


class ParquetSource(Source):
    """A table with typed columns.

    Args:
        path: the file.
        content: its columns.
    """

    def __init__(self, path: Path, content: pa.Table):
        super().__init__(path, content.column_names)
        self.content = content

    @classmethod
    def read(cls, path: Path) -> "ParquetSource":
        """Read a file.

        Raises:
            DataError: it is damaged, or has no rows.
        """
        with reading(path, "complete Parquet file"), pq.ParquetFile(path, page_checksum_verification=True) as file:
            content = file.read()
        if content.num_rows == 0 or content.num_columns == 0:
            raise DataError(f"{path}: expected rows of numbers, got an empty table")
        if len(set(content.column_names)) < content.num_columns:
            raise DataError(f"{path}: expected a name of its own for each column, got {content.column_names}"[:300])
        if any(pa.types.is_struct(column.type) for column in content.columns):
            raise DataError(
                f"{path}: expected columns of numbers, got images; give the folder of such files, {path.parent}"
            )
        return cls(path, content)

    def place(self, row: int, column: int) -> str:
        """See :meth:`Source.place`."""
        return f"{self.path}, row {row + 1}, {self.called(column)}"

    def numbers(self, columns: Sequence[int], *, missing: bool) -> np.ndarray:
        """See :meth:`Source.numbers`."""
        return np.stack([self._number(i, missing) for i in columns], axis=1) if columns else np.empty((len(self), 0))

    def __len__(self) -> int:
        return self.content.num_rows

    def _number(self, column: int, missing: bool) -> np.ndarray:  # (N,)
        values = self.content.column(column)
        kind = values.type
        if not (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or kind == pa.bool_()
        ):
            title = self.title(column)
            remedy = f" or make features of its categories (--data.one-hot '{title}')" * _is_text(kind)
            raise DataError(
                f"{self.path}, {self.called(column)}: expected numbers, got {kind}; drop the column "
                f"(--data.drop '{title}'){remedy}"
            )
        x = values.cast(pa.uint8() if kind == pa.bool_() else kind).cast(pa.float64(), safe=False).to_numpy()
        bad = np.isinf(x) | (np.abs(x) > LARGEST) | (np.isnan(x) & (not missing))
        if bad.any():
            row = int(bad.argmax())
            raise self.fault(row, column, "" if np.isnan(x[row]) else str(x[row]))
        if not pa.types.is_floating(kind):
            where = f"{self.path}, {self.called(column)}"
            check_apart(where, (value.as_py() for value in values), x, self.drop(column))
        return x

    def texts(self, column: int) -> list[str]:
        """See :meth:`Source.texts`."""
        values = self.content.column(column)
        if not (_is_text(values.type) or pa.types.is_primitive(values.type)):
            raise DataError(f"{self.path}, {self.called(column)}: expected classes or categories, got {values.type}")
        found = pc.fill_null(values.cast(pa.string()), "").to_pylist()
        return ["" if value.lower() in MISSING else value for value in found]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
