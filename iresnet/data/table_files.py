"""Files of tables: text and Parquet, read column by column."""

__all__ = [
    "MISSING",
    "TABLE_FILES",
    "ParquetTable",
    "TableFile",
    "TextTable",
    "check_distinct",
    "is_number",
    "stream_table",
]

import csv
import gzip
import io
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from iresnet.data.storage import raw_bytes, reading
from iresnet.errors import DataError

MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
"""Texts that stand for a missing value, in lower case."""
_LARGEST = float(np.finfo(np.float32).max)
_EXACT = 2.0**53
"""Largest number up to which float64 holds every integer."""


class TableFile(ABC):
    """File of a table, opened.

    Attributes:
        path: the file.
        names: of the columns; each is empty where there is none.
    """

    def __init__(self, path: Path, names: Sequence[str]):
        self.path = path
        self.names = list(names)

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.names)

    @property
    def titles(self) -> list[str]:
        """Names that options use for the columns."""
        return [self.title(i) for i in range(self.width)]

    def title(self, column: int) -> str:
        """Return the name of a column, or ``column 3`` without one."""
        return self.names[column] or f"column {column + 1}"

    def describe(self, column: int) -> str:
        """Name a column in a message, by position and name."""
        return f"column {column + 1}" + (f" ({self.names[column]})" if self.names[column] else "")

    @abstractmethod
    def locate(self, row: int, column: int) -> str:
        """Name the file, line and column of a value in a message."""

    @abstractmethod
    def read_numbers(self, columns: Sequence[int], *, missing: bool) -> np.ndarray:  # (N, D) float64
        """Read columns of finite numbers.

        Args:
            columns: their positions, from 0.
            missing: read a missing value as NaN instead of refusing it.

        Raises:
            DataError: a value is no finite number, or integers would merge; names file, line and column.
        """

    @abstractmethod
    def read_texts(self, column: int) -> list[str]:
        """Read a column as text; empty where a value is missing."""

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

    def _check_distinct(self, column: int, values: Iterable[Any], x: np.ndarray) -> None:
        drop = f"drop the column (--data.drop '{self.title(column)}')"
        check_distinct(f"{self.path}, {self.describe(column)}", values, x, drop)

    def not_a_number(self, row: int, column: int, value: str) -> DataError:
        """Return the error for a value that is no finite number."""
        title = self.title(column)
        numbers = [is_number(text) for text in self.read_texts(column)]
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
        return DataError(f"{self.locate(row, column)}: expected a finite number, got '{value[:50]}'; {advice}")


def is_number(field: str) -> bool:
    """Return whether a text is a number, NaN included.

    Example:
        >>> is_number("1e3"), is_number("red")
        (True, False)
    """
    try:
        float(field)
    except ValueError:
        return False
    return True


def check_distinct(where: str, values: Iterable[Any], x: np.ndarray, drop: str) -> None:  # (N,)
    """Refuse a column in which different integers became one number in float64.

    Args:
        where: the column, for the message.
        values: as the file has them, without loss; only looked at when some are large.
        x: the same in float64.
        drop: advice on leaving the column out, for the message.

    Raises:
        DataError: says how many numbers are left.

    Example:
        >>> check_distinct("t.csv, column 1", [2**60, 2**60 + 1], np.array([2.0**60, 2.0**60]), "drop it")
        Traceback (most recent call last):
        iresnet.errors.DataError: t.csv, column 1: 2 different integers beyond 2**53 become 1 in float64; subtract ...
    """
    large = np.abs(x) > _EXACT
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


class TextTable(TableFile):
    """Table in a text file, with columns separated by a delimiter or by white space.

    Args:
        path: the file.
        names: of the columns.
        delimiter: a character; none for white space.
        lines: those of data, with their numbers in the file.
    """

    def __init__(self, path: Path, names: Sequence[str], delimiter: str | None, lines: list[tuple[int, str]]):
        super().__init__(path, names)
        self.delimiter = delimiter
        self.lines = lines

    @classmethod
    def read(cls, path: Path) -> "TextTable":
        """Read the lines of a file, and separate the header from the rows.

        Raises:
            DataError: no text, no rows, or a header that names no columns.
        """
        with reading(path, "text file in UTF-8", "save it as UTF-8"):
            text = raw_bytes(path).decode("utf-8-sig")
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        names, delimiter, header = _find_columns(path, lines[:11])
        return cls(path, names, delimiter, lines[header:])

    @classmethod
    def stream(cls, path: Path, rows: int) -> Iterator["TextTable"]:
        """Read so many rows of a file at a time, each time as a table of their own.

        Raises:
            DataError: as :meth:`read` does.
        """
        opened = gzip.open if path.suffix == ".gz" else open
        with reading(path, "text file in UTF-8", "save it as UTF-8"), opened(path, "rt", encoding="utf-8-sig") as file:
            lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
            first = list(itertools.islice(lines, 11))
            names, delimiter, header = _find_columns(path, first)
            lines = itertools.chain(first[header:], lines)
            while some := [(number, line.rstrip("\r\n")) for number, line in itertools.islice(lines, rows)]:
                yield cls(path, names, delimiter, some)

    def locate(self, row: int, column: int) -> str:
        """See :meth:`TableFile.locate`."""
        return f"{self.path}, line {self.lines[row][0]}, {self.describe(column)}"

    def read_numbers(self, columns: Sequence[int], *, missing: bool) -> np.ndarray:
        """See :meth:`TableFile.read_numbers`."""
        x = None if missing or not columns else self._read_fast(columns)
        if x is None or not (np.abs(x) <= _LARGEST).all():
            x = self._read_checked(columns, missing)
        for column, values in zip(columns, x.T, strict=True):
            texts = (fields[column] for fields in self._rows())
            exact = (None if text.lower() in MISSING else Decimal(text) for text in texts)
            self._check_distinct(column, exact, values)
        return x

    def _read_fast(self, columns: Sequence[int]) -> np.ndarray | None:
        """Read all numbers at once; return None when there is anything else, or a line of another width."""
        try:
            x = np.loadtxt(
                io.StringIO("\n".join(line for _, line in self.lines)),
                delimiter=self.delimiter,
                usecols=columns,
                quotechar='"',
                comments=None,
                ndmin=2,
            )
        except ValueError:
            return None
        even = len(x) == len(self.lines) and all(self._count_fields(line) == self.width for _, line in self.lines)
        return x if even else None  # NumPy passes over surplus fields

    def _count_fields(self, line: str) -> int:
        simple = self.delimiter is not None and '"' not in line
        return line.count(str(self.delimiter)) + 1 if simple else len(_fields(line, self.delimiter))

    def _read_checked(self, columns: Sequence[int], missing: bool) -> np.ndarray:
        """Read number by number, so that an error names the first value that is none."""
        x = np.empty((len(self.lines), len(columns)))
        for row, fields in enumerate(self._rows()):
            for i, column in enumerate(columns):
                field = fields[column]
                if missing and field.lower() in MISSING:
                    x[row, i] = np.nan
                elif is_number(field) and abs(float(field)) <= _LARGEST:
                    x[row, i] = float(field)
                else:
                    raise self.not_a_number(row, column, field)
        return x

    def _rows(self) -> Iterator[list[str]]:
        for number, line in self.lines:
            fields = _fields(line, self.delimiter)
            if len(fields) != self.width:
                raise DataError(f"{self.path}, line {number}: expected {self.width} columns, got {len(fields)}")
            yield fields

    def read_texts(self, column: int) -> list[str]:
        """See :meth:`TableFile.read_texts`."""
        values = [fields[column] for fields in self._rows()]
        return ["" if value.lower() in MISSING else value for value in values]


def _find_columns(path: Path, lines: Sequence[tuple[int, str]]) -> tuple[list[str], str | None, int]:
    """Return the names of the columns and the delimiter, from the first lines, and whether the first is a header."""
    if not lines:
        raise DataError(f"{path}: expected a table of numbers, got an empty file")
    delimiter = _find_delimiter(lines[0][1])
    first = _fields(lines[0][1], delimiter)
    header = _is_header(path, first, [_fields(line, delimiter) for _, line in lines[1:]])
    if header and len(lines) == 1:
        raise DataError(f"{path}: expected rows of numbers, got only the header {', '.join(first)[:100]}")
    names = [name for name in first if name]
    if header and (not names or len(set(names)) < len(names)):
        raise DataError(f"{path}, line {lines[0][0]}: expected a name of its own for each column, got {first}"[:300])
    return first if header else [""] * len(first), delimiter, int(header)


def _fields(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    return [field.strip() for field in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _find_delimiter(line: str) -> str | None:
    found = next((delimiter for delimiter in _DELIMITERS if delimiter in line), None)
    if found == "\t" and any(is_number(field.split()[0]) for field in line.split(found) if len(field.split()) > 1):
        return None  # tabs among other white space, as in "1 \t2   3"
    return found


def _is_header(path: Path, first: list[str], rows: list[list[str]]) -> bool:
    """Return whether a first line is a header: no numbers, or those of the columns, as pandas writes them."""
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


class ParquetTable(TableFile):
    """Table in a Parquet file, with typed columns.

    Args:
        path: the file.
        content: its columns.
        start: rows of the file that come before these.
    """

    def __init__(self, path: Path, content: pa.Table, start: int = 0):
        super().__init__(path, content.column_names)
        self.content = content
        self.start = start

    @classmethod
    def read(cls, path: Path) -> "ParquetTable":
        """Read all columns of a file.

        Raises:
            DataError: it is damaged, or has no rows.
        """
        with reading(path, "complete Parquet file"), pq.ParquetFile(path, page_checksum_verification=True) as file:
            content = file.read()
        cls._check(path, content)
        return cls(path, content)

    @classmethod
    def stream(cls, path: Path, rows: int) -> Iterator["ParquetTable"]:
        """Read so many rows of a file at a time, each time as a table of their own.

        Raises:
            DataError: it is damaged.
        """
        start = 0
        with reading(path, "complete Parquet file"), pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(rows):
                content = pa.Table.from_batches([batch])
                cls._check(path, content)
                yield cls(path, content, start)
                start += len(batch)

    @staticmethod
    def _check(path: Path, content: pa.Table) -> None:
        if content.num_rows == 0 or content.num_columns == 0:
            raise DataError(f"{path}: expected rows of numbers, got an empty table")
        if len(set(content.column_names)) < content.num_columns:
            raise DataError(f"{path}: expected a name of its own for each column, got {content.column_names}"[:300])
        if any(pa.types.is_struct(column.type) for column in content.columns):
            raise DataError(
                f"{path}: expected columns of numbers, got images; give the folder of such files, {path.parent}"
            )

    def locate(self, row: int, column: int) -> str:
        """See :meth:`TableFile.locate`."""
        return f"{self.path}, row {self.start + row + 1}, {self.describe(column)}"

    def read_numbers(self, columns: Sequence[int], *, missing: bool) -> np.ndarray:
        """See :meth:`TableFile.read_numbers`."""
        x = [self._read_number(i, missing) for i in columns]
        return np.stack(x, axis=1) if x else np.empty((self.content.num_rows, 0))

    def _read_number(self, column: int, missing: bool) -> np.ndarray:  # (N,)
        values = self.content.column(column)
        kind = values.type
        if not (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or kind == pa.bool_()
        ):
            title = self.title(column)
            remedy = f" or make features of its categories (--data.one-hot '{title}')" * _is_text(kind)
            raise DataError(
                f"{self.path}, {self.describe(column)}: expected numbers, got {kind}; drop the column "
                f"(--data.drop '{title}'){remedy}"
            )
        x = values.cast(pa.uint8() if kind == pa.bool_() else kind).cast(pa.float64(), safe=False).to_numpy()
        bad = np.isinf(x) | (np.abs(x) > _LARGEST) | (np.isnan(x) & (not missing))
        if bad.any():
            row = int(bad.argmax())
            raise self.not_a_number(row, column, "" if np.isnan(x[row]) else str(x[row]))
        if not pa.types.is_floating(kind):
            self._check_distinct(column, (value.as_py() for value in values), x)
        return x

    def read_texts(self, column: int) -> list[str]:
        """See :meth:`TableFile.read_texts`."""
        values = self.content.column(column)
        if not (_is_text(values.type) or pa.types.is_primitive(values.type)):
            raise DataError(f"{self.path}, {self.describe(column)}: expected classes or categories, got {values.type}")
        found = pc.fill_null(values.cast(pa.string()), "").to_pylist()
        return ["" if value.lower() in MISSING else value for value in found]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)


def stream_table(path: Path, rows: int) -> Iterator[TableFile]:
    """Read a table so many rows at a time, whatever its format.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = path.write_text("a,b\\n" + "1,2\\n" * 5)
        >>> [len(some.read_texts(0)) for some in stream_table(path, 2)]
        [2, 2, 1]
    """
    yield from (ParquetTable if path.suffix.lower() == ".parquet" else TextTable).stream(path, rows)


#: Functions that open a table, by the suffix of the file; a text file may also be compressed, with ``.gz`` after it.
TABLE_FILES: dict[str, Callable[[Path], TableFile]] = {
    **dict.fromkeys((".csv", ".tsv", ".txt", ".data", ".dat"), TextTable.read),
    ".parquet": ParquetTable.read,
}
