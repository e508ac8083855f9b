"""``iresnet evaluate``: likelihood, predictions and the detection of other data on a split, with error bars."""

__all__ = ["evaluate"]

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators
from rich.table import Table

from iresnet.bars import progress
from iresnet.commands.arguments import (
    BatchSize,
    DataDir,
    DeviceName,
    Gpus,
    Precision,
    Processes,
    RunFolder,
    Seed,
    classifier_of,
    flow_of,
    open_run,
    use_processes,
)
from iresnet.console import err, is_main, say
from iresnet.errors import RecipeError, UnknownNameError

if TYPE_CHECKING:
    from iresnet.data import Dataset, Split
    from iresnet.evaluation import Accuracy, Detection, Likelihood
    from iresnet.runs import Run
    from iresnet.zoo import Model

PRECISIONS = ("bf16", "fp16", "tf32", "float32")
"""From the coarsest to the finest."""

MAX_ROWS = 20
"""Classes that are printed at most: those with the lowest accuracy."""


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
    radius: Annotated[list[float] | None, Parameter(negative="", validator=validators.Number(gte=0))] = None,
    precision: Precision = "float32",
    batch_size: BatchSize = None,
    device: DeviceName = "auto",
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Measure likelihood and predictions on a split, with error bars, beside baselines; writes evaluation.json.

    Densities: bits/dim, also of each class. Classifiers: accuracy, negative log-likelihood, expected calibration error
    (15 bins; beside what a calibrated classifier would show by chance), accuracy of each class, and certified accuracy:
    the share of examples that are predicted right and are proved to stay so within a Euclidean radius, in units of the
    data. The confusion matrix and the reliability bins are in evaluation.json.

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
        standard_error: Stop early once the standard error of the mean bits/dim falls to this.
        dequantize_samples: Noise draws for each example, whose mean density is a tighter bound.
        radius: At which accuracy is certified; may be repeated. Round numbers about the median radius by default.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    use_processes(processes, gpus, device)
    from iresnet.devices import device_of
    from iresnet.precision import use_precision

    folder, model, dataset, data = open_run(run, data_dir, split, device)
    if standard_error is not None or dequantize_samples != 1:
        flow_of(model)  # refuses a classifier
    if radius:
        classifier_of(model)
    if ood and folder.read_config()[1].is_conditional:
        raise RecipeError("--ood compares densities without a context: other data have none for this run")
    others = dict(_load_other(name, data_dir or folder.data_dir, dataset, split) for name in ood or ())
    subset = data.shuffled(seed, examples) if examples else data
    result, previous = _header(folder, model, dataset, split), _previous_evaluation(folder, split)
    options = {"seed": seed} if batch_size is None else {"seed": seed, "batch_size": batch_size}

    asked, known = _Effort(len(subset), dequantize_samples, precision), _effort_of(previous)
    if others and known:  # --ood must not replace an evaluation by a worse one
        precise = standard_error is not None and _standard_error(previous) <= standard_error
        asked = known.union(replace(asked, examples=0) if precise else asked)
    elif known and known.union(asked) == known != asked:
        say(f"the evaluation that is there, of {known}, is replaced")
    with use_precision(asked.precision, device_of(model)):
        if others and asked == known:
            say(f"the evaluation that is there, of {known}, is kept")
            result = previous | result
        else:
            result |= _evaluate(model, dataset, data, asked, split, standard_error, radius or (), options)
        detections = _detect(model, dataset, subset, others, options) if others else {}

    for name, scores in detections.items():
        about = {"positive": "other data", "split": split, "seed": seed, "preparation": others[name][1]}
        result["ood"][name] = {score: asdict(value) | about for score, value in scores.items()}
        _print_detections(name, scores, others[name][1])
    if is_main():
        for name, scores in detections.items():
            say(f"wrote {_draw(folder, dataset.name, name, scores)}")
        say(f"wrote {folder.write_json('evaluation.json', result)}")


def _load_other(
    name: str, data_dir: "str | Path | None", dataset: "Dataset", split: str
) -> "tuple[str, tuple[Split, str]]":
    """Load other data: their name, and their examples in the form of the model's own with how they came to it."""
    from iresnet.data import load, match_format

    other = load(name, data_dir, like=dataset.columns)
    return other.name, match_format(other, split, dataset.shape, dataset.levels, dataset.columns)


def _header(folder: "Run", model: "Model", dataset: "Dataset", split: str) -> dict[str, Any]:
    """Describe model and data; keep earlier OOD results if the weights are unchanged."""
    sha256, previous = folder.weights_sha256(), folder.read_json("evaluation.json")
    return {
        "split": split,
        "model_sha256": sha256,
        "parameters": sum(p.numel() for p in model.parameters()),
        "class_names": list(dataset.class_names),
        "ood": previous.get("ood", {}) if previous.get("model_sha256") == sha256 else {},
    }


# -- the previous evaluation -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Effort:
    """Examples, noise draws and precision of an evaluation: more of each is better."""

    examples: int
    draws: int
    precision: str

    def union(self, other: "_Effort") -> "_Effort":
        """Return the better of both in each."""
        precision = max(self.precision, other.precision, key=PRECISIONS.index)
        return _Effort(max(self.examples, other.examples), max(self.draws, other.draws), precision)

    def __str__(self) -> str:
        return f"{self.examples} examples with {self.draws} dequantization draws each in {self.precision}"


def _previous_evaluation(folder: "Run", split: str) -> dict[str, Any]:
    """Read the evaluation of these weights and this split; empty without one."""
    tree = folder.read_json("evaluation.json")
    same = tree.get("model_sha256") == folder.weights_sha256() and tree.get("split") == split
    return tree if same else {}


def _effort_of(tree: dict[str, Any]) -> _Effort | None:
    """Return the effort of an evaluation, None when the file does not tell."""
    results = [result for name in ("likelihood", "classification") if isinstance(result := tree.get(name), dict)]
    counts = [n for result in results if isinstance(n := result.get("n"), int)]
    draws = results[0].get("dequantize_samples", 1) if results else None
    precision = tree.get("precision", "float32")
    if not counts or not isinstance(draws, int) or precision not in PRECISIONS:
        return None
    return _Effort(min(counts), draws, precision)


def _standard_error(tree: dict[str, Any]) -> float:
    """Return the standard error of the mean bits/dim of an evaluation, infinite when it has none."""
    try:
        return float(tree["likelihood"]["bits_per_dim"]["half_width"]) / 1.96
    except (LookupError, TypeError, ValueError):
        return math.inf


# -- compute ---------------------------------------------------------------------------------------------------------


def _evaluate(
    model: "Model",
    dataset: "Dataset",
    data: "Split",
    effort: _Effort,
    split: str,
    standard_error: float | None,
    radii: Sequence[float],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Evaluate likelihood and predictions, whichever the model has, on a subset of the data, and print them."""
    from iresnet import evaluation
    from iresnet.classifiers import Classifier, Hybrid

    seed, n_draws = options["seed"], effort.draws
    subset = data.shuffled(seed, effort.examples) if effort.examples < len(data) else data
    result: dict[str, Any] = {"examples": len(subset), "precision": effort.precision}
    likelihood = accuracy = None
    if not isinstance(model, Classifier):
        with progress("likelihood", len(subset)) as advance:
            likelihood = evaluation.likelihood(
                flow_of(model),
                subset,
                levels=dataset.levels,
                standard_error=standard_error,
                dequantize_samples=n_draws,
                progress=advance,
                **options,
            )
        conditional = flow_of(model).context_encoder is not None
        noise = {"dequantize_samples": n_draws, "seed": seed}
        baselines = _baselines(dataset, subset, conditional=conditional, **noise) if is_main() else {}
    if isinstance(model, (Classifier, Hybrid)):
        with progress("classification", len(subset)) as advance:
            given = {"levels": dataset.levels, "radii": radii, **options}
            accuracy = evaluation.classification(model, subset, progress=advance, **given)
    if likelihood:
        result["likelihood"] = asdict(likelihood)
        result["baselines"] = {name: asdict(baseline) for name, baseline in baselines.items()}
        _print_likelihoods({"this model": likelihood, **baselines}, split)
        _print_uncertainty(likelihood, len(subset), standard_error)
    if accuracy:
        result["classification"] = asdict(accuracy)
        say(f"{split} {accuracy}")
        say(str(accuracy.calibration))
        _print_certified(accuracy)
    _print_classes(dataset.class_names, accuracy, likelihood)
    return result


def _detect(
    model: "Model",
    dataset: "Dataset",
    subset: "Split",
    others: "dict[str, tuple[Split, str]]",
    options: dict[str, Any],
) -> "dict[str, dict[str, Detection]]":
    """Evaluate detection of other data, with as many examples of each as of the model's own."""
    from iresnet import evaluation

    seed, n = options["seed"], len(subset)
    train = dataset.train.shuffled(seed, n)
    sets = {name: other.shuffled(seed, n) for name, (other, _) in others.items()}
    with progress("other data", n + len(train) + sum(map(len, sets.values()))) as advance:
        return evaluation.detect(model, subset, train, sets, levels=dataset.levels, progress=advance, **options)


def _baselines(dataset: "Dataset", subset: "Split", *, conditional: bool, **noise: int) -> "dict[str, Likelihood]":
    """Evaluate the densities to compare with that exist for the data."""
    from iresnet import evaluation
    from iresnet.data import CONDITIONAL_TOYS, TOYS
    from iresnet.errors import DataError

    found = {}
    if dataset.name in TOYS or (dataset.name in CONDITIONAL_TOYS and conditional):
        found["true density"] = evaluation.true_density(dataset, subset)
    if dataset.levels is not None:
        found[f"uniform on {dataset.levels} levels"] = evaluation.uniform_baseline(dataset, subset)
    try:
        found["full-covariance Gaussian"] = evaluation.gaussian_baseline(dataset, subset, **noise)
    except DataError as error:
        err.print(f"iresnet: {error}")
    return found


# -- write and print -------------------------------------------------------------------------------------------------


def _draw(folder: "Run", own: str, name: str, scores: "dict[str, Detection]") -> "Path":
    from iresnet.files import write_atomically, writing
    from iresnet.pictures import histograms, png

    panels = {score: (d.histogram.edges, d.histogram.inside, d.histogram.outside) for score, d in scores.items()}
    path = folder.samples / f"ood-{name}.png"
    with writing(path.parent):
        path.parent.mkdir(exist_ok=True)
    write_atomically(path, png(histograms(panels, (own, name))))
    return path


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
    if score.bound:
        draws = score.dequantize_samples
        weighted = f", importance-weighted over {draws} draws" if draws > 1 else ""
        say(f"bits/dim of integers are upper bounds, by {score.bound}{weighted}")
    if target is not None:
        reached = score.bits_per_dim.standard_error
        say(f"standard error {reached:.2g} after {score.n} of {n} examples, {target:.2g} was asked for")


def _print_classes(names: tuple[str, ...], accuracy: "Accuracy | None", likelihood: "Likelihood | None") -> None:
    """Print a row for each class, or for those that are predicted worst."""
    if not names:
        return
    classes = accuracy.classes if accuracy else ()
    bits = likelihood.classes if likelihood else ()
    rows = list(zip_longest(names, classes, bits))
    if accuracy:
        rows.sort(key=lambda row: math.inf if row[1] is None or row[1].accuracy is None else row[1].accuracy)
    headings = (*(("accuracy", "95 % interval", "examples") if classes else ()), *(("bits/dim",) if bits else ()))
    table = _table("class", *headings)
    for name, predicted, mean in rows[:MAX_ROWS]:
        cells = []
        if classes and predicted and predicted.interval:
            low, high = predicted.interval
            cells += [f"{predicted.accuracy:.2%}", f"{low:.2%} to {high:.2%}", str(predicted.n)]
        elif classes:
            cells += ["", "", "0"]
        if bits:
            cells.append("" if mean is None else str(mean))
        table.add_row(name, *cells)
    say(table)
    if len(rows) > MAX_ROWS:
        say(f"and {len(rows) - MAX_ROWS} classes more, in evaluation.json")


def _print_certified(accuracy: "Accuracy") -> None:
    if not accuracy.certified:
        say("no prediction is certified: the network is plain, or its bounds are infinite")
        return
    table = _table("certified radius", "accuracy", "95 % interval")
    for at in accuracy.certified:
        table.add_row(f"{at.radius:g}", f"{at.accuracy:.2%}", f"{at.interval[0]:.2%} to {at.interval[1]:.2%}")
    say(table)


def _print_detections(name: str, scores: "dict[str, Detection]", preparation: str) -> None:
    table = _table(f"against {name}", "AUROC (95 % interval)", "FPR95 (95 % interval)")
    for score, d in scores.items():
        rates = ((d.auroc, d.interval), (d.fpr95, d.fpr95_interval))
        table.add_row(score, *(f"{rate:.3f} ({low:.3f} to {high:.3f})" for rate, (low, high) in rates))
    say(table)
    first = next(iter(scores.values()))
    say(f"{first.n_in} examples of the model's data, {first.n_out} of {name}{preparation and f': {preparation}'}")


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    return table
