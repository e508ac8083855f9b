"""Tables that a command writes row by row, as CSV or Parquet: complete or absent, however long."""

__all__ = ["check_suffix", "rows_written"]

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iresnet.errors import RecipeError
from iresnet.files import replacing, writing

Columns = Mapping[str, Sequence[Any]]
"""Values of some rows, by column."""


def check_suffix(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse a file whose suffix names no format that can be written, before anything is computed.

    Raises:
        RecipeError: names the suffixes.
    """
    if path.suffix.lower() not in suffixes or path.is_dir():
        raise RecipeError(f"--out {path}: expected a file ending in {' or '.join(suffixes)}")


@contextmanager
def rows_written(path: Path) -> Iterator[Callable[[Columns], None]]:
    """Yield a function that appends rows to a ``.csv`` or ``.parquet`` file, which has its name only in the end.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.csv"
        >>> with rows_written(path) as write:
        ...     write({"a": [1, 2], "b": [0.5, None]})
        ...     write({"a": [3], "b": [1.5]})
        >>> path.read_text()
        'a,b\\n1,0.5\\n2,\\n3,1.5\\n'
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside, (_parquet if path.suffix.lower() == ".parquet" else _csv)(aside) as append:

        def write(columns: Columns) -> None:
            with writing(path):
                append(columns)

        yield write


@contextmanager
def _csv(path: Path) -> Iterator[Callable[[Columns], None]]:
    with writing(path):
        file = path.open("w", newline="", encoding="utf-8")
    with file:
        writer = csv.writer(file, lineterminator="\n")

        def append(columns: Columns) -> None:
            if file.tell() == 0:
                writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

        yield append


@contextmanager
def _parquet(path: Path) -> Iterator[Callable[[Columns], None]]:
    import pyarrow as pa  # here: slow imports, which commands that write no such file do not need
    import pyarrow.parquet as pq

    writers: list[pq.ParquetWriter] = []

    def append(columns: Columns) -> None:
        table = pa.table(dict(columns))
        if not writers:
            writers.append(pq.ParquetWriter(path, table.schema))
        writers[0].write_table(table)

    try:
        yield append
    finally:
        for writer in writers:
            writer.close()
