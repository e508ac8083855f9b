"""Run folders: the files that a run writes, and the one reader of them. Imports no torch."""

__all__ = ["ANALYSES", "Contents", "Run", "config_text", "read_contents"]

import hashlib
import json
import math
import os
import platform
import shlex
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from packaging.version import InvalidVersion, Version
from safetensors import SafetensorError, safe_open

from iresnet.config import Config, from_dict, leaves, to_yaml
from iresnet.errors import RecipeError, RunError, UnknownNameError
from iresnet.files import finite_or_none, write_atomically, writing
from iresnet.inputs import Inputs
from iresnet.renamed import with_current_names

if TYPE_CHECKING:
    import torch

ANALYSES = ("logdet", "lipschitz", "inverse", "latent")
"""Measurements of ``iresnet analyze``, each in a file of this name."""

_COMMANDS = {
    "evaluation.json": "evaluate",
    "certificate.json": "certify",
    "reconstruction.json": "reconstruct",
    "interpolation.json": "interpolate",
    "samples/samples.json": "sample",
    "training-scores.json": "score",
    **{f"analysis/{name}.json": f"analyze {name}" for name in ANALYSES},
}
"""Files of results, and the command that writes each."""

_REMEDIES = {
    "config.yaml": "restore it, or train again",
    "env.json": "it is written when a run begins",
    "cost.json": "it is written by training",
}
"""Advice on other files that are damaged."""


class Run:
    """Run folder.

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
        device: "torch.device | None" = None,
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
        """Check that a run folder can be made there; nothing is written.

        Raises:
            RunError: when there is a run already, or anything else.
        """
        run = cls(path)
        if run.config_file.exists():
            raise RunError(f"{path} holds a run already; continue it with --resume, or choose another --out")
        if run.path.is_dir() and any(not _precedes_a_run(entry) for entry in run.path.iterdir()):
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

    def command(self, name: str) -> str:
        """Return the command line that runs a command, such as ``evaluate``, on this run."""
        return f"iresnet {name} {shlex.quote(str(self.path))}"

    @property
    def resume_command(self) -> str:
        """Command line that continues the training."""
        return f"iresnet train --out {shlex.quote(str(self.path))} --resume"

    # -- reading -------------------------------------------------------------------------------------------------------

    def read_config(self) -> tuple[Config, Inputs]:
        """Read the configuration, and what the model knows of its data.

        Raises:
            RunError: when it is damaged, or has settings that this version does not know.
        """
        tree, problem = self.read_tree("config.yaml")
        if problem:
            raise RunError(f"{self.path}/{problem}")
        try:
            inputs = from_dict(Inputs, tree.pop("inputs"), "inputs.")
            return from_dict(Config, tree), inputs
        except (LookupError, AttributeError, TypeError) as error:
            raise RunError(f"{self.config_file} is damaged; {_REMEDIES['config.yaml']}") from error
        except (RecipeError, UnknownNameError) as error:
            raise RunError(f"{self.config_file}: {error}") from error

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the folder; empty when it is missing or damaged."""
        return self.read_tree(name)[0]

    def read_tree(self, name: str) -> tuple[dict[str, Any], str]:
        """Read a JSON or YAML file of the folder as far as it can be read.

        Returns:
            Its content, empty when it is missing or damaged; and one line about what is wrong with it, empty when
            nothing is.
        """
        text, problem = self._read_text(name)
        if text is None:
            return {}, problem
        try:
            tree = yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            tree = None
        tree = with_current_names(tree) if isinstance(tree, dict) else {}
        # nothing is written without content, and the inputs stand at the end of a configuration
        complete = isinstance(tree.get("inputs"), dict) if name == "config.yaml" else bool(tree)
        remedy = _REMEDIES.get(name) or f"write it again with: {self.command(_COMMANDS.get(name, 'train'))}"
        return tree, "" if complete else f"{name} is damaged; {remedy}"

    def read_metrics(self) -> tuple[list[dict[str, Any]], str]:
        """Read the lines of ``metrics.jsonl``, and one line about those that are damaged, empty when none are."""
        text, problem = self._read_text(self.metrics_file.name)
        lines, damaged = [], 0
        for line in (text or "").splitlines():
            try:
                tree = json.loads(line)
            except (ValueError, RecursionError):
                tree = None
            if isinstance(tree, dict):
                lines.append(tree)
            elif line.strip():
                damaged += 1
        if damaged:
            count = "1 line" if damaged == 1 else f"{damaged} lines"
            problem = f"{count} of {self.metrics_file.name} cannot be read, and left out"
        return lines, problem

    def _read_text(self, name: str) -> tuple[str | None, str]:
        """Return the text of a file, None when it cannot be read; and why, empty when it is just not there."""
        try:
            return (self.path / name).read_text(encoding="utf-8"), ""
        except (FileNotFoundError, NotADirectoryError):
            return None, ""
        except UnicodeError:
            return None, f"{name} is damaged: it is no text"
        except OSError as error:
            return None, f"{name} cannot be read: {error.strerror}"

    @property
    def data_dir(self) -> str | None:
        """Folder in which the data was looked for first when the run was made, None when it is not known."""
        folder = self.read_json("env.json").get("data_dir")
        return folder if isinstance(folder, str) else None

    def check_version(self) -> None:
        """Refuse a run that a newer version of iresnet made.

        Raises:
            RunError: names both versions.
        """
        made_by, this = str(self.read_json("env.json").get("iresnet")), metadata.version("iresnet")
        with suppress(InvalidVersion):
            if Version(made_by) > Version(this):
                raise RunError(f"{self.path} was made by iresnet {made_by}, this is {this}: install the newer version")

    def weight_shapes(self) -> dict[str, list[int]] | None:
        """Read the shapes of the saved tensors; None when the file is missing or damaged."""
        try:
            with safe_open(self.model_file, "np") as file:
                return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no dictionary)
        except (OSError, SafetensorError):
            return None

    @property
    def has_model(self) -> bool:
        """True when the weights are there, and not damaged."""
        return self.weight_shapes() is not None

    def weights_sha256(self) -> str:
        """Return the checksum of the weights, which results keep to tell whether they are still of them.

        Empty when there are none.
        """
        try:
            with self.model_file.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return ""

    # -- writing -------------------------------------------------------------------------------------------------------

    def write_config(self, config: Config, inputs: Inputs) -> None:
        """Write the configuration, and what the model knows of its data."""
        write_atomically(self.config_file, config_text(config, inputs))

    def write_environment(self, data_dir: str | Path | None, device: "torch.device | None") -> None:
        """Note where the data came from, and on what the run began, unless that is known."""
        if not self.read_json("env.json"):
            self.write_json("env.json", _environment(data_dir, device))

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

    def flush_metrics(self) -> int:
        """Flush ``metrics.jsonl`` to the disk, and return its size in bytes."""
        with writing(self.metrics_file), self.metrics_file.open("rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def remove_leftovers(self) -> None:
        """Remove the halves of files that a killed process left; only for the process that writes the run."""
        for path in self.path.glob(".*.tmp"):
            if path.name.startswith((".model.", ".config.", ".env.")):
                path.unlink(missing_ok=True)
        for path in self.state.glob(".*.tmp"):
            shutil.rmtree(path, ignore_errors=True)


def config_text(config: Config, inputs: Inputs) -> str:
    """Write ``config.yaml``: the recipe, and what the model knows of its data."""
    tree = asdict(inputs)
    # a column states its name, and whatever else it has
    tree["columns"] = [{k: v for k, v in column.items() if v or k == "name"} for column in tree["columns"]]
    return to_yaml(config) + yaml.safe_dump({"inputs": tree}, sort_keys=False)


def _precedes_a_run(path: Path) -> bool:
    """Check whether a process that was killed may have left this before there was a run."""
    if path.name in ("samples", "state"):
        return path.is_dir() and not any(path.iterdir())
    return path.name == ".lock" or (path.name.startswith(".config.yaml.") and path.suffix == ".tmp")


def _environment(data_dir: str | Path | None, device: "torch.device | None") -> dict[str, Any]:
    import torch  # here: reading a run needs none

    packages = ("iresnet", "torch", "numpy", "accelerate", "safetensors")
    device = device or torch.device("cpu")
    return {
        "data_dir": str(Path(data_dir).absolute()) if data_dir else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **{name: metadata.version(name) for name in packages},
    }


# -- everything at once ------------------------------------------------------------------------------------------------


@dataclass
class Contents:
    """Contents of a run folder, as far as they can be read.

    Attributes:
        folder: the run folder.
        config: content of ``config.yaml``; this and all below are empty when missing or damaged.
        env: content of ``env.json``.
        cost: content of ``cost.json``.
        evaluation: content of ``evaluation.json``.
        certificate: content of ``certificate.json``.
        reconstruction: content of ``reconstruction.json``.
        interpolation: content of ``interpolation.json``.
        sampling: content of ``samples/samples.json``, how the samples were drawn.
        analyses: contents of ``analysis/NAME.json``.
        metrics: lines of ``metrics.jsonl``.
        problems: one line about each file that could not be read.
    """

    folder: Run
    config: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)
    reconstruction: dict[str, Any] = field(default_factory=dict)
    interpolation: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    analyses: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Dotted names and values of the configuration, without what the model knows of its data."""
        return dict(leaves({key: value for key, value in self.config.items() if key != "inputs"}))

    @property
    def kind(self) -> str:
        """``density``, ``classify`` or ``hybrid``, by the weights of the task."""
        if not self.settings.get("task.ce_weight"):
            return "density"
        return "hybrid" if self.settings.get("task.nll_weight") else "classify"

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape of the data, empty when it is not known."""
        inputs = self.config.get("inputs")
        shape = inputs.get("shape") if isinstance(inputs, dict) else None
        fits = isinstance(shape, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in shape)
        return tuple(shape) if isinstance(shape, list) and fits else ()

    @property
    def has_header(self) -> bool:
        """True when the data are a table with a header."""
        inputs = self.config.get("inputs")
        columns = inputs.get("columns") if isinstance(inputs, dict) else None
        return isinstance(columns, list) and any(isinstance(c, dict) and c.get("name") for c in columns)

    @cached_property
    def model_sha256(self) -> str:
        """Checksum of the weights, empty when there are none."""
        return self.folder.weights_sha256()

    def stale(self, results: dict[str, Any]) -> bool:
        """Check whether results are of other weights than the model has now."""
        return bool(self.model_sha256) and results.get("model_sha256") not in (None, self.model_sha256)

    @cached_property
    def n_weights(self) -> int | None:
        """Count of the saved numbers, buffers included; None when the file is missing or damaged."""
        shapes = self.folder.weight_shapes()
        return None if shapes is None else sum(map(math.prod, shapes.values()))


_FIELDS = {
    "config": "config.yaml",
    **{
        name: f"{name}.json" for name in ("env", "cost", "evaluation", "certificate", "reconstruction", "interpolation")
    },
    "sampling": "samples/samples.json",
}
"""Fields of :class:`Contents` that are files."""


def read_contents(path: str | Path) -> Contents:
    """Read everything in a run folder as far as it can be read; damage is listed, not raised.

    Raises:
        RunError: when it is no run folder.
    """
    run = Run.open(path)
    found = {name: run.read_tree(file) for name, file in _FIELDS.items()}
    analyses = {name: run.read_tree(f"analysis/{name}.json") for name in ANALYSES}
    metrics, damage = run.read_metrics()
    problems = [problem for _, problem in (*found.values(), *analyses.values())] + [damage]
    if run.model_file.exists() and not run.has_model:
        problems.append(f"{run.model_file.name} is damaged; write it again with: {run.resume_command}")
    trees = {name: tree for name, (tree, _) in found.items()}
    return Contents(
        run,
        **trees,
        analyses={name: tree for name, (tree, _) in analyses.items()},
        metrics=metrics,
        problems=[problem for problem in problems if problem],
    )
