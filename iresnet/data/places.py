"""Where data is looked for."""

__all__ = ["VARIABLE", "roots", "user_cache"]

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


def roots(data_dir: str | Path | None) -> list[Path]:
    """List the folders of data sets, in the order in which they are tried.

    Args:
        data_dir: given by the caller, or ``None``.

    Returns:
        ``data_dir``, ``$IRESNET_DATA`` and the user cache, as far as they are set.

    Raises:
        DataError: ``data_dir`` is not a folder.

    Example:
        >>> roots(".")[0], roots(".")[-1] == user_cache()
        (PosixPath('.'), True)
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise DataError(f"{data_dir}: expected a folder of data sets, there is none; give an existing folder")
    named = [data_dir, os.environ.get(VARIABLE)]
    return [Path(folder).expanduser() for folder in named if folder] + [user_cache()]
