"""A folder of images, in any of the usual arrangements."""

__all__ = ["read_image_folder"]

from pathlib import Path

import numpy as np
import torch

from iresnet.data.dataset import Split
from iresnet.data.decode import UNCHANGED, Encoded, Form, decode_images, remembered
from iresnet.data.split import Splits
from iresnet.errors import DataError

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
