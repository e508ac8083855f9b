"""Memory that a model takes, known before it is built, and memory that is free."""

__all__ = ["SAMPLE_BYTES", "check_room", "free_memory", "has_room", "parameter_bytes"]

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from iresnet import zoo
from iresnet.errors import RecipeError

SAMPLE_BYTES = 12
"""Bytes for each number of a sample, at least: its latent, itself, and the copy that is shown."""

_DEPTHS = (2, 3, 4)
"""Depths of blocks that are built, to extrapolate the bytes of deeper ones."""


def free_memory(device: torch.device) -> float:
    """Count the bytes that are free on a device: of a GPU its own, else those of the machine, or of the container.

    Example:
        >>> free_memory(torch.device("cpu")) > 2**20
        True
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_free_in_machine(), _free_in_container())


def _free_in_machine() -> int:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, LookupError, ValueError):  # not Linux: all that there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _free_in_container() -> float:
    group = Path("/sys/fs/cgroup")
    try:
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or one without a limit
        return math.inf


def has_room(needed: float, device: torch.device) -> bool:
    """Return whether so many bytes are free on a device.

    Example:
        >>> has_room(1, torch.device("cpu")), has_room(2.0**60, torch.device("cpu"))
        (True, False)
    """
    return needed <= free_memory(device)


def check_room(needed: float, device: torch.device, what: str, remedy: str) -> None:
    """Refuse what does not fit into the memory of a device.

    Args:
        needed: bytes, at least.
        device: the device.
        what: takes them, for the message.
        remedy: what to do, for the message.

    Raises:
        RecipeError: says how much is needed and how much there is.

    Example:
        >>> check_room(2.0**60, torch.device("cpu"), "it", "lower --model.hidden")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        iresnet.errors.RecipeError: it takes 1,073,741,824.0 GiB of memory, ... are free on cpu: lower --model.hidden
    """
    if has_room(needed, device):
        return
    size = f"{needed / 2**30:,.1f} GiB" if math.isfinite(needed) else "more GiB than can be counted"
    free = free_memory(device) / 2**30
    raise RecipeError(f"{what} takes {size} of memory, {free:,.1f} are free on {device}: {remedy}")


def parameter_bytes(name: str, shape: Sequence[int], options: dict[str, Any]) -> float:
    """Count the bytes of the parameters of an architecture, in float32, without building it.

    Its weights are made without values, on the meta device, and of each scale only two blocks at most: further ones
    are like the second. Nor are many layers of a block made: each is like the one before, or, where layers are
    concatenated, larger by the same amount, so that the bytes are quadratic in the depth.

    Args:
        name: a key of :data:`iresnet.architectures.ARCHITECTURES`.
        shape: event shape of the data.
        options: of the model; those of the architecture alone are looked at.

    Raises:
        IResNetError: when they do not fit the architecture or the shape.

    Example:
        >>> parameter_bytes("toy-mlp", (2,), {"blocks": 10**9, "hidden": 64}) // 10**9
        17944.0
    """
    parameters = zoo.options_of(zoo.ARCHITECTURES[name])
    further = options["depth"] - _DEPTHS[0] if isinstance(options.get("depth"), int) and "depth" in parameters else 0
    if further >= len(_DEPTHS):
        first, second, third = (parameter_bytes(name, shape, {**options, "depth": depth}) for depth in _DEPTHS)
        if not math.isfinite(third):
            return third
        return first + further * (second - first) + further * (further - 1) / 2 * (third - 2 * second + first)
    blocks = options.get("blocks", parameters["blocks"].default if "blocks" in parameters else None)
    cheap = {**options, "normalization": "aol", "n_power_steps": None}  # of no iterations
    cheap = {key: value for key, value in cheap.items() if key in parameters}
    counts = [blocks] if isinstance(blocks, int) else list(blocks) if isinstance(blocks, (list, tuple)) else []

    def size(few: list[int]) -> float:
        chosen = {"blocks": few[0] if isinstance(blocks, int) else few} if counts else {}
        return _meta_bytes(name, shape, {**cheap, **chosen})

    if not all(isinstance(n, int) for n in counts):
        return size(counts)  # which refuses it
    total = first = size([min(n, 1) for n in counts])
    for i, n in enumerate(counts):
        if n > 1 and math.isfinite(first):
            total += (n - 1) * (size([2 if j == i else min(m, 1) for j, m in enumerate(counts)]) - first)
    return total


def _meta_bytes(name: str, shape: Sequence[int], options: dict[str, Any]) -> float:
    try:
        with torch.device("meta"):
            network = zoo.ARCHITECTURES[name](tuple(shape), **options)
    except RuntimeError as error:
        if "verflow" not in str(error):  # of the count itself
            raise
        return math.inf
    return float(sum(p.numel() for p in network.parameters()) * 4)
