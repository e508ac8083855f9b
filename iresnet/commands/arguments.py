"""Options that several commands take, and functions that open the run that a command is given."""

__all__ = [
    "AnyRun",
    "BatchSize",
    "Count",
    "DataDir",
    "DeviceName",
    "ExampleFiles",
    "Gpus",
    "Keep",
    "Precision",
    "Processes",
    "RunFolder",
    "Seed",
    "SeveralProcesses",
    "check_samples_file",
    "classifier_of",
    "flow_of",
    "load_data",
    "load_run",
    "open_files",
    "open_run",
    "use_processes",
]

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from iresnet.console import announce
from iresnet.errors import RecipeError, RunError, UnknownNameError
from iresnet.launch import check_processes, started_together

if TYPE_CHECKING:
    from collections.abc import Iterator

    from iresnet.classifiers import Classifier, Hybrid
    from iresnet.data import Dataset, Examples, Split
    from iresnet.flows import Flow
    from iresnet.inputs import Inputs
    from iresnet.runs import Run
    from iresnet.zoo import Model

AnyRun = Annotated[
    Path,
    Parameter(name="RUN", help="Run folder, made by iresnet train; or a model of the package, such as digits-density."),
]
ExampleFiles = Annotated[
    Path,
    Parameter(
        name="FILES",
        help="An image, a folder of images, a table (.csv, .parquet; columns are found by name), or an array x "
        "(.npz, .npy).",
    ),
]
Keep = Annotated[
    list[str] | None,
    Parameter(negative="", help="Column of a table to write beside the results, as text; may be repeated."),
]
RunFolder = Annotated[Path, Parameter(name="RUN", help="Run folder, made by iresnet train.")]
DataDir = Annotated[
    Path | None,
    Parameter(
        help="Folder of data sets; then $IRESNET_DATA, the user cache and the hub are tried.",
        validator=validators.Path(exists=True, file_okay=False),
    ),
]
DeviceName = Annotated[
    str,
    Parameter(
        name="--device", help="Where to compute: auto (a GPU when there is one), cpu, cuda, or one of several: cuda:1."
    ),
]
Precision = Annotated[
    str,
    Parameter(help="Of convolutions and matrix products: float32, tf32 (on GPUs that have it) or bf16."),
]
Count = Annotated[int, Parameter(name=["--n", "-n"], validator=validators.Number(gte=1))]
BatchSize = Annotated[
    int | None,
    Parameter(help="Examples at a time: fewer take less memory.", validator=validators.Number(gte=1)),
]
Seed = Annotated[int, Parameter(validator=validators.Number(gte=0, lt=2**63))]
Processes = Annotated[
    int | None,
    Parameter(
        help="Work in so many processes of this machine, one for each GPU where there are any; torchrun starts them on "
        "several machines.",
        validator=validators.Number(gte=1),
    ),
]
Gpus = Annotated[
    int | None, Parameter(help="The same, and so many GPUs must be there.", validator=validators.Number(gte=1))
]


class SeveralProcesses(Exception):  # noqa: N818
    """Request to run the command line in several processes."""

    def __init__(self, n: int):
        self.n = n


def use_processes(processes: int | None, gpus: int | None, device: str) -> None:
    """Have the command run in several processes, unless this one is already one of them."""
    if not started_together() and (n := check_processes(processes, gpus, device)) > 1:
        raise SeveralProcesses(n)


def load_run(path: Path, device: str, *, anywhere: bool = False) -> "tuple[Run, Model, Inputs]":
    """Open a run folder, with its model on the device and the description of the model's inputs.

    With ``anywhere`` also by the name of a model that comes with the package, or of one of the hub.
    """
    from iresnet.devices import choose_device, describe_device
    from iresnet.models import load_model
    from iresnet.pretrained import find_run
    from iresnet.runs import Run

    folder = find_run(path) if anywhere else Run.open(path)
    model, chosen = load_model(folder), choose_device(device)
    announce(f"computed on {describe_device(chosen)}")
    return folder, model.to(chosen), folder.read_config()[1]


def open_run(path: Path, data_dir: Path | None, split: str, device: str) -> "tuple[Run, Model, Dataset, Split]":
    """Open a run folder, with its model on the device and a split of its data; refuse data it was not trained on."""
    splits = ("train", "validation", "test")
    if split not in splits:
        raise UnknownNameError("split", split, splits)
    folder, model, _ = load_run(path, device)
    dataset = load_data(folder, data_dir)
    return folder, model, dataset, getattr(dataset, split)


def load_data(folder: "Run", data_dir: Path | None) -> "Dataset":
    """Load the data of a run; refuse data it was not trained on."""
    from iresnet.data import DATASETS, load
    from iresnet.models import is_trained_on

    config, inputs = folder.read_config()
    if not config.data.name:
        raise RunError(
            f"{folder.path} was imported, and does not say of which data: import it again with --data, as cifar10"
        )
    dataset = load(config.data.name, data_dir or folder.data_dir, **config.data.options)
    if not is_trained_on(dataset, config.task.kind, inputs):
        changed = f"{dataset.source} has changed since: restore it, or train again"
        remedy = "give its --data-dir" if config.data.name in DATASETS else changed
        raise RunError(f"{folder.path} was trained on other data than {dataset}; {remedy}")
    return dataset


def open_files(
    folder: "Run", path: Path, *, batch_size: int, keep: list[str] | None = None, contexts: bool = True
) -> "tuple[Iterator[Examples], int | None]":
    """Open files of examples for the model of a run, with images converted as they were for training."""
    from iresnet.data import ImageConversion, open_examples

    config, inputs = folder.read_config()
    return open_examples(
        path,
        inputs,
        batch_size=batch_size,
        conversion=ImageConversion(config.data.image_size, config.data.mode),
        pad_to=config.data.pad_to,
        keep=keep or (),
        contexts=contexts,
    )


def flow_of(model: "Model") -> "Flow":
    """Return the density of a model, and refuse a model that has none."""
    from iresnet.classifiers import Classifier, Hybrid

    if isinstance(model, Classifier):
        raise RecipeError("this run is a classifier without a density; train one with --task.nll-weight 1")
    return model.flow if isinstance(model, Hybrid) else model


def classifier_of(model: "Model") -> "Classifier | Hybrid":
    """Return a model that predicts classes, and refuse one that does not."""
    from iresnet.flows import Flow

    if isinstance(model, Flow):
        raise RecipeError("this run is a density without classes; train a hybrid with --task.ce-weight 1")
    return model


def check_samples_file(out: Path, inputs: "Inputs") -> None:
    """Refuse a file that samples of a model cannot be written to, before they are there."""
    is_image, is_plane = len(inputs.shape) == 3, inputs.shape == (2,)
    suffixes = (".png", ".npz") if is_image else (".csv", ".npz", ".png") if is_plane else (".csv", ".npz")
    if out.suffix.lower() not in suffixes:
        raise RecipeError(f"--out {out}: samples of this run go to a folder or a file ending in {', '.join(suffixes)}")
