"""Round trips of trained runs: error, convergence and evaluations of each block, for every solver.

    python benchmarks/inverses.py RUN... [--data-dir DIR] [-n 500] [--atol 1e-5]

Data -> latent -> data in float64 on test images, uniform noise, constant images, images of black and white pixels, and
test images with their values times 100. Errors are in the units of the blocks, after the data are centered and scaled,
and relative to the largest element of a sample where that is above 1.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pages import insert_all, save, table
from torch import Tensor

import iresnet as ir
from iresnet.data import dequantize, load
from iresnet.lipschitz import hold_weights
from iresnet.models import load_model
from iresnet.runs import Run
from iresnet.solvers import Solver

SOLVERS: dict[str, Callable[[float], Solver]] = {
    "fixed-point": lambda atol: ir.FixedPointIteration(atol, max_steps=1000),
    "anderson": lambda atol: ir.Anderson(atol, max_steps=1000),
    "newton-krylov": lambda atol: ir.NewtonKrylov(atol, max_steps=1000),
}


def inputs(x: Tensor, levels: int) -> dict[str, Tensor]:
    """Return kinds of images, on the scale of the data."""
    few, generator = x[:100], torch.Generator().manual_seed(0)
    noise = torch.rand(few.shape, generator=generator, dtype=x.dtype)
    grays = torch.arange(levels, dtype=x.dtype).view(-1, *[1] * (x.dim() - 1)).expand(levels, *x.shape[1:])
    return {
        "test images": x,
        "uniform noise": levels * noise,
        "constant": grays,
        "black and white": levels * (noise > 0.5).to(x.dtype),
        "values x 100": 100 * few,
    }


@torch.no_grad()
def round_trip(bijection: ir.Bijection, x: Tensor, solver: Solver, batch: int = 100) -> dict[str, float]:
    """Invert latents; return the largest error, fraction converged, evaluations of a block and CPU seconds an image."""
    scale = bijection.bijections[0]  # centers and scales the data
    errors, converged, evaluations, seconds = [], [], [], 0.0
    for images in x.split(batch):
        z = bijection(images)
        start = time.process_time()
        inversion = ir.bijections.invert(bijection, z, solver=solver)
        seconds += time.process_time() - start
        original, inverted = scale(images).flatten(1), scale(inversion.x).flatten(1)
        errors.append((original - inverted).abs().amax(1) / original.abs().amax(1).clamp(min=1.0))
        converged.append(inversion.converged)
        evaluations.append(torch.stack([solution.evaluations for _, solution in inversion.solutions]))
    counts = torch.cat(evaluations, 1).double()  # (blocks, N)
    return {
        "images": len(x),
        "error": float(torch.cat(errors).max()),
        "converged": float(torch.cat(converged).double().mean()),
        "evaluations": float(counts.mean()),
        "most_evaluations": float(counts.max()),
        "by_block": counts.mean(1).tolist(),
        "seconds": seconds / len(x),
    }


def measure(path: Path, data_dir: str | None, n: int, atol: float) -> dict[str, dict[str, dict[str, float]]]:
    """Measure every solver on every kind of image."""
    run = Run.open(path)
    config, run_inputs = run.read_config()
    model = load_model(run).double()
    dataset = load(config.data.name, data_dir, pad_to=config.data.pad_to)
    noise = torch.Generator().manual_seed(0)
    x = dequantize(dataset.test.x[:n], levels=run_inputs.levels, generator=noise).double()
    kinds = inputs(x, run_inputs.levels or 256)
    with hold_weights(model):
        return {
            name: {kind: round_trip(model.bijection, images, make(atol)) for kind, images in kinds.items()}
            for name, make in SOLVERS.items()
        }


def inverse_table(results: dict) -> str:
    """Format a row for each run, solver and kind of image."""
    header = [
        "run",
        "solver",
        "images",
        "largest error",
        "converged",
        "evaluations a block, mean",
        "most",
        "ms an image",
    ]
    rows = [
        [
            run,
            solver,
            f"{kind} ({row['images']})",
            f"{row['error']:.1e}",
            f"{row['converged']:.0%}",
            f"{row['evaluations']:.1f}",
            f"{row['most_evaluations']:.0f}",
            f"{1000 * row['seconds']:.0f}",
        ]
        for run, solvers in results.items()
        for solver, kinds in solvers.items()
        for kind, row in kinds.items()
    ]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("-n", type=int, default=500, help="test images")
    parser.add_argument("--atol", type=float, default=1e-5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {path.name: measure(path, options.data_dir, options.n, options.atol) for path in options.runs}
    save("inverses", results)
    insert_all({"inverses": inverse_table}, results)


if __name__ == "__main__":
    main()
