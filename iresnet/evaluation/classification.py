"""Test accuracy, calibration and likelihood of labels, with error bars."""

__all__ = ["Accuracy", "ClassAccuracy", "classification", "classifier_input"]

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from iresnet.classifiers import Classifier, Hybrid
from iresnet.data import Batches, Split
from iresnet.errors import DataError
from iresnet.evaluation.calibration import Calibration, calibration
from iresnet.evaluation.draws import noisy
from iresnet.evaluation.intervals import wilson
from iresnet.evaluation.likelihood import Estimate, estimate
from iresnet.evaluation.shares import shared
from iresnet.lipschitz import hold_weights


@dataclass(frozen=True)
class ClassAccuracy:
    """How well the examples of one class are predicted.

    Attributes:
        n: examples of the class.
        accuracy: fraction of right predictions, None without examples.
        interval: its 95 % Wilson interval.
    """

    n: int
    accuracy: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Accuracy:
    """How well a classifier predicts the labels of a split.

    Attributes:
        accuracy: fraction of right predictions.
        interval: its 95 % Wilson interval.
        cross_entropy: negative log-likelihood of the labels, -log p(y | x) in nats.
        n: examples.
        calibration: whether it is right as often as it says.
        classes: one entry a class.
        confusion: how often examples of a class (row) were taken for a class (column).
    """

    accuracy: float
    interval: tuple[float, float]
    cross_entropy: Estimate
    n: int
    calibration: Calibration
    classes: tuple[ClassAccuracy, ...]
    confusion: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"accuracy {self.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, {self.n} examples), "
            f"negative log-likelihood {self.cross_entropy} nats"
        )


@torch.no_grad()
def classification(
    model: Classifier | Hybrid,
    split: Split,
    *,
    levels: int | None,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Accuracy:
    """Evaluate predictions on a labeled split.

    Args:
        model: the classifier; a hybrid sees dequantized data, as in training.
        split: examples with labels.
        levels: values that an integer component takes, none for continuous data.
        batch_size: examples at a time.
        seed: of the dequantization noise.
        progress: called with the number of examples done after each batch.

    Raises:
        DataError: when the split has no labels, or a single example.
    """
    if split.y is None:
        raise DataError("the split has no labels to predict")
    parameter = next(model.parameters())
    generator = Generator().manual_seed(seed)
    batches = Batches(split.to(parameter.device), batch_size, shuffle=False, drop_last=False).epoch()
    drawn = (classifier_input(model, x, levels, generator) for x, _ in batches)
    model.eval()
    found = []
    with hold_weights(model):
        for logits in shared(drawn, lambda x: model(x).double().cpu()):
            found.append(logits)
            progress(sum(map(len, found)))
    return _accuracy(torch.cat(found), split.y.cpu())


def classifier_input(model: Classifier | Hybrid, x: Tensor, levels: int | None, generator: Generator) -> Tensor:
    """Data as a classifier sees them: without noise, but for hybrids."""
    dtype = next(model.parameters()).dtype
    return noisy(x, levels, generator, dtype) if isinstance(model, Hybrid) else x.to(dtype)


def _accuracy(logits: Tensor, y: Tensor) -> Accuracy:  # (N, n_classes), (N,)
    n, n_classes = logits.shape
    cross_entropy = estimate(F.cross_entropy(logits, y, reduction="none"))
    confidence, predicted = logits.softmax(1).max(1)
    pairs = torch.bincount(n_classes * y + predicted, minlength=n_classes**2).view(n_classes, n_classes)
    accuracy = int(pairs.diagonal().sum()) / n
    return Accuracy(
        accuracy,
        wilson(accuracy, n),
        cross_entropy,
        n,
        calibration(confidence, predicted == y),
        tuple(_of_class(int(row.sum()), int(row[i])) for i, row in enumerate(pairs)),
        tuple(tuple(row) for row in pairs.tolist()),
    )


def _of_class(n: int, right: int) -> ClassAccuracy:
    return ClassAccuracy(n, right / n, wilson(right / n, n)) if n else ClassAccuracy(0, None, None)
