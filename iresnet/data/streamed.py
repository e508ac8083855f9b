"""Data sets whose training examples stay in their Parquet files."""

__all__ = ["load_streamed"]

from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from iresnet.data.dataset import Dataset, Split
from iresnet.data.hub import fetch
from iresnet.data.order import permutation
from iresnet.data.parquet import ParquetFiles, find_parquet, read_files, read_parquet
from iresnet.data.places import roots, user_cache
from iresnet.data.published import PUBLISHED, Published
from iresnet.data.split import held_out_sizes
from iresnet.data.stream import Stream
from iresnet.errors import DataError

_SAMPLE = 5000


def load_streamed(name: str | Path, data_dir: str | Path | None = None) -> Dataset:
    """Find a published data set, or a folder, of Parquet files of images, and leave its training examples there.

    Splits without files of their own are the last training examples, as many as for a data set in memory: of published
    data the same ones; files of your own should be in random order. Validation and test examples are in memory, and so
    is a sample of at most 5000 training examples, of whole row groups, in place of the training split.

    Args:
        name: a published data set, or the path of a folder; it may be relative to the folders of data sets.
        data_dir: a folder of data sets.

    Returns:
        The data set, with its ``stream``.

    Raises:
        DataError: there are no such files, or they are damaged or of another form.

    Example:
        >>> load_streamed("digits")
        Traceback (most recent call last):
        iresnet.errors.DataError: digits: --data.stream reads Parquet files of images, and there are none in ...
    """
    spec = PUBLISHED.get(str(name))
    tried = [folder for root in roots(data_dir) for folder in (root / name, root)] if spec else _places(name, data_dir)
    files = next((files for folder in tried if (files := _look(folder, spec))), None)
    if files is None and spec:
        fetch(spec.hub, user_cache() / spec.name)
        files = _look(user_cache() / spec.name, spec)
    if files is None:
        looked = ", ".join(dict.fromkeys(map(str, tried)))
        raise DataError(f"{name}: --data.stream reads Parquet files of images, and there are none in {looked}")
    return _open(Path(name).name, files, spec)


def _places(name: str | Path, data_dir: str | Path | None) -> list[Path]:
    return [Path(name).expanduser(), *(root / name for root in roots(data_dir))]


def _look(folder: Path, spec: Published | None) -> ParquetFiles | None:
    """The Parquet files in a folder; of published data with the options of its reader."""
    options = {}
    for reader in spec.readers if spec else ():
        if isinstance(reader, partial) and reader.func is read_parquet:
            options = {"label": "label", **reader.keywords}
    return find_parquet(folder, **options)


def _open(name: str, files: ParquetFiles, spec: Published | None) -> Dataset:
    train = tuple(files.splits.get("train", ()))
    folder = next(iter(files.splits.values()))[0].parent
    if not train:
        raise DataError(f"{folder}: expected training examples, found only {', '.join(sorted(files.splits))}")
    class_names = spec.class_names if spec else files.class_names
    if files.label and not class_names:
        raise DataError(f"{folder}: the files declare no class names for {files.label}; add them as the hub does")
    rows = sum(pq.read_metadata(path).num_rows for path in train)
    n, n_validation, _ = held_out_sizes(rows, files.splits, str(folder))
    every = Stream(train, files.image, files.label, rows, len(class_names))
    stream = Stream(train, files.image, files.label, n, len(class_names))
    held_out = {"validation": (n, n + n_validation), "test": (n + n_validation, rows)}

    def part(kind: str) -> Split:
        paths = files.splits.get(kind)
        return every.split(*held_out[kind]) if paths is None else read_files(paths, files.label, class_names)

    sample = stream.split(0, min(n, _SAMPLE), permutation(len(stream.groups), 0).tolist())
    source = f"{folder}: {spec.credit}" if spec else str(folder)
    return Dataset(name, sample, part("validation"), part("test"), 256, class_names, source, stream)
