"""What streaming costs beside data in memory: examples a second, CPU time of all threads, and memory.

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

from iresnet.config import load_config
from iresnet.data import load, training_batches
from iresnet.models import inputs_of
from iresnet.training.optim import make_optimizer
from iresnet.training.task import make_task

WAYS = {"in memory": None, "streamed, buffer 1000": 1000, "streamed, buffer 10000": 10_000}


def resident() -> float:
    """Resident memory of this process now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def measure(way: str, data_dir: str, n_epochs: int, n_steps: int) -> dict[str, float]:
    """Time loading, whole epochs of batches alone, and training steps on them, in this process."""
    torch.set_num_threads(1)
    buffer = WAYS[way]
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
    """Examples a second, and CPU milliseconds of all threads an example."""

    def __init__(self):
        self.n, self.wall, self.cpu = 0, time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return self.n / wall, 1000 * cpu / self.n


def _steps(dataset, batches, n_steps: int) -> tuple[float, float]:
    """Training steps of a small density of CIFAR-10, after two to warm up."""
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--way", choices=WAYS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args.way, args.data_dir, args.epochs, args.steps)))
        return
    print("| | load, s | alone, examples/s | CPU ms | steps, examples/s | CPU ms | memory, MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for way in WAYS:  # each in a fresh process, since memory is not given back
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        alone, steps = row["alone"], row["steps"]
        figures = f"{alone[0]:.0f} | {alone[1]:.2f} | {steps[0]:.0f} | {steps[1]:.1f} | {row['MiB']:.0f}"
        print(f"| {way} | {row['load']:.1f} | {figures} |")


if __name__ == "__main__":
    main()
