"""Pad the images of a data set to a larger square."""

__all__ = ["pad_images"]

from dataclasses import replace

import torch.nn.functional as F

from iresnet.data.dataset import Dataset, Split
from iresnet.errors import DataError


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
        >>> from iresnet.data.digits import digits
        >>> pad_images(digits(), 16).shape
        (1, 16, 16)
    """
    if len(dataset.shape) != 3:
        raise DataError(f"{dataset.name}: only images can be padded, the examples have shape {dataset.shape}")
    _, height, width = dataset.shape
    if size < max(height, width):
        raise DataError(f"{dataset.name}: {height}x{width} images cannot be padded to {size}x{size}")
    top, left = (size - height) // 2, (size - width) // 2
    sides = (left, size - width - left, top, size - height - top)

    def pad(split: Split) -> Split:
        return Split(F.pad(split.x, sides), split.y)

    splits = {"train": pad(dataset.train), "validation": pad(dataset.validation), "test": pad(dataset.test)}
    return replace(dataset, **splits, stream=dataset.stream and replace(dataset.stream, sides=sides))
