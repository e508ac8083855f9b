"""Where the time of an inverse goes: convolutions, activations, least squares, and everything else, block by block.

    python benchmarks/inversion_profile.py RUN [--data-dir DIR] [--images 64]

The table goes into docs/performance.md, the figures into results/inversion_profile.json. One thread.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import Results, arguments, insert_all, number, save, table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from iresnet.bijections import ResidualBlock
from iresnet.data import dequantize, load
from iresnet.lipschitz import hold_weights
from iresnet.models import load_model
from iresnet.runs import Run

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
REPEATS = 5
KINDS = {"convolutions": ("convolution",), "ELU": ("aten::elu",), "least squares": ("bmm", "linalg_lu", "linalg_solve")}
"""Parts of the names of torch's operations; all others are bookkeeping."""


def outputs(run: Run, data_dir: str | None, n: int) -> dict[ResidualBlock, Tensor]:
    """The blocks of a trained density, and what each makes of test images."""
    config, inputs = run.read_config()
    test = load(config.data.name, data_dir or run.data_dir, pad_to=config.data.pad_to).test
    model, found = load_model(run), {}
    blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    hooks = [block.register_forward_hook(lambda block, _, z: found.__setitem__(block, z)) for block in blocks]
    with torch.no_grad():
        model.bijection(dequantize(test.x[:n], levels=inputs.levels, generator=torch.Generator().manual_seed(0)))
    for hook in hooks:
        hook.remove()
    return found


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call, after one to warm up."""
    work()
    begin = time.process_time()
    for _ in range(REPEATS):
        work()
    return (time.process_time() - begin) / REPEATS


def shares(work: Callable[[], object]) -> dict[str, float]:
    """What part of the time of torch's operations each kind takes."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    taken = {
        kind: sum(e.self_cpu_time_total for e in events if any(name in e.key for name in names)) / total
        for kind, names in KINDS.items()
    }
    return {**taken, "bookkeeping": 1 - sum(taken.values())}


@torch.no_grad()
def measure(block: ResidualBlock, z: Tensor) -> dict[str, Any]:
    """Evaluations, times and shares of the inverse of one block."""
    with hold_weights(block):
        solution = block.solve(z, lipschitz=math.inf)
        one = seconds(lambda: block.g(solution.value))
        whole = seconds(lambda: block.solve(z, lipschitz=math.inf))
        taken = shares(lambda: block.solve(z, lipschitz=math.inf))
    return {
        "shape": "x".join(map(str, z.shape[1:])),
        "evaluations": float(solution.evaluations.float().mean()),
        "one": 1000 * one,
        "whole": 1000 * whole,
        "shares": taken,
    }


def profile_table(results: Results) -> str:
    """One row for each block of each run."""
    rows = [
        [run, name, r["shape"], number(r["evaluations"], 3), number(r["one"], 3), number(r["whole"], 3)]
        + [f"{100 * share:.0f} %" for share in r["shares"].values()]
        for run, blocks in results.items()
        for name, r in blocks.items()
    ]
    header = ["run", "block", "input", "evaluations", "ms each", "ms in all", *KINDS, "bookkeeping"]
    return table(header, rows)


def main() -> None:
    options = arguments(__doc__, images=64)
    results: Results = {}
    for path in options.runs:
        run = Run.open(path)
        found = outputs(run, options.data_dir, options.images)
        results[run.path.name] = {f"{i + 1}": measure(block, z) for i, (block, z) in enumerate(found.items())}
    save("inversion_profile", results)
    insert_all({"inversion-profile": profile_table}, results, page=PAGE)


if __name__ == "__main__":
    main()
