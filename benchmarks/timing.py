"""Time, operations and memory of jobs that are compared with each other, and the environment they run in."""

__all__ = ["Job", "Make", "Times", "environment", "flops", "interleaved", "peak_bytes"]

import gc
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from iresnet.training.cost import count


@dataclass(frozen=True)
class Job:
    """Work to measure.

    Attributes:
        run: does the work.
        prepare: if not None, called before each run and not measured.
        check: returns errors of the result; called once.
    """

    run: Callable[[], Any]
    prepare: Callable[[], Any] | None = None
    check: Callable[[], dict[str, float]] = dict


Make = Callable[[], Job]


@dataclass(frozen=True)
class Times:
    """CPU and wall seconds of each round."""

    cpu: list[float]
    wall: list[float]

    def summary(self) -> dict[str, dict[str, float]]:
        """Return median and extremes of both."""
        return {
            kind: {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
            for kind, seconds in (("cpu", self.cpu), ("wall", self.wall))
        }

    def ratio(self, other: "Times") -> dict[str, float]:
        """Return the quotient by the other's times: the median over the rounds, in each of which both ran."""
        return {
            kind: statistics.median(a / b for a, b in zip(getattr(self, kind), getattr(other, kind), strict=True))
            for kind in ("cpu", "wall")
        }


def interleaved(jobs: Mapping[str, Job], *, threads: int, warmup: int, repeats: int) -> dict[str, Times]:
    """Run all jobs in turns, A B C A B C, so that temporary load on the machine affects all of them.

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
    """Count the operations of matrix products and convolutions of one run, by the formulas of torch's counter."""
    if job.prepare:
        job.prepare()
    return count(job.run).flops


# -- memory ----------------------------------------------------------------------------------------------------------


def peak_bytes(make: Make, *, runs: int = 2) -> dict[str, int]:
    """Measure the peak memory of a fresh process that does the work on one thread.

    Args:
        make: builds a job that needs no preparation; must be picklable.
        runs: number of runs; an optimizer's state exists after the first.

    Returns:
        ``"total"``, the peak of the process, and ``"work"``, its excess over the memory before the work: it includes
        gradients and the optimizer's state, but not torch, data and weights.
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
    """Read bytes from /proc, since ``getrusage`` gives a process the peak of its parent."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition(f"{key}:")[2].split()[0])


# -- environment -----------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Return the machine, the versions and the commit."""
    return {
        "machine": _processor(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "normflows", "iresnet")},
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "iresnet", "benchmarks/*.py")),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((text.partition(":")[2].strip() for text in lines if text.startswith("model name")), "")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False
    ).stdout.strip()
