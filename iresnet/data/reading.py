"""Read files that may be missing, truncated or damaged: every failure is one line."""

__all__ = ["check_md5", "raw_bytes", "reading"]

import gzip
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iresnet.errors import DataError, IResNetError


@contextmanager
def reading(path: Path | str, what: str, remedy: str = "get it again") -> Iterator[None]:
    """Turn any failure to read ``path`` into a :class:`~iresnet.errors.DataError`.

    Args:
        path: what to name in the error.
        what: what the file should be, such as ``"gzip file"``.
        remedy: what to do about it.

    Raises:
        DataError: the body raised.

    Example:
        >>> with reading("x.png", "PNG image"):
        ...     raise EOFError("cut")
        Traceback (most recent call last):
        iresnet.errors.DataError: x.png: expected a PNG image, got one that cannot be read (EOFError: cut); get it again
    """
    try:
        yield
    except IResNetError:
        raise
    except Exception as error:  # on damaged input the parsers of other libraries raise nearly anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(f"{path}: expected a {what}, got one that cannot be read ({reason}); {remedy}") from error


def raw_bytes(path: Path) -> bytes:
    """Return the content of a file, decompressed if its name ends in ``.gz``.

    Args:
        path: the file.

    Returns:
        Its bytes, the checksum of the compressed stream verified.

    Raises:
        DataError: missing, truncated or damaged.

    Example:
        >>> raw_bytes(Path("absent.gz"))
        Traceback (most recent call last):
        iresnet.errors.DataError: absent.gz: no such file
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    compressed = path.suffix == ".gz"
    with reading(path, "complete gzip file" if compressed else "readable file"):
        content = path.read_bytes()
        return gzip.decompress(content) if compressed else content


def check_md5(path: Path, expected: str) -> None:
    """Compare the MD5 checksum of a file with the published one.

    Args:
        path: the file.
        expected: 32 hexadecimal digits.

    Raises:
        DataError: another checksum.

    Example:
        >>> check_md5(Path(__file__), "0" * 32)
        Traceback (most recent call last):
        iresnet.errors.DataError: ...reading.py: expected md5 00000000000000000000000000000000, got ...
    """
    with reading(path, "readable file"), path.open("rb") as file:
        got = hashlib.file_digest(file, "md5").hexdigest()
    if got != expected:
        raise DataError(
            f"{path}: expected md5 {expected}, got {got} ({path.stat().st_size} bytes); "
            "the file is truncated, damaged or of another data set, get it again"
        )
