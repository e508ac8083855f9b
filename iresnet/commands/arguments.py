"""What the commands take, and how a run that is named to them is opened."""

__all__ = [
    "Count",
    "DataDir",
    "Gpus",
    "Processes",
    "RunFolder",
    "Seed",
    "Several",
    "flow_of",
    "load_run",
    "open_run",
    "spread",
]

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from iresnet.errors import RecipeError, RunError, UnknownNameError
from iresnet.launch import check_processes, started_together

if TYPE_CHECKING:
    from iresnet.data import Dataset, Split
    from iresnet.flows import Flow
    from iresnet.runs import Inputs, Run
    from iresnet.zoo import Model

RunFolder = Annotated[Path, Parameter(name="RUN", help="Run folder, made by iresnet train.")]
DataDir = Annotated[
    Path | None,
    Parameter(
        help="Folder of data sets; then $IRESNET_DATA, the user cache and the hub are tried.",
        validator=validators.Path(exists=True, file_okay=False),
    ),
]
Count = Annotated[int, Parameter(name=["--n", "-n"], validator=validators.Number(gte=1))]
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


class Several(Exception):  # noqa: N818
    """Asks for the command line to be run in several processes."""

    def __init__(self, n: int):
        self.n = n


def spread(processes: int | None, gpus: int | None) -> None:
    """Have the command run in several processes, unless this one is already one of them."""
    if not started_together() and check_processes(processes, gpus) > 1:
        raise Several(check_processes(processes, gpus))


def load_run(path: Path) -> "tuple[Run, Model, Inputs]":
    """Open a run folder: the folder, its model, and what the model knows of its data."""
    from iresnet.runs import Run

    folder = Run.open(path)
    return folder, folder.load_model(), folder.read_config()[1]


def open_run(path: Path, data_dir: Path | None, split: str) -> "tuple[Run, Model, Dataset, Split]":
    """Open a run folder with its data, refused when they are not those it was trained on."""
    from iresnet.data import load

    splits = ("train", "validation", "test")
    if split not in splits:
        raise UnknownNameError("split", split, splits)
    folder, model, _ = load_run(path)
    config, inputs = folder.read_config()
    dataset = load(config.data.name, data_dir or folder.data_dir, **config.data.options)
    if (dataset.shape, dataset.levels, dataset.class_names) != (inputs.shape, inputs.levels, inputs.class_names):
        raise RunError(f"{path} was trained on other data than {dataset}; give its --data-dir")
    return folder, model, dataset, getattr(dataset, split)


def flow_of(model: "Model") -> "Flow":
    """The density of a model, refused when it has none."""
    from iresnet.classifiers import Classifier, Hybrid

    if isinstance(model, Classifier):
        raise RecipeError("this run is a classifier without a density; train one with --task.nll-weight 1")
    return model.flow if isinstance(model, Hybrid) else model
