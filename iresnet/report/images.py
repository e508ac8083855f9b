"""Pictures of a run folder as data URIs, each with words for those who do not see it."""

__all__ = ["DamagedPictureError", "read_picture"]

import base64
import struct
import zlib
from pathlib import Path

from iresnet.report.blocks import Picture

_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_LARGEST = 8_000_000
"""Bytes of a picture, at most: a page must open in a moment."""


class DamagedPictureError(ValueError):
    """A file that is no sound PNG, or too large."""


def read_picture(path: Path, alt: str, caption: str, *, pixels: bool = True) -> Picture | None:
    """Read a PNG file.

    Args:
        path: the file.
        alt: what it shows.
        caption: what stands below it.
        pixels: whether single pixels are to be seen.

    Returns:
        The picture, None when there is no such file.

    Raises:
        DamagedPictureError: says what is wrong with the file.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DamagedPictureError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise DamagedPictureError(f"{path.name} is too large for a page ({len(content) // 1_000_000} MB)")
    width, height = _size(content, path.name)
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    return Picture(uri, alt, caption, width, height, pixels)


def _size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height of a PNG, after checking that all of it is there."""
    place, kinds = len(_SIGNATURE), []
    while content.startswith(_SIGNATURE) and place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunk = content[place + 4 : place + 8 + length]
        if zlib.crc32(chunk).to_bytes(4, "big") != content[place + 8 + length : place + 12 + length]:
            break
        kinds.append(chunk[:4])
        place += 12 + length
    if kinds[:1] != [b"IHDR"] or kinds[-1] != b"IEND":
        raise DamagedPictureError(f"{name} is damaged: it is not a whole PNG file")
    width, height = struct.unpack_from(">II", content, 16)
    return width, height
