"""Reads a run folder as far as it can be read, without torch; what cannot is told in one line."""

__all__ = ["ANALYSES", "RunFiles", "evenly", "read_run", "sublist", "subtree"]

import hashlib
import json
import math
import shlex
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from iresnet.config import leaves
from iresnet.errors import RunError
from iresnet.renamed import with_current_names

ANALYSES = ("logdet", "lipschitz", "inverse", "latent")
"""What ``iresnet analyze`` measures, each in a file of this name."""

T = TypeVar("T")

_LARGEST_HEADER = 100_000_000
"""Bytes of the header of a safetensors file, at most."""


@dataclass
class RunFiles:
    """What a run folder holds.

    Attributes:
        path: the folder, as it was given.
        config: tree of ``config.yaml``; this and all below are empty when missing or damaged.
        env: tree of ``env.json``.
        cost: tree of ``cost.json``.
        evaluation: tree of ``evaluation.json``.
        certificate: tree of ``certificate.json``.
        reconstruction: tree of ``reconstruction.json``.
        interpolation: tree of ``interpolation.json``.
        drawn: tree of ``samples/samples.json``, how the samples were drawn.
        analyses: trees of ``analysis/NAME.json``.
        metrics: lines of ``metrics.jsonl``.
        troubles: what could not be read.
    """

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)
    reconstruction: dict[str, Any] = field(default_factory=dict)
    interpolation: dict[str, Any] = field(default_factory=dict)
    drawn: dict[str, Any] = field(default_factory=dict)
    analyses: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    @property
    def samples(self) -> Path:
        """Where its pictures are."""
        return self.path / "samples"

    @property
    def model_file(self) -> Path:
        """Where its weights are."""
        return self.path / "model.safetensors"

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
    def named(self) -> bool:
        """Whether the data are a table with a header."""
        inputs = self.config.get("inputs")
        columns = inputs.get("columns") if isinstance(inputs, dict) else None
        return isinstance(columns, list) and any(isinstance(c, dict) and c.get("name") for c in columns)

    def command(self, name: str) -> str:
        """A command of the command line on this run."""
        return f"iresnet {name} {shlex.quote(str(self.path))}"

    @property
    def resume_command(self) -> str:
        """The command that continues the training."""
        return f"iresnet train --out {shlex.quote(str(self.path))} --resume"

    @cached_property
    def model_sha256(self) -> str:
        """Checksum of the weights, empty when there are none."""
        try:
            with self.model_file.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return ""

    def stale(self, tree: dict[str, Any]) -> bool:
        """Whether results are of other weights than the model has now."""
        return bool(self.model_sha256) and tree.get("model_sha256") not in (None, self.model_sha256)

    @cached_property
    def model_numbers(self) -> int | None:
        """How many numbers the weights are, with buffers, read from the header of the file."""
        try:
            tensors, _ = _header(self.model_file)
            return sum(math.prod(tensor["shape"]) for tensor in tensors)
        except _UNREADABLE:
            return None


def read_run(path: Path) -> RunFiles:
    """Read what is in a run folder.

    Args:
        path: the folder.

    Raises:
        RunError: when it is none.
    """
    if not (path / "config.yaml").is_file():
        raise RunError(f"{path} is not a run folder (no config.yaml in it); make one with: iresnet train RECIPE")
    run = RunFiles(path)
    run.config = _read_yaml(run, "config.yaml")
    run.env = _read_json(run, "env.json", "it is written when a run begins")
    run.cost = _read_json(run, "cost.json", "it is written by training")
    run.evaluation = _read_json(run, "evaluation.json", f"write it again with: {run.command('evaluate')}")
    run.certificate = _read_json(run, "certificate.json", f"write it again with: {run.command('certify')}")
    run.reconstruction = _read_json(run, "reconstruction.json", f"write it again with: {run.command('reconstruct')}")
    run.interpolation = _read_json(run, "interpolation.json", f"write it again with: {run.command('interpolate')}")
    run.drawn = _read_json(run, "samples/samples.json", f"write it again with: {run.command('sample')}")
    for name in ANALYSES:
        again = f"write it again with: {run.command(f'analyze {name}')}"
        run.analyses[name] = _read_json(run, f"analysis/{name}.json", again)
    run.metrics = list(_read_lines(run, "metrics.jsonl"))
    _check_model(run)
    return run


def subtree(tree: dict[str, Any], key: str) -> dict[str, Any]:
    """The dictionary under a key, empty when there is none."""
    value = tree.get(key)
    return value if isinstance(value, dict) else {}


def sublist(tree: dict[str, Any], key: str) -> list[Any]:
    """The list under a key, empty when there is none."""
    value = tree.get(key)
    return value if isinstance(value, list) else []


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of them, evenly spread, with the first and the last.

    Example:
        >>> evenly(range(9), 3)
        [0, 4, 8]
    """
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


_UNREADABLE = (OSError, struct.error, ValueError, LookupError, AttributeError, TypeError, RecursionError)
"""What reading the header of something else than weights raises."""


def _header(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The tensors of a safetensors file, and the size that the file should have."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(size, _LARGEST_HEADER)))
    tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
    return tensors, 8 + size + max((tensor["data_offsets"][1] for tensor in tensors), default=0)


def _check_model(run: RunFiles) -> None:
    """Tell weights that are not whole; it takes torch to tell more."""
    if not run.model_file.exists():
        return
    try:
        whole = _header(run.model_file)[1] == run.model_file.stat().st_size
    except _UNREADABLE:
        whole = False
    if not whole:
        run.troubles.append(f"{run.model_file.name} is damaged; write it again with: {run.resume_command}")


def _read_text(run: RunFiles, name: str) -> str | None:
    """The text of a file; None, and a trouble unless it is just not there, when it cannot be read."""
    try:
        return (run.path / name).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeError:
        run.troubles.append(f"{name} is damaged: it is no text")
    except OSError as error:
        run.troubles.append(f"{name} cannot be read: {error.strerror}")
    return None


def _read_yaml(run: RunFiles, name: str) -> dict[str, Any]:
    text = _read_text(run, name)
    try:
        tree = yaml.safe_load(text or "")
    except (yaml.YAMLError, ValueError, RecursionError):
        tree = None
    if text is not None and not (isinstance(tree, dict) and "inputs" in tree):  # they stand at its end
        run.troubles.append(f"{name} is damaged; restore it, or train again")
    return with_current_names(tree) if isinstance(tree, dict) else {}


def _read_json(run: RunFiles, name: str, advice: str) -> dict[str, Any]:
    text = _read_text(run, name)
    if text is None:
        return {}
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        tree = None
    if isinstance(tree, dict) and tree:  # nothing is written without content
        return with_current_names(tree)
    run.troubles.append(f"{name} is damaged; {advice}")
    return {}


def _read_lines(run: RunFiles, name: str) -> Iterator[dict[str, Any]]:
    text, damaged = _read_text(run, name), 0
    for line in (text or "").splitlines():
        try:
            tree = json.loads(line)
        except (ValueError, RecursionError):
            tree = None
        if isinstance(tree, dict):
            yield tree
        elif line.strip():
            damaged += 1
    if damaged:
        lines = "1 line" if damaged == 1 else f"{damaged} lines"
        run.troubles.append(f"{lines} of {name} cannot be read, and left out")
