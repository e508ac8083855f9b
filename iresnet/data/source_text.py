"""Tables in text files."""

__all__ = ["TextSource"]

import csv
import io
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np

from iresnet.data.reading import raw_bytes, reading
from iresnet.data.source import LARGEST, MISSING, Source, check_apart, is_number
from iresnet.errors import DataError

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
