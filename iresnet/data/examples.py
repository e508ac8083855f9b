"""Examples in a file or folder, in the form of the data that a model was trained on, batch by batch."""

__all__ = ["Examples", "describe_events", "open_examples"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iresnet.data.columns import Column
from iresnet.data.image_folders import SUFFIXES, list_images
from iresnet.data.images import EncodedImage, ImageConversion, decode_images, sides_to_pad
from iresnet.data.table import read_features
from iresnet.data.table_files import TABLE_FILES, TableFile, stream_table
from iresnet.data.user import read_arrays
from iresnet.errors import DataError
from iresnet.inputs import Inputs

_ARRAYS = (".npz", ".npy")


@dataclass(frozen=True)
class Examples:
    r"""Some of the examples of a file or folder.

    Attributes:
        x: integers as uint8, (N, \*E); values of a table as they stand in it, float64; float32 else.
        names: of their files, or numbers of their rows from 1.
        kept: values of further columns of a table, by name.
        context: what a conditional density is given, (N, K), or classes, (N,); None where the file has none.
    """

    x: Tensor
    names: list[Any]
    kept: dict[str, list[str]] = field(default_factory=dict)
    context: Tensor | None = None

    @property
    def key(self) -> str:
        """Column of the names: ``file`` or ``row``."""
        return "file" if isinstance(self.names[0], str) else "row"

    def __len__(self) -> int:
        return len(self.x)


def open_examples(
    path: Path,
    inputs: Inputs,
    *,
    batch_size: int,
    conversion: ImageConversion | None = None,
    pad_to: int | None = None,
    keep: Sequence[str] = (),
    contexts: bool = True,
) -> tuple[Iterator[Examples], int | None]:
    """Open a file or folder of examples for a model; they are read when they are asked for.

    Columns of a table are found by their names, whatever their order; further ones are not read. Images that were
    converted for training are converted in the same way. The 256 levels of image files are spread over those of the
    model; arrays have the levels of the model already. An array is held in memory, everything else a batch at a time.

    Args:
        path: a folder of images, however deep; an image; a table; or a ``.npz`` file with an array ``x``, or ``.npy``.
        inputs: what the model knows of its data.
        batch_size: examples at a time.
        conversion: of images, as for training.
        pad_to: height and width to which images were padded for training.
        keep: for tables, further columns to read as texts.
        contexts: for tables, whether to read the columns that a conditional density is given.

    Returns:
        The examples, batch by batch, and how many there are, None where that is not known before all are read.

    Raises:
        DataError: nothing there, or nothing that the model takes; also while batches are read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = path.write_text("id,b,a\\n" + "x,1,2\\n" * 3)
        >>> inputs = Inputs((2,), None, (), (0.0,), (1.0,), (Column("a", 1), Column("b", 2)))
        >>> batches, _ = open_examples(path, inputs, batch_size=2, keep=["id"])
        >>> [(some.x[0].tolist(), some.names, some.kept) for some in batches][1]
        ([2.0, 1.0], [3], {'id': ['x']})
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    is_image = len(inputs.shape) == 3
    suffix = "folder" if path.is_dir() else Path(path.name.removesuffix(".gz")).suffix.lower()
    if keep and suffix not in TABLE_FILES:
        raise DataError(f"{path}: only tables have columns to keep; leave out --keep")
    if suffix in _ARRAYS:
        x = _read_array(path, inputs)
        starts = range(0, len(x), batch_size)
        chunks = (x[i : i + batch_size] for i in starts)
        return (Examples(c, [*range(i + 1, i + len(c) + 1)]) for i, c in zip(starts, chunks, strict=True)), len(x)
    if is_image and inputs.levels and suffix in {"folder", *SUFFIXES}:
        files = list_images(path) if suffix == "folder" else [path]
        root = path if suffix == "folder" else path.parent
        return _images(files, root, inputs, batch_size, conversion or ImageConversion(), pad_to), len(files)
    if not is_image and suffix in TABLE_FILES:
        return _rows(path, inputs, batch_size, keep, contexts=contexts), None
    kinds = {True: "a folder of images, an image file", False: f"a table ({', '.join(TABLE_FILES)})"}
    expected = "" if is_image and not inputs.levels else f"{kinds[is_image]}, or "
    raise DataError(f"{path}: this run takes {expected}an array ({', '.join(_ARRAYS)}), got '{suffix}'")


# -- images ------------------------------------------------------------------------------------------------------------


def _images(
    files: list[Path], root: Path, inputs: Inputs, batch_size: int, conversion: ImageConversion, pad_to: int | None
) -> Iterator[Examples]:
    for start in range(0, len(files), batch_size):
        some = files[start : start + batch_size]
        for file in some:
            if not file.is_file():
                raise DataError(f"{file}: no such file")
        x = torch.from_numpy(decode_images([EncodedImage(str(file), file.read_bytes) for file in some], conversion))
        height, width = x.shape[2:]
        if pad_to and max(height, width) < pad_to:
            x = F.pad(x, sides_to_pad(height, width, pad_to))
        x = _match_channels(x, inputs.shape[0])
        _check_shape(str(some[0]), x, inputs)
        if inputs.levels != 256:
            x = ((x.double() + 0.5) * ((inputs.levels or 256) / 256)).floor().byte()
        yield Examples(x, [str(file.relative_to(root)) for file in some])


def _match_channels(x: Tensor, channels: int) -> Tensor:  # (N, C, H, W)
    """Repeat gray on three channels, or take one of three that are all the same: nothing is lost."""
    if x.shape[1] == 3 and channels == 1 and bool((x == x[:, :1]).all()):
        return x[:, :1]
    return x.expand(-1, channels, -1, -1) if x.shape[1] == 1 else x


# -- arrays ------------------------------------------------------------------------------------------------------------


def _read_array(path: Path, inputs: Inputs) -> Tensor:
    splits = read_arrays(path)
    if set(splits) != {"train"}:
        raise DataError(f"{path}: expected one array, x, got {', '.join(sorted(splits))} splits")
    x = splits["train"].x
    _check_shape(str(path), x, inputs)
    if (x.dtype == torch.uint8) != (inputs.levels is not None):
        expected = "real numbers" if inputs.levels is None else f"integers in 0..{inputs.levels - 1}"
        raise DataError(f"{path}: this run takes {expected}, got {x.dtype}")
    if inputs.levels is not None and int(x.max()) >= inputs.levels:
        raise DataError(f"{path}: values must lie in 0..{inputs.levels - 1}, got {int(x.max())}")
    return x.double() if x.ndim == 2 else x


def _check_shape(where: str, x: Tensor, inputs: Inputs) -> None:
    if tuple(x.shape[1:]) != tuple(inputs.shape):
        expected, got = (describe_events(tuple(shape)) for shape in (inputs.shape, x.shape[1:]))
        raise DataError(f"{where}: this run takes {expected}, got {got}; convert them, or choose another run")


def describe_events(shape: tuple[int, ...]) -> str:
    """Describe data of a shape in words.

    Example:
        >>> describe_events((1, 8, 8)), describe_events((4,))
        ('gray images of 8x8 pixels', 'rows of 4 numbers')
    """
    if len(shape) != 3:
        return f"rows of {'x'.join(map(str, shape))} numbers"
    channels = {1: "gray", 3: "RGB"}.get(shape[0], f"{shape[0]}-channel")
    return f"{channels} images of {shape[1]}x{shape[2]} pixels"


# -- tables ------------------------------------------------------------------------------------------------------------


def _rows(path: Path, inputs: Inputs, batch_size: int, keep: Sequence[str], *, contexts: bool) -> Iterator[Examples]:
    start, file = 1, None
    for file in stream_table(path, batch_size):
        if missing := [name for name in keep if name not in file.titles]:
            raise DataError(f"{path}: no column {', '.join(missing)} to keep, got {', '.join(file.titles)}")
        columns = inputs.columns or _columns_without_names(file, inputs)
        x = read_features(file, columns)
        _check_complete(file, x, columns)
        kept = {name: file.read_texts(file.titles.index(name)) for name in keep}
        context = _read_contexts(file, inputs.context) if contexts and inputs.context else None
        yield Examples(torch.from_numpy(x), [*range(start, start + len(x))], kept, context)
        start += len(x)
    if file is None:
        raise DataError(f"{path}: expected rows of numbers, got an empty table")


def _columns_without_names(file: TableFile, inputs: Inputs) -> list[Column]:
    """Return the columns of a table for a model that knows no names: all but those of the context."""
    of_context = {column.title for column in inputs.context}
    columns = [Column(title, i + 1) for i, title in enumerate(file.titles) if title not in of_context]
    if len(columns) != inputs.shape[0]:
        raise DataError(f"{file.path}: this run takes rows of {inputs.shape[0]} numbers, got {len(columns)} columns")
    return columns


def _read_contexts(file: TableFile, columns: Sequence[Column]) -> Tensor:  # (N, K)
    context = read_features(file, columns)
    _check_complete(file, context, columns)
    return torch.from_numpy(context).float()


def _check_complete(file: TableFile, x: np.ndarray, columns: Sequence[Column]) -> None:
    owners = [column for column in columns for _ in range(column.width)]
    gaps = np.argwhere(np.isnan(x))
    if len(gaps):
        row, feature = gaps[0]
        where = file.locate(int(row), file.titles.index(owners[feature].title))
        raise DataError(f"{where}: expected a value, got none; fill it in, or leave the row out")
