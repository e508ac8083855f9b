"""What numerics.py measures of estimators of the log-determinant: values, what they report of themselves, times."""

__all__ = [
    "ESTIMATORS",
    "SHARED_LENGTH",
    "Images",
    "Make",
    "closed_form_bias",
    "draw",
    "reports",
    "seconds",
    "seeded",
    "spectrum",
    "values",
]

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle

import torch
from exact import ExactBlock, SameProbe
from subjects import Subject, blocks_of
from torch import Generator, Tensor

import iresnet as ir
from iresnet.bounds import upper_bound
from iresnet.lipschitz import hold_weights
from iresnet.logdet import Hutchinson, LogDetEstimator

Make = Callable[..., Hutchinson]
Images = Sequence[Sequence[ExactBlock]]  # of each image its blocks
Row = dict[str, float]

ESTIMATORS: dict[str, Make] = {
    **{f"PowerSeries {n}, Gaussian": partial(ir.PowerSeries, n, probe="gaussian") for n in (2, 3, 5, 10, 20)},
    **{f"PowerSeries {n}, Rademacher": partial(ir.PowerSeries, n) for n in (2, 3, 5, 10, 20)},
    "RussianRoulette": ir.RussianRoulette,
    **{f"Krylov {n}": partial(ir.Krylov, n) for n in (2, 3, 4, 5, 7, 10)},
}
"""By name; called with ``generator=`` and ``n_probes=``."""

SHARED_LENGTH = {ir.RussianRoulette}
"""Draw one length for a whole batch, so that only different batches are independent."""


def seeded(make: Make, seed: int, **options) -> Hutchinson:
    """Build an estimator with randomness of its own."""
    return make(generator=Generator().manual_seed(seed), **options)


@dataclass(frozen=True)
class Draws:
    """Independent estimates of the log-determinant of a block, (n,) each.

    Attributes:
        value: the estimates.
        error: what they differ by from what the same probes give exactly.
        standard_error: as reported.
        bias: as reported.
        n_products: mean Jacobian products.
    """

    value: Tensor
    error: Tensor
    standard_error: Tensor
    bias: Tensor
    n_products: float


def draw(block: ExactBlock, make: Make, n: int, *, seed: int, n_probes: int = 1, lipschitz: float = math.inf) -> Draws:
    """Estimate the log-determinant of a block n times, with probes of this seed and the next ones."""
    copies = 1 if make in SHARED_LENGTH else n
    J = block.linearization(copies)
    estimates, errors = [], []
    for call in range(seed, seed + n // copies):
        estimator = seeded(make, call, n_probes=n_probes)
        exact = seeded(partial(SameProbe, block), call, n_probes=n_probes, probe=estimator.probe)
        estimates.append(estimator.estimate(J, lipschitz=lipschitz))
        errors.append(estimates[-1].value - exact.estimate(J).value)
    value, standard_error, bias = (
        torch.cat([getattr(e, key) for e in estimates]) for key in ("value", "standard_error", "bias")
    )
    n_products = statistics.fmean(e.n_products for e in estimates)
    return Draws(value, torch.cat(errors), standard_error, bias, n_products)


# -- values ----------------------------------------------------------------------------------------------------------


def values(images: Images, n: int) -> dict[str, Row]:
    """Of every estimator with one probe: bias and its standard error, standard deviation, products of one block.

    The log-determinant is the sum over the blocks. The bias is a mean over the images; the standard deviation is the
    root mean square of those of the images.

    Args:
        images: their blocks.
        n: probes for each block and image.
    """
    return {name: _value_row(images, make, n) for name, make in ESTIMATORS.items()}


def _value_row(images: Images, make: Make, n: int) -> Row:
    # Probes that blocks or images shared would correlate their errors.
    draws = [draw(block, make, n, seed=i * n) for i, block in enumerate(chain.from_iterable(images))]
    return {
        "bias": sum(float(d.error.mean()) for d in draws) / len(images),
        "bias_error": math.sqrt(sum(float(d.error.var()) / n for d in draws)) / len(images),
        "sd": math.sqrt(sum(float(d.value.var()) for d in draws) / len(images)),
        "products": statistics.fmean(d.n_products for d in draws),
    }


def closed_form_bias(images: Images, n_terms: int) -> float:
    """The bias of the power series from the eigenvalues, mean over the images: a check of the sampled one."""
    total = 0.0
    for block in chain.from_iterable(images):
        series = sum(-((-block.eigenvalues) ** k) / k for k in range(1, n_terms + 1))
        total += float((series - torch.log1p(block.eigenvalues)).real.sum())
    return total / len(images)


# -- what estimators report of themselves ----------------------------------------------------------------------------

REPORTING = ("PowerSeries 5, Rademacher", "PowerSeries 20, Rademacher", "RussianRoulette", "Krylov 3", "Krylov 5")
CONVERGED: dict[str, Make] = {"Krylov tol=0.01": partial(ir.Krylov, tol=1e-2)}


def reports(subject: Subject, images: Images, n: int, *, n_probes: int = 4) -> dict[str, Row]:
    """True standard deviation and bias of an estimate from a few probes, beside those that it reports.

    Standard deviations are of the sum over the blocks, root mean squares over the images. Biases are sums over the
    blocks of their sizes, means over the images.
    """
    bounds = [upper_bound(block.g) for block in blocks_of(subject.flow)]
    makes = {name: ESTIMATORS[name] for name in REPORTING} | CONVERGED
    return {name: _report_row(images, make, bounds, n, n_probes) for name, make in makes.items()}


def _report_row(images: Images, make: Make, bounds: list[float], n: int, n_probes: int) -> Row:
    draws = [
        draw(block, make, n, seed=i * n, n_probes=n_probes, lipschitz=bound)
        for i, (block, bound) in enumerate(zip(chain.from_iterable(images), cycle(bounds), strict=False))
    ]
    errors = torch.stack([d.error.mean() for d in draws]).view(len(images), -1)
    return {
        "sd": math.sqrt(sum(float(d.value.var()) for d in draws) / len(images)),
        "reported_sd": math.sqrt(sum(float(d.standard_error.square().mean()) for d in draws) / len(images)),
        "bias": float(errors.mean(0).abs().sum()),
        "bias_error": math.sqrt(sum(float(d.error.var()) / n for d in draws)) / len(images),
        "reported_bias": sum(float(d.bias.mean()) for d in draws) / len(images),
    }


def spectrum(subject: Subject, images: Images) -> list[Row]:
    """Of each block over all images: eigenvalues of J (real parts), norm of J, certified bound, log-determinant."""
    rows = []
    for block, *exact in zip(blocks_of(subject.flow), *images, strict=True):
        real = torch.cat([e.eigenvalues.real for e in exact])
        row = {"least": float(real.min()), "largest": float(real.max())}
        row["norm"] = max(float(torch.linalg.matrix_norm(e.jacobian, 2)) for e in exact)
        row["bound"] = upper_bound(block.g)
        row["logdet"] = statistics.fmean(float(e.logdet) for e in exact)
        rows.append(row)
    return rows


# -- time ------------------------------------------------------------------------------------------------------------


def seconds(subject: Subject, *, batch: int = 32, rounds: int = 5) -> dict[str, Row]:
    """CPU seconds an image of a log-density, and of a training step without optimizer, in float32.

    The least of several runs in which the estimators take turns.
    """
    flow = subject.flow.float()
    x = subject.x.float().repeat(batch // len(subject.x) + 1, 1, 1, 1)[:batch]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ESTIMATORS}
    for _ in range(rounds):
        for name, make in ESTIMATORS.items():
            times[name].append((_density_time(flow, x, make()), _step_time(flow, x, make())))
    flow.double()
    least = {name: torch.tensor(of).amin(0) / batch for name, of in times.items()}
    return {name: dict(zip(("density", "step"), of.tolist(), strict=True)) for name, of in least.items()}


@torch.no_grad()
def _density_time(flow: ir.Flow, x: Tensor, estimator: LogDetEstimator) -> float:
    start = time.process_time()
    with hold_weights(flow):
        flow.log_prob(x, logdet=estimator)
    return time.process_time() - start


def _step_time(flow: ir.Flow, x: Tensor, estimator: LogDetEstimator) -> float:
    flow.zero_grad()
    start = time.process_time()
    with hold_weights(flow):
        flow.log_prob(x, logdet=estimator).mean().backward()
    return time.process_time() - start
