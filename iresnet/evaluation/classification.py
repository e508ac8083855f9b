"""Test accuracy, with its error bar."""

__all__ = ["Accuracy", "classification"]

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from iresnet.classifiers import Classifier, Hybrid
from iresnet.data import Batches, Split
from iresnet.errors import DataError
from iresnet.evaluation.draws import noisy
from iresnet.evaluation.likelihood import Estimate, estimate
from iresnet.evaluation.shares import shared
from iresnet.lipschitz import hold_weights


@dataclass(frozen=True)
class Accuracy:
    """How well a classifier predicts the labels of a split.

    Attributes:
        accuracy: fraction of right predictions.
        interval: its 95 % Wilson interval.
        cross_entropy: -log p(y | x) in nats.
        n: examples.
    """

    accuracy: float
    interval: tuple[float, float]
    cross_entropy: Estimate
    n: int

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"accuracy {self.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, {self.n} examples), "
            f"cross-entropy {self.cross_entropy} nats"
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
    """Evaluate predictions on a labelled split.

    Args:
        model: the classifier; a hybrid sees dequantised data, as in training.
        split: examples with labels.
        levels: values that an integer component takes, none for continuous data.
        batch_size: examples at a time.
        seed: of the dequantisation noise.
        progress: called with the number of examples done after each batch.

    Raises:
        DataError: when the split has no labels, or a single example.
    """
    if split.y is None:
        raise DataError("the split has no labels to predict")
    parameter = next(model.parameters())
    generator = Generator(parameter.device).manual_seed(seed)
    model.eval()

    def evaluate(batch: tuple[Tensor, Tensor]) -> tuple[int, Tensor]:
        x, y = batch
        logits = model(x.to(parameter.dtype))
        return int((logits.argmax(1) == y).sum()), F.cross_entropy(logits, y, reduction="none").double().cpu()

    right, losses = 0, []
    with hold_weights(model):
        for n_right, values in shared(
            _batches(model, split.to(parameter.device), levels, batch_size, generator), evaluate
        ):
            right += n_right
            losses.append(values)
            progress(sum(map(len, losses)))
    return Accuracy(right / len(split), _wilson(right, len(split)), estimate(torch.cat(losses)), len(split))


def _batches(
    model: Classifier | Hybrid, split: Split, levels: int | None, batch_size: int, generator: Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in Batches(split, batch_size, shuffle=False, drop_last=False).epoch():
        assert y is not None
        yield noisy(x, levels, generator, next(model.parameters()).dtype) if isinstance(model, Hybrid) else x, y


def _wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a proportion that stays inside [0, 1] (Wilson 1927, https://doi.org/10.2307/2276774)."""
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)
