"""Folders of images: image files sorted into classes, or Parquet files in the layout of the Hugging Face hub."""

__all__ = [
    "SUFFIXES",
    "ParquetFiles",
    "find_parquet",
    "list_images",
    "read_image_folder",
    "read_parquet_folder",
]

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from iresnet.data.dataset import Split, Splits, numbered_classes
from iresnet.data.images import (
    NO_CONVERSION,
    EncodedImage,
    ImageConversion,
    decode_cached,
    encoded_images,
    integer_labels,
)
from iresnet.data.storage import reading
from iresnet.errors import DataError

# -- image files -------------------------------------------------------------------------------------------------------


SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}


def read_image_folder(folder: Path, *, conversion: ImageConversion = NO_CONVERSION) -> tuple[Splits, tuple[str, ...]]:
    """Read a folder of image files.

    Folders ``train``, ``validation`` and ``test`` (as far as they are there) give the split; folders
    inside them, or inside ``folder`` itself, are the classes, which may have folders of their own. Files
    that are no images are passed over.

    Args:
        folder: the folder.
        conversion: applied to each image.

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
        >>> splits, class_names = read_image_folder(root, conversion=ImageConversion(size=8))
        >>> splits["train"].x.shape, splits["train"].y.tolist(), class_names
        (torch.Size([2, 3, 8, 8]), [0, 1], ('cat', 'dog'))
    """
    listed = {kind: _list_images(root) for kind, root in _split_folders(folder).items()}
    names = {kind: sorted({name for _, name in files if name is not None}) for kind, files in listed.items()}
    for kind, found in names.items():
        if odd := set(found) ^ set(names["train"]):
            raise DataError(f"{folder}: the class {min(odd)} is in only one of train and {kind}; use the same classes")
    classes = {name: i for i, name in enumerate(names["train"])}
    splits = {}
    for kind, files in listed.items():
        x = decode_cached(
            f"folder {folder.resolve()} {conversion} {kind}",
            [path for path, _ in files],
            len(files),
            lambda files=files: [EncodedImage(str(path), path.read_bytes) for path, _ in files],
            conversion,
        )
        y = torch.tensor([classes[name] for _, name in files if name is not None]) if classes else None
        splits[kind] = Split(torch.from_numpy(x), y)
    return splits, tuple(classes)


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


def _list_images(root: Path) -> list[tuple[Path, str | None]]:
    """List the image files of a split, with their class."""
    entries = _visible(root)
    direct = [(path, None) for path in entries if _is_image(path)]
    classes = [entry for entry in entries if entry.is_dir()]
    labeled = [(path, entry.name) for entry in classes for path in _images_below(entry)]
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
    return [*direct, *labeled]


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def list_images(folder: Path) -> list[Path]:
    """List the image files of a folder, however deep; files that are no images are passed over.

    Raises:
        DataError: there are none.
    """
    files = _images_below(folder)
    if not files:
        raise DataError(f"{folder}: no images found; expected files like *.png or *.jpg")
    return files


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if _is_image(path))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


# -- Parquet files -----------------------------------------------------------------------------------------------------


_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label")
_SUBFOLDERS = (".", "data", "plain_text")


@dataclass(frozen=True)
class ParquetFiles:
    """Parquet files of images, as far as their schemas describe them.

    Args:
        splits: the files by split.
        images: the column of images of each file.
        label: column of the labels, or ``None``.
        class_names: the classes that the files declare, if they do.
    """

    splits: dict[str, list[Path]]
    images: dict[Path, str]
    label: str | None
    class_names: tuple[str, ...]

    def read(self, kind: str, conversion: ImageConversion = NO_CONVERSION) -> Split:
        """Read all rows of a split into memory, decoded.

        Decoding tens of thousands of images takes a while, so the result is kept in the user cache, see
        :func:`~iresnet.data.images.decode_cached`.

        Args:
            kind: ``train``, ``validation`` or ``test``.
            conversion: applied to each image.

        Raises:
            DataError: no rows, or a file is damaged.
        """
        paths = self.splits[kind]
        n = sum(pq.read_metadata(path).num_rows for path in paths)
        if n == 0:
            raise DataError(f"{paths[0]}: expected images, got an empty table; get the file again")

        def images() -> list[EncodedImage]:
            columns = [(path, _read_column(path, self.images[path])) for path in paths]
            return [image for path, column in columns for image in encoded_images(column, str(path))]

        identity = f"parquet {paths[0].resolve()} {conversion}"
        x = torch.from_numpy(decode_cached(identity, paths, n, images, conversion))
        if self.label is None:
            return Split(x)
        return Split(x, torch.cat([integer_labels(_read_column(path, self.label), str(path)) for path in paths]))


def find_parquet(
    folder: Path, *, label: str | None = None, class_names: Sequence[str] | None = None, subfolders: Sequence[str] = ()
) -> ParquetFiles | None:
    """Look for ``train-*.parquet``, ``validation-*.parquet`` and ``test-*.parquet``, without reading their rows.

    Images are in a column ``img`` or ``image`` of structs with encoded ``bytes`` (PNG, JPEG, WebP, ...).

    Args:
        folder: where the files, or a folder ``data`` or ``plain_text`` with them, are.
        label: column of the class labels; ``label`` or ``fine_label`` when None, where there is one.
        class_names: the classes that the files must declare, if they declare any.
        subfolders: further folders to look into.

    Returns:
        The files; ``None`` where there are none.

    Raises:
        DataError: a file is damaged or of another form, or holds another data set.

    Example:
        >>> find_parquet(Path("no such folder")) is None
        True
    """
    splits = _list_parquet(folder, subfolders)
    if not splits:
        return None
    schemas: dict[Path, pa.Schema] = {}
    for path in [path for paths in splits.values() for path in paths]:
        with reading(path, "complete Parquet file"):
            schemas[path] = pq.read_schema(path)
    first = next(iter(schemas.values()))
    label = label or next((name for name in _LABEL_COLUMNS if name in first.names), None)
    images = {path: _image_column(path, schema, label, class_names) for path, schema in schemas.items()}
    return ParquetFiles(splits, images, label, _declared_classes(first, label))


def read_parquet_folder(
    folder: Path, *, conversion: ImageConversion = NO_CONVERSION, n_known: int = 0
) -> tuple[Splits, tuple[str, ...]] | None:
    """Read the files that :func:`find_parquet` finds.

    Args:
        folder: where the files, or a folder ``data`` or ``plain_text`` with them, are.
        conversion: applied to each image.
        n_known: how many classes other examples, which these go with, have.

    Returns:
        The splits, and the class names that the files declare, else the numbers of the classes; no
        names without a column ``label`` or ``fine_label``. ``None`` where there are no such files.

    Raises:
        DataError: a file is damaged or of another form.

    Example:
        >>> read_parquet_folder(Path("no such folder")) is None
        True
    """
    files = find_parquet(folder)
    if files is None:
        return None
    splits = {kind: files.read(kind, conversion) for kind in files.splits}
    return splits, files.class_names or numbered_classes(splits, str(folder), n_known=n_known)


def _list_parquet(folder: Path, subfolders: Sequence[str]) -> dict[str, list[Path]]:
    """List the files by split, and check that none of their shards is missing."""
    for parent in dict.fromkeys(folder / name for name in (*_SUBFOLDERS, *subfolders)):
        files = {kind: sorted(parent.glob(f"{kind}-*.parquet")) for kind in ("train", "validation", "test")}
        for kind, paths in files.items():
            counts = [re.search(r"-of-(\d+)$", path.stem) for path in paths]
            expected = max((int(count[1]) for count in counts if count), default=len(paths))
            if len(paths) != expected:
                raise DataError(f"{parent}: expected {expected} {kind} files, got {len(paths)}; add the missing ones")
        if any(files.values()):
            return {kind: paths for kind, paths in files.items() if paths}
    return {}


def _image_column(path: Path, schema: pa.Schema, label: str | None, class_names: Sequence[str] | None) -> str:
    """Return the name of the column of images, after checking that the file is what is expected."""
    image = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
    if image is None or (label is not None and label not in schema.names):
        expected = f"a column {' or '.join(_IMAGE_COLUMNS)}" + (f" and a column {label}" if label else "")
        raise DataError(f"{path}: expected {expected}, got {', '.join(schema.names)}; give another file")
    kind = schema.field(image).type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise DataError(f"{path}: expected {image} to hold structs with encoded bytes, got {kind}; give another file")
    declared = _declared_classes(schema, label)
    if class_names and declared and [*map(_letters, declared)] != [*map(_letters, class_names)]:
        raise DataError(
            f"{path}: expected the classes {', '.join(class_names[:3])}, ..., got {', '.join(declared[:3])}, ...; "
            "this is another data set"
        )
    return image


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def _declared_classes(schema: pa.Schema, label: str | None) -> tuple[str, ...]:
    """Return the class names that the hub writes into a schema, or none."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return tuple(metadata.get("info", {}).get("features", {}).get(label, {}).get("names") or ())


def _read_column(path: Path, name: str) -> pa.ChunkedArray:
    with reading(path, "complete Parquet file"), pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read([name]).column(name)
