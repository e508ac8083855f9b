"""Images in files: decode them to one uint8 array, remember the result, and read folders of them."""

__all__ = [
    "Encoded",
    "Form",
    "UNCHANGED",
    "decode_images",
    "read_image_folder",
    "remembered",
]

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
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from iresnet.data.dataset import Split, Splits
from iresnet.data.reading import reading, user_cache
from iresnet.errors import DataError, UnknownNameError

# -- decoding ----------------------------------------------------------------------------------------------------------


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


# -- folders -----------------------------------------------------------------------------------------------------------


_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}


def read_image_folder(folder: Path, *, form: Form = UNCHANGED) -> tuple[Splits, tuple[str, ...]]:
    """Read a folder of images.

    Folders ``train``, ``validation`` and ``test`` (as far as they are there) give the split; folders
    inside them, or inside ``folder`` itself, are the classes, which may have folders of their own. Files
    that are no images are passed over.

    Args:
        folder: the folder.
        form: what to turn the images into.

    Returns:
        The splits that the folder has, uint8 images of shape ``(C, H, W)``, and the names of the
        classes, none for images without labels.

    Raises:
        DataError: no images, images of several sizes or modes, or classes that differ between splits.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for name in ("cat", "dog"):
        ...     (root / name).mkdir()
        ...     Image.new("RGB", (12, 8)).save(root / name / "1.png")
        >>> splits, class_names = read_image_folder(root, form=Form(size=8))
        >>> splits["train"].x.shape, splits["train"].y.tolist(), class_names
        (torch.Size([2, 3, 8, 8]), [0, 1], ('cat', 'dog'))
    """
    listed = {kind: _list(root) for kind, root in _split_folders(folder).items()}
    class_names = _class_names(folder, listed)
    identity = f"folder {folder.resolve()} {form}"
    splits = {kind: _read(f"{identity} {kind}", files, class_names, form) for kind, files in listed.items()}
    return splits, class_names


_Files = list[tuple[Path, str | None]]  # image files with their class


def _split_folders(folder: Path) -> dict[str, Path]:
    found = [(kind, folder / name) for name, kind in _SPLITS.items() if (folder / name).is_dir()]
    splits = dict(found)
    if len(splits) < len(found):
        raise DataError(f"{folder}: expected one validation folder, got {', '.join(root.name for _, root in found)}")
    if splits and "train" not in splits:
        raise DataError(f"{folder}: expected a folder train beside {', '.join(splits)}; add it or rename them")
    others = [
        path for path in _visible(folder) if path.name not in _SPLITS and (_is_image(path) or _images_below(path))
    ]
    if splits and others:
        raise DataError(f"{folder}: expected images only in {', '.join(splits)}, got {others[0].name}; move them")
    return splits or {"train": folder}


def _list(root: Path) -> _Files:
    entries = _visible(root)
    direct: _Files = [(path, None) for path in entries if _is_image(path)]
    classes = [entry for entry in entries if entry.is_dir()]
    labeled: _Files = [(path, entry.name) for entry in classes for path in _images_below(entry)]
    if direct and labeled:
        raise DataError(
            f"{root}: expected images or folders of images, got both; move {direct[0][0].name} to its class"
        )
    empty = {entry.name for entry in classes} - {name for _, name in labeled}
    if labeled and empty:
        raise DataError(f"{root}: no images in the class folder {min(empty)}; fill it or remove it")
    if not direct and not labeled:
        raise DataError(
            f"{root}: no images found; expected files like *.png or *.jpg, or class folders with such files"
        )
    return direct or labeled


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if _is_image(path))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _class_names(folder: Path, listed: dict[str, _Files]) -> tuple[str, ...]:
    names = {kind: sorted({name for _, name in files if name is not None}) for kind, files in listed.items()}
    for kind, found in names.items():
        if odd := set(found) ^ set(names["train"]):
            raise DataError(f"{folder}: the class {min(odd)} is in only one of train and {kind}; use the same classes")
    return tuple(names["train"])


def _read(identity: str, files: _Files, class_names: tuple[str, ...], form: Form) -> Split:
    paths = [path for path, _ in files]

    def decode() -> dict[str, np.ndarray]:
        return {"x": decode_images([Encoded(str(path), path.read_bytes) for path in paths], form=form)}

    x = remembered(identity, paths, len(paths), decode)["x"]
    labels = {name: i for i, name in enumerate(class_names)}
    y = torch.tensor([labels[name] for _, name in files if name is not None]) if class_names else None
    return Split(torch.from_numpy(x), y)
