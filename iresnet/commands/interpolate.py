"""``iresnet interpolate``: paths between examples, through the latent space."""

__all__ = ["interpolate"]

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from iresnet.bars import progress
from iresnet.commands.arguments import DataDir, DeviceName, Gpus, Processes, RunFolder, Seed, use_processes
from iresnet.commands.contexts import Context, open_run_at
from iresnet.console import is_main, say
from iresnet.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from iresnet.data import Column, Dataset, Split
    from iresnet.evaluation import Interpolation
    from iresnet.inputs import Inputs
    from iresnet.runs import Run

TITLES = {"linear": "linear in the latent", "spherical": "spherical in the standardized latent"}


def interpolate(
    run: RunFolder,
    *,
    n: Annotated[int, Parameter(name=["--n", "-n"], validator=validators.Number(gte=1))] = 6,
    kind: Annotated[list[str] | None, Parameter(negative="")] = None,
    steps: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 9,
    context: Context = None,
    split: str = "test",
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: DeviceName = "auto",
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Interpolate between examples through the latent space; draws images or points on the way.

    A linear path is straight. A spherical path (slerp) keeps the length that latents of a normal density have, after
    its learned mean is subtracted and its learned standard deviation divided by; a straight one passes through shorter,
    less typical latents. Classifiers without a density have straight paths through their features, and so have
    densities whose base density is a mixture.

    Writes samples/interpolation.png: a row for each pair, both kinds below each other, labeled; of points, the paths
    in the plane. Of points and of longer rows there is samples/interpolation.csv, with kind, pair and step before the
    values. interpolation.json has the bits/dim along the paths.

    Args:
        run: Run folder.
        n: Pairs of examples.
        kind: linear or spherical; may be repeated, all that the model has by default.
        steps: Examples on a path, with both ends.
        split: train, validation or test.
        data_dir: Folder of data sets.
        seed: Of the pairs and the dequantization noise.
    """
    use_processes(processes, gpus, device)
    from iresnet import evaluation
    from iresnet.devices import device_of

    folder, model, dataset, data = open_run_at(run, data_dir, split, device, context)
    first, last = (x.to(device_of(model)) for x in _pairs(dataset, data, n, seed))
    with progress("paths", n * steps * len(kind or evaluation.kinds_of(model))) as advance:
        found = evaluation.interpolate(model, first, last, steps=steps, kinds=kind, progress=advance)
    for path in found:
        if path.bits_per_dim is not None:
            ends, middle = path.bits_per_dim[:, :: steps - 1].mean(), path.bits_per_dim[:, steps // 2].mean()
            say(f"{path.kind}: {float(ends):.4f} bits/dim at the ends, {float(middle):.4f} in the middle")
    if is_main():
        for written in _write(folder, folder.read_config()[1], found):
            say(f"wrote {written}")
        bits = {p.kind: None if p.bits_per_dim is None else p.bits_per_dim.tolist() for p in found}
        tree = {"split": split, "seed": seed, "model_sha256": folder.weights_sha256()}
        tree |= {"pairs": n, "steps": steps, "bits_per_dim": bits}
        say(f"wrote {folder.write_json('interpolation.json', tree)}")


def _pairs(dataset: "Dataset", data: "Split", n: int, seed: int) -> "tuple[Tensor, Tensor]":
    """Draw the ends of n paths at random, dequantized."""
    import torch

    from iresnet.data import dequantize

    if len(data) < 2 * n:
        raise DataError(f"{n} pairs need {2 * n} examples, the split has {len(data)}: ask for fewer with -n")
    x = data.shuffled(seed, 2 * n).x
    x = dequantize(x, levels=dataset.levels, generator=torch.Generator().manual_seed(seed))
    return x[:n], x[n:]


def _write(folder: "Run", inputs: "Inputs", found: "list[Interpolation]") -> list[Path]:
    """Draw images or points in the plane, and write a table of points and of longer vectors."""
    from iresnet.files import write_atomically, writing
    from iresnet.pictures import image_grid, plane_paths, png, titled

    with writing(folder.samples):
        folder.samples.mkdir(exist_ok=True)
    picture, table = folder.samples / "interpolation.png", folder.samples / "interpolation.csv"
    if len(inputs.shape) == 3:
        grids = {
            TITLES[p.kind]: image_grid(p.x.flatten(0, 1).cpu(), levels=inputs.levels, columns=p.x.shape[1])
            for p in found
        }
        write_atomically(picture, png(titled(grids)))
        return [picture]
    write_atomically(table, _csv(found, inputs.columns))
    if inputs.shape != (2,):
        return [table]
    write_atomically(picture, png(plane_paths({TITLES[p.kind]: p.x.cpu().numpy() for p in found})))
    return [picture, table]


def _csv(found: "list[Interpolation]", columns: "Sequence[Column]") -> str:
    """Format all points of all paths as a table in the units of the data, with columns kind, pair and step."""
    import torch

    from iresnet.data.columns import Column, to_csv

    columns = columns or [Column(f"x{i}", i + 1) for i in range(found[0].x.shape[2])]
    text = to_csv(columns, torch.cat([path.x.flatten(0, 1) for path in found])).splitlines()
    header = text[:1] if any(column.name for column in columns) else [",".join(column.title for column in columns)]
    keys = [(p.kind, i, j) for p in found for i in range(p.x.shape[0]) for j in range(p.x.shape[1])]
    rows = [f"{kind},{i},{j},{row}" for (kind, i, j), row in zip(keys, text[-len(keys) :], strict=True)]
    return "\n".join([f"kind,pair,step,{header[0]}", *rows]) + "\n"
