"""Bias, spread and cost of estimators of the log-determinant, against the exact value at examples."""

__all__ = [
    "CANDIDATES",
    "Candidate",
    "EstimatorRow",
    "LogDetAnalysis",
    "analyze_logdet",
]

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from iresnet.analysis.reference import DENSE_LIMIT, Reference, reference, visits
from iresnet.bijections import Bijection
from iresnet.errors import IResNetError
from iresnet.jacobian import Linearization
from iresnet.lipschitz import hold_weights
from iresnet.logdet import Hutchinson, Krylov
from iresnet.operators import to_vectors
from iresnet.series import PowerSeries, RussianRoulette


@dataclass(frozen=True)
class Candidate:
    """An estimator that is measured.

    Attributes:
        family: what it is a member of.
        size: terms or steps, None where chance or a tolerance decides.
        make: builds it with one probe; called with ``generator=``.
        shares_length: draws one length for a whole batch, so that only different batches are independent.
    """

    family: str
    size: int | None
    make: Callable[..., Hutchinson]
    shares_length: bool = False


CANDIDATES = (
    *(Candidate("series, Gaussian", n, partial(PowerSeries, n, probe="gaussian")) for n in range(1, 11)),
    *(Candidate("series, Rademacher", n, partial(PowerSeries, n)) for n in range(1, 11)),
    Candidate("roulette", None, RussianRoulette, shares_length=True),
    *(Candidate("Krylov", n, partial(Krylov, n)) for n in range(1, 7)),
    Candidate("Krylov, tol=0.01", None, partial(Krylov, tol=1e-2)),
)
"""What :func:`analyze_logdet` measures."""


@dataclass(frozen=True)
class EstimatorRow:
    """One estimator with one probe: of the sum over the blocks, in nats.

    Attributes:
        family: see :class:`Candidate`.
        size: see :class:`Candidate`.
        products: mean Jacobian products for each block.
        bias: mean over the examples.
        bias_error: its standard error, from the probes.
        sd: standard deviation over probes, root mean square over the examples.
        gradient_error: of the vectors :math:`(I + J^T)^{-1} v` that carry the gradient, root mean square, relative.
    """

    family: str
    size: int | None
    products: float
    bias: float
    bias_error: float
    sd: float
    gradient_error: float


@dataclass(frozen=True)
class LogDetAnalysis:
    """How estimators of the log-determinant do on a model.

    Attributes:
        rows: one an estimator.
        logdet: mean log-determinant over the examples, sum over the blocks, in nats.
        exact: whether it is known by dense algebra, for all blocks.
        reference_error: of the values that estimates are compared with, in nats, sum over the blocks, the largest of
            all examples.
        dims: D of the data.
        blocks: residual blocks.
        n: examples.
        draws: probes for each block and example.
    """

    rows: tuple[EstimatorRow, ...]
    logdet: float
    exact: bool
    reference_error: float
    dims: int
    blocks: int
    n: int
    draws: int

    @property
    def nats_per_bit(self) -> float:
        """Nats that are one bit/dim."""
        return self.dims * math.log(2)

    @property
    def method(self) -> str:
        """What the estimates are compared with."""
        if self.exact:
            return "exact dense log-determinants in float64"
        return f"converged Krylov values, since blocks have more than {DENSE_LIMIT} dimensions"

    @property
    def summary(self) -> str:
        """The main finding in one sentence."""
        rows = {(row.family, row.size): row for row in self.rows}
        series, krylov = rows.get(("series, Gaussian", 5)), rows.get(("Krylov", 5))
        if series is None or krylov is None:
            return f"The log-determinant is {self.logdet:.4g} nats (mean of {self.n} examples)."
        return (
            f"With five Jacobian products a block, the 2019 power series with Gaussian probes has a bias of "
            f"{series.bias:.2g} nats and a standard deviation of {series.sd:.3g}, Krylov {krylov.bias:.2g} and "
            f"{krylov.sd:.3g}, where the log-determinant is {self.logdet:.4g} nats (mean of {self.n} examples)."
        )

    def row(self, family: str, size: int | None = None) -> EstimatorRow:
        """The row of an estimator."""
        return next(row for row in self.rows if (row.family, row.size) == (family, size))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {"summary": self.summary, "method": self.method, "nats_per_bit": self.nats_per_bit, **asdict(self)}

    def __str__(self) -> str:
        error = f" (error at most {self.reference_error:.1e} nats)"
        return (
            f"log-determinant {self.logdet:.4f} nats, sum of {self.blocks} blocks, mean of {self.n} examples; compared "
            f"with {self.method}{error}, {self.draws} probes each; 1 bit/dim is {self.nats_per_bit:.1f} nats"
        )


def analyze_logdet(
    bijection: Bijection,
    x: Tensor,  # (N, *E)
    *,
    draws: int = 64,
    seed: int = 0,
    candidates: Sequence[Candidate] = CANDIDATES,
    progress: Callable[[int], None] = lambda done: None,
) -> LogDetAnalysis:
    r"""Measure estimators at examples, each block at each example with probes of its own.

    The bias is the mean of an estimate's difference from what the same probe gives exactly, so that it shows far below
    the standard deviation of the estimates. Cost: D Jacobian products for each block and example, and work of the
    order :math:`D^3`.

    Args:
        bijection: the model, in float64.
        x: examples.
        draws: probes for each block and example.
        seed: of the probes.
        candidates: the estimators.
        progress: called with the number of blocks done, of all examples.

    Raises:
        RecipeError: when there are no residual blocks.
        IResNetError: with fewer than two draws, which have no spread.

    Example:
        >>> import iresnet as ir
        >>> block = ir.ResidualBlock(torch.nn.Sequential(ir.LipschitzLinear(4, 4, coeff=0.5))).double()
        >>> analysis = analyze_logdet(block, torch.randn(2, 4, dtype=torch.float64))
        >>> abs(analysis.row("Krylov", 4).bias) < 1e-9  # as many steps as dimensions
        True
    """
    if draws < 2:
        raise IResNetError(f"draws must be at least 2, for a standard deviation, got {draws}")
    moments: list[list[_Moments]] = [[] for _ in candidates]
    logdets, errors, done = [], [], 0
    with hold_weights(bijection, iterate=False):
        for example in x.split(1):
            parts, error = [], 0.0
            for visit in visits(bijection, example):
                truth = reference(visit)
                sampled = [_moments(truth, candidate, draws, seed + done * draws) for candidate in candidates]
                for of_candidate, part in zip(moments, sampled, strict=True):
                    of_candidate.append(part)
                parts.append(sampled[-1].exact if truth.logdet is None else truth.logdet)
                error += max(part.error for part in sampled)
                done += 1
                progress(done)
            logdets.append(sum(parts))
            errors.append(error)
    rows = tuple(_row(c, m, len(x)) for c, m in zip(candidates, moments, strict=True))
    blocks = done // len(x)
    exact = all(part.known for part in moments[0])
    return LogDetAnalysis(rows, statistics.fmean(logdets), exact, max(errors), x[0].numel(), blocks, len(x), draws)


# -- one estimator, one block, one example -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Moments:
    """Mean and variance of the difference from the truth, and what they belong to."""

    bias: float
    bias_variance: float
    variance: float
    products: float
    gradient_error: float  # squared
    gradient_size: float  # squared
    exact: float  # mean of what the same probes give exactly
    error: float
    known: bool


def _moments(truth: Reference, candidate: Candidate, draws: int, seed: int) -> _Moments:
    generator = Generator().manual_seed(seed)
    copies = 1 if candidate.shares_length else draws
    jacobian = truth.linearization(copies)
    calls = [_estimate(candidate.make(generator=generator), jacobian) for _ in range(draws // copies)]
    value, v, w = (torch.cat(parts) for parts in zip(*(call[:3] for call in calls), strict=True))
    exact, exact_w, error = truth.of_probes(v)
    difference = value - exact
    return _Moments(
        bias=float(difference.mean()),
        bias_variance=float(difference.var()) / draws,
        variance=float(value.var()),
        products=statistics.fmean(call[3] for call in calls),
        gradient_error=float((w - exact_w).square().sum()),
        gradient_size=float(exact_w.square().sum()),
        exact=float(exact.mean()),
        error=error,
        known=truth.logdet is not None,
    )


def _estimate(estimator: Hutchinson, jacobian: Linearization) -> tuple[Tensor, Tensor, Tensor, int]:
    """Values, (n,), probes v and vectors w of the gradient <w, dJ v>, (n, D), and the number of products.

    A Jacobian product that takes note of v, and returns a leaf instead, receives w as its gradient.
    """
    leaf, probes, products = torch.zeros_like(jacobian.value, requires_grad=True), [], []

    def jvp(v: Tensor) -> Tensor:
        probes.append(to_vectors(v))
        return leaf

    def vjp(w: Tensor) -> Tensor:
        products.append(1)
        return jacobian.vjp(w)

    value = estimator(replace(jacobian, value=leaf, jvp=jvp, vjp=vjp))
    counted = sum(products)
    (w,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), probes[0], to_vectors(w), counted


def _row(candidate: Candidate, moments: Iterable[_Moments], n: int) -> EstimatorRow:
    parts = list(moments)
    return EstimatorRow(
        candidate.family,
        candidate.size,
        products=statistics.fmean(part.products for part in parts),
        bias=sum(part.bias for part in parts) / n,
        bias_error=math.sqrt(sum(part.bias_variance for part in parts)) / n,
        sd=math.sqrt(sum(part.variance for part in parts) / n),
        gradient_error=math.sqrt(sum(p.gradient_error for p in parts) / sum(p.gradient_size for p in parts)),
    )
