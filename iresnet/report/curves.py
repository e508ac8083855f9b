"""The curves of training: metrics.jsonl as charts, with what was skipped and mended."""

__all__ = ["curves"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iresnet.report.blocks import Block, Cell, Chart, Charts, Fold, Hint, Panel, Section, Table, Text
from iresnet.report.charts import Line, lay_out
from iresnet.report.reading import RunFiles, evenly
from iresnet.report.words import finite, label, number, quantity

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
