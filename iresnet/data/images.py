"""Encoded images, in files of their own or in Parquet: decode them, cache the arrays, stream them in batches."""

__all__ = [
    "NO_CONVERSION",
    "EncodedImage",
    "ImageConversion",
    "Stream",
    "decode_cached",
    "decode_images",
    "encoded_images",
    "integer_labels",
    "sides_to_pad",
]

import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from iresnet.data.storage import reading, user_cache
from iresnet.errors import DataError, UnknownNameError

_LOSSLESS = {"1": "L", "P": "RGB", "L": "L", "RGB": "RGB"}  # mode of the file -> mode of the array
_MODES = ("RGB", "L")
_BLOCK = 256  # images that one thread decodes at a time


@dataclass(frozen=True)
class EncodedImage:
    """Image that is not decoded yet.

    Args:
        name: name in error messages.
        read: returns the content of its file.
    """

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class ImageConversion:
    """Size and mode that images are converted to; by default none, and images that differ in either are refused.

    Args:
        size: scale the shorter side to this many pixels and cut out the central square.
        mode: convert to ``RGB`` or ``L`` (gray): transparent images are laid on white, of 16 bits the higher 8 stay.

    Raises:
        DataError: a size below 1.
        UnknownNameError: no such mode.
    """

    size: int | None = None
    mode: str | None = None

    def __post_init__(self):
        if self.size is not None and self.size < 1:
            raise DataError(f"image_size (--data.image-size) must be at least 1, got {self.size}")
        if self.mode is not None and self.mode not in _MODES:
            raise UnknownNameError("mode of images", self.mode, _MODES)

    def __str__(self) -> str:
        return f"{self.size}" + (f" {self.mode}" if self.mode else "")


NO_CONVERSION = ImageConversion()


# -- decoding ----------------------------------------------------------------------------------------------------------


def decode_images(
    images: Sequence[EncodedImage], conversion: ImageConversion = NO_CONVERSION
) -> np.ndarray:  # (N, C, H, W)
    """Decode images, all of one size and either all gray or all RGB.

    Args:
        images: at least one PNG, JPEG, WebP or other format that Pillow reads.
        conversion: applied to each of them first.

    Returns:
        The images, uint8, shape ``(N, C, H, W)`` with one channel or three.

    Raises:
        DataError: an image is damaged, neither gray nor RGB, or differs from the first in size or mode.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("L", (6, 4), 200).save(file, "PNG")
        >>> x = decode_images([EncodedImage("a.png", file.getvalue)])
        >>> x.shape, int(x.min())
        ((1, 1, 4, 6), 200)
    """
    first = _decode(images[0], conversion)
    decoded = np.empty((len(images), *first.shape), np.uint8)

    def fill(start: int) -> None:
        for i in range(start, min(start + _BLOCK, len(images))):
            image = _decode(images[i], conversion)
            if image.shape != first.shape:
                raise DataError(_difference(images[0].name, first, images[i].name, image))
            decoded[i] = image

    with ThreadPoolExecutor() as pool:
        try:
            list(pool.map(fill, range(0, len(images), _BLOCK)))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # an error or Ctrl-C must not wait for the rest
            raise
    return decoded


def _decode(encoded: EncodedImage, conversion: ImageConversion) -> np.ndarray:  # (C, H, W)
    with reading(encoded.name, "complete image file"):
        content = io.BytesIO(encoded.read())
        try:
            opened = Image.open(content)
        except UnidentifiedImageError as error:  # its message names the object that holds the bytes
            raise UnidentifiedImageError("of no format that is known") from error
        with opened:
            image = ImageOps.exif_transpose(opened)
            if conversion.mode is None:
                image = _convert_lossless(encoded.name, image)
            else:
                image = _convert(encoded.name, image, conversion.mode)
            if conversion.size is not None:
                image = ImageOps.fit(image, (conversion.size, conversion.size), Image.Resampling.LANCZOS)
            return np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)


def _convert_lossless(name: str, image: Image.Image) -> Image.Image:
    mode = image.mode + (" with transparency" if image.has_transparency_data and image.mode in _LOSSLESS else "")
    if mode not in _LOSSLESS:
        raise DataError(
            f"{name}: expected a gray or RGB image, got mode {mode}; convert it to RGB (--data.mode RGB) or gray "
            "(--data.mode L)"
        )
    return image.convert(_LOSSLESS[mode])


def _convert(name: str, image: Image.Image, mode: str) -> Image.Image:
    if image.mode in ("F", "I"):
        raise DataError(f"{name}: mode {image.mode} has no range of gray levels; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return image.convert("RGB").convert(mode)


def _difference(first: str, a: np.ndarray, other: str, b: np.ndarray) -> str:
    described = [f"{x.shape[2]}x{x.shape[1]} {'RGB' if len(x) == 3 else 'gray'}" for x in (a, b)]
    modes = "convert them to one mode (--data.mode RGB)"
    remedy = modes if len(a) != len(b) else "give image_size to scale and crop them (--data.image-size 32)"
    return f"expected images of one form, got {first} ({described[0]}) and {other} ({described[1]}); {remedy}"


def sides_to_pad(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Return the zeros left, right, above and below that make an image a square; an odd one goes right and below.

    Example:
        >>> sides_to_pad(8, 5, 8)
        (1, 2, 0, 0)
    """
    top, left = (size - height) // 2, (size - width) // 2
    return left, size - width - left, top, size - height - top


# -- cache of decoded images -------------------------------------------------------------------------------------------


_CACHED_FROM = 5000  # images; fewer are decoded each time


def decode_cached(
    identity: str,
    sources: Iterable[Path],
    n_images: int,
    images: Callable[[], Sequence[EncodedImage]],
    conversion: ImageConversion = NO_CONVERSION,
) -> np.ndarray:  # (N, C, H, W)
    """Decode images, or read the result from the user cache if the sources have not changed.

    Sets of fewer than 5000 images are decoded anew each time. The cached file is named by the names, sizes and
    modification times of the sources, is written completely or not at all, and carries checksums: a
    damaged one is decoded anew and replaced. The file for an earlier state of the sources is removed.

    Args:
        identity: which images, the same for every state of the sources.
        sources: the files that are decoded.
        n_images: how many images they hold.
        images: lists the images; called only where they are decoded.
        conversion: applied to each of them first.

    Returns:
        The images, uint8, shape ``(N, C, H, W)``.

    Warns:
        UserWarning: the file could not be written.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("L", (6, 4), 200).save(file, "PNG")
        >>> decode_cached("one image", [], 1, lambda: [EncodedImage("a.png", file.getvalue)]).shape
        (1, 1, 4, 6)
    """
    if n_images < _CACHED_FROM:
        return decode_images(images(), conversion)
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    prefix = _hash(identity)
    path = user_cache() / "decoded" / f"{prefix}-{_hash(repr(stats))}.npz"
    x = _load(path)
    if x is None:
        x = decode_images(images(), conversion)
        _store(path, x, prefix)
    return x


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _load(path: Path) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return stored["x"]  # reading to the end verifies the checksum
    except Exception:  # whatever is wrong with it, it is decoded anew
        return None


def _store(path: Path, x: np.ndarray, prefix: str) -> None:
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, allow_pickle=False, x=x)
        for earlier in path.parent.glob(f"{prefix}-*.npz"):
            earlier.unlink(missing_ok=True)
        os.replace(temporary, path)
    except OSError as error:
        message = f"decoded images could not be kept in {path.parent} ({error}); they are decoded again next time"
        warnings.warn(message, stacklevel=2)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


# -- columns of Parquet files ------------------------------------------------------------------------------------------


def encoded_images(column: pa.ChunkedArray, where: str) -> list[EncodedImage]:
    """List the images of a column of structs with encoded ``bytes``.

    Args:
        column: as the Hugging Face hub stores images.
        where: name of the data in error messages, before the row.

    Raises:
        DataError: an image is missing.
    """
    content = pc.struct_field(column, "bytes")  # pyright: ignore[reportAttributeAccessIssue]
    if content.null_count:
        raise DataError(f"{where}: expected the bytes of every image, {content.null_count} are missing")
    return [EncodedImage(f"{where}, row {i}", scalar.as_py) for i, scalar in enumerate(content)]


def integer_labels(column: pa.ChunkedArray, where: str) -> Tensor:  # (N,) int64
    """Return a column of class labels.

    Args:
        column: integers.
        where: name of the data in error messages.

    Raises:
        DataError: the column holds anything else, or a label is missing.
    """
    if not pa.types.is_integer(column.type) or column.null_count:
        raise DataError(f"{where}: expected an integer label for every image, got {column.type}")
    return torch.tensor(column.to_numpy().astype(np.int64))


@dataclass(frozen=True)
class Stream:
    """Images, and perhaps labels, of Parquet files, which are read and decoded when they are needed.

    Args:
        paths: the files, in the layout of the Hugging Face hub.
        image: column of structs with encoded ``bytes``.
        label: column of the class labels, or ``None``.
        n: number of rows, the first ones of the files.
        n_classes: number of classes.
        sides: zeros to add left, right, above and below.
    """

    paths: tuple[Path, ...]
    image: str
    label: str | None
    n: int
    n_classes: int = 0
    sides: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __len__(self) -> int:
        return self.n

    @cached_property
    def _metadata(self) -> dict[Path, pq.FileMetaData]:
        return {path: pq.read_metadata(path) for path in self.paths}

    @cached_property
    def groups(self) -> list[tuple[Path, int, int]]:
        """Row groups, the units that can be read alone: file, number in the file, and rows."""
        found, left = [], self.n
        for path, metadata in self._metadata.items():
            for i in range(metadata.num_row_groups):
                rows = min(left, metadata.row_group(i).num_rows)
                found += [(path, i, rows)] if rows else []
                left -= rows
        return found

    def read(self, order: Sequence[int], start: int, stop: int) -> pa.Table:
        """Read rows ``start`` to ``stop`` of the row groups in an order; of no group more than once."""
        tables, begin = [], 0
        for i in order:
            path, number, rows = self.groups[i]
            first, last = max(start - begin, 0), min(stop - begin, rows)
            if first < last:
                tables.append(self._read_group(path, number).slice(first, last - first))
            begin += rows
        return pa.concat_tables(tables)

    def _read_group(self, path: Path, number: int) -> pa.Table:
        columns = [self.image, *([self.label] if self.label else [])]
        options = {"metadata": self._metadata[path], "page_checksum_verification": True}
        with reading(path, "complete Parquet file"), pq.ParquetFile(path, **options) as file:
            return file.read_row_group(number, columns)

    def decode(self, table: pa.Table) -> tuple[Tensor, Tensor | None]:  # (n, C, H, W), (n,)
        """Decode rows that were read, and check their labels.

        Raises:
            DataError: an image or label is missing or damaged, or a label is none of the classes.
        """
        where = str(self.paths[0].parent)
        images = encoded_images(table.column(self.image), f"{where}, a batch")
        x = F.pad(torch.from_numpy(decode_images(images)), self.sides)
        if self.label is None:
            return x, None
        y = integer_labels(table.column(self.label), where)
        if not 0 <= int(y.min()) <= int(y.max()) < self.n_classes:
            raise DataError(f"{where}: labels must lie in 0..{self.n_classes - 1}, got {int(y.min())}..{int(y.max())}")
        return x, y
