"""Data sets by name or path."""

__all__ = ["DATASETS", "load"]

from collections.abc import Callable
from functools import partial
from pathlib import Path

from iresnet.data.dataset import Dataset
from iresnet.data.digits import digits
from iresnet.data.padding import pad_images
from iresnet.data.published import PUBLISHED, load_published
from iresnet.errors import UnknownNameError

#: Loaders by name; each takes the folder of data sets, or ``None``.
DATASETS: dict[str, Callable[[str | Path | None], Dataset]] = {
    "digits": lambda _: digits(),
    **{name: partial(load_published, spec) for name, spec in PUBLISHED.items()},
}


def load(name: str, data_dir: str | Path | None = None, *, pad_to: int | None = None) -> Dataset:
    """Load a data set.

    Args:
        name: a registered name.
        data_dir: a folder of data sets, tried before ``$IRESNET_DATA``, the user cache and the hub.
        pad_to: surround images with zeros up to this height and width.

    Returns:
        The data set on the CPU.

    Raises:
        UnknownNameError: no such name.
        DataError: missing or damaged data.

    Example:
        >>> load("digits").shape
        (1, 8, 8)
    """
    if name not in DATASETS:
        raise UnknownNameError("data set", name, DATASETS)
    dataset = DATASETS[name](data_dir)
    return dataset if pad_to is None else pad_images(dataset, pad_to)
