"""``iresnet export``: a file that other programs run without this one."""

__all__ = ["export"]

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from iresnet.bars import progress
from iresnet.commands.contexts import Context, at_context
from iresnet.console import say
from iresnet.errors import RecipeError, UnknownNameError

FORMATS = ("onnx",)


def export(
    run: Annotated[str, Parameter(name="RUN", help="Run folder, or the name of a model that comes with the package.")],
    *,
    what: str,
    to: str = "onnx",
    out: Path | None = None,
    context: Context = None,
    n_probes: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 64,
    atol: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 1e-6,
    max_steps: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 1000,
) -> None:
    """Write a model as a file for other programs, once onnxruntime has given torch's numbers for several batch sizes.

    Needs the packages of iresnet[onnx]. The batch dimension may have any size, and weights are constants. What the
    file holds, its certificate and the shape of the data stand in its metadata, in JSON under the key iresnet.

    Args:
        what: encode (data to latents), decode (latents to data, with the residual and the steps of its iteration),
            log-prob (data, and probes where others than the fixed ones are wanted, to log-densities in nats, with
            standard errors and bounds of the truncation) or classify (data to logits). Data are as in training:
            pixels from 0 to 255, for densities with uniform noise added.
        to: Format: onnx.
        out: File to write; WHAT.onnx in the run folder by default.
        n_probes: log-prob: fixed probes that the file holds.
        atol: decode: largest last change of an element; log-prob: largest truncation in nats; of each block.
        max_steps: Steps of each block at most; too few show in the residual, or in the bound of the truncation.
    """
    if to not in FORMATS:
        raise UnknownNameError("format", to, FORMATS)
    from iresnet.export import to_onnx
    from iresnet.pretrained import find_run, load

    folder = find_run(run)
    target = out or (folder.path / f"{what}.onnx" if Path(run).exists() else Path(f"{Path(run).name}-{what}.onnx"))
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise RecipeError(f"--out {target}: give a file in a folder that is there")
    inputs = folder.read_config()[1]
    model, _ = at_context(load(run), inputs, context)
    facts = {"levels": inputs.levels, "class_names": inputs.class_names, "model_sha256": folder.weights_sha256()}
    with progress(f"export {what}", 2) as advance:
        options = {"n_probes": n_probes, "atol": atol, "max_steps": max_steps}
        exported = to_onnx(model, what, target, **options, facts=facts, progress=advance)
    say(str(exported))
