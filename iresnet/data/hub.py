"""Fetch a published data set from the Hugging Face hub, at a fixed revision."""

__all__ = ["HubFiles", "fetch"]

import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from iresnet.errors import DataError


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
        hub: what to download.
        folder: where to; must not exist yet.

    Raises:
        DataError: no network, no such file, or no space.
    """
    from huggingface_hub import constants, hf_hub_download  # here: a slow import, which most runs do not need

    if folder.exists():
        raise DataError(f"the {hub} was not fetched, since {folder} exists without its files; delete the folder")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        _resolve(constants.ENDPOINT)
        for file in hub.files:
            hf_hub_download(hub.repo, file, repo_type="dataset", revision=hub.revision, local_dir=partial)
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's own notes
        os.replace(partial, folder)
    except Exception as error:  # the client passes on errors of several network libraries
        reason = " ".join(str(error).split())[:160]
        raise DataError(f"the {hub} could not be fetched ({type(error).__name__}: {reason})") from error


def _resolve(endpoint: str) -> None:
    """Fail at once without a network, where the client would retry for half a minute."""
    if not getproxies():
        socket.getaddrinfo(urlsplit(endpoint).hostname, None)
