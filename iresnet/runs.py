"""The run folder: everything that a run writes."""

__all__ = ["Inputs", "Run", "build_model", "inputs_of", "is_trained_on", "model_options"]

import copy
import hashlib
import json
import os
import platform
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from packaging.version import InvalidVersion, Version
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from iresnet import zoo
from iresnet.capacity import check_room
from iresnet.certificates import Certificate, finite_or_none, seal
from iresnet.config import Config, from_dict, to_yaml
from iresnet.data import Column, Dataset, check_columns, check_density
from iresnet.errors import DataError, RecipeError, RunError, UnknownNameError
from iresnet.files import write_atomically, writing
from iresnet.options import check_types
from iresnet.renamed import with_current_names
from iresnet.zoo import Model

_SAME = 1e-8
"""Standard deviations by which moments of the same data differ at most."""


@dataclass(frozen=True)
class Inputs:
    """What a model needs to know of its data, so that it can be rebuilt without them.

    Attributes:
        shape: event shape.
        levels: values that an integer component takes, none for continuous data.
        class_names: names of the classes, empty without labels.
        mean: subtracted from the data, one number or one a channel or feature.
        std: the data is then divided by it.
        columns: of a table, what its features stand for: what was subtracted from them, noise, categories.
    """

    shape: tuple[int, ...]
    levels: int | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    columns: tuple[Column, ...] = ()


def inputs_of(dataset: Dataset, kind: str) -> Inputs:
    """Describe a data set to a model.

    Integer data of densities is centered and scaled by its number of levels, as published; all other data is
    standardized with the moments of each channel or feature of the training split.

    Args:
        dataset: the data.
        kind: ``density``, ``classify`` or ``hybrid``.

    Raises:
        DataError: when a task needs labels that are not there, a feature is constant, or a density is asked of columns
            that have none.
    """
    if kind != "density" and not dataset.n_classes:
        remedy = "--task.ce-weight 0" + (" --task.nll-weight 1" if kind == "classify" else "")
        raise DataError(f"{dataset.name} has no labels, which the task '{kind}' needs; use {remedy}")
    if dataset.levels is None or kind == "classify":
        check_columns(dataset)
    if dataset.levels is None and kind != "classify":
        check_density(dataset)
    return Inputs(dataset.shape, dataset.levels, dataset.class_names, *_moments(dataset, kind), dataset.columns)


def _moments(dataset: Dataset, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What is subtracted from the data, and what they are divided by."""
    if dataset.levels is not None and kind != "classify":
        return (dataset.levels / 2,), (float(dataset.levels),)
    values = dataset.train.x.transpose(0, 1).flatten(1).double()
    return tuple(values.mean(dim=1).tolist()), tuple(values.std(dim=1).tolist())


def is_trained_on(dataset: Dataset, kind: str, inputs: Inputs) -> bool:
    """Whether a data set is the one that a model was trained on, by all that the model knows of it.

    Moments are compared to a hundred-millionth of a standard deviation: sums in another order differ by less, those
    with another row by more.

    Args:
        dataset: the data, as they are now.
        kind: ``density``, ``classify`` or ``hybrid``.
        inputs: what the model knows.
    """
    # runs of earlier versions have no columns
    columns = inputs.columns or tuple(replace(column, offset=0.0) for column in dataset.columns)
    known = (inputs.shape, inputs.levels, inputs.class_names, columns)
    if (dataset.shape, dataset.levels, dataset.class_names, dataset.columns) != known:
        return False
    (mean, std), size = _moments(dataset, kind), [_SAME * value for value in inputs.std]
    pairs = zip([*mean, *std], [*inputs.mean, *inputs.std], [*size, *size], strict=True)
    return all(abs(now - then) <= least for now, then, least in pairs)


def model_options(config: Config, inputs: Inputs) -> tuple[str, dict[str, Any]]:
    """The name of the architecture of a recipe, and its options, of the right types.

    Raises:
        RecipeError: when an option is of another type, or follows from the data.
    """
    options = dict(config.model)
    name = str(options.pop("name", "iresnet" if len(inputs.shape) == 3 else "toy-mlp"))
    for key in options.keys() & {"shape", "task", "n_classes", "mean", "std"}:
        raise RecipeError(f"--model.{key.replace('_', '-')} follows from the data and the task; leave it out")
    for part, default, registry in (("logdet", "krylov", zoo.LOGDETS), ("solver", "anderson", zoo.SOLVERS)):
        if isinstance(options.get(part), dict):
            options[part] = spec = {"name": default, **options[part]}
            if str(spec["name"]) in registry:
                check_types(zoo.options_of(registry[str(spec["name"])]), spec, f"model.{part}.")
    if name in zoo.ARCHITECTURES:
        check_types(zoo.options_of(zoo.ARCHITECTURES[name]), options, "model.")
    return name, options


def build_model(config: Config, inputs: Inputs) -> Model:
    """Build the model of a recipe for the given data.

    Raises:
        RecipeError: when the architecture does not fit the data or has no such option.
    """
    name, options = model_options(config, inputs)
    return zoo.build(
        name,
        shape=inputs.shape,
        task=config.task.kind,
        n_classes=len(inputs.class_names),
        mean=_per_channel(inputs.mean, inputs.shape),
        std=_per_channel(inputs.std, inputs.shape),
        **options,
    )


def _per_channel(numbers: tuple[float, ...], shape: tuple[int, ...]) -> float | Tensor:
    return numbers[0] if len(numbers) == 1 else torch.tensor(numbers).view(-1, *[1] * (len(shape) - 1))


class Run:
    """A run folder.

    ``config.yaml`` (with what the model knows of the data), ``env.json``, ``metrics.jsonl``, ``cost.json``,
    ``model.safetensors`` (sealed), ``state/`` (checkpoints), ``samples/``, ``evaluation.json``, ``certificate.json``,
    ``analysis/``, ``report.html``. Files are replaced as a whole, so a reader never sees half of one.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.model_file = self.path / "model.safetensors"
        self.state = self.path / "state"
        self.samples = self.path / "samples"

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Config,
        inputs: Inputs,
        *,
        data_dir: str | Path | None = None,
        device: torch.device | None = None,
    ) -> "Run":
        """Start a new run folder, and note in it where the data came from and where it is trained.

        Raises:
            RunError: when there is one already, or the folder cannot be written.
        """
        run = cls.free(path)
        try:
            with writing(run.path):
                run.samples.mkdir(parents=True, exist_ok=True)
                run.state.mkdir(exist_ok=True)
            run.write_config(config, inputs)
            run.write_environment(data_dir, device)
        except BaseException:
            shutil.rmtree(run.path, ignore_errors=True)  # it was empty or not there
            raise
        return run

    @classmethod
    def free(cls, path: str | Path) -> "Run":
        """A run folder that can be made there; nothing is written.

        Raises:
            RunError: when there is a run already, or anything else.
        """
        run = cls(path)
        if run.config_file.exists():
            raise RunError(f"{path} holds a run already; continue it with --resume, or choose another --out")
        if run.path.is_dir() and any(not _is_beginning(entry) for entry in run.path.iterdir()):
            raise RunError(f"{path} is not empty and holds no run; choose another --out")
        return run

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Open an existing run folder.

        Raises:
            RunError: when it is none.
        """
        run = cls(path)
        if not run.config_file.is_file():
            raise RunError(f"{path} is not a run folder (no config.yaml in it); make one with: iresnet train RECIPE")
        return run

    def write_config(self, config: Config, inputs: Inputs) -> None:
        """Write the configuration, and what the model knows of its data."""
        text = to_yaml(config) + yaml.safe_dump({"inputs": _jsonable(asdict(inputs))}, sort_keys=False)
        write_atomically(self.config_file, text)

    def write_environment(self, data_dir: str | Path | None, device: torch.device | None) -> None:
        """Note where the data came from, and on what the run began, unless that is known."""
        if not self.read_json("env.json"):
            self.write_json("env.json", _environment(data_dir, device or torch.device("cpu")))

    def remove_leftovers(self) -> None:
        """Remove the halves of files that a killed process left; only for the process that writes the run."""
        for path in self.path.glob(".*.tmp"):
            if path.name.startswith((".model.", ".config.", ".env.")):
                path.unlink(missing_ok=True)
        for path in self.state.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def flush_metrics(self) -> int:
        """Flush ``metrics.jsonl`` to the disk, and return its size in bytes."""
        with writing(self.metrics_file), self.metrics_file.open("rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def check_version(self) -> None:
        """Refuse a run that a newer version of iresnet made.

        Raises:
            RunError: names both versions.
        """
        made_by, this = str(self.read_json("env.json").get("iresnet")), metadata.version("iresnet")
        with suppress(InvalidVersion):
            if Version(made_by) > Version(this):
                raise RunError(f"{self.path} was made by iresnet {made_by}, this is {this}: install the newer version")

    def read_config(self) -> tuple[Config, Inputs]:
        """Read the configuration, and what the model knows of its data."""
        try:
            tree = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
            inputs = from_dict(Inputs, tree.pop("inputs"), "inputs.")
            return from_dict(Config, with_current_names(tree)), inputs
        except (yaml.YAMLError, UnicodeError, LookupError, AttributeError, TypeError) as error:
            raise RunError(f"{self.config_file} is damaged; restore it, or train again") from error
        except (RecipeError, UnknownNameError) as error:
            raise RunError(f"{self.config_file}: {error}") from error

    @property
    def data_dir(self) -> str | None:
        """Where the data was looked for first when the run was made: a convenience, none when it is not known."""
        return self.read_json("env.json").get("data_dir")

    @property
    def _resume(self) -> str:
        """The command that continues the training, for messages."""
        return f"iresnet train --out {self.path} --resume"

    def weights_sha256(self) -> str:
        """Checksum of the weights, by which results tell whether they are of them."""
        return hashlib.sha256(self.model_file.read_bytes()).hexdigest()

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the folder; empty when it is missing or damaged."""
        try:
            tree = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return with_current_names(tree) if isinstance(tree, dict) else {}

    def save_model(self, model: Model) -> tuple[Model, Certificate]:
        """Seal a copy of the model and save its weights.

        Returns:
            The sealed copy, in eval mode, and its certificate.
        """
        sealed = copy.deepcopy(model).eval()
        certificate = seal(sealed)
        write_atomically(self.model_file, save(_contiguous(sealed)))
        return sealed, certificate

    @property
    def has_model(self) -> bool:
        """Whether the weights are there, and a whole file."""
        try:
            load_file(self.model_file)
        except (OSError, SafetensorError):
            return False
        return True

    def load_model(self) -> Model:
        """Rebuild the model from its configuration and weights, in eval mode.

        Raises:
            RunError: when the weights are missing, damaged, or of another model.
        """
        config, inputs = self.read_config()
        if not self.model_file.is_file():
            raise RunError(f"{self.path} has no model yet; continue its training with --resume: {self._resume}")
        check_room(self.model_file.stat().st_size, torch.device("cpu"), f"{self.model_file}", "free some of it")
        model = build_model(config, inputs)
        try:
            model.load_state_dict(load_file(self.model_file))
        except SafetensorError as error:
            raise RunError(
                f"{self.model_file} is damaged: {error}; continue the run with --resume: {self._resume}"
            ) from error
        except RuntimeError as error:
            raise RunError(f"{self.model_file} does not fit config.yaml: {_one_line(error)}") from error
        return model.eval()

    def write_json(self, name: str, tree: dict[str, Any]) -> Path:
        """Write a JSON file into the folder, null for what is not finite, and return its path."""
        return self.write_file(name, json.dumps(finite_or_none(tree), indent=2, allow_nan=False) + "\n")

    def write_file(self, name: str, content: str | bytes) -> Path:
        """Write a file into the folder, or one below it that is made, and return its path."""
        path = self.path / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        return path


def _is_beginning(path: Path) -> bool:
    """Whether a process that was killed may have left this before there was a run."""
    if path.name in ("samples", "state"):
        return path.is_dir() and not any(path.iterdir())
    return path.name == ".lock" or (path.name.startswith(".config.yaml.") and path.suffix == ".tmp")


def _contiguous(model: Model) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _jsonable(tree: dict[str, Any]) -> dict[str, Any]:
    """Without tuples, and without what a column does not have."""
    columns = [{k: v for k, v in column.items() if v or k == "name"} for column in tree["columns"]]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in tree.items()} | {
        "columns": columns
    }


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _environment(data_dir: str | Path | None, device: torch.device) -> dict[str, Any]:
    packages = ("iresnet", "torch", "numpy", "accelerate", "safetensors")
    return {
        "data_dir": str(Path(data_dir).absolute()) if data_dir else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **{name: metadata.version(name) for name in packages},
    }
