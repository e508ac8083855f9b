"""Overview: the headline numbers of one run, or of several side by side."""

__all__ = ["headlines", "overview"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from iresnet.report.elements import Block, Cell, Hint, Panel, Section, Table, Text, Tile, Tiles
from iresnet.report.formatting import (
    DASH,
    clipped,
    duration,
    estimate,
    finite,
    interval,
    number,
    percent,
    sublist,
    subtree,
)
from iresnet.report.results import margin
from iresnet.report.setup import differences, parameters, seconds, value_text
from iresnet.runs import Contents


@dataclass(frozen=True)
class Headline(Tile):
    """Headline number that can be compared between runs.

    Attributes:
        rank: small when the number is good, None when it is not to be compared.
    """

    rank: float | None = None

    def cell(self, best: float | None) -> Cell:
        """Make a cell of a table, marked when it has the best rank."""
        if best is not None and self.rank == best:
            return Cell(f"★ {self.value}", "best", self.note)
        return Cell(self.value, self.style, self.note)


def overview(runs: Sequence[Contents], names: Sequence[str]) -> Section:
    """Show headline numbers of one run as tiles, of several as a table, above the settings in which they differ.

    Args:
        runs: the runs.
        names: their names.
    """
    found = [list(headlines(run)) for run in runs]
    problems = [Panel(i, [Hint(text + ".") for text in run.problems]) for i, run in enumerate(runs) if run.problems]
    if len(runs) == 1:
        return Section("overview", "At a glance", [Panel(None, [Tiles(found[0])] if found[0] else []), *problems])
    data = {(str(run.settings.get("data.name")), run.shape, str(run.evaluation.get("split"))) for run in runs}
    blocks: list[Block] = [_comparison(found, names, comparable=len(data) == 1)]
    different = differences(runs)
    if different:
        rows = [[Cell(name, "code"), *_setting_cells(values)] for name, values in different.items()]
        blocks.append(Table("Settings that differ", ("setting", *names), rows))
    else:
        blocks.append(Text("All settings are the same."))
    return Section("overview", "Side by side", [Panel(None, blocks), *problems])


def _comparison(numbers: Sequence[Sequence[Headline]], names: Sequence[str], *, comparable: bool) -> Table:
    rows = []
    for label in dict.fromkeys(headline.label for run in numbers for headline in run):
        found = [next((headline for headline in run if headline.label == label), None) for run in numbers]
        ranks = [headline.rank for headline in found if headline and headline.rank is not None]
        best = min(ranks) if comparable and len(set(ranks)) > 1 else None
        rows.append([Cell(label), *(headline.cell(best) if headline else Cell(DASH) for headline in found)])
    return Table("Headline numbers" + ("; ★ is the best" if comparable else ", of different data"), ("", *names), rows)


def _setting_cells(values: Sequence[Any]) -> list[Cell]:
    """Mark the values that are not those of most runs."""
    texts = [value_text(value) for value in values]
    common = max(texts, key=texts.count)
    return [Cell(text, "differs" if text != common or texts.count(common) == 1 else "") for text in texts]


# -- headline numbers --------------------------------------------------------------------------------------------------


def headlines(run: Contents) -> Iterator[Headline]:
    """Yield the headline numbers of a run, as far as commands have measured them."""
    for read, results in (
        (_likelihood, run.evaluation),
        (_accuracy, run.evaluation),
        (_largest_bound, run.certificate),
        (_reconstruction, run.reconstruction),
    ):
        for headline in read(run):
            if run.stale(results):
                note = f"✕ stale, of other weights; {headline.note}".removesuffix("; ")
                yield replace(headline, note=note, style="none", rank=None)
            else:
                yield headline
    if found := parameters(run):
        yield Headline(found[0], number(found[1]))
    if (wall := seconds(run, "wall_seconds")) is not None:
        cpu = seconds(run, "cpu_seconds")
        yield Headline("training time", duration(wall), "" if cpu is None else f"{duration(cpu)} of CPU time")


def _likelihood(run: Contents) -> Iterator[Headline]:
    tree = subtree(run.evaluation, "likelihood")
    bits, nats = estimate(tree.get("bits_per_dim")), estimate(tree.get("nats"))
    if bits and nats and len(run.shape) == 1:
        note = f"± {number(nats[1], 2)}{_best_baseline(run, 'nats')}"
        yield Headline(f"{_split(run)} nats", f"{nats[0]:.3f}", note, rank=nats[0])
    elif bits:
        note = f"± {number(bits[1], 2)}{_best_baseline(run, 'bits_per_dim')}"
        yield Headline(f"{_split(run)} bits/dim", f"{bits[0]:.3f}", note, rank=bits[0])
    elif (last := _last_snapshot(run, "bits_per_dim")) is not None:
        yield Headline("validation bits/dim", f"{last:.3f}", "at the last snapshot", rank=last)


def _best_baseline(run: Contents, key: str) -> str:
    baselines = subtree(run.evaluation, "baselines").items()
    found = [(x[0], name) for name, score in baselines if isinstance(score, dict) and (x := estimate(score.get(key)))]
    return f"; {clipped(min(found)[1])} {number(min(found)[0])}" if found else ""


def _accuracy(run: Contents) -> Iterator[Headline]:
    tree = subtree(run.evaluation, "classification")
    accuracy, ends = finite(tree.get("accuracy")), interval(tree.get("interval"))
    if accuracy is not None:
        note = " to ".join(map(percent, ends or ()))
        yield Headline(f"{_split(run)} accuracy", percent(accuracy), note, rank=-accuracy)
    elif (last := _last_snapshot(run, "accuracy")) is not None:
        yield Headline("validation accuracy", percent(last), "at the last snapshot", rank=-last)


def _largest_bound(run: Contents) -> Iterator[Headline]:
    """Read the largest bound of a block from the certificate, else from the last snapshot."""
    blocks = sublist(run.certificate, "blocks")
    uppers = [finite(block.get("upper")) for block in blocks if isinstance(block, dict)]
    known = [upper for upper in uppers if upper is not None]
    if None in uppers:
        yield Headline("largest block bound", DASH, "✕ not certified", "none")
        return
    worst, source = (max(known), "") if known else (_last_snapshot(run, "largest_block_bound"), " at the last snapshot")
    if worst is not None:
        verdict = "✕ not certified" if worst >= 1 else f"✓ certified, margin {number(1 - worst, 2)}"
        yield Headline("largest block bound", number(worst), verdict + source, margin(worst))


def _reconstruction(run: Contents) -> Iterator[Headline]:
    """Read the error over a whole split, else that of the few examples of the last snapshot."""
    tree = run.reconstruction
    if "largest" in tree:
        largest, n = finite(tree["largest"]), finite(tree.get("n"))
        split = clipped(str(tree.get("split", "test")))
        note = f"of {number(n)} {split} examples" if n else "in units of the data's range"
        value, style = ("infinite", "none") if largest is None else (number(largest, 2), "")
        yield Headline("largest reconstruction error", value, note, style, rank=largest)
    elif (last := _last_snapshot(run, "reconstruction_error")) is not None:
        yield Headline("reconstruction error", number(last, 2), "of 16 validation examples", rank=last)


def _split(run: Contents) -> str:
    return clipped(str(run.evaluation.get("split", "test")))


def _last_snapshot(run: Contents, key: str) -> float | None:
    values = [finite(line.get(key)) for line in run.metrics if line.get("split") == "validation"]
    return next((value for value in reversed(values) if value is not None), None)
