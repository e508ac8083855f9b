"""Decode image files to one uint8 array, and remember the result."""

__all__ = ["UNCHANGED", "Encoded", "Form", "decode_images", "remembered"]

import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from iresnet.data.places import user_cache
from iresnet.data.reading import reading
from iresnet.errors import DataError, UnknownNameError

_LOSSLESS = {"1": "L", "P": "RGB", "L": "L", "RGB": "RGB"}  # mode of the file -> mode of the array
_MODES = ("RGB", "L")
_WORTH_REMEMBERING = 5000
_BLOCK = 256  # images that one thread decodes at a time


@dataclass(frozen=True)
class Encoded:
    """An image that is not decoded yet.

    Args:
        name: what to call it in an error.
        read: returns the content of its file.
    """

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Form:
    """What images are turned into; by default nothing is changed, and what is not alike is refused.

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


UNCHANGED = Form()


def decode_images(images: Sequence[Encoded], form: Form = UNCHANGED) -> np.ndarray:  # (N, C, H, W)
    """Decode images, all of one size and either all gray or all RGB.

    Args:
        images: at least one PNG, JPEG, WebP or other format that Pillow reads.
        form: what to turn them into first.

    Returns:
        The images, uint8, shape ``(N, C, H, W)`` with one channel or three.

    Raises:
        DataError: an image is damaged, neither gray nor RGB, or differs from the first in size or mode.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("L", (6, 4), 200).save(file, "PNG")
        >>> x = decode_images([Encoded("a.png", file.getvalue)])
        >>> x.shape, int(x.min())
        ((1, 1, 4, 6), 200)
    """
    first = _decode(images[0], form)
    decoded = np.empty((len(images), *first.shape), np.uint8)

    def fill(start: int) -> None:
        for i in range(start, min(start + _BLOCK, len(images))):
            image = _decode(images[i], form)
            if image.shape != first.shape:
                raise DataError(_difference(images[0], first, images[i], image))
            decoded[i] = image

    with ThreadPoolExecutor() as pool:
        try:
            list(pool.map(fill, range(0, len(images), _BLOCK)))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # an error or Ctrl-C must not wait for the rest
            raise
    return decoded


def _decode(encoded: Encoded, form: Form) -> np.ndarray:  # (C, H, W)
    with reading(encoded.name, "complete image file"):
        content = io.BytesIO(encoded.read())
        try:
            opened = Image.open(content)
        except UnidentifiedImageError as error:  # its message names the object that holds the bytes
            raise UnidentifiedImageError("of no format that is known") from error
        with opened:
            image = ImageOps.exif_transpose(opened)
            image = _lossless(encoded.name, image) if form.mode is None else _converted(encoded.name, image, form.mode)
            if form.size is not None:
                image = ImageOps.fit(image, (form.size, form.size), Image.Resampling.LANCZOS)
            return np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)


def _lossless(name: str, image: Image.Image) -> Image.Image:
    mode = image.mode + (" with transparency" if image.has_transparency_data and image.mode in _LOSSLESS else "")
    if mode not in _LOSSLESS:
        raise DataError(
            f"{name}: expected a gray or RGB image, got mode {mode}; convert it to RGB (--data.mode RGB) or gray "
            "(--data.mode L)"
        )
    return image.convert(_LOSSLESS[mode])


def _converted(name: str, image: Image.Image, mode: str) -> Image.Image:
    if image.mode in ("F", "I"):
        raise DataError(f"{name}: mode {image.mode} has no range of gray levels; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return image.convert("RGB").convert(mode)


def _difference(one: Encoded, a: np.ndarray, other: Encoded, b: np.ndarray) -> str:
    def form(array: np.ndarray) -> str:
        channels, height, width = array.shape
        return f"{width}x{height} {'RGB' if channels == 3 else 'gray'}"

    modes = "convert them to one mode (--data.mode RGB)"
    remedy = modes if len(a) != len(b) else "give image_size to scale and crop them (--data.image-size 32)"
    return f"expected images of one form, got {one.name} ({form(a)}) and {other.name} ({form(b)}); {remedy}"


def remembered(
    identity: str,
    sources: Iterable[Path],
    n_images: int,
    decode: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Return what ``decode`` returns, from a file in the user cache if the sources have not changed.

    Sets of fewer than 5000 images are decoded anew each time. The file is named by the names, sizes and
    modification times of the sources, is written completely or not at all, and carries checksums: a
    damaged one is decoded anew and replaced. The file for an earlier state of the sources is removed.

    Args:
        identity: what is decoded and how, the same for every state of the sources.
        sources: the files that are decoded.
        n_images: how many images they hold.
        decode: decodes them to arrays.

    Returns:
        The arrays by name.

    Warns:
        UserWarning: the file could not be written.

    Example:
        >>> remembered("three ones", [], 3, lambda: {"x": np.ones(3)})
        {'x': array([1., 1., 1.])}
    """
    if n_images < _WORTH_REMEMBERING:
        return decode()
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    prefix = _hash(identity)
    path = user_cache() / "decoded" / f"{prefix}-{_hash(repr(stats))}.npz"
    arrays = _load(path)
    if arrays is None:
        arrays = decode()
        _store(path, arrays, prefix)
    return arrays


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _load(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}  # reading to the end verifies the checksums
    except Exception:  # whatever is wrong with it, it is decoded anew
        return None


def _store(path: Path, arrays: dict[str, np.ndarray], prefix: str) -> None:
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, allow_pickle=False, **arrays)
        for earlier in path.parent.glob(f"{prefix}-*.npz"):
            earlier.unlink(missing_ok=True)
        os.replace(temporary, path)
    except OSError as error:
        message = f"decoded images could not be kept in {path.parent} ({error}); they are decoded again next time"
        warnings.warn(message, stacklevel=2)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
