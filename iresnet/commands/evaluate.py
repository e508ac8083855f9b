"""``iresnet evaluate``: likelihood, predictions and the detection of other data on a split, with error bars."""

__all__ = ["evaluate"]

import math
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators
from rich.table import Table

from iresnet.commands.arguments import (
    BatchSize,
    DataDir,
    DeviceName,
    Gpus,
    Precision,
    Processes,
    RunFolder,
    Seed,
    flow_of,
    open_run,
    spread,
)
from iresnet.console import err, is_main, progress, say
from iresnet.errors import UnknownNameError

if TYPE_CHECKING:
    from iresnet.classifiers import Classifier, Hybrid
    from iresnet.data import Dataset, Split
    from iresnet.evaluation import Accuracy, Detection, Likelihood
    from iresnet.evaluation.classification import ClassAccuracy
    from iresnet.flows import Flow
    from iresnet.runs import Run
    from iresnet.zoo import Model

PRECISIONS = ("bf16", "fp16", "tf32", "float32")
"""From the coarsest to the finest."""

MOST_CLASSES = 20
"""Classes of which all are printed; of more, those with the lowest accuracy."""


def evaluate(
    run: RunFolder,
    *,
    split: str = "test",
    data_dir: DataDir = None,
    ood: Annotated[list[str] | None, Parameter(negative="")] = None,
    examples: Annotated[int | None, Parameter(validator=validators.Number(gte=2))] = None,
    seed: Seed = 0,
    standard_error: float | None = None,
    dequantize_samples: Annotated[int, Parameter(alias="--dequantise-samples")] = 1,
    precision: Precision = "float32",
    batch_size: BatchSize = None,
    device: DeviceName = "auto",
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Measure likelihood and predictions on a split, with error bars, beside baselines; writes evaluation.json.

    Densities: bits/dim, also of each class. Classifiers: accuracy, negative log-likelihood, expected calibration error
    (15 bins; beside what a calibrated classifier would show by chance), accuracy of each class; the confusion matrix
    and the reliability bins are in evaluation.json.

    --ood mnist --ood letters/ tells how well the model notices other data: AUROC and FPR95 of its log-likelihood, of
    typicality (distance of bits/dim from their mean on the training split, of one example and of ten), and of the
    entropy of its predictions. Other data are the positives: AUROC is the probability that one of them scores higher
    than one of the model's own, FPR95 the share of the model's own that is taken for others when 95 % of the others are
    found. Results are added to those of earlier calls; histograms are drawn in samples/ood-NAME.png. The evaluation
    itself is kept when it is as good as what is asked for, and else done again with the better of both in each option.

    Args:
        run: Run folder.
        split: train, validation or test.
        data_dir: Folder of data sets.
        ood: Name or path of other data, whose same split is compared; may be repeated. Images are padded, scaled down
            or repeated on color channels to fit the model's own.
        examples: Evaluate so many at most, drawn at random; all of the split by default. Of other data and of training
            examples there are as many at most.
        seed: Of the order of examples, dequantization noise and probes.
        standard_error: Of the mean bits/dim, at which to stop before the end of the split.
        dequantize_samples: Noise draws for each example, whose mean density is a tighter bound.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    spread(processes, gpus, device)
    from iresnet.devices import device_of
    from iresnet.precision import use_precision

    folder, model, dataset, whole = open_run(run, data_dir, split, device)
    if standard_error is not None or dequantize_samples != 1:
        flow_of(model)  # a classifier of which a density is asked is refused
    others = dict(_other(name, data_dir or folder.data_dir, dataset, split) for name in ood or ())
    part = whole.shuffled(seed, examples) if examples else whole
    result, before = _about(folder, model, dataset, split), _before(folder, split)
    how = {"seed": seed} if batch_size is None else {"seed": seed, "batch_size": batch_size}
    asked, known = _Effort(len(part), dequantize_samples, precision), _effort_of(before)
    if others and known:  # what is there must not become worse on the way
        enough = standard_error is not None and _standard_error(before) <= standard_error
        asked = known.joined(replace(asked, examples=0) if enough else asked)
    elif known and known.joined(asked) == known != asked:
        say(f"the evaluation that is there, of {known}, is replaced")
    with use_precision(asked.precision, device_of(model)):
        if others and asked == known:
            say(f"the evaluation that is there, of {known}, is kept")
            result = before | result
        else:
            result |= _evaluated(model, dataset, whole, asked, split, standard_error, how)
        found = _detections(model, dataset, part, others, how) if others else {}
    for name, scores in found.items():
        about = {"positive": "other data", "split": split, "seed": seed, "preparation": others[name][1]}
        result["ood"][name] = {score: asdict(value) | about for score, value in scores.items()}
        _print_detections(name, scores, others[name][1])
    if is_main():
        for name, scores in found.items():
            say(f"wrote {_draw(folder, dataset.name, name, scores)}")
        say(f"wrote {folder.write_json('evaluation.json', result)}")


def _about(folder: "Run", model: "Model", dataset: "Dataset", split: str) -> dict[str, Any]:
    """What is evaluated on what; what is known of other data stays, as long as the weights do."""
    sha256, before = folder.weights_sha256(), folder.read_json("evaluation.json")
    return {
        "split": split,
        "model_sha256": sha256,
        "parameters": sum(p.numel() for p in model.parameters()),
        "class_names": list(dataset.class_names),
        "ood": before.get("ood", {}) if before.get("model_sha256") == sha256 else {},
    }


# -- what is known already -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Effort:
    """With what an evaluation was made: more of each is better."""

    examples: int
    draws: int
    precision: str

    def joined(self, other: "_Effort") -> "_Effort":
        """The better of both in each."""
        precision = max(self.precision, other.precision, key=PRECISIONS.index)
        return _Effort(max(self.examples, other.examples), max(self.draws, other.draws), precision)

    def __str__(self) -> str:
        return f"{self.examples} examples with {self.draws} dequantization draws each in {self.precision}"


def _before(folder: "Run", split: str) -> dict[str, Any]:
    """The evaluation that is there, of these weights and this split; empty without one."""
    tree = folder.read_json("evaluation.json")
    same = tree.get("model_sha256") == folder.weights_sha256() and tree.get("split") == split
    return tree if same else {}


def _effort_of(tree: dict[str, Any]) -> _Effort | None:
    """How an evaluation was made, None when the file does not tell."""
    parts = [part for name in ("likelihood", "classification") if isinstance(part := tree.get(name), dict)]
    counts = [n for part in parts if isinstance(n := part.get("n"), int)]
    draws = parts[0].get("dequantize_samples", 1) if parts else None
    precision = tree.get("precision", "float32")
    if not counts or not isinstance(draws, int) or precision not in PRECISIONS:
        return None
    return _Effort(min(counts), draws, precision)


def _standard_error(tree: dict[str, Any]) -> float:
    """Of the mean bits/dim of an evaluation, infinite when it has none."""
    try:
        return float(tree["likelihood"]["bits_per_dim"]["half_width"]) / 1.96
    except (LookupError, TypeError, ValueError):
        return math.inf


# -- measure ---------------------------------------------------------------------------------------------------------


def _other(name: str, data_dir: "str | Path | None", dataset: "Dataset", split: str) -> "tuple[str, tuple[Split, str]]":
    """The name of other data, and their examples in the form of the model's own, with how they came to it."""
    from iresnet.data import load, match_format

    other = load(name, data_dir, like=dataset.columns)
    return other.name, match_format(other, split, dataset.shape, dataset.levels, dataset.columns)


def _evaluated(
    model: "Model",
    dataset: "Dataset",
    whole: "Split",
    effort: _Effort,
    split: str,
    standard_error: float | None,
    how: dict[str, int],
) -> dict[str, Any]:
    """Evaluate what a model has on a split, or on so many of its examples, and print it."""
    from iresnet.classifiers import Classifier, Hybrid

    part = whole.shuffled(how["seed"], effort.examples) if effort.examples < len(whole) else whole
    result: dict[str, Any] = {"examples": len(part), "precision": effort.precision}
    accuracy, score = None, None
    if not isinstance(model, Classifier):
        options = {"dequantize_samples": effort.draws, **how}
        score, baselines = _density(flow_of(model), dataset, part, standard_error, options)
    if isinstance(model, (Classifier, Hybrid)):
        accuracy = _predictions(model, part, dataset.levels, how)
    if score:
        result |= {"likelihood": asdict(score), "baselines": {name: asdict(b) for name, b in baselines.items()}}
        _print_likelihoods({"this model": score, **baselines}, split)
        _print_uncertainty(score, len(part), standard_error)
    if accuracy:
        result["classification"] = asdict(accuracy)
        say(f"{split} {accuracy}")
        say(str(accuracy.calibration))
    _print_classes(dataset.class_names, accuracy, score)
    return result


def _density(
    flow: "Flow", dataset: "Dataset", part: "Split", standard_error: float | None, how: dict[str, int]
) -> "tuple[Likelihood, dict[str, Likelihood]]":
    from iresnet import evaluation

    with progress("likelihood", len(part)) as advance:
        options: dict[str, Any] = {"standard_error": standard_error, **how}
        score = evaluation.likelihood(flow, part, levels=dataset.levels, **options, progress=advance)
    noise = {"dequantize_samples": how["dequantize_samples"], "seed": how["seed"]}
    return score, _baselines(dataset, part, **noise) if is_main() else {}


def _predictions(model: "Classifier | Hybrid", part: "Split", levels: int | None, how: dict[str, int]) -> "Accuracy":
    from iresnet import evaluation

    with progress("classification", len(part)) as advance:
        return evaluation.classification(model, part, levels=levels, progress=advance, **how)


def _detections(
    model: "Model",
    dataset: "Dataset",
    part: "Split",
    others: "dict[str, tuple[Split, str]]",
    how: dict[str, int],
) -> "dict[str, dict[str, Detection]]":
    from iresnet import evaluation

    train = dataset.train.shuffled(how["seed"], len(part))
    sets = {name: other.shuffled(how["seed"], len(part)) for name, (other, _) in others.items()}
    total = len(part) + len(train) + sum(map(len, sets.values()))
    with progress("other data", total) as advance:
        return evaluation.detect(model, part, train, sets, levels=dataset.levels, progress=advance, **how)


def _baselines(dataset: "Dataset", part: "Split", **noise: int) -> dict[str, Any]:
    """The densities to beat: those that exist for the data."""
    from iresnet import evaluation
    from iresnet.data import TOYS
    from iresnet.errors import DataError

    found = {}
    if dataset.name in TOYS:
        found["true density"] = evaluation.true_density(dataset, part)
    if dataset.levels is not None:
        found[f"uniform on {dataset.levels} levels"] = evaluation.uniform_baseline(dataset, part)
    try:
        found["full-covariance Gaussian"] = evaluation.gaussian_baseline(dataset, part, **noise)
    except DataError as error:
        err.print(f"iresnet: {error}")
    return found


# -- show ------------------------------------------------------------------------------------------------------------


def _print_likelihoods(scores: dict[str, Any], split: str) -> None:
    table = _table(f"{split} likelihood", "bits/dim", "95 % interval", "nats")
    for name, score in scores.items():
        bits = score.bits_per_dim
        interval = f"{bits.mean - bits.half_width:.4f} to {bits.mean + bits.half_width:.4f}"
        table.add_row(name, f"{bits.mean:.4f}", interval, f"{score.nats.mean:.2f}")
    say(table)


def _print_uncertainty(score: "Likelihood", n: int, target: float | None) -> None:
    say(f"log-determinants of this model by {score.estimator}")
    say(str(score.uncertainty))
    if score.dequantize_samples > 1:
        say(f"importance-weighted over {score.dequantize_samples} dequantization draws")
    if target is not None:
        reached = score.bits_per_dim.standard_error
        say(f"standard error {reached:.2g} after {score.n} of {n} examples, {target:.2g} was asked for")


def _print_classes(names: tuple[str, ...], accuracy: "Accuracy | None", score: "Likelihood | None") -> None:
    """A line for each class, or for those that are predicted worst."""
    classes = accuracy.classes if accuracy else ()
    bits = score.classes if score else ()
    rows = list(zip_longest(names, classes, bits))
    if not names:
        return
    if accuracy:
        rows.sort(key=lambda row: math.inf if row[1] is None or row[1].accuracy is None else row[1].accuracy)
    headings = (*(("accuracy", "95 % interval", "examples") if classes else ()), *(("bits/dim",) if bits else ()))
    table = _table("class", *headings)
    for name, predicted, mean in rows[:MOST_CLASSES]:
        cells = []
        if classes:
            cells += _class_cells(predicted) if predicted and predicted.interval else ["", "", "0"]
        if bits:
            cells.append("" if mean is None else str(mean))
        table.add_row(name, *cells)
    say(table)
    if len(rows) > MOST_CLASSES:
        say(f"and {len(rows) - MOST_CLASSES} classes more, in evaluation.json")


def _class_cells(predicted: "ClassAccuracy") -> list[str]:
    low, high = predicted.interval or (math.nan, math.nan)
    return [f"{predicted.accuracy:.2%}", f"{low:.2%} to {high:.2%}", str(predicted.n)]


def _print_detections(name: str, scores: "dict[str, Detection]", preparation: str) -> None:
    table = _table(f"against {name}", "AUROC (95 % interval)", "FPR95 (95 % interval)")
    for score, d in scores.items():
        table.add_row(score, _with_interval(d.auroc, d.interval), _with_interval(d.fpr95, d.fpr95_interval))
    say(table)
    n = next(iter(scores.values()))
    say(f"{n.n_in} examples of the model's data, {n.n_out} of {name}{preparation and f': {preparation}'}")


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _draw(folder: "Run", own: str, name: str, scores: "dict[str, Detection]") -> "Path":
    from iresnet.files import write_atomically, writing
    from iresnet.pictures import histograms, png

    panels = {score: (d.histogram.edges, d.histogram.inside, d.histogram.outside) for score, d in scores.items()}
    path = folder.samples / f"ood-{name}.png"
    with writing(path.parent):
        path.parent.mkdir(exist_ok=True)
    write_atomically(path, png(histograms(panels, (own, name))))
    return path


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    return table
