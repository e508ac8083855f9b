"""Train, evaluate and certify every run that docs/results.md reports, and write that page.

    python experiments/reproduce.py RUNS [--only density ...] [--seeds 0 1 2] [--data-dir DIR]    # what is missing
    python experiments/reproduce.py RUNS --tables                                                   # the page alone

Each run is a folder RUNS/EXPERIMENT/seed-N that is made with the command line alone. Complete runs are left alone,
interrupted ones are resumed. Configuration, metrics, certificate, evaluation, cost and environment of each seed are
packed into docs/results/*.zip, from which the page is written; seeds that RUNS lacks stay in these archives.
"""

import argparse
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from result_tables import TABLES

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from pages import insert_all

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
RAW = ROOT / "docs" / "results"
KEPT = ("config.yaml", "metrics.jsonl", "certificate.json", "evaluation.json", "cost.json", "env.json", "origin.json")
TOYS = ("8gaussians", "2spirals", "checkerboard", "rings", "moons", "pinwheel", "swissroll")
SMALL_TABLES = ("concrete", "energy", "wine-quality-red", "yacht")
LARGE_TABLES = ("kin8nm", "naval-propulsion-plant", "power-plant", "protein-tertiary-structure")
PLAIN = ("--model.spline", "0", "--model.base", "diagonal-normal")
TABLE_CHANGES = {
    "energy": PLAIN,
    "wine-quality-red": ("--train.epochs", "12"),
    "yacht": ("--model.spline", "0", "--train.epochs", "300"),
    "kin8nm": PLAIN,
    "protein-tertiary-structure": ("--train.epochs", "8"),
}
"""For tables of few levels, few rows or uniform columns, for one that is learned by heart, and for a large one."""

OPTIMIZER_OF_2019 = (
    *("--optim.name", "sgd", "--optim.lr", "0.1", "--optim.momentum", "0.9"),
    *("--optim.weight-decay", "5e-4", "--optim.warmup-epochs", "0.3"),
)
COEFFICIENTS = {c: ("--model.activation", "elu", "--model.coeff", c) for c in ("0.5", "0.7", "0.9")}
TWINS = {
    "unconstrained": ("--model.activation", "elu", "--model.coeff", "null"),
    "resnet": ("--model.activation", "relu", "--model.name", "resnet"),
}


@dataclass(frozen=True)
class Experiment:
    """Recipe with changes that is trained with several seeds.

    Attributes:
        recipe: a bundled recipe.
        changes: its overrides.
        certified: whether the model is certified.
        evaluation: further options of ``iresnet evaluate``.
        split: whether the seed also chooses the split of the table.
    """

    recipe: str
    changes: tuple[str, ...] = ()
    certified: bool = True
    evaluation: tuple[str, ...] = ()
    split: bool = False

    def command(self, seed: int) -> list[str]:
        """Return the arguments of ``iresnet`` without ``--out``."""
        split = ["--data.split-seed", str(seed)] if self.split else []
        return ["train", self.recipe, *self.changes, *split, "--train.seed", str(seed)]


def _classifiers(recipe: str) -> dict[str, Experiment]:
    """Return the recipe, and what the paper of 2019 compares, with its optimizer and activation."""
    compared = {
        f"{recipe}-{name}": Experiment(recipe, (*OPTIMIZER_OF_2019, *changes), certified=name in COEFFICIENTS)
        for name, changes in {**COEFFICIENTS, **TWINS}.items()
    }
    return {recipe: Experiment(recipe), **compared}


GROUPS: dict[str, dict[str, Experiment]] = {
    "density": {
        "digits-density": Experiment("digits-density"),
        "mnist-density-small": Experiment("mnist-density-small"),
        "fashion-mnist-density-small": Experiment("fashion-mnist-density-small", evaluation=("--ood", "mnist")),
        "cifar10-density-small": Experiment("cifar10-density-small"),
    },
    "hybrid": {
        "digits-hybrid": Experiment("digits-hybrid", evaluation=("--ood", "mnist")),
        "mnist-hybrid-small": Experiment("mnist-hybrid-small", evaluation=("--ood", "fashion-mnist")),
    },
    "toys": {f"toy-{name}": Experiment("toy-density", ("--data.name", name)) for name in TOYS},
    "tables": {
        f"uci-{name}": Experiment(recipe, ("--data.name", name, *TABLE_CHANGES.get(name, ())), split=True)
        for recipe, names in (("uci-density", SMALL_TABLES), ("uci-density-large", LARGE_TABLES))
        for name in names
    },
    "mnist": _classifiers("mnist-classify-small"),
    "fashion-mnist": _classifiers("fashion-mnist-classify-small"),
    "cifar10": _classifiers("cifar10-classify-small"),
}


def train(experiment: Experiment, seed: int, out: Path) -> None:
    """Train, evaluate and certify one run; skip what is done."""
    origin = out / "origin.json"
    if not origin.exists():
        command = experiment.command(seed)
        iresnet(*command, "--out", str(out), "--tracker", "[]", *(["--resume"] if out.exists() else []))
        last = ["git", "log", "-1", "--format=%h", "--", "iresnet"]  # the commit that changed the package last
        commit = subprocess.run(last, cwd=ROOT, capture_output=True, text=True)
        origin.write_text(json.dumps({"command": " ".join(["iresnet", *command]), "commit": commit.stdout.strip()}))
    if not (out / "evaluation.json").exists():
        iresnet("evaluate", str(out), *experiment.evaluation)
    if experiment.certified and not (out / "certificate.json").exists():
        iresnet("certify", str(out))


def iresnet(*tokens: str) -> None:
    print("iresnet", *tokens, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "iresnet", *tokens], env=environment, capture_output=True, text=True
    )
    print((process.stdout + process.stderr).strip().splitlines()[-1:], flush=True)
    if process.returncode:
        raise SystemExit(f"iresnet {tokens[0]} ended with status {process.returncode}: the experiments stop here")


def archive(name: str, folders: list[Path]) -> None:
    """Write the files of runs, without their data folder, into the archive of the experiment; keep its other seeds."""
    RAW.mkdir(exist_ok=True)
    renewed = {folder.name for folder in folders}
    kept = [run / file for run in archived(name) if run.name not in renewed for file in KEPT]
    entries = [path for path in (*kept, *(folder / file for folder in folders for file in KEPT)) if path.exists()]
    contents = {f"{path.parent.name}/{path.name}": _published(path) for path in entries}
    with zipfile.ZipFile(RAW / f"{name}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name_in_archive in sorted(contents):
            entry = zipfile.ZipInfo(name_in_archive)  # dated 1980, so that equal contents give equal archives
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, contents[name_in_archive])


def _published(path: Path | zipfile.Path) -> str:
    content = path.read_text(encoding="utf-8")
    if path.name != "env.json":
        return content
    return json.dumps({k: v for k, v in json.loads(content).items() if k != "data_dir"}, indent=2)


def archived(name: str) -> list[zipfile.Path]:
    """Return the archived runs of an experiment, sorted by seed."""
    path = RAW / f"{name}.zip"
    return sorted(zipfile.Path(path).iterdir(), key=lambda run: run.name) if path.exists() else []


def results() -> dict[str, dict[str, list[zipfile.Path]]]:
    """Return all archived runs by group and experiment."""
    return {
        group: {name: runs for name in experiments if (runs := archived(name))} for group, experiments in GROUPS.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=[*GROUPS], default=[*GROUPS], help="groups to train")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data-dir", type=Path, help="a folder of data sets")
    parser.add_argument("--tables", action="store_true", help="train nothing, only write the page")
    options = parser.parse_args()
    if options.data_dir:
        os.environ["IRESNET_DATA"] = str(options.data_dir.absolute())
    for seed in [] if options.tables else options.seeds:
        for group in options.only:
            for name, experiment in GROUPS[group].items():
                train(experiment, seed, options.runs / name / f"seed-{seed}")
    for name in (name for experiments in GROUPS.values() for name in experiments):
        if folders := [path.parent for path in (options.runs / name).glob("seed-*/evaluation.json")]:
            archive(name, folders)
    insert_all(TABLES, results(), page=PAGE)


if __name__ == "__main__":
    main()
