"""Runs side by side, from what their folders say, without computing anything again."""

__all__ = ["COLUMNS", "Cell", "Column", "Row", "compare"]

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iresnet.config import Config
from iresnet.runs import Inputs, Run


@dataclass(frozen=True)
class Cell:
    """One fact of a run.

    Attributes:
        value: the number or word, None when it is not known.
        half_width: of its 95 % interval, None without one.
        note: why it is not to be relied on, such as "stale"; empty otherwise.
    """

    value: float | str | None = None
    half_width: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Row:
    """What is known of one run.

    Attributes:
        run: its folder.
        recipe: name of the recipe.
        task: what it was trained for.
        data: name, shape and levels of its data, and the split that was evaluated: what must agree for a comparison.
        cells: by heading of :data:`COLUMNS`.
        missing: by heading, the command that would fill the cell.
    """

    run: str
    recipe: str
    task: str
    data: str
    cells: dict[str, Cell]
    missing: dict[str, str]


@dataclass(frozen=True)
class _Files:
    """The files of a run folder."""

    config: Config
    inputs: Inputs
    evaluation: dict[str, Any]
    certificate: dict[str, Any]
    reconstruction: dict[str, Any]
    cost: dict[str, Any]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A heading, how the cell is read, and the command (without its run) that fills it for tasks that have it.

    Attributes:
        read: from the files of a run to the cell.
        command: that makes the file; empty when none does any more.
        kinds: tasks for which there is such a number.
    """

    read: Callable[[_Files], Cell]
    command: str
    kinds: tuple[str, ...] = ("density", "classify", "hybrid")


def _at(tree: Any, *path: str) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _parameters(files: _Files) -> Cell:
    return Cell(_at(files.evaluation, "parameters") or _at(files.cost, "parameters"))


def _bits(files: _Files) -> Cell:
    bits = _at(files.evaluation, "likelihood", "bits_per_dim")
    return Cell(_at(bits, "mean"), _at(bits, "half_width"))


def _accuracy(files: _Files) -> Cell:
    found = _at(files.evaluation, "classification")
    low, high = _at(found, "interval") or (0.0, 0.0)
    return Cell(_at(found, "accuracy"), (high - low) / 2 if found else None)


def _ece(files: _Files) -> Cell:
    found = _at(files.evaluation, "classification", "calibration")
    return Cell(_at(found, "ece"), _at(found, "half_width"))


def _ood(files: _Files) -> Cell:
    """AUROC of one score, the same for all densities: the best of several would be chosen by what it is to tell."""
    words = []
    for name, scores in (_at(files.evaluation, "ood") or {}).items():
        kind = "typicality" if "typicality" in scores else "predictive entropy"
        words.append(f"{name} {_at(scores, kind, 'auroc'):.3f} ({kind})")
    return Cell("; ".join(words) or None)


def _block(files: _Files) -> Cell:
    bounds = [block["upper"] for block in _at(files.certificate, "blocks") or ()]
    if not bounds:
        return Cell()
    finite = None not in bounds
    return Cell(max(bounds) if finite else "infinite", note="" if _at(files.certificate, "certified") else "no proof")


def _reconstruction(files: _Files) -> Cell:
    if "largest" not in files.reconstruction:
        return Cell()
    largest = files.reconstruction["largest"]
    return Cell("infinite" if largest is None else largest)


def _steps(files: _Files) -> Cell:
    return Cell(_at(files.metrics, "step"))


def _time(files: _Files) -> Cell:
    sessions = _at(files.cost, "sessions") or ()
    return Cell(sum(session["wall_seconds"] for session in sessions) / 60 if sessions else None)


DENSITIES, CLASSIFIERS = ("density", "hybrid"), ("classify", "hybrid")

COLUMNS: dict[str, Column] = {
    "parameters": Column(_parameters, "evaluate"),
    "bits/dim": Column(_bits, "evaluate", DENSITIES),
    "accuracy": Column(_accuracy, "evaluate", CLASSIFIERS),
    "ECE": Column(_ece, "evaluate", CLASSIFIERS),
    "other data": Column(_ood, "evaluate --ood DATASET"),
    "block bound": Column(_block, "certify"),
    "reconstruction": Column(_reconstruction, "reconstruct"),
    "steps": Column(_steps, ""),
    "minutes": Column(_time, ""),
}
"""What is compared: largest bound of a block, largest error of data -> latent -> data, wall minutes of training."""


def compare(paths: Sequence[str | Path]) -> list[Row]:
    """Read the facts of some runs.

    Args:
        paths: run folders.

    Raises:
        RunError: when one is no run folder, or damaged.
    """
    return [_row(Run.open(path)) for path in paths]


def _row(run: Run) -> Row:
    config, inputs = run.read_config()
    evaluation, certificate, reconstruction = (
        run.read_json(name) for name in ("evaluation.json", "certificate.json", "reconstruction.json")
    )
    files = _Files(config, inputs, evaluation, certificate, reconstruction, run.read_json("cost.json"), _last(run))
    sha256 = run.weights_sha256() if run.model_file.is_file() else ""
    sources = {"evaluate": evaluation, "certify": certificate, "reconstruct": reconstruction}
    cells, missing = {}, {}
    for heading, column in COLUMNS.items():
        if config.task.kind not in column.kinds:
            continue
        cell = column.read(files)
        source = sources.get(column.command.split(" ")[0], {})
        if cell.value is not None and source.get("model_sha256", sha256) != sha256:
            cell = Cell(cell.value, cell.half_width, "stale")
        if column.command and (cell.value is None or cell.note == "stale"):
            name, *options = column.command.split(" ")
            missing[heading] = " ".join(["iresnet", name, str(run.path), *options])
        cells[heading] = cell
    return Row(str(run.path), config.name, config.task.kind, _data(config, inputs, evaluation), cells, missing)


def _data(config: Config, inputs: Inputs, evaluation: dict[str, Any]) -> str:
    levels = "continuous" if inputs.levels is None else f"{inputs.levels} levels"
    return f"{config.data.name}, {'x'.join(map(str, inputs.shape))}, {levels}, {evaluation.get('split', 'test')} split"


def _last(run: Run) -> dict[str, Any]:
    """The last line of the metrics, empty without any."""
    try:
        lines = run.metrics_file.read_text(encoding="utf-8").splitlines()
        return json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return {}
