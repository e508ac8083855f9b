"""Test likelihood, with its error bar."""

__all__ = ["Estimate", "Likelihood", "estimate", "likelihood", "noisy", "summarise"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from iresnet.data import Batches, Split, dequantise
from iresnet.errors import DataError
from iresnet.flows import Flow
from iresnet.krylov import Krylov
from iresnet.lipschitz import hold_weights
from iresnet.logdet import Exact, LogDetEstimator

EXACT_LIMIT = 128
"""Largest number of dimensions for which the dense log-determinant is the default."""


@dataclass(frozen=True)
class Estimate:
    """A mean over examples with its 95 % interval (normal approximation).

    Attributes:
        mean: the mean.
        half_width: 1.96 standard errors.
    """

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.half_width:.4f}"


@dataclass(frozen=True)
class Likelihood:
    """How well a density predicts a split.

    Attributes:
        bits_per_dim: -log p / (D log 2).
        nats: -log p, for one example.
        n: examples.
        dims: D.
        estimator: of the log-determinant, or how else the density was evaluated.
    """

    bits_per_dim: Estimate
    nats: Estimate
    n: int
    dims: int
    estimator: str

    def __str__(self) -> str:
        return f"{self.bits_per_dim} bits/dim ({self.nats} nats; {self.n} examples, {self.estimator})"


@torch.no_grad()
def likelihood(
    flow: Flow,
    split: Split,
    *,
    levels: int | None,
    logdet: LogDetEstimator | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Likelihood:
    """Evaluate the density of a split.

    Integer data are dequantised once with noise of their own seed: the mean over the split is then an estimate of an
    upper bound of the bits/dim of the integers, and the interval covers images, noise and probes together.

    Args:
        flow: the density.
        split: the examples.
        levels: values that an integer component takes, none for continuous data.
        logdet: estimator; exact up to 128 dimensions and ``Krylov(tol=1e-2)`` above when None.
        batch_size: examples at a time.
        seed: of noise and probes.
        progress: called with the number of examples done after each batch.

    Raises:
        DataError: when the split has a single example, which gives no error bar.

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.Affine(), ir.StandardNormal(2))
        >>> result = likelihood(flow, Split(torch.randn(1000, 2)), levels=None)
        >>> abs(result.nats.mean - math.log(2 * math.pi) - 1) < 0.2
        True
    """
    dims = split.x[0].numel()
    estimator = logdet or (Exact() if dims <= EXACT_LIMIT else Krylov(tol=1e-2))
    parameter = next(flow.parameters(), torch.zeros(()))
    noise = torch.Generator(parameter.device).manual_seed(seed)
    nats = []
    flow.eval()
    with torch.random.fork_rng(devices=[parameter.device] if parameter.is_cuda else []), hold_weights(flow):
        torch.manual_seed(seed)
        for x, _ in Batches(split.to(parameter.device), batch_size, shuffle=False, drop_last=False).epoch():
            x = noisy(x, levels, noise, parameter.dtype)
            nats.append(-flow.log_prob(x, logdet=estimator).double().cpu())
            progress(sum(map(len, nats)))
    return summarise(torch.cat(nats), dims, str(estimator))


def noisy(x: Tensor, levels: int | None, generator: torch.Generator, dtype: torch.dtype) -> Tensor:  # (N, *E)
    """Data as a model sees them, with noise that does not depend on the precision of the model."""
    return x.to(dtype) if levels is None else dequantise(x, levels=levels, generator=generator).to(dtype)


def summarise(nats: Tensor, dims: int, estimator: str) -> Likelihood:  # (N,)
    """Mean and interval of negative log-likelihoods."""
    bits = estimate(nats / (dims * math.log(2)))
    return Likelihood(bits, estimate(nats), len(nats), dims, estimator)


def estimate(values: Tensor) -> Estimate:  # (N,)
    """Mean and 95 % interval of a number that every example has."""
    if len(values) < 2:
        raise DataError("an error bar needs at least 2 examples, the split has 1; evaluate another split")
    return Estimate(float(values.mean()), 1.96 * float(values.std()) / math.sqrt(len(values)))
