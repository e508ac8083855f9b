"""Other data in the form of a model's own."""

__all__ = ["alike"]

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from iresnet.data.columns import Column, feature_titles, offsets
from iresnet.data.dataset import Dataset, Split
from iresnet.errors import DataError


def alike(
    dataset: Dataset, split: str, shape: tuple[int, ...], levels: int | None, columns: Sequence[Column] = ()
) -> tuple[Split, str]:
    r"""Bring a split of a data set into the form that a model was trained on, without labels.

    Larger images are scaled down (each pixel is the mean of an area), smaller ones are surrounded with zeros; gray ones
    are repeated on the channels of color images; integer values are spread over the levels; of columns of a table is
    subtracted what it was of the model's. Nothing else is changed: what does not fit then is refused.

    Args:
        dataset: the data.
        split: train, validation or test.
        shape: \*E, the event shape to reach.
        levels: values that an integer component takes, none for continuous data.
        columns: those of the table that the model was trained on.

    Returns:
        The examples, and what was done to them, in words; empty when nothing was.

    Raises:
        DataError: when the data cannot be brought into this form.

    Example:
        >>> from iresnet.data.digits import digits
        >>> other, how = alike(digits(), "test", (1, 12, 12), 256)
        >>> tuple(other.x.shape), how
        ((300, 1, 12, 12), 'padded from 8x8 to 12x12; 17 levels spread over 256')
    """
    _check(dataset, shape, levels)
    own, others = feature_titles(columns), feature_titles(dataset.columns)
    if own != others and all(any(column.name for column in of) for of in (columns, dataset.columns)):
        raise DataError(f"the model's data have the features {own}, those of {dataset.name} {others}: give the same")
    notes = []
    if dataset.shape[0] != shape[0]:
        notes.append(f"gray repeated on {shape[0]} channels")
    if dataset.shape[1:] != shape[1:]:
        way = "scaled" if _is_larger(dataset.shape, shape) else "padded"
        notes.append(f"{way} from {_size(dataset.shape[1:])} to {_size(shape[1:])}")
    if dataset.levels != levels:
        notes.append(f"{dataset.levels} levels spread over {levels}")
    x = getattr(dataset, split).x
    if len(shape) == 1:
        x = (x.double() + offsets(dataset.columns, *shape) - offsets(columns, *shape)).to(x.dtype)
    parts = x.split(1000)
    return Split(torch.cat([_convert(x, shape, dataset.levels, levels) for x in parts])), "; ".join(notes)


def _check(dataset: Dataset, shape: tuple[int, ...], levels: int | None) -> None:
    what = f"the model's data have the shape {_size(shape)}, those of {dataset.name} {_size(dataset.shape)}"
    if (dataset.levels is None) != (levels is None):
        kinds = ("continuous", "integers") if levels is None else ("integers", "continuous")
        raise DataError(
            f"the model's data are {kinds[0]}, those of {dataset.name} are {kinds[1]}: give data of one kind"
        )
    if len(dataset.shape) != len(shape) or (len(shape) == 1 and dataset.shape != shape):
        raise DataError(f"{what}: give data of the same kind and number of features")
    if len(shape) != 3:
        return
    if dataset.shape[0] not in (1, shape[0]):
        raise DataError(f"{what}: give gray images" + (f", or such of {shape[0]} channels" if shape[0] > 1 else ""))
    (height, width), (rows, columns) = dataset.shape[1:], shape[1:]
    if _is_larger(dataset.shape, shape) and height * columns != width * rows:
        raise DataError(f"{what}: scaling would distort them; crop them first")


def _is_larger(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return any(a > b for a, b in zip(shape[1:], other[1:], strict=True))


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _convert(x: Tensor, shape: tuple[int, ...], old: int | None, new: int | None) -> Tensor:  # (N, *E) -> (N, *F)
    if len(shape) != 3:
        return x
    height, width = x.shape[2:]
    rows, columns = shape[1:]
    dtype, scaled = x.dtype, height > rows or width > columns
    if scaled:
        x = F.interpolate(x.double(), (rows, columns), mode="area")
    elif (height, width) != (rows, columns):
        top, left = (rows - height) // 2, (columns - width) // 2
        x = F.pad(x, (left, columns - width - left, top, rows - height - top))
    if old is not None and new is not None and (scaled or old != new):
        x = ((x.double() + 0.5) * (new / old)).floor().clamp(0, new - 1)
    return x.to(dtype).expand(-1, shape[0], -1, -1)
