"""Detection of other data (out of distribution): scores of a model, and measures of how they separate two sets."""

__all__ = [
    "Detection",
    "Histogram",
    "Outputs",
    "auroc",
    "detect",
    "detection",
    "fpr95",
    "model_outputs",
    "scores",
    "typicality",
]

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Generator, Tensor

from iresnet.classifiers import Classifier, Hybrid
from iresnet.data import Split
from iresnet.errors import DataError
from iresnet.evaluation.batching import Batch, RandomNumbers, check_finite, evaluate_in_batches, reference_tensor
from iresnet.evaluation.classification import wilson
from iresnet.evaluation.likelihood import default_estimator
from iresnet.flows import Flow
from iresnet.logdet import LogDetEstimator

# -- two sets of scores ------------------------------------------------------------------------------------------------


N_DRAWS = 10_000
"""Draws that the interval of FPR95 is taken from."""


@dataclass(frozen=True)
class Histogram:
    """Histograms of the scores of two sets; scores beyond the ends are counted in the outermost bins.

    Attributes:
        edges: of the bins, one more than bins.
        inside: counts of the model's own data.
        outside: counts of other data.
    """

    edges: tuple[float, ...]
    inside: tuple[int, ...]
    outside: tuple[int, ...]


@dataclass(frozen=True)
class Detection:
    """Quality of a score that detects examples of other data. Those are the positives, and have the higher scores.

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
    histogram = _histogram(inside.double(), outside.double())
    return Detection(*auroc(inside, outside), *fpr95(inside, outside, seed=seed), len(inside), len(outside), histogram)


def auroc(inside: Tensor, outside: Tensor) -> tuple[float, tuple[float, float]]:
    r"""Compute the area under the receiver operating characteristic, and its 95 % interval.

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
    """Compute the false positive rate at 95 % true positives, and its 95 % interval.

    The threshold is the highest score that at least 95 % of ``outside`` reach, and the rate is the share of ``inside``
    that reach it. The interval draws the threshold as the same order statistic of a resampled ``outside``, whose rank
    has a beta distribution, and then the rate from Jeffreys' posterior; 2.5 % of the draws lie on either side.
    """
    m, n = len(inside), len(outside)
    high = np.sort(outside.double().numpy())
    k = math.floor(n - 0.95 * n + 1e-9) + 1  # the k-th smallest is the threshold
    reach = m - np.searchsorted(np.sort(inside.double().numpy()), high, side="left")  # of inside, at each threshold
    rng = np.random.default_rng(seed)
    ranks = np.ceil(n * rng.beta(k, n - k + 1, N_DRAWS)).astype(int).clip(1, n)
    hits = reach[ranks - 1]
    ends = np.quantile(rng.beta(hits + 0.5, m - hits + 0.5), [0.025, 0.975])
    rate = float(reach[k - 1]) / m
    return rate, (min(float(ends[0]), rate), max(float(ends[1]), rate))


def _histogram(inside: Tensor, outside: Tensor, n_bins: int = 40) -> Histogram:
    """Count scores in bins between the 0.5 % and the 99.5 % quantile of both sets together."""
    ends = np.quantile(np.concatenate([inside.numpy(), outside.numpy()]), [0.005, 0.995])
    edges = np.linspace(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1, n_bins + 1)
    counts = (np.histogram(values.numpy().clip(edges[0], edges[-1]), edges)[0] for values in (inside, outside))
    return Histogram(tuple(edges.tolist()), *(tuple(count.tolist()) for count in counts))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


# -- scores of models --------------------------------------------------------------------------------------------------


BATCHES = (1, 10)
"""Sizes of the batches whose typicality is tested."""


@dataclass(frozen=True)
class Outputs:
    """Outputs of a model for each example.

    Attributes:
        bits_per_dim: -log p(x) / (D log 2), (N,); None without a density.
        entropy: of the predicted classes, in nats, (N,); None without a classifier.
    """

    bits_per_dim: Tensor | None
    entropy: Tensor | None


def detect(
    model: Flow | Classifier | Hybrid,
    inside: Split,
    train: Split,
    others: Mapping[str, Split],
    *,
    levels: int | None,
    batch_size: int = 128,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, Detection]]:
    """Measure how well each score of a model finds examples of other data.

    Args:
        model: the model.
        inside: examples of the model's own data.
        train: training examples, for the mean that is typical.
        others: examples of other data by name, in the form of the model's own: see :func:`iresnet.data.transforms`.
        levels: values that an integer component takes, none for continuous data.
        batch_size: examples at a time.
        seed: of noise, probes and draws.
        progress: called with the number of examples done after each batch.

    Returns:
        By name of the other data, and of the score: see :func:`scores`.

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.Affine(), ir.StandardNormal(2))
        >>> own, far = Split(torch.randn(50, 2)), Split(9 + torch.randn(50, 2))
        >>> found = detect(flow, own, own, {"far": far}, levels=None)
        >>> found["far"]["log-likelihood"].auroc
        1.0
    """
    outputs, done = [], 0
    for split in (inside, train, *others.values()):
        options = {"levels": levels, "batch_size": batch_size, "seed": seed}
        outputs.append(model_outputs(model, split, **options, progress=lambda n, done=done: progress(done + n)))
        done += len(split)
    own, trained, *other_outputs = outputs
    return {
        name: {score: detection(*both, seed=seed) for score, both in scores(own, other, trained, seed=seed).items()}
        for name, other in zip(others, other_outputs, strict=True)
    }


def model_outputs(
    model: Flow | Classifier | Hybrid,
    split: Split,
    *,
    levels: int | None,
    logdet: LogDetEstimator | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Outputs:
    r"""Evaluate a model on each example, in the order of the split.

    Data sets are comparable when they are evaluated with the same arguments, so with the same estimator and the same
    seeds of noise and probes.

    Args:
        model: the model.
        split: the examples, in the form of the model's own data: see :func:`iresnet.data.transforms`.
        levels: values that an integer component takes, none for continuous data.
        logdet: estimator; the default of :func:`~iresnet.evaluation.likelihood` when None.
        batch_size: examples at a time.
        seed: of noise and probes.
        progress: called with the number of examples done after each batch.

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.Affine(), ir.StandardNormal(2))
        >>> model_outputs(flow, Split(torch.zeros(3, 2)), levels=None).bits_per_dim
        tensor([1.3257, 1.3257, 1.3257], dtype=torch.float64)
    """
    dims = split.x[0].numel()
    tensor = reference_tensor(model)
    random = RandomNumbers(None if isinstance(model, Classifier) else levels, tensor.dtype, seed=seed)
    estimator = (logdet or default_estimator(dims)).drawing_from(random.probes)

    def evaluate(batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        (x,), (probe_seed,) = random.inputs(batch), batch.seeds
        random.seed_probes(probe_seed)
        log_prob = logits = bits = entropy = None
        match model:
            case Flow():
                log_prob = model.log_prob(x, logdet=estimator)
            case Hybrid():
                log_prob, logits = model.log_prob_and_logits(x, logdet=estimator)
            case Classifier():
                logits = model(x)
        if log_prob is not None:
            bits = -check_finite(log_prob.double().cpu()) / (dims * math.log(2))
        if logits is not None:
            log_p = logits.double().cpu().log_softmax(1)
            entropy = check_finite(-(log_p.exp() * log_p).sum(1))
        return bits, entropy

    batches = (random.batch(some) for some in split.to(tensor.device).split(batch_size))
    results = evaluate_in_batches(model, batches, evaluate, progress=progress)
    columns = [None if column[0] is None else torch.cat(column) for column in zip(*results, strict=True)]
    return Outputs(*columns)


def scores(inside: Outputs, outside: Outputs, train: Outputs, *, seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    """Turn outputs into scores that are high for unusual examples: by name, those of both sets, (n_in,) and (n_out,).

    ``log-likelihood`` is bits/dim: unlikely examples are taken for others. ``typicality`` is the distance of bits/dim
    from their mean on the training split, of single examples and of batches: those may be too likely as well.
    ``predictive entropy`` is that of the predicted classes: uncertain predictions are taken for other data.

    Args:
        inside: the model's own data.
        outside: other data.
        train: training examples, for their mean.
        seed: of the order in which examples make batches.

    Reference:
        Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality, Nalisnick et al. 2019,
        https://arxiv.org/abs/1906.02994; A Baseline for Detecting Misclassified and Out-of-Distribution Examples,
        Hendrycks and Gimpel 2017, https://arxiv.org/abs/1610.02136 (classifiers)
    """
    found = {}
    if inside.bits_per_dim is not None and outside.bits_per_dim is not None and train.bits_per_dim is not None:
        both = inside.bits_per_dim, outside.bits_per_dim
        found["log-likelihood"] = both
        mean = float(train.bits_per_dim.mean())
        for size in BATCHES:
            if min(map(len, both)) >= 2 * size:
                name = "typicality" if size == 1 else f"typicality of {size}"
                found[name] = tuple(typicality(bits, mean, size=size, seed=seed) for bits in both)
    if inside.entropy is not None and outside.entropy is not None:
        found["predictive entropy"] = inside.entropy, outside.entropy
    return found


def typicality(
    bits: Tensor,  # (N,)
    mean: float,
    *,
    size: int = 1,
    seed: int = 0,
) -> Tensor:  # (N // size,)
    r"""Compute the distance of the mean of a batch from that of the training split.

    .. math:: \epsilon = \left| \frac{1}{M} \sum_{m=1}^{M} -\log p(x_m) - \hat H \right|

    Args:
        bits: negative log-likelihoods, in any unit.
        mean: their mean on the training split, in the same unit.
        size: M; examples that make no whole batch are left out.
        seed: of the order in which examples make batches of more than one.

    Example:
        >>> typicality(torch.tensor([1.0, 2.0, 4.0]), 2.0)
        tensor([1., 0., 2.])
    """
    if size > 1:
        bits = bits[torch.randperm(len(bits), generator=Generator().manual_seed(seed))]
    n = len(bits) // size
    return (bits[: n * size].view(n, size).mean(1) - mean).abs()
