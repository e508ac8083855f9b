"""Training steps in one of several processes that torchrun starts; rank 0 prints the measurements as JSON.

    torchrun --standalone --nproc_per_node=2 benchmarks/scaling_processes.py --batch 64

The steps are those of the training loop on a recipe's model, wrapped by accelerate as in training. Each process has one
thread. Rounds give seconds a step of wall time, of CPU time for the process that needs most, and bytes that crossed the
loopback device, those of other programs included. ``ACCELERATE_USE_CPU=true`` tells accelerate of the other processes.
"""

__all__ = ["round_of"]

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from scaling import BASE
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, required=True, help="images a step over all processes")
    parser.add_argument("--steps", type=int, default=5, help="of a round")
    parser.add_argument("--rounds", type=int, default=3, help="after two steps to warm up")
    options = parser.parse_args()
    torch.set_num_threads(1)
    training = BASE.with_batch(options.batch).training()
    if isinstance(training.task, DistributedDataParallel):
        training.task.broadcast_buffers = False  # the processes compute them alike
    # Of 1x1 kernels, whose layout has two descriptions.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    for _ in range(2):
        training.step()
    rounds = [round_of(training.step, options.steps) for _ in range(options.rounds)]
    n = dist.get_world_size() if dist.is_initialized() else 1
    if n == 1 or dist.get_rank() == 0:
        print(json.dumps({"processes": n, "batch": options.batch, "rounds": rounds}))
    if n > 1:
        dist.destroy_process_group()


def round_of(step: Callable[[], Any], n_steps: int) -> dict[str, float]:
    """Measure wall seconds, CPU seconds of the busiest process, and loopback bytes of a step, on average."""
    _gathered(0.0)
    before, cpu, wall = _loopback_bytes(), time.process_time(), time.perf_counter()
    for _ in range(n_steps):
        step()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    busiest = max(_gathered(cpu))
    return {"wall": wall / n_steps, "cpu": busiest / n_steps, "bytes": (_loopback_bytes() - before) / n_steps}


def _gathered(number: float) -> list[float]:
    """Wait for all processes, and return their numbers."""
    if not dist.is_initialized():
        return [number]
    numbers: list[float] = [0.0] * dist.get_world_size()
    dist.all_gather_object(numbers, number)
    return numbers


def _loopback_bytes() -> int:
    """Read the bytes sent through the loopback device since the machine started."""
    lines = Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
    fields = next(line.split(":")[1].split() for line in lines if line.strip().startswith("lo:"))
    return int(fields[8])


if __name__ == "__main__":
    main()
