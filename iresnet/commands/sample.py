"""``iresnet sample``: draw from a density."""

__all__ = ["sample"]

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeGuard

from cyclopts import Parameter

from iresnet.bars import progress
from iresnet.commands.arguments import (
    Count,
    DeviceName,
    Gpus,
    Processes,
    RunFolder,
    Seed,
    check_samples_file,
    flow_of,
    load_run,
    use_processes,
)
from iresnet.console import is_main, say
from iresnet.errors import RecipeError, UnknownNameError

if TYPE_CHECKING:
    from iresnet.inputs import Inputs


def sample(
    run: RunFolder,
    *,
    n: Count = 64,
    of_class: Annotated[str | None, Parameter(name="--class")] = None,
    temperature: float = 1.0,
    out: Path | None = None,
    individual: Annotated[bool, Parameter(negative="")] = False,
    seed: Seed = 0,
    device: DeviceName = "auto",
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Draw samples: a grid of images, a scatter plot of points, or a table; writes samples/samples.*, or to --out.

    A table has the header, the integers and the categories of the table that the model was trained on.

    Models that are density and classifier at once (hybrids) can draw samples of one class: --class 3.
    Latents of the base density are accepted with the probability that the classifier gives to the class, which is exact
    for the joint model; the share accepted is printed. Such samples go to samples/samples-CLASS.*.

    Args:
        run: Run folder.
        n: How many.
        of_class: Name of a class, or its number from 0.
        temperature: Multiplies the latent's standard deviation; below 1 gives more typical samples.
        out: File to write instead, as its suffix says: .png a picture, .csv a table, .npz an array x; or a folder for
            samples.*.
        individual: Also write each image to a file of its own, in the folder samples/samples; of other data all
            samples to one CSV file.
        seed: Of the latents.
    """
    use_processes(processes, gpus, device)
    import torch

    from iresnet import evaluation
    from iresnet.capacity import SAMPLE_BYTES, check_room
    from iresnet.classifiers import Hybrid
    from iresnet.flows import check_sampling
    from iresnet.pictures import draw, draw_each, write

    folder, model, inputs = load_run(run, device)
    _check_out(out, inputs, individual=individual)
    flow, name = flow_of(model), "samples"
    needed = SAMPLE_BYTES * n * flow.base.features
    check_room(needed, torch.device("cpu"), f"drawing {n} samples", "ask for fewer with -n")

    generator = torch.Generator().manual_seed(seed)
    if of_class is None:
        check_sampling(n, temperature)
        z = flow.base.sample(n, temperature=temperature, generator=generator)
    else:
        label = _class_number(of_class, inputs)
        if not isinstance(model, Hybrid):
            raise RecipeError("this run is a density without classes; train a hybrid with --task.ce-weight 1")
        name += "-" + "".join(c if c.isalnum() or c in "-_" else "-" for c in inputs.class_names[label])
        latents = evaluation.latents_of_class(model, label, n, temperature=temperature, generator=generator)
        say(f"class {label}: {latents}")
        z = latents.z
    with progress("samples", n) as advance:
        samples = evaluation.decode(flow, z.detach(), progress=advance)

    if not is_main():
        return
    if _is_file(out):
        say(f"wrote {write(samples, inputs, out)}")
        return
    target = (out or folder.samples) / name
    paths = [draw(samples, inputs, target)]
    if individual or (inputs.columns and paths[0].suffix != ".csv"):
        paths.append(draw_each(samples, inputs, target))
    if out is None:
        about = {"model_sha256": folder.weights_sha256(), "n": n, "temperature": temperature, "seed": seed}
        folder.write_json(f"samples/{name}.json", about)
    for path in dict.fromkeys(paths):
        say(f"wrote {path}")


def _is_file(out: Path | None) -> TypeGuard[Path]:
    """Check whether all samples go to one file rather than to a folder."""
    return out is not None and bool(out.suffix) and not out.is_dir()


def _check_out(out: Path | None, inputs: "Inputs", *, individual: bool) -> None:
    """Refuse a file that samples cannot be written to, before they are drawn."""
    if not _is_file(out):
        return
    if individual:
        raise RecipeError(f"--individual writes several files: give a folder as --out, got {out}")
    check_samples_file(out, inputs)


def _class_number(of_class: str, inputs: "Inputs") -> int:
    """Find a class by its name, or else by its number."""
    names = inputs.class_names
    if of_class in names:
        return names.index(of_class)
    if of_class.isdecimal() and int(of_class) < len(names):
        return int(of_class)
    if not names:
        raise RecipeError("the data of this run have no classes; leave out --class")
    raise UnknownNameError("class", of_class, names)
