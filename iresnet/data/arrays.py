"""Arrays in NumPy files."""

__all__ = ["read_arrays"]

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iresnet.data.dataset import Split
from iresnet.data.reading import reading
from iresnet.data.source import check_apart
from iresnet.data.split import Splits
from iresnet.errors import DataError, UnknownNameError

_KEYS = ("x", "y", *(f"{kind}_{key}" for kind in ("train", "validation", "test") for key in ("x", "y")))
_CHANNELS = range(1, 5)


def read_arrays(path: Path, *, keys: Mapping[str, str] | None = None) -> Splits:
    """Read examples, and labels if there are any, from a ``.npz`` or ``.npy`` file.

    A ``.npz`` file holds ``x`` and ``y``, or ``train_x``, ``train_y``, ``validation_x``, ``test_x``
    and so on, or other names that ``keys`` tells; labels may be left out; a ``.npy`` file holds the examples. Integers
    are images of shape
    ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)`` with values from 0 to 255; real numbers keep their values
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
    arrays = _load(path, keys or {})
    names = {name.rpartition("_")[0] or "train" for name in arrays}
    return {kind: _split(path, kind, arrays) for kind in sorted(names)}


def _load(path: Path, keys: Mapping[str, str]) -> dict[str, np.ndarray]:
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


def _split(path: Path, kind: str, arrays: dict[str, np.ndarray]) -> Split:
    x, y = arrays.get(f"{kind}_x"), arrays.get(f"{kind}_y")
    if x is None:
        raise DataError(f"{path}: expected {kind}_x with {kind}_y; add the examples that the labels belong to")
    where = f"{path}, {kind} x"
    return Split(_examples(where, x), None if y is None else _labels(f"{path}, {kind} y", y, len(x)))


def _labels(where: str, y: np.ndarray, n: int) -> Tensor:
    if y.dtype.kind not in "iu" or y.shape not in ((n,), (n, 1)) or y.min() < 0:
        raise DataError(f"{where}: expected {n} labels, integers from 0, got {y.dtype} of shape {y.shape}")
    return torch.from_numpy(y.reshape(-1).astype(np.int64))


def _examples(where: str, x: np.ndarray) -> Tensor:
    if x.dtype.kind not in "biuf" or x.size == 0:
        raise DataError(f"{where}: expected numbers, got {x.dtype} of shape {x.shape}")
    x = _layout(where, x)
    if x.dtype.kind != "f" and x.ndim == 4:
        return torch.from_numpy(_as_uint8(where, x))
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(x, np.float32)
    if not np.isfinite(rounded).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(rounded))[0])
        raise DataError(
            f"{where}: expected finite float32 numbers, got {rounded[index]} at {index}; remove or replace it"
        )
    if x.dtype.kind != "f":
        for i, column in enumerate(x.T):
            check_apart(f"{where}, column {i + 1}", column.tolist(), column.astype(np.float64), "leave the column out")
    exact = x.ndim == 2 and x.dtype not in (np.float16, np.float32)
    return torch.from_numpy(np.ascontiguousarray(x, np.float64) if exact else rounded)


def _as_uint8(where: str, x: np.ndarray) -> np.ndarray:
    if x.min() < 0 or x.max() > 255:
        raise DataError(f"{where}: expected integer images with values from 0 to 255, got {x.min()} to {x.max()}")
    return np.ascontiguousarray(x, np.uint8)


def _layout(where: str, x: np.ndarray) -> np.ndarray:  # (N, D) or (N, C, H, W)
    if x.ndim == 2:
        return x
    if x.ndim == 3:
        return x[:, None]
    first, last = (x.ndim == 4 and x.shape[axis] in _CHANNELS for axis in (1, -1))
    if first == last:
        expected = "(N, D), (N, H, W), (N, C, H, W) or (N, H, W, C) with 1 to 4 channels"
        raise DataError(f"{where}: expected shape {expected}, got {x.shape}{', which can be read in two ways' * first}")
    return x if first else x.transpose(0, 3, 1, 2)
