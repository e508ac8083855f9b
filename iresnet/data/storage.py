"""Files of data sets: folders in which they are looked for, downloads, and errors that name what cannot be read."""

__all__ = [
    "HubFiles",
    "VARIABLE",
    "candidate_paths",
    "check_md5",
    "data_folders",
    "fetch",
    "raw_bytes",
    "reading",
    "user_cache",
]

import gzip
import hashlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import platformdirs

from iresnet.errors import DataError, IResNetError


@contextmanager
def reading(path: Path | str, what: str, remedy: str = "get it again") -> Iterator[None]:
    """Turn any failure to read ``path`` into a :class:`~iresnet.errors.DataError`.

    Args:
        path: name of the file in the error message.
        what: the expected kind of file, such as ``"gzip file"``.
        remedy: advice for the user.

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
        iresnet.errors.DataError: ...storage.py: expected md5 00000000000000000000000000000000, got ...
    """
    with reading(path, "readable file"), path.open("rb") as file:
        got = hashlib.file_digest(file, "md5").hexdigest()
    if got != expected:
        raise DataError(
            f"{path}: expected md5 {expected}, got {got} ({path.stat().st_size} bytes); "
            "the file is truncated, damaged or of another data set, get it again"
        )


# -- folders of data sets ----------------------------------------------------------------------------------------------


#: Environment variable that names the folder of data sets.
VARIABLE = "IRESNET_DATA"


def user_cache() -> Path:
    """Return the folder for downloads and decoded images; it can be deleted at any time.

    Returns:
        The platform's user cache folder for this package, which need not exist yet.

    Example:
        >>> user_cache().name
        'iresnet'
    """
    return Path(platformdirs.user_cache_dir("iresnet"))


def data_folders(data_dir: str | Path | None) -> list[Path]:
    """List the folders of data sets, in the order in which they are tried.

    Args:
        data_dir: given by the caller, or ``None``.

    Returns:
        ``data_dir``, ``$IRESNET_DATA`` and the user cache, as far as they are set.

    Raises:
        DataError: ``data_dir`` is not a folder.

    Example:
        >>> data_folders(".")[0], data_folders(".")[-1] == user_cache()
        (PosixPath('.'), True)
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise DataError(f"{data_dir}: expected a folder of data sets, there is none; give an existing folder")
    named = [data_dir, os.environ.get(VARIABLE)]
    return [Path(folder).expanduser() for folder in named if folder] + [user_cache()]


def candidate_paths(data_dir: str | Path | None, *names: str | Path) -> list[Path]:
    """List the paths at which a data set may be, in the order in which they are tried.

    Args:
        data_dir: given by the caller, or ``None``.
        names: paths inside a folder of data sets.

    Returns:
        Every name in the first folder, then in the next one; each path once.

    Raises:
        DataError: ``data_dir`` is not a folder.

    Example:
        >>> candidate_paths(".", "uci/yacht.txt.gz", "yacht.txt.gz")[:2]
        [PosixPath('uci/yacht.txt.gz'), PosixPath('yacht.txt.gz')]
    """
    return list(dict.fromkeys(folder / name for folder in data_folders(data_dir) for name in names))


# -- the Hugging Face hub ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HubFiles:
    """Files of one revision of a data set on the hub.

    Args:
        repo: ``owner/name``.
        revision: the full commit hash, so that the files cannot change.
        files: paths inside the repository.

    Example:
        >>> print(HubFiles("someone/pictures", "0123456789abcdef0123456789abcdef01234567", ("a.parquet",)))
        hub data set someone/pictures at revision 0123456789ab
    """

    repo: str
    revision: str
    files: tuple[str, ...]

    def __str__(self) -> str:
        return f"hub data set {self.repo} at revision {self.revision[:12]}"


def fetch(hub: HubFiles, folder: Path) -> None:
    """Download the files into ``folder``, which appears only when all of them are complete.

    An interrupted download continues where it stopped.

    Args:
        hub: the files to download.
        folder: where to; must not exist yet.

    Raises:
        DataError: no network, no such file, or no space.
    """
    from huggingface_hub import constants, hf_hub_download  # here: a slow import, which most runs do not need

    if folder.exists():
        raise DataError(f"the {hub} was not fetched, since {folder} exists without its files; delete the folder")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        if not getproxies():  # without a network this fails at once; the client would retry for half a minute
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
        for file in hub.files:
            hf_hub_download(hub.repo, file, repo_type="dataset", revision=hub.revision, local_dir=partial)
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's own notes
        os.replace(partial, folder)
    except Exception as error:  # the client passes on errors of several network libraries
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"the {hub} could not be fetched ({type(error).__name__}: {reason})") from error
