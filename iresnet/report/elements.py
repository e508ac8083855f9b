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
    "interval",
    "pairs",
]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from iresnet.report.words import DASH, clipped, estimate, finite, label, number, plus_minus, span

# -- elements ----------------------------------------------------------------------------------------------------------


class Block:
    """One piece of a page; ``kind`` names the macro of the template that writes it."""

    kind: ClassVar[str]


@dataclass(frozen=True)
class Text(Block):
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Heading(Block):
    """A heading within a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Hint(Block):
    """Says in one line what is missing, and the command that adds it."""

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
    """One cell of a table.

    Attributes:
        text: what it says.
        look: ``number``, ``code``, ``differs``, ``best``, or the margin of a bound: ``wide``, ``moderate``, ``thin``,
            ``none``.
        note: what stands below it, smaller.
        bar: interval to draw, in hundredths of the width.
    """

    text: str
    look: str = ""
    note: str = ""
    bar: tuple[float, float] | None = None


@dataclass(frozen=True)
class Table(Block):
    """A table; the first cell of a row is its heading.

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
        """Which columns are numbers, to be aligned."""
        columns = zip(*self.rows, strict=False)
        found = [all(cell.look == "number" or cell.text == DASH for cell in column) for column in columns]
        return found or [False] * len(self.headings)


@dataclass(frozen=True)
class Picture:
    """A picture within the page.

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
    """A mark on an axis: where, and its number."""

    at: float
    text: str


@dataclass(frozen=True)
class Label:
    """The letter of a run at the end of its curve."""

    x: float
    y: float
    text: str
    tone: int


@dataclass(frozen=True)
class Curve:
    """A curve of a chart, in its coordinates.

    Attributes:
        path: of an SVG.
        dots: where its points are to be seen.
        tone: number of its color.
        thin: whether it stays in the background.
    """

    path: str
    dots: Sequence[tuple[float, float]]
    tone: int
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
    """A headline number.

    Attributes:
        label: what it is.
        value: the number.
        note: its interval, or what to compare it with.
        look: as of a :class:`Cell`.
    """

    label: str
    value: str
    note: str = ""
    look: str = ""


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
    """What one run has to show in a section; ``run`` is its place, None for what is of all runs."""

    run: int | None
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    panels: Sequence[Panel] = field(default_factory=tuple)


# -- any tree as tables ------------------------------------------------------------------------------------------------


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
