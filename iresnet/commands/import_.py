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
    code: Annotated[Literal["2019", "residual-flows"], Parameter(name="--from")] = "2019",
    out: Path | None = None,
    data: str | None = None,
    data_dir: DataDir = None,
    seal: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Make a run folder of a checkpoint of a published code, without executing anything of it.

    Outputs equal those of the code that wrote it, in eval mode, to rounding. That code estimates norms from below, so
    iresnet certify may find layers above their coefficient; --seal repairs them, and changes outputs a little.

    Densities take pixels in [0, 256). Classifiers take images that are normalized as in that code; with --data they
    take pixels from 0 to 255 as well, and iresnet evaluate can be run.

    Args:
        checkpoint: File that torch.save wrote, such as checkpoint.t7.
        code: The code that wrote it: 2019, of Invertible Residual Networks (jhjacobsen/invertible-resnet).
        out: Run folder to make; runs/NAME when left out.
        data: Data set that it was trained on, cifar10 or another, which checkpoints do not say.
        seal: Scale down layers that are above their coefficient, so that the model is certified.
    """
    from iresnet import imports
    from iresnet.data import load
    from iresnet.errors import RecipeError
    from iresnet.runs import Run

    if code not in imports.CODES:
        raise RecipeError("checkpoints of Residual Flows cannot be imported yet; those of 2019 can: --from 2019")
    folder = Run.free(out or Path("runs", checkpoint.stem))
    content = imports.read_pickle(checkpoint, imports.CLASSES)
    dataset = None if data is None else load(data, data_dir)
    with progress("percent of blocks", 100) as advance:
        found = imports.convert(
            content, checkpoint.name, dataset=dataset, progress=lambda done, of: advance(100 * done // of)
        )
    run = Run.create(folder.path, found.config, found.inputs, data_dir=data_dir)
    try:
        _save(run, found, seal=seal)
        run.write_json("import.json", {"checkpoint": checkpoint.name, "code": code, "sealed": seal, **found.about})
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
    takes = "images normalized as in that code" if found.inputs.levels is None else "pixels from 0 to 255"
    data = found.config.data.name or "not known (--data)"
    blocks = "-".join(map(str, model["blocks"]))
    return (
        f"{kind} {model['name']}, blocks {blocks}{about}; takes {takes}; data: {data}; "
        f"weights {'sealed' if seal else 'as they were, not sealed'}"
    )
