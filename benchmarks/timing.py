"""Time, operations and memory of functions that are compared with each other."""

__all__ = ["Job", "Make", "Times", "flops", "interleaved", "peak_bytes"]

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from iresnet.training.cost import count


@dataclass(frozen=True)
class Job:
    """What is measured.

    Attributes:
        run: the work.
        prepare: runs before each time and is not measured, if there is anything.
        check: figures that tell whether the work is right, once.
    """

    run: Callable[[], Any]
    prepare: Callable[[], Any] | None = None
    check: Callable[[], dict[str, float]] = dict


Make = Callable[[], Job]


@dataclass(frozen=True)
class Times:
    """Seconds of each round."""

    cpu: list[float]
    wall: list[float]

    def summary(self) -> dict[str, dict[str, float]]:
        """Median and extremes of both."""
        return {
            kind: {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
            for kind, seconds in (("cpu", self.cpu), ("wall", self.wall))
        }

    def ratio(self, other: "Times") -> dict[str, float]:
        """How many times the other's: median over the rounds, in each of which the two ran side by side."""
        return {
            kind: statistics.median(a / b for a, b in zip(getattr(self, kind), getattr(other, kind), strict=True))
            for kind in ("cpu", "wall")
        }


def interleaved(jobs: Mapping[str, Job], *, threads: int, warmup: int, repeats: int) -> dict[str, Times]:
    """Run all jobs in turns, A B C A B C, so that what slows the machine down for a while slows all of them down.

    Args:
        jobs: by name.
        threads: of torch; CPU seconds are those of all threads together.
        warmup: rounds before those that count.
        repeats: rounds that count.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    times = {name: Times([], []) for name in jobs}
    try:
        for turn in range(-warmup, repeats):
            for name, job in jobs.items():
                cpu, wall = _one(job)
                if turn >= 0:
                    times[name].cpu.append(cpu)
                    times[name].wall.append(wall)
    finally:
        torch.set_num_threads(before)
    return times


def _one(job: Job) -> tuple[float, float]:
    if job.prepare:
        job.prepare()
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    job.run()
    return time.process_time() - cpu, time.perf_counter() - wall


def flops(job: Job) -> int:
    """Operations of the matrix products and convolutions of one run, by the formulas of torch's counter."""
    if job.prepare:
        job.prepare()
    return count(job.run).flops


# -- memory ----------------------------------------------------------------------------------------------------------


def peak_bytes(make: Make, *, runs: int = 2) -> dict[str, int]:
    """Largest memory of a fresh process that does the work, on one thread.

    Args:
        make: builds the job, one that needs no preparation; must be picklable.
        runs: how often the work is done: an optimizer's state is there after the first.

    Returns:
        ``"total"``, the most that the process had during the work, and ``"work"``, what that is above what it had
        before: gradients and the optimizer's state included; torch, data and weights not.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        before, most = fresh.submit(_memory, make, runs).result()
    return {"total": most, "work": most - before}


def _memory(make: Make, runs: int) -> tuple[int, int]:
    torch.set_num_threads(1)
    job = make()
    gc.collect()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    for _ in range(runs):
        job.run()
    return before, _resident("VmHWM")


def _resident(key: str) -> int:
    """Bytes, by the account of the Linux kernel; ``getrusage`` would give a process the peak of its parent."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition(f"{key}:")[2].split()[0])
