"""Accuracy, calibration and likelihood of labels, with error bars."""

__all__ = [
    "Accuracy",
    "Bin",
    "Calibration",
    "ClassAccuracy",
    "calibration",
    "classification",
    "classifier_input",
    "wilson",
]

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from iresnet.classifiers import Classifier, Hybrid
from iresnet.data import Batches, Split
from iresnet.errors import DataError
from iresnet.evaluation.draws import noisy, shared
from iresnet.evaluation.likelihood import Estimate, estimate
from iresnet.lipschitz import hold_weights

# -- intervals ---------------------------------------------------------------------------------------------------------


def wilson(proportion: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Interval of a proportion that stays inside [0, 1].

    Args:
        proportion: the share of n trials that succeeded.
        n: how many trials.
        z: 1.96 for 95 %.

    Reference:
        Probable Inference, the Law of Succession, and Statistical Inference, Wilson 1927,
        https://doi.org/10.2307/2276774

    Example:
        >>> [round(end, 3) for end in wilson(0.5, 100)]
        [0.404, 0.596]
    """
    p = proportion
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, center - half), min(1.0, center + half)


# -- calibration -------------------------------------------------------------------------------------------------------


REPETITIONS = 500
"""Simulated and resampled sets of examples, from which error bar and chance level come."""


@dataclass(frozen=True)
class Bin:
    """The predictions whose confidence lies in one interval.

    Attributes:
        low: confidences are above this (or 0),
        high: and at most this.
        n: how many predictions.
        confidence: their mean confidence, None without any.
        accuracy: the share that is right, None without any.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """How far confidences are from the truth.

    Attributes:
        ece: expected calibration error: distance of accuracy and confidence in a bin, averaged over the predictions.
        half_width: 1.96 standard errors of it, by resampling the examples.
        by_chance: what a calibrated classifier with these confidences would show on average, since few examples in a
            bin are never right exactly as often as expected: the bias of the error near 0.
        by_chance_95: what it would exceed in 5 % of all cases: an error above this is miscalibration.
        bins: of equal width, the reliability diagram.
    """

    ece: float
    half_width: float
    by_chance: float
    by_chance_95: float
    bins: tuple[Bin, ...]

    def __str__(self) -> str:
        if math.isnan(self.ece):
            return "no predictions, and so no calibration error"
        verdict = "miscalibrated" if self.ece > self.by_chance_95 else "no sign of miscalibration"
        return (
            f"expected calibration error {self.ece:.4f} ± {self.half_width:.4f} in {len(self.bins)} bins; a calibrated "
            f"classifier would show {self.by_chance:.4f}, in 5 % of cases above {self.by_chance_95:.4f}: {verdict}"
        )


def calibration(
    confidence: Tensor,  # (N,)
    right: Tensor,  # (N,)
    *,
    n_bins: int = 15,
    seed: int = 0,
) -> Calibration:
    r"""Expected calibration error of predictions, in bins of equal width.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{N} |\mathrm{accuracy}_b - \mathrm{confidence}_b|

    The absolute value makes the estimate too large, most where the truth is near 0. Labels that are drawn from the
    confidences themselves tell how large it is then.

    Args:
        confidence: the probability of the predicted class, in [0, 1].
        right: whether the prediction is right; of no predictions nothing is known, and all numbers are NaN.
        n_bins: how many bins.
        seed: of what is drawn for the error bar and the chance level.

    Reference:
        On Calibration of Modern Neural Networks, Guo et al. 2017, https://arxiv.org/abs/1706.04599; Evaluating model
        calibration in classification, Vaicenavicius et al. 2019, https://arxiv.org/abs/1902.06977 (chance level)

    Example:
        >>> import torch
        >>> round(calibration(torch.tensor([0.8, 0.8, 0.6]), torch.tensor([True, True, False])).ece, 3)
        0.333
    """
    p, hits = confidence.double().numpy(), right.numpy().astype(float)
    bins = np.clip(np.ceil(p * n_bins).astype(int) - 1, 0, n_bins - 1)
    rng = np.random.default_rng(seed)

    def error(members: np.ndarray, gaps: np.ndarray) -> float:
        return float(np.abs(np.bincount(members, gaps, n_bins)).sum()) / len(gaps) if len(gaps) else math.nan

    def resampled() -> float:
        chosen = rng.integers(0, len(p), len(p))
        return error(bins[chosen], (hits - p)[chosen])

    again = _repeated(resampled)
    chance = _repeated(lambda: error(bins, (rng.random(len(p)) < p) - p))
    rows = tuple(_bin(b, n_bins, p[bins == b], hits[bins == b]) for b in range(n_bins))
    half_width = 1.96 * float(again.std(ddof=1))
    return Calibration(error(bins, hits - p), half_width, float(chance.mean()), float(np.quantile(chance, 0.95)), rows)


def _repeated(draw: Callable[[], float]) -> np.ndarray:
    return np.array([draw() for _ in range(REPETITIONS)])


def _bin(b: int, n_bins: int, p: np.ndarray, hits: np.ndarray) -> Bin:
    means = (float(p.mean()), float(hits.mean())) if len(p) else (None, None)
    return Bin(b / n_bins, (b + 1) / n_bins, len(p), *means)


# -- accuracy ----------------------------------------------------------------------------------------------------------


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
