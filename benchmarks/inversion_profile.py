"""Profile of inverses, block by block: convolutions, activations, least squares, and everything else.

    python benchmarks/inversion_profile.py RUN [--data-dir DIR] [--images 64]

Writes results/inversion_profile.json and the table of docs/performance.md. One thread.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pages import Results, arguments, insert_all, number, save, table
from subjects import blocks_of, from_run
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from iresnet.bijections import ResidualBlock
from iresnet.flows import Flow
from iresnet.lipschitz import hold_weights

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
REPEATS = 5
KINDS = {
    "convolutions": ("convolution", "aten::mm"),  # to few channels: a matrix product
    "ELU": ("aten::clamp", "aten::exp_", "aten::sub_", "aten::maximum"),
    "least squares": ("bmm", "linalg_lu", "linalg_solve"),
}
"""Substrings of the names of torch's operations; all others are bookkeeping."""


@torch.no_grad()
def outputs(flow: Flow, x: Tensor) -> dict[ResidualBlock, Tensor]:
    """Return the outputs of all residual blocks of a density."""
    found: dict[ResidualBlock, Tensor] = {}
    hooks = [b.register_forward_hook(lambda block, _, z: found.update({block: z})) for b in blocks_of(flow)]
    flow.encode(x)
    for hook in hooks:
        hook.remove()
    return found


def seconds(work: Callable[[], object]) -> float:
    """Measure CPU seconds of a call, after one to warm up."""
    work()
    begin = time.process_time()
    for _ in range(REPEATS):
        work()
    return (time.process_time() - begin) / REPEATS


def time_fractions(work: Callable[[], object]) -> dict[str, float]:
    """Return the fraction of the time of torch's operations that each kind takes."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    fractions = {
        kind: sum(e.self_cpu_time_total for e in events if any(name in e.key for name in names)) / total
        for kind, names in KINDS.items()
    }
    return {**fractions, "bookkeeping": 1 - sum(fractions.values())}


@torch.no_grad()
def measure(block: ResidualBlock, z: Tensor) -> dict[str, Any]:
    """Measure evaluations, times and time fractions of the inverse of one block."""
    with hold_weights(block):
        solution = block.solve(z, lipschitz=math.inf)
        one = seconds(lambda: block.g(solution.value))
        total = seconds(lambda: block.solve(z, lipschitz=math.inf))
        fractions = time_fractions(lambda: block.solve(z, lipschitz=math.inf))
    return {
        "shape": "x".join(map(str, z.shape[1:])),
        "evaluations": float(solution.evaluations.float().mean()),
        "one": 1000 * one,
        "whole": 1000 * total,
        "shares": fractions,
    }


def profile_table(results: Results) -> str:
    """Format a row for each block of each run."""
    rows = [
        [run, name, r["shape"], number(r["evaluations"], 3), number(r["one"], 3), number(r["whole"], 3)]
        + [f"{100 * fraction:.0f} %" for fraction in r["shares"].values()]
        for run, blocks in results.items()
        for name, r in blocks.items()
    ]
    header = ["run", "block", "input", "evaluations", "ms each", "ms in all", *KINDS, "bookkeeping"]
    return table(header, rows)


def main() -> None:
    options = arguments(__doc__, images=64)
    results: Results = {}
    for path in options.runs:
        subject = from_run(path, options.data_dir, options.images)
        found = outputs(subject.flow.float(), subject.x.float())
        results[subject.name] = {f"{i}": measure(block, z) for i, (block, z) in enumerate(found.items(), start=1)}
    save("inversion_profile", results)
    insert_all({"inversion-profile": profile_table}, results, page=PAGE)


if __name__ == "__main__":
    main()
