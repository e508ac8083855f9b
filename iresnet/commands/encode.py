"""``iresnet encode`` and ``iresnet decode``: images or rows of a file to latent vectors, and back."""

__all__ = ["decode", "encode"]

import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from iresnet.bars import progress
from iresnet.commands.arguments import (
    AnyRun,
    BatchSize,
    DeviceName,
    ExampleFiles,
    Gpus,
    Keep,
    Processes,
    Seed,
    check_samples_file,
    flow_of,
    load_run,
    open_files,
    use_processes,
)
from iresnet.commands.contexts import Context, at_context, has_contexts
from iresnet.commands.rows import Rows
from iresnet.console import is_main, say
from iresnet.errors import DataError, RecipeError
from iresnet.files import replacing, writing
from iresnet.outputs import check_suffix

if TYPE_CHECKING:
    import torch

    from iresnet.data import Examples

BATCH_SIZE = 128
SUFFIXES = (".npz", ".parquet")


def encode(
    run: AnyRun,
    files: ExampleFiles,
    *,
    out: Path,
    keep: Keep = None,
    context: Context = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    device: DeviceName = "auto",
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Map each image of a folder, or each row of a table, to its latent vector; iresnet decode maps it back.

    Integers get uniform noise first where the density was trained with it, the same for each example; decoding rounds
    it off again, so that it gives the examples themselves. Of a classifier the latent is what its head sees.

    --out latents.npz holds arrays z, one row an example, and file or row, which tells the example; it is made in
    memory. --out latents.parquet has the same columns, z being lists of numbers, and is written batch by batch.

    Args:
        run: Run folder.
        files: Images, table or array.
        out: File to write, .npz or .parquet.
        seed: Of the noise.
    """
    use_processes(processes, gpus, device)
    import torch

    from iresnet import evaluation

    check_suffix(out, SUFFIXES)
    folder, model, inputs = load_run(run, device, anywhere=True)
    tensor = evaluation.reference_tensor(model)
    batches, total = open_files(folder, files, batch_size=batch_size or BATCH_SIZE, keep=keep, contexts=not context)
    if not has_contexts(inputs, files, context):
        model, _ = at_context(model, inputs, context)

    def latents(examples: "Examples") -> "torch.Tensor":
        x = evaluation.example_inputs(model, examples.x, inputs, torch.Generator().manual_seed(seed))
        at_own = model if examples.context is None else flow_of(model).given(examples.context.to(tensor.device))
        return at_own.bijection(x.to(tensor)).flatten(1).cpu()

    parts: list[dict[str, Any]] = []
    rows = Rows(out if out.suffix.lower() == ".parquet" else None)
    with progress("latents", total) as advance, rows.written():
        for examples, z in evaluation.stream_in_batches(model, batches, latents):
            if rows.out is None:
                parts.append({examples.key: examples.names, **examples.kept, "z": z.numpy()})
            rows.add(examples, {"z": list(z.numpy())}, advance)
    if rows.out is not None:
        rows.finish()
    elif is_main():
        _write_arrays(out, parts)
        say(f"wrote {out} ({rows.n} rows)")


def _write_arrays(out: Path, parts: list[dict[str, Any]]) -> None:
    import numpy as np

    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as aside, writing(out), zipfile.ZipFile(aside, "w") as archive:
        for name in parts[0]:  # not by numpy.savez, which takes no array called file
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                array = np.concatenate([np.asarray(part[name]) for part in parts])
                np.lib.format.write_array(member, array, allow_pickle=False)


def decode(
    run: AnyRun,
    latents: Annotated[Path, Parameter(name="LATENTS", help="File that iresnet encode wrote, or one like it.")],
    *,
    out: Path,
    context: Context = None,
    batch_size: BatchSize = None,
    device: DeviceName = "auto",
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Map latent vectors, changed or not, to images or to a table.

    Images go to a folder of a PNG file each, numbered from 0, or to a picture of all of them (.png) or an array x
    (.npz); rows to a .csv like the table that the model was trained on, or to .npz. They are held in memory.

    Args:
        run: Run folder.
        out: Folder or file to write.
    """
    use_processes(processes, gpus, device)
    import torch

    from iresnet import evaluation
    from iresnet.classifiers import Classifier
    from iresnet.pictures import draw_each, write

    _, model, inputs = load_run(run, device, anywhere=True)
    model, _ = at_context(model, inputs, context)
    is_folder = not out.suffix and len(inputs.shape) == 3
    if not is_folder:
        check_samples_file(out, inputs)
    if is_folder and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"--out {out} exists and is not an empty folder; choose another --out")
    bijection, tensor = model.bijection, evaluation.reference_tensor(model)
    with torch.no_grad():
        shape = bijection(torch.zeros(1, *inputs.shape).to(tensor)).shape[1:]  # flat, but for classifiers
    z = _read_latents(latents, tuple(shape)).to(tensor)
    sizes = {} if batch_size is None else {"batch_size": batch_size}
    with progress("decoding", len(z)) as advance:
        x = evaluation.decode(bijection, z, progress=advance, **sizes)
    if isinstance(model, Classifier) and inputs.levels:
        x = x + 0.5  # integers that got no noise before they were encoded
    if is_main():
        say(f"wrote {draw_each(x, inputs, out) if is_folder else write(x, inputs, out)} ({len(x)} examples)")


def _read_latents(path: Path, shape: tuple[int, ...]) -> "torch.Tensor":  # (N, *shape)
    """Read the column or array z of a file."""
    import numpy as np
    import pyarrow.parquet as pq
    import torch

    from iresnet.data.storage import reading

    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: expected latents in a file ending in {' or '.join(SUFFIXES)}")
    with reading(path, "file with latents z, one row an example", "write it with: iresnet encode"):
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                z = np.asarray(arrays["z"], np.float32)
        else:
            z = np.array(pq.read_table(path, columns=["z"]).column("z").to_pylist(), np.float32)
    size = math.prod(shape)
    if z.ndim != 2 or z.shape[1] != size or not len(z):
        raise DataError(f"{path}: this run has latents of {size} numbers, got an array of shape {z.shape}")
    if not np.isfinite(z).all():
        raise DataError(f"{path}: latents must be finite, row {int(np.argwhere(~np.isfinite(z))[0][0]) + 1} is not")
    return torch.from_numpy(z).view(len(z), *shape)
