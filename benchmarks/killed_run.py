"""Kill a long run at random moments, continue it each time, and look for a seam in its curve.

The run and another that nothing interrupts are trained from the same recipe, one after the other unless both exist
already; what they wrote is compared byte for byte. Writes results/killed_run.json and pictures/killed-run.png.

    IRESNET_DATA=DIR python benchmarks/killed_run.py OUT --steps 6860 mnist-density-small --train.epochs 8
"""

import argparse
import json
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from killing import Trial, at_step, differences, done, end, saved, train
from matplotlib.figure import Figure
from report import save

from iresnet.config import load_config

PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "killed-run.png"


@dataclass
class Killed:
    """A run that was killed several times, and what it wrote.

    Attributes:
        at: last step in the metrics when the process was killed.
        continued_from: step of the checkpoint from which it went on.
        minutes: wall time of all its processes, with those that were killed.
    """

    at: list[int] = field(default_factory=list)
    continued_from: list[int] = field(default_factory=list)
    minutes: float = 0.0


def killed(out: Path, command: list[str], moments: list[int]) -> Killed:
    """Train, with a kill -9 shortly after each of these steps."""
    trial, result, begin = Trial(out, recipe=command, timeout=None), Killed(), time.monotonic()
    for step in moments:
        trial.interrupt(at_step(out, step, signal.SIGKILL))
        result.at.append(done(out))
        result.continued_from.append(saved(out))
        print(f"killed at step {result.at[-1]}, goes on from {result.continued_from[-1]}", flush=True)
    trial.complete()
    result.minutes = (time.monotonic() - begin) / 60
    return result


def lines(run: Path) -> list[dict[str, Any]]:
    """The metrics of training steps."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == "train"]


def draw(out: Path, whole: Path, result: Killed) -> None:
    """Both curves, and the moments of the kills."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    title = f"The same run, killed {len(result.at)} times and not at all"
    axes = figure.add_subplot(xlabel="step", ylabel="training bits/dim", title=title)
    for run, style in ((whole, {"color": "0.7", "linewidth": 4}), (out, {"color": "C0", "linewidth": 1})):
        rows = lines(run)
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
    parser.add_argument("--kills", type=int, default=3, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--steps", type=int, required=True, help="steps of the run, among which the moments are drawn")
    options, command = parser.parse_known_args()
    load_config(command[0])
    moments = sorted(random.Random(options.seed).sample(range(1, options.steps), options.kills))
    out, whole = options.out / "killed", options.out / "whole"
    result = killed(out, command, moments)
    if not (whole / "model.safetensors").exists():
        end(train(whole, recipe=command), timeout=None)
    steps = [row["step"] for row in lines(out)]
    summary = {
        **vars(result),
        "command": command,
        "lines": len(steps),
        "lines twice": len(steps) - len(set(steps)),
        "lines missing": len({row["step"] for row in lines(whole)} - set(steps)),
        "differences": differences(out, whole),
    }
    save("killed_run", {"run": summary})
    draw(out, whole, result)
    print(json.dumps(summary, indent=2))


if __name__ == "__main__":
    main()
