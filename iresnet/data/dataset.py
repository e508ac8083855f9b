"""What every data set ends as: three splits of tensors."""

__all__ = ["Dataset", "Split"]

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from iresnet.data.columns import Column
from iresnet.data.order import permutation
from iresnet.errors import DataError

if TYPE_CHECKING:
    from iresnet.data.stream import Stream


@dataclass(frozen=True)
class Split:
    """Examples and, where there are any, their class labels.

    Args:
        x: examples, shape ``(N, *E)``: uint8 for images of gray levels or colors, floating point otherwise.
        y: class labels, shape ``(N,)``, int64, or ``None``.

    Raises:
        DataError: no examples, or labels that do not go with them.

    Example:
        >>> split = Split(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10))
        >>> len(split), split.to("cpu").x.shape
        (10, torch.Size([10, 1, 8, 8]))
    """

    x: Tensor  # (N, *E)
    y: Tensor | None = None  # (N,)

    def __post_init__(self):
        if self.x.ndim < 2 or len(self.x) == 0:
            raise DataError(f"a split needs examples of shape (N, ...), got shape {tuple(self.x.shape)}")
        if not (self.x.dtype == torch.uint8 or self.x.is_floating_point()):
            raise DataError(f"examples must be uint8 or floating point, got {self.x.dtype}")
        if self.y is not None and (self.y.shape != self.x.shape[:1] or self.y.dtype != torch.int64):
            raise DataError(
                f"{len(self.x)} examples need {len(self.x)} int64 labels, got {tuple(self.y.shape)} {self.y.dtype}"
            )

    def __len__(self) -> int:
        return len(self.x)

    def shuffled(self, seed: int, n: int | None = None) -> "Split":
        """Return the examples in a random order, so that the first ones are a fair sample of them.

        Args:
            seed: of the order.
            n: keep so many at most, the first ones; all when None.
        """
        order = torch.from_numpy(permutation(len(self), seed)[:n]).to(self.x.device)
        return Split(self.x[order], None if self.y is None else self.y[order])

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
    """A data set with its fixed train, validation and test split.

    Args:
        name: the registered name, or the file name.
        train: what a model is fitted on.
        validation: what settings are chosen on; never part of ``test``.
        test: what results are reported on.
        levels: number of integer values a component can take (256 for images, 17 for ``digits``), or
            ``None`` for continuous data, which is not dequantized.
        class_names: one name per class, empty without labels.
        source: where it was read from, and whom to credit.
        stream: the training examples, when they are too many for memory; ``train`` is then a sample of them.
        columns: of a table of the user, what its features stand for; empty otherwise.

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
    stream: "Stream | None" = None
    columns: tuple[Column, ...] = ()

    def __post_init__(self):
        for kind, split in (("validation", self.validation), ("test", self.test)):
            if split.x.shape[1:] != self.train.x.shape[1:]:
                got = tuple(split.x.shape[1:])
                raise DataError(f"{self.name}: train examples have shape {self.shape}, {kind} examples {got}")
        if self.columns and (sum(column.width for column in self.columns),) != self.shape:
            raise DataError(f"{self.name}: examples of shape {self.shape} do not go with {len(self.columns)} columns")
        for kind, split in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            _check_labels(f"{self.name}, {kind}", split.y, len(self.class_names))
            _check_levels(f"{self.name}, {kind}", split.x, self.levels)

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
        return f"{self.name}: {sizes}; {'x'.join(map(str, self.shape))}, {levels}, {labels}"


def _check_labels(where: str, y: Tensor | None, n_classes: int) -> None:
    if (y is None) != (n_classes == 0):
        got = "none" if y is None else "some"
        raise DataError(f"{where}: labels and class names go together in every split, got {n_classes} names, {got}")
    if y is not None and not 0 <= int(y.min()) <= int(y.max()) < n_classes:
        raise DataError(f"{where}: labels must lie in 0..{n_classes - 1}, got {int(y.min())}..{int(y.max())}")


def _check_levels(where: str, x: Tensor, levels: int | None) -> None:
    if x.is_floating_point() != (levels is None):
        raise DataError(f"{where}: integer examples have levels and others have none, got {x.dtype} and {levels}")
    if levels is not None and int(x.max()) >= levels:
        raise DataError(f"{where}: values must lie in 0..{levels - 1}, got {int(x.max())}")
