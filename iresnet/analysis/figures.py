"""Figures of the analyses, in colors that color-blind people can tell apart, with a marker or a dash for each."""

__all__ = ["draw_inverse", "draw_latent", "draw_lipschitz", "draw_logdet"]

import math
import textwrap
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from iresnet.analysis.estimators import LogDetAnalysis
from iresnet.analysis.inverses import InverseAnalysis
from iresnet.analysis.latents import PROBABILITIES, KSTest, LatentAnalysis
from iresnet.analysis.spectra import LipschitzAnalysis
from iresnet.pictures import PALETTE

MARKERS = "osD^vP*Xp<>"
DASHES = ("-", "--", "-.")


def _panels(rows: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(9, height), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels:
        panel.grid(alpha=0.3)
    return figure, panels


def _fill(text: str) -> str:
    """Break a text into lines that fit into a panel."""
    return textwrap.fill(text, 42)


# -- log-determinants ------------------------------------------------------------------------------------------------

FAMILIES = {
    "series, Gaussian": {"color": PALETTE[1], "marker": "s", "linestyle": "--"},
    "series, Rademacher": {"color": PALETTE[0], "marker": "o", "linestyle": "-."},
    "Krylov": {"color": PALETTE[2], "marker": "^", "linestyle": "-"},
    "roulette": {"color": PALETTE[3], "marker": "D", "linestyle": ""},
    "Krylov, tol=0.01": {"color": PALETTE[6], "marker": "*", "linestyle": "", "markersize": 10},
}


def draw_logdet(analysis: LogDetAnalysis) -> Figure:
    """Draw bias, standard deviation, and error of the gradient's vectors, against Jacobian products."""
    figure, (bias, sd, gradient, legend) = _panels(2, 2, 6.6)
    families = list(dict.fromkeys(row.family for row in analysis.rows))
    for family in families:
        rows = [row for row in analysis.rows if row.family == family]
        look = FAMILIES.get(family, {})
        products, size = [row.products for row in rows], [abs(row.bias) for row in rows]
        errors = [2 * row.bias_error for row in rows]
        bias.errorbar(products, size, yerr=errors, **look, markerfacecolor="white", capsize=2)
        certain = [point for *point, error in zip(products, size, errors, strict=True) if point[1] > error]
        if certain:  # filled markers: two standard errors do not contain zero
            bias.plot(*zip(*certain, strict=True), **{**look, "linestyle": ""}, zorder=3)
        sd.plot(products, [row.sd for row in rows], label=family, **look)
        gradient.plot(products, [row.gradient_error for row in rows], label=family, **look)
    bias.set(ylabel="size of the bias (nats)", title=f"Bias (of {analysis.logdet:.4g} nats)", yscale="log")
    sd.set(ylabel="standard deviation of one probe (nats)", title="Spread", ylim=(0, None))
    gradient.set(ylabel="relative error, same probe", title="Vectors that carry the gradient", yscale="log")
    for panel in (bias, sd, gradient):
        panel.set_xlabel("Jacobian products for each block")
    nats = analysis.nats_per_bit
    for panel in (bias, sd):
        functions: Any = (lambda y: y / nats, lambda y: y * nats)
        panel.secondary_yaxis("right", functions=functions).set_ylabel("bits/dim")
    note = f"{analysis.n} examples, {analysis.draws} probes each\nbars: 2 standard errors\nhollow: bias within them"
    _legend(legend, sd, f"{note}\n{_fill(f'compared with {analysis.method}')}")
    return figure


def _legend(panel: Axes, source: Axes, note: str = "") -> None:
    """Use a panel for the legend of another, and a note below."""
    panel.axis("off")
    panel.legend(*source.get_legend_handles_labels(), loc="upper left", frameon=False)
    panel.text(0.02, 0.02, note, transform=panel.transAxes, va="bottom", fontsize=9)


# -- Lipschitz constants ---------------------------------------------------------------------------------------------


def draw_lipschitz(analysis: LipschitzAnalysis) -> Figure:
    """Draw the singular values of each layer, and bounds of layers and blocks."""
    figure = Figure(figsize=(9, 7.2), layout="constrained")
    spectra, layers, blocks = figure.subplot_mosaic([["spectra", "spectra"], ["layers", "blocks"]]).values()
    _draw_spectra(figure, spectra, analysis)
    _draw_bounds(layers, analysis.layers, "layer, from data to latent", "Layers")
    coefficients = [math.nan if row.coeff is None else row.coeff for row in analysis.layers]
    layers.plot(range(1, len(coefficients) + 1), coefficients, "_", color=PALETTE[6], markersize=9, label="coefficient")
    _draw_bounds(blocks, analysis.blocks, "block, from data to latent", "Blocks")
    blocks.axhline(1, color=PALETTE[6], linestyle=":", label="1: no longer proved invertible")
    for panel in (layers, blocks):
        panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    return figure


def _draw_spectra(figure: Figure, panel: Axes, analysis: LipschitzAnalysis) -> None:
    colors = colormaps["cividis"].resampled(256)
    norm = Normalize(1, max(2, len(analysis.layers)))
    for i, row in enumerate(analysis.layers, start=1):
        dashes = "-" if row.spectrum == "exact" else "--"
        share = np.linspace(0, 100, len(row.singular_values))
        marker = "." if len(row.singular_values) < 20 else ""
        panel.plot(share, row.singular_values, dashes, marker=marker, color=colors(norm(i)), linewidth=1.2)
    panel.set(xlabel="rank (% of the singular values)", ylabel="singular value")
    panel.set_title("Singular values of layers (dashed: of the circular convolution that bounds them)", fontsize=11)
    panel.grid(alpha=0.3)
    mappable = ScalarMappable(norm, colors)
    figure.colorbar(mappable, ax=panel, label="layer, from data to latent", ticks=MaxNLocator(integer=True))


def _draw_bounds(panel: Axes, rows: Sequence[Any], xlabel: str, title: str) -> None:
    numbers = range(1, len(rows) + 1)
    upper = [row.upper if math.isfinite(row.upper) else math.nan for row in rows]
    panel.plot(numbers, upper, "v", color=PALETTE[4], label="proved from above")
    panel.plot(numbers, [row.lower for row in rows], "^", color=PALETTE[0], label="found from below")
    panel.vlines(numbers, [row.lower for row in rows], upper, color="gray", linewidth=1)
    unknown = [i for i, row in zip(numbers, rows, strict=True) if not math.isfinite(row.upper)]
    if unknown:
        panel.plot(unknown, [1] * len(unknown), "x", color=PALETTE[6], label="no upper bound known")
    panel.set(xlabel=xlabel, ylabel="Lipschitz constant", title=title)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))


# -- inverses --------------------------------------------------------------------------------------------------------

FLOOR, CEILING = 1e-16, 1e3
"""Errors are drawn within these."""


def draw_inverse(analysis: InverseAnalysis) -> Figure:
    """Draw round-trip errors of networks and of their blocks, beside the proved bounds, and of solvers."""
    figure, (network, blocks, solvers, legend) = _panels(2, 2, 7.6)
    for curves, look in zip(analysis.networks, _looks(), strict=False):
        ending = " (diverges)" if curves.curve.diverges else ""
        label = _fill(f"{curves.title}{ending}")
        network.plot(curves.curve.steps, _clipped(curves.curve.largest), label=label, **look)
        errors = np.max([block.errors for block in curves.blocks], axis=0)
        steps = np.arange(1, len(errors) + 1)
        blocks.plot(steps, _clipped(errors.tolist()), **{**look, "marker": ""})
        if curves.bound < 1:
            proved = curves.bound**steps
            blocks.plot(steps[proved > FLOOR], proved[proved > FLOOR], ":", color=look["color"], linewidth=1)
    for curve, look in zip(analysis.solvers, _looks(), strict=False):
        solvers.plot(curve.evaluations, _clipped(curve.largest), label=curve.solver, **look)
    error = "largest error (share of the data's range)"
    network.set(title="Network, fixed-point iteration", xlabel="iterations in each block", ylabel=error)
    blocks.set(title="Worst block (dots: proved, $L^k$)", xlabel="iterations", ylabel="error / error at the start")
    solvers.set(
        title=_fill(f"Solvers, {analysis.networks[0].title}"),
        xlabel="evaluations and products in each block",
        ylabel=error,
    )
    for panel in (network, blocks, solvers):
        panel.set_yscale("log")
    solvers.legend(fontsize=8)
    _legend(legend, network, f"{analysis.n} examples; drawn up to an error of {CEILING:g}")
    return figure


def _looks() -> Any:
    """Yield a line style for each of several lines."""
    return (
        {"color": c, "marker": m, "linestyle": d, "markersize": 4}
        for c, m, d in zip(cycle(PALETTE[:7]), cycle(MARKERS), cycle(DASHES), strict=False)
    )


def _clipped(errors: Sequence[float]) -> list[float]:
    return [min(max(error, FLOOR), CEILING) for error in errors]


# -- latents ---------------------------------------------------------------------------------------------------------


def draw_latent(analysis: LatentAnalysis, class_names: Sequence[str] = ()) -> Figure:
    """Draw lengths, quantiles and moments against the base density, and the first two principal components."""
    if not (analysis.radius and analysis.moments):
        figure, (points, variances) = _panels(1, 2, 4.4)
        _draw_points(points, analysis, class_names)
        _draw_variances(variances, analysis)
        return figure
    figure, (lengths, quantiles, moments, points) = _panels(2, 2, 7.6)
    _draw_lengths(lengths, analysis)
    _draw_quantiles(quantiles, analysis)
    _draw_moments(moments, analysis)
    _draw_points(points, analysis, class_names)
    return figure


def _draw_lengths(panel: Axes, analysis: LatentAnalysis) -> None:
    radius = analysis.radius
    assert radius is not None
    edges, dims = np.log(radius.edges), analysis.dims
    density = np.array(radius.counts) / analysis.n / np.diff(edges)
    panel.stairs(density, np.exp(edges), fill=True, color=PALETTE[5], label="data")
    width = 5 * radius.claimed_sd
    x = np.exp(np.linspace(min(edges[0], -width), max(edges[-1], width), 2000))
    panel.plot(x, dims * x * stats.chi2.pdf(dims * x, dims), color=PALETTE[4], label="claimed: chi-square")
    panel.set(xlabel="squared length / D", ylabel="density of its logarithm", title=f"Lengths, {_test(radius.test)}")
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.legend(fontsize=8)


def _test(test: KSTest) -> str:
    return f"KS {test.statistic:.3f}, n = {test.n}"


def _draw_quantiles(panel: Axes, analysis: LatentAnalysis) -> None:
    normal = stats.norm.ppf(PROBABILITIES)
    panel.plot(normal[[0, -1]], normal[[0, -1]], color="gray", label="claimed: normal")
    for scale, look in zip(analysis.scales, _looks(), strict=False):
        panel.plot(normal, scale.quantiles, label=f"{scale.name}, {_test(scale.elements)}", **{**look, "linestyle": ""})
    panel.set(xlabel="normal quantile", ylabel="quantile of the elements", title="Elements of standardized latents")
    panel.legend(fontsize=8)


def _draw_moments(panel: Axes, analysis: LatentAnalysis) -> None:
    """Draw the moments of all dimensions, sorted, so that 784 of them can be read."""
    moments = analysis.moments
    assert moments is not None
    share = np.linspace(0, 100, analysis.dims)
    rows = (
        ("mean", moments.mean, 0.0, moments.mean_error),
        ("standard deviation", moments.sd, 1.0, moments.sd_error),
        ("excess kurtosis", moments.kurtosis, 0.0, moments.kurtosis_error),
    )
    for (name, values, claimed, error), look in zip(rows, _looks(), strict=False):
        look |= {"marker": look["marker"] if analysis.dims < 20 else ""}
        panel.plot(share, np.sort(values), label=name, **look)
        panel.axhspan(claimed - 3 * error, claimed + 3 * error, color=look["color"], alpha=0.15, linewidth=0)
    panel.set_yscale("symlog", linthresh=3)
    low, high = panel.get_ylim()
    panel.set_yticks([t for t in (-100, -10, -3, -1, 0, 1, 3, 10, 100, 1000) if low <= t <= high])
    panel.yaxis.set_major_formatter("{x:g}")
    panel.set(xlabel="rank (% of the dimensions)", ylabel="moment", title="Each dimension (bands: claimed, 3 errors)")
    panel.legend(fontsize=8)


def _draw_points(panel: Axes, analysis: LatentAnalysis, class_names: Sequence[str]) -> None:
    points, labels = np.array(analysis.projection.points), np.array(analysis.projection.labels)
    groups = sorted(set(analysis.projection.labels)) or [None]
    for i, label in enumerate(groups):
        chosen = points if label is None else points[labels == label]
        name = None if label is None else class_names[label] if label < len(class_names) else str(label)
        look: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "color": PALETTE[i % len(PALETTE)]}
        panel.plot(chosen[:, 0], chosen[:, -1], linestyle="", markersize=4, alpha=0.8, label=name, **look)
    share = 100 * analysis.projection.share
    panel.set(
        xlabel="first principal component", ylabel="second", title=f"Main directions, {share:.2g} % of the variance"
    )
    if len(groups) > 1:
        panel.legend(fontsize=7, ncols=1 + len(groups) // 8, markerscale=1.2)


def _draw_variances(panel: Axes, analysis: LatentAnalysis) -> None:
    variances = analysis.projection.variances
    panel.plot(range(1, len(variances) + 1), variances, "o-", color=PALETTE[0])
    panel.set(xlabel="principal component", ylabel="variance", title="Largest variances")
    panel.set_yscale("log")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
