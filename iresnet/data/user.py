"""The user's own data: a folder, an array file or a table."""

__all__ = ["load_path"]

from pathlib import Path

import torch

from iresnet.data.arrays import read_arrays
from iresnet.data.dataset import Dataset
from iresnet.data.folder import read_image_folder
from iresnet.data.idx import read_idx
from iresnet.data.parquet import read_any_parquet
from iresnet.data.split import Splits, hold_out, numbered_classes
from iresnet.data.table import read_table
from iresnet.errors import DataError

_ARRAYS = (".npz", ".npy")
_TABLES = (".csv", ".tsv", ".txt", ".data", ".dat")


def load_path(
    path: Path, *, image_size: int | None = None, target: str | int | None = None, split_seed: int = 0
) -> Dataset:
    """Load a data set from a folder or file of the user.

    A split that the source does not have is a fixed random tenth of the training examples.

    Args:
        path: a folder of images, of idx files or of Parquet files; a ``.npz`` or ``.npy`` file; a table
            in a text file such as ``.csv`` or ``.txt``, also with ``.gz`` after it.
        image_size: for folders of image or Parquet files: scale the shorter side and cut out the centre.
        target: for tables: the column of class labels, by name or position.
        split_seed: of the random order from which the splits are taken that the source does not have.

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
    splits, class_names = _read(path, image_size, target)
    train, validation, test = hold_out(splits, str(path), shuffle=True, seed=split_seed)
    levels = 256 if train.x.dtype == torch.uint8 else None
    return Dataset(path.name.partition(".")[0] or path.name, train, validation, test, levels, class_names, str(path))


def _read(path: Path, image_size: int | None, target: str | int | None) -> tuple[Splits, tuple[str, ...]]:
    suffix = "folder" if path.is_dir() else Path(path.name.removesuffix(".gz")).suffix.lower()
    if target is not None and suffix not in _TABLES:
        raise DataError(f"{path}: a target column is for tables ({', '.join(_TABLES)}), not for this {suffix}")
    if image_size is not None and suffix != "folder":
        raise DataError(f"{path}: image_size is for folders of images, not for this {suffix} file")
    if suffix == "folder":
        return _read_folder(path, image_size)
    if suffix in _ARRAYS:
        return _number(read_arrays(path))
    if suffix in _TABLES:
        split, class_names = read_table(path, target=target)
        return {"train": split}, class_names
    raise DataError(f"{path}: expected a folder or a file ending in {', '.join(_ARRAYS + _TABLES)}, got '{suffix}'")


def _read_folder(folder: Path, image_size: int | None) -> tuple[Splits, tuple[str, ...]]:
    splits = read_idx(folder)
    if splits is not None and image_size is not None:
        raise DataError(f"{folder}: image_size is for folders of image files, not for idx files")
    if splits is not None:
        return _number(splits)
    return read_any_parquet(folder, image_size=image_size) or read_image_folder(folder, image_size=image_size)


def _number(splits: Splits) -> tuple[Splits, tuple[str, ...]]:
    return splits, numbered_classes(splits)
