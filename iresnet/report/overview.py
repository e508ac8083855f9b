"""Overview: headline numbers of one or several runs, and the certificate."""

__all__ = [
    "certificate",
    "margin_look",
    "overview",
]

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from iresnet.report.elements import Block, Cell, Fold, Hint, Panel, Section, Table, Text, Tile, Tiles
from iresnet.report.reading import RunFiles, sublist, subtree
from iresnet.report.setup import cpu_seconds, differences, parameters, value_text, wall_seconds
from iresnet.report.words import DASH, clipped, duration, estimate, finite, number, percent, quantity

# -- certificate -------------------------------------------------------------------------------------------------------


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
    return [_read_bound(entry) for entry in entries]


def _read_bound(entry: dict[str, Any]) -> _Bound:
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


# -- headline numbers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fact:
    """A headline number of one run; ``rank`` is small when it is good, None when it is not to be compared."""

    label: str
    value: str
    note: str = ""
    look: str = ""
    rank: float | None = None


def overview(runs: Sequence[RunFiles], names: Sequence[str]) -> Section:
    """Headline numbers of one run as tiles, of several as a table, above the settings in which they differ.

    Args:
        runs: the runs.
        names: their names.
    """
    facts = [list(_facts(run)) for run in runs]
    troubles = [Panel(i, [Hint(text + ".") for text in run.troubles]) for i, run in enumerate(runs) if run.troubles]
    if len(runs) == 1:
        tiles = [Tile(fact.label, fact.value, fact.note, fact.look) for fact in facts[0]]
        return Section("overview", "At a glance", [Panel(None, [Tiles(tiles)] if tiles else []), *troubles])
    blocks: list[Block] = [_compared(facts, names, _comparable(runs))]
    different = differences(runs)
    if different:
        rows = [[Cell(name, "code"), *_values(values)] for name, values in different.items()]
        blocks.append(Table("Settings that differ", ("setting", *names), rows))
    else:
        blocks.append(Text("All settings are the same."))
    return Section("overview", "Side by side", [Panel(None, blocks), *troubles])


def _facts(run: RunFiles) -> Iterator[_Fact]:
    for read, tree in (
        (_likelihood, run.evaluation),
        (_accuracy, run.evaluation),
        (_largest_bound, run.certificate),
        (_reconstruction, run.reconstruction),
    ):
        yield from map(_called_stale, read(run)) if run.stale(tree) else read(run)
    if found := parameters(run):
        yield _Fact(found[0], number(found[1]))
    if (seconds := wall_seconds(run)) is not None:
        cpu = cpu_seconds(run)
        note = "" if cpu is None else f"{duration(cpu)} of CPU time"
        yield _Fact("training time", duration(seconds), note)


def _called_stale(fact: _Fact) -> _Fact:
    """Mark a number of other weights, which is not to be compared."""
    return replace(fact, note=f"✕ stale, of other weights; {fact.note}".removesuffix("; "), look="none", rank=None)


def _likelihood(run: RunFiles) -> Iterator[_Fact]:
    tree = subtree(run.evaluation, "likelihood")
    bits, nats = estimate(tree.get("bits_per_dim")), estimate(tree.get("nats"))
    split = clipped(str(run.evaluation.get("split", "test")))
    if bits and nats and len(run.shape) == 1:
        yield _Fact(f"{split} nats", f"{nats[0]:.3f}", f"± {number(nats[1], 2)}{_beside(run, 'nats')}", rank=nats[0])
    elif bits:
        note = f"± {number(bits[1], 2)}{_beside(run, 'bits_per_dim')}"
        yield _Fact(f"{split} bits/dim", f"{bits[0]:.3f}", note, rank=bits[0])
    elif (last := _last(run, "bits_per_dim")) is not None:
        yield _Fact("validation bits/dim", f"{last:.3f}", "at the last snapshot", rank=last)


def _beside(run: RunFiles, key: str) -> str:
    """The best baseline."""
    baselines = subtree(run.evaluation, "baselines").items()
    found = [(x[0], name) for name, score in baselines if isinstance(score, dict) and (x := estimate(score.get(key)))]
    return f"; {clipped(min(found)[1])} {number(min(found)[0])}" if found else ""


def _accuracy(run: RunFiles) -> Iterator[_Fact]:
    tree = subtree(run.evaluation, "classification")
    share, ends = finite(tree.get("accuracy")), tree.get("interval")
    split = clipped(str(run.evaluation.get("split", "test")))
    if share is not None:
        known = isinstance(ends, list) and len(ends) == 2 and None not in map(finite, ends)
        note = " to ".join(map(percent, ends)) if known and isinstance(ends, list) else ""
        yield _Fact(f"{split} accuracy", percent(share), note, rank=-share)
    elif (last := _last(run, "accuracy")) is not None:
        yield _Fact("validation accuracy", percent(last), "at the last snapshot", rank=-last)


def _largest_bound(run: RunFiles) -> Iterator[_Fact]:
    """The largest bound of a block, by the certificate, else by the last snapshot."""
    blocks = run.certificate.get("blocks")
    blocks = [block for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []
    uppers = [finite(block.get("upper")) for block in blocks]
    known = [upper for upper in uppers if upper is not None]
    worst, source = (max(known), "") if known else (_last(run, "largest_block_bound"), " at the last snapshot")
    if None in uppers or worst is None:
        if uppers:
            yield _Fact("largest block bound", DASH, "✕ not certified", "none")
        return
    look = margin_look(worst)
    verdict = "✕ not certified" if look == "none" else f"✓ certified, margin {number(1 - worst, 2)}"
    yield _Fact("largest block bound", number(worst), verdict + source, look)


def _reconstruction(run: RunFiles) -> Iterator[_Fact]:
    """The error over a whole split, else that of the few examples of the last snapshot."""
    tree = run.reconstruction
    if "largest" in tree:
        largest, n = finite(tree["largest"]), finite(tree.get("n"))
        of = (
            f"of {number(n)} {clipped(str(tree.get('split', 'test')))} examples"
            if n
            else "in units of the data's range"
        )
        look = "none" if largest is None else ""
        value = "infinite" if largest is None else number(largest, 2)
        yield _Fact("largest reconstruction error", value, of, look, rank=largest)
    elif (last := _last(run, "reconstruction_error")) is not None:
        yield _Fact("reconstruction error", number(last, 2), "of 16 validation examples", rank=last)


def _last(run: RunFiles, key: str) -> float | None:
    values = [finite(line.get(key)) for line in run.metrics if line.get("split") == "validation"]
    return next((value for value in reversed(values) if value is not None), None)


def _comparable(runs: Sequence[RunFiles]) -> bool:
    """Whether numbers of the runs are of the same data."""
    kinds = {(str(run.settings.get("data.name")), run.shape, str(run.evaluation.get("split"))) for run in runs}
    return len(kinds) == 1


def _compared(facts: Sequence[Sequence[_Fact]], names: Sequence[str], comparable: bool) -> Table:
    rows = []
    for name in dict.fromkeys(fact.label for run in facts for fact in run):
        found = [next((fact for fact in run if fact.label == name), None) for run in facts]
        ranks = [fact.rank for fact in found if fact and fact.rank is not None]
        best = min(ranks) if comparable and len(set(ranks)) > 1 else None
        rows.append([Cell(name), *(_fact_cell(fact, best) for fact in found)])
    return Table("Headline numbers" + ("; ★ is the best" if comparable else ", of different data"), ("", *names), rows)


def _fact_cell(fact: _Fact | None, best: float | None) -> Cell:
    if fact is None:
        return Cell(DASH)
    is_best = best is not None and fact.rank == best
    return Cell(f"★ {fact.value}" if is_best else fact.value, "best" if is_best else fact.look, fact.note)


def _values(values: Sequence[Any]) -> list[Cell]:
    """Marked where they are not those of most runs."""
    texts = [value_text(value) for value in values]
    common = max(texts, key=texts.count)
    return [Cell(text, "differs" if text != common or texts.count(common) == 1 else "") for text in texts]
