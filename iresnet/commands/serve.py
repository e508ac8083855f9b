"""``iresnet serve``: a local page on which a model is tried."""

__all__ = ["serve"]

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from iresnet.commands.arguments import AnyRun, DataDir, DeviceName, flow_of, load_data, load_run, open_files
from iresnet.commands.contexts import Context, at_context
from iresnet.commands.score import N_REFERENCE, training_examples, training_reference
from iresnet.console import say, show_warning
from iresnet.errors import Interrupted, IResNetError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from iresnet.inputs import Inputs
    from iresnet.page.served import ServedModel
    from iresnet.runs import Run
    from iresnet.zoo import Model


def serve(
    run: AnyRun,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 7860,
    train_examples: Annotated[int | None, Parameter(validator=validators.Number(gte=0))] = None,
    context: Context = None,
    data_dir: DataDir = None,
    device: DeviceName = "auto",
) -> None:
    """Serve a page on which a model is tried in a browser; Ctrl-C ends it. Needs pip install 'iresnet[page]'.

    Draw or upload an image, or fill in a row: its likelihood among those of training examples, its class with the
    certified radius, its latent decoded again. Move along latent directions, interpolate between two images, sample at
    a temperature, read the certificate. What does not apply to the model is not shown.

    The page is reached from this machine alone, asks nothing of any other, and keeps nothing that is uploaded.

    Args:
        run: Run folder.
        host: Address to listen on. Any other than that of loopback lets other machines in, without a password.
        port: Port to listen on, 0 for any that is free.
        train_examples: Training examples to compare likelihoods with, as in iresnet score; 0 for none.
        data_dir: Folder of data sets, for the training examples.
    """
    if importlib.util.find_spec("gradio") is None:
        raise RecipeError("iresnet serve needs gradio: pip install 'iresnet[page]'")
    with tempfile.TemporaryDirectory(prefix="iresnet-page-") as folder:
        # gradio reads these when it is imported: where uploads go, and that nobody is told of anything.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
        from iresnet.interrupts import stop_requests
        from iresnet.page import server
        from iresnet.page.widgets import build

        with server.listen(host, port) as listener:
            opened, model, inputs = load_run(run, device, anywhere=True)
            served = _served(opened, model, inputs, context, data_dir, train_examples)
            blocks = build(served, *_descriptions(opened, served, context))
            if not server.is_loopback(host):
                show_warning(f"--host {host} lets other machines use this page, without a password", None)
            where = f"[{host}]" if ":" in host else host
            address = f"http://{where}:{listener.getsockname()[1]}"
            with stop_requests() as stop:
                server.serve(blocks, listener, stop=stop, ready=lambda: say(f"{address} (Ctrl-C ends it)"))
    raise Interrupted("interrupted")


def _served(
    folder: "Run", model: "Model", inputs: "Inputs", context: list[str] | None, data_dir: Path | None, n: int | None
) -> "ServedModel":
    """Prepare the model, with training examples and their likelihoods where they can be had."""
    from iresnet.classifiers import Classifier
    from iresnet.page.served import ServedModel

    def read(path: Path) -> "Tensor":
        batches, _ = open_files(folder, path, batch_size=1, contexts=False)
        return next(batches).x

    served, _ = at_context(model, inputs, context)
    examples = reference = None
    try:
        training = training_examples(folder, load_data(folder, data_dir), inputs, N_REFERENCE)
        examples = at_context(model, inputs, context, training)[1].x
    except IResNetError as error:
        show_warning(f"the page has no training examples: {error}", None)
    if not isinstance(model, Classifier) and n != 0:
        try:
            reference = training_reference(folder, flow_of(model), inputs, data_dir, n, {"n_draws": 4, "seed": 0})
        except IResNetError:
            if examples is not None:  # else it was told above
                raise
    return ServedModel(served, inputs, read=read, reference=reference, examples=examples)


def _descriptions(folder: "Run", served: "ServedModel", context: list[str] | None) -> tuple[str, str]:
    """Describe the model and its certificate."""
    from iresnet.bijections import ResidualBlock
    from iresnet.certificates import certify
    from iresnet.data.examples import describe_events
    from iresnet.page import markup
    from iresnet.report.formatting import quantity
    from iresnet.report.overview import headlines
    from iresnet.runs import read_contents

    config, inputs = folder.read_config()
    kind = "classifier" if served.flow is None else "density and classifier at once" if served.classifier else "density"
    n_columns = len(inputs.columns)
    data = f"rows of {quantity(n_columns, 'column')}" if n_columns else describe_events(inputs.shape)
    levels = f" in {inputs.levels} levels" if inputs.levels else ""
    source = f", trained on {Path(config.data.name).name}" if config.data.name else ""
    n_blocks = sum(isinstance(module, ResidualBlock) for module in served.model.modules())
    blocks = f"{quantity(n_blocks, 'block')} z = x + g(x)" if n_blocks else "a plain network"
    given = f", given {', '.join(context)}" if context else ""
    lead = f"A {kind} of {data}{levels}{source}{given}: {blocks}."
    proved = certify(served.model)
    tiles = [tile for tile in headlines(read_contents(folder.path)) if tile.label != "largest block bound"]
    return markup.header(folder.path.resolve().name, lead, proved.verdict, tiles), markup.certificate(proved)
