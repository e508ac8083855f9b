"""Data sets by name or path."""

__all__ = [
    "DATASETS",
    "digits",
    "load",
    "load_streamed",
    "pad_images",
]

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from iresnet.data.columns import Column
from iresnet.data.dataset import Dataset, Split, held_out_sizes, permutation
from iresnet.data.image_folders import ParquetFiles, find_parquet
from iresnet.data.images import Stream, sides_to_pad
from iresnet.data.published import PUBLISHED, UCI, Published, load_published, load_uci
from iresnet.data.storage import candidate_paths, fetch, user_cache
from iresnet.data.toys import CONDITIONAL_TOYS, TOYS, toy_dataset
from iresnet.data.user import ReadOptions, load_path
from iresnet.errors import DataError, UnknownNameError
from iresnet.renamed import accept_old_names

# -- the bundled digits ------------------------------------------------------------------------------------------------


_SIZES = {"train": 1297, "validation": 200, "test": 300}


def digits() -> Dataset:
    """Return the UCI 8x8 handwritten digits, which are part of the package.

    1797 gray images with the 17 values 0 to 16 and ten classes: 1297 to train on, 200 for validation
    and 300 for test. The split is stored with the data, and stratified by class.

    Returns:
        Images of shape ``(1, 8, 8)``, uint8.

    Reference:
        Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning
        Repository, https://doi.org/10.24432/C50P49. License: CC BY 4.0.

    Example:
        >>> print(digits())
        digits: 1297 train, 200 validation, 300 test; 1x8x8, 17 levels, 10 classes
    """
    with (files("iresnet.data") / "digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
        order = stored["order"].astype(np.int64)
        x = torch.from_numpy(stored["x"][order])[:, None]
        y = torch.from_numpy(stored["y"][order].astype(np.int64))
    sizes = list(_SIZES.values())
    return Dataset(
        "digits",
        *(Split(*pair) for pair in zip(x.split(sizes), y.split(sizes), strict=True)),
        levels=17,
        class_names=tuple(str(digit) for digit in range(10)),
        source="bundled: Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, "
        "UCI Machine Learning Repository, CC BY 4.0",
    )


# -- padding -----------------------------------------------------------------------------------------------------------


def pad_images(dataset: Dataset, size: int) -> Dataset:
    """Surround images with zeros, equally on all sides (an odd pixel goes to the right and the bottom).

    Args:
        dataset: images of shape ``(C, H, W)``.
        size: height and width to reach.

    Returns:
        The data set with images of shape ``(C, size, size)``.

    Raises:
        DataError: not images, or images larger than ``size``.

    Example:
        >>> from iresnet.data.registry import digits
        >>> pad_images(digits(), 16).shape
        (1, 16, 16)
    """
    if len(dataset.shape) != 3:
        raise DataError(f"{dataset.name}: only images can be padded, the examples have shape {dataset.shape}")
    _, height, width = dataset.shape
    if size < max(height, width):
        raise DataError(f"{dataset.name}: {height}x{width} images cannot be padded to {size}x{size}")
    sides = sides_to_pad(height, width, size)
    splits = (dataset.train, dataset.validation, dataset.test)
    train, validation, test = (Split(F.pad(split.x, sides), split.y) for split in splits)
    stream = dataset.stream and replace(dataset.stream, sides=sides)
    return replace(dataset, train=train, validation=validation, test=test, stream=stream)


# -- streamed images ---------------------------------------------------------------------------------------------------


_SAMPLE = 5000


def load_streamed(name: str | Path, data_dir: str | Path | None = None) -> Dataset:
    """Open a data set of images in Parquet files, and leave the training examples there.

    Splits without files of their own are the last training examples, as many as for a data set in memory: of published
    data the same ones; files of the user should be in random order. Validation and test examples are in memory. So is a
    sample of at most 5000 training examples, of randomly chosen row groups, in place of the training split.

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
    tried = candidate_paths(data_dir, name, ".") if spec else _user_paths(name, data_dir)
    find = spec.find_parquet if spec else find_parquet
    files = next((files for folder in tried if (files := find(folder))), None)
    if files is None and spec:
        fetch(spec.hub, user_cache() / spec.name)
        files = find(user_cache() / spec.name)
    if files is None:
        looked = ", ".join(map(str, tried))
        raise DataError(f"{name}: --data.stream reads Parquet files of images, and there are none in {looked}")
    return _open_stream(Path(name).name, files, spec)


def _open_stream(name: str, files: ParquetFiles, spec: Published | None) -> Dataset:
    train = tuple(files.splits.get("train", ()))
    folder = next(iter(files.splits.values()))[0].parent
    if not train:
        raise DataError(f"{folder}: expected training examples, found only {', '.join(sorted(files.splits))}")
    image, *others = sorted({files.images[path] for path in train})
    if others:
        raise DataError(f"{folder}: expected one name for the column of images, got {', '.join([image, *others])}")
    class_names = spec.class_names if spec else files.class_names
    if files.label and not class_names:
        raise DataError(f"{folder}: the files declare no class names for {files.label}; add them as the hub does")
    rows = sum(pq.read_metadata(path).num_rows for path in train)
    n, n_validation, _ = held_out_sizes(rows, files.splits, str(folder))
    every = Stream(train, image, files.label, rows, len(class_names))
    stream = replace(every, n=n)
    order = permutation(len(stream.groups), 0).tolist()
    sample = Split(*stream.decode(stream.read(order, 0, min(n, _SAMPLE))))
    held_out = {"validation": (n, n + n_validation), "test": (n + n_validation, rows)}
    validation, test = (
        files.read(kind)
        if kind in files.splits
        else Split(*every.decode(every.read(range(len(every.groups)), start, stop)))
        for kind, (start, stop) in held_out.items()
    )
    source = f"{folder}: {spec.credit}" if spec else str(folder)
    return Dataset(name, sample, validation, test, 256, class_names, source, stream)


# -- by name or path ---------------------------------------------------------------------------------------------------


#: Loaders by name; each takes the folder of data sets, or ``None``; those of :data:`UCI` a ``split_seed`` too.
DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": lambda _: digits(),
    **{name: partial(load_published, spec) for name, spec in PUBLISHED.items()},
    **{name: lambda _, name=name: toy_dataset(name) for name in (*TOYS, *CONDITIONAL_TOYS)},
    **{name: partial(load_uci, name) for name in UCI},
}


@accept_old_names
def load(
    name: str | Path,
    data_dir: str | Path | None = None,
    *,
    pad_to: int | None = None,
    stream: bool = False,
    split_seed: int = 0,
    image_size: int | None = None,
    mode: str | None = None,
    target: str | int | None = None,
    columns: Sequence[str | int] = (),
    drop: Sequence[str | int] = (),
    one_hot: Sequence[str | int] = (),
    impute: bool = False,
    dequantize: bool = False,
    keys: Mapping[str, str] | None = None,
    test: str | Path | None = None,
    context: Sequence[str | int] = (),
    like: Sequence[Column] = (),
) -> Dataset:
    """Load a data set by its name, or from the user's own folder or file.

    A published data set is looked for in ``data_dir``, ``$IRESNET_DATA`` and the user cache, in a folder of
    its name or directly, and is downloaded from the hub at a fixed revision if it is in none of them.
    A path may be relative to any of these, too.

    Args:
        name: one of :data:`DATASETS`, or the path of a folder of images, of an array file (``.npz``,
            ``.npy``) or of a table (``.parquet``, ``.csv``, ``.tsv``, ``.txt``, also with ``.gz`` after it).
        data_dir: a folder of data sets.
        pad_to: surround images with zeros up to this height and width.
        stream: leave the training examples in their Parquet files, see :func:`~iresnet.data.registry.load_streamed`.
        split_seed: of the random splits of UCI tables, and of files of the user that have no splits.
        image_size: for a folder of images: scale the shorter side to this many pixels, cut out the center.
        mode: for a folder of images: convert all of them to RGB or to gray (L).
        target: for a table: the column of class labels, by name or position.
        columns: for a table: read only these columns, and the target.
        drop: for a table: leave these columns out.
        one_hot: for a table: columns of categories, a feature of zeros and ones for each.
        impute: for a table: replace missing values by others of the column, drawn at random.
        dequantize: for a table: add uniform noise of one step to columns of integers or few values.
        keys: for ``.npz``: the names that ``x``, ``y``, ``train_x``, ... have in the file.
        test: for data of the user: another file or folder, all of which is the test split.
        context: for a table: columns that a conditional density of the others is given.
        like: for a table: columns of another data set; these alone are read, in the same way.

    Returns:
        The data set on the CPU.

    Raises:
        UnknownNameError: neither a known name nor a path.
        DataError: missing or damaged data, or an option that does not apply to it.

    Example:
        >>> load("digits", pad_to=16).shape
        (1, 16, 16)
        >>> load("mnits")
        Traceback (most recent call last):
        iresnet.errors.UnknownNameError: unknown data set 'mnits'; did you mean 'mnist'? (valid: 2spirals, ...
    """
    options = ReadOptions(
        image_size=image_size,
        mode=mode,
        target=target,
        columns=tuple(map(str, columns)),
        drop=tuple(map(str, drop)),
        one_hot=tuple(map(str, one_hot)),
        impute=impute,
        dequantize=dequantize,
        keys={key: str(name) for key, name in (keys or {}).items()},
        test=None if test is None else _find(test, data_dir),
        context=tuple(map(str, context)),
    )
    if stream:
        _refuse_options(str(name), options, split_seed, "data that are read in memory, without --data.stream")
        dataset = load_streamed(name, data_dir)
    elif name in UCI:
        _refuse_options(str(name), options)
        dataset = DATASETS[str(name)](data_dir, split_seed=split_seed)
    elif name in DATASETS:
        _refuse_options(str(name), options, split_seed)
        dataset = DATASETS[str(name)](data_dir)
    else:
        dataset = load_path(_find(name, data_dir), options, split_seed=split_seed, like=like)
    return dataset if pad_to is None else pad_images(dataset, pad_to)


def _refuse_options(
    name: str, options: ReadOptions, split_seed: int = 0, applies_to: str = "a folder or file of your own"
) -> None:
    given = options.names_given + ["split_seed"] * (split_seed != 0)
    if given:
        flag = given[0].replace("_", "-")
        raise DataError(f"{name}: {given[0]} applies only to {applies_to}, leave it out (--data.{flag})")


def _user_paths(name: str | Path, data_dir: str | Path | None) -> list[Path]:
    return list(dict.fromkeys([Path(name).expanduser(), *candidate_paths(data_dir, name)]))


def _find(name: str | Path, data_dir: str | Path | None) -> Path:
    tried = _user_paths(name, data_dir)
    found = next((path for path in tried if path.exists()), None)
    if found is not None:
        return found
    if isinstance(name, str) and os.sep not in name and not Path(name).suffix:
        raise UnknownNameError("data set", name, DATASETS)
    looked = ", ".join(map(str, tried))
    raise DataError(
        f"{name}: no such folder or file; looked for {looked}; give its path, or a name: {', '.join(sorted(DATASETS))}"
    )
