"""Test likelihood, with its error bar, and densities that a model must beat."""

__all__ = [
    "Estimate",
    "Likelihood",
    "default_estimator",
    "estimate",
    "gaussian_baseline",
    "likelihood",
    "summarize",
    "true_density",
    "uniform_baseline",
]

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from iresnet.bijections import ResidualBlock, VariationalDequantization
from iresnet.data import CONDITIONAL_TOYS, TOYS, Dataset, Split
from iresnet.errors import DataError, IResNetError
from iresnet.evaluation.batching import (
    Batch,
    RandomNumbers,
    check_draws,
    check_finite,
    evaluate_in_batches,
    evaluation_mode,
    importance_weighted,
    model_inputs,
    reference_tensor,
)
from iresnet.evaluation.uncertainty import Record, Uncertainty, recording, variance_components, weight_noise
from iresnet.flows import Flow
from iresnet.logdet import EXACT_LIMIT, Exact, Krylov, LogDetEstimator
from iresnet.renamed import accept_old_names

LogProb = Callable[[Tensor, Tensor | None], Tensor]

# -- likelihood --------------------------------------------------------------------------------------------------------


FEWEST = 64
"""Examples, in at least two batches, before a standard error is reliable enough to stop on."""


@dataclass(frozen=True)
class Estimate:
    """Mean over examples with its 95 % interval (normal approximation).

    Attributes:
        mean: the mean.
        half_width: 1.96 standard errors.
    """

    mean: float
    half_width: float

    @property
    def standard_error(self) -> float:
        """Standard error of the mean."""
        return self.half_width / 1.96

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.half_width:.4f}"


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of a split under a density.

    Attributes:
        bits_per_dim: -log p / (D log 2).
        nats: -log p, for one example.
        n: examples that were evaluated.
        dims: D.
        estimator: of the log-determinant, or how else the density was evaluated.
        dequantize_samples: noise draws for each example.
        uncertainty: sources of the interval, and the bias that it leaves out; None for closed forms.
        classes: bits/dim of each class of labeled data; None for one with fewer than two examples.
        bound: of integers, the noise by which the bits/dim are an upper bound, ``"uniform dequantization"`` or
            ``"variational dequantization"``; empty where they are exact.
    """

    bits_per_dim: Estimate
    nats: Estimate
    n: int
    dims: int
    estimator: str
    dequantize_samples: int = 1
    uncertainty: Uncertainty | None = None
    classes: tuple[Estimate | None, ...] = ()
    bound: str = ""

    def __str__(self) -> str:
        return f"{self.bits_per_dim} bits/dim ({self.nats} nats; {self.n} examples, {self.estimator})"


@torch.no_grad()
@accept_old_names
def likelihood(
    flow: Flow,
    split: Split,
    *,
    levels: int | None,
    logdet: LogDetEstimator | None = None,
    standard_error: float | None = None,
    dequantize_samples: int = 1,
    n_repeated: int = 64,
    batch_size: int = 128,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Likelihood:
    r"""Evaluate the density of a split.

    Integer data x are dequantized, :math:`x + u` with u uniform on the cell: the mean is then that of an upper bound of
    their bits/dim. So it is where u becomes noise that is learned (:class:`~iresnet.VariationalDequantization`), with
    :math:`p(x + u) / q(u \mid x)` in place of :math:`p(x + u)`. With K noise draws for each example the bound is
    importance-weighted,

    .. math:: \log P(x) = \log E\, p(x + u) \ge E \log \frac{1}{K} \sum_{k=1}^{K} p(x + u_k)
        \ge E \log p(x + u),

    and its expectation only improves with K. The interval covers images, noise and probes together, each example with
    its own; ``uncertainty`` estimates the share of each from a few examples that are evaluated repeatedly.

    All draws of an example meet the same probes: what errors of the log-determinant they share cancels in the
    importance weights. What is left makes the bound too good, by at most ``uncertainty.weights``;
    ``Exact``, more probes and ``Krylov`` with a small ``tol`` lower it. :class:`~iresnet.RussianRoulette` draws one
    length for a batch, so its errors are not independent and the interval is too narrow.

    Args:
        flow: the density.
        split: the examples; they are taken in an order that depends on the seed.
        levels: values that an integer component takes, none for continuous data.
        logdet: estimator; exact up to 128 dimensions and ``Krylov(tol=1e-2)`` above when None.
        standard_error: stop when that of the mean, in bits/dim, is at most this; after two batches and 64 examples at
            the earliest, and when all examples are done.
        dequantize_samples: K, noise draws for each example.
        n_repeated: examples of which repetitions tell images, noise and probes apart.
        batch_size: examples at a time.
        seed: of order, noise and probes.
        progress: called with the number of examples done after each batch.

    Raises:
        DataError: when the split has a single example, which gives no error bar, or several draws are asked for
            continuous data, which have no noise.
        IResNetError: when a likelihood is not finite, or a number is out of range.

    Reference:
        A note on the evaluation of generative models, Theis, van den Oord and Bethge 2016,
        https://arxiv.org/abs/1511.01844 (K = 1); Importance Weighted Autoencoders, Burda et al. 2016,
        https://arxiv.org/abs/1509.00519; Flow++, Ho et al. 2019, https://arxiv.org/abs/1902.00275 (of dequantization)

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.Affine(), ir.StandardNormal(2))
        >>> result = likelihood(flow, Split(torch.randn(1000, 2)), levels=None)
        >>> abs(result.nats.mean - math.log(2 * math.pi) - 1) < 0.2
        True
    """
    if standard_error is not None and not standard_error > 0:
        raise IResNetError(f"standard_error is in bits/dim and must be positive, got {standard_error}")
    for name, count in (("n_repeated", n_repeated), ("batch_size", batch_size)):
        if count < 1:
            raise IResNetError(f"{name} must be at least 1, got {count}")
    check_draws(dequantize_samples, levels)
    dims = split.x[0].numel()
    bit = dims * math.log(2)
    estimator = logdet or default_estimator(dims)
    tensor = reference_tensor(flow)
    random = RandomNumbers(levels, tensor.dtype, n_draws=dequantize_samples, seed=seed)
    split = split.shuffled(seed)
    examples = split.to(tensor.device)
    record = Record()
    target = None if standard_error is None else standard_error * bit
    n_noise, n_probes = 1 if levels is None else 2, 1 if isinstance(estimator, Exact) else 2
    with evaluation_mode(flow):
        log_prob = _log_prob(flow, estimator.drawing_from(random.probes), record)
        nats, total = _evaluate(flow, log_prob, examples, batch_size, random, record, target, progress)
        few = examples.take(torch.arange(min(n_repeated, len(nats)), device=tensor.device))
        repeats = _evaluate_repeatedly(flow, log_prob, few, batch_size, random, n_noise, n_probes)
    result = summarize(nats, dims, str(estimator), dequantize_samples)
    uncertainty = _uncertainty(nats, repeats, total.mean(len(nats), dequantize_samples), bit)
    classes = _class_means(nats / bit, split.y)
    return replace(result, uncertainty=uncertainty, classes=classes, bound=_bound(levels, flow))


def _log_prob(flow: Flow, estimator: LogDetEstimator, record: Record) -> LogProb:
    """Return the log-density of examples, given their contexts where the flow depends on one."""
    recorders = recording(flow, estimator, record)

    def log_prob(x: Tensor, y: Tensor | None) -> Tensor:
        if flow.context_encoder is None or y is None:
            return flow.log_prob(x, logdet=recorders)
        density = flow.given(y)
        blocks = (module for module in density.modules() if isinstance(module, ResidualBlock))
        return density.log_prob(x, logdet=dict(zip(blocks, recorders.values(), strict=True)))

    return log_prob


def _bound(levels: int | None, density: nn.Module | None = None) -> str:
    """Name the noise by which likelihoods of integers are bounded."""
    if levels is None:
        return ""
    parts = () if density is None else density.modules()
    learned = any(isinstance(part, VariationalDequantization) for part in parts)
    return f"{'variational' if learned else 'uniform'} dequantization"


def default_estimator(dims: int) -> LogDetEstimator:
    """Return the estimator for evaluation: the dense log-determinant where it is cheap, else converged Krylov."""
    return Exact() if dims <= EXACT_LIMIT else Krylov(tol=1e-2)


def _evaluate(
    flow: Flow,
    log_prob: LogProb,
    examples: Split,
    batch_size: int,
    random: RandomNumbers,
    record: Record,
    target: float | None,
    progress: Callable[[int], None],
) -> tuple[Tensor, Record]:  # (n,)
    """Return negative log-likelihoods, of all examples or until their mean has a standard error of ``target``."""

    def evaluate(batch: Batch) -> tuple[Tensor, Record]:
        return importance_weighted(_log_probs(log_prob, batch, random)[:, 0]), record.take()

    def is_precise(results: list[tuple[Tensor, Record]]) -> bool:
        nats = torch.cat([values for values, _ in results])
        enough = len(results) > 1 and len(nats) >= FEWEST
        return enough and target is not None and float(nats.std()) <= target * math.sqrt(len(nats))

    batches = (random.batch(some) for some in examples.split(batch_size))
    stop = None if target is None else is_precise
    results = evaluate_in_batches(flow, batches, evaluate, stop=stop, progress=progress)
    random.rewind(len(results))  # batches may have been made for other processes after the last one
    total = Record()
    for _, counted in results:
        total = total.plus(counted)
    return torch.cat([values for values, _ in results]), total


def _evaluate_repeatedly(
    flow: Flow,
    log_prob: LogProb,
    examples: Split,
    batch_size: int,
    random: RandomNumbers,
    n_noise: int,
    n_probes: int,
) -> Tensor:  # (R, K, L, M)
    """Evaluate R sets of K noise draws of each example, each set with its own L probes."""
    batches = ([random.batch(some, n_probes) for _ in range(n_noise)] for some in examples.split(batch_size))
    repeats = evaluate_in_batches(
        flow, batches, lambda sets: torch.stack([_log_probs(log_prob, batch, random) for batch in sets])
    )
    return torch.cat(repeats, dim=-1)


def _log_probs(log_prob: LogProb, batch: Batch, random: RandomNumbers) -> Tensor:  # (K, L, N)
    """Evaluate a batch under each of its K noise draws and L sets of probes."""
    rows = []
    for x in random.inputs(batch):
        row = []
        for seed in batch.seeds:
            random.seed_probes(seed)
            row.append(check_finite(log_prob(x, batch.y).double().cpu()))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def _uncertainty(nats: Tensor, repeats: Tensor, spent: Record, bit: float) -> Uncertainty:  # (N,), (R, K, L, M)
    variances = variance_components(importance_weighted(repeats, dim=1), float(nats.var()))
    images, noise, probes = (1.96 * math.sqrt(variance / len(nats)) / bit for variance in variances)
    bias = spent.bias if math.isfinite(spent.bias) else None
    weights = weight_noise(repeats) / bit
    return Uncertainty(images, noise, probes, None if bias is None else bias / bit, bias, weights, spent.n_products)


def _class_means(bits: Tensor, y: Tensor | None) -> tuple[Estimate | None, ...]:  # (n,), (N,)
    """Average over the evaluated examples of each class, which are the first n."""
    if y is None or y.is_floating_point():  # contexts
        return ()
    members = [bits[y[: len(bits)].cpu() == label] for label in range(int(y.max()) + 1)]
    return tuple(estimate(values) if len(values) > 1 else None for values in members)


def summarize(nats: Tensor, dims: int, estimator: str, dequantize_samples: int = 1) -> Likelihood:  # (N,)
    """Return mean and interval of negative log-likelihoods in nats."""
    bits = estimate(nats / (dims * math.log(2)))
    return Likelihood(bits, estimate(nats), len(nats), dims, estimator, dequantize_samples)


def estimate(values: Tensor) -> Estimate:  # (N,)
    """Return mean and 95 % interval of a number that every example has."""
    if len(values) < 2:
        raise DataError("an error bar needs at least 2 examples, the split has 1; evaluate another split")
    return Estimate(float(check_finite(values).mean()), 1.96 * float(values.std()) / math.sqrt(len(values)))


# -- baselines ---------------------------------------------------------------------------------------------------------


def uniform_baseline(dataset: Dataset, split: Split) -> Likelihood:
    """Evaluate the uniform density on [0, levels): log2(levels) bits/dim for integer data.

    Args:
        dataset: names the levels.
        split: the examples that are evaluated.

    Raises:
        DataError: for continuous data, which have no levels.
    """
    if dataset.levels is None:
        raise DataError("continuous data have no uniform baseline")
    dims = split.x[0].numel()
    return summarize(torch.full((len(split),), dims * math.log(dataset.levels)).double(), dims, "closed form")


def true_density(dataset: Dataset, split: Split) -> Likelihood:
    """Evaluate the density that a toy data set was drawn from, which no model beats except by chance.

    Args:
        dataset: one of :data:`iresnet.data.TOYS`, or of :data:`iresnet.data.CONDITIONAL_TOYS`, given its contexts.
        split: the examples that are evaluated.

    Raises:
        DataError: for data whose law is not known.
    """
    if dataset.name in CONDITIONAL_TOYS and split.y is not None:
        log_prob = CONDITIONAL_TOYS[dataset.name].log_prob(split.x, split.y)
    elif dataset.name in TOYS:
        log_prob = TOYS[dataset.name].log_prob(split.x)
    else:
        raise DataError(f"the law of {dataset.name} is not known")
    return summarize(-log_prob.double(), dataset.shape[0], "closed form")


def gaussian_baseline(dataset: Dataset, split: Split, *, dequantize_samples: int = 1, seed: int = 0) -> Likelihood:
    """Evaluate a normal density with full covariance, fitted to the dequantized training split.

    Dequantization adds 1/12 to the variances and 1/2 to the means, exactly; the split is dequantized as in
    :func:`~iresnet.evaluation.likelihood`, with one draw by the very same noise.

    Args:
        dataset: whose training split is fitted.
        split: the examples that are evaluated.
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
    shift, variance = (0.5, 1 / 12) if dataset.levels else (0.0, 0.0)
    covariance = torch.cov(x.T).reshape(dims, dims) + variance * torch.eye(dims, dtype=x.dtype)
    factor, info = torch.linalg.cholesky_ex(covariance)
    # The share of each feature's variance that the features before it do not explain.
    unexplained = factor.diagonal().square() / covariance.diagonal()
    if int(info) or not float(unexplained.min()) > 1e-10:
        raise DataError(f"no Gaussian baseline: the covariance of {len(x)} examples in {dims} dimensions is singular")
    noise = torch.Generator().manual_seed(seed)
    examples = split.shuffled(seed).x
    log_probs = []
    for _ in range(dequantize_samples):
        y = model_inputs(examples, dataset.levels, noise, torch.float64).flatten(1)
        log_probs.append(_normal_log_prob(y - x.mean(0) - shift, factor))
    result = summarize(importance_weighted(torch.stack(log_probs)), dims, "closed form", dequantize_samples)
    return replace(result, bound=_bound(dataset.levels))


def _normal_log_prob(x: Tensor, factor: Tensor) -> Tensor:  # (N, D), (D, D) -> (N,)
    """Return the log-density of a normal law with mean 0 and covariance ``factor @ factor.T``."""
    z = torch.linalg.solve_triangular(factor, x.T, upper=False)
    return -0.5 * z.square().sum(0) - factor.diagonal().log().sum() - 0.5 * len(factor) * math.log(2 * math.pi)
