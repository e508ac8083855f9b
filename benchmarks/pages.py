"""Command line of the benchmarks, and their results as JSON files and as Markdown tables in the documentation."""

__all__ = ["PAGE", "RESULTS", "Results", "arguments", "insert_all", "number", "save", "table"]

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Results = dict[str, dict[str, Any]]  # of each model or case
RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "numerics.md"


def arguments(doc: str | None, *, images: int) -> argparse.Namespace:
    """Parse run folders, data folder and number of images; set torch to one thread."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders of densities of images")
    parser.add_argument("--data-dir", help="a folder of data sets, if not where the run found them")
    parser.add_argument("--images", type=int, default=images, help="test images of each run")
    return parser.parse_args()


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table with a left-aligned first column and right-aligned others."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def number(x: float, digits: int = 2) -> str:
    """Format a number with so many significant digits, with an exponent only below 1e-4."""
    if x == 0 or not math.isfinite(x):
        return "0" if x == 0 else str(x)
    exponent = math.floor(math.log10(abs(x)))
    if exponent < -4:
        return f"{x:.{digits - 1}e}".replace("e-0", "e-")
    return f"{x:.{max(0, digits - 1 - exponent)}f}"


def insert_all(tables: Mapping[str, Callable[[T], str]], results: T, *, page: Path = PAGE) -> None:
    """Print each table, and write it between the comments with its name, ``<!-- NAME -->`` and ``<!-- /NAME -->``."""
    content = page.read_text(encoding="utf-8")
    for name, make in tables.items():
        text = make(results)
        print(f"\n{text}")
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, found, rest = content.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"{page} has no place for '{name}': put the lines {begin.strip()} and {end} into it")
        content = f"{before}{begin}{text}\n{end}{after}"
    page.write_text(content, encoding="utf-8")


def save(name: str, results: Results, *, folder: Path = RESULTS) -> None:
    """Write NAME.json into the folder of results."""
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
