"""What files of tables have in common."""

__all__ = ["LARGEST", "MISSING", "Source", "check_apart", "is_integer", "is_number"]

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
