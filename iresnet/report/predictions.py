"""How well classes are predicted: accuracy, calibration, and each class."""

__all__ = ["predictions"]

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from iresnet.report.blocks import Block, Cell, Fold, Table
from iresnet.report.reading import sublist, subtree
from iresnet.report.tables import details, interval
from iresnet.report.words import DASH, clipped, estimate, finite, label, number, percent, plus_minus, span

_MOST_CLASSES = 20
"""Classes of which the confusions are shown."""


def predictions(tree: dict[str, Any]) -> Iterator[Block]:
    """Tables of an evaluation's ``classification``, and of what it says of each class.

    Args:
        tree: the whole evaluation.
    """
    own = subtree(tree, "classification")
    calibration = subtree(own, "calibration")
    rows = [row for key, value in own.items() if (row := _row(key, value, own))]
    if (error := finite(calibration.get("ece"))) is not None:
        rows.append(_estimate_row("expected calibration error", error, finite(calibration.get("half_width")) or 0.0))
    if rows:
        yield Table("Predictions", ("what", "value", "95 % interval"), rows)
    if calibration:
        yield Fold("Calibration: how often predictions of a confidence are right", details(calibration, "Calibration"))
    yield from _classes(tree)
    yield from _confusions(tree)
    shown = ("interval", "calibration", "classes", "confusion")
    rest = {key: value for key, value in own.items() if isinstance(value, (dict, list)) and not estimate(value)}
    if rest := {key: value for key, value in rest.items() if key not in shown}:
        yield Fold("More of the predictions", details(rest, "Predictions"))


def _row(key: str, value: Any, tree: dict[str, Any]) -> list[Cell] | None:
    if key == "accuracy" and (share := finite(value)) is not None:
        return [Cell("accuracy"), Cell(percent(share), "number"), Cell(_shares(tree.get("interval")), "number")]
    if found := estimate(value):
        return _estimate_row(label(key), *found)
    if key == "n" or finite(value) is None:
        return None
    return [Cell(label(key)), Cell(number(value), "number"), Cell(DASH, "number")]


def _estimate_row(name: str, mean: float, half_width: float) -> list[Cell]:
    ends = span(max(0.0, mean - half_width), mean + half_width)
    return [Cell(name), Cell(number(mean), "number"), Cell(ends, "number")]


def _shares(ends: Any) -> str:
    """An interval of a share."""
    return " to ".join(map(percent, ends)) if interval(ends) else DASH


def _classes(tree: dict[str, Any]) -> Iterator[Block]:
    """A line for each class: its accuracy, its bits/dim, or both."""
    predicted = sublist(subtree(tree, "classification"), "classes")
    bits = sublist(subtree(tree, "likelihood"), "classes")
    rows = [
        [Cell(name), *(_accuracy(entry) if predicted else ()), *(_bits(mean) if bits else ())]
        for name, entry, mean in zip_longest(_names(tree, max(len(predicted), len(bits))), predicted, bits)
    ]
    if rows:
        accuracies = ("accuracy", "95 % interval", "examples") if predicted else ()
        headings = ("class", *accuracies, *(("bits/dim",) if bits else ()))
        yield Fold(f"Each of {len(rows)} classes", [Table("Classes", headings, rows)])


def _names(tree: dict[str, Any], n: int) -> list[str]:
    names = [clipped(str(name)) for name in sublist(tree, "class_names")]
    return [names[i] if i < len(names) else str(i) for i in range(n)]


def _accuracy(entry: Any) -> list[Cell]:
    entry = entry if isinstance(entry, dict) else {}
    share = finite(entry.get("accuracy"))
    texts = (DASH if share is None else percent(share), _shares(entry.get("interval")), number(entry.get("n")))
    return [Cell(text, "number") for text in texts]


def _bits(mean: Any) -> list[Cell]:
    found = estimate(mean)
    return [Cell(plus_minus(*found) if found else DASH, "number")]


def _confusions(tree: dict[str, Any]) -> Iterator[Block]:
    matrix = [row for row in sublist(subtree(tree, "classification"), "confusion") if isinstance(row, list)]
    if not 0 < len(matrix) <= _MOST_CLASSES:
        return
    names = _names(tree, len(matrix))
    rows = [
        [Cell(name), *(Cell(number(n), "number") for n in row[: len(names)])]
        for name, row in zip(names, matrix, strict=True)
    ]
    table = Table("Rows are true classes, columns predicted ones", ["", *names], rows)
    yield Fold("Which classes are taken for which", [table])
