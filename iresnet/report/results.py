"""Results: likelihoods beside baselines, predictions, other data, and analyses."""

__all__ = [
    "analyses",
    "evaluation",
    "predictions",
]

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import PurePath
from typing import Any

from iresnet.report.elements import (
    Block,
    Cell,
    Fold,
    Gallery,
    Heading,
    Hint,
    Panel,
    Section,
    Table,
    Text,
    details,
    interval,
)
from iresnet.report.reading import ANALYSES, RunFiles, sublist, subtree
from iresnet.report.samples import DamagedPictureError, read_picture
from iresnet.report.words import DASH, clipped, estimate, finite, label, number, percent, plus_minus, span

# -- predictions -------------------------------------------------------------------------------------------------------


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


# -- evaluation --------------------------------------------------------------------------------------------------------


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


# -- analyses ----------------------------------------------------------------------------------------------------------


_TITLES = {
    "logdet": "Estimators of log-determinants",
    "lipschitz": "Singular values and their bounds",
    "inverse": "Convergence of the inverse",
    "latent": "Latents",
}


def analyses(runs: Sequence[RunFiles]) -> Section:
    """What each analysis found, then those that are missing."""
    panels = []
    for i, run in enumerate(runs):
        done = {name: _analysis(run, name) for name in ANALYSES}
        found = [block for name, blocks in done.items() if blocks for block in (Heading(_TITLES[name]), *blocks)]
        missing = [_missing(run, name) for name, blocks in done.items() if not blocks]
        panels.append(Panel(i, [*found, *missing]))
    return Section("analyses", "Analyses", panels)


def _missing(run: RunFiles, name: str) -> Hint:
    return Hint(f"{_TITLES[name]}: not analyzed yet, run", run.command(f"analyze {name}"))


def _analysis(run: RunFiles, name: str) -> list[Block]:
    """The picture with its sentence, and the numbers in a fold; nothing when there is neither."""
    tree, title, blocks = run.analyses.get(name, {}), _TITLES[name], []
    summary = str(tree.get("summary", ""))
    try:
        picture = read_picture(run.path / f"analysis/{name}.png", f"{title}. {summary}", summary, pixels=False)
    except DamagedPictureError as error:
        picture = None
        blocks.append(Hint(f"{error}: run", run.command(f"analyze {name}")))
    if picture:
        blocks.append(Gallery([picture]))
    elif summary:
        blocks.append(Text(summary))
    if run.stale(tree):
        blocks.append(Hint("This is of other weights than the model has now: run", run.command(f"analyze {name}")))
    numbers = details({key: value for key, value in tree.items() if key not in ("summary", "model_sha256")}, title)
    return [*blocks, Fold("Numbers", numbers)] if numbers else blocks
