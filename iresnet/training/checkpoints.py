"""Checkpoints: states from which a run continues, each a folder that is written completely or not at all."""

__all__ = [
    "Checkpoint",
    "FORMAT",
    "checkpoint_folders",
    "deserialize",
    "read_checkpoint",
    "serialize",
    "write_checkpoint",
]

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from iresnet.errors import RunError, RunWarning
from iresnet.files import remove_folder, write_folder_atomically
from iresnet.renamed import with_current_names
from iresnet.runs import Run

# -- nested containers of tensors as JSON ------------------------------------------------------------------------------


_TYPE = "$"
"""Key of the JSON objects that stand for a type that JSON lacks."""


def serialize(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Convert nested containers to JSON, with the tensors aside.

    Args:
        value: dictionaries, lists and tuples of tensors, numbers, strings, booleans and None.
        tensors: receives the tensors by their path in the containers: contiguous copies on the CPU.
        path: of the value in the outermost container.

    Raises:
        TypeError: for any other object.

    Example:
        >>> tensors = {}
        >>> serialized = serialize({"state": {0: torch.ones(2)}, "betas": (0.9, 0.99)}, tensors)
        >>> list(tensors), deserialize(serialized, tensors)
        (['state/0'], {'state': {0: tensor([1., 1.])}, 'betas': (0.9, 0.99)})
    """
    match value:
        case Tensor():
            # Dimensions in the order of memory, so that a channels-last tensor is one again when it is read: what is
            # computed from it may differ in the last bit with the layout.
            order = sorted(range(value.dim()), key=value.stride, reverse=True)
            ordered = value.detach().permute(order)
            contiguous = torch.empty_like(ordered, device="cpu", memory_format=torch.contiguous_format)
            tensors[path] = contiguous.copy_(ordered)
            return {_TYPE: "tensor", "name": path, "order": order}
        case dict():
            items = [[key, serialize(entry, tensors, f"{path}/{key}".lstrip("/"))] for key, entry in value.items()]
            plain = all(isinstance(key, str) and key != _TYPE for key in value)
            return dict(items) if plain else {_TYPE: "dict", "items": items}
        case list():
            return [serialize(entry, tensors, f"{path}/{i}".lstrip("/")) for i, entry in enumerate(value)]
        case tuple():
            return {_TYPE: "tuple", "items": serialize(list(value), tensors, path)}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"'{path}' is a {type(value).__name__}; a checkpoint holds tensors, numbers and containers of them")


def deserialize(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Reverse :func:`serialize`.

    Raises:
        LookupError, TypeError, ValueError: when the value was not serialized so.
    """
    match value:
        case {"$": "tensor", "name": name, "order": order}:
            return tensors[name].permute([order.index(i) for i in range(len(order))])
        case {"$": "dict", "items": items}:
            return {key: deserialize(entry, tensors) for key, entry in items}
        case {"$": "tuple", "items": items}:
            return tuple(deserialize(entry, tensors) for entry in items)
        case dict():
            return {key: deserialize(entry, tensors) for key, entry in value.items()}
        case list():
            return [deserialize(entry, tensors) for entry in value]
    return value


# -- checkpoints -------------------------------------------------------------------------------------------------------


FORMAT = 1
"""Version of the layout; a higher one was written by a newer iresnet."""

_MANIFEST, _STATE = "manifest.json", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """State of a training between two steps: containers of tensors and plain values.

    Attributes:
        step: steps done.
        model: state of the model, unsealed.
        optimizer: state of the optimizer.
        average: state of the averaged weights, None without them.
        scaler: state of the loss scaler of fp16, None without one.
        random: states of the random generators of each process.
        window: metrics of the last steps that are not in ``metrics.jsonl`` yet.
        metrics_size: bytes of ``metrics.jsonl`` that belong to the steps done.
        best: the best snapshot so far.
        skipped: counts of the steps that were skipped.
        world_size: processes over which the state is sharded, None when it is the full state.
    """

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    average: dict[str, Any] | None
    scaler: dict[str, Any] | None
    random: list[dict[str, Any]]
    window: list[dict[str, Tensor]]
    metrics_size: int
    best: dict[str, Any]
    skipped: dict[str, int]
    world_size: int | None = None


def write_checkpoint(run: Run, checkpoint: Checkpoint, *, keep: int, also: int | None = None) -> Path:
    """Write ``state/step-XXXXXXXX``: tensors as safetensors, the rest as JSON, and a manifest with checksums.

    Args:
        run: the run folder.
        checkpoint: what to write.
        keep: how many of the last checkpoints stay, this one included; older ones are removed afterwards.
        also: step whose checkpoint stays as well.

    Returns:
        The folder of the checkpoint.

    Raises:
        RunError: when it cannot be written; the older ones are then all there.
    """
    files = _files(checkpoint)
    manifest = {name: _sha256(content) for name, content in files.items()}
    folder = run.state / f"step-{checkpoint.step:08d}"
    write_folder_atomically(folder, {**files, _MANIFEST: json.dumps(manifest, indent=1).encode()})
    steps = {_step_of(folder): folder for folder in checkpoint_folders(run)}
    last = [step for step in steps if step <= checkpoint.step][-keep:]
    for step in steps.keys() - {*last, also}:  # damaged ones of steps that are still to come too
        remove_folder(steps[step])
    return folder


def read_checkpoint(run: Run, step: int | None = None, *, world_size: int | None = None) -> Checkpoint | None:
    """Read the newest sound checkpoint. Nothing is unpickled: a file can be wrong, it cannot do anything.

    Args:
        run: the run folder.
        step: read the checkpoint of this step alone.
        world_size: processes of the run that continues.

    Returns:
        The checkpoint; none when the run was stopped before the first one.

    Raises:
        RunError: when no checkpoint is sound or the one that is asked for is not there, or the newest was written by a
            newer version, or is sharded over another number of processes.

    Warns:
        RunWarning: names each damaged checkpoint that is passed over.
    """
    folders = [f for f in reversed(checkpoint_folders(run)) if step is None or _step_of(f) == step]
    if not folders and step is not None:
        raise RunError(f"{run.path} has no checkpoint of step {step}")
    if not folders:
        _check_fresh(run)
        return None
    damaged = []
    for folder in folders:
        try:
            return _read(folder, world_size)
        except _Damage as damage:
            damaged.append(str(damage))
            if len(damaged) < len(folders):
                warnings.warn(f"{damage}; the checkpoint before it is used", RunWarning, stacklevel=2)
    if step is not None:
        raise RunError(damaged[0])
    raise RunError(f"no checkpoint of {run.path} is sound ({'; '.join(damaged)}); remove the folder and start again")


def checkpoint_folders(run: Run) -> list[Path]:
    """List the folders of all checkpoints, oldest first, sound or damaged."""
    folders = (path for path in run.state.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))
    return sorted(folders, key=_step_of)


# -- one folder --------------------------------------------------------------------------------------------------------


class _Damage(Exception):  # noqa: N818 (what was found)
    """Damaged checkpoint; the message says what is wrong with it."""


def _files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return file contents by name: a safetensors file for each field with tensors, and one JSON file."""
    files, state = {}, {}
    for field in fields(checkpoint):
        tensors: dict[str, Tensor] = {}
        state[field.name] = serialize(getattr(checkpoint, field.name), tensors)
        if tensors:
            files[f"{field.name}.safetensors"] = save(tensors)
    content = {"format": FORMAT, "iresnet": metadata.version("iresnet"), "state": state}
    return {**files, _STATE: json.dumps(content).encode()}


def _read(folder: Path, world_size: int | None) -> Checkpoint:
    files = _verified(folder)
    try:
        content = json.loads(files.pop(_STATE))
        newer = content["iresnet"] if content["format"] > FORMAT else None
        if newer is None:
            tensors = {name.removesuffix(".safetensors"): load(data) for name, data in files.items()}
            state = {name: deserialize(value, tensors.get(name, {})) for name, value in content["state"].items()}
            checkpoint = Checkpoint(**with_current_names(state))
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise _Damage(f"{folder} is damaged: it does not hold a checkpoint") from error
    if newer is not None:
        this = metadata.version("iresnet")
        raise RunError(f"{folder} was written by iresnet {newer}, this is {this}: install the newer version")
    saved = checkpoint.world_size
    if None not in (saved, world_size) and saved != world_size:
        raise RunError(
            f"{folder} is sharded over {saved} processes, this run has {world_size}: continue with "
            f"torchrun --nproc_per_node={saved} (times the nodes)"
        )
    return checkpoint


def _verified(folder: Path) -> dict[str, bytes]:
    """Read the files of a checkpoint, and check them against its manifest."""
    try:
        manifest = dict(json.loads((folder / _MANIFEST).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise _Damage(f"{folder} is damaged: its {_MANIFEST} cannot be read") from error
    files = {}
    for name in {*manifest, _STATE, *(path.name for path in folder.iterdir())} - {_MANIFEST}:
        if name not in manifest:
            raise _Damage(f"{folder} is damaged: {name} does not belong into it")
        try:
            files[name] = (folder / name).read_bytes()
        except (OSError, ValueError) as error:
            raise _Damage(f"{folder} is damaged: {name} cannot be read") from error
        if _sha256(files[name]) != manifest[name]:
            raise _Damage(f"{folder} is damaged: {name} is not what was written (SHA-256)")
    return files


def _check_fresh(run: Run) -> None:
    """Refuse a run whose checkpoints were removed; without any it was stopped before the first one."""
    if (run.state / "checkpoint.pt").exists():
        raise RunError(
            f"{run.state / 'checkpoint.pt'} is a pickle, which could run any code: it is not read; remove the folder "
            "and start again"
        )
    if not run.state.is_dir():
        raise RunError(f"{run.path} has no checkpoint to resume from; remove the folder and start again")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
