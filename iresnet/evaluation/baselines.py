"""Densities that a model must beat, fitted and evaluated on the same data."""

__all__ = ["gaussian_baseline", "true_density", "uniform_baseline"]

import math

import torch
from torch import Tensor

from iresnet.data import TOYS, Dataset, Split
from iresnet.errors import DataError
from iresnet.evaluation.draws import check_draws, importance_weighted, noisy
from iresnet.evaluation.likelihood import Likelihood, summarize


def uniform_baseline(dataset: Dataset, split: Split) -> Likelihood:
    """The uniform density on [0, levels): log2(levels) bits/dim for integer data.

    Args:
        dataset: names the levels.
        split: what is evaluated.

    Raises:
        DataError: for continuous data, which have no levels.
    """
    if dataset.levels is None:
        raise DataError("continuous data have no uniform baseline")
    dims = split.x[0].numel()
    return summarize(torch.full((len(split),), dims * math.log(dataset.levels)).double(), dims, "closed form")


def true_density(dataset: Dataset, split: Split) -> Likelihood:
    """The law that a toy data set was drawn from: what no model beats but by chance.

    Args:
        dataset: one of :data:`iresnet.data.TOYS`.
        split: what is evaluated.

    Raises:
        DataError: for data whose law is not known.
    """
    if dataset.name not in TOYS:
        raise DataError(f"the law of {dataset.name} is not known")
    return summarize(-TOYS[dataset.name].log_prob(split.x).double(), dataset.shape[0], "closed form")


def gaussian_baseline(dataset: Dataset, split: Split, *, dequantize_samples: int = 1, seed: int = 0) -> Likelihood:
    """A normal density with full covariance, fitted to the dequantized training split.

    Dequantization adds 1/12 to the variances and 1/2 to the means, exactly; the split is dequantized as in
    :func:`~iresnet.evaluation.likelihood`, with one draw by the very same noise.

    Args:
        dataset: whose training split is fitted.
        split: what is evaluated.
        dequantize_samples: K, noise draws for each example.
        seed: of order and noise.

    Raises:
        DataError: when the covariance cannot be estimated: fewer than two examples a dimension, or dependent features.
    """
    check_draws(dequantize_samples, dataset.levels)
    x = dataset.train.x.flatten(1).double()
    dims = x.shape[1]
    if len(x) < 2 * dims:
        raise DataError(
            f"no Gaussian baseline: from {len(x)} training examples the covariance of {dims} dimensions is singular or "
            f"noise; it takes {2 * dims}"
        )
    shift, spread = (0.5, 1 / 12) if dataset.levels else (0.0, 0.0)
    covariance = torch.cov(x.T).reshape(dims, dims) + spread * torch.eye(dims, dtype=x.dtype)
    factor, info = torch.linalg.cholesky_ex(covariance)
    unexplained = (
        factor.diagonal().square() / covariance.diagonal()
    )  # share of a feature's variance, by those before it
    if int(info) or not float(unexplained.min()) > 1e-10:
        raise DataError(f"no Gaussian baseline: the covariance of {len(x)} examples in {dims} dimensions is singular")
    noise = torch.Generator().manual_seed(seed)
    examples = split.shuffled(seed).x
    log_probs = []
    for _ in range(dequantize_samples):
        y = noisy(examples, dataset.levels, noise, torch.float64).flatten(1)
        log_probs.append(_normal_log_prob(y - x.mean(0) - shift, factor))
    return summarize(importance_weighted(torch.stack(log_probs)), dims, "closed form", dequantize_samples)


def _normal_log_prob(x: Tensor, factor: Tensor) -> Tensor:  # (N, D), (D, D) -> (N,)
    """Log-density of a normal law with mean 0 and covariance ``factor @ factor.T``."""
    z = torch.linalg.solve_triangular(factor, x.T, upper=False)
    return -0.5 * z.square().sum(0) - factor.diagonal().log().sum() - 0.5 * len(factor) * math.log(2 * math.pi)
