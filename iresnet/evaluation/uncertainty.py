"""Sources of uncertainty of a likelihood: images, noise, probes, and the bias of log-determinants."""

__all__ = ["Record", "Uncertainty", "recording", "variance_components", "weight_noise"]

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from iresnet.bijections import ResidualBlock
from iresnet.bounds import upper_bound
from iresnet.jacobian import Linearization
from iresnet.logdet import LogDetEstimate, LogDetEstimator


@dataclass(frozen=True)
class Uncertainty:
    """Contributions of chance and of approximation to a mean of bits/dim; all but products and nats in bits/dim.

    Attributes:
        images: half-width of a 95 % interval if only the choice of the examples were random.
        noise: the same for the noise of dequantization.
        probes: the same for the probes of the estimator; exactly 0 without probes.
        bias: size of the log-determinants' bias, summed over blocks, as the estimator reports it: a proved bound of
            :class:`~iresnet.PowerSeries`, the last step's change of :class:`~iresnet.Krylov`. None when no block bound
            proves one.
        bias_nats: the same in nats for one example.
        weights: by how much an importance-weighted bound may be too good, since its weights carry the error of the
            log-determinants: see :func:`weight_noise`.
        n_products: Jacobian products spent on one example.
    """

    images: float
    noise: float
    probes: float
    bias: float | None
    bias_nats: float | None
    weights: float
    n_products: float

    def __str__(self) -> str:
        bias = "not bounded, since a block is not certified"
        if self.bias is not None:
            bias = f"{self.bias:.2g} bits/dim ({self.bias_nats:.2g} nats)"
        lines = [
            f"half-width by images {self.images:.4f}, by dequantization {self.noise:.4f}, by probes {self.probes:.4f}",
            f"bias of log-determinants {bias}, with {self.n_products:.0f} Jacobian products an example",
        ]
        if self.weights:
            lines.append(f"importance weights are noisy: too good by up to {self.weights:.2g} bits/dim")
        return "\n".join(lines)


# -- chance ----------------------------------------------------------------------------------------------------------


def variance_components(
    values: Tensor,  # (R, L, N)
    total: float,
) -> tuple[float, float, float]:
    r"""Split the variance of one evaluation of one image: between images, noise draws, and probe draws.

    Analysis of variance of the nested model :math:`y_{ikl} = \mu + a_i + b_{ik} + c_{ikl}`: the variance within the
    probes l of one noisy image estimates that of c, and the variance of their means between noise draws k that of
    :math:`b + c / L`. All are unbiased before those below 0 become 0.

    Args:
        values: of N images with R noise draws, and L probe draws for each of these.
        total: variance of values of different images, each with its own noise and probes.

    Returns:
        Variances of a, b, c; those of c and b are 0 with one draw.

    Reference:
        Variance Components, Searle, Casella and McCulloch 1992, https://doi.org/10.1002/9780470316856
    """
    n_noise, n_probes = values.shape[:2]
    probes = float(values.var(1).mean()) if n_probes > 1 else 0.0
    noise = float(values.mean(1).var(0).mean()) - probes / n_probes if n_noise > 1 else 0.0
    noise = max(0.0, noise)
    return max(0.0, total - noise - probes), noise, probes


def weight_noise(log_probs: Tensor) -> float:  # (R, K, L, N)
    r"""Bound the nats by which noisy log-determinants may make an importance-weighted bound too good.

    With errors :math:`\varepsilon_k` of the log-densities, the weights are multiplied with
    :math:`e^{\varepsilon_k}`, whose mean is above 1. An error that all draws share only shifts the bound, by 0 on
    average, so that what counts is the variance :math:`\sigma^2` between the K draws of one image. For normal errors

    .. math:: 0 \le E \log \sum_k w_k e^{\varepsilon_k} - \log \sum_k w_k \le \frac{\sigma^2}{2},

    and :math:`\sigma^2` is the interaction of draws and probes, unbiased from L probes on the same K draws.

    Args:
        log_probs: of N images, with R sets of K noise draws, and the same L probes for all draws of a set.
    """
    n_draws, n_probes = log_probs.shape[1:3]
    if min(n_draws, n_probes) < 2:
        return 0.0
    centered = log_probs - log_probs.mean(1, keepdim=True)
    centered = centered - centered.mean(2, keepdim=True)
    return float(centered.square().sum((1, 2)).mean()) / ((n_draws - 1) * (n_probes - 1)) / 2


# -- approximation ---------------------------------------------------------------------------------------------------


@dataclass
class Record:
    """Sum of the reports of estimators over blocks and samples.

    Attributes:
        bias: sizes of biases in nats.
        n_products: Jacobian products.
    """

    bias: float = 0.0
    n_products: float = 0.0

    def add(self, report: LogDetEstimate) -> None:
        """Count the report on a batch in one block."""
        self.bias += float(report.bias.double().sum())
        self.n_products += report.n_products * len(report.value)

    def plus(self, other: "Record") -> "Record":
        """Add another record."""
        return Record(self.bias + other.bias, self.n_products + other.n_products)

    def take(self) -> "Record":
        """Return what was counted since the last call."""
        counted = replace(self)
        self.bias = self.n_products = 0.0
        return counted

    def mean(self, n_examples: int, n_draws: int) -> "Record":
        """Return the bias of one log-density, and the products for all draws of one example."""
        return Record(self.bias / (n_examples * n_draws), self.n_products / n_examples)


class _Recorder(LogDetEstimator):
    """Estimator that counts the reports of another one on one block; without gradients."""

    def __init__(self, inner: LogDetEstimator, lipschitz: float, record: Record):
        self.inner = inner
        self.lipschitz = lipschitz
        self.record = record

    def prepare(self, jacobian: Linearization) -> Callable[[Linearization], Tensor]:
        """Estimate the log-determinants, and count what the estimator reports."""
        report = self.estimate(jacobian, lipschitz=self.lipschitz)
        self.record.add(report)
        return lambda _: report.value

    def estimate(self, jacobian: Linearization, *, lipschitz: float = math.inf) -> LogDetEstimate:
        """Estimate the log-determinants as the other estimator does."""
        return self.inner.estimate(jacobian, lipschitz=lipschitz)


def recording(model: nn.Module, estimator: LogDetEstimator, record: Record) -> dict[nn.Module, LogDetEstimator]:
    """Return an estimator for each residual block of a model, which counts its reports.

    Each block's own Lipschitz bound goes to the estimator, for bounds of the bias that need one.

    Args:
        model: any module; its residual blocks are found inside.
        estimator: of the log-determinants.
        record: counts the reports of all blocks.
    """
    blocks = (module for module in model.modules() if isinstance(module, ResidualBlock))
    return {block: _Recorder(estimator, upper_bound(block.g), record) for block in blocks}
