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
from iresnet.commands.contexts import Context, at_context, class_number
from iresnet.console import is_main, say
from iresnet.errors import RecipeError

if TYPE_CHECKING:
    from iresnet.flows import Flow
    from iresnet.inputs import Inputs


def sample(
    run: RunFolder,
    *,
    n: Count = 64,
    of_class: Annotated[str | None, Parameter(name="--class")] = None,
    context: Context = None,
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

    Conditional densities are sampled at --context; without it at each class in turn, where the context is the class.

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
    parts = _parts(flow, inputs, context, n)
    needed = SAMPLE_BYTES * n * flow.base.features
    check_room(needed, torch.device("cpu"), f"drawing {n} samples", "ask for fewer with -n")

    generator, columns = torch.Generator().manual_seed(seed), None
    if of_class is None:
        check_sampling(n, temperature)
        latents = [part.base.sample(m, temperature=temperature, generator=generator) for part, m in parts]
        if context:
            name += "-" + _as_name("-".join(context))
        elif len(parts) > 1 and n % len(parts) == 0:
            columns = n // len(parts)  # a row for each class
    else:
        label = class_number(of_class, inputs)
        if not isinstance(model, Hybrid):
            raise RecipeError("this run is a density without classes; train a hybrid with --task.ce-weight 1")
        name += "-" + _as_name(inputs.class_names[label])
        found = evaluation.latents_of_class(model, label, n, temperature=temperature, generator=generator)
        say(f"class {label}: {found}")
        latents = [found.z]
    samples, done = [], 0
    with progress("samples", n) as advance:
        for (part, _), z in zip(parts, latents, strict=True):
            samples.append(evaluation.decode(part, z.detach(), progress=lambda n, before=done: advance(before + n)))
            done += len(z)
    samples = torch.cat(samples)

    if not is_main():
        return
    if _is_file(out):
        say(f"wrote {write(samples, inputs, out)}")
        return
    target = (out or folder.samples) / name
    paths = [draw(samples, inputs, target, columns=columns)]
    if individual or (inputs.columns and paths[0].suffix != ".csv"):
        paths.append(draw_each(samples, inputs, target))
    if out is None:
        about = {"model_sha256": folder.weights_sha256(), "n": n, "temperature": temperature, "seed": seed}
        about |= {"context": context} if context else {}
        folder.write_json(f"samples/{name}.json", about)
    for path in dict.fromkeys(paths):
        say(f"wrote {path}")


def _parts(flow: "Flow", inputs: "Inputs", context: list[str] | None, n: int) -> "list[tuple[Flow, int]]":
    """Return the density to sample, at each class in turn where it is given one that is not told, and how often."""
    import torch

    from iresnet.devices import device_of

    if not inputs.is_conditional or inputs.context or context:
        return [(at_context(flow, inputs, context)[0], n)]  # pyright: ignore[reportReturnType]
    k = len(inputs.class_names)
    counts = [n // k + (label < n % k) for label in range(k)]
    device = device_of(flow)
    return [(flow.given(torch.tensor(label, device=device)), m) for label, m in enumerate(counts) if m]


def _as_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in text)


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
