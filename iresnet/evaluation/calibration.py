"""Whether a classifier is right as often as it says."""

__all__ = ["Bin", "Calibration", "calibration"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

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
