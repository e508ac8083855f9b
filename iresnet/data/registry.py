"""Data sets by name or path."""

__all__ = ["DATASETS", "load"]

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from iresnet.data.dataset import Dataset
from iresnet.data.digits import digits
from iresnet.data.padding import pad_images
from iresnet.data.places import roots
from iresnet.data.published import PUBLISHED, load_published
from iresnet.data.streamed import load_streamed
from iresnet.data.toys import TOYS, toy_dataset
from iresnet.data.uci import UCI, load_uci
from iresnet.data.user import load_path
from iresnet.errors import DataError, UnknownNameError

#: Loaders by name; each takes the folder of data sets, or ``None``; those of :data:`UCI` a ``split_seed`` too.
DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": lambda _: digits(),
    **{name: partial(load_published, spec) for name, spec in PUBLISHED.items()},
    **{name: lambda _, name=name: toy_dataset(name) for name in TOYS},
    **{name: partial(load_uci, name) for name in UCI},
}


def load(
    name: str | Path,
    data_dir: str | Path | None = None,
    *,
    pad_to: int | None = None,
    image_size: int | None = None,
    target: str | int | None = None,
    stream: bool = False,
    split_seed: int = 0,
) -> Dataset:
    """Load a data set by its name, or from the user's own folder or file.

    A published data set is looked for in ``data_dir``, ``$IRESNET_DATA`` and the user cache, in a folder of
    its name or directly, and is downloaded from the hub at a fixed revision if it is in none of them.
    A path may be relative to any of these, too.

    Args:
        name: one of :data:`DATASETS`, or the path of a folder of images, of an array file (``.npz``,
            ``.npy``) or of a table (``.csv``, ``.tsv``, ``.txt``, also with ``.gz`` after it).
        data_dir: a folder of data sets.
        pad_to: surround images with zeros up to this height and width.
        image_size: for a folder of images: scale the shorter side to this many pixels, cut out the centre.
        target: for a table: the column of class labels, by name or position.
        split_seed: of the random splits of data that have none of their own: UCI tables and your own files.
        stream: leave the training examples in their Parquet files, see :func:`~iresnet.data.streamed.load_streamed`.

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
    if stream:
        _refuse(f"{name} (streamed)", image_size=image_size, target=target, split_seed=split_seed or None)
        dataset = load_streamed(name, data_dir)
    elif name in UCI:
        _refuse(str(name), image_size=image_size, target=target)
        dataset = DATASETS[str(name)](data_dir, split_seed=split_seed)
    elif name in DATASETS:
        _refuse(str(name), image_size=image_size, target=target, split_seed=split_seed or None)
        dataset = DATASETS[str(name)](data_dir)
    else:
        path = _find(name, data_dir)
        dataset = load_path(path, image_size=image_size, target=target, split_seed=split_seed)
    return dataset if pad_to is None else pad_images(dataset, pad_to)


def _refuse(name: str, **options: str | int | None) -> None:
    for option, value in options.items():
        if value is not None:
            raise DataError(f"{name}: {option} applies only to a folder or file of your own, leave it out")


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
