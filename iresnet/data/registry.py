"""Data sets by name or path."""

__all__ = ["DATASETS", "load"]

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from iresnet.data.columns import Column
from iresnet.data.dataset import Dataset
from iresnet.data.digits import digits
from iresnet.data.padding import pad_images
from iresnet.data.places import roots
from iresnet.data.published import PUBLISHED, load_published
from iresnet.data.streamed import load_streamed
from iresnet.data.toys import TOYS, toy_dataset
from iresnet.data.uci import UCI, load_uci
from iresnet.data.user import Reading, load_path
from iresnet.errors import DataError, UnknownNameError
from iresnet.renamed import accept_old_names

#: Loaders by name; each takes the folder of data sets, or ``None``; those of :data:`UCI` a ``split_seed`` too.
DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": lambda _: digits(),
    **{name: partial(load_published, spec) for name, spec in PUBLISHED.items()},
    **{name: lambda _, name=name: toy_dataset(name) for name in TOYS},
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
        stream: leave the training examples in their Parquet files, see :func:`~iresnet.data.streamed.load_streamed`.
        split_seed: of the random splits of data that have none of their own: UCI tables and your own files.
        image_size: for a folder of images: scale the shorter side to this many pixels, cut out the center.
        mode: for a folder of images: convert to RGB or to gray (L) whatever is neither, or mixed.
        target: for a table: the column of class labels, by name or position.
        columns: for a table: read only these columns, and the target.
        drop: for a table: leave these columns out.
        one_hot: for a table: columns of categories, a feature of zeros and ones for each.
        impute: for a table: put others of the column, drawn at random, in place of missing values.
        dequantize: for a table: add uniform noise of one step to columns of integers or few values.
        keys: for ``.npz``: the names that ``x``, ``y``, ``train_x``, ... have in the file.
        test: for your own data: another file or folder, all of which is the test split.
        like: for a table: columns of another data set, which are read as they were there, and no others.

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
    own = Reading(
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
    )
    if stream:
        _refuse(str(name), own, split_seed, "data that are read in memory, without --data.stream")
        dataset = load_streamed(name, data_dir)
    elif name in UCI:
        _refuse(str(name), own)
        dataset = DATASETS[str(name)](data_dir, split_seed=split_seed)
    elif name in DATASETS:
        _refuse(str(name), own, split_seed)
        dataset = DATASETS[str(name)](data_dir)
    else:
        dataset = load_path(_find(name, data_dir), own, split_seed=split_seed, like=like)
    return dataset if pad_to is None else pad_images(dataset, pad_to)


def _refuse(name: str, own: Reading, split_seed: int = 0, to: str = "a folder or file of your own") -> None:
    for option in [*own.given, *(["split_seed"] if split_seed else [])]:
        flag = option.replace("_", "-")
        raise DataError(f"{name}: {option} applies only to {to}, leave it out (--data.{flag})")


def _find(name: str | Path, data_dir: str | Path | None) -> Path:
    tried = [Path(name).expanduser(), *(root / name for root in roots(data_dir))]
    found = next((path for path in tried if path.exists()), None)
    if found is not None:
        return found
    if isinstance(name, str) and os.sep not in name and not Path(name).suffix:
        raise UnknownNameError("data set", name, DATASETS)
    looked = ", ".join(dict.fromkeys(map(str, tried)))
    raise DataError(
        f"{name}: no such folder or file; looked for {looked}; give its path, or a name: {', '.join(sorted(DATASETS))}"
    )
