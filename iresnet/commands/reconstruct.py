"""``iresnet reconstruct``: data -> latent -> data, and its difference from the data."""

__all__ = ["reconstruct"]

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators
from rich.table import Table

from iresnet.bars import progress
from iresnet.commands.arguments import (
    BatchSize,
    Count,
    DataDir,
    DeviceName,
    Gpus,
    Processes,
    RunFolder,
    Seed,
    use_processes,
)
from iresnet.commands.contexts import Context, open_run_at
from iresnet.console import is_main, say

if TYPE_CHECKING:
    from pathlib import Path

    from iresnet.bijections import Bijection
    from iresnet.data import Split
    from iresnet.evaluation import RoundTrip
    from iresnet.inputs import Inputs
    from iresnet.runs import Run

TARGETS = (1e-2, 1e-4, 1e-6, 1e-8)
"""Errors to which the table counts the evaluations."""

NO_INVERSE = 1e-2
"""Error, in units of the data's range, that rounding does not explain."""


def reconstruct(
    run: RunFolder,
    *,
    n: Count = 10,
    solver_examples: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 32,
    context: Context = None,
    split: str = "test",
    data_dir: DataDir = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    device: DeviceName = "auto",
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Invert a whole split and report the largest error, and the error of every solver after so many evaluations.

    Writes reconstruction.json; draws data, their reconstructions and the difference (scaled so that it can be seen)
    below each other in samples/reconstructions.*, and the error of each solver against its evaluations, in float64, in
    samples/reconstruction-solvers.png. Products with a Jacobian count as evaluations.

    Args:
        run: Run folder.
        n: Examples to draw in samples/reconstructions.*.
        solver_examples: Examples that each solver inverts, with each of 10 numbers of steps; 0 for none.
        split: train, validation or test.
        data_dir: Folder of data sets.
        seed: Of the dequantization noise.
    """
    use_processes(processes, gpus, device)
    from iresnet import evaluation
    from iresnet.zoo import SOLVERS

    folder, model, dataset, data = open_run_at(run, data_dir, split, device, context)
    bijection, options = model.bijection, {"levels": dataset.levels, "seed": seed}
    with progress("inversion", len(data)) as advance:
        sizes = {} if batch_size is None else {"batch_size": batch_size}
        result = evaluation.reconstruction(bijection, data, progress=advance, **options, **sizes)
    solvers, subset = {}, data
    if solver_examples:
        subset = data.shuffled(seed, solver_examples)
        with progress("solvers", len(SOLVERS) * len(evaluation.BUDGETS)) as advance:
            solvers = evaluation.solver_errors(bijection, subset, SOLVERS, progress=advance, **options)

    say(f"{split} {result}")
    if not result.largest < NO_INVERSE:
        say(f"the model is not inverted: iresnet certify {run} tells which blocks are proved to be invertible")
    if solvers:
        _print_solvers(solvers, len(subset))
    if is_main():
        tree = {"split": split, "seed": seed, "model_sha256": folder.weights_sha256(), **asdict(result)}
        tree |= {"solver_examples": min(solver_examples, len(data))}
        tree |= {"solvers": {name: [asdict(point) for point in points] for name, points in solvers.items()}}
        path, caption, factor = _draw(folder, folder.read_config()[1], bijection, data, n, seed)
        tree["difference_factor"] = factor
        say(f"wrote {path} ({caption})")
        if solvers:
            say(f"wrote {_draw_solvers(folder, solvers)}")
        say(f"wrote {folder.write_json('reconstruction.json', tree)}")


def _print_solvers(solvers: "dict[str, tuple[RoundTrip, ...]]", n: int) -> None:
    """Print the evaluations that each solver takes to errors of different sizes."""
    from iresnet.evaluation import evaluations_to

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("evaluations a block", no_wrap=True)
    for target in TARGETS:
        table.add_column(f"to {target:.0e}", justify="right")
    table.add_column("last error", justify="right")
    for name, points in solvers.items():
        counts = [evaluations_to(points, target) for target in TARGETS]
        cells = ["never" if math.isinf(count) else f"{count:.1f}" for count in counts]
        table.add_row(name, *cells, f"{points[-1].largest:.1e}")
    say(table)
    say(f"largest error of {n} examples, in float64; a product with a Jacobian counts as an evaluation")


def _draw(
    folder: "Run", inputs: "Inputs", bijection: "Bijection", data: "Split", n: int, seed: int
) -> "tuple[Path, str, float | None]":
    """Draw data, reconstructions and, of images, the difference; return the file, its caption and the scale."""
    import torch

    from iresnet.data import dequantize
    from iresnet.devices import device_of
    from iresnet.inputs import white_level
    from iresnet.pictures import draw

    x = dequantize(data.x[:n], levels=inputs.levels, generator=torch.Generator().manual_seed(seed))
    x = x.to(device_of(bijection))
    with torch.no_grad():
        back = bijection.inverse(bijection(x))
    sheets, caption, factor = [x, back], "above: data, below: data -> latent -> data", None
    if len(inputs.shape) == 3:
        difference = (back - x).abs()
        largest = float(difference.nan_to_num(0.0, 0.0, 0.0).max())
        factor = white_level(x, inputs.levels) / largest if largest > 0 else 1.0
        sheets.append(difference * factor)
        caption = f"rows: data, data -> latent -> data, difference times {factor:.1e}"
    return draw(torch.cat(sheets), inputs, folder.samples / "reconstructions", columns=len(x)), caption, factor


def _draw_solvers(folder: "Run", solvers: "dict[str, tuple[RoundTrip, ...]]") -> "Path":
    """Draw the error of each solver against its evaluations."""
    from iresnet.files import write_atomically
    from iresnet.pictures import curves, png

    lines = {name: ([p.evaluations for p in points], [p.largest for p in points]) for name, points in solvers.items()}
    picture = curves(lines, x="evaluations a block", y="largest reconstruction error")
    path = folder.samples / "reconstruction-solvers.png"
    write_atomically(path, png(picture))
    return path
