"""``iresnet interpolate``: paths between examples, through the latent space."""

__all__ = ["interpolate"]

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from iresnet.commands.arguments import DataDir, DeviceName, Gpus, Processes, RunFolder, Seed, open_run, spread
from iresnet.console import is_main, progress, say
from iresnet.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from iresnet.data import Column, Dataset, Split
    from iresnet.evaluation.interpolation import Path as LatentPath
    from iresnet.inputs import Inputs
    from iresnet.runs import Run

TITLES = {"linear": "linear in the latent", "spherical": "spherical in the standardized latent"}


def interpolate(
    run: RunFolder,
    *,
    n: Annotated[int, Parameter(name=["--n", "-n"], validator=validators.Number(gte=1))] = 6,
    kind: Annotated[list[str] | None, Parameter(negative="")] = None,
    steps: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 9,
    split: str = "test",
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: DeviceName = "auto",
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Go from examples to others through the latent space; draws images or points on the way.

    A linear path is straight. A spherical path (slerp) keeps the length that latents of a normal density have, after
    its learned mean is subtracted and its learned standard deviation divided by; a straight one passes through shorter,
    less typical latents. Classifiers without a density have straight paths through their features.

    Writes samples/interpolation.png: a row for each pair, both kinds below each other, labeled; of points, the paths
    in the plane. Of points and of longer rows there is samples/interpolation.csv, with kind, pair and step before the
    values. interpolation.json has the bits/dim along the paths.

    Args:
        run: Run folder.
        n: Pairs of examples.
        kind: linear or spherical; may be repeated, both by default.
        steps: Examples on a path, with both ends.
        split: train, validation or test.
        data_dir: Folder of data sets.
        seed: Of the pairs and the dequantization noise.
    """
    spread(processes, gpus, device)
    from iresnet.devices import device_of
    from iresnet.evaluation import KINDS, paths

    folder, model, dataset, part = open_run(run, data_dir, split, device)
    first, last = (x.to(device_of(model)) for x in _pairs(dataset, part, n, seed))
    with progress("paths", n * steps * len(kind or KINDS)) as advance:
        found = paths(model, first, last, steps=steps, kinds=kind, progress=lambda done: advance(n * done))
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


def _pairs(dataset: "Dataset", part: "Split", n: int, seed: int) -> "tuple[Tensor, Tensor]":
    """Both ends of n paths, as a density sees them."""
    import torch

    from iresnet.data import dequantize

    if len(part) < 2 * n:
        raise DataError(f"{n} pairs need {2 * n} examples, the split has {len(part)}: ask for fewer with -n")
    x = part.shuffled(seed, 2 * n).x
    x = dequantize(x, levels=dataset.levels, generator=torch.Generator().manual_seed(seed))
    return x[:n], x[n:]


def _write(folder: "Run", inputs: "Inputs", found: "list[LatentPath]") -> list[Path]:
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


def _csv(found: "list[LatentPath]", columns: "Sequence[Column]") -> str:
    """All points of all paths in the table of the data, with what they are in columns before it."""
    import torch

    from iresnet.data.columns import Column, to_csv

    columns = columns or [Column(f"x{i}", i + 1) for i in range(found[0].x.shape[2])]
    text = to_csv(columns, torch.cat([path.x.flatten(0, 1) for path in found])).splitlines()
    header = text[:1] if any(column.name for column in columns) else [",".join(column.title for column in columns)]
    places = [(p.kind, i, j) for p in found for i in range(p.x.shape[0]) for j in range(p.x.shape[1])]
    rows = [f"{kind},{i},{j},{row}" for (kind, i, j), row in zip(places, text[-len(places) :], strict=True)]
    return "\n".join([f"kind,pair,step,{header[0]}", *rows]) + "\n"
