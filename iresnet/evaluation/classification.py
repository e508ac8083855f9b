"""Accuracy, calibration and likelihood of labels, with error bars."""

__all__ = [
    "Accuracy",
    "Bin",
    "Calibration",
    "CertifiedAccuracy",
    "ClassAccuracy",
    "calibration",
    "certified_accuracy",
    "classification",
    "wilson",
]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iresnet.classifiers import Classifier, Hybrid
from iresnet.data import Split
from iresnet.errors import DataError
from iresnet.evaluation.batching import evaluate_in_batches, input_batches, reference_tensor
from iresnet.evaluation.likelihood import Estimate, estimate
from iresnet.evaluation.robustness import certified_radius, logit_constant

# -- intervals ---------------------------------------------------------------------------------------------------------


def wilson(proportion: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """Return the interval of a proportion, which stays inside [0, 1].

    Args:
        proportion: the share of n trials that succeeded.
        n: number of trials.
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
    """Predictions whose confidence lies in one interval.

    Attributes:
        low: confidences are above this (or 0),
        high: and at most this.
        n: number of predictions.
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
    """Difference of a classifier's confidences from its accuracy.

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
    r"""Compute the expected calibration error of predictions, in bins of equal width.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{N} |\mathrm{accuracy}_b - \mathrm{confidence}_b|

    The absolute value makes the estimate too large, most where the truth is near 0. Labels that are drawn from the
    confidences themselves tell how large it is then.

    Args:
        confidence: the probability of the predicted class, in [0, 1].
        right: whether the prediction is right; of no predictions nothing is known, and all numbers are NaN.
        n_bins: number of bins.
        seed: of the random numbers for the error bar and the chance level.

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

    resampled, by_chance = np.empty(REPETITIONS), np.empty(REPETITIONS)
    for i in range(REPETITIONS):
        chosen = rng.integers(0, len(p), len(p))
        resampled[i] = error(bins[chosen], (hits - p)[chosen])
    for i in range(REPETITIONS):
        by_chance[i] = error(bins, (rng.random(len(p)) < p) - p)
    rows = []
    for b in range(n_bins):
        inside = bins == b
        means = (float(p[inside].mean()), float(hits[inside].mean())) if inside.any() else (None, None)
        rows.append(Bin(b / n_bins, (b + 1) / n_bins, int(inside.sum()), *means))
    half_width = 1.96 * float(resampled.std(ddof=1))
    mean, high = float(by_chance.mean()), float(np.quantile(by_chance, 0.95))
    return Calibration(error(bins, hits - p), half_width, mean, high, tuple(rows))


# -- certified accuracy ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CertifiedAccuracy:
    """Share of the examples that are predicted right, and proved to be within a radius around them.

    Attributes:
        radius: in units of the data, Euclidean.
        accuracy: a lower bound of the accuracy under any attack within the radius.
        interval: its 95 % Wilson interval.
    """

    radius: float
    accuracy: float
    interval: tuple[float, float]


def certified_accuracy(
    radii: Tensor,  # (N,)
    right: Tensor,  # (N,)
    at: Sequence[float] = (),
) -> tuple[CertifiedAccuracy, ...]:
    """Compute the certified accuracy at some radii.

    Args:
        radii: certified radii of the predictions.
        right: whether they are right.
        at: the radii; when empty, four round numbers, about a quarter, a half, one and two times the median radius of
            the right predictions; none where nothing is certified.

    Raises:
        DataError: a radius is negative.

    Example:
        >>> found = certified_accuracy(torch.tensor([0.1, 0.2, 0.4]), torch.tensor([True, True, False]), at=[0.0, 0.15])
        >>> [(c.radius, round(c.accuracy, 2)) for c in found]
        [(0.0, 0.67), (0.15, 0.33)]
    """
    if any(not radius >= 0 for radius in at):
        raise DataError(f"radii of certified accuracy must not be negative, got {min(at)}")
    known = radii[right & (radii > 0)]
    if not at and len(known):
        median = float(known.median())
        at = sorted({float(f"{factor * median:.1g}") for factor in (0.25, 0.5, 1, 2)})
    shares = [(radius, float((right & (radii > 0) & (radii >= radius)).double().mean())) for radius in at]
    return tuple(CertifiedAccuracy(radius, share, wilson(share, len(radii))) for radius, share in shares)


# -- accuracy ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassAccuracy:
    """Accuracy on the examples of one class.

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
    """Predictions of a classifier on a split, compared with its labels.

    Attributes:
        accuracy: fraction of right predictions.
        interval: its 95 % Wilson interval.
        cross_entropy: negative log-likelihood of the labels, -log p(y | x) in nats.
        n: examples.
        calibration: of its confidences.
        classes: one entry a class.
        confusion: counts of examples of a class (row) that were taken for a class (column).
        certified: accuracy that is proved to be left within some radii; empty where nothing is proved.
    """

    accuracy: float
    interval: tuple[float, float]
    cross_entropy: Estimate
    n: int
    calibration: Calibration
    classes: tuple[ClassAccuracy, ...]
    confusion: tuple[tuple[int, ...], ...]
    certified: tuple[CertifiedAccuracy, ...] = ()

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
    radii: Sequence[float] = (),
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Accuracy:
    """Evaluate predictions on a labeled split.

    Args:
        model: the classifier; a hybrid sees dequantized data, as in training.
        split: examples with labels.
        levels: values that an integer component takes, none for continuous data.
        radii: at which accuracy is certified, see :func:`certified_accuracy`.
        batch_size: examples at a time.
        seed: of the dequantization noise.
        progress: called with the number of examples done after each batch.

    Raises:
        DataError: when the split has no labels, or a single example.
    """
    if split.y is None:
        raise DataError("the split has no labels to predict")
    noise_levels = levels if isinstance(model, Hybrid) else None
    batches = input_batches(model, split.x, batch_size, levels=noise_levels, seed=seed)
    constant = logit_constant(model, split.x[:1].to(reference_tensor(model)))
    logits = torch.cat(evaluate_in_batches(model, batches, lambda x: model(x).double().cpu(), progress=progress))
    y = split.y.cpu()
    n, n_classes = logits.shape
    confidence, predicted = logits.softmax(1).max(1)
    confusion = torch.bincount(n_classes * y + predicted, minlength=n_classes**2).view(n_classes, n_classes)
    accuracy = int(confusion.diagonal().sum()) / n
    classes = []
    for label, row in enumerate(confusion):
        total, right = int(row.sum()), int(row[label])
        known = (right / total, wilson(right / total, total)) if total else (None, None)
        classes.append(ClassAccuracy(total, *known))
    return Accuracy(
        accuracy,
        wilson(accuracy, n),
        estimate(F.cross_entropy(logits, y, reduction="none")),
        n,
        calibration(confidence, predicted == y),
        tuple(classes),
        tuple(tuple(row) for row in confusion.tolist()),
        certified_accuracy(certified_radius(logits, constant), predicted == y, radii),
    )
