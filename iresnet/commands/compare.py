"""``iresnet compare`` and ``iresnet report``: runs from what their folders say; both compute nothing, without torch."""

__all__ = ["compare", "report"]

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from iresnet.console import complain, say
from iresnet.errors import RunError
from iresnet.files import distinct_names, write_atomically
from iresnet.runs import Contents, read_contents

COMMANDS = {
    "parameters": "evaluate",
    "bits/dim": "evaluate",
    "accuracy": "evaluate",
    "ECE": "evaluate",
    "certified accuracy": "evaluate",
    "other data": "evaluate --ood DATASET",
    "block bound": "certify",
    "reconstruction": "reconstruct",
    "steps": "",
    "minutes": "",
}
"""Headings in their order, and the command that fills their cells; empty where only training does."""

FORMATS = {
    "parameters": "{:,}",
    "accuracy": "{:.2%}",
    "reconstruction": "{:.1e}",
    "steps": "{}",
    "minutes": "{:.1f}",
    "other data": "{}",
    "certified accuracy": "{}",
}
"""Formats of values; four digits where there is none."""


@dataclass(frozen=True)
class Cell:
    """Fact about a run.

    Attributes:
        value: the number or word, None when it is not known.
        half_width: of its 95 % interval, None without one.
        note: why it is not to be relied on, such as "stale"; empty otherwise.
    """

    value: float | str | None = None
    half_width: float | None = None
    note: str = ""

    def text(self, form: str) -> str:
        """Format the cell, a dash when it is missing."""
        if self.value is None:
            return "-"
        text = self.value if isinstance(self.value, str) else form.format(self.value)
        text += "" if self.half_width is None else f" ± {form.format(self.half_width)}"
        return f"{text} ({self.note})" if self.note else text


@dataclass(frozen=True)
class Row:
    """Facts about one run.

    Attributes:
        run: its folder.
        recipe: name of the recipe.
        task: what it was trained for.
        data: name, shape and levels of its data, and the split that was evaluated: what must agree for a comparison.
        cells: by heading of :data:`COMMANDS`.
        missing: by heading, the command that would fill the cell.
    """

    run: str
    recipe: str
    task: str
    data: str
    cells: dict[str, Cell]
    missing: dict[str, str]


def compare(
    *runs: Annotated[Path, Parameter(name="RUN", help="Run folders.")],
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    csv_file: Annotated[Path | None, Parameter(name="--csv")] = None,
) -> None:
    """Print one table of several runs; nothing is computed again.

    Likelihood, accuracy, calibration (ECE), certified accuracy at each radius that was evaluated (give several runs the
    same ones: iresnet evaluate --radius), detection of other data (AUROC of typicality, or of predictive entropy
    without a density), largest Lipschitz bound of a block, largest reconstruction error, steps and wall time of
    training, as the files of the run folders have them. Below the table stand the commands that fill its empty cells;
    results of other weights are called stale.
    Numbers of different data, or of different splits, are not comparable, which is said.

    Args:
        runs: Run folders.
        json_file: Also write the numbers to this JSON file.
        csv_file: Also write the table to this CSV file.
    """
    if not runs:
        raise RunError("name at least one run folder: iresnet compare RUN...")
    rows = [_row(read_contents(path)) for path in runs]
    headings = [heading for heading in COMMANDS if any(heading in row.cells for row in rows)]
    say(_table(rows, headings))
    for line in _remarks(rows):
        say(line)
    if json_file:
        write_atomically(json_file, json.dumps([asdict(row) for row in rows], indent=2) + "\n")
        say(f"wrote {json_file}")
    if csv_file:
        write_atomically(csv_file, _csv(rows, headings))
        say(f"wrote {csv_file}")


def report(
    *runs: Annotated[Path, Parameter(name="RUN", help="Run folders, made by iresnet train.")], out: Path | None = None
) -> int:
    """Write one self-contained page of what the run folders hold, several of them side by side.

    The page opens from disk in any browser. It shows what was measured and drawn, and names the command for what was
    not; it computes nothing itself. A damaged run is shown as far as it can be read, with exit status 1.

    Args:
        runs: Run folders.
        out: The page, or a folder for it; RUN/report.html for one run, report.html here for several, by default.
    """
    if not runs:
        raise RunError("iresnet report needs a run folder, or several: iresnet report RUN...")
    from iresnet.report import damages, write_report  # here: jinja2 takes a while to import

    say(f"wrote {write_report(runs, out)}")
    found = damages(runs)
    for damage in found:
        complain(damage, 1)
    return 1 if found else 0


# -- comparison: reading -----------------------------------------------------------------------------------------------


def _row(run: Contents) -> Row:
    """Read the facts about a run, and what to do for those that are missing or stale.

    Raises:
        RunError: when its configuration is damaged.
    """
    config, inputs = run.folder.read_config()
    results = {"evaluate": run.evaluation, "certify": run.certificate, "reconstruct": run.reconstruction}
    cells, missing = {}, {}
    for heading, cell in _cells(run, config.task.kind).items():
        name, *options = COMMANDS[heading].split(" ")
        stale = cell.value is not None and run.stale(results.get(name, {}))
        cells[heading] = Cell(cell.value, cell.half_width, "stale") if stale else cell
        if name and (cell.value is None or stale):
            missing[heading] = " ".join([run.folder.command(name), *options])
    levels = "continuous" if inputs.levels is None else f"{inputs.levels} levels"
    shape, split = "x".join(map(str, inputs.shape)), run.evaluation.get("split", "test")
    data = f"{config.data.name}, {shape}, {levels}, {split} split"
    return Row(str(run.folder.path), config.name, config.task.kind, data, cells, missing)


def _cells(run: Contents, kind: str) -> dict[str, Cell]:
    """Read the cells of a run by heading of :data:`COMMANDS`, those that its task has."""
    cells = {"parameters": Cell(_number(run.evaluation, "parameters") or _number(run.cost, "parameters"))}
    if kind != "classify":
        bits = _at(run.evaluation, "likelihood", "bits_per_dim")
        cells["bits/dim"] = Cell(_number(bits, "mean"), _number(bits, "half_width"))
    if kind != "density":
        found = _at(run.evaluation, "classification")
        low, high = _number(found, "interval", 0), _number(found, "interval", 1)
        half_width = None if low is None or high is None else (high - low) / 2
        cells["accuracy"] = Cell(_number(found, "accuracy"), half_width)
        cells["ECE"] = Cell(_number(found, "calibration", "ece"), _number(found, "calibration", "half_width"))
        cells["certified accuracy"] = _certified_accuracy(found)
    aurocs = []
    for name, scores in _items(_at(run.evaluation, "ood")):
        # one score, the same for all densities: the best of several would be chosen by what it is to tell
        score = "typicality" if _at(scores, "typicality") else "predictive entropy"
        if (auroc := _number(scores, score, "auroc")) is not None:
            aurocs.append(f"{name} {auroc:.3f} ({score})")
    cells["other data"] = Cell("; ".join(aurocs) or None)
    cells["block bound"] = _largest_bound(run.certificate)
    if "largest" in run.reconstruction:
        infinite = run.reconstruction["largest"] is None
        cells["reconstruction"] = Cell("infinite" if infinite else _number(run.reconstruction, "largest"))
    else:
        cells["reconstruction"] = Cell()
    cells["steps"] = Cell(_number(run.metrics[-1], "step") if run.metrics else None)
    seconds = [_number(session, "wall_seconds") for _, session in _items(_at(run.cost, "sessions"))]
    known = [s for s in seconds if s is not None]
    cells["minutes"] = Cell(sum(known) / 60 if known else None)
    return cells


def _certified_accuracy(classification: Any) -> Cell:
    """List the accuracies that are proved at some radii; they are known, and none, where nothing is proved."""
    certified = _at(classification, "certified")
    if not isinstance(certified, list):
        return Cell()
    found = [(_number(entry, "radius"), _number(entry, "accuracy")) for entry in certified]
    texts = [f"{share:.2%} within {radius:g}" for radius, share in found if radius is not None and share is not None]
    return Cell("; ".join(texts) or "none")


def _largest_bound(certificate: dict[str, Any]) -> Cell:
    blocks = [block for _, block in _items(_at(certificate, "blocks"))]
    bounds = [_number(block, "upper") for block in blocks]
    if not bounds:
        return Cell()
    note = "" if _at(certificate, "certified") else "no proof"
    return Cell("infinite" if None in bounds else max(b for b in bounds if b is not None), note=note)


def _at(tree: Any, *keys: str | int) -> Any:
    """Look a value up in nested dictionaries and lists, None when it is not there."""
    for key in keys:
        tree = dict(_items(tree)).get(key)
    return tree


def _items(tree: Any) -> list[tuple[Any, Any]]:
    """Return the entries of a dictionary or a list, none of anything else."""
    return list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ())


def _number(tree: Any, *keys: str | int) -> float | None:
    """Look a number up as :func:`_at` does, None for anything else: a file may have been damaged, or edited."""
    value = _at(tree, *keys)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


# -- comparison: showing -----------------------------------------------------------------------------------------------


def _table(rows: Sequence[Row], headings: Sequence[str]) -> Table:
    """Show runs from left to right, as there are fewer of them than there are facts."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    for name in distinct_names([Path(row.run) for row in rows]):
        table.add_column(name, justify="right", overflow="fold")
    table.add_row("recipe", *(row.recipe for row in rows))
    table.add_row("task", *(row.task for row in rows))
    table.add_row("data", *(row.data for row in rows))
    for heading in headings:
        form = FORMATS.get(heading, "{:.4f}")
        cells = (row.cells.get(heading) for row in rows)
        table.add_row(heading, *("" if cell is None else cell.text(form) for cell in cells))
    return table


def _remarks(rows: Sequence[Row]) -> list[str]:
    commands = dict.fromkeys(command for row in rows for command in row.missing.values())
    remarks = [
        f"{' and '.join(dict.fromkeys(h for row in rows for h, c in row.missing.items() if c == command))}: {command}"
        for command in commands
    ]
    data: dict[str, list[str]] = {}
    for row in rows:
        data.setdefault(row.data, []).append(row.run)
    if len(data) > 1:
        sets = "; ".join(f"{name} ({', '.join(runs)})" for name, runs in data.items())
        remarks.append(f"not comparable, since the data differ: {sets}")
    return remarks


def _csv(rows: Sequence[Row], headings: Sequence[str]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [c for heading in headings for c in (heading, f"{heading} ±", f"{heading} note")]
    writer.writerow(["run", "recipe", "task", "data", *columns])
    for row in rows:
        cells = [row.cells.get(heading) for heading in headings]
        values = [v for cell in cells for v in ((cell.value, cell.half_width, cell.note) if cell else ("", "", ""))]
        writer.writerow([row.run, row.recipe, row.task, row.data, *values])
    return buffer.getvalue()
