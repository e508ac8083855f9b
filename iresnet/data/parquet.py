"""Images in Parquet files, in the layout of the Hugging Face hub."""

__all__ = ["ParquetFiles", "find_parquet", "read_any_parquet", "read_files", "read_parquet"]

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from iresnet.data.dataset import Split, Splits, numbered_classes
from iresnet.data.images import UNCHANGED, Encoded, Form, decode_images, remembered
from iresnet.data.reading import reading
from iresnet.errors import DataError

_IMAGE_COLUMNS = ("img", "image")
_SUBFOLDERS = (".", "data", "plain_text")


def read_parquet(
    folder: Path,
    *,
    label: str | None = "label",
    class_names: Sequence[str] | None = None,
    subfolders: Sequence[str] = (),
    form: Form = UNCHANGED,
) -> Splits | None:
    """Read ``train-*.parquet`` and ``test-*.parquet`` (and ``validation-*.parquet``, if there is one).

    Images are in a column ``img`` or ``image`` of structs with encoded ``bytes`` (PNG, JPEG, WebP, ...).
    Decoding tens of thousands takes a while, so the result is kept in the user cache, see
    :func:`~iresnet.data.images.remembered`.

    Args:
        folder: where the files, or a folder ``data`` or ``plain_text`` with them, are.
        label: column of the class labels, or ``None`` to read images alone.
        class_names: the classes that the files must declare, if they declare any.
        subfolders: further folders to look into.
        form: what to turn the images into.

    Returns:
        The splits, uint8 images of shape ``(C, H, W)``; ``None`` where there are no such files.

    Raises:
        DataError: a file is damaged or of another form, or holds another data set.

    Example:
        >>> read_parquet(Path("no such folder")) is None
        True
    """
    files = _find(folder, subfolders)
    if not files:
        return None
    return {kind: read_files(paths, label, class_names, form=form) for kind, paths in files.items()}


def read_any_parquet(folder: Path, *, form: Form = UNCHANGED, known: int = 0) -> tuple[Splits, tuple[str, ...]] | None:
    """Read such files without knowing what they hold.

    Args:
        folder: where the files, or a folder ``data`` or ``plain_text`` with them, are.
        form: what to turn the images into.
        known: how many classes other examples, which these go with, have.

    Returns:
        The splits and the class names that the files declare, else the numbers of the classes; no
        names without a column ``label`` or ``fine_label``; ``None`` where there are no such files.

    Raises:
        DataError: a file is damaged or of another form.

    Example:
        >>> read_any_parquet(Path("no such folder")) is None
        True
    """
    files = _find(folder, ())
    if not files:
        return None
    schema = _schema(next(iter(files.values()))[0])
    label = _any_label(schema)
    splits = {kind: read_files(paths, label, form=form) for kind, paths in files.items()}
    return splits, _declared_classes(schema, label) or numbered_classes(splits, str(folder), known=known)


@dataclass(frozen=True)
class ParquetFiles:
    """What Parquet files of images hold, as far as their schemas tell.

    Args:
        splits: the files by split.
        image: column of the images.
        label: column of the labels, or ``None``.
        class_names: names of the classes that the files declare, if they do.
    """

    splits: dict[str, list[Path]]
    image: str
    label: str | None
    class_names: tuple[str, ...]


def find_parquet(
    folder: Path, *, label: str | None = None, class_names: Sequence[str] | None = None, subfolders: Sequence[str] = ()
) -> ParquetFiles | None:
    """Look for the files that :func:`read_parquet` reads, without reading their rows.

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
    splits = _find(folder, subfolders)
    if not splits:
        return None
    paths = [path for group in splits.values() for path in group]
    schema = _schema(paths[0])
    label = label or _any_label(schema)
    images = [_image_column(path, label, class_names) for path in paths]
    if len(set(images)) > 1:
        raise DataError(f"{folder}: expected one name for the column of images, got {', '.join(sorted(set(images)))}")
    return ParquetFiles(splits, images[0], label, _declared_classes(schema, label))


def _any_label(schema: pa.Schema) -> str | None:
    return next((name for name in ("label", "fine_label") if name in schema.names), None)


def _find(folder: Path, subfolders: Sequence[str]) -> dict[str, list[Path]]:
    for place in dict.fromkeys(folder / name for name in (*_SUBFOLDERS, *subfolders)):
        files = {kind: sorted(place.glob(f"{kind}-*.parquet")) for kind in ("train", "validation", "test")}
        if any(files.values()):
            _check_complete(place, files)
            return {kind: paths for kind, paths in files.items() if paths}
    return {}


def _check_complete(place: Path, files: dict[str, list[Path]]) -> None:
    for kind, paths in files.items():
        parts = [re.search(r"-of-(\d+)$", path.stem) for path in paths]
        expected = max((int(part[1]) for part in parts if part), default=len(paths))
        if len(paths) != expected:
            raise DataError(f"{place}: expected {expected} {kind} files, got {len(paths)}; add the missing ones")


def read_files(
    paths: Sequence[Path],
    label: str | None,
    class_names: Sequence[str] | None = None,
    *,
    form: Form = UNCHANGED,
) -> Split:
    """Read all rows of files into memory; see :func:`read_parquet`."""
    columns = [_image_column(path, label, class_names) for path in paths]
    n = sum(pq.read_metadata(path).num_rows for path in paths)
    if n == 0:
        raise DataError(f"{paths[0]}: expected images, got an empty table; get the file again")

    def decode() -> dict[str, np.ndarray]:
        encoded = [image for path, column in zip(paths, columns, strict=True) for image in _images(path, column)]
        return {"x": decode_images(encoded, form=form)}

    x = remembered(f"parquet {paths[0].resolve()} {form}", paths, n, decode)["x"]
    return Split(torch.from_numpy(x), None if label is None else torch.cat([_labels(path, label) for path in paths]))


def _image_column(path: Path, label: str | None, class_names: Sequence[str] | None) -> str:
    """Return the name of the column of images, after checking that the file is what is expected."""
    schema = _schema(path)
    image = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
    if image is None or (label is not None and label not in schema.names):
        expected = f"a column {' or '.join(_IMAGE_COLUMNS)}" + (f" and a column {label}" if label else "")
        raise DataError(f"{path}: expected {expected}, got {', '.join(schema.names)}; give another file")
    kind = schema.field(image).type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise DataError(f"{path}: expected {image} to hold structs with encoded bytes, got {kind}; give another file")
    if class_names and (declared := _declared_classes(schema, label)):
        _check_classes(path, declared, class_names)
    return image


def _schema(path: Path) -> pa.Schema:
    with reading(path, "complete Parquet file"):
        return pq.read_schema(path)


def _declared_classes(schema: pa.Schema, label: str | None) -> tuple[str, ...]:
    """Return the class names that the hub writes into a schema, or none."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return tuple(metadata.get("info", {}).get("features", {}).get(label, {}).get("names") or ())


def _check_classes(path: Path, declared: Sequence[str], expected: Sequence[str]) -> None:
    if [_plain(name) for name in declared] != [_plain(name) for name in expected]:
        raise DataError(
            f"{path}: expected the classes {', '.join(expected[:3])}, ..., got {', '.join(declared[:3])}, ...; "
            "this is another data set"
        )


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def _images(path: Path, column: str) -> list[Encoded]:
    structs = _column(path, column)
    content = pa.chunked_array([chunk.field("bytes") for chunk in structs.chunks], pa.binary())
    if content.null_count:
        raise DataError(f"{path}: expected the bytes of every image, {content.null_count} are missing")
    return [Encoded(f"{path}, row {i}", scalar.as_py) for i, scalar in enumerate(content)]


def _labels(path: Path, label: str) -> torch.Tensor:
    column = _column(path, label)
    if not pa.types.is_integer(column.type) or column.null_count:
        raise DataError(f"{path}: expected an integer label for every image, got {column.type}")
    return torch.tensor(column.to_numpy().astype(np.int64))


def _column(path: Path, name: str) -> pa.ChunkedArray:
    with reading(path, "complete Parquet file"), pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read([name]).column(name)
