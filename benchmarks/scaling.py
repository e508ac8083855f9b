"""How the cost of a density training step grows, alone and in two processes, and how well the cost model predicts it.

    python benchmarks/scaling.py [--part axes processes runs] [--data-dir DIR]

*axes*: CPU time and memory of the step against each of its sizes, and what the cost model, calibrated on a few small
steps, predicts of them. *processes*: one process against two. *runs*: what the model predicts of the published runs,
whose data sets are looked for in ``--data-dir``, then where the command line finds them. Figures go into
results/scaling.json, a picture and tables into docs/scaling.md. Ten minutes of CPU time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from axes import AXES, BASE, CALIBRATION, Step
from report import RESULTS, insert_all, save
from scaling_figure import draw
from scaling_tables import TABLES
from scipy.optimize import nnls
from speed import environment
from timing import interleaved, peak_bytes

from iresnet.config import load_config
from iresnet.normalization import PowerIteration
from iresnet.training import dry_run
from iresnet.training.cost import Count, Device, Prediction, StepCounts, Workload, count, exchanged_bytes, predict

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "scaling.md"
FIGURE = ROOT / "docs" / "pictures" / "scaling.png"
PUBLISHED = ("cifar10-density", "mnist-density", "cifar10-classify")
FEW = (2, 4)
"""Images of the steps that are counted."""


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
    draw(results, FIGURE)


# -- one step --------------------------------------------------------------------------------------------------------


RETURNING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}
"""Makes the C library give freed memory back, so that the memory of a process is that of its tensors, not of gaps."""


def axes(data_dir: str | None) -> dict[str, Any]:  # noqa: ARG001
    """Time, memory and what is predicted of them, by axis and size."""
    device = calibrated()
    with_gaps = peak_bytes(BASE.build)["work"]
    os.environ.update(RETURNING)  # read by the fresh processes
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, axis in AXES.items():
        steps = {str(size): step for size, step in axis.steps()}
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
    """The step on a few images, counted with all power iterations."""
    return StepCounts(FEW, *(_counted(step.with_batch(n)) for n in FEW))


def _counted(step: Step) -> Count:
    training = step.training()
    for module in training.task.modules():
        if isinstance(module, PowerIteration):
            module.tol = 0.0
    training.step()
    return count(training.step)


def calibrated() -> Device:
    """This machine, as the cost model sees it: rates that fit the times of a few small steps best, relatively."""
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
"""Numbers of processes, and images a step over all of them."""


def processes(data_dir: str | None) -> dict[str, Any]:  # noqa: ARG001
    """Rounds of each, in turns."""
    turns = [[_torchrun(*case) for case in PROCESSES] for _ in range(3)]
    rows = [{**of[0], "rounds": [r for turn in of for r in turn["rounds"]]} for of in zip(*turns, strict=True)]
    parameters = sum(p.numel() for p in BASE.training().task.parameters())
    return {
        "rows": [{**row, "counted": row["processes"] * exchanged_bytes(parameters, row["processes"])} for row in rows]
    }


def _torchrun(n: int, batch: int) -> dict[str, Any]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}"]
    variables = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    script = [str(Path(__file__).with_name("processes.py")), "--batch", str(batch)]
    done = subprocess.run(run + script, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# -- published runs --------------------------------------------------------------------------------------------------


def runs(data_dir: str | None) -> dict[str, Any]:
    """Predictions of the published runs: of their batches, and of batches that grow with the number of GPUs."""
    rows, grown = [], []
    for recipe in PUBLISHED:
        result = dry_run(load_config(recipe), data_dir=data_dir)
        common = {"recipe": recipe, "parameters": result.parameters}
        rows += [{**common, **asdict(prediction)} for prediction in result.predictions()]
        grown += [{**common, **asdict(_grown(result.workload, p.device, p.n))} for p in result.predictions()]
    return {"rows": rows, "grown": grown}


def _grown(workload: Workload, device: str, n: int) -> Prediction:
    """As many epochs, in batches n times as large."""
    larger = replace(workload, batch_size=n * workload.batch_size, total_steps=workload.total_steps // n)
    return predict(larger, device, n)


PARTS = {"axes": axes, "processes": processes, "runs": runs}

if __name__ == "__main__":
    main()
