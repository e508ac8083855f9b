"""File formats of published images: idx, CIFAR (pickled or binary) and SVHN."""

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "CifarFiles",
    "read_cifar_binary",
    "read_cifar_python",
    "read_idx",
    "read_svhn",
    "unpickle_arrays",
]

import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iresnet.data.dataset import Split, Splits
from iresnet.data.storage import check_md5, raw_bytes, reading
from iresnet.errors import DataError

# -- idx ---------------------------------------------------------------------------------------------------------------


_UINT8 = 8  # the only element type that these data sets use
_IDX_FILES = {
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
    names = [name for pair in _IDX_FILES.values() for name in pair]
    paths = {name: path for name in names for path in (folder / name, folder / f"{name}.gz") if path.is_file()}
    if not paths:
        return None
    missing = [name for name in names if name not in paths]
    if missing:
        raise DataError(f"{folder}: expected four idx files, {' and '.join(missing)} missing; add them (.gz or not)")
    arrays = {name: _read_idx_array(paths[name], md5 or {}) for name in names}
    splits = {}
    for kind, (images, labels) in _IDX_FILES.items():
        x, y = arrays[images], arrays[labels]
        if len(x) != len(y) or len(x) == 0:
            raise DataError(f"{folder}: expected one label per image, got {len(x)} images and {len(y)} labels")
        splits[kind] = Split(torch.tensor(x)[:, None], torch.tensor(y, dtype=torch.int64))
    return splits


def _read_idx_array(path: Path, md5: Mapping[str, str]) -> np.ndarray:
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


# -- arrays in pickles -------------------------------------------------------------------------------------------------


def unpickle_arrays(content: bytes) -> Any:
    """Read a pickle of containers, numbers, strings, bytes and NumPy arrays.

    A pickle is a program. Here every function that it names, other than those that rebuild an array,
    is refused before it is called. Strings of Python 2 become bytes.

    Args:
        content: the pickle.

    Returns:
        What was pickled.

    Raises:
        pickle.UnpicklingError: it names anything else, or is damaged; damage can raise other errors too.

    Example:
        >>> unpickle_arrays(pickle.dumps({b"labels": [3, 1]}))
        {b'labels': [3, 1]}
        >>> unpickle_arrays(pickle.dumps(print))
        Traceback (most recent call last):
        _pickle.UnpicklingError: refused to run builtins.print, which array data has no need of
    """
    return _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            name = f"{module_name}.{global_name}"
            raise pickle.UnpicklingError(f"refused to run {name}, which array data has no need of") from None


def _dtype(spec: str | bytes, align: int = 0, copy: int = 0) -> np.dtype:
    """Build a type as NumPy pickles it; old pickles give its flags as integers, at which NumPy now warns."""
    name = spec.decode("ascii") if isinstance(spec, bytes) else spec
    if not isinstance(name, str) or not name.strip("<>|=").isalnum() or np.dtype(name).hasobject:
        raise pickle.UnpicklingError(f"refused the array type {spec!r}")
    return np.dtype(name, bool(align), bool(copy))


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, by which Python 3 stores bytes in old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused the codec {encoding!r}")
    return text.encode("latin1")


_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,  # NumPy 2
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _latin1,
}


# -- CIFAR -------------------------------------------------------------------------------------------------------------


_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class CifarFiles:
    """Layout of the files of CIFAR-10 or CIFAR-100.

    Args:
        archive: stem of the archives' names.
        python: folder inside the pickled archive.
        binary: folder inside the binary archive.
        train: names of the training files.
        test: names of the test files.
        labels: key of the labels in a pickled file.
        label_bytes: label bytes before each image of a binary file; the last one is the class.
    """

    archive: str
    python: str
    binary: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: bytes
    label_bytes: int


CIFAR10 = CifarFiles(
    archive="cifar-10",
    python="cifar-10-batches-py",
    binary="cifar-10-batches-bin",
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test=("test_batch",),
    labels=b"labels",
    label_bytes=1,
)
CIFAR100 = CifarFiles(
    archive="cifar-100",
    python="cifar-100-python",
    binary="cifar-100-binary",
    train=("train",),
    test=("test",),
    labels=b"fine_labels",
    label_bytes=2,
)


def read_cifar_python(folder: Path, files: CifarFiles) -> Splits | None:
    """Read the pickled files, from their archive or their folder.

    The archive is read in memory, and no pickle can run anything.

    Args:
        folder: where the archive, the folder or the files themselves are.
        files: which of the two data sets.

    Returns:
        Train and test, images of shape ``(3, 32, 32)``; ``None`` where there are no such files.

    Raises:
        DataError: a file is missing, damaged, or asks to run something.

    Example:
        >>> read_cifar_python(Path("no such folder"), CIFAR10) is None
        True
    """
    contents = _contents(folder, f"{files.archive}-python.tar.gz", files.python, files.train + files.test)
    return None if contents is None else _splits(files, contents, "", _parse_python)


def read_cifar_binary(folder: Path, files: CifarFiles) -> Splits | None:
    """Read the binary files, from their archive or their folder.

    Args:
        folder: where the archive, the folder or the files themselves are.
        files: which of the two data sets.

    Returns:
        Train and test, images of shape ``(3, 32, 32)``; ``None`` where there are no such files.

    Raises:
        DataError: a file is missing or damaged.

    Example:
        >>> read_cifar_binary(Path("no such folder"), CIFAR100) is None
        True
    """
    names = tuple(f"{name}.bin" for name in files.train + files.test)
    contents = _contents(folder, f"{files.archive}-binary.tar.gz", files.binary, names)
    return None if contents is None else _splits(files, contents, ".bin", _parse_binary)


_Contents = dict[str, tuple[str, bytes]]  # file name -> (its name in error messages, content)


def _contents(folder: Path, archive: str, inner: str, names: tuple[str, ...]) -> _Contents | None:
    for parent in (folder / inner, folder):
        if any((parent / name).is_file() for name in names):
            return {name: (str(parent / name), raw_bytes(parent / name)) for name in names}
    path = folder / archive
    return _unpack(path, names) if path.is_file() else None


def _unpack(path: Path, names: tuple[str, ...]) -> _Contents:
    contents: _Contents = {}
    with reading(path, "complete .tar.gz archive"), gzip.open(path) as stream:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if member.isfile() and name in names:
                    file = archive.extractfile(member)
                    contents[name] = (f"{path}: {member.name}", file.read() if file else b"")
        while stream.read(1 << 20):  # to the end, where the checksum of the archive is verified
            pass
    missing = [name for name in names if name not in contents]
    if missing:
        raise DataError(f"{path}: expected {', '.join(names)}, {', '.join(missing)} missing; get the archive again")
    return contents


_Parser = Callable[[CifarFiles, str, bytes], tuple[Tensor, Tensor]]


def _splits(files: CifarFiles, contents: _Contents, suffix: str, parse: _Parser) -> Splits:
    splits = {}
    for kind, names in (("train", files.train), ("test", files.test)):
        x, y = zip(*[parse(files, *contents[name + suffix]) for name in names], strict=True)
        splits[kind] = Split(torch.cat(x), torch.cat(y))
    return splits


def _parse_python(files: CifarFiles, where: str, content: bytes) -> tuple[Tensor, Tensor]:
    with reading(where, "pickle of arrays"):
        batch = unpickle_arrays(content)
        images, labels = batch[b"data"], np.asarray(batch[files.labels])
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (_PIXELS,):
        got = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"{where}: expected uint8 images of shape (N, {_PIXELS}), got {got}; get the file again")
    return _cifar_tensors(where, images, labels)


def _parse_binary(files: CifarFiles, where: str, content: bytes) -> tuple[Tensor, Tensor]:
    record = files.label_bytes + _PIXELS
    if not content or len(content) % record:
        raise DataError(
            f"{where}: expected records of {record} bytes, got {len(content)} bytes, "
            f"{len(content) % record} too many; get the file again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return _cifar_tensors(where, records[:, files.label_bytes :], records[:, files.label_bytes - 1])


def _cifar_tensors(where: str, images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise DataError(f"{where}: expected {len(images)} integer labels, got {labels.dtype} {labels.shape}")
    return torch.tensor(images).reshape(-1, 3, 32, 32), torch.tensor(labels.astype(np.int64))


# -- SVHN --------------------------------------------------------------------------------------------------------------


def read_svhn(folder: Path) -> Splits | None:
    """Read ``train_32x32.mat`` and ``test_32x32.mat``; the label 10, for the digit 0, becomes 0.

    Args:
        folder: where the two files are.

    Returns:
        Train and test, images of shape ``(3, 32, 32)``; ``None`` where neither file is there.

    Raises:
        DataError: a file is missing, damaged or of another form.

    Example:
        >>> read_svhn(Path("no such folder")) is None
        True
    """
    paths = {kind: folder / f"{kind}_32x32.mat" for kind in ("train", "test")}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if len(missing) == len(paths):
        return None
    if missing:
        raise DataError(f"{folder}: expected train_32x32.mat and test_32x32.mat, {missing[0]} missing; add it")
    return {kind: _read_svhn_split(path) for kind, path in paths.items()}


def _read_svhn_split(path: Path) -> Split:
    from scipy.io import loadmat  # here: a slow import for one data set

    with reading(path, "MATLAB file with variables X and y"):
        content = loadmat(path, variable_names=("X", "y"))
        images, labels = np.asarray(content["X"]), np.asarray(content["y"]).reshape(-1)
    if images.dtype != np.uint8 or images.shape[:-1] != (32, 32, 3):
        raise DataError(f"{path}: expected uint8 X of shape (32, 32, 3, N), got {images.dtype} {images.shape}")
    if labels.shape != images.shape[-1:] or not np.isin(labels, np.arange(11)).all():
        raise DataError(f"{path}: expected {images.shape[-1]} labels y in 1..10, got shape {labels.shape}")
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1)))
    return Split(x, torch.from_numpy(labels.astype(np.int64) % 10))
