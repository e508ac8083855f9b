"""Curves of training: metrics.jsonl as charts, laid out here and drawn as SVG by the template."""

__all__ = [
    "HEIGHT",
    "Line",
    "WIDTH",
    "curves",
    "lay_out",
    "ticks",
]

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
from iresnet.report.reading import RunFiles, evenly
from iresnet.report.words import finite, label, number, quantity

# -- layout ------------------------------------------------------------------------------------------------------------


WIDTH, HEIGHT = 360, 216
LEFT, RIGHT, TOP, BOTTOM = 50, 342, 10, 190

_MOST_POINTS = 300
_MOST_DOTS = 30
_LABEL_GAP = 12


@dataclass(frozen=True)
class Line:
    """What is to be drawn.

    Attributes:
        name: what it is, for the description.
        points: x and y; a y of None interrupts the line.
        tone: number of its color.
        thin: whether it stays in the background; others show their points.
        letter: to stand at its end.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    tone: int
    thin: bool = False
    letter: str = ""

    @property
    def known(self) -> list[tuple[float, float]]:
        """The points that have a value."""
        return [(x, y) for x, y in self.points if y is not None]


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
    shown = [line for line in lines if not _hidden(line, lines)]
    xs = [x for line in lines for x, _ in line.known] + list(marks)
    low, high, cut = _range([line.known for line in lines], log=log, limit=limit)
    across, up = _Axis(min(0.0, *xs), max(xs), LEFT, RIGHT), _Axis(low, high, BOTTOM, TOP, log=log)
    if cut is not None:
        note = f"{note}; starts at {number(cut, 3)}".lstrip("; ")
    return Chart(
        title=title,
        note=note,
        description=f"{title}. " + "; ".join(_in_words(line) for line in lines) + ".",
        values=" · ".join(f"{line.letter or line.name} {number(line.known[-1][1])}" for line in shown),
        curves=[_curve(line, across, up) for line in lines],
        x_ticks=[Tick(across(x), text) for x, text in ticks(across.low, across.high)],
        y_ticks=[Tick(up(y), text) for y, text in (_decades(low, high) if log else ticks(low, high))],
        marks=[across(x) for x in marks],
        labels=_labels(shown, across, up),
        limit=None if limit is None else up(limit),
    )


def ticks(low: float, high: float, most: int = 5) -> list[tuple[float, str]]:
    """Round numbers between two, written alike.

    Example:
        >>> ticks(0.4, 1.9)
        [(0.5, '0.5'), (1.0, '1.0'), (1.5, '1.5')]
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    found = [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]
    places = max(0, -math.floor(math.log10(step) + 1e-9)) + (step / power == 2.5)
    plain = max(map(abs, found), default=0.0) < 1e6 and places <= 5
    return [(x, f"{x:,.{places}f}" if plain else number(x, 6)) for x in found]


class _Axis:
    """From values to places on the page."""

    def __init__(self, low: float, high: float, start: float, end: float, *, log: bool = False):
        self.low, self.high = (low, high) if high > low else (low, low + 1)
        self.start, self.end, self.log = start, end, log

    def __call__(self, value: float) -> float:
        scale = math.log10 if self.log else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return round(self.start + min(max(share, -5.0), 5.0) * (self.end - self.start), 1)


def _range(
    lines: Sequence[Sequence[tuple[float, float]]], *, log: bool, limit: float | None
) -> tuple[float, float, float | None]:
    """Lowest and highest value of the axis, and the highest value when the start of a line is left above it."""
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
    """The value, unless an axis cannot hold it."""
    if y is None or abs(y) > 1e100 or (log and y < 1e-100):
        return None
    return y if abs(y) > 1e-100 else 0.0


def _decades(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten between two numbers, with halves of decades where they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    every = math.ceil(len(powers) / 6)
    found = [f * 10.0**k for k in powers[::every] for f in factors]
    return [(y, number(y, 1)) for y in found if low <= y <= high]


def _hidden(line: Line, lines: Sequence[Line]) -> bool:
    """Whether a line stays in the background of another of the same run."""
    return bool(line.letter) and line.thin and any(not other.thin and other.tone == line.tone for other in lines)


def _in_words(line: Line) -> str:
    values = [y for _, y in line.known]
    start = f"from {number(values[0])} to {number(values[-1])}" if len(values) > 1 else number(values[0])
    return f"{line.name}: {start}, least {number(min(values))}, largest {number(max(values))}"


def _curve(line: Line, across: _Axis, up: _Axis) -> Curve:
    path, pen = [], "M"
    for x, y in _thinned(line.points):
        if y is None:
            pen = "M"
        else:
            path.append(f"{pen}{across(x):g} {up(y):g}")
            pen = "L"
    show = len(line.known) <= (1 if line.thin else _MOST_DOTS)
    dots = [(across(x), up(y)) for x, y in line.known] if show else []
    return Curve("".join(path), dots, line.tone, line.thin)


def _thinned(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Least and largest of every stretch, where there are more points than can be seen."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    kept: list[tuple[float, float | None]] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        known = [(x, y) for x, y in stretch if y is not None]
        gap = [point for point in stretch if point[1] is None][:1]
        extremes = {min(known, key=lambda p: p[1]), max(known, key=lambda p: p[1])} if known else set()
        kept += sorted([*extremes, *gap], key=lambda p: p[0])
    return kept


def _labels(lines: Sequence[Line], across: _Axis, up: _Axis) -> list[Label]:
    """Letters at the ends, moved apart where they would meet."""
    ends = sorted(
        ((up(line.known[-1][1]), across(line.known[-1][0]), line) for line in lines if line.letter),
        key=lambda end: end[:2],
    )
    labels, lowest = [], -math.inf
    for y, x, line in ends:
        lowest = max(y, lowest + _LABEL_GAP)
        labels.append(Label(x + 7, lowest + 4, line.letter, line.tone))
    overflow = max((label.y for label in labels), default=0) - (BOTTOM + 4)
    return [Label(lb.x, lb.y - max(0.0, overflow), lb.text, lb.tone) for lb in labels]


# -- curves ------------------------------------------------------------------------------------------------------------


_MOST_ROWS = 60


@dataclass(frozen=True)
class _Look:
    """How a metric is drawn."""

    note: str = ""
    log: bool = False
    limit: float | None = None


_LOOKS = {
    "bits_per_dim": _Look("lower is better"),
    "loss": _Look("what is minimized"),
    "accuracy": _Look("share of examples classified right"),
    "log_prior": _Look("log-density of the latent, nats an example"),
    "logdet": _Look("nats an example"),
    "grad_norm": _Look("before clipping, logarithmic", log=True),
    "lr": _Look(),
    "reconstruction_error": _Look("of 16 validation examples, logarithmic", log=True),
    "largest_block_bound": _Look("below 1 is invertible", limit=1.0),
}
"""Metrics in the order in which they are shown; others follow."""


def curves(runs: Sequence[RunFiles], letters: Sequence[str]) -> Section:
    """Charts of everything that was measured in training, those of several runs over each other.

    Args:
        runs: the runs.
        letters: their names in the charts, empty for a single run.
    """
    axis = "epoch" if all(finite(line.get("epoch")) is not None for run in runs for line in _measured(run)) else "step"
    charts = [_chart(key, runs, letters, axis) for key in _keys(runs)]
    panels = [Panel(None, [Charts(charts, axis)])] if charts else []
    panels += [Panel(i, blocks) for i, run in enumerate(runs) if (blocks := _notes(run))]
    return Section("curves", "Training", panels)


def _measured(run: RunFiles, *splits: str) -> list[dict[str, Any]]:
    return [line for line in run.metrics if line.get("split") in (splits or ("train", "validation"))]


def _keys(runs: Sequence[RunFiles]) -> list[str]:
    """Names of the metrics that have a value anywhere."""
    lines = [line for run in runs for line in _measured(run)]
    found = {key for line in lines for key, value in line.items() if finite(value) is not None} - {"step", "epoch"}
    if all(line.get("loss") == line.get("bits_per_dim") for line in lines):
        found.discard("loss")
    return [key for key in _LOOKS if key in found] + sorted(found - _LOOKS.keys())


def _chart(key: str, runs: Sequence[RunFiles], letters: Sequence[str], axis: str) -> Chart:
    look = _LOOKS.get(key, _Look())
    lines = [
        _line(run, key, split, axis, tone=_tone(i, split, runs), letter=letters[i])
        for i, run in enumerate(runs)
        for split in ("train", "validation")
    ]
    marks = [x for run in runs for line in _measured(run, "skipped") if (x := finite(line.get(axis))) is not None]
    return lay_out(label(key), look.note, lines, log=look.log, limit=look.limit, marks=marks)


def _tone(run: int, split: str, runs: Sequence[RunFiles]) -> int:
    """Colors tell splits apart in one run, and runs in several."""
    return run if len(runs) > 1 else ("train", "validation").index(split)


def _line(run: RunFiles, key: str, split: str, axis: str, *, tone: int, letter: str) -> Line:
    lines = [line for line in _measured(run, split) if key in line]
    points = [(x, finite(line[key])) for line in lines if (x := finite(line.get(axis))) is not None]
    name = {"train": "training", "validation": "validation"}[split]
    return Line(f"{letter} {name}".strip(), points, tone, thin=split == "train", letter=letter)


def _notes(run: RunFiles) -> list[Block]:
    """What the charts of one run do not show."""
    if not _measured(run):
        return [Hint("No metrics of training yet: run", run.resume_command)]
    blocks: list[Block] = []
    skipped, excess = _measured(run, "skipped"), _measured(run, "excess")
    if skipped:
        reasons = [[_place(line), Cell(str(line.get("reason", "")))] for line in skipped[:_MOST_ROWS]]
        blocks.append(Text(f"{quantity(len(skipped), 'step')} not finite and skipped, marked by ▼ in the charts."))
        blocks.append(Fold("Skipped steps", [Table("Skipped steps", ("step", "reason"), reasons)]))
    if excess:
        rows = [[_place(line), Cell(_layers(line.get("layers")))] for line in excess[:_MOST_ROWS]]
        title = "Layers that had left their coefficient when the model was saved, and were rescaled"
        blocks.append(Fold(title, [Table(title, ("step", "layers, their bound and coefficient"), rows)]))
    snapshots = evenly(_measured(run, "validation"), _MOST_ROWS)
    if snapshots:
        blocks.append(Fold("Numbers at snapshots", [_snapshots(snapshots)]))
    return blocks


def _snapshots(lines: Sequence[dict[str, Any]]) -> Table:
    keys = [key for key in dict.fromkeys(key for line in lines for key in line) if key not in ("split", "epoch")]
    rows = [[Cell(_shown(line.get(key)), "number") for key in ["epoch", *keys]] for line in lines]
    return Table("Validation at snapshots", ["epoch", *map(label, keys)], rows)


def _shown(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else number(value)


def _place(line: dict[str, Any]) -> Cell:
    return Cell(number(line.get("step")), "number")


def _layers(layers: Any) -> str:
    if not isinstance(layers, dict):
        return ""
    found = [(name, bound) for name, bound in layers.items() if isinstance(bound, dict)]
    return "; ".join(f"{name} {number(b.get('bound'))} for {number(b.get('coeff'))}" for name, b in found)
