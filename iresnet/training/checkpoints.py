"""Checkpoints: the states from which a run continues, each a folder that is there whole or not at all."""

__all__ = [
    "Checkpoint",
    "FORMAT",
    "checkpoint_folders",
    "pack",
    "read_checkpoint",
    "unpack",
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

# -- nested containers as JSON -----------------------------------------------------------------------------------------


_KIND = "$"
"""Key of the JSON objects that stand for something that JSON does not have."""


def pack(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Turn nested containers into what JSON can hold.

    Args:
        tree: dictionaries, lists and tuples of tensors, numbers, strings, booleans and None.
        tensors: receives the tensors, by their path in the tree: copies on the CPU, contiguous.
        path: of the tree in a larger one.

    Raises:
        TypeError: for any other object.

    Example:
        >>> tensors = {}
        >>> packed = pack({"state": {0: torch.ones(2)}, "betas": (0.9, 0.99)}, tensors)
        >>> list(tensors), unpack(packed, tensors)
        (['state/0'], {'state': {0: tensor([1., 1.])}, 'betas': (0.9, 0.99)})
    """
    match tree:
        case Tensor():
            return _pack_tensor(tree, tensors, path)
        case dict():
            items = [[key, pack(value, tensors, f"{path}/{key}".lstrip("/"))] for key, value in tree.items()]
            plain = all(isinstance(key, str) and key != _KIND for key in tree)
            return dict(items) if plain else {_KIND: "dict", "items": items}
        case list():
            return [pack(value, tensors, f"{path}/{i}".lstrip("/")) for i, value in enumerate(tree)]
        case tuple():
            return {_KIND: "tuple", "items": pack(list(tree), tensors, path)}
        case None | bool() | int() | float() | str():
            return tree
    raise TypeError(f"'{path}' is a {type(tree).__name__}; a checkpoint holds tensors, numbers and containers of them")


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Turn back what :func:`pack` gave.

    Raises:
        LookupError, TypeError, ValueError: when it is not that.
    """
    match tree:
        case {"$": "tensor", "name": name, "order": order}:
            return tensors[name].permute([order.index(i) for i in range(len(order))])
        case {"$": "dict", "items": items}:
            return {key: unpack(value, tensors) for key, value in items}
        case {"$": "tuple", "items": items}:
            return tuple(unpack(value, tensors) for value in items)
        case dict():
            return {key: unpack(value, tensors) for key, value in tree.items()}
        case list():
            return [unpack(value, tensors) for value in tree]
    return tree


def _pack_tensor(tensor: Tensor, tensors: dict[str, Tensor], path: str) -> Any:
    # Dimensions in the order of memory, so that a channels-last tensor is one again when it is read: what is computed
    # from it may differ in the last bit with the layout.
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    in_order = tensor.detach().permute(order)
    tensors[path] = torch.empty_like(in_order, device="cpu", memory_format=torch.contiguous_format).copy_(in_order)
    return {_KIND: "tensor", "name": path, "order": order}


# -- checkpoints -------------------------------------------------------------------------------------------------------


FORMAT = 1
"""Number of this layout; one that is higher was written by a newer version."""

_MANIFEST, _STATE = "manifest.json", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """State between two steps: containers of tensors and plain values.

    Attributes:
        step: steps done.
        model: state of the model, unsealed.
        optimizer: state of the optimizer.
        average: state of the averaged weights, none without them.
        scaler: state of the scale of the loss in fp16, none without one.
        random: states of the random generators, one of each process.
        window: metrics of the last steps that are not in ``metrics.jsonl`` yet.
        metrics_size: bytes of ``metrics.jsonl`` that belong to the steps done.
        best: the best snapshot so far.
        skipped: counts of the steps that were skipped.
        world_size: of how many processes this is one's shard; none when it is the state of all.
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
        keep: how many of the last checkpoints stay, this one included; older ones are removed when it is safe.
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
    _prune(run, checkpoint.step, keep, also)
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
            newer version or by another number of processes, each of which wrote a part of it.

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
    """The folders of all checkpoints, oldest first, sound or not."""
    folders = (path for path in run.state.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))
    return sorted(folders, key=_step_of)


# -- one folder ------------------------------------------------------------------------------------------------------


class _Damage(Exception):  # noqa: N818 (what was found)
    """What is wrong with a checkpoint."""


def _files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Contents by name: one safetensors file for each part with tensors, and one JSON file."""
    files, state = {}, {}
    for field in fields(checkpoint):
        tensors: dict[str, Tensor] = {}
        state[field.name] = pack(getattr(checkpoint, field.name), tensors)
        if tensors:
            files[f"{field.name}.safetensors"] = save(tensors)
    tree = {"format": FORMAT, "iresnet": metadata.version("iresnet"), "state": state}
    return {**files, _STATE: json.dumps(tree).encode()}


def _read(folder: Path, world_size: int | None) -> Checkpoint:
    files = _verified(folder)
    try:
        tree = json.loads(files.pop(_STATE))
        newer = tree["iresnet"] if tree["format"] > FORMAT else None
        if newer is None:
            tensors = {name.removesuffix(".safetensors"): load(content) for name, content in files.items()}
            state = {part: unpack(packed, tensors.get(part, {})) for part, packed in tree["state"].items()}
            checkpoint = Checkpoint(**with_current_names(state))
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise _Damage(f"{folder} is damaged: it does not hold a checkpoint") from error
    if newer is not None:
        this = metadata.version("iresnet")
        raise RunError(f"{folder} was written by iresnet {newer}, this is {this}: install the newer version")
    _check_world_size(folder, checkpoint.world_size, world_size)
    return checkpoint


def _verified(folder: Path) -> dict[str, bytes]:
    """Contents of the files of a checkpoint, if they are what its manifest says."""
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


def _check_world_size(folder: Path, saved: int | None, world_size: int | None) -> None:
    if None not in (saved, world_size) and saved != world_size:
        raise RunError(
            f"{folder} is sharded over {saved} processes, this run has {world_size}: continue with "
            f"torchrun --nproc_per_node={saved} (times the nodes)"
        )


def _check_fresh(run: Run) -> None:
    """A run without checkpoints is one that was stopped early, unless they were taken away."""
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


def _prune(run: Run, step: int, keep: int, also: int | None) -> None:
    """Remove the checkpoints before the last ones, and damaged ones of steps that are still to come."""
    steps = {_step_of(folder): folder for folder in checkpoint_folders(run)}
    last = [s for s in steps if s <= step][-keep:]
    for s in steps.keys() - {*last, also}:
        remove_folder(steps[s])
