"""Transforms: dequantize and augment batches, and bring other data into the format of a model's own."""

__all__ = [
    "PADDINGS",
    "dequantise",
    "dequantize",
    "flip",
    "match_format",
    "pad_crop",
]

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from iresnet.data.columns import Column, feature_titles, offsets
from iresnet.data.dataset import Dataset, Split
from iresnet.devices import random_device
from iresnet.errors import DataError, UnknownNameError


def dequantize(
    x: Tensor,  # (N, *E)
    *,
    levels: int | None,
    generator: Generator | None = None,
    dtype: torch.dtype = torch.float32,
    shared: bool = False,
) -> Tensor:
    r"""Turn integers into real numbers by adding uniform noise: :math:`x + u,\; u \sim U[0, 1)`.

    A density model :math:`p` of the result bounds the probability mass of the integers,
    :math:`\log P(x) \ge \mathbb{E}_u \log p(x + u)`, so both are in the same units. The result lies in
    ``[0, levels)`` and its floor is ``x``, exactly, in spite of rounding.

    Args:
        x: integers from 0 to ``levels - 1``, or continuous data, shape ``(N, *E)``.
        levels: number of integer values, or ``None`` for continuous data, which is only cast.
        generator: source of the noise; one on the CPU gives the same noise for every device.
        dtype: ``torch.float32`` or ``torch.float64``.
        shared: add the same noise to each example, so that a result does not depend on the rest of its batch.

    Returns:
        The noisy values, shape ``(N, *E)``.

    Raises:
        DataError: integers without ``levels``, real numbers with them, or a type of lower precision.

    Reference:
        A note on the evaluation of generative models, Theis, van den Oord and Bethge, 2016,
        https://arxiv.org/abs/1511.01844

    Example:
        >>> x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
        >>> bool((dequantize(x, levels=256).floor() == x).all())
        True
    """
    if dtype not in (torch.float32, torch.float64):
        raise DataError(f"dequantization needs float32 or float64 to keep the integers apart, got {dtype}")
    if not isinstance(x, Tensor) or x.is_complex() or x.dtype == torch.bool:
        raise DataError(f"dequantization takes tensors of integers, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.is_floating_point() != (levels is None):
        raise DataError(f"integers have levels and real numbers have none, got {x.dtype} and levels={levels}")
    if levels is not None and not (isinstance(levels, int) and 1 <= levels <= 2 / torch.finfo(dtype).eps):
        raise DataError(f"levels are a number that {dtype} keeps apart, at least 1, got {levels}")
    if levels is not None and x.is_cpu and x.numel() and not 0 <= int(x.min()) <= int(x.max()) < levels:
        raise DataError(f"values must lie in 0..{levels - 1}, got {int(x.min())}..{int(x.max())}")
    x = x.to(dtype)
    if levels is None:
        return x
    shape = (1, *x.shape[1:]) if shared else x.shape
    noise = torch.rand(shape, generator=generator, dtype=dtype, device=random_device(generator, x))
    return torch.minimum(x + noise.to(x.device), torch.nextafter(x + 1, x))  # 255 + 0.99999997 would round to 256


def dequantise(*args: Any, **kwargs: Any) -> Tensor:
    """Call :func:`dequantize`, by its name in the last release."""
    warnings.warn("dequantise is now dequantize", DeprecationWarning, stacklevel=2)
    return dequantize(*args, **kwargs)


def flip(x: Tensor, *, generator: Generator | None = None) -> Tensor:  # (N, C, H, W) -> (N, C, H, W)
    """Mirror each image left to right with probability one half.

    Args:
        x: images, shape ``(N, C, H, W)``, of any type.
        generator: source of the coins; one on the CPU gives the same coins for every device.

    Returns:
        The images, shape ``(N, C, H, W)``.

    Raises:
        DataError: ``x`` is not a batch of images.

    Example:
        >>> x = torch.arange(3).repeat(5, 1, 1, 1)
        >>> set(flip(x)[:, 0, 0, 0].tolist()) <= {0, 2}
        True
    """
    _check_images(x)
    coin = torch.rand(len(x), 1, 1, 1, generator=generator, device=random_device(generator, x)) < 0.5
    return torch.where(coin.to(x.device), x.flip(-1), x)


def _zero(i: Tensor, n: int) -> tuple[Tensor, Tensor]:
    return i.clamp(0, n - 1), (i >= 0) & (i < n)


def _reflect(i: Tensor, n: int) -> tuple[Tensor, Tensor]:
    return (n - 1) - ((n - 1) - i.abs()).abs(), torch.ones_like(i, dtype=torch.bool)


def _symmetric(i: Tensor, n: int) -> tuple[Tensor, Tensor]:
    i = torch.where(i < 0, -1 - i, i)
    return torch.where(i >= n, 2 * n - 1 - i, i), torch.ones_like(i, dtype=torch.bool)


#: How the surroundings of an image of size ``n`` are filled in: a map from any position to
#: ``(the position inside that it repeats, whether it is not blank)``.
PADDINGS: dict[str, Callable[[Tensor, int], tuple[Tensor, Tensor]]] = {
    "zero": _zero,
    "reflect": _reflect,
    "symmetric": _symmetric,
}


def pad_crop(
    x: Tensor,  # (N, C, H, W)
    *,
    padding: int = 4,
    mode: str = "zero",
    generator: Generator | None = None,
) -> Tensor:  # (N, C, H, W)
    """Shift each image by its own random amount: a crop of the padded image at its original size.

    Args:
        x: images, shape ``(N, C, H, W)``, of any type.
        padding: pixels added on each side; shifts are uniform on ``-padding..padding`` in both directions.
        mode: what the added pixels are: ``"zero"``, ``"reflect"`` (mirrored, the edge not repeated) or
            ``"symmetric"`` (mirrored, the edge repeated).
        generator: source of the shifts; one on the CPU gives the same shifts for every device.

    Returns:
        The shifted images, shape ``(N, C, H, W)``.

    Raises:
        DataError: ``x`` is not a batch of images, or the padding is negative or larger than the image.
        UnknownNameError: no such mode.

    Example:
        >>> x = torch.full((5, 1, 4, 4), 7, dtype=torch.uint8)
        >>> bool((pad_crop(x, padding=2, mode="symmetric") == 7).all())
        True
    """
    _check_images(x)
    if mode not in PADDINGS:
        raise UnknownNameError("padding mode", mode, PADDINGS)
    n, channels, height, width = x.shape
    if not 0 <= padding < min(height, width):
        raise DataError(f"padding must lie in 0..{min(height, width) - 1} for {height}x{width} images, got {padding}")
    device = random_device(generator, x)
    shift = torch.randint(-padding, padding + 1, (2, n, 1), generator=generator, device=device).to(x.device)
    rows, inside_rows = PADDINGS[mode](shift[0] + torch.arange(height, device=x.device), height)  # (N, H)
    columns, inside_columns = PADDINGS[mode](shift[1] + torch.arange(width, device=x.device), width)  # (N, W)
    sample = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    cropped = x[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return cropped * (inside_rows[:, None, :, None] & inside_columns[:, None, None, :])


def _check_images(x: Tensor) -> None:
    if x.ndim != 4:
        raise DataError(f"augmentation needs images of shape (N, C, H, W), got {tuple(x.shape)}")


# -- other data --------------------------------------------------------------------------------------------------------


def match_format(
    dataset: Dataset, split: str, shape: tuple[int, ...], levels: int | None, columns: Sequence[Column] = ()
) -> tuple[Split, str]:
    r"""Bring a split of a data set into the format that a model was trained on, without labels.

    Larger images are scaled down (each pixel is the mean of an area), smaller ones are padded with zeros; gray ones
    are repeated on the channels of color images; integers are rescaled to the levels; columns of a table get the
    offsets of the model's. Nothing else is changed: data that do not fit then are refused.

    Args:
        dataset: the data.
        split: train, validation or test.
        shape: \*E, the event shape to reach.
        levels: number of values of an integer component, ``None`` for continuous data.
        columns: those of the table that the model was trained on.

    Returns:
        The examples, and a description of the changes; empty without any.

    Raises:
        DataError: when the data cannot be brought into this format.

    Example:
        >>> from iresnet.data.registry import digits
        >>> other, how = match_format(digits(), "test", (1, 12, 12), 256)
        >>> tuple(other.x.shape), how
        ((300, 1, 12, 12), 'padded from 8x8 to 12x12; 17 levels spread over 256')
    """
    _check_format(dataset, shape, levels)
    own, others = feature_titles(columns), feature_titles(dataset.columns)
    if own != others and all(any(column.name for column in of) for of in (columns, dataset.columns)):
        raise DataError(f"the model's data have the features {own}, those of {dataset.name} {others}: give the same")
    notes = []
    if dataset.shape[0] != shape[0]:
        notes.append(f"gray repeated on {shape[0]} channels")
    if dataset.shape[1:] != shape[1:]:
        change = "scaled" if _is_larger(dataset.shape, shape) else "padded"
        notes.append(f"{change} from {_size(dataset.shape[1:])} to {_size(shape[1:])}")
    if dataset.levels != levels:
        notes.append(f"{dataset.levels} levels spread over {levels}")
    x = getattr(dataset, split).x
    if len(shape) == 1:
        x = (x.double() + offsets(dataset.columns, *shape) - offsets(columns, *shape)).to(x.dtype)
    converted = [_convert(chunk, shape, dataset.levels, levels) for chunk in x.split(1000)]
    return Split(torch.cat(converted)), "; ".join(notes)


def _check_format(dataset: Dataset, shape: tuple[int, ...], levels: int | None) -> None:
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
