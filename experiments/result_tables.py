"""Tables of docs/results.md, computed from the archives in docs/results."""

__all__ = ["TABLES", "bits", "error", "read"]

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import Path as Run  # folder of a run in the archive of its experiment

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from pages import table

Runs = Mapping[str, Sequence[Run]]  # of each experiment
Groups = Mapping[str, Runs]


def read(run: Run, name: str) -> dict[str, Any]:
    path = run / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _mean_and_sd(values: Sequence[float], digits: int) -> str:
    """Format the mean, and with several values the standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _over(runs: Sequence[Run], figure: Callable[[Run], float], digits: int) -> str:
    return _mean_and_sd([figure(run) for run in runs], digits)


def _cpu_minutes(run: Run) -> float:
    return sum(entry["cpu_seconds"] for entry in read(run, "cost")["sessions"]) / 60


def bits(run: Run) -> float:
    return read(run, "evaluation")["likelihood"]["bits_per_dim"]["mean"]


def _nats(run: Run) -> float:
    return read(run, "evaluation")["likelihood"]["nats"]["mean"]


def _baseline_nats(run: Run, name: str) -> float:
    return read(run, "evaluation")["baselines"][name]["nats"]["mean"]


def error(run: Run) -> float:
    return 100 * (1 - read(run, "evaluation")["classification"]["accuracy"])


def _largest_bound(runs: Sequence[Run]) -> str:
    """Format the largest upper bound of a block over all runs."""
    certificates = [read(run, "certificate") for run in runs]
    if not all(certificate.get("certified") for certificate in certificates):
        return "not certified"
    return f"{max(block['upper'] for c in certificates for block in c['blocks']):.3f}"


def _origin(runs: Sequence[Run]) -> list[str]:
    commits = {read(run, "origin")["commit"] for run in runs}
    return [str(len(runs)), ", ".join(sorted(commits)), _over(runs, _cpu_minutes, 1)]


def _by_experiment(first: str, rows: Mapping[str, Sequence[str]], runs: Runs, columns: Sequence[str], n: str) -> str:
    """Format a row for each experiment, and append its largest block bound, number of runs, commit and cost."""
    header = [first, *columns, "largest block bound", n, "commit", "CPU minutes"]
    return table(header, [[*row, _largest_bound(runs[name]), *_origin(runs[name])] for name, row in rows.items()])


def density(groups: Groups) -> str:
    """Format bits/dim on the test split."""
    runs, rows = groups.get("density", {}), {}
    for name, found in runs.items():
        widths = [read(run, "evaluation")["likelihood"]["bits_per_dim"]["half_width"] for run in found]
        rows[name] = [f"`{name}`", _over(found, bits, 3), f"{max(widths):.3f}"]
    return _by_experiment("recipe", rows, runs, ["bits/dim", "half-width of the interval"], "seeds")


def toys(groups: Groups) -> str:
    """Format nats beside those of the true density."""

    def true(run: Run) -> float:
        return _baseline_nats(run, "true density")

    runs = groups.get("toys", {})
    rows = {
        name: [
            name.removeprefix("toy-"),
            f"{true(found[0]):.3f}",
            _over(found, _nats, 3),
            _over(found, lambda run: _nats(run) - true(run), 3),
        ]
        for name, found in runs.items()
    }
    return _by_experiment("points", rows, runs, ["true, nats", "model, nats", "above the truth"], "seeds")


def tables(groups: Groups) -> str:
    """Format nats on the test rows beside those of a Gaussian and a spline flow on the same splits."""
    splines = json.loads((Path(__file__).parent / "spline_flow.json").read_text())
    runs, rows = groups.get("tables", {}), {}
    for name, found in runs.items():
        data = name.removeprefix("uci-")
        spline = [splines[data][run.name.removeprefix("seed-")]["nats"] for run in found]
        gaussian = _over(found, lambda run: _baseline_nats(run, "full-covariance Gaussian"), 2)
        rows[name] = [data, gaussian, _mean_and_sd(spline, 2), _over(found, _nats, 2)]
    return _by_experiment("table", rows, runs, ["Gaussian", "spline flow", "iresnet"], "splits")


_CLASSIFIERS = ("mnist", "fashion-mnist", "cifar10")


def classification(groups: Groups) -> str:
    """Format the test error in per cent of the recipes."""
    named = {group: f"{group}-classify-small" for group in _CLASSIFIERS}
    runs = {name: groups[group][name] for group, name in named.items() if name in groups.get(group, {})}
    rows = {name: [f"`{name}`", _over(found, error, 2)] for name, found in runs.items()}
    return _by_experiment("recipe", rows, runs, ["error, %"], "seeds")


def coefficients(groups: Groups) -> str:
    """Format the test error in per cent by Lipschitz coefficient, with the optimizer and the activation of 2019."""
    settings = ("0.5", "0.7", "0.9", "unconstrained", "resnet")
    rows = []
    for group in _CLASSIFIERS:
        found = {name.removeprefix(f"{group}-classify-small-"): runs for name, runs in groups.get(group, {}).items()}
        errors = [_over(found[s], error, 2) if s in found else "-" for s in settings]
        rows.append([group, *errors, *_origin([run for s in settings for run in found.get(s, ())])])
    header = ["data", "coefficient 0.5", "0.7", "0.9", "unconstrained", "plain ResNet"]
    return table([*header, "runs", "commit", "CPU minutes"], rows)


def hybrid(groups: Groups) -> str:
    """Format bits/dim, test error and calibration error of hybrids."""

    def calibration(run: Run) -> float:
        return 100 * read(run, "evaluation")["classification"]["calibration"]["ece"]

    runs = groups.get("hybrid", {})
    rows = {
        name: [f"`{name}`", _over(found, bits, 3), _over(found, error, 2), _over(found, calibration, 2)]
        for name, found in runs.items()
    }
    return _by_experiment("recipe", rows, runs, ["bits/dim", "error, %", "calibration error, %"], "seeds")


def detection(groups: Groups) -> str:
    """Format AUROC and FPR95 of every score, for every experiment that was evaluated on other data."""
    rows = []
    for name, runs in (item for group in groups.values() for item in group.items()):
        found = [read(run, "evaluation").get("ood", {}) for run in runs]
        for other in found[0]:
            for score in found[0][other]:
                each = [of[other][score] for of in found]
                cells = (_mean_and_sd([e[key] for e in each], 3) for key in ("auroc", "fpr95"))
                rows.append([f"`{name}`", other, score, *cells])
    return table(["trained", "against", "score", "AUROC", "FPR95"], rows)


TABLES: dict[str, Callable[[Groups], str]] = {
    "density": density,
    "toys": toys,
    "tables": tables,
    "classification": classification,
    "coefficients": coefficients,
    "hybrid": hybrid,
    "detection": detection,
}
"""By the name of the markers in the page."""
