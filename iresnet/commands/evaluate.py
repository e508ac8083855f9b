"""``iresnet evaluate``: likelihood and accuracy on a split, with error bars."""

__all__ = ["evaluate"]

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from iresnet.commands.arguments import DataDir, Gpus, Processes, RunFolder, Seed, flow_of, open_run, spread
from iresnet.console import err, is_main, progress, say

if TYPE_CHECKING:
    from iresnet.data import Dataset, Split
    from iresnet.evaluation import Likelihood


def evaluate(
    run: RunFolder,
    *,
    split: str = "test",
    data_dir: DataDir = None,
    seed: Seed = 0,
    standard_error: float | None = None,
    dequantise_samples: int = 1,
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Measure bits/dim or accuracy on a split, with error bars, beside baselines; writes evaluation.json.

    Args:
        run: Run folder.
        split: train, validation or test.
        data_dir: Folder of data sets.
        seed: Of the order of examples, dequantisation noise and probes.
        standard_error: Of the mean bits/dim, at which to stop before the end of the split.
        dequantise_samples: Noise draws for each example, whose mean density is a tighter bound.
    """
    spread(processes, gpus)
    from iresnet import evaluation
    from iresnet.classifiers import Classifier, Hybrid

    folder, model, dataset, part = open_run(run, data_dir, split)
    n = len(part)
    result: dict[str, Any] = {"split": split, "examples": n}
    common = {"levels": dataset.levels, "seed": seed}
    asked = standard_error is not None or dequantise_samples != 1
    if asked or not isinstance(model, Classifier):  # a classifier of which a density is asked is refused
        options: dict[str, Any] = {"standard_error": standard_error, "dequantise_samples": dequantise_samples}
        with progress("likelihood", n) as advance:
            score = evaluation.likelihood(flow_of(model), part, **common, **options, progress=advance)
        result["likelihood"] = asdict(score)
        noise = {"dequantise_samples": dequantise_samples, "seed": seed}
        baselines = _baselines(dataset, part, **noise) if is_main() else {}
        result["baselines"] = {name: asdict(baseline) for name, baseline in baselines.items()}
        _print_likelihoods({"this model": score, **baselines}, split)
        _print_uncertainty(score, n, standard_error)
    if isinstance(model, (Classifier, Hybrid)):
        with progress("classification", n) as advance:
            accuracy = evaluation.classification(model, part, **common, progress=advance)
        result["classification"] = asdict(accuracy)
        say(f"{split} {accuracy}")
    if is_main():
        say(f"wrote {folder.write_json('evaluation.json', result)}")


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


def _print_likelihoods(scores: dict[str, Any], split: str) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{split} likelihood", no_wrap=True)
    for heading in ("bits/dim", "95 % interval", "nats", "log-determinant"):
        table.add_column(heading, justify="right")
    for name, score in scores.items():
        bits = score.bits_per_dim
        interval = f"{bits.mean - bits.half_width:.4f} to {bits.mean + bits.half_width:.4f}"
        table.add_row(name, f"{bits.mean:.4f}", interval, f"{score.nats.mean:.2f}", score.estimator)
    say(table)


def _print_uncertainty(score: "Likelihood", n: int, target: float | None) -> None:
    say(str(score.uncertainty))
    if score.dequantise_samples > 1:
        say(f"importance-weighted over {score.dequantise_samples} dequantisation draws")
    if target is not None:
        reached = score.bits_per_dim.standard_error
        say(f"standard error {reached:.2g} after {score.n} of {n} examples, {target:.2g} was asked for")
