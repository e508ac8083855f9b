"""Copy the best trained small models into the package, each with its score on a fixed subset of the test split.

    python experiments/bundle.py RUNS [--data-dir DIR]

RUNS is the folder of experiments/reproduce.py. Of each model the seed with the smallest validation loss is taken, not
the one with the best test scores.
"""

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import iresnet
from iresnet import evaluation
from iresnet.classifiers import Classifier
from iresnet.data import Split, load
from iresnet.flows import Flow
from iresnet.models import load_model
from iresnet.runs import Run

PRETRAINED = Path(iresnet.__file__).parent / "pretrained"
MODELS = ("digits-density", "mnist-density-small", "fashion-mnist-density-small", "mnist-classify-small")
"""Names in the package, and of the experiments of which each is a run."""
COPIED = ("config.yaml", "model.safetensors", "certificate.json", "evaluation.json")
SCORES = "training-scores.json"  # of densities, by iresnet score
EXAMPLES = 256
LARGEST = 4 * 1024**2  # bytes


def validation_loss(run: Path) -> float:
    """Return the validation loss of the last snapshot, whose model was saved."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["split"] == "validation"][-1]


def score_on_subset(run: Run, data_dir: Path | None) -> dict:
    """Evaluate the accuracy or bits/dim of a model on the first test examples."""
    config, inputs = run.read_config()
    dataset = load(config.data.name, data_dir or run.data_dir, pad_to=config.data.pad_to)
    model, test = load_model(run), dataset.test
    subset = Split(test.x[:EXAMPLES], None if test.y is None else test.y[:EXAMPLES])
    if isinstance(model, Classifier):
        accuracy = evaluation.classification(model, subset, levels=inputs.levels, seed=0).accuracy
        return {"data": config.data.name, "examples": EXAMPLES, "accuracy": accuracy}
    assert isinstance(model, Flow)
    score = evaluation.likelihood(model, subset, levels=inputs.levels, seed=0)
    return {"data": config.data.name, "examples": EXAMPLES, "bits_per_dim": asdict(score.bits_per_dim)["mean"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--data-dir", type=Path, help="a folder of data sets")
    options = parser.parse_args()
    for name in options.only:
        finished = [path.parent for path in (options.runs / name).glob("seed-*/evaluation.json")]
        if not finished:
            print(f"{name}: not trained")
            continue
        best = min(finished, key=validation_loss)
        assert (best / "model.safetensors").stat().st_size <= LARGEST
        folder = PRETRAINED / name
        folder.mkdir(exist_ok=True)
        for file in COPIED:
            shutil.copyfile(best / file, folder / file)
        if (best / SCORES).is_file():
            shutil.copyfile(best / SCORES, folder / SCORES)
        figure = score_on_subset(Run(best), options.data_dir)
        (folder / "stated.json").write_text(json.dumps(figure, indent=2) + "\n")
        print(name, best.name, figure)


if __name__ == "__main__":
    main()
