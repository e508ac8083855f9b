"""Densities that a model must beat, fitted and evaluated on the same data."""

__all__ = ["gaussian_baseline", "true_density", "uniform_baseline"]

import math

import torch

from iresnet.data import TOYS, Dataset, Split
from iresnet.errors import DataError
from iresnet.evaluation.likelihood import Likelihood, noisy, summarise


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
    return summarise(torch.full((len(split),), dims * math.log(dataset.levels)).double(), dims, "closed form")


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
    return summarise(-TOYS[dataset.name].log_prob(split.x).double(), dataset.shape[0], "closed form")


def gaussian_baseline(dataset: Dataset, split: Split, *, seed: int = 0) -> Likelihood:
    """A normal density with full covariance, fitted to the dequantised training split.

    Dequantisation adds 1/12 to the variances and 1/2 to the means, exactly; the split is dequantised with the same
    noise as in :func:`~iresnet.evaluation.likelihood`.

    Args:
        dataset: whose training split is fitted.
        split: what is evaluated.
        seed: of the noise.

    Raises:
        DataError: when the training split spans no volume: too few examples, or dependent features.
    """
    x = dataset.train.x.flatten(1).double()
    dims = x.shape[1]
    shift, spread = (0.5, 1 / 12) if dataset.levels else (0.0, 0.0)
    covariance = torch.cov(x.T).reshape(dims, dims) + spread * torch.eye(dims, dtype=x.dtype)
    factor, info = torch.linalg.cholesky_ex(covariance)
    unexplained = (
        factor.diagonal().square() / covariance.diagonal()
    )  # share of a feature's variance, by those before it
    if int(info) or not float(unexplained.min()) > 1e-10:
        raise DataError(f"the covariance of {len(x)} examples in {dims} dimensions is singular: no Gaussian baseline")
    noise = torch.Generator(split.x.device).manual_seed(seed)
    y = noisy(split.x, dataset.levels, noise, torch.float64).flatten(1)
    z = torch.linalg.solve_triangular(factor, (y - x.mean(0) - shift).T, upper=False)
    nats = 0.5 * z.square().sum(0) + factor.diagonal().log().sum() + 0.5 * dims * math.log(2 * math.pi)
    return summarise(nats, dims, "closed form")
