"""The bundled data set: 1797 handwritten digits of 8x8 pixels."""

__all__ = ["digits"]

from importlib.resources import files

import numpy as np
import torch

from iresnet.data.dataset import Dataset, Split

_SIZES = {"train": 1297, "validation": 200, "test": 300}


def digits() -> Dataset:
    """Return the UCI 8x8 handwritten digits, which are part of the package.

    1797 gray images with the 17 values 0 to 16 and ten classes: 1297 to train on, 200 for validation
    and 300 for test. The split is stored with the data; every class has its share of every part.

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
    parts = [Split(*part) for part in zip(x.split(sizes), y.split(sizes), strict=True)]
    return Dataset(
        "digits",
        *parts,
        levels=17,
        class_names=tuple(str(digit) for digit in range(10)),
        source="bundled: Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, 1998, "
        "UCI Machine Learning Repository, CC BY 4.0",
    )
