"""``iresnet compare``: runs side by side, from what their folders say."""

__all__ = ["compare"]

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from iresnet.console import say
from iresnet.files import distinct_names

if TYPE_CHECKING:
    from iresnet.comparison import Cell, Row

FORMATS = {
    "parameters": "{:,}",
    "accuracy": "{:.2%}",
    "reconstruction": "{:.1e}",
    "steps": "{}",
    "minutes": "{:.1f}",
    "other data": "{}",
}
"""How values are written; with four digits where nothing is said."""


def compare(
    *runs: Annotated[Path, Parameter(name="RUN", help="Run folders.")],
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    csv_file: Annotated[Path | None, Parameter(name="--csv")] = None,
) -> None:
    """Print one table of several runs; nothing is computed again.

    Likelihood, accuracy, calibration (ECE), detection of other data (AUROC of typicality, or of predictive entropy
    without a density), largest Lipschitz bound of a block, largest reconstruction error, steps and wall time of
    training, as the files of the run folders have them. Below the table stand the commands that fill its empty cells;
    results of other weights are called stale.
    Numbers of different data, or of different splits, are not comparable, which is said.

    Args:
        runs: Run folders.
        json_file: Also write the numbers to this JSON file.
        csv_file: Also write the table to this CSV file.
    """
    from iresnet.comparison import COLUMNS
    from iresnet.comparison import compare as compare_runs
    from iresnet.errors import RunError

    if not runs:
        raise RunError("name at least one run folder: iresnet compare RUN...")
    rows = compare_runs(runs)
    headings = [heading for heading in COLUMNS if any(heading in row.cells for row in rows)]
    say(_table(rows, headings))
    for line in _remarks(rows):
        say(line)
    for path, text in ((json_file, _json(rows)), (csv_file, _csv(rows, headings))):
        if path:
            say(f"wrote {_write(path, text)}")


def _table(rows: "list[Row]", headings: list[str]) -> Table:
    """Runs from left to right, as there are fewer of them than there are facts."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    for name in distinct_names([Path(row.run) for row in rows]):
        table.add_column(name, justify="right", overflow="fold")
    table.add_row("recipe", *(row.recipe for row in rows))
    table.add_row("task", *(row.task for row in rows))
    table.add_row("data", *(row.data for row in rows))
    for heading in headings:
        cells = (row.cells.get(heading) for row in rows)
        table.add_row(heading, *("" if cell is None else _text(heading, cell) for cell in cells))
    return table


def _text(heading: str, cell: "Cell") -> str:
    """A cell in words: a dash is missing."""
    if cell.value is None:
        return "-"
    form = FORMATS.get(heading, "{:.4f}")
    text = cell.value if isinstance(cell.value, str) else form.format(cell.value)
    text += "" if cell.half_width is None else f" ± {form.format(cell.half_width)}"
    return f"{text} ({cell.note})" if cell.note else text


def _remarks(rows: "list[Row]") -> list[str]:
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


def _json(rows: "list[Row]") -> str:
    from dataclasses import asdict

    return json.dumps([asdict(row) for row in rows], indent=2) + "\n"


def _csv(rows: "list[Row]", headings: list[str]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [c for heading in headings for c in (heading, f"{heading} ±", f"{heading} note")]
    writer.writerow(["run", "recipe", "task", "data", *columns])
    for row in rows:
        cells = [row.cells.get(heading) for heading in headings]
        values = [v for cell in cells for v in ((cell.value, cell.half_width, cell.note) if cell else ("", "", ""))]
        writer.writerow([row.run, row.recipe, row.task, row.data, *values])
    return buffer.getvalue()


def _write(path: Path, text: str) -> Path:
    from iresnet.files import write_atomically

    write_atomically(path, text)
    return path
