"""The original CIFAR-10 and CIFAR-100 files: archives or folders, pickled or binary."""

__all__ = ["CIFAR10", "CIFAR100", "CifarFiles", "read_cifar_binary", "read_cifar_python"]

import gzip
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from iresnet.data.dataset import Split
from iresnet.data.reading import raw_bytes, reading
from iresnet.data.split import Splits
from iresnet.data.unpickle import unpickle_arrays
from iresnet.errors import DataError

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class CifarFiles:
    """How one of the two data sets is laid out.

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


_Contents = dict[str, tuple[str, bytes]]  # file name -> (what to call it in an error, content)


def _contents(folder: Path, archive: str, inner: str, names: tuple[str, ...]) -> _Contents | None:
    for place in (folder / inner, folder):
        if any((place / name).is_file() for name in names):
            return {name: (str(place / name), raw_bytes(place / name)) for name in names}
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
        while stream.read(1 << 20):  # to the end, where the checksum of the whole is verified
            pass
    missing = [name for name in names if name not in contents]
    if missing:
        raise DataError(f"{path}: expected {', '.join(names)}, {', '.join(missing)} missing; get the archive again")
    return contents


_Parser = Callable[[CifarFiles, str, bytes], Split]


def _splits(files: CifarFiles, contents: _Contents, suffix: str, parse: _Parser) -> Splits:
    return {
        kind: _join([parse(files, *contents[name + suffix]) for name in names])
        for kind, names in (("train", files.train), ("test", files.test))
    }


def _join(parts: list[Split]) -> Split:
    return Split(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts if part.y is not None]))


def _parse_python(files: CifarFiles, where: str, content: bytes) -> Split:
    with reading(where, "pickle of arrays"):
        batch = unpickle_arrays(content)
        images, labels = batch[b"data"], np.asarray(batch[files.labels])
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (_PIXELS,):
        got = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"{where}: expected uint8 images of shape (N, {_PIXELS}), got {got}; get the file again")
    return _split(where, images, labels)


def _parse_binary(files: CifarFiles, where: str, content: bytes) -> Split:
    record = files.label_bytes + _PIXELS
    if not content or len(content) % record:
        raise DataError(
            f"{where}: expected records of {record} bytes, got {len(content)} bytes, "
            f"{len(content) % record} too many; get the file again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return _split(where, records[:, files.label_bytes :], records[:, files.label_bytes - 1])


def _split(where: str, images: np.ndarray, labels: np.ndarray) -> Split:
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise DataError(f"{where}: expected {len(images)} integer labels, got {labels.dtype} {labels.shape}")
    x = torch.tensor(images).reshape(-1, 3, 32, 32)
    return Split(x, torch.tensor(labels.astype(np.int64)))
