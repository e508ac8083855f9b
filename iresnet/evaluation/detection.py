"""How well a score tells two sets of examples apart."""

__all__ = ["Detection", "Histogram", "auroc", "detection", "fpr95"]

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata
from torch import Tensor

from iresnet.errors import DataError
from iresnet.evaluation.intervals import wilson

DRAWS = 10_000
"""Draws from which the interval of FPR95 comes."""


@dataclass(frozen=True)
class Histogram:
    """How often scores lie in each of some bins; those beyond the ends are counted in the outermost ones.

    Attributes:
        edges: of the bins, one more than there are bins.
        inside: counts of the model's own data.
        outside: counts of other data.
    """

    edges: tuple[float, ...]
    inside: tuple[int, ...]
    outside: tuple[int, ...]


@dataclass(frozen=True)
class Detection:
    """How well a score finds examples of other data. Those are the positives, and have the higher scores.

    Attributes:
        auroc: probability that one of other data scores higher than one of the model's own, plus half of that of a tie.
        interval: its 95 % interval.
        fpr95: share of the model's own examples that are taken for others, when 95 % of the others are found.
        fpr95_interval: its 95 % interval.
        n_in: examples of the model's own data.
        n_out: examples of other data.
        histogram: of the scores.
    """

    auroc: float
    interval: tuple[float, float]
    fpr95: float
    fpr95_interval: tuple[float, float]
    n_in: int
    n_out: int
    histogram: Histogram


def detection(inside: Tensor, outside: Tensor, *, seed: int = 0) -> Detection:
    """Measure how well a score finds examples of other data.

    Args:
        inside: scores of the model's own data, (n_in,).
        outside: scores of other data, (n_out,), the positives: high where the score works.
        seed: of the draws for the interval of FPR95.

    Raises:
        DataError: when one of the sets has fewer than two examples.

    Reference:
        Deep Anomaly Detection with Outlier Exposure, Hendrycks, Mazeika and Dietterich 2019,
        https://arxiv.org/abs/1812.04606 (other data are the positives)

    Example:
        >>> import torch
        >>> round(detection(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([2.0, 3.0, 4.0])).auroc, 4)
        0.9444
    """
    if min(len(inside), len(outside)) < 2:
        raise DataError(f"telling apart needs 2 examples of each kind, got {len(inside)} and {len(outside)}")
    area, interval = auroc(inside, outside)
    share, share_interval = fpr95(inside, outside, seed=seed)
    return Detection(
        area, interval, share, share_interval, len(inside), len(outside), _histogram(inside.double(), outside.double())
    )


def auroc(inside: Tensor, outside: Tensor) -> tuple[float, tuple[float, float]]:
    r"""Area under the receiver operating characteristic, and its 95 % interval.

    The variance is DeLong's, from the share :math:`v` of the other set that each example beats,

    .. math:: \mathrm{var}(v_{out}) / n_{out} + \mathrm{var}(v_{in}) / n_{in},

    and the interval is symmetric on the logit scale, so it stays inside [0, 1]. Where that variance is 0, as for sets
    that do not overlap, the interval is Wilson's of min(n_in, n_out) trials: no area A has a larger variance than
    :math:`A (1 - A) / \min(n_{in}, n_{out})`.

    Reference:
        Comparing the Areas under Two or More Correlated ROC Curves, DeLong, DeLong and Clarke-Pearson 1988,
        https://doi.org/10.2307/2531595; Fast Implementation of DeLong's Algorithm, Sun and Xu 2014,
        https://doi.org/10.1109/LSP.2014.2337313; On a Use of the Mann-Whitney Statistic, Birnbaum 1956 (largest
        variance)
    """
    low, high = inside.double().numpy(), outside.double().numpy()
    m, n = len(low), len(high)
    ranks = rankdata(np.concatenate([low, high]))
    beaten = (ranks[m:] - rankdata(high)) / m  # share of inside below each of outside
    beating = 1 - (ranks[:m] - rankdata(low)) / n  # share of outside above each of inside
    area = float(beaten.mean())
    variance = float(beaten.var(ddof=1) / n + beating.var(ddof=1) / m)
    if variance < 1e-20 or not 0 < area < 1:
        return area, wilson(min(max(area, 0.0), 1.0), min(m, n))
    logit, half = math.log(area / (1 - area)), 1.96 * math.sqrt(variance) / (area * (1 - area))
    return area, (_sigmoid(logit - half), _sigmoid(logit + half))


def fpr95(inside: Tensor, outside: Tensor, *, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """False positive rate at 95 % true positives, and its 95 % interval.

    The threshold is the highest score that at least 95 % of ``outside`` reach, and the rate is the share of ``inside``
    that reach it. The interval draws the threshold as the same order statistic of a resampled ``outside``, whose rank
    has a beta distribution, and then the rate from Jeffreys' posterior; 2.5 % of the draws lie on either side.
    """
    m, n = len(inside), len(outside)
    high = np.sort(outside.double().numpy())
    k = math.floor(n - 0.95 * n + 1e-9) + 1  # the k-th smallest is the threshold
    reach = m - np.searchsorted(np.sort(inside.double().numpy()), high, side="left")  # of inside, at each threshold
    rng = np.random.default_rng(seed)
    ranks = np.ceil(n * rng.beta(k, n - k + 1, DRAWS)).astype(int).clip(1, n)
    hits = reach[ranks - 1]
    ends = np.quantile(rng.beta(hits + 0.5, m - hits + 0.5), [0.025, 0.975])
    rate = float(reach[k - 1]) / m
    return rate, (min(float(ends[0]), rate), max(float(ends[1]), rate))


def _histogram(inside: Tensor, outside: Tensor, n_bins: int = 40) -> Histogram:
    """Counts between the 0.5 % quantiles at either end of both sets together."""
    ends = np.quantile(np.concatenate([inside.numpy(), outside.numpy()]), [0.005, 0.995])
    edges = np.linspace(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1, n_bins + 1)
    counts = (np.histogram(values.numpy().clip(edges[0], edges[-1]), edges)[0] for values in (inside, outside))
    return Histogram(tuple(edges.tolist()), *(tuple(count.tolist()) for count in counts))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
