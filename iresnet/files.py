"""Atomic writes of files and folders, locks of run folders, write errors with a remedy, and short names of paths."""

__all__ = [
    "distinct_names",
    "finite_or_none",
    "locked",
    "remove_folder",
    "replacing",
    "write_atomically",
    "write_folder_atomically",
    "writing",
]

import errno
import fcntl
import math
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from iresnet.errors import RunError, WriteError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it: it is complete or absent.

    Raises:
        WriteError: when the disk is full or the folder not writable.
    """
    with writing(path), replacing(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write a file under, piece by piece; it gets its own when the body ends without error.

    Raises:
        WriteError: when the disk is full or the folder not writable.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        with writing(path):
            _sync(aside)
            aside.replace(path)
            _sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_folder_atomically(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder under a temporary name, flush it to the disk, and rename it: it is complete or absent.

    Args:
        path: the folder; an existing one is replaced.
        files: contents by name.

    Raises:
        WriteError: when the disk is full or the folder not writable.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            aside.mkdir(parents=True)
            for name, content in files.items():
                _write_and_sync(aside / name, content)
            _sync(aside)
            remove_folder(path)
            aside.rename(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Rename a folder and remove it: under its name it is complete or absent."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    with writing(path):
        if path.is_dir():
            path.rename(aside)
            shutil.rmtree(aside)


def _write_and_sync(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Flush a file, or the directory entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_ADVICE = {
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EROFS: "make it writable",
    errno.ENOSPC: "free the space",
    errno.EDQUOT: "free the space",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into a :class:`~iresnet.errors.WriteError` that says in one line what to do."""
    try:
        yield
    except OSError as error:
        raise WriteError(path, str(error.strerror), _ADVICE.get(error.errno or 0, "")) from error


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Shorten paths to as many of their parts as it takes to tell them apart.

    Example:
        >>> distinct_names([Path("runs/digits/seed-0"), Path("runs/mnist/seed-0")])
        ['digits', 'mnist']
    """
    paths = [path.absolute() for path in paths]
    while len(set(paths)) > 1 and len({path.name for path in paths}) == 1:
        paths = [path.parent for path in paths]  # a common last part tells nothing
    for n in range(1, max((len(path.parts) for path in paths), default=1)):
        names = [str(Path(*path.parts[-n:])) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return [str(path) for path in paths]


def finite_or_none(tree: Any) -> Any:
    """Replace numbers that are not finite by None in nested dictionaries and lists: JSON has no infinity.

    Example:
        >>> finite_or_none({"upper": math.inf, "lower": (0.5, 1)})
        {'upper': None, 'lower': [0.5, 1]}
    """
    match tree:
        case dict():
            return {key: finite_or_none(value) for key, value in tree.items()}
        case list() | tuple():
            return [finite_or_none(value) for value in tree]
        case float() if not math.isfinite(tree):
            return None
    return tree


# -- locks -------------------------------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process, and make it if it is missing; the lock ends with the process, however it ends.

    Raises:
        RunError: when another process, which is named, holds the lock, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)), locked(Path(folder)):
        ...     pass  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        iresnet.errors.RunError: ... is in use by process ... on ...; wait for its end, or choose another --out
    """
    path = folder / ".lock"
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        _acquire(file, folder)
        try:
            yield
        finally:
            file.truncate(0)


def _acquire(file: TextIO, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        owner = file.read().strip() or "another process"
        raise RunError(f"{folder} is in use by {owner}; wait for its end, or choose another --out") from error
    with writing(folder / ".lock"):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
