"""Charts of what was measured, in colors that color-blind people can tell apart, and never by color alone."""

__all__ = ["curves", "histograms", "plane_paths"]

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from iresnet.pictures import PALETTE, rendered

BLUE, ORANGE, GREEN, PURPLE = PALETTE[:4]

STYLES = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "^"), (PURPLE, ":", "D"))


def histograms(
    panels: Mapping[str, tuple[Sequence[float], Sequence[int], Sequence[int]]], names: tuple[str, str]
) -> Image.Image:
    """Two sets of numbers in each panel: filled, and hatched outlines.

    Args:
        panels: by heading, the edges of the bins and the counts of either set.
        names: of the sets.

    Example:
        >>> histograms({"score": ([0, 1, 2], [3, 1], [0, 4])}, ("digits", "letters")).mode
        'RGB'
    """
    figure = Figure(figsize=(3.6 * len(panels), 3), layout="constrained")
    for axes, (heading, (edges, first, second)) in zip(_row(figure, len(panels)), panels.items(), strict=True):
        shares = [np.asarray(counts) / max(1, sum(counts)) for counts in (first, second)]
        axes.stairs(shares[0], edges, fill=True, color=BLUE, alpha=0.55, label=names[0])
        axes.stairs(shares[1], edges, edgecolor=ORANGE, hatch="////", linewidth=1.5, fill=True, facecolor="none")
        axes.stairs(shares[1], edges, color=ORANGE, linewidth=1.5, label=f"{names[1]} (hatched)")
        axes.set_title(heading, fontsize=9)
        axes.set_ylabel("share")
    figure.axes[0].legend(fontsize=8)
    return rendered(figure)


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, log_y: bool = True
) -> Image.Image:
    """Lines of different color, dashes and marks.

    Args:
        lines: by name, abscissae and ordinates; what is not finite, or not positive on a log scale, is left out.
        x: what the abscissa is.
        y: what the ordinate is.
        log_y: whether the ordinate is logarithmic.

    Example:
        >>> curves({"halving": ([1, 2, 3], [1.0, 0.5, 0.25])}, x="steps", y="error").mode
        'RGB'
    """
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, (across, up)) in enumerate(lines.items()):
        color, dashes, mark = STYLES[i % len(STYLES)]
        a, b = np.asarray(across, float), np.asarray(up, float)
        shown = np.isfinite(b) & ((b > 0) | (not log_y))
        axes.plot(a[shown], b[shown], color=color, linestyle=dashes, marker=mark, markersize=4, label=name)
    axes.set_yscale("log" if log_y else "linear")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return rendered(figure)


def plane_paths(kinds: Mapping[str, np.ndarray]) -> Image.Image:
    """Paths in the plane, with their ends marked.

    Args:
        kinds: by name, (paths, steps, 2).

    Example:
        >>> plane_paths({"straight": np.array([[[0.0, 0.0], [1.0, 1.0]]])}).mode
        'RGB'
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, paths) in enumerate(kinds.items()):
        color, dashes, mark = STYLES[i % len(STYLES)]
        for j, path in enumerate(paths):
            label = None if j else name
            axes.plot(*path.T, color=color, linestyle=dashes, marker=mark, markersize=3, label=label)
            axes.plot(*path[[0, -1]].T, "k*", markersize=9)
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(fontsize=8)
    return rendered(figure)


def _row(figure: Figure, n: int) -> list[Axes]:
    return list(figure.subplots(1, n, squeeze=False)[0])
