"""The certificate: which bounds prove invertibility, and by what margin."""

__all__ = ["certificate", "margin_look"]

from collections.abc import Sequence
from typing import Any

from iresnet.report.blocks import Block, Cell, Fold, Hint, Panel, Section, Table, Text
from iresnet.report.reading import RunFiles
from iresnet.report.words import DASH, finite, number, quantity

_MOST_BLOCKS = 12
"""Blocks that are shown at once, those of the least margin first."""

_MARGINS = {"wide": 0.2, "moderate": 0.05, "thin": 0.0}
"""Words for margins, and the least of each."""

_SIGNS = {"wide": "✓ wide", "moderate": "✓ moderate", "thin": "✓ thin", "none": "✕ not certified"}


def certificate(runs: Sequence[RunFiles]) -> Section:
    """A table of blocks, coloured by margin, and one of layers."""
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
    blocks, layers = _bounds(run.certificate.get("blocks")), _bounds(run.certificate.get("layers"))
    if not blocks:
        return [Hint("No certificate yet. Prove the bounds with", run.command("certify"))]
    found: list[Block] = [Text(_verdict(run, blocks))]
    if run.model_sha256 and run.certificate.get("model_sha256") not in (None, run.model_sha256):
        found.append(
            Hint("This certificate is of other weights than the model has now. Renew it with", run.command("certify"))
        )
    blocks.sort(key=lambda bound: -(bound["upper"] if bound["upper"] is not None else float("inf")))
    found.append(_block_table("Blocks, the least margin first", blocks[:_MOST_BLOCKS]))
    if more := blocks[_MOST_BLOCKS:]:
        found.append(Fold(f"{quantity(len(more), 'more block')}", [_block_table("Blocks of larger margins", more)]))
    if layers:
        found.append(Fold(quantity(len(layers), "layer"), [_layer_table(layers)]))
    return found


def _bounds(entries: Any) -> list[dict[str, Any]]:
    """What a file says of blocks or layers, in numbers."""
    entries = entries if isinstance(entries, list) else []
    return [
        {
            "place": i + 1,
            "name": str(entry.get("name") or "the whole"),
            **{key: finite(entry.get(key)) for key in ("lower", "upper", "norm", "steps_to_1e-5")},
        }
        for i, entry in enumerate(entry for entry in entries if isinstance(entry, dict))
    ]


def _verdict(run: RunFiles, blocks: Sequence[dict[str, Any]]) -> str:
    refused = [bound for bound in blocks if margin_look(bound["upper"]) == "none"]
    if refused:
        text = f"Not certified: {quantity(len(refused), 'block')} of {len(blocks)} may not be invertible."
    else:
        worst = max(bound["upper"] for bound in blocks)
        text = f"Certified: every block contracts, by a proved bound of at most {number(worst)}, and is invertible."
    network = run.certificate.get("network")
    if isinstance(network, dict) and finite(network.get("upper")) and finite(network.get("lower")):
        up, low = number(network["upper"], 3), number(network["lower"], 3)
        text += f" The network stretches distances at most {up} and at least {low} times."
    return text


def _block_table(caption: str, bounds: Sequence[dict[str, Any]]) -> Table:
    rows = [
        [
            Cell(bound["name"], "code"),
            Cell(number(bound["lower"]), "number"),
            Cell(number(bound["upper"]), "number"),
            _bar(bound),
            Cell(_SIGNS[margin_look(bound["upper"])], margin_look(bound["upper"])),
            Cell(number(bound["steps_to_1e-5"]), "number"),
        ]
        for bound in bounds
    ]
    headings = ("block", "found, at least", "proved, at most", "from 0 to 1", "margin to 1", "steps to 1e-5")
    return Table(caption, headings, rows)


def _bar(bound: dict[str, Any]) -> Cell:
    """The interval in which the constant lies."""
    lower, upper = bound["lower"] or 0.0, bound["upper"]
    look = margin_look(upper)
    ends = (100 * min(max(lower, 0.0), 1.0), 100.0 if upper is None else 100 * min(max(upper, 0.0), 1.0))
    margin = DASH if upper is None else number(1 - upper, 3)
    return Cell(margin, look, (min(ends), max(ends)))


def _layer_table(bounds: Sequence[dict[str, Any]]) -> Table:
    rows = [
        [Cell(bound["name"], "code"), *(Cell(number(bound[key]), "number") for key in ("lower", "upper", "norm"))]
        for bound in bounds
    ]
    return Table("Layers, in their order", ("layer", "found, at least", "proved, at most", "norm"), rows)
