"""What the scripts share: their arguments, and results as JSON and as Markdown tables between markers of a page."""

__all__ = ["arguments", "insert_all", "number", "save", "table"]

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Results = dict[str, dict[str, Any]]  # of each model
RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "numerics.md"


def arguments(doc: str | None, *, images: int) -> argparse.Namespace:
    """Read the run folders and how much to measure; from here on, one thread."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders of densities of images")
    parser.add_argument("--data-dir", help="a folder of data sets, if not where the run found them")
    parser.add_argument("--images", type=int, default=images, help="test images of each run")
    return parser.parse_args()


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def number(x: float, digits: int = 2) -> str:
    """A number with so many significant digits, without an exponent where that is readable."""
    if x == 0 or not math.isfinite(x):
        return "0" if x == 0 else str(x)
    exponent = math.floor(math.log10(abs(x)))
    if exponent < -4:
        return f"{x:.{digits - 1}e}".replace("e-0", "e-")
    return f"{x:.{max(0, digits - 1 - exponent)}f}"


def insert_all(tables: Mapping[str, Callable[[T], str]], results: T, *, page: Path = PAGE) -> None:
    """Print the tables, and put each between the markers of its name in the page; nothing else there is touched."""
    content = page.read_text(encoding="utf-8")
    for name, make in tables.items():
        text = make(results)
        print(f"\n{text}")
        content = _replaced(page, content, name, text)
    page.write_text(content, encoding="utf-8")


def _replaced(page: Path, content: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{page} has no place for '{name}': put the lines {begin.strip()} and {end} into it")
    return f"{before}{begin}{text}\n{end}{after}"


def save(name: str, results: Results) -> None:
    """Write results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
