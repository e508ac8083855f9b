"""``iresnet sample``: draw from a density."""

__all__ = ["sample"]

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeGuard

from cyclopts import Parameter

from iresnet.commands.arguments import Count, DeviceName, Gpus, Processes, RunFolder, Seed, flow_of, load_run, spread
from iresnet.console import is_main, progress, say
from iresnet.errors import RecipeError, UnknownNameError

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from iresnet.inputs import Inputs
    from iresnet.zoo import Model


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
    spread(processes, gpus, device)
    import torch

    from iresnet import evaluation
    from iresnet.capacity import SAMPLE_BYTES, check_room
    from iresnet.flows import check_sampling
    from iresnet.pictures import draw, draw_each, write

    folder, model, inputs = load_run(run, device)
    _check_out(out, inputs, individual=individual)
    generator = torch.Generator().manual_seed(seed)
    name = "samples"
    flow = flow_of(model)
    needed = SAMPLE_BYTES * n * flow.base.features
    check_room(needed, torch.device("cpu"), f"drawing {n} samples", "ask for fewer with -n")
    if of_class is None:
        check_sampling(n, temperature)
        z = flow.base.sample(n, temperature=temperature, generator=generator)
    else:
        label = _label(of_class, inputs)
        name += f"-{_file_name(inputs.class_names[label])}"
        z = _of_class(model, label, n, temperature, generator)
    with progress("samples", n) as advance:
        samples = evaluation.decode(flow, z.detach(), progress=advance)
    if not is_main():
        return
    if _is_file(out):
        say(f"wrote {write(samples, inputs, out)}")
        return
    place = (out or folder.samples) / name
    paths = [draw(samples, inputs, place)]
    if individual or (inputs.columns and paths[0].suffix != ".csv"):
        paths.append(draw_each(samples, inputs, place))
    if out is None:
        how = {"model_sha256": folder.weights_sha256(), "n": n, "temperature": temperature, "seed": seed}
        folder.write_json(f"samples/{name}.json", how)
    for path in dict.fromkeys(paths):
        say(f"wrote {path}")


def _is_file(out: Path | None) -> TypeGuard[Path]:
    """Whether all samples go to one file; else to a folder, the run's own when there is no other."""
    return out is not None and bool(out.suffix) and not out.is_dir()


def _check_out(out: Path | None, inputs: "Inputs", *, individual: bool) -> None:
    """Refuse a file that samples cannot be written to, before they are drawn."""
    if not _is_file(out):
        return
    if individual:
        raise RecipeError(f"--individual writes several files: give a folder as --out, got {out}")
    kinds = {3: (".png", ".npz")}.get(len(inputs.shape), (".csv", ".npz", *([".png"] if inputs.shape == (2,) else [])))
    if out.suffix.lower() not in kinds:
        raise RecipeError(f"--out {out}: samples of this run go to a folder or a file ending in {', '.join(kinds)}")


def _of_class(model: "Model", label: int, n: int, temperature: float, generator: "Generator") -> "Tensor":
    from iresnet import evaluation
    from iresnet.classifiers import Hybrid

    if not isinstance(model, Hybrid):
        raise RecipeError("this run is a density without classes; train a hybrid with --task.ce-weight 1")
    accepted = evaluation.latents_of_class(model, label, n, temperature=temperature, generator=generator)
    say(f"class {label}: {accepted}")
    return accepted.z


def _label(of_class: str, inputs: "Inputs") -> int:
    """The number of a class, from its name, or else from its number."""
    names = inputs.class_names
    if of_class in names:
        return names.index(of_class)
    if of_class.isdecimal() and int(of_class) < len(names):
        return int(of_class)
    if not names:
        raise RecipeError("the data of this run have no classes; leave out --class")
    raise UnknownNameError("class", of_class, names)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
