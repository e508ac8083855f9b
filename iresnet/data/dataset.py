"""Data sets: train, validation and test splits of tensors, held out the same way every time."""

__all__ = [
    "Dataset",
    "Split",
    "Splits",
    "held_out_sizes",
    "hold_out",
    "numbered_classes",
    "permutation",
]

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from iresnet.data.columns import Column
from iresnet.data.images import Stream
from iresnet.errors import DataError

# -- permutations ------------------------------------------------------------------------------------------------------


_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


def permutation(n: int, *key: int) -> np.ndarray:  # (n,) int64
    """Return a pseudo-random order of ``range(n)`` that depends on ``n`` and ``key`` alone.

    Position ``i`` gets the 64-bit hash of ``(key, i)`` and positions are sorted by their hash. No
    random generator is involved, so a data split or the order of an epoch outlives library upgrades.

    Args:
        n: how many items.
        key: integers that select the order, such as a seed and an epoch.

    Returns:
        The order, shape ``(n,)``.

    Reference:
        Fast Splittable Pseudorandom Number Generators, Steele, Lea and Flood, 2014,
        https://doi.org/10.1145/2660193.2660195 (the finalizer used as the hash).

    Example:
        >>> permutation(5, 0).tolist()
        [2, 0, 3, 1, 4]
        >>> sorted(permutation(1000, 7, 3).tolist()) == list(range(1000))
        True
    """
    state = 0
    for k in key:
        state = int(_mix(np.array([(state + _GOLDEN + int(k)) & _MASK], dtype=np.uint64))[0])
    hashes = _mix(np.uint64(state) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
    return np.argsort(hashes, kind="stable")


def _mix(z: np.ndarray) -> np.ndarray:  # uint64, wraps modulo 2^64
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


# -- splits and data sets ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Examples of one split and, where there are any, their class labels or contexts.

    Args:
        x: examples, shape ``(N, *E)``: uint8 for images of gray levels or colors, floating point otherwise.
        y: class labels, shape ``(N,)``, int64; or what a conditional density is given, shape ``(N, K)``, floating
            point; or ``None``.

    Raises:
        DataError: no examples, or labels that do not go with them.

    Example:
        >>> split = Split(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10))
        >>> len(split), split.to("cpu").x.shape
        (10, torch.Size([10, 1, 8, 8]))
    """

    x: Tensor  # (N, *E)
    y: Tensor | None = None  # (N,) or (N, K)

    def __post_init__(self):
        if self.x.ndim < 2 or len(self.x) == 0:
            raise DataError(f"a split needs examples of shape (N, ...), got shape {tuple(self.x.shape)}")
        if not (self.x.dtype == torch.uint8 or self.x.is_floating_point()):
            raise DataError(f"examples must be uint8 or floating point, got {self.x.dtype}")
        if self.y is None:
            return
        is_labels = self.y.shape == self.x.shape[:1] and self.y.dtype == torch.int64
        is_context = self.y.ndim == 2 and len(self.y) == len(self.x) and self.y.is_floating_point()
        if not is_labels and not is_context:
            raise DataError(
                f"{len(self.x)} examples need {len(self.x)} int64 labels, or rows of real numbers as contexts, got "
                f"{tuple(self.y.shape)} {self.y.dtype}"
            )

    def __len__(self) -> int:
        return len(self.x)

    def shuffled(self, seed: int, n: int | None = None) -> "Split":
        """Return the examples in a random order, so that the first ones are a fair sample of them.

        Args:
            seed: of the order.
            n: keep so many at most, the first ones; all when None.
        """
        return self.take(torch.from_numpy(permutation(len(self), seed)[:n]).to(self.x.device))

    def take(self, index: Tensor) -> "Split":  # (n,) int64
        """Return the examples at these positions, in their order."""
        return Split(self.x[index], None if self.y is None else self.y[index])

    def split(self, size: int) -> "Iterator[Split]":
        """Yield the examples in order, so many at a time."""
        y = [None] * len(self) if self.y is None else self.y.split(size)
        for x, some in zip(self.x.split(size), y, strict=False):
            yield Split(x, some)

    def to(self, device: torch.device | str) -> "Split":
        """Return the split with its tensors on ``device``.

        Args:
            device: where the tensors shall live.

        Returns:
            A split; tensors that are already there are not copied.
        """
        return Split(self.x.to(device), None if self.y is None else self.y.to(device))


@dataclass(frozen=True)
class Dataset:
    """Data set with its fixed train, validation and test split.

    Args:
        name: the registered name, or the file name.
        train: examples to fit models on.
        validation: examples to choose settings on; never part of ``test``.
        test: examples to report results on.
        levels: number of integer values a component can take (256 for images, 17 for ``digits``), or
            ``None`` for continuous data, which is not dequantized.
        class_names: one name per class, empty without labels.
        source: where it was read from, and whom to credit.
        stream: the training examples, when they are too many for memory; ``train`` is then a sample of them.
        columns: the columns of the user's table that the features come from; empty otherwise.
        context: the columns that ``y`` comes from, where it is what a conditional density is given.

    Raises:
        DataError: splits of different shapes, or labels outside ``class_names``.

    Example:
        >>> x = torch.zeros(6, 3, 4, 4, dtype=torch.uint8)
        >>> dataset = Dataset("black", Split(x), Split(x[:2]), Split(x[:3]), levels=256)
        >>> dataset.shape, dataset.n_classes
        ((3, 4, 4), 0)
        >>> print(dataset)
        black: 6 train, 2 validation, 3 test; 3x4x4, 256 levels, no labels
    """

    name: str
    train: Split
    validation: Split
    test: Split
    levels: int | None
    class_names: tuple[str, ...] = ()
    source: str = ""
    stream: Stream | None = None
    columns: tuple[Column, ...] = ()
    context: tuple[Column, ...] = ()

    def __post_init__(self):
        for kind, split in (("validation", self.validation), ("test", self.test)):
            if split.x.shape[1:] != self.train.x.shape[1:]:
                got = tuple(split.x.shape[1:])
                raise DataError(f"{self.name}: train examples have shape {self.shape}, {kind} examples {got}")
        if self.columns and (sum(column.width for column in self.columns),) != self.shape:
            raise DataError(f"{self.name}: examples of shape {self.shape} do not go with {len(self.columns)} columns")
        for kind, split in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            self._check_values(f"{self.name}, {kind}", split)

    def _check_values(self, where: str, split: Split) -> None:
        x, y, n = split.x, split.y, self.n_classes
        if self.context:
            self._check_context(where, y)
        elif (y is None) != (n == 0):
            got = "none" if y is None else "some"
            raise DataError(f"{where}: labels and class names go together in every split, got {n} names, {got}")
        elif y is not None and not 0 <= int(y.min()) <= int(y.max()) < n:
            raise DataError(f"{where}: labels must lie in 0..{n - 1}, got {int(y.min())}..{int(y.max())}")
        if x.is_floating_point() != (self.levels is None):
            raise DataError(
                f"{where}: integer examples have levels and others have none, got {x.dtype} and {self.levels}"
            )
        if self.levels is not None and int(x.max()) >= self.levels:
            raise DataError(f"{where}: values must lie in 0..{self.levels - 1}, got {int(x.max())}")

    def _check_context(self, where: str, y: Tensor | None) -> None:
        width = sum(column.width for column in self.context)
        if self.n_classes or y is None or y.shape[1:] != (width,):
            got = "none" if y is None else f"shape {tuple(y.shape)}"
            raise DataError(f"{where}: expected contexts of {width} numbers and no classes, got {got}")
        if not bool(torch.isfinite(y).all()):
            row = int((~torch.isfinite(y)).any(1).nonzero()[0])
            raise DataError(
                f"{where}: a context is missing or not finite in row {row + 1}; fill it in, or drop the row"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example: ``(C, H, W)`` or ``(D,)``."""
        return tuple(self.train.x.shape[1:])

    @property
    def n_classes(self) -> int:
        """Number of classes, 0 without labels."""
        return len(self.class_names)

    def __str__(self) -> str:
        sizes = f"{len(self.stream or self.train)} train, {len(self.validation)} validation, {len(self.test)} test"
        levels = "continuous" if self.levels is None else f"{self.levels} levels"
        labels = f"{self.n_classes} classes" if self.n_classes else "no labels"
        if self.context:
            labels = f"given {', '.join(column.title for column in self.context)}"
        return f"{self.name}: {sizes}; {'x'.join(map(str, self.shape))}, {levels}, {labels}"


# -- held-out examples -------------------------------------------------------------------------------------------------


#: Splits of a source: ``"train"`` and, where it has them, ``"validation"`` and ``"test"``.
Splits = dict[str, Split]

_LARGEST_VALIDATION = 5000


def hold_out(splits: Splits, where: str, *, shuffle: bool, seed: int = 0) -> tuple[Split, Split, Split]:
    """Complete a set of splits to train, validation and test.

    Each missing split is a tenth of the training examples, the validation split at most 5000. Given
    splits are never touched.

    Args:
        splits: at least ``"train"``.
        where: name of the data in error messages.
        shuffle: take the held-out examples from a fixed random order, for sources that are sorted by
            class; otherwise they are the last ones.
        seed: of that order.

    Returns:
        Train, validation and test.

    Raises:
        DataError: no training examples, or too few to hold any out.

    Example:
        >>> train, validation, test = hold_out({"train": Split(torch.arange(30.0)[:, None])}, "x", shuffle=False)
        >>> len(train), validation.x.flatten().tolist(), test.x.flatten().tolist()
        (24, [24.0, 25.0, 26.0], [27.0, 28.0, 29.0])
    """
    if "train" not in splits:
        raise DataError(f"{where}: expected training examples, found only {', '.join(sorted(splits)) or 'none'}")
    train = splits["train"]
    n = len(train)
    n_train, n_validation, n_test = held_out_sizes(n, splits, where)
    order = torch.from_numpy(permutation(n, seed)) if shuffle and n_train < n else torch.arange(n)
    chunks = dict(zip(("train", "validation", "test"), order.split([n_train, n_validation, n_test]), strict=True))
    complete = {**splits, **{kind: train.take(index) for kind, index in chunks.items() if len(index)}}
    return complete["train"], complete["validation"], complete["test"]


def held_out_sizes(n: int, given: Collection[str], where: str) -> tuple[int, int, int]:
    """Return how many of n training examples become the train, validation and test split.

    Args:
        n: training examples in the source.
        given: names of the splits that the source has.
        where: name of the data in error messages.

    Raises:
        DataError: too few to hold any out.

    Example:
        >>> held_out_sizes(50_000, ["train", "test"], "x")
        (45000, 5000, 0)
    """
    n_test = 0 if "test" in given else max(1, n // 10)
    n_validation = 0 if "validation" in given else min(max(1, n // 10), _LARGEST_VALIDATION)
    n_train = n - n_validation - n_test
    if n_train < 1:
        raise DataError(f"{where}: {n} examples are too few for a train, validation and test split; at least 3 needed")
    return n_train, n_validation, n_test


def numbered_classes(splits: Splits, where: str, *, n_known: int = 0) -> tuple[str, ...]:
    """Name classes by their numbers, up to the largest label.

    Args:
        splits: with labels or without.
        where: name of the data in error messages.
        n_known: how many classes other examples, which these go with, have.

    Returns:
        ``"0"``, ``"1"`` and so on; nothing without labels.

    Raises:
        DataError: more classes than examples, so that labels are no numbers of classes.

    Example:
        >>> numbered_classes({"train": Split(torch.zeros(3, 2), torch.tensor([0, 2, 0]))}, "x")
        ('0', '1', '2')
    """
    largest = max((int(split.y.max()) for split in splits.values() if split.y is not None), default=-1)
    n = len(splits["train"]) if "train" in splits else 0
    if largest >= max(n, n_known) > 0:
        raise DataError(
            f"{where}: labels up to {largest} are {largest + 1} classes, more than the {n} training examples; number "
            "the classes 0, 1, 2, ... without gaps"
        )
    return tuple(str(label) for label in range(largest + 1))
