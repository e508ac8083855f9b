"""Hold out validation and test examples, the same ones every time."""

__all__ = ["Splits", "held_out_sizes", "hold_out", "numbered_classes"]

from collections.abc import Collection

import torch

from iresnet.data.dataset import Split
from iresnet.data.order import permutation
from iresnet.errors import DataError

#: What a reader returns: ``"train"`` and, where the source has them, ``"validation"`` and ``"test"``.
Splits = dict[str, Split]

_LARGEST_VALIDATION = 5000


def hold_out(splits: Splits, where: str, *, shuffle: bool, seed: int = 0) -> tuple[Split, Split, Split]:
    """Complete a set of splits to train, validation and test.

    Each missing split is a tenth of the training examples, the validation split at most 5000. Given
    splits are never touched.

    Args:
        splits: at least ``"train"``.
        where: what to name in an error.
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
    parts = order.split([n_train, n_validation, n_test])
    taken = {
        kind: _take(train, part) for kind, part in zip(("train", "validation", "test"), parts, strict=True) if len(part)
    }
    complete = {**splits, **taken}
    return complete["train"], complete["validation"], complete["test"]


def held_out_sizes(n: int, given: Collection[str], where: str) -> tuple[int, int, int]:
    """How many of n training examples become the train, validation and test split.

    Args:
        n: training examples in the source.
        given: names of the splits that the source has.
        where: what to name in an error.

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


def _take(split: Split, index: torch.Tensor) -> Split:
    return Split(split.x[index], None if split.y is None else split.y[index])


def numbered_classes(splits: Splits, where: str, *, known: int = 0) -> tuple[str, ...]:
    """Name classes by their numbers, up to the largest label.

    Args:
        splits: with labels or without.
        where: what to name in an error.
        known: how many classes other examples, which these go with, have.

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
    if largest >= max(n, known) > 0:
        raise DataError(
            f"{where}: labels up to {largest} are {largest + 1} classes, more than the {n} training examples; number "
            "the classes 0, 1, 2, ... without gaps"
        )
    return tuple(str(label) for label in range(largest + 1))
