"""Results of the commands: evaluation beside baselines, certificate, and analyses."""

__all__ = ["analyses", "certificate", "evaluation", "margin"]

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile, zip_longest
from pathlib import PurePath
from typing import Any

from iresnet.report.elements import Block, Cell, Fold, Gallery, Heading, Hint, Table, Text, details
from iresnet.report.formatting import (
    DASH,
    clipped,
    estimate,
    finite,
    interval,
    label,
    number,
    percent,
    plus_minus,
    quantity,
    span,
    sublist,
    subtree,
)
from iresnet.report.samples import DamagedPictureError, read_picture
from iresnet.runs import ANALYSES, Contents

# -- evaluation --------------------------------------------------------------------------------------------------------

_SHOWN = {"split", "examples", "model_sha256", "parameters", "class_names"}
_SHOWN |= {"likelihood", "baselines", "classification", "ood"}
"""Keys of an evaluation that have a place of their own; all others are shown as they are."""

_MAX_CLASSES = 20
"""Classes of which the confusions are shown."""


def evaluation(run: Contents) -> Iterator[Block]:
    """Show what was measured on a split, with intervals, beside baselines."""
    tree = run.evaluation
    if not tree:
        yield Hint("Not evaluated yet: run", run.folder.command("evaluate"))
        return
    split, n = clipped(str(tree.get("split", "test"))), finite(tree.get("examples"))
    yield Text(f"On the {split} split" + (f", {number(n)} examples" if n else "") + "; intervals are of 95 %.")
    if run.stale(tree):
        yield Hint("This evaluation is of other weights than the model has now: run", run.folder.command("evaluate"))
    yield from _likelihoods(tree)
    yield from _predictions(tree)
    yield from _other_data(run)
    yield from details({key: value for key, value in tree.items() if key not in _SHOWN}, "Further results")


def _likelihoods(tree: dict[str, Any]) -> Iterator[Block]:
    own = subtree(tree, "likelihood")
    scores = {"this model": own} if own else {}
    scores |= {clipped(name): score for name, score in subtree(tree, "baselines").items() if isinstance(score, dict)}
    rows = []
    for name, score in scores.items():
        bits, nats = estimate(score.get("bits_per_dim")), estimate(score.get("nats"))
        ends = f"{bits[0] - bits[1]:.4f} to {bits[0] + bits[1]:.4f}" if bits else DASH
        numbers = (f"{bits[0]:.4f}" if bits else DASH, ends, f"{nats[0]:.2f}" if nats else DASH)
        estimator = clipped(str(score.get("estimator", DASH)))
        rows.append([Cell(name), *_number_cells(*numbers), Cell(estimator)])
    if rows:
        yield Table("Likelihood", ("density", "bits/dim", "95 % interval", "nats", "log-determinant"), rows)
    if bound := own.get("bound"):
        yield Text(f"The bits/dim of this model are an upper bound, by {clipped(str(bound))}.")
    if uncertainty := subtree(own, "uncertainty"):
        caption = "Parts of the half-width in bits/dim, and the bias of log-determinants"
        yield Fold("Where the interval of the likelihood comes from", details(uncertainty, caption))
    shown = ("bits_per_dim", "nats", "estimator", "uncertainty", "classes", "bound")
    if rest := {key: value for key, value in own.items() if key not in shown}:
        yield Fold("How the likelihood was measured", details(rest, "How the likelihood was measured"))


def _predictions(tree: dict[str, Any]) -> Iterator[Block]:
    """Make tables of the ``classification`` of an evaluation, and of everything it says of each class."""
    own = subtree(tree, "classification")
    calibration = subtree(own, "calibration")
    rows = [row for key, value in own.items() if (row := _prediction_row(key, value, own))]
    if (error := finite(calibration.get("ece"))) is not None:
        rows.append(_estimate_row("expected calibration error", error, finite(calibration.get("half_width")) or 0.0))
    if rows:
        yield Table("Predictions", ("what", "value", "95 % interval"), rows)
    yield from _certified(own)
    if calibration:
        yield Fold("Calibration: how often predictions of a confidence are right", details(calibration, "Calibration"))
    yield from _classes(tree)
    yield from _confusions(tree)
    shown = ("interval", "calibration", "classes", "confusion", "certified")
    rest = {key: value for key, value in own.items() if isinstance(value, (dict, list)) and not estimate(value)}
    if rest := {key: value for key, value in rest.items() if key not in shown}:
        yield Fold("More of the predictions", details(rest, "Predictions"))


def _certified(predictions: dict[str, Any]) -> Iterator[Block]:
    """Make a table of the accuracy that is proved to be left within each radius, with bars."""
    rows = []
    for entry in sublist(predictions, "certified"):
        entry = entry if isinstance(entry, dict) else {}
        accuracy = finite(entry.get("accuracy"))
        radius, bar = finite(entry.get("radius")), None
        texts = [DASH if radius is None else f"{radius:g}", DASH, _percents(entry.get("interval"))]
        if accuracy is not None:
            texts[1], bar = percent(accuracy), (0.0, 100 * min(max(accuracy, 0.0), 1.0))
        rows.append([Cell(texts[0], "number"), Cell(texts[1], "number", bar=bar), Cell(texts[2], "number")])
    if rows:
        caption = "Certified accuracy: right, and proved to stay so within a Euclidean radius in units of the data"
        yield Table(caption, ("radius", "accuracy, at least", "95 % interval"), rows)


def _prediction_row(key: str, value: Any, tree: dict[str, Any]) -> list[Cell] | None:
    if key == "accuracy" and (accuracy := finite(value)) is not None:
        return [Cell("accuracy"), *_number_cells(percent(accuracy), _percents(tree.get("interval")))]
    if found := estimate(value):
        return _estimate_row(label(key), *found)
    if key == "n" or finite(value) is None:
        return None
    return [Cell(label(key)), *_number_cells(number(value), DASH)]


def _estimate_row(name: str, mean: float, half_width: float) -> list[Cell]:
    ends = span(max(0.0, mean - half_width), mean + half_width)
    return [Cell(name), *_number_cells(number(mean), ends)]


def _number_cells(*texts: str) -> list[Cell]:
    return [Cell(text, "number") for text in texts]


def _percents(value: Any) -> str:
    """Format an interval of fractions."""
    ends = interval(value)
    return " to ".join(map(percent, ends)) if ends else DASH


def _classes(tree: dict[str, Any]) -> Iterator[Block]:
    """Make a table with a row for each class: its accuracy, its bits/dim, or both."""
    predicted = sublist(subtree(tree, "classification"), "classes")
    bits = sublist(subtree(tree, "likelihood"), "classes")
    rows = []
    for name, entry, mean in zip_longest(_class_names(tree, max(len(predicted), len(bits))), predicted, bits):
        texts = []
        if predicted:
            entry = entry if isinstance(entry, dict) else {}
            accuracy = finite(entry.get("accuracy"))
            texts.append(DASH if accuracy is None else percent(accuracy))
            texts += [_percents(entry.get("interval")), number(entry.get("n"))]
        if bits:
            found = estimate(mean)
            texts.append(plus_minus(*found) if found else DASH)
        rows.append([Cell(name), *_number_cells(*texts)])
    if rows:
        accuracies = ("accuracy", "95 % interval", "examples") if predicted else ()
        headings = ("class", *accuracies, *(("bits/dim",) if bits else ()))
        yield Fold(f"Each of {len(rows)} classes", [Table("Classes", headings, rows)])


def _confusions(tree: dict[str, Any]) -> Iterator[Block]:
    matrix = [row for row in sublist(subtree(tree, "classification"), "confusion") if isinstance(row, list)]
    if not 0 < len(matrix) <= _MAX_CLASSES:
        return
    names = _class_names(tree, len(matrix))
    rows = [
        [Cell(name), *_number_cells(*map(number, row[: len(names)]))] for name, row in zip(names, matrix, strict=True)
    ]
    table = Table("Rows are true classes, columns predicted ones", ["", *names], rows)
    yield Fold("Which classes are taken for which", [table])


def _class_names(tree: dict[str, Any], n: int) -> list[str]:
    names = [clipped(str(name)) for name in sublist(tree, "class_names")]
    return [names[i] if i < len(names) else str(i) for i in range(n)]


def _other_data(run: Contents) -> Iterator[Block]:
    """Show how well other data are noticed, with the histograms."""
    found = {name: subtree(subtree(run.evaluation, "ood"), name) for name in subtree(run.evaluation, "ood")}
    rows = []
    for name, scores in found.items():
        for score, tree in scores.items():
            if isinstance(tree, dict):
                auroc, fpr95 = interval(tree.get("interval")), interval(tree.get("fpr95_interval"))
                texts = [number(tree.get("auroc")), span(*auroc) if auroc else DASH]
                texts += [number(tree.get("fpr95")), span(*fpr95) if fpr95 else DASH]
                rows.append([Cell(clipped(name)), Cell(clipped(score)), *_number_cells(*texts)])
    if not rows:
        yield Hint("Other data were not tried yet: run", f"{run.folder.command('evaluate')} --ood DATASET")
        return
    headings = ("other data", "score", "AUROC", "95 % interval", "FPR95", "95 % interval")
    yield Table("Noticing other data: AUROC is 0.5 by chance, 1 at best; FPR95 is 0 at best", headings, rows)
    for name in found:
        path = run.folder.samples / f"ood-{PurePath(name).name}.png"
        caption = f"Scores of the model's own data and of {clipped(name)}"
        try:
            picture = read_picture(path, f"Histograms: {caption}", caption, pixels=False)
        except (DamagedPictureError, ValueError) as error:
            yield Hint(f"{error}.")
        else:
            yield from [Gallery([picture])] if picture else []


# -- certificate -------------------------------------------------------------------------------------------------------

_MAX_BLOCKS = 12
"""Blocks that are shown at once, those of the least margin first."""

_MARGINS = {"wide": 0.2, "moderate": 0.05, "thin": 0.0}
"""Words for margins, and the least of each."""

_SIGNS = {"wide": "✓ wide", "moderate": "✓ moderate", "thin": "✓ thin", "none": "✕ not certified"}


@dataclass(frozen=True)
class BoundEntry:
    """Bounds of one Lipschitz constant, as a file states them; None for what it does not say, or says is infinite."""

    name: str
    lower: float | None
    upper: float | None
    norm: float | None
    steps: float | None


def certificate(run: Contents) -> Iterator[Block]:
    """Show a table of blocks, colored by margin, and one of layers."""
    blocks, layers = _bounds(run, "blocks"), _bounds(run, "layers")
    if not blocks:
        yield Hint("No certificate yet: run", run.folder.command("certify"))
        return
    yield Text(_verdict(run, blocks))
    if run.stale(run.certificate):
        yield Hint("This certificate is of other weights than the model has now: run", run.folder.command("certify"))
    blocks.sort(key=lambda bound: -math.inf if bound.upper is None else -bound.upper)
    paths = zip(*(bound.name.split(".")[:-1] for bound in blocks), strict=False)
    origin = ".".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, paths))
    reading = "the least margin first; a bar goes from what was found to what is proved"
    yield _block_table(f"Blocks of {origin or 'the model'}, {reading}", blocks[:_MAX_BLOCKS], origin)
    if more := blocks[_MAX_BLOCKS:]:
        yield Fold(quantity(len(more), "more block"), [_block_table("Blocks of larger margins", more, origin)])
    if layers:
        rows = [
            [Cell(bound.name, "code"), *_number_cells(number(bound.lower), number(bound.upper), number(bound.norm))]
            for bound in layers
        ]
        table = Table("Layers, in their order", ("layer", "found, at least", "proved, at most", "norm"), rows)
        yield Fold(quantity(len(layers), "layer"), [table])


def margin(upper: float | None) -> str:
    """Name the margin that an upper bound leaves below 1.

    Example:
        >>> margin(0.73), margin(0.9), margin(0.99), margin(1.0), margin(None)
        ('wide', 'moderate', 'thin', 'none', 'none')
    """
    if upper is None or upper >= 1:
        return "none"
    return next(name for name, least in _MARGINS.items() if 1 - upper >= least)


def _bounds(run: Contents, key: str) -> list[BoundEntry]:
    found = []
    for entry in sublist(run.certificate, key):
        if isinstance(entry, dict):
            numbers = [finite(entry.get(name)) for name in ("lower", "upper", "norm", "steps_to_1e-5")]
            found.append(BoundEntry(str(entry.get("name") or "the whole"), *numbers))
    return found


def _verdict(run: Contents, blocks: Sequence[BoundEntry]) -> str:
    refused = [bound for bound in blocks if margin(bound.upper) == "none"]
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


def _block_table(caption: str, bounds: Sequence[BoundEntry], origin: str) -> Table:
    rows = []
    for bound in bounds:
        name = Cell(bound.name.removeprefix(f"{origin}."), "code")
        verdict = Cell(_SIGNS[margin(bound.upper)], margin(bound.upper))
        numbers = _number_cells(number(bound.lower), number(bound.upper), number(bound.steps))
        rows.append([name, _bar(bound), verdict, *numbers])
    headings = ("block", "margin to 1", "verdict", "found, at least", "proved, at most", "steps to 1e-5")
    return Table(caption, headings, rows)


def _bar(bound: BoundEntry) -> Cell:
    """Draw the interval in which the constant lies, beside how far it stays below 1."""
    constants = (bound.lower or 0.0, 1.0 if bound.upper is None else bound.upper)
    ends = sorted(100 * min(max(constant, 0.0), 1.0) for constant in constants)
    text = DASH if bound.upper is None else number(1 - bound.upper, 3)
    return Cell(text, margin(bound.upper), bar=(ends[0], ends[1]))


# -- analyses ----------------------------------------------------------------------------------------------------------

_TITLES = {
    "logdet": "Estimators of log-determinants",
    "lipschitz": "Singular values and their bounds",
    "inverse": "Convergence of the inverse",
    "latent": "Latents",
}


def analyses(run: Contents) -> Iterator[Block]:
    """Show the results of each analysis, then the commands of those that are missing."""
    missing = []
    for name in ANALYSES:
        title = _TITLES[name]
        if blocks := _analysis(run, name, title):
            yield from [Heading(title), *blocks]
        else:
            missing.append(Hint(f"{title}: not analyzed yet, run", run.folder.command(f"analyze {name}")))
    yield from missing


def _analysis(run: Contents, name: str, title: str) -> list[Block]:
    """Show the picture with its summary, and the numbers in a fold; nothing when there is neither."""
    tree, command = run.analyses.get(name, {}), run.folder.command(f"analyze {name}")
    summary, blocks = str(tree.get("summary", "")), []
    try:
        picture = read_picture(run.folder.path / f"analysis/{name}.png", f"{title}. {summary}", summary, pixels=False)
    except DamagedPictureError as error:
        picture = None
        blocks.append(Hint(f"{error}: run", command))
    if picture:
        blocks.append(Gallery([picture]))
    elif summary:
        blocks.append(Text(summary))
    if run.stale(tree):
        blocks.append(Hint("This is of other weights than the model has now: run", command))
    numbers = details({key: value for key, value in tree.items() if key not in ("summary", "model_sha256")}, title)
    return [*blocks, Fold("Numbers", numbers)] if numbers else blocks
