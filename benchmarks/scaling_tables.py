"""Tables and figure of docs/scaling.md, from the results of scaling.py."""

__all__ = ["TABLES", "affine", "draw", "exponent"]

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from pages import Results, number, table

from iresnet.training.cost import duration

matplotlib.use("agg")
import matplotlib.pyplot as plt

Row = dict  # of one size


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of log y against log x over the two largest sizes."""
    return math.log(y[-1] / y[-2]) / math.log(x[-1] / x[-2])


def affine(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Fit y = a + b x by least relative squares; return a, b and the largest relative residual."""
    design = np.stack([np.ones(len(x)), np.asarray(x, float)], 1)
    a, b = np.linalg.lstsq(design / np.asarray(y)[:, None], np.ones(len(y)), rcond=None)[0]
    return float(a), float(b), float(np.abs(design @ (a, b) / y - 1).max())


def _growth(results: Results) -> str:
    header = ["axis", "sizes", "time: exponent", "a + b x", "off by at most"]
    header += ["memory: exponent", "a + b x", "off by at most"]
    cells = []
    for name, rows in results["axes"]["rows"].items():
        x = [row["size"] for row in rows]
        seconds, memory = [row["cpu"]["median"] for row in rows], [row["memory"] / 2**20 for row in rows]
        cells.append([name, f"{x[0]} to {x[-1]}", *_fit(x, seconds, "s"), *_fit(x, memory, "MiB")])
    return f"{table(header, cells)}\n\n{_origin(results['axes'])}"


def _fit(x: Sequence[float], y: Sequence[float], unit: str) -> list[str]:
    a, b, residual = affine(x, y)
    return [f"{exponent(x, y):.2f}", f"{number(a)} + {number(b)} x {unit}", f"{100 * residual:.0f} %"]


def _points(results: Results) -> str:
    header = ["axis", "size", "CPU s (least to most)", "predicted s", "memory MiB", "predicted MiB", "GFLOP"]
    cells = [
        [
            name,
            str(row["size"]),
            f"{number(row['cpu']['median'], 3)} ({number(row['cpu']['least'], 3)} to {number(row['cpu']['most'], 3)})",
            number(row["predicted"], 3),
            f"{row['memory'] / 2**20:.0f}",
            f"{row['tensors'] / 2**20:.0f}",
            number(row["flops"] / 1e9, 3),
        ]
        for name, rows in results["axes"]["rows"].items()
        for row in rows
    ]
    return table(header, cells)


def _errors(results: Results) -> str:
    header = ["axis", "time: median error", "time: worst", "memory: median error", "memory: worst"]
    cells = []
    for name, rows in results["axes"]["rows"].items():
        time = [row["predicted"] / row["cpu"]["median"] - 1 for row in rows]
        memory = [row["tensors"] / row["memory"] - 1 for row in rows]
        cells.append([name, *_error(time), *_error(memory)])
    return table(header, cells)


def _error(errors: Sequence[float]) -> list[str]:
    return [f"{100 * statistics.median(errors):+.0f} %", f"{100 * max(errors, key=abs):+.0f} %"]


def _rates(results: Results) -> str:
    device = results["axes"]["device"]
    rates = [f"{device['flops']['float32'] / 1e9:.0f}", f"{device['bandwidth'] / 1e9:.1f}"]
    header = ["this machine, one thread", "GFLOP/s", "GB/s", "microseconds a kernel"]
    return table(header, [["calibrated", *rates, f"{device['launch'] * 1e6:.1f}"]])


def _processes(results: Results) -> str:
    header = ["processes", "images a step", "CPU s a step", "images a CPU s", "wall s a step", "images a wall s"]
    header += ["loopback MB a step", "gradients, counted, MB a step"]
    cells = [
        [
            str(row["processes"]),
            str(row["batch"]),
            number(_median(row, "cpu"), 3),
            f"{row['batch'] / _median(row, 'cpu'):.0f}",
            number(_least(row, "wall"), 3),
            f"{row['batch'] / _least(row, 'wall'):.0f}",
            f"{_least(row, 'bytes') / 1e6:.3f}",
            f"{row['counted'] / 1e6:.3f}",
        ]
        for row in results["processes"]["rows"]
    ]
    return f"{table(header, cells)}\n\n{_origin(results['processes'])}"


def _median(row: Row, key: str) -> float:
    return statistics.median(r[key] for r in row["rounds"])


def _least(row: Row, key: str) -> float:
    return min(r[key] for r in row["rounds"])


def _predictions(rows: Sequence[Row]) -> str:
    times = ("kernel_seconds", "launch_seconds", "exchange_seconds", "step_seconds")
    header = ["recipe", "GPUs", "memory each, GiB", "kernels, ms", "launching, ms", "waiting, ms", "step, ms"]
    header += ["sent by each, MB", "full run"]
    cells = [
        [
            row["recipe"],
            f"{row['n']} {row['device']}",
            f"{row['memory'] / 2**30:.2f}",
            *(f"{1000 * row[time]:.1f}" for time in times),
            f"{row['exchanged'] / 1e6:.1f}",
            duration(row["total_seconds"]),
        ]
        for row in rows
    ]
    return table(header, cells)


def _origin(part: dict) -> str:
    of = part["environment"]
    changed = ", with changes" if of["changed"] else ""
    return f"{of['machine']}, {of['cpus']} CPUs; torch {of['torch']}; commit {of['commit']}{changed}, {of['date']}."


TABLES: dict[str, Callable[[Results], str]] = {
    "axes growth": _growth,
    "axes points": _points,
    "axes rates": _rates,
    "axes errors": _errors,
    "processes": _processes,
    "runs": lambda results: f"{_predictions(results['runs']['rows'])}\n\n{_origin(results['runs'])}",
    "runs grown": lambda results: _predictions(results["runs"]["grown"]),
}
"""Tables by name, whose first word is the part of the results that they need."""

# -- figure ----------------------------------------------------------------------------------------------------------


def draw(rows: dict[str, list[Row]], path: Path, *, labels: Mapping[str, str]) -> None:
    """Draw time and memory against each size, one column an axis, measured and predicted."""
    figure, panels = plt.subplots(2, len(rows), figsize=(3 * len(rows), 6), sharey="row", layout="constrained")
    for (name, points), time, memory in zip(rows.items(), *panels, strict=True):
        x = [point["size"] for point in points]
        _panel(time, x, [p["cpu"]["median"] for p in points], [p["predicted"] for p in points])
        _panel(memory, x, [p["memory"] / 2**20 for p in points], [p["tensors"] / 2**20 for p in points])
        time.set_title(name)
        memory.set_xlabel(labels[name])
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
