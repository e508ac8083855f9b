"""Elements of a page: plain descriptions, which the templates turn into HTML."""

__all__ = [
    "Block",
    "Cell",
    "Chart",
    "Charts",
    "Code",
    "Curve",
    "Fold",
    "Gallery",
    "Heading",
    "Hint",
    "Label",
    "Panel",
    "Picture",
    "Section",
    "Table",
    "Text",
    "Tick",
    "Tile",
    "Tiles",
    "details",
    "pairs",
]

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from iresnet.report.formatting import DASH, clipped, estimate, finite, interval, label, number, plus_minus, span


class Block:
    """Piece of a page; ``kind`` names the case of the template that writes it."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Text(Block):
    """Paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Heading(Block):
    """Heading within a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Hint(Block):
    """Line about something that is missing, with the command that adds it."""

    kind: ClassVar[str] = "hint"
    text: str
    command: str = ""


@dataclass(frozen=True)
class Code(Block):
    """Commands to copy, each with what it does."""

    kind: ClassVar[str] = "code"
    commands: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Cell:
    """Cell of a table.

    Attributes:
        text: what it says.
        style: ``number``, ``code``, ``differs``, ``best``, or the margin of a bound: ``wide``, ``moderate``, ``thin``,
            ``none``.
        note: what stands below it, smaller.
        bar: interval to draw, in hundredths of the width.
    """

    text: str
    style: str = ""
    note: str = ""
    bar: tuple[float, float] | None = None


@dataclass(frozen=True)
class Table(Block):
    """Table; the first cell of a row is its heading.

    Attributes:
        caption: what it shows, read out first.
        headings: of the columns.
        rows: the cells.
        plain: whether caption and headings are only read out, since the section says as much.
    """

    kind: ClassVar[str] = "table"
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    plain: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Mask of the columns of numbers, which are aligned."""
        columns = zip(*self.rows, strict=False)
        found = [all(cell.style == "number" or cell.text == DASH for cell in column) for column in columns]
        return found or [False] * len(self.headings)


@dataclass(frozen=True)
class Picture:
    """Picture within the page.

    Attributes:
        uri: the file, as a data URI.
        alt: what it shows, for those who do not see it.
        caption: what stands below it.
        width: in pixels.
        height: in pixels.
        pixels: whether it is of single pixels, to be enlarged without smoothing.
    """

    uri: str
    alt: str
    caption: str
    width: int
    height: int
    pixels: bool = True


@dataclass(frozen=True)
class Gallery(Block):
    """Pictures side by side, ``small`` ones many in a row."""

    kind: ClassVar[str] = "gallery"
    pictures: Sequence[Picture]
    small: bool = False


@dataclass(frozen=True)
class Tick:
    """Mark on an axis: its position and its number."""

    at: float
    text: str


@dataclass(frozen=True)
class Label:
    """Letter of a run at the end of its curve."""

    x: float
    y: float
    text: str
    color: int


@dataclass(frozen=True)
class Curve:
    """Curve of a chart, in its coordinates.

    Attributes:
        path: of an SVG.
        dots: where its points are to be seen.
        color: number of its color in the style sheet.
        thin: whether it stays in the background.
    """

    path: str
    dots: Sequence[tuple[float, float]]
    color: int
    thin: bool


@dataclass(frozen=True)
class Chart:
    """Curves over a common axis, laid out.

    Attributes:
        title: what is drawn.
        note: its unit, or how to read it.
        description: the same in words and numbers.
        values: the last values, for the line below.
        curves: the curves.
        x_ticks: marks of the horizontal axis.
        y_ticks: marks of the vertical axis.
        marks: where steps were skipped.
        labels: letters at the ends.
        limit: height of a line that must not be crossed.
    """

    title: str
    note: str
    description: str
    values: str
    curves: Sequence[Curve]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    marks: Sequence[float] = ()
    labels: Sequence[Label] = ()
    limit: float | None = None


@dataclass(frozen=True)
class Charts(Block):
    """Charts side by side, with the axis that they share."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]
    axis: str


@dataclass(frozen=True)
class Tile:
    """Headline number.

    Attributes:
        label: what it is.
        value: the number.
        note: its interval, or what to compare it with.
        style: as of a :class:`Cell`.
    """

    label: str
    value: str
    note: str = ""
    style: str = ""


@dataclass(frozen=True)
class Tiles(Block):
    """Headline numbers."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Fold(Block):
    """Details that open on demand."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Panel:
    """Blocks of one run in a section; ``run`` is its index, None for blocks of all runs together."""

    run: int | None
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """Section of the page."""

    id: str
    title: str
    panels: Sequence[Panel] = field(default_factory=tuple)


# -- nested results as tables -----------------------------------------------------------------------------------------

_MAX_ROWS, _MAX_COLUMNS, _MAX_TABLES, _MAX_DEPTH = 60, 16, 30, 6


def details(tree: Any, title: str) -> list[Block]:
    """Make tables of everything in nested results.

    A dictionary, or list, of dictionaries becomes one table, the rest a table of names and values.

    Args:
        tree: dictionaries, lists and values, as read from a file.
        title: of the first table, and the beginning of the others'.
    """
    return list(_tables(tree, title, 0))[:_MAX_TABLES]


def pairs(caption: str, entries: Iterable[tuple[str, Any]], *, plain: bool = False) -> Table:
    """Make a table of names and values."""
    return Table(caption, ("what", "value"), [[Cell(name), _cell(value)] for name, value in entries], plain)


def _tables(tree: Any, title: str, depth: int) -> Iterable[Block]:
    if isinstance(tree, list):
        tree = {str(i + 1): item for i, item in enumerate(tree)}
    if not isinstance(tree, dict) or not tree or depth > _MAX_DEPTH:
        return
    records = {
        key: value
        for key, value in tree.items()
        if isinstance(value, dict) and estimate(value) is None and any(map(_fits_cell, value.values()))
    }
    plain = {key: value for key, value in tree.items() if key not in records and _fits_cell(value)}
    if plain:
        yield pairs(title, [(label(key), plain[key]) for key in list(plain)[:_MAX_ROWS]])
    if records:
        shown = {key: records[key] for key in list(records)[:_MAX_ROWS]}
        keys = list(dict.fromkeys(k for record in shown.values() for k, v in record.items() if _fits_cell(v)))
        keys = keys[:_MAX_COLUMNS]
        rows = [[Cell(label(name)), *(_cell(record.get(key)) for key in keys)] for name, record in shown.items()]
        yield Table(title, ["", *map(label, keys)], rows)
        for key, record in shown.items():
            inner = {k: v for k, v in record.items() if not _fits_cell(v)}
            yield from _tables(inner, f"{title}: {label(key)}", depth + 1)
    for key, value in tree.items():
        if key not in records and key not in plain:
            yield from _tables(value, f"{title}: {label(key)}", depth + 1)


def _fits_cell(value: Any) -> bool:
    if isinstance(value, list):
        return all(not isinstance(item, (dict, list)) for item in value)
    return not isinstance(value, dict) or estimate(value) is not None


def _cell(value: Any) -> Cell:
    if isinstance(value, Cell):
        return value
    if found := estimate(value):
        return Cell(plus_minus(*found), "number")
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, (int, float)):
        return Cell(number(value), "number")
    if not isinstance(value, list):
        return Cell(DASH if value is None else clipped(str(value)))
    if ends := interval(value):
        return Cell(span(*ends), "number")
    numbers = [x for x in map(finite, value) if x is not None]
    if len(value) > 8 and len(numbers) == len(value):
        return Cell(f"{len(value)} numbers, {number(min(numbers))} to {number(max(numbers))}")
    return Cell(clipped(", ".join(_cell(item).text for item in value)) or DASH)
