"""Curves of training: metrics.jsonl as charts, laid out here and drawn as SVG by the template."""

__all__ = ["HEIGHT", "WIDTH", "Line", "curves", "lay_out", "ticks"]

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from iresnet.report.elements import (
    Block,
    Cell,
    Chart,
    Charts,
    Curve,
    Fold,
    Hint,
    Label,
    Panel,
    Section,
    Table,
    Text,
    Tick,
)
from iresnet.report.formatting import evenly_spaced, finite, label, number, quantity
from iresnet.runs import Contents

# -- metrics -----------------------------------------------------------------------------------------------------------

_MAX_ROWS = 60


@dataclass(frozen=True)
class ChartStyle:
    """Appearance of the chart of a metric, see :func:`lay_out`."""

    note: str = ""
    log: bool = False
    limit: float | None = None


_STYLES = {
    "bits_per_dim": ChartStyle("lower is better"),
    "loss": ChartStyle("what is minimized"),
    "accuracy": ChartStyle("share of examples classified right"),
    "log_prior": ChartStyle("log-density of the latent, nats an example"),
    "logdet": ChartStyle("nats an example"),
    "grad_norm": ChartStyle("before clipping, logarithmic", log=True),
    "lr": ChartStyle(),
    "reconstruction_error": ChartStyle("of 16 validation examples, logarithmic", log=True),
    "largest_block_bound": ChartStyle("below 1 is invertible", limit=1.0),
}
"""Metrics in the order in which they are shown; others follow."""


def curves(runs: Sequence[Contents], letters: Sequence[str]) -> Section:
    """Show charts of everything that was measured in training, those of several runs over each other.

    Args:
        runs: the runs.
        letters: their names in the charts, empty for a single run.
    """
    lines = [line for run in runs for line in _lines(run, "train", "validation")]
    axis = "epoch" if all(finite(line.get("epoch")) is not None for line in lines) else "step"
    found = {key for line in lines for key, value in line.items() if finite(value) is not None} - {"step", "epoch"}
    if all(line.get("loss") == line.get("bits_per_dim") for line in lines):
        found.discard("loss")
    keys = [key for key in _STYLES if key in found] + sorted(found - _STYLES.keys())
    charts = [_chart(key, runs, letters, axis) for key in keys]
    panels = [Panel(None, [Charts(charts, axis)])] if charts else []
    panels += [Panel(i, blocks) for i, run in enumerate(runs) if (blocks := _notes(run))]
    return Section("curves", "Training", panels)


def _lines(run: Contents, *splits: str) -> list[dict[str, Any]]:
    return [line for line in run.metrics if line.get("split") in splits]


def _chart(key: str, runs: Sequence[Contents], letters: Sequence[str], axis: str) -> Chart:
    drawn = []
    for i, run in enumerate(runs):
        for color, (split, name) in enumerate((("train", "training"), ("validation", "validation"))):
            measured = [line for line in _lines(run, split) if key in line]
            points = [(x, finite(line[key])) for line in measured if (x := finite(line.get(axis))) is not None]
            drawn.append(
                Line(
                    f"{letters[i]} {name}".strip(),
                    points,
                    i if len(runs) > 1 else color,  # colors tell splits apart in one run, and runs in several
                    thin=split == "train",
                    letter=letters[i],
                )
            )
    marks = [x for run in runs for line in _lines(run, "skipped") if (x := finite(line.get(axis))) is not None]
    style = _STYLES.get(key, ChartStyle())
    return lay_out(label(key), style.note, drawn, log=style.log, limit=style.limit, marks=marks)


def _notes(run: Contents) -> list[Block]:
    """Show what the charts of one run do not."""
    if not _lines(run, "train", "validation"):
        return [Hint("No metrics of training yet: run", run.folder.resume_command)]
    blocks: list[Block] = []
    skipped, excess = _lines(run, "skipped"), _lines(run, "excess")
    if skipped:
        rows = [[_step_cell(line), Cell(str(line.get("reason", "")))] for line in skipped[:_MAX_ROWS]]
        blocks.append(Text(f"{quantity(len(skipped), 'step')} not finite and skipped, marked by ▼ in the charts."))
        blocks.append(Fold("Skipped steps", [Table("Skipped steps", ("step", "reason"), rows)]))
    if excess:
        rows = [[_step_cell(line), Cell(_rescaled_layers(line))] for line in excess[:_MAX_ROWS]]
        title = "Layers that had left their coefficient when the model was saved, and were rescaled"
        blocks.append(Fold(title, [Table(title, ("step", "layers, their bound and coefficient"), rows)]))
    if snapshots := evenly_spaced(_lines(run, "validation"), _MAX_ROWS):
        blocks.append(Fold("Numbers at snapshots", [_snapshot_table(snapshots)]))
    return blocks


def _step_cell(line: dict[str, Any]) -> Cell:
    return Cell(number(line.get("step")), "number")


def _rescaled_layers(line: dict[str, Any]) -> str:
    layers = line.get("layers")
    found = layers.items() if isinstance(layers, dict) else ()
    bounds = [(name, bound) for name, bound in found if isinstance(bound, dict)]
    return "; ".join(f"{name} {number(b.get('bound'))} for {number(b.get('coeff'))}" for name, b in bounds)


def _snapshot_table(lines: Sequence[dict[str, Any]]) -> Table:
    keys = ["epoch", *dict.fromkeys(key for line in lines for key in line if key not in ("split", "epoch"))]
    rows = []
    for line in lines:
        values = [line.get(key) for key in keys]
        texts = [("yes" if x else "no") if isinstance(x, bool) else number(x) for x in values]
        rows.append([Cell(text, "number") for text in texts])
    return Table("Validation at snapshots", ["epoch", *map(label, keys[1:])], rows)


# -- layout ------------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 360, 216
LEFT, RIGHT, TOP, BOTTOM = 50, 342, 10, 190

_MAX_POINTS, _MAX_DOTS = 300, 30
_LABEL_GAP = 12


@dataclass(frozen=True)
class Line:
    """Line of a chart, in the units of the data.

    Attributes:
        name: what it is, for the description.
        points: x and y; a y of None interrupts the line.
        color: number of its color in the style sheet.
        thin: whether it stays in the background; others show their points.
        letter: to stand at its end.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    color: int
    thin: bool = False
    letter: str = ""

    @property
    def known(self) -> list[tuple[float, float]]:
        """Points that have a value."""
        return [(x, y) for x, y in self.points if y is not None]

    @property
    def description(self) -> str:
        """Values of the line in words, for those who do not see it."""
        values = [y for _, y in self.known]
        start = f"from {number(values[0])} to {number(values[-1])}" if len(values) > 1 else number(values[0])
        return f"{self.name}: {start}, least {number(min(values))}, largest {number(max(values))}"


def lay_out(
    title: str,
    note: str,
    lines: Sequence[Line],
    *,
    log: bool = False,
    limit: float | None = None,
    marks: Sequence[float] = (),
) -> Chart:
    """Place lines, axes and numbers of a chart.

    Args:
        title: what is drawn.
        note: its unit, or how to read it.
        lines: at least one with a value.
        log: whether the vertical axis is logarithmic; values that are not positive are then left out.
        limit: a value that must not be crossed, which the axis reaches.
        marks: where on the horizontal axis something happened.
    """
    lines = [replace(line, points=[(x, _drawable(y, log=log)) for x, y in line.points]) for line in lines]
    lines = [line for line in lines if line.known]
    front = {line.color for line in lines if not line.thin}
    shown = [line for line in lines if not (line.letter and line.thin and line.color in front)]
    xs = [x for line in lines for x, _ in line.known] + list(marks)
    low, high, cut = _range([line.known for line in lines], log=log, limit=limit)
    across, up = _Axis(min(0.0, *xs), max(xs), LEFT, RIGHT), _Axis(low, high, BOTTOM, TOP, log=log)
    if cut is not None:
        note = f"{note}; starts at {number(cut, 3)}".lstrip("; ")
    return Chart(
        title=title,
        note=note,
        description=f"{title}. " + "; ".join(line.description for line in lines) + ".",
        values=" · ".join(f"{line.letter or line.name} {number(line.known[-1][1])}" for line in shown),
        curves=[_curve(line, across, up) for line in lines],
        x_ticks=[Tick(across(x), text) for x, text in ticks(across.low, across.high)],
        y_ticks=[Tick(up(y), text) for y, text in (_decades(low, high) if log else ticks(low, high))],
        marks=[across(x) for x in marks],
        labels=_labels(shown, across, up),
        limit=None if limit is None else up(limit),
    )


def ticks(low: float, high: float, n: int = 5) -> list[tuple[float, str]]:
    """Find round numbers between two others, and write them with the same number of decimals.

    Example:
        >>> ticks(0.4, 1.9)
        [(0.5, '0.5'), (1.0, '1.0'), (1.5, '1.5')]
    """
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    found = [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]
    places = max(0, -math.floor(math.log10(step) + 1e-9)) + (step / power == 2.5)
    plain = max(map(abs, found), default=0.0) < 1e6 and places <= 5
    return [(x, f"{x:,.{places}f}" if plain else number(x, 6)) for x in found]


class _Axis:
    """Axis, which maps values to positions on the page."""

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool = False):
        self.low, self.high = (low, high) if high > low else (low, low + 1)
        self.start, self.end, self.log = start, end, log

    def __call__(self, value: float) -> float:
        scale = math.log10 if self.log else float
        fraction = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return round(self.start + min(max(fraction, -5.0), 5.0) * (self.end - self.start), 1)


def _range(
    lines: Sequence[Sequence[tuple[float, float]]], *, log: bool, limit: float | None
) -> tuple[float, float, float | None]:
    """Choose both ends of the axis; also return the largest value when the start of a line is left above it."""
    values = [y for line in lines for _, y in line] + ([] if limit is None else [limit])
    low, high, cut = min(values), max(values), None
    if log:
        low, high = low / 1.15, high * 1.15
        return (low, high, None) if high / low > 10 else (low / 2, high * 2, None)
    later = [y for line in lines for x, y in line if x > 0.06 * line[-1][0]] or values
    if limit is None and high - low > 2.5 * (max(later) - low) > 0:
        high, cut = max(later), high
    flat = high - low <= 1e-6 * abs(high)
    margin = (0.05 * abs(high) or 0.5) if flat else 0.06 * (high - low)
    return low - margin, high + margin, cut


def _drawable(y: float | None, *, log: bool) -> float | None:
    """Return the value, None when an axis cannot hold it."""
    if y is None or abs(y) > 1e100 or (log and y < 1e-100):
        return None
    return y if abs(y) > 1e-100 else 0.0


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    """Find powers of ten between two numbers, and twice and five times them where they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    every = math.ceil(len(powers) / 6)
    found = [f * 10.0**k for k in powers[::every] for f in factors]
    return [(y, number(y, 1)) for y in found if low <= y <= high]


def _curve(line: Line, across: _Axis, up: _Axis) -> Curve:
    path, pen = [], "M"
    for x, y in _thinned(line.points):
        if y is None:
            pen = "M"
        else:
            path.append(f"{pen}{across(x):g} {up(y):g}")
            pen = "L"
    show = len(line.known) <= (1 if line.thin else _MAX_DOTS)
    dots = [(across(x), up(y)) for x, y in line.known] if show else []
    return Curve("".join(path), dots, line.color, line.thin)


def _thinned(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Keep the least and the largest of every stretch, where there are more points than can be seen."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / _MAX_POINTS)
    kept: list[tuple[float, float | None]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        known = [(x, y) for x, y in stretch if y is not None]
        gap = [point for point in stretch if point[1] is None][:1]
        extremes = {min(known, key=lambda p: p[1]), max(known, key=lambda p: p[1])} if known else set()
        kept += sorted([*extremes, *gap], key=lambda p: p[0])
    return kept


def _labels(lines: Sequence[Line], across: _Axis, up: _Axis) -> list[Label]:
    """Place letters at the ends of lines, moved apart where they would meet."""
    ends = sorted(
        ((up(line.known[-1][1]), across(line.known[-1][0]), line) for line in lines if line.letter),
        key=lambda end: end[:2],
    )
    labels, lowest = [], -math.inf
    for y, x, line in ends:
        lowest = max(y, lowest + _LABEL_GAP)
        labels.append(Label(x + 7, lowest + 4, line.letter, line.color))
    overflow = max((label.y for label in labels), default=0) - (BOTTOM + 4)
    return [Label(lb.x, lb.y - max(0.0, overflow), lb.text, lb.color) for lb in labels]
