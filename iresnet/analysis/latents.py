"""Tests of latents against the base density, and their principal components."""

__all__ = [
    "KSTest",
    "LatentAnalysis",
    "Moments",
    "Projection",
    "Radius",
    "analyze_latent",
    "latent_scales",
]

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from iresnet.bases import Base
from iresnet.bijections import latent_shapes
from iresnet.errors import DataError

SIGNIFICANCE = 1e-3
"""Level of significance: a claim with a smaller p-value is rejected."""

PROBABILITIES = np.array([1e-4, 1e-3, *np.linspace(0.01, 0.99, 50), 0.999, 0.9999])
"""Probabilities of the quantiles."""

N_POINTS = 500
"""Examples of which the projection is kept."""


@dataclass(frozen=True)
class KSTest:
    """Result of a Kolmogorov-Smirnov test.

    Attributes:
        statistic: largest difference of the distribution functions, 0 to 1.
        p_value: probability of a statistic as large if the claim holds.
        n: sample size; the larger it is, the smaller are the differences that are rejected.
    """

    statistic: float
    p_value: float
    n: int

    @property
    def rejected(self) -> bool:
        """True if the claim is rejected."""
        return self.p_value < SIGNIFICANCE

    def __str__(self) -> str:
        return f"KS {self.statistic:.3f} (p = {self.p_value:.2g}, n = {self.n})"


@dataclass(frozen=True)
class Moments:
    """Moments of each dimension over the examples; normal ones have mean 0, sd 1, excess kurtosis 0.

    Attributes:
        mean: (D,).
        sd: standard deviation, (D,).
        kurtosis: excess, (D,).
        mean_error: standard error of a mean if the claim holds.
        sd_error: of a standard deviation.
        kurtosis_error: of a kurtosis.
    """

    mean: list[float]
    sd: list[float]
    kurtosis: list[float]
    mean_error: float
    sd_error: float
    kurtosis_error: float


@dataclass(frozen=True)
class Scale:
    """Dimensions of the latent that leave the model at one scale.

    Attributes:
        name: such as ``"scale 1"``.
        start: first dimension.
        stop: one past the last dimension.
        elements: test of all elements of the examples against the standard normal distribution.
        quantiles: of the elements, at :data:`PROBABILITIES`.
    """

    name: str
    start: int
    stop: int
    elements: KSTest
    quantiles: list[float]


@dataclass(frozen=True)
class Radius:
    """Squared lengths of latents, divided by D.

    Attributes:
        mean: 1 if the claim holds.
        sd: standard deviation.
        claimed_sd: that of the chi-square distribution with D degrees of freedom, divided by D.
        test: against that distribution.
        edges: of the histogram, evenly spaced in their logarithm.
        counts: of the histogram.
    """

    mean: float
    sd: float
    claimed_sd: float
    test: KSTest
    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class Projection:
    """Principal components.

    Attributes:
        variances: largest ones, descending.
        share: of the whole variance, in the first two.
        edge: quantile of the largest variance that it exceeds with a probability of one in a thousand if all dimensions
            are independent and standard normal (Johnstone); None for features.
        points: the first examples on the first two components.
        labels: their classes, empty without labels.
    """

    variances: list[float]
    share: float
    edge: float | None
    points: list[list[float]]
    labels: list[int]


@dataclass(frozen=True)
class LatentAnalysis:
    """Distribution of latents, or of the features of a classifier.

    Attributes:
        n: examples.
        dims: D.
        projection: principal components.
        moments: of each dimension; None for a classifier, of whose features nothing is claimed.
        radius: lengths; None for a classifier.
        scales: one for each scale of the model, none for a classifier.
    """

    n: int
    dims: int
    projection: Projection
    moments: Moments | None = None
    radius: Radius | None = None
    scales: tuple[Scale, ...] = ()

    @property
    def rejected(self) -> list[str]:
        """Names of the claims of the base density that are rejected."""
        found = [f"elements of {scale.name}" for scale in self.scales if scale.elements.rejected]
        if self.radius and self.radius.test.rejected:
            found.append("lengths")
        edge = self.projection.edge
        if edge is not None and self.projection.variances[0] > edge:
            found.append("independence")
        return found

    @property
    def summary(self) -> str:
        """Main finding in one sentence."""
        if self.radius is None:
            share = 100 * self.projection.share
            return (
                f"Two of {self.dims} directions hold {share:.2g} % of the variance of the features ({self.n} examples)."
            )
        verdict = f"rejected by {', '.join(self.rejected)}" if self.rejected else "not rejected"
        elements, lengths = max(scale.elements.statistic for scale in self.scales), self.radius
        return (
            f"Latents of {self.n} examples against the base density: it is {verdict}; elements differ from a normal "
            f"distribution by KS {elements:.3f}, squared lengths over D are {lengths.mean:.3f} with a standard "
            f"deviation of {lengths.sd:.3f} (claimed: 1 and {lengths.claimed_sd:.3f}), and the largest variance of a "
            f"direction is {self.projection.variances[0]:.2f} (at most {self.projection.edge:.2f} if independent)."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for JSON."""
        probabilities = PROBABILITIES.tolist()
        normal = stats.norm.ppf(PROBABILITIES).tolist()
        claims = {"rejected": self.rejected, "probabilities": probabilities, "normal_quantiles": normal}
        return {"summary": self.summary, **(claims if self.radius else {}), **asdict(self)}

    def __str__(self) -> str:
        return self.summary


# -- tests -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def analyze_latent(
    encode: Callable[[Tensor], Tensor],
    x: Tensor,  # (N, *E)
    y: Tensor | None = None,  # (N,)
    *,
    base: Base | None = None,
    batch_size: int = 128,
    progress: Callable[[int], None] = lambda done: None,
) -> LatentAnalysis:
    r"""Test latents against the base density, and project them on their main directions.

    If the model is right, standardized latents u are independent standard normal numbers: so are their elements,
    :math:`|u|^2` is chi-square distributed with D degrees of freedom, and no direction has a much larger variance than
    :math:`(1 + \sqrt{D/N})^2`, up to fluctuations by the law of Tracy and Widom.

    Args:
        encode: a bijection from data to latents, or any map to features.
        x: examples.
        y: their classes.
        base: the base density; None for features, of which nothing is claimed.
        batch_size: examples at a time.
        progress: called with the number of examples done.

    Raises:
        DataError: when there are too few examples for statistics, fewer than 8, or latents are not finite.
        RecipeError: for a base density without :meth:`~iresnet.Base.standardize`.

    Reference:
        On the distribution of the largest eigenvalue in principal components analysis, Johnstone 2001,
        https://doi.org/10.1214/aos/1009210544

    Example:
        >>> import iresnet as ir
        >>> x = torch.randn(1000, 2)
        >>> analyze_latent(ir.Chain([]), x, base=ir.StandardNormal(2)).rejected
        []
        >>> "lengths" in analyze_latent(ir.Chain([]), 1.3 * x, base=ir.StandardNormal(2)).rejected
        True
    """
    if len(x) < 8:
        raise DataError(
            f"statistics of latents need at least 8 examples, got {len(x)}; raise --n or take another split"
        )
    batches = []
    for batch in x.split(batch_size):
        z = encode(batch).flatten(1)
        batches.append((z if base is None else base.standardize(z)).double().cpu())
        progress(sum(map(len, batches)))
    u = torch.cat(batches).numpy()
    if not np.isfinite(u).all():
        raise DataError("some latents are not finite: the model diverged or its weights are damaged; train again")
    n, dims = u.shape
    labels = [] if y is None else y[:N_POINTS].tolist()
    projection = _projection(u, None if base is None else _edge(n, dims), labels)
    if base is None:
        return LatentAnalysis(n, dims, projection)
    scales = []
    for name, start, stop in latent_scales(encode, dims):
        elements = u[:, start:stop].ravel()
        quantiles = np.quantile(elements, PROBABILITIES).tolist()
        scales.append(Scale(name, start, stop, _ks_test(elements, stats.norm.cdf), quantiles))
    return LatentAnalysis(n, dims, projection, _moments(u), _radius(u), tuple(scales))


def latent_scales(encode: Callable[[Tensor], Tensor], dims: int) -> list[tuple[str, int, int]]:
    """Return name, first dimension and one past the last, of the latents that leave the model at each scale.

    Args:
        encode: the bijection; any other map has one scale.
        dims: D.

    Example:
        >>> import iresnet as ir
        >>> latent_scales(ir.FactorOut((4, 2, 2), ir.Flatten((2, 2, 2))), 16)
        [('scale 1', 0, 8), ('scale 2', 8, 16)]
    """
    *factored_out, _ = latent_shapes(encode)
    edges = [*accumulate((math.prod(shape) for shape in factored_out if shape), initial=0), dims]
    return [(f"scale {i}", *pair) for i, pair in enumerate(pairwise(edges), start=1)]


def _moments(u: np.ndarray) -> Moments:  # (N, D)
    n = len(u)
    return Moments(
        u.mean(0).tolist(),
        u.std(0, ddof=1).tolist(),
        stats.kurtosis(u, axis=0).tolist(),
        mean_error=1 / math.sqrt(n),
        sd_error=1 / math.sqrt(2 * n),
        kurtosis_error=math.sqrt(24 / n),
    )


def _radius(u: np.ndarray) -> Radius:
    dims = u.shape[1]
    squares = (u**2).sum(1)
    low, high = max(squares.min() / dims, np.finfo(float).tiny), squares.max() / dims
    edges = np.concatenate([[0], np.geomspace(low, max(high, 1.01 * low), 41)[1:-1], [np.inf]])
    counts, _ = np.histogram(squares / dims, bins=edges)
    edges[[0, -1]] = low, high
    return Radius(
        float((squares / dims).mean()),
        float((squares / dims).std(ddof=1)),
        claimed_sd=math.sqrt(2 / dims),
        test=_ks_test(squares, stats.chi2(dims).cdf),
        edges=edges.tolist(),
        counts=counts.tolist(),
    )


def _ks_test(values: np.ndarray, cdf: Callable[[np.ndarray], np.ndarray]) -> KSTest:
    test = stats.kstest(values, cdf)
    return KSTest(float(test.statistic), float(test.pvalue), len(values))


def _edge(n: int, dims: int) -> float:
    """Return the quantile at 1 - SIGNIFICANCE of the largest eigenvalue, where the Tracy-Widom law has 3.27."""
    rows, columns = math.sqrt(n - 1), math.sqrt(dims)
    center, width = (rows + columns) ** 2, (rows + columns) * (1 / rows + 1 / columns) ** (1 / 3)
    return (center + 3.27 * width) / n


def _projection(u: np.ndarray, edge: float | None, labels: list[int]) -> Projection:
    """Compute principal components from the smaller one of the two Gram matrices."""
    n, dims = u.shape
    centered = u - u.mean(0)
    if dims <= n:
        variances, directions = np.linalg.eigh(centered.T @ centered / n)
    else:
        variances, between = np.linalg.eigh(centered @ centered.T / n)
        directions = centered.T @ (between / np.sqrt(n * np.maximum(variances, np.finfo(float).tiny)))
    variances, points = variances[::-1].clip(min=0), centered[:N_POINTS] @ directions[:, ::-1][:, :2]
    share = float(variances[:2].sum() / max(variances.sum(), np.finfo(float).tiny))
    return Projection(variances[:20].tolist(), share, edge, points.tolist(), labels)
