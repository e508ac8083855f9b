"""Data of the user: a folder of images, an array file or a table."""

__all__ = [
    "ReadOptions",
    "load_path",
    "read_arrays",
]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iresnet.data.columns import Column
from iresnet.data.dataset import Dataset, Split, Splits, hold_out, numbered_classes
from iresnet.data.formats import read_idx
from iresnet.data.image_folders import read_image_folder, read_parquet_folder
from iresnet.data.images import NO_CONVERSION, ImageConversion
from iresnet.data.preparation import prepare, separate_context
from iresnet.data.storage import reading
from iresnet.data.table import ColumnSelection, read_table
from iresnet.data.table_files import TABLE_FILES, check_distinct
from iresnet.errors import DataError, UnknownNameError

_ARRAYS = (".npz", ".npy")
_TABLES = tuple(TABLE_FILES)


# -- any data ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading files of the user.

    Args:
        image_size: for folders of image or Parquet files: scale the shorter side and cut out the center.
        mode: for the same: convert images to RGB, or to gray (L).
        target: for tables: the column of class labels, by name or position.
        columns: for tables: read only these.
        drop: for tables: leave these out.
        one_hot: for tables: columns of categories, a feature for each.
        impute: for tables: fill in missing values, see :func:`~iresnet.data.preparation.prepare`.
        dequantize: for tables, also as arrays: add noise to columns of integers or few values.
        keys: for ``.npz``: names of the arrays in the file.
        test: another file or folder, all of which is the test split.
        context: for tables: columns that the density of the others is given.
    """

    image_size: int | None = None
    mode: str | None = None
    target: str | int | None = None
    columns: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    one_hot: tuple[str, ...] = ()
    impute: bool = False
    dequantize: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)
    test: str | Path | None = None
    context: tuple[str, ...] = ()

    @property
    def names_given(self) -> list[str]:
        """Names of the options that differ from their defaults."""
        default = ReadOptions()
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(default, f.name)]

    @property
    def conversion(self) -> ImageConversion:
        """Options for images."""
        return ImageConversion(self.image_size, self.mode)

    @property
    def selection(self) -> ColumnSelection:
        """Options for the columns of a table."""
        return ColumnSelection(self.target, self.columns, self.drop, self.one_hot, self.impute)


_TABLE_DATA = f"tables ({', '.join(_TABLES)})"
_APPLIES_TO = {
    "image_size": ("image_size", "folders of images", ("folder",)),
    "mode": ("mode", "folders of images", ("folder",)),
    "target": ("a target column", _TABLE_DATA, _TABLES),
    **{name: (name, _TABLE_DATA, _TABLES) for name in ("columns", "drop", "one_hot", "impute", "context")},
    "dequantize": ("dequantize", "tables and arrays of vectors; images of integers always are", _TABLES + _ARRAYS),
    "keys": ("keys", "the arrays of a .npz file", (".npz",)),
}
"""Options that apply to some data only: name in a message, these data in words, and the suffixes of such files."""


def load_path(
    path: Path, options: ReadOptions | None = None, *, split_seed: int = 0, like: Sequence[Column] = ()
) -> Dataset:
    """Load a data set from a folder or file of the user.

    A split that the source does not have is a fixed random tenth of the training examples.

    Args:
        path: a folder of images, of idx files or of Parquet files; a ``.npz`` or ``.npy`` file; a table
            in a ``.parquet`` or text file such as ``.csv`` or ``.txt``, also with ``.gz`` after it.
        options: for reading it.
        split_seed: of the random order from which the splits are taken that the source does not have.
        like: columns of another table: those of this one are read, filled and dequantized as they were.

    Returns:
        The data set: uint8 images with 256 levels, or float32 examples.

    Raises:
        DataError: missing, damaged, of no known form, or an option that does not apply to this form.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "plane.csv"
        >>> _ = path.write_text("a,b\\n" + "1,2\\n" * 50)
        >>> print(load_path(path))
        plane: 40 train, 5 validation, 5 test; 2, continuous, no labels
    """
    options = options or ReadOptions()
    if like and _suffix(path) in _TABLES:
        options = replace(options, one_hot=tuple(column.title for column in like if column.categories), impute=True)
    if any(column.noisy for column in like):
        options = replace(options, dequantize=True)
    splits, class_names, columns = _read(path, options, like)
    if options.test is not None:
        splits["test"] = _read_test(Path(options.test), path, options, splits, class_names, columns)
    complete = hold_out(splits, str(path), shuffle=True, seed=split_seed)
    context: tuple[Column, ...] = ()
    if options.context:
        complete, columns, context = separate_context(complete, columns, options.context, str(path))
    if columns:
        complete, columns = prepare(complete, columns, str(path), dequantize=options.dequantize)
    elif options.dequantize:
        raise DataError(_not_applicable(path, "dequantize", "file of images"))
    train, validation, test = complete
    levels = 256 if train.x.dtype == torch.uint8 else None
    name = path.name.partition(".")[0] or path.name
    return Dataset(name, train, validation, test, levels, class_names, str(path), columns=columns, context=context)


def _read(
    path: Path, options: ReadOptions, like: Sequence[Column] = (), classes: Sequence[str] = ()
) -> tuple[Splits, tuple[str, ...], tuple[Column, ...]]:
    """Read the splits, names of the classes, and the columns of vectors."""
    suffix = _suffix(path)
    for option in options.names_given:
        if option in _APPLIES_TO and suffix not in _APPLIES_TO[option][2]:
            raise DataError(_not_applicable(path, option, f"{suffix} file" if path.is_file() else suffix))
    if suffix == "folder":
        return *_read_folder(path, options, len(classes)), ()
    if suffix in _ARRAYS:
        splits = read_arrays(path, keys=options.keys)
        shapes = {split.x.shape[1:] for split in splits.values()}
        shape = shapes.pop()
        columns = () if shapes or len(shape) > 1 else tuple(Column("", i + 1) for i in range(*shape))
        return splits, numbered_classes(splits, str(path), n_known=len(classes)), columns
    if suffix in _TABLES:
        table = read_table(path, options.selection, like=like, classes=classes)
        return {"train": table.split}, table.class_names, table.columns
    raise DataError(f"{path}: expected a folder or a file ending in {', '.join(_ARRAYS + _TABLES)}, got '{suffix}'")


def _read_folder(folder: Path, options: ReadOptions, n_known: int) -> tuple[Splits, tuple[str, ...]]:
    conversion, splits = options.conversion, read_idx(folder)
    if splits is None:
        found = read_parquet_folder(folder, conversion=conversion, n_known=n_known)
        return found or read_image_folder(folder, conversion=conversion)
    if conversion != NO_CONVERSION:
        raise DataError(f"{folder}: {options.names_given[0]} is for folders of image files, not for idx files")
    return splits, numbered_classes(splits, str(folder), n_known=n_known)


def _read_test(
    path: Path,
    train: Path,
    options: ReadOptions,
    splits: Splits,
    class_names: tuple[str, ...],
    columns: tuple[Column, ...],
) -> Split:
    """Read all examples of a file or folder of the same kind as the training data."""
    if "test" in splits:
        raise DataError(f"{train}: has a test split of its own; leave out --data.test {path}")
    if not path.exists():
        raise DataError(f"{path}: no such folder or file; give the path of the test examples (--data.test)")
    if (_suffix(path) in _TABLES) != (_suffix(train) in _TABLES):
        raise DataError(f"{path}: expected test examples in the form of {train}, got a {_suffix(path)}")
    found, names, _ = _read(path, replace(options, test=None), columns, class_names)
    if set(found) != {"train"}:
        raise DataError(f"{path}: expected one split, the test examples, got {', '.join(sorted(found))}")
    if names and not set(names) <= set(class_names):
        raise DataError(f"{path}: expected the classes {', '.join(class_names)}, got {', '.join(names)}")
    split = found["train"]
    if split.y is None or names == class_names:
        return split
    return Split(split.x, torch.tensor([class_names.index(name) for name in names])[split.y])


def _suffix(path: Path) -> str:
    return "folder" if path.is_dir() else Path(path.name.removesuffix(".gz")).suffix.lower()


def _not_applicable(path: Path, option: str, this: str) -> str:
    called, data, _ = _APPLIES_TO[option]
    flag = option.replace("_", "-")
    return f"{path}: {called} is for {data}, not for this {this}; leave it out (--data.{flag})"


# -- NumPy files -------------------------------------------------------------------------------------------------------


_KEYS = ("x", "y", *(f"{kind}_{key}" for kind in ("train", "validation", "test") for key in ("x", "y")))
_CHANNELS = range(1, 5)


def read_arrays(path: Path, *, keys: Mapping[str, str] | None = None) -> Splits:
    """Read examples, and labels if there are any, from a ``.npz`` or ``.npy`` file.

    A ``.npz`` file holds ``x`` and ``y``, or ``train_x``, ``train_y``, ``validation_x``, ``test_x`` and so on, or other
    names according to ``keys``; labels may be left out. A ``.npy`` file holds the examples. Integers are images of
    shape ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)`` with values from 0 to 255; real numbers keep their values
    and may also be tables, ``(N, D)``. Pickled objects are refused.

    Args:
        path: the file.
        keys: names in the file of those of ``x``, ``y``, ``train_x``, ... that have others; the rest is not read.

    Returns:
        The splits: uint8 images of shape ``(C, H, W)``, images of float32, or vectors of float32 or float64.

    Raises:
        DataError: damaged, other keys, labels that do not fit, or an array that is neither images nor a table.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "mine.npz"
        >>> np.savez(path, x=np.zeros((10, 8, 8, 3), np.uint8), y=np.arange(10))
        >>> splits = read_arrays(path)
        >>> splits["train"].x.shape, splits["train"].y.shape
        (torch.Size([10, 3, 8, 8]), torch.Size([10]))
    """
    arrays = _load_arrays(path, keys or {})
    splits = {}
    for kind in sorted({name.rpartition("_")[0] for name in arrays}):
        x, y = arrays.get(f"{kind}_x"), arrays.get(f"{kind}_y")
        if x is None:
            raise DataError(f"{path}: expected {kind}_x with {kind}_y; add the examples that the labels belong to")
        examples = _examples(f"{path}, {kind} x", x)
        if y is not None and (y.dtype.kind not in "iu" or y.shape not in ((len(x),), (len(x), 1)) or y.min() < 0):
            raise DataError(
                f"{path}, {kind} y: expected {len(x)} labels, integers from 0, got {y.dtype} of shape {y.shape}"
            )
        labels = None if y is None else torch.from_numpy(y.reshape(-1).astype(np.int64))
        splits[kind] = Split(examples, labels)
    return splits


def _load_arrays(path: Path, keys: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Return arrays named ``train_x`` and so on."""
    for key in keys:
        if key not in _KEYS:
            raise UnknownNameError("array", key, _KEYS)
    with reading(path, f"{path.suffix} file of plain arrays"), path.open("rb") as file:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"train_x": content}
        with content:
            for name in keys.values():
                if name not in content.files:
                    raise UnknownNameError(f"array of {path}", name, content.files)
            names = keys or {name: name for name in content.files}
            arrays = {key: content[name] for key, name in names.items() if keys or name in _KEYS}
            got = ", ".join(sorted(content.files)) or "nothing"
    renamed = {(f"train_{key}" if key in ("x", "y") else key): array for key, array in arrays.items()}
    if len(arrays) < len(names) or len(renamed) < len(arrays) or not arrays:
        raise DataError(
            f"{path}: expected x (and y), or train_x, train_y, validation_x, ..., test_y, got {got}; rename them, or "
            "tell which is which, as in --data.keys '[x=images,y=labels]'"
        )
    return renamed


def _examples(where: str, x: np.ndarray) -> Tensor:
    if x.dtype.kind not in "biuf" or x.size == 0:
        raise DataError(f"{where}: expected numbers, got {x.dtype} of shape {x.shape}")
    x = _to_channels_first(where, x)
    if x.dtype.kind != "f" and x.ndim == 4:
        if x.min() < 0 or x.max() > 255:
            raise DataError(f"{where}: expected integer images with values from 0 to 255, got {x.min()} to {x.max()}")
        return torch.from_numpy(np.ascontiguousarray(x, np.uint8))
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(x, np.float32)
    if not np.isfinite(rounded).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(rounded))[0])
        raise DataError(
            f"{where}: expected finite float32 numbers, got {rounded[index]} at {index}; remove or replace it"
        )
    if x.dtype.kind != "f":
        for i, column in enumerate(x.T):
            called = f"{where}, column {i + 1}"
            check_distinct(called, column.tolist(), column.astype(np.float64), "leave the column out")
    exact = x.ndim == 2 and x.dtype not in (np.float16, np.float32)
    return torch.from_numpy(np.ascontiguousarray(x, np.float64) if exact else rounded)


def _to_channels_first(where: str, x: np.ndarray) -> np.ndarray:  # (N, D) or (N, C, H, W)
    if x.ndim == 2:
        return x
    if x.ndim == 3:
        return x[:, None]
    first, last = (x.ndim == 4 and x.shape[axis] in _CHANNELS for axis in (1, -1))
    if first == last:
        expected = "(N, D), (N, H, W), (N, C, H, W) or (N, H, W, C) with 1 to 4 channels"
        raise DataError(f"{where}: expected shape {expected}, got {x.shape}{', which can be read in two ways' * first}")
    return x if first else x.transpose(0, 3, 1, 2)
