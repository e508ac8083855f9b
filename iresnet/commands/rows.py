"""Results of single examples, as score and predict write and print them: rows of a file, or a short table."""

__all__ = ["ROW_FILES", "Rows"]

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from iresnet.console import is_main, say
from iresnet.errors import DataError
from iresnet.outputs import check_suffix, rows_written

if TYPE_CHECKING:
    from iresnet.data import Examples

ROW_FILES = (".csv", ".parquet")
"""Suffixes of the files that rows are written to."""

MAX_ROWS = 20
"""Rows that are printed at most."""


class Rows:
    """Rows of results that come batch by batch.

    Args:
        out: file to write; none when None.
        suffixes: that it may have.
        by: column whose smallest values are printed; the first rows when None.

    Attributes:
        n: rows so far.

    Raises:
        RecipeError: when the suffix is another.
    """

    def __init__(self, out: Path | None, suffixes: Sequence[str] = ROW_FILES, *, by: str | None = None):
        if out is not None:
            check_suffix(out, suffixes)
        self.out, self.by, self.n = out, by, 0
        self._append: Callable[[Mapping[str, Sequence[Any]]], None] | None = None
        self._best: list[tuple[float, int, dict[str, Any]]] = []  # a heap: the worst of those to print comes first

    @contextmanager
    def written(self) -> Iterator[None]:
        """Write the rows that are added in the body to the file, which is there only when the body ends well."""
        if self.out is None or not is_main():
            yield
            return
        with rows_written(self.out) as self._append:
            yield

    def add(self, examples: "Examples", results: Mapping[str, Sequence[Any]], done: Callable[[int], None]) -> None:
        """Add the results of a batch, by column; tell progress how many rows there are.

        Raises:
            DataError: a column that is kept has the name of a result.
        """
        named = {examples.key: examples.names}
        if both := set(examples.kept) & {*named, *results}:
            raise DataError(f"the column {min(both)} that is to be kept has the name of a result; rename it")
        columns = {**named, **examples.kept, **results}
        if self._append:
            self._append(columns)
        for i in range(len(examples)):
            self.n += 1
            rank = -float(columns[self.by][i]) if self.by else -self.n
            if len(self._best) < MAX_ROWS or rank > self._best[0][0]:
                row = {name: values[i] for name, values in columns.items()}
                (heapq.heappush if len(self._best) < MAX_ROWS else heapq.heapreplace)(self._best, (rank, -self.n, row))
        done(self.n)

    def finish(self) -> None:
        """Say where the rows are, or print some of them."""
        if self.out is not None:
            say(f"wrote {self.out} ({self.n} rows)")
            return
        rows = [row for _, _, row in sorted(self._best, reverse=True, key=lambda entry: entry[:2])]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for i, name in enumerate(rows[0]):
            # a line for each word, so that the columns are narrow
            table.add_column(name.replace("_", "\n"), justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*(_text(value) for value in row.values()))
        say(table)
        if self.n > len(rows):
            say(f"{len(rows)} of {self.n} rows; all of them with --out scores.csv or .parquet")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
