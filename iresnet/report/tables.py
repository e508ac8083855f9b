"""Any tree of a JSON file as tables: what newer commands write is shown unasked."""

__all__ = ["details", "interval", "pairs"]

from collections.abc import Iterable, Mapping
from typing import Any

from iresnet.report.blocks import Block, Cell, Table
from iresnet.report.words import DASH, clipped, estimate, finite, label, number, plus_minus, span

_MOST_ROWS = 60
_MOST_COLUMNS = 16
_MOST_TABLES = 30
_DEEPEST = 6


def details(tree: Any, title: str) -> list[Block]:
    """Tables of everything in a tree.

    A dictionary, or list, of dictionaries becomes one table, the rest a table of names and values.

    Args:
        tree: what was read.
        title: of the first table, and the beginning of the others'.
    """
    return list(_tables(tree, title, 0))[:_MOST_TABLES]


def pairs(caption: str, entries: Iterable[tuple[str, Any]], *, plain: bool = False) -> Table:
    """A table of names and values."""
    return Table(caption, ("what", "value"), [[Cell(name), _cell(value)] for name, value in entries], plain)


def interval(value: Any) -> str | None:
    """The text of an interval, a list of two numbers."""
    if isinstance(value, list) and len(value) == 2 and None not in map(finite, value):
        return span(*value)
    return None


def _tables(tree: Any, title: str, depth: int) -> Iterable[Block]:
    if isinstance(tree, list):
        tree = {str(i + 1): item for i, item in enumerate(tree)}
    if not isinstance(tree, dict) or not tree or depth > _DEEPEST:
        return
    records = {key: value for key, value in tree.items() if _is_record(value)}
    plain = {key: value for key, value in tree.items() if key not in records and _is_leaf(value)}
    if plain:
        yield pairs(title, [(label(key), value) for key, value in _first(plain).items()])
    if records:
        yield _of_records(_first(records), title)
        for key, record in _first(records).items():
            inner = {k: v for k, v in record.items() if not _is_leaf(v)}
            yield from _tables(inner, f"{title}: {label(key)}", depth + 1)
    for key, value in tree.items():
        if key not in records and key not in plain:
            yield from _tables(value, f"{title}: {label(key)}", depth + 1)


def _of_records(records: Mapping[str, dict[str, Any]], title: str) -> Table:
    keys = list(dict.fromkeys(k for record in records.values() for k, v in record.items() if _is_leaf(v)))[
        :_MOST_COLUMNS
    ]
    rows = [[Cell(label(name)), *(_cell(record.get(key)) for key in keys)] for name, record in records.items()]
    return Table(title, ["", *map(label, keys)], rows)


def _first(tree: Mapping[str, Any]) -> dict[str, Any]:
    return dict(list(tree.items())[:_MOST_ROWS])


def _is_leaf(value: Any) -> bool:
    """Whether a value fits into a cell."""
    if isinstance(value, list):
        return all(not isinstance(item, (dict, list)) for item in value)
    return not isinstance(value, dict) or estimate(value) is not None


def _is_record(value: Any) -> bool:
    """Whether a value is a row of a table."""
    return isinstance(value, dict) and estimate(value) is None and any(map(_is_leaf, value.values()))


def _cell(value: Any) -> Cell:
    if isinstance(value, Cell):
        return value
    if found := estimate(value):
        return Cell(plus_minus(*found), "number")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, (int, float)):
        return Cell(number(value), "number")
    if isinstance(value, list):
        return _list_cell(value)
    return Cell(DASH if value is None else clipped(str(value)))


def _list_cell(values: list[Any]) -> Cell:
    if text := interval(values):
        return Cell(text, "number")
    numbers = [x for x in map(finite, values) if x is not None]
    if len(values) > 8 and len(numbers) == len(values):
        return Cell(f"{len(values)} numbers, {number(min(numbers))} to {number(max(numbers))}")
    return Cell(clipped(", ".join(_cell(value).text for value in values)) or DASH)
