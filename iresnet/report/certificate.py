"""The certificate: which bounds prove invertibility, and by what margin."""

__all__ = ["certificate", "margin_look"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from iresnet.report.blocks import Block, Cell, Fold, Hint, Panel, Section, Table, Text
from iresnet.report.reading import RunFiles, sublist, subtree
from iresnet.report.words import DASH, finite, number, quantity

_MOST_BLOCKS = 12
"""Blocks that are shown at once, those of the least margin first."""

_MARGINS = {"wide": 0.2, "moderate": 0.05, "thin": 0.0}
"""Words for margins, and the least of each."""

_SIGNS = {"wide": "✓ wide", "moderate": "✓ moderate", "thin": "✓ thin", "none": "✕ not certified"}


@dataclass(frozen=True)
class _Bound:
    """What a file says of one constant, None for what it does not say, or says is infinite."""

    name: str
    lower: float | None
    upper: float | None
    norm: float | None
    steps: float | None


def certificate(runs: Sequence[RunFiles]) -> Section:
    """A table of blocks, colored by margin, and one of layers."""
    return Section("certificate", "Certificate", [Panel(i, _certificate(run)) for i, run in enumerate(runs)])


def margin_look(upper: float | None) -> str:
    """The word for the margin that a bound leaves.

    Example:
        >>> margin_look(0.73), margin_look(0.9), margin_look(0.99), margin_look(1.0), margin_look(None)
        ('wide', 'moderate', 'thin', 'none', 'none')
    """
    if upper is None or upper >= 1:
        return "none"
    return next(look for look, least in _MARGINS.items() if 1 - upper >= least)


def _certificate(run: RunFiles) -> list[Block]:
    blocks, layers = _bounds(run, "blocks"), _bounds(run, "layers")
    if not blocks:
        return [Hint("No certificate yet: run", run.command("certify"))]
    found: list[Block] = [Text(_verdict(run, blocks))]
    if run.stale(run.certificate):
        stale = "This certificate is of other weights than the model has now: run"
        found.append(Hint(stale, run.command("certify")))
    blocks.sort(key=lambda bound: -math.inf if bound.upper is None else -bound.upper)
    origin = _origin(blocks)
    caption = (
        f"Blocks of {origin or 'the model'}, the least margin first; a bar goes from what was found to what is proved"
    )
    found.append(_block_table(caption, blocks[:_MOST_BLOCKS], origin))
    if more := blocks[_MOST_BLOCKS:]:
        found.append(Fold(quantity(len(more), "more block"), [_block_table("Blocks of larger margins", more, origin)]))
    if layers:
        found.append(Fold(quantity(len(layers), "layer"), [_layer_table(layers)]))
    return found


def _bounds(run: RunFiles, key: str) -> list[_Bound]:
    entries = [entry for entry in sublist(run.certificate, key) if isinstance(entry, dict)]
    return [_bound(entry) for entry in entries]


def _bound(entry: dict[str, Any]) -> _Bound:
    numbers = [finite(entry.get(key)) for key in ("lower", "upper", "norm", "steps_to_1e-5")]
    return _Bound(str(entry.get("name") or "the whole"), *numbers)


def _origin(bounds: Sequence[_Bound]) -> str:
    """What the names of all begin with, up to a dot."""
    columns = zip(*(bound.name.split(".")[:-1] for bound in bounds), strict=False)
    return ".".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, columns))


def _verdict(run: RunFiles, blocks: Sequence[_Bound]) -> str:
    refused = [bound for bound in blocks if margin_look(bound.upper) == "none"]
    if refused:
        text = f"Not certified: {len(refused)} of {quantity(len(blocks), 'block')} may not be invertible."
    else:
        worst = max(bound.upper for bound in blocks if bound.upper is not None)
        text = f"Certified: every block contracts, by a proved bound of at most {number(worst)}, and is invertible."
    network = subtree(run.certificate, "network")
    if finite(network.get("upper")) and finite(network.get("lower")):
        up, low = number(network["upper"], 3), number(network["lower"], 3)
        text += f" The network stretches distances at most {up} and at least {low} times."
    return text


def _block_table(caption: str, bounds: Sequence[_Bound], origin: str) -> Table:
    rows = [
        [
            Cell(bound.name.removeprefix(f"{origin}."), "code"),
            _bar(bound),
            Cell(_SIGNS[margin_look(bound.upper)], margin_look(bound.upper)),
            Cell(number(bound.lower), "number"),
            Cell(number(bound.upper), "number"),
            Cell(number(bound.steps), "number"),
        ]
        for bound in bounds
    ]
    headings = ("block", "margin to 1", "verdict", "found, at least", "proved, at most", "steps to 1e-5")
    return Table(caption, headings, rows)


def _bar(bound: _Bound) -> Cell:
    """The interval in which the constant lies, and how far it stays below 1."""
    constants = (bound.lower or 0.0, 1.0 if bound.upper is None else bound.upper)
    ends = sorted(100 * min(max(constant, 0.0), 1.0) for constant in constants)
    margin = DASH if bound.upper is None else number(1 - bound.upper, 3)
    return Cell(margin, margin_look(bound.upper), bar=(ends[0], ends[1]))


def _layer_table(bounds: Sequence[_Bound]) -> Table:
    rows = [
        [Cell(bound.name, "code"), *(Cell(number(x), "number") for x in (bound.lower, bound.upper, bound.norm))]
        for bound in bounds
    ]
    return Table("Layers, in their order", ("layer", "found, at least", "proved, at most", "norm"), rows)
