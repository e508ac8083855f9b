"""The figure of scaling.py: time and memory of a step against each of its sizes."""

__all__ = ["draw"]

from pathlib import Path
from typing import Any

import matplotlib
from axes import AXES
from report import Results

matplotlib.use("agg")
import matplotlib.pyplot as plt


def draw(results: Results, path: Path) -> None:
    """Write the figure: an axis a column, measured points and the cost model's line."""
    rows = results["axes"]["rows"]
    figure, panels = plt.subplots(2, len(rows), figsize=(3 * len(rows), 6), sharey="row", layout="constrained")
    for (name, points), time, memory in zip(rows.items(), *panels, strict=True):
        x = [point["size"] for point in points]
        _panel(time, x, [p["cpu"]["median"] for p in points], [p["predicted"] for p in points])
        _panel(memory, x, [p["memory"] / 2**20 for p in points], [p["tensors"] / 2**20 for p in points])
        time.set_title(name)
        memory.set_xlabel(AXES[name].label)
    panels[0, 0].set_ylabel("CPU time of a step (s, one thread)")
    panels[1, 0].set_ylabel("memory of a step (MiB)")
    panels[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(panel: Any, x: list[int], measured: list[float], predicted: list[float]) -> None:
    panel.loglog(x, measured, "o", color="C0", label="measured")
    panel.loglog(x, predicted, "-", color="C1", label="cost model")
    panel.loglog(x, [measured[-1] * size / x[-1] for size in x], ":", color="gray", label="linear")
    panel.set_xticks(x, [str(size) for size in x], minor=False)
    panel.minorticks_off()
    panel.grid(alpha=0.3)
