"""Kill a long run at random steps, resume it each time, and compare it with an uninterrupted run of the same recipe.

Files are compared byte for byte. Writes killed_run.json beside this script and docs/pictures/killed-run.png.

    IRESNET_DATA=DIR python tests/faults/killed_run.py OUT --steps 6860 mnist-density-small --train.epochs 8
"""

import argparse
import json
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from killing import Trial, at_step, differences, done, end, saved, train
from matplotlib.figure import Figure

from iresnet.config import load_config

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from pages import save

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "killed-run.png"


@dataclass
class Killed:
    """Record of a run that was killed several times.

    Attributes:
        at: for each kill, the last step in the metrics.
        continued_from: for each kill, the step of the checkpoint that was resumed.
        minutes: wall time of all processes together.
    """

    at: list[int] = field(default_factory=list)
    continued_from: list[int] = field(default_factory=list)
    minutes: float = 0.0


def killed(out: Path, command: list[str], steps: list[int]) -> Killed:
    """Train, and send SIGKILL shortly after each of these steps."""
    trial, result, begin = Trial(out, recipe=command, timeout=None), Killed(), time.monotonic()
    for step in steps:
        trial.interrupt(at_step(out, step, signal.SIGKILL))
        result.at.append(done(out))
        result.continued_from.append(saved(out))
        print(f"killed at step {result.at[-1]}, goes on from {result.continued_from[-1]}", flush=True)
    trial.complete()
    result.minutes = (time.monotonic() - begin) / 60
    return result


def training_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the metrics of training steps."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == "train"]


def draw(out: Path, reference: Path, result: Killed) -> None:
    """Draw both training curves, with a vertical line at each kill."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    title = f"The same run, killed {len(result.at)} times and not at all"
    axes = figure.add_subplot(xlabel="step", ylabel="training bits/dim", title=title)
    for run, style in ((reference, {"color": "0.7", "linewidth": 4}), (out, {"color": "C0", "linewidth": 1})):
        rows = training_metrics(run)
        label = "killed and continued" if run == out else "not interrupted"
        axes.plot([r["step"] for r in rows], [r["bits_per_dim"] for r in rows], label=label, **style)
    for step in result.at:
        axes.axvline(step, color="C3", linestyle="--", label="kill -9" if step == result.at[0] else None)
    axes.set_ylim(top=6)  # the first steps are far above
    axes.legend()
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for both runs")
    parser.add_argument("--kills", type=int, default=3, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="of the steps at which to kill")
    parser.add_argument("--steps", type=int, required=True, help="steps of the whole run")
    options, command = parser.parse_known_args()
    load_config(command[0])
    kills = sorted(random.Random(options.seed).sample(range(1, options.steps), options.kills))
    out, reference = options.out / "killed", options.out / "reference"
    result = killed(out, command, kills)
    if not (reference / "model.safetensors").exists():
        end(train(reference, recipe=command), timeout=None)
    steps = [row["step"] for row in training_metrics(out)]
    summary = {
        **vars(result),
        "command": command,
        "lines": len(steps),
        "lines twice": len(steps) - len(set(steps)),
        "lines missing": len({row["step"] for row in training_metrics(reference)} - set(steps)),
        "differences": differences(out, reference),
    }
    save("killed_run", {"run": summary}, folder=Path(__file__).parent)
    draw(out, reference, result)
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
