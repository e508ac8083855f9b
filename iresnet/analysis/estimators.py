"""Bias, standard deviation and cost of log-determinant estimators, against the exact value at examples."""

__all__ = [
    "ESTIMATORS",
    "EstimatorCase",
    "EstimatorRow",
    "LogDetAnalysis",
    "analyze_logdet",
]

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from iresnet.analysis.reference import DENSE_LIMIT, Reference, block_calls, reference
from iresnet.bijections import Bijection
from iresnet.errors import IResNetError
from iresnet.jacobian import Linearization
from iresnet.lipschitz import hold_weights
from iresnet.logdet import Hutchinson, Krylov
from iresnet.operators import to_vectors
from iresnet.series import PowerSeries, RussianRoulette


@dataclass(frozen=True)
class EstimatorCase:
    """Estimator that is measured.

    Attributes:
        family: name of the estimators that differ from it in size only.
        size: terms or steps, None where chance or a tolerance decides.
        make: builds it with one probe; called with ``generator=``.
        one_length: it draws one length for a batch, so that only different batches are independent.
    """

    family: str
    size: int | None
    make: Callable[..., Hutchinson]
    one_length: bool = False


ESTIMATORS = (
    *(EstimatorCase("series, Gaussian", n, partial(PowerSeries, n, probe="gaussian")) for n in range(1, 11)),
    *(EstimatorCase("series, Rademacher", n, partial(PowerSeries, n)) for n in range(1, 11)),
    EstimatorCase("roulette", None, RussianRoulette, one_length=True),
    *(EstimatorCase("Krylov", n, partial(Krylov, n)) for n in range(1, 7)),
    EstimatorCase("Krylov, tol=0.01", None, partial(Krylov, tol=1e-2)),
)
"""Estimators that :func:`analyze_logdet` measures."""


@dataclass(frozen=True)
class EstimatorRow:
    """Errors of one estimator with one probe: of the sum over the blocks, in nats.

    Attributes:
        family: see :class:`EstimatorCase`.
        size: see :class:`EstimatorCase`.
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
    """Errors and costs of estimators of the log-determinant of a model.

    Attributes:
        rows: one for each estimator.
        logdet: mean log-determinant over the examples, sum over the blocks, in nats.
        exact: whether dense algebra gives it for all blocks.
        reference_error: error of the values that estimates are compared with, in nats, summed over the blocks, largest
            of all examples.
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
        """Nats in one bit/dim."""
        return self.dims * math.log(2)

    @property
    def method(self) -> str:
        """Method by which the values that estimates are compared with are computed."""
        if self.exact:
            return "exact dense log-determinants in float64"
        return f"converged Krylov values, since blocks have more than {DENSE_LIMIT} dimensions"

    @property
    def summary(self) -> str:
        """Main finding in one sentence."""
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
        """Return the row of an estimator."""
        return next(row for row in self.rows if (row.family, row.size) == (family, size))

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for JSON."""
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
    estimators: Sequence[EstimatorCase] = ESTIMATORS,
    progress: Callable[[int], None] = lambda done: None,
) -> LogDetAnalysis:
    r"""Measure estimators at examples, each block at each example with probes of its own.

    The bias is the mean difference of an estimate from the exact value for the same probe, and is measurable far below
    the standard deviation of the estimates. Cost: D Jacobian products for each block and example, and work of the
    order :math:`D^3`.

    Args:
        bijection: the model, in float64.
        x: examples.
        draws: probes for each block and example.
        seed: of the probes.
        estimators: the estimators.
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
    moments: list[list[_Moments]] = [[] for _ in estimators]
    logdets, errors, done = [], [], 0
    with hold_weights(bijection, iterate=False):
        for example in x.split(1):
            block_logdets, error = [], 0.0
            for call in block_calls(bijection, example):
                truth = reference(call)
                measured = [_moments(truth, estimator, draws, seed + done * draws) for estimator in estimators]
                for column, cell in zip(moments, measured, strict=True):
                    column.append(cell)
                block_logdets.append(measured[-1].exact if truth.logdet is None else truth.logdet)
                error += max(cell.error for cell in measured)
                done += 1
                progress(done)
            logdets.append(sum(block_logdets))
            errors.append(error)
    rows = tuple(_row(estimator, column, len(x)) for estimator, column in zip(estimators, moments, strict=True))
    blocks = done // len(x)
    exact = all(cell.known for cell in moments[0])
    return LogDetAnalysis(rows, statistics.fmean(logdets), exact, max(errors), x[0].numel(), blocks, len(x), draws)


# -- one estimator, one block, one example -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Moments:
    """Moments of an estimator's error at one block and example."""

    bias: float
    bias_variance: float
    variance: float
    products: float
    gradient_error: float  # squared
    gradient_size: float  # squared
    exact: float  # mean of what the same probes give exactly
    error: float
    known: bool


def _moments(truth: Reference, estimator: EstimatorCase, draws: int, seed: int) -> _Moments:
    generator = Generator().manual_seed(seed)
    copies = 1 if estimator.one_length else draws
    jacobian = truth.linearization(copies)
    calls = [_estimate(estimator.make(generator=generator), jacobian) for _ in range(draws // copies)]
    value, v, w = (torch.cat(column) for column in zip(*(call[:3] for call in calls), strict=True))
    exact, exact_w, error = truth.evaluate(v)
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
    """Return values, (n,), probes v and vectors w of the gradient <w, dJ v>, (n, D), and the number of products.

    The Jacobian product is replaced by a function that records v and returns a leaf, whose gradient is w.
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


def _row(estimator: EstimatorCase, cells: Sequence[_Moments], n: int) -> EstimatorRow:
    """Sum the moments over the blocks, and average them over the n examples."""
    return EstimatorRow(
        estimator.family,
        estimator.size,
        products=statistics.fmean(cell.products for cell in cells),
        bias=sum(cell.bias for cell in cells) / n,
        bias_error=math.sqrt(sum(cell.bias_variance for cell in cells)) / n,
        sd=math.sqrt(sum(cell.variance for cell in cells) / n),
        gradient_error=math.sqrt(sum(c.gradient_error for c in cells) / sum(c.gradient_size for c in cells)),
    )
