"""Errors of log-determinant estimators: bias and spread of values and gradients, reported errors, and CPU time."""

__all__ = [
    "ESTIMATORS",
    "GRADIENTS",
    "Gradient",
    "Images",
    "Make",
    "closed_form_bias",
    "gradients",
    "gradients_at",
    "reports",
    "seconds",
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
from subjects import ExactBlock, SameProbe, Subject, blocks_of
from torch import Generator, Tensor

import iresnet as ir
from iresnet.bounds import upper_bound
from iresnet.lipschitz import hold_weights
from iresnet.logdet import Hutchinson, LogDetEstimator

Make = Callable[..., Hutchinson]
Images = Sequence[Sequence[ExactBlock]]  # for each image its blocks
Row = dict[str, float]

ESTIMATORS: dict[str, Make] = {
    **{f"PowerSeries {n}, Gaussian": partial(ir.PowerSeries, n, probe="gaussian") for n in (2, 3, 5, 10, 20)},
    **{f"PowerSeries {n}, Rademacher": partial(ir.PowerSeries, n) for n in (2, 3, 5, 10, 20)},
    "RussianRoulette": ir.RussianRoulette,
    **{f"Krylov {n}": partial(ir.Krylov, n) for n in (2, 3, 4, 5, 7, 10)},
}
"""Constructors by name, called with ``generator=`` and ``n_probes=``."""

SHARED_LENGTH = {ir.RussianRoulette}
"""Estimators that draw one length for a whole batch, so that only different batches are independent."""


def seeded(make: Make, seed: int, **options) -> Hutchinson:
    """Build an estimator with a seeded generator."""
    return make(generator=Generator().manual_seed(seed), **options)


@dataclass(frozen=True)
class Draws:
    """Independent estimates of the log-determinant of a block, (n,) each.

    Attributes:
        value: the estimates.
        error: their differences from the exact values of the same probes.
        standard_error: as reported.
        bias: as reported.
        n_products: mean number of Jacobian products.
    """

    value: Tensor
    error: Tensor
    standard_error: Tensor
    bias: Tensor
    n_products: float


def draw(block: ExactBlock, make: Make, n: int, *, seed: int, n_probes: int = 1, lipschitz: float = math.inf) -> Draws:
    """Estimate the log-determinant of a block n times, with this seed and the following ones."""
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
    """Measure bias, its standard error, standard deviation and products of every estimator with one probe.

    The log-determinant is the sum over the blocks. The bias is a mean over the images; the standard deviation is the
    root mean square of those of the images.

    Args:
        images: exact blocks.
        n: probes for each block and image.
    """
    return {name: _value_row(images, make, n) for name, make in ESTIMATORS.items()}


def _value_row(images: Images, make: Make, n: int) -> Row:
    # Different seeds, since common probes would correlate the errors of blocks and images.
    draws = [draw(block, make, n, seed=i * n) for i, block in enumerate(chain.from_iterable(images))]
    return {
        "bias": sum(float(d.error.mean()) for d in draws) / len(images),
        "bias_error": math.sqrt(sum(float(d.error.var()) / n for d in draws)) / len(images),
        "sd": math.sqrt(sum(float(d.value.var()) for d in draws) / len(images)),
        "products": statistics.fmean(d.n_products for d in draws),
    }


def closed_form_bias(images: Images, n_terms: int) -> float:
    """Compute the bias of the power series from eigenvalues, as a mean over the images, to check the sampled one."""
    total = 0.0
    for block in chain.from_iterable(images):
        series = sum(-((-block.eigenvalues) ** k) / k for k in range(1, n_terms + 1))
        total += float((series - torch.log1p(block.eigenvalues)).real.sum())
    return total / len(images)


# -- reported errors ------------------------------------------------------------------------------------------------

REPORTING = ("PowerSeries 5, Rademacher", "PowerSeries 20, Rademacher", "RussianRoulette", "Krylov 3", "Krylov 5")
CONVERGED: dict[str, Make] = {"Krylov tol=0.01": partial(ir.Krylov, tol=1e-2)}


def reports(subject: Subject, images: Images, n: int, *, n_probes: int = 4) -> dict[str, Row]:
    """Measure standard deviation and bias of an estimate from a few probes, beside those that it reports.

    Standard deviations are those of the sum over the blocks, as root mean squares over the images. Biases are sums of
    absolute values over the blocks, as means over the images.
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
    """Return for each block, over all images: range of eigenvalues of J, its norm, its bound, mean log-determinant."""
    rows = []
    for block, *exact in zip(blocks_of(subject.flow), *images, strict=True):
        real = torch.cat([e.eigenvalues.real for e in exact])
        row = {"least": float(real.min()), "largest": float(real.max())}
        row["norm"] = max(float(torch.linalg.matrix_norm(e.jacobian, 2)) for e in exact)
        row["bound"] = upper_bound(block.g)
        row["logdet"] = statistics.fmean(float(e.logdet) for e in exact)
        rows.append(row)
    return rows


# -- gradients ---------------------------------------------------------------------------------------------------------

GRADIENTS = [name for name in ESTIMATORS if name not in ("PowerSeries 3, Gaussian", "Krylov 4", "Krylov 7")]


class Gradient:
    """Gradient of the log-determinant of an image with respect to the parameters of all residual blocks.

    It is that of the sum over the blocks, through the normalization of the weights and through the inputs of later
    blocks.

    Args:
        flow: the model, in float64.
        x: the image, (1, C, H, W).
        exact: the blocks at the image.
    """

    def __init__(self, flow: ir.Flow, x: Tensor, exact: Sequence[ExactBlock]):
        self.flow = flow
        self.x = x
        self.exact_blocks = exact
        self.blocks = blocks_of(flow)
        self.parameters = [p for block in self.blocks for p in block.parameters()]
        self.exact = self._gradient([ir.Exact()] * len(self.blocks), copies=1)
        self._same: dict[tuple[str, int, int], Tensor] = {}

    def moments(self, make: Make, *, copies: int = 8, batches: int = 16) -> tuple[float, float, float]:
        """Return bias, its noise, and standard deviation with one probe, relative to the norm of the exact gradient.

        Args:
            make: builds the estimator.
            copies: of the image in a batch, each with its own probe.
            batches: number of batches.
        """
        if make in SHARED_LENGTH:
            copies, batches = 1, copies * batches
        estimates = self._sample([make] * len(self.blocks), copies, batches)
        errors = estimates - self._same_probes(make().probe, copies, batches)
        size = float(self.exact.norm())
        noise = _total_sd(errors) / math.sqrt(batches)
        return float(errors.mean(0).norm()) / size, noise / size, _total_sd(estimates) * math.sqrt(copies) / size

    def variance(self, make: Make, *, copies: int, batches: int) -> float:
        """Return the variance of the mean over copies times their number, relative to the exact squared gradient."""
        estimates = self._sample([make] * len(self.blocks), copies, batches)
        return copies * _total_sd(estimates) ** 2 / float(self.exact.square().sum())

    def _same_probes(self, probe: str, copies: int, batches: int) -> Tensor:
        key = (probe, copies, batches)
        if key not in self._same:
            makes = [partial(SameProbe, block, probe=probe) for block in self.exact_blocks]
            self._same[key] = self._sample(makes, copies, batches)
        return self._same[key]

    def _sample(self, makes: Sequence[Make], copies: int, batches: int) -> Tensor:  # (batches, parameters)
        def estimators(batch: int) -> list[LogDetEstimator]:
            return [seeded(make, len(makes) * batch + i) for i, make in enumerate(makes)]

        return torch.stack([self._gradient(estimators(batch), copies) for batch in range(batches)])

    def _gradient(self, estimators: Sequence[LogDetEstimator], copies: int) -> Tensor:  # (parameters,)
        for block, estimator in zip(self.blocks, estimators, strict=True):
            block.logdet = estimator
        logdet = self.flow.bijection.forward_and_logdet(self.x.expand(copies, *self.x.shape[1:]))[1]
        gradients = torch.autograd.grad(logdet.mean(), self.parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in gradients])


def _total_sd(x: Tensor) -> float:  # (n, parameters)
    """Return the root of the summed variances over the first dimension."""
    return math.sqrt(float(x.var(0).sum()))


def gradients(subject: Subject, images: Images) -> dict[str, dict[str, float]]:
    """Measure bias, noise and standard deviation of every estimator, as root mean squares over the images."""
    at = gradients_at(subject, images)
    rows = {}
    for name in GRADIENTS:
        columns = zip(*(gradient.moments(ESTIMATORS[name]) for gradient in at), strict=True)
        rms = (math.sqrt(statistics.fmean(number**2 for number in column)) for column in columns)
        rows[name] = dict(zip(("bias", "noise", "sd"), rms, strict=True))
    return rows


def gradients_at(subject: Subject, images: Images) -> list[Gradient]:
    """Prepare the gradients at the first images of a subject, one for each given list of exact blocks."""
    return [Gradient(subject.flow, x, exact) for x, exact in zip(subject.x.split(1), images, strict=False)]


# -- time ------------------------------------------------------------------------------------------------------------


def seconds(subject: Subject, *, batch: int = 32, rounds: int = 5) -> dict[str, Row]:
    """Measure CPU seconds an image of a log-density and of a training step without optimizer, in float32.

    The times are minima over several rounds in which the estimators take turns.
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
