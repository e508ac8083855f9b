"""Train the published sizes on one GPU for some minutes each, and say what came of it.

    python experiments/gpu_training.py RUNS [--only cifar10-classify ...] [--minutes 8] [--data-dir DIR]

Each run is trained, evaluated and certified by the command line alone. Two short trainings tell how long a start and a
step take, and so how many steps fit into the minutes; the learning rate falls to 0 over them. What a run wrote joins
docs/results/gpu-NAME.zip, and figures and validation over time the table of docs/models.md. Weights of at most 16 MB
are left in RUNS/NAME/seed-0, which iresnet loads; larger ones are deleted.

--rehearse trains tiny networks on any device, and writes nothing outside RUNS.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any
from zipfile import Path as Run

from reproduce import ROOT, Experiment, archive, archived, insert_all, iresnet, train
from result_tables import bits, error, read, table

PAGE = ROOT / "docs" / "models.md"
MOST_BYTES = 16_000_000
PROBES = (20, 60)
"""Steps of the two short trainings; what is compiled or captured first counts as part of the start."""
SHARE = 0.85
"""Of the minutes that is for steps; the rest is for validation on the way."""

MUON = ("--optim.name", "muon", "--optim.lr", "0.04", "--optim.adam-lr", "0.1", "--optim.momentum", "0.95")
LINEAR = ("--optim.schedule", "linear", "--optim.decay-from", "0.2", "--optim.warmup-epochs", "0")
DENSITY = (*MUON, *LINEAR, "--model.spline", "16", "--model.logdet", "{name: krylov, n_steps: 3}")
CHEAPER = ("--train.logdet-chunks", "2", "--train.precision", "bf16")
TINY = ("--model.hidden", "4", "--model.blocks", "[1, 1]", "--model.strides", "[1, 2]", "--train.batch-size", "8")

EXPERIMENTS = {
    "cifar10-classify": Experiment("cifar10-classify", LINEAR, evaluation=("--radius", "36")),
    "mnist-density": Experiment("mnist-density", (*DENSITY, *CHEAPER)),
    "cifar10-density": Experiment("cifar10-density", (*DENSITY, *CHEAPER)),
}
"""Published models with the rates of minutes instead of days. A radius of 36 gray levels is 36/255 of the range."""


def n_steps_within(minutes: float, experiment: Experiment, out: Path) -> int:
    """Return how many steps fit, by the wall clock of two short trainings."""
    seconds = []
    for n in PROBES:
        folder = out / f"{n}-steps"
        iresnet(*experiment.command(0), "--train.max-steps", str(n), "--tracker", "[]", "--out", str(folder))
        seconds.append(json.loads((folder / "cost.json").read_text())["sessions"][0]["wall_seconds"])
    step = max(1e-4, (seconds[1] - seconds[0]) / (PROBES[1] - PROBES[0]))
    return max(PROBES[1], int((60 * SHARE * minutes - seconds[0]) / step))


def gpu(runs: dict[str, Run]) -> str:
    """Format what each run came to, and its validation over time."""
    rows = []
    for name, run in runs.items():
        evaluation, cost = read(run, "evaluation"), read(run, "cost")
        minutes = sum(session["wall_seconds"] for session in cost["sessions"]) / 60
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        validation = [line for line in lines if line["split"] == "validation"]
        figures = [f"{bits(run):.3f} bits/dim"] if "likelihood" in evaluation else _classified(run, evaluation)
        over_time = [f"{minutes * line['step'] / lines[-1]['step']:.1f}: {line['loss']:.3f}" for line in validation]
        cells = [f"{cost['parameters']:,}", str(lines[-1]["step"]), f"{minutes:.1f}", ", ".join(figures)]
        rows.append([f"`{name}`", *cells, ", ".join(over_time)])
    columns = ["parameters", "steps", "minutes", "test split", "minutes: validation loss"]
    return table(["recipe", *columns], rows)


def _classified(run: Run, evaluation: dict[str, Any]) -> list[str]:
    certified = evaluation["classification"]["certified"]
    shares = [f"{100 * entry['accuracy']:.1f} % certified at {entry['radius']:g}" for entry in certified]
    return [f"{error(run):.2f} % error", *shares]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=[*EXPERIMENTS], default=[*EXPERIMENTS])
    parser.add_argument("--minutes", type=float, default=8.0, help="of training, for each run")
    parser.add_argument("--data-dir", type=Path, help="a folder of data sets")
    parser.add_argument("--rehearse", action="store_true", help="train tiny networks, and write nothing outside RUNS")
    options = parser.parse_args()
    if options.data_dir:
        os.environ["IRESNET_DATA"] = str(options.data_dir.absolute())
    done: dict[str, Any] = {}
    for name in options.only:
        base = EXPERIMENTS[name]
        changes = (*base.changes, *(TINY if options.rehearse else ()))
        measured = Experiment(base.recipe, changes, evaluation=base.evaluation)
        n = n_steps_within(options.minutes, measured, options.runs / "timing" / name)
        steps = ("--train.max-steps", str(n), "--train.epochs", "1000000", "--train.n-pictures", "0")
        few = ("--examples", "64") if options.rehearse else ()
        done[name] = options.runs / name / "seed-0"
        train(Experiment(base.recipe, (*changes, *steps), evaluation=(*base.evaluation, *few)), 0, done[name])
        weights = done[name] / "model.safetensors"
        if weights.stat().st_size > MOST_BYTES:
            weights.unlink()
    if options.rehearse:
        print(gpu(done))
        return
    for name, folder in done.items():
        archive(f"gpu-{name}", [folder])
    kept = {name: runs[0] for name in EXPERIMENTS if (runs := archived(f"gpu-{name}"))}
    insert_all({"gpu": gpu}, kept, page=PAGE)


if __name__ == "__main__":
    main()
