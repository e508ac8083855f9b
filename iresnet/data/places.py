"""Where data is looked for."""

__all__ = ["VARIABLE", "candidates", "user_cache"]

import os
from pathlib import Path

import platformdirs

from iresnet.errors import DataError

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


def candidates(name: str, data_dir: str | Path | None) -> list[Path]:
    """List the paths where ``name`` may be, in the order in which they are tried.

    Args:
        name: a folder or file, relative to a folder of data sets.
        data_dir: a folder of data sets given by the caller, tried before ``$IRESNET_DATA`` and the user cache.

    Returns:
        ``<folder>/<name>`` for each of the folders.

    Raises:
        DataError: ``data_dir`` is not a folder.

    Example:
        >>> candidates("mnist", ".")[0]
        PosixPath('mnist')
    """
    return [root / name for root in roots(data_dir)]


def roots(data_dir: str | Path | None) -> list[Path]:
    """List the folders of data sets, in the order in which they are tried.

    Args:
        data_dir: given by the caller, or ``None``.

    Returns:
        ``data_dir``, ``$IRESNET_DATA`` and the user cache, as far as they are set.

    Raises:
        DataError: ``data_dir`` is not a folder.
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise DataError(f"{data_dir}: expected a folder of data sets, there is none; give an existing folder")
    named = [data_dir, os.environ.get(VARIABLE)]
    return [Path(folder).expanduser() for folder in named if folder] + [user_cache()]
