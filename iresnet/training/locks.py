"""A run folder belongs to one process at a time."""

__all__ = ["locked"]

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from iresnet.errors import RunError
from iresnet.files import writing


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, which is made when it is not there; the system releases it however it ends.

    Raises:
        RunError: when another process holds it, and which, or the folder cannot be written.

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
