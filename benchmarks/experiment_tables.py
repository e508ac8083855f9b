"""The tables of docs/results.md, from what docs/results keeps of the runs."""

__all__ = ["TABLES"]

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import Path as Run  # the folder of a run in the archive of its experiment

from report import table

Runs = Mapping[str, Sequence[Run]]  # the runs of each experiment
Groups = Mapping[str, Runs]


def _read(run: Run, name: str) -> dict[str, Any]:
    path = run / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation over seeds, if there are several."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _over(runs: Sequence[Run], figure: Callable[[Run], float], digits: int) -> str:
    return _spread([figure(run) for run in runs], digits)


def _cpu_minutes(run: Run) -> float:
    return sum(session["cpu_seconds"] for session in _read(run, "cost")["sessions"]) / 60


def _bits(run: Run) -> float:
    return _read(run, "evaluation")["likelihood"]["bits_per_dim"]["mean"]


def _half_width(run: Run) -> float:
    return _read(run, "evaluation")["likelihood"]["bits_per_dim"]["half_width"]


def _nats(run: Run) -> float:
    return _read(run, "evaluation")["likelihood"]["nats"]["mean"]


def _baseline(name: str) -> Callable[[Run], float]:
    return lambda run: _read(run, "evaluation")["baselines"][name]["nats"]["mean"]


def _error(run: Run) -> float:
    return 100 * (1 - _read(run, "evaluation")["classification"]["accuracy"])


def _calibration(run: Run) -> float:
    return 100 * _read(run, "evaluation")["classification"]["calibration"]["ece"]


def _worst_block(runs: Sequence[Run]) -> str:
    """The largest upper bound of a block in any of the runs."""
    certificates = [_read(run, "certificate") for run in runs]
    if not all(certificate.get("certified") for certificate in certificates):
        return "not certified"
    return f"{max(block['upper'] for c in certificates for block in c['blocks']):.3f}"


def _origin(runs: Sequence[Run]) -> list[str]:
    commits = {_read(run, "origin")["commit"] for run in runs}
    return [str(len(runs)), ", ".join(sorted(commits)), _over(runs, _cpu_minutes, 1)]


def _by_experiment(first: str, rows: Mapping[str, Sequence[str]], runs: Runs, columns: Sequence[str], n: str) -> str:
    """A table with a row for each experiment, each of which ends with its certificate and where it comes from."""
    header = [first, *columns, "largest block bound", n, "commit", "CPU minutes"]
    return table(header, [[*row, _worst_block(runs[name]), *_origin(runs[name])] for name, row in rows.items()])


def density(groups: Groups) -> str:
    """Bits/dim on the test split."""
    runs = groups.get("density", {})
    rows = {
        name: [f"`{name}`", _over(found, _bits, 3), f"{max(map(_half_width, found)):.3f}"]
        for name, found in runs.items()
    }
    return _by_experiment("recipe", rows, runs, ["bits/dim", "half-width of the interval"], "seeds")


def toys(groups: Groups) -> str:
    """Nats against those of the law that the points were drawn from."""
    true = _baseline("true density")
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
    """Nats on the test rows, for the same splits and standardization."""
    splines = json.loads((Path(__file__).parent / "results" / "spline_flow.json").read_text())
    runs, rows = groups.get("tables", {}), {}
    for name, found in runs.items():
        data = name.removeprefix("uci-")
        spline = [splines[data][run.name.removeprefix("seed-")]["nats"] for run in found]
        gaussian = _over(found, _baseline("full-covariance Gaussian"), 2)
        rows[name] = [data, gaussian, _spread(spline, 2), _over(found, _nats, 2)]
    return _by_experiment("table", rows, runs, ["Gaussian", "spline flow", "iresnet"], "splits")


def classification(groups: Groups) -> str:
    """Test error in per cent, by the Lipschitz coefficient."""
    settings = ("0.5", "0.7", "0.9", "unconstrained", "resnet")
    rows = []
    for group in ("mnist", "fashion-mnist", "cifar10"):
        found = {name.split("small-")[1]: runs for name, runs in groups.get(group, {}).items()}
        if found:
            errors = [_over(found[s], _error, 2) if s in found else "-" for s in settings]
            rows.append([f"`{group}-classify-small`", *errors, *_origin([r for runs in found.values() for r in runs])])
    header = ["recipe", "coefficient 0.5", "0.7", "0.9", "unconstrained", "plain ResNet"]
    return table([*header, "runs", "commit", "CPU minutes"], rows)


def hybrid(groups: Groups) -> str:
    """Both losses, one network."""
    runs = groups.get("hybrid", {})
    rows = {
        name: [f"`{name}`", _over(found, _bits, 3), _over(found, _error, 2), _over(found, _calibration, 2)]
        for name, found in runs.items()
    }
    return _by_experiment("recipe", rows, runs, ["bits/dim", "error, %", "calibration error, %"], "seeds")


def detection(groups: Groups) -> str:
    """AUROC and FPR95 of every score, for every run that was shown other data."""
    rows = []
    for name, runs in (item for group in groups.values() for item in group.items()):
        found = [_read(run, "evaluation").get("ood", {}) for run in runs]
        for other in found[0]:
            for score in found[0][other]:
                each = [detections[other][score] for detections in found]
                rows.append(
                    [f"`{name}`", other, score] + [_spread([e[key] for e in each], 3) for key in ("auroc", "fpr95")]
                )
    return table(["trained", "against", "score", "AUROC", "FPR95"], rows)


TABLES: dict[str, Callable[[Groups], str]] = {
    "density": density,
    "toys": toys,
    "tables": tables,
    "classification": classification,
    "hybrid": hybrid,
    "detection": detection,
}
"""By the name of the markers in the page."""
