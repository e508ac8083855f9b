"""The idx files of MNIST and its relatives."""

__all__ = ["read_idx"]

import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch

from iresnet.data.dataset import Split
from iresnet.data.reading import check_md5, raw_bytes
from iresnet.data.split import Splits
from iresnet.errors import DataError

_UINT8 = 8  # the only element type that these data sets use
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(folder: Path, md5: Mapping[str, str] | None = None) -> Splits | None:
    """Read the four idx files of a folder, each with or without ``.gz``.

    Args:
        folder: where ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``
            and ``t10k-labels-idx1-ubyte`` are.
        md5: published checksums by name of compressed file, checked before reading.

    Returns:
        Train and test, images of shape ``(1, H, W)``; ``None`` where none of the files is there.

    Raises:
        DataError: one of the files is missing, truncated, damaged or of another form.

    Example:
        >>> read_idx(Path("no such folder")) is None
        True
    """
    found = {name: _find(folder, name) for names in _FILES.values() for name in names}
    if not any(found.values()):
        return None
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise DataError(f"{folder}: expected four idx files, {' and '.join(missing)} missing; add them (.gz or not)")
    arrays = {name: _read(path, md5 or {}) for name, path in found.items() if path}
    return {kind: _split(folder, arrays[images], arrays[labels]) for kind, (images, labels) in _FILES.items()}


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _read(path: Path, md5: Mapping[str, str]) -> np.ndarray:
    if path.name in md5:
        check_md5(path, md5[path.name])
    content = raw_bytes(path)
    ndim = 3 if "idx3" in path.name else 1
    start = 4 + 4 * ndim
    if len(content) < start or content[:4] != bytes([0, 0, _UINT8, ndim]):
        raise DataError(
            f"{path}: expected an idx header of uint8 with {ndim} dimension(s), "
            f"got {content[:4].hex(' ') or 'an empty file'}; get the file again"
        )
    shape = struct.unpack(f">{ndim}I", content[4:start])
    if len(content) - start != prod(shape):
        raise DataError(
            f"{path}: expected {prod(shape)} bytes for shape {shape}, got {len(content) - start}; get the file again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _split(folder: Path, images: np.ndarray, labels: np.ndarray) -> Split:
    if len(images) != len(labels) or len(images) == 0:
        raise DataError(f"{folder}: expected one label per image, got {len(images)} images and {len(labels)} labels")
    return Split(torch.tensor(images)[:, None], torch.tensor(labels, dtype=torch.int64))
