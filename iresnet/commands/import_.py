"""``iresnet import``: a run folder of a checkpoint that a published code wrote."""

__all__ = ["import_checkpoint"]

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from iresnet.bars import progress
from iresnet.commands.arguments import DataDir
from iresnet.console import say

if TYPE_CHECKING:
    from iresnet.imports import Imported
    from iresnet.runs import Run


def import_checkpoint(
    checkpoint: Annotated[Path, Parameter(name="CHECKPOINT")],
    *,
    code: Annotated[Literal["2019", "residual-flows"] | None, Parameter(name="--from")] = None,
    out: Path | None = None,
    data: str | None = None,
    data_dir: DataDir = None,
    seal: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Make a run folder of a checkpoint of a published code, without executing anything of it.

    Outputs equal those of the code that wrote it, in eval mode, to rounding. That code estimates norms from below, so
    iresnet certify may find layers above their coefficient; --seal repairs them, and changes outputs a little.

    Densities take pixels in [0, 256), and have the averaged weights of Residual Flows. Classifiers take images that are
    normalized as in that code; with --data they take pixels from 0 to 255 as well, and iresnet evaluate can be run.

    Args:
        checkpoint: File that torch.save wrote, such as checkpoint.t7.
        code: The code that wrote it, which is told by the file when left out: 2019, of Invertible Residual Networks
            (jhjacobsen/invertible-resnet), or residual-flows (rtqichen/residual-flows).
        out: Run folder to make; runs/NAME when left out.
        data: Data set that it was trained on, cifar10 or another, which checkpoints do not say.
        seal: Scale down layers that are above their coefficient, so that the model is certified.
    """
    from iresnet import imports
    from iresnet.data import load
    from iresnet.runs import Run

    folder = Run.free(out or Path("runs", checkpoint.stem))
    content = imports.read_pickle(checkpoint, imports.CLASSES)
    writer = code or imports.code_of(content)
    dataset = None if data is None else load(data, data_dir)
    with progress("percent of blocks", 100) as advance:
        found = imports.CODES[writer](
            content, checkpoint.name, dataset=dataset, progress=lambda done, of: advance(100 * done // of)
        )
    run = Run.create(folder.path, found.config, found.inputs, data_dir=data_dir)
    try:
        _save(run, found, seal=seal)
        run.write_json("import.json", {"checkpoint": checkpoint.name, "code": writer, "sealed": seal, **found.about})
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    say(_summary(found, seal=seal))
    say(f"wrote {run.path}; next: {run.command('certify')}")


def _save(run: "Run", found: "Imported", *, seal: bool) -> None:
    from iresnet.models import save_model, save_weights

    if seal:
        save_model(run, found.model)
    else:
        save_weights(run, found.model)


def _summary(found: "Imported", *, seal: bool) -> str:
    model, kind = found.config.model, {"density": "density", "classify": "classifier"}[found.config.task.kind]
    about = "".join(f", {name} {value:g}" for name, value in found.about.items())
    levels = found.inputs.levels
    takes = f"pixels from 0 to {levels - 1}" if levels else "what that code gives its networks"
    data = found.config.data.name or "not known (--data)"
    blocks = str(model["blocks"]).strip("[]").replace(", ", "-")
    return (
        f"{kind} {model['name']}, blocks {blocks}{about}; takes {takes}; data: {data}; "
        f"weights {'sealed' if seal else 'as they were, not sealed'}"
    )
