"""What streaming costs beside data in memory: examples a second of the pipeline and of training steps, and memory.

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
from iresnet.runs import inputs_of
from iresnet.training.optim import make_optimiser
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
    memory, epochs = resident() - before, []
    for epoch in range(n_epochs):
        start, n = time.perf_counter(), 0
        for x, _ in batches.epoch(epoch):
            n += len(x)
            memory = max(memory, resident() - before) if n % 6400 == 0 else memory
        epochs.append(n / (time.perf_counter() - start))
    return {"load s": opened, "examples/s": max(epochs), "MiB": memory, "steps/s": _steps(dataset, batches, n_steps)}


def _steps(dataset, batches, n_steps: int) -> float:
    """Examples a second of training a small density of CIFAR-10."""
    config = load_config("cifar10-density", ["--model.blocks", "[1,1,1]", "--model.hidden", "64"])
    task = make_task(config, dataset, inputs_of(dataset, "density")).train()
    optimiser = make_optimiser(task.model, config.optim)
    steps = islice(batches.epoch(), n_steps + 2)
    for i, (x, y) in enumerate(steps):
        if i == 2:
            start = time.perf_counter()
        loss, _ = task(x, y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return n_steps * 64 / (time.perf_counter() - start)


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
    print("| | load, s | batches alone, examples/s | training steps, examples/s | memory, MiB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for way in WAYS:  # each in a fresh process, since memory is not given back
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"| {way} | {row['load s']:.1f} | {row['examples/s']:.0f} | {row['steps/s']:.1f} | {row['MiB']:.0f} |")


if __name__ == "__main__":
    main()
