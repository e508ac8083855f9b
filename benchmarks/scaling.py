"""How the cost of a density training step grows, alone and in two processes, and how well the cost model predicts it.

    python benchmarks/scaling.py [--part axes processes runs] [--data-dir DIR]

*axes*: CPU time and memory of the step against each of its sizes, beside predictions of the cost model, which is
calibrated on a few small steps. *processes*: one process against two. *runs*: predictions for the published runs, whose
data sets are looked for in ``--data-dir``, then where the command line finds them. Writes results/scaling.json, and a
picture and tables of docs/scaling.md. Ten minutes of CPU time.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import Setting, Training, ours
from pages import RESULTS, insert_all, save
from scaling_tables import TABLES, draw
from scipy.optimize import nnls
from timing import Job, environment, interleaved, peak_bytes

from iresnet.config import load_config
from iresnet.normalization import PowerIteration
from iresnet.training import dry_run
from iresnet.training.cost import Device, StepCounts, count, exchanged_bytes, predict

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "scaling.md"
FIGURE = DOCS / "pictures" / "scaling.png"
PUBLISHED = ("cifar10-density", "mnist-density", "cifar10-classify")
FEW = (2, 4)
"""Numbers of images of the steps that are counted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS), help="measure these; none: only write")
    parser.add_argument("--data-dir", help="a folder of data sets, for the published runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "scaling.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part in options.part:
        results[part] = {"environment": environment(), **PARTS[part](options.data_dir)}
        save("scaling", results)
    insert_all({name: table for name, table in TABLES.items() if name.split()[0] in results}, results, page=PAGE)
    draw(results["axes"]["rows"], FIGURE, labels={name: axis.label for name, axis in AXES.items()})


# -- steps of growing sizes -------------------------------------------------------------------------------------------

RECIPE = "fashion-mnist-density-32"


@dataclass(frozen=True)
class Step:
    """Training step of the recipe, which has 4-4-4 blocks of width 64, batches of 64, and three Krylov steps.

    Attributes:
        side: of the images, in pixels.
        batch: images a step.
        changes: overrides of the recipe.
    """

    side: int = 32
    batch: int = 64
    changes: tuple[str, ...] = ()

    def training(self) -> Training:
        """Build the model in training."""
        return ours(Setting("", RECIPE, (1, self.side, self.side), self.batch), *self.changes)

    def build(self) -> Job:
        """Build the job of one step."""
        return Job(self.training().step)

    def with_batch(self, batch: int) -> "Step":
        """Return the same step on another number of images."""
        return replace(self, batch=batch)


BASE = Step()


def _with_model(option: str, value: object, *more: str) -> Step:
    return Step(changes=(f"--model.{option}", str(value), *more))


@dataclass(frozen=True)
class Axis:
    """Size of a training step that grows while the others stay.

    Attributes:
        label: for the figure.
        sizes: in increasing order; one of them is that of the recipe.
        step: builds the training step of a size.
    """

    label: str
    sizes: tuple[int, ...]
    step: Callable[[int], Step]


AXES = {
    "depth": Axis("residual blocks", (3, 6, 12, 24, 48), lambda n: _with_model("blocks", [n // 3] * 3)),
    "width": Axis("width (channels)", (16, 32, 64, 128, 256), lambda n: _with_model("hidden", n)),
    "batch": Axis("batch (images)", (8, 16, 32, 64, 128, 256), BASE.with_batch),
    "image size": Axis("image (pixels)", (256, 576, 1024, 2304, 4096), lambda n: Step(side=math.isqrt(n))),
    "Krylov steps": Axis("Krylov steps", (1, 2, 3, 6, 12, 24), lambda n: _with_model("logdet.n-steps", n)),
    "Krylov steps, recompute": Axis(
        "Krylov steps, recompute",
        (1, 3, 6, 12),
        lambda n: _with_model("logdet.n-steps", n, "--model.memory", "recompute"),
    ),
}
"""Axes by name; the last one keeps no graph of the blocks, so that the memory of their Krylov spaces would show."""

CALIBRATION = {
    "3 blocks": Step(batch=16, changes=("--model.blocks", "[1, 1, 1]")),
    "6 blocks": Step(batch=4, changes=("--model.blocks", "[2, 2, 2]")),
    "3 blocks, width 128": Step(batch=16, changes=("--model.blocks", "[1, 1, 1]", "--model.hidden", "128")),
    "3 blocks, width 32": Step(batch=32, changes=("--model.blocks", "[1, 1, 1]", "--model.hidden", "32")),
    "3 blocks, 6 Krylov steps": Step(batch=16, changes=("--model.blocks", "[1, 1, 1]", "--model.logdet.n-steps", "6")),
}
"""Small steps, none of them on an axis, to which the rates of the cost model are fitted."""

# -- one process -------------------------------------------------------------------------------------------------------

RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}
"""Make the C library return freed memory, so that the memory of a process is that of its tensors."""


def axes(data_dir: str | None) -> dict[str, Any]:  # noqa: ARG001
    """Measure time and memory, and predict them, by axis and size."""
    device = calibrated()
    with_gaps = peak_bytes(BASE.build)["work"]
    os.environ.update(RETURNING)  # read by the fresh processes
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, axis in AXES.items():
        steps = {str(size): axis.step(size) for size in axis.sizes}
        built = {size: step.build() for size, step in steps.items()}
        times = interleaved(built, threads=1, warmup=1, repeats=3)
        built.clear()
        rows[name] = [
            {"size": int(size), **_row(step, device), **times[size].summary()} for size, step in steps.items()
        ]
        for row in rows[name]:
            print(f"{name} {row['size']}: {row['cpu']['median']:.3f} s, {row['memory'] / 2**20:.0f} MiB", flush=True)
    return {"device": asdict(device), "with_gaps": with_gaps, "rows": rows}


def _row(step: Step, device: Device) -> dict[str, float]:
    counted = counts(step).at(step.batch)
    return {
        "memory": peak_bytes(step.build)["work"],
        "tensors": counted.memory,
        "flops": counted.flops,
        "predicted": device.seconds(counted),
    }


def counts(step: Step) -> StepCounts:
    """Count the step on a few images, with all power iterations."""
    found = []
    for n in FEW:
        training = step.with_batch(n).training()
        for module in training.task.modules():
            if isinstance(module, PowerIteration):
                module.tol = 0.0
        training.step()
        found.append(count(training.step))
    return StepCounts(FEW, *found)


def calibrated() -> Device:
    """Fit the rates of the cost model to the times of a few small steps, by least relative squares."""
    times = interleaved({name: step.build() for name, step in CALIBRATION.items()}, threads=1, warmup=1, repeats=5)
    seconds = np.array([statistics.median(times[name].cpu) for name in CALIBRATION])
    work = [counts(step).at(step.batch) for step in CALIBRATION.values()]
    matrix = np.array([[c.flops, c.bytes, c.kernels] for c in work], float) / seconds[:, None]
    scale = matrix.max(0)
    per_flop, per_byte, per_kernel = nnls(matrix / scale, np.ones(len(seconds)))[0] / scale
    rates = [1 / rate if rate else float("inf") for rate in (per_flop, per_byte)]
    return Device(
        {"float32": rates[0]}, rates[1], efficiency=1.0, launch=float(per_kernel), floor=0.0, asynchronous=False
    )


# -- two processes ---------------------------------------------------------------------------------------------------

PROCESSES = ((1, 64), (2, 64), (2, 128))
"""Pairs of a number of processes and the images a step over all of them."""


def processes(data_dir: str | None) -> dict[str, Any]:  # noqa: ARG001
    """Measure each of them in turns, in three rounds."""
    turns = [[_torchrun(*case) for case in PROCESSES] for _ in range(3)]
    rows = [{**of[0], "rounds": [r for turn in of for r in turn["rounds"]]} for of in zip(*turns, strict=True)]
    parameters = sum(p.numel() for p in BASE.training().task.parameters())
    return {
        "rows": [{**row, "counted": row["processes"] * exchanged_bytes(parameters, row["processes"])} for row in rows]
    }


def _torchrun(n: int, batch: int) -> dict[str, Any]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"]
    variables = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    script = [str(Path(__file__).with_name("scaling_processes.py")), "--batch", str(batch)]
    done = subprocess.run(run + script, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# -- published runs --------------------------------------------------------------------------------------------------


def runs(data_dir: str | None) -> dict[str, Any]:
    """Predict the published runs, with their batches and with batches that grow with the number of GPUs."""
    rows, grown = [], []
    for recipe in PUBLISHED:
        result = dry_run(load_config(recipe), data_dir=data_dir)
        common = {"recipe": recipe, "parameters": result.parameters}
        work = result.workload
        for prediction in result.predictions():
            n = prediction.n
            rows.append({**common, **asdict(prediction)})
            larger = replace(work, batch_size=n * work.batch_size, total_steps=work.total_steps // n)  # as many epochs
            grown.append({**common, **asdict(predict(larger, prediction.device, n))})
    return {"rows": rows, "grown": grown}


PARTS = {"axes": axes, "processes": processes, "runs": runs}

if __name__ == "__main__":
    main()
