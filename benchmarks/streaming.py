"""Streamed data beside data in memory: examples a second, CPU time of all threads, and memory.

python benchmarks/streaming.py --data-dir DATA [--epochs 2] [--steps 20]
"""

import argparse
import json
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import torch
from pages import table

from iresnet.config import load_config
from iresnet.data import load, training_batches
from iresnet.models import inputs_of
from iresnet.training.optim import make_optimizer
from iresnet.training.task import make_task

BUFFERS = {"in memory": None, "streamed, buffer 1000": 1000, "streamed, buffer 10000": 10_000}


def resident() -> float:
    """Read the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def measure(source: str, data_dir: str, n_epochs: int, n_steps: int) -> dict[str, float]:
    """Measure loading, epochs of batches alone, and training steps, in this process."""
    torch.set_num_threads(1)
    buffer = BUFFERS[source]
    before, start = resident(), time.perf_counter()
    dataset = load("cifar10", data_dir, stream=buffer is not None)
    opened = time.perf_counter() - start
    batches = training_batches(dataset, 64, buffer=buffer or 1)
    memory, watch = resident() - before, Stopwatch()
    for epoch in range(n_epochs):
        for x, _ in batches.epoch(epoch):
            watch.n += len(x)
            memory = max(memory, resident() - before) if watch.n % 6400 == 0 else memory
    alone = watch.read()
    return {"load": opened, "MiB": memory, "alone": alone, "steps": _steps(dataset, batches, n_steps)}


class Stopwatch:
    """Clock for examples a second and CPU milliseconds of all threads an example."""

    def __init__(self):
        self.n, self.wall, self.cpu = 0, time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return self.n / wall, 1000 * cpu / self.n


def _steps(dataset, batches, n_steps: int) -> tuple[float, float]:
    """Measure training steps of a small density of CIFAR-10, after two to warm up."""
    config = load_config("cifar10-density", ["--model.blocks", "[1,1,1]", "--model.hidden", "64"])
    task = make_task(config, dataset, inputs_of(dataset, "density")).train()
    optimizer = make_optimizer(task.model, config.optim)
    watch = Stopwatch()
    for i, (x, y) in enumerate(islice(batches.epoch(), n_steps + 2)):
        if i == 2:
            watch = Stopwatch()
        loss, _ = task(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.n += len(x)
    return watch.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--way", choices=BUFFERS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.data_dir, args.epochs, args.steps)))
        return
    rows = []
    for way in BUFFERS:  # each in a fresh process, since memory is not returned
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        alone, steps = row["alone"], row["steps"]
        cells = (f"{alone[0]:.0f}", f"{alone[1]:.2f}", f"{steps[0]:.0f}", f"{steps[1]:.1f}", f"{row['MiB']:.0f}")
        rows.append([way, f"{row['load']:.1f}", *cells])
    header = ("", "load, s", "alone, examples/s", "CPU ms", "steps, examples/s", "CPU ms", "memory, MiB")
    print(table(header, rows))


if __name__ == "__main__":
    main()
