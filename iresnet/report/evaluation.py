"""The evaluation: likelihoods beside baselines, predictions, other data, and whatever else was measured."""

__all__ = ["evaluation"]

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from iresnet.report.blocks import Block, Cell, Fold, Gallery, Hint, Panel, Section, Table, Text
from iresnet.report.images import DamagedPictureError, read_picture
from iresnet.report.predictions import predictions
from iresnet.report.reading import RunFiles, subtree
from iresnet.report.tables import details, interval
from iresnet.report.words import DASH, clipped, estimate, finite, number

_SHOWN = {"split", "examples", "model_sha256", "parameters", "class_names"}
_SHOWN |= {"likelihood", "baselines", "classification", "ood"}
"""Keys that have a place of their own; all others are shown as they are."""


def evaluation(runs: Sequence[RunFiles]) -> Section:
    """What was measured on a split, with intervals, beside baselines."""
    return Section("evaluation", "Evaluation", [Panel(i, _evaluation(run)) for i, run in enumerate(runs)])


def _evaluation(run: RunFiles) -> list[Block]:
    tree = run.evaluation
    if not tree:
        return [Hint("Not evaluated yet: run", run.command("evaluate"))]
    rest = {key: value for key, value in tree.items() if key not in _SHOWN}
    blocks = [*_head(run), *_likelihoods(tree), *predictions(tree), *_other_data(run)]
    return [*blocks, *details(rest, "Further results")]


def _head(run: RunFiles) -> Iterator[Block]:
    tree = run.evaluation
    split, n = clipped(str(tree.get("split", "test"))), finite(tree.get("examples"))
    yield Text(f"On the {split} split" + (f", {number(n)} examples" if n else "") + "; intervals are of 95 %.")
    if run.stale(tree):
        yield Hint("This evaluation is of other weights than the model has now: run", run.command("evaluate"))


def _likelihoods(tree: dict[str, Any]) -> Iterator[Block]:
    own = subtree(tree, "likelihood")
    scores = {"this model": own} if own else {}
    scores |= {clipped(name): score for name, score in subtree(tree, "baselines").items() if isinstance(score, dict)}
    rows = [_likelihood_row(name, score) for name, score in scores.items()]
    if rows:
        yield Table("Likelihood", ("density", "bits/dim", "95 % interval", "nats", "log-determinant"), rows)
    if uncertainty := subtree(own, "uncertainty"):
        caption = "Parts of the half-width in bits/dim, and the bias of log-determinants"
        yield Fold("Where the interval of the likelihood comes from", details(uncertainty, caption))
    shown = ("bits_per_dim", "nats", "estimator", "uncertainty", "classes")
    if rest := {key: value for key, value in own.items() if key not in shown}:
        yield Fold("How the likelihood was measured", details(rest, "How the likelihood was measured"))


def _likelihood_row(name: str, score: dict[str, Any]) -> list[Cell]:
    bits, nats = estimate(score.get("bits_per_dim")), estimate(score.get("nats"))
    ends = f"{bits[0] - bits[1]:.4f} to {bits[0] + bits[1]:.4f}" if bits else DASH
    numbers = (f"{bits[0]:.4f}" if bits else DASH, ends, f"{nats[0]:.2f}" if nats else DASH)
    return [Cell(name), *(Cell(text, "number") for text in numbers), Cell(clipped(str(score.get("estimator", DASH))))]


def _other_data(run: RunFiles) -> Iterator[Block]:
    """How well other data are noticed, with the histograms."""
    found = {name: subtree(subtree(run.evaluation, "ood"), name) for name in subtree(run.evaluation, "ood")}
    rows = [
        [Cell(clipped(name)), Cell(clipped(score)), *_detection(numbers)]
        for name, scores in found.items()
        for score, numbers in scores.items()
        if isinstance(numbers, dict)
    ]
    if not rows:
        yield Hint("Other data were not tried yet: run", f"{run.command('evaluate')} --ood DATASET")
        return
    headings = ("other data", "score", "AUROC", "95 % interval", "FPR95", "95 % interval")
    yield Table("Noticing other data: AUROC is 0.5 by chance, 1 at best; FPR95 is 0 at best", headings, rows)
    for name in found:
        yield from _histograms(run, name)


def _detection(tree: dict[str, Any]) -> list[Cell]:
    ends, fpr_ends = interval(tree.get("interval")) or DASH, interval(tree.get("fpr95_interval")) or DASH
    return [Cell(text, "number") for text in (number(tree.get("auroc")), ends, number(tree.get("fpr95")), fpr_ends)]


def _histograms(run: RunFiles, name: str) -> Iterator[Block]:
    path = run.samples / f"ood-{PurePath(name).name}.png"
    caption = f"Scores of the model's own data and of {clipped(name)}"
    try:
        picture = read_picture(path, f"Histograms: {caption}", caption, pixels=False)
    except (DamagedPictureError, ValueError) as error:
        yield Hint(f"{error}.")
    else:
        yield from [Gallery([picture])] if picture else []
