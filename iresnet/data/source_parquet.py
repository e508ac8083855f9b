"""Tables in Parquet files."""

__all__ = ["ParquetSource"]

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from iresnet.data.reading import reading
from iresnet.data.source import LARGEST, MISSING, Source, check_apart
from iresnet.errors import DataError


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
