"""Count the work of a training step, and predict what a run would take on other devices."""

__all__ = [
    "Count",
    "DEVICES",
    "Device",
    "Prediction",
    "StepCounts",
    "Workload",
    "count",
    "duration",
    "exchanged_bytes",
    "predict",
    "table",
]

import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# -- counting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """What some work does.

    Attributes:
        flops: operations of matrix products and convolutions, by the formulas of torch's counter.
        bytes: read and written, when every kernel reads its inputs and writes its outputs once.
        kernels: launched; views are none.
        in_use: bytes of the tensors that were made and are still in use, after each kernel.
    """

    flops: int
    bytes: int
    kernels: int
    in_use: tuple[int, ...]

    @property
    def memory(self) -> int:
        """The most bytes that the tensors made have at any time; what was there before is not among them."""
        return max(self.in_use, default=0)


def count(run: Callable[[], Any]) -> Count:
    """Do some work and count it; takes about twice its time.

    Args:
        run: the work, uncompiled.

    Example:
        >>> import torch
        >>> a, b = torch.ones(2, 3), torch.ones(3, 4)
        >>> counted = count(lambda: a @ b)
        >>> counted.flops, counted.bytes, counted.kernels, counted.memory
        (48, 104, 1, 32)
    """
    with _Counter() as counter:
        run()
    return Count(counter.flops, counter.bytes, len(counter.in_use), tuple(counter.in_use))


class _Counter(TorchDispatchMode):
    """Sees every operation, those of the backward pass too."""

    def __init__(self):
        super().__init__()
        self.flops = self.bytes = 0
        self.in_use: list[int] = []
        self._sizes: dict[int, int] = {}  # of the storages made that are in use
        self._total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view:
            return out
        formula = flop_registry.get(func._overloadpacket)
        if formula:
            self.flops += formula(*args, **kwargs, out_val=out)
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        self.bytes += sum(_size(tensor) for tensor in inputs + outputs)
        self._keep_account(inputs, outputs)
        return out

    def _keep_account(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        # An operation in place returns what was there before.
        known = {tensor.untyped_storage()._cdata for tensor in inputs}
        for storage in [tensor.untyped_storage() for tensor in outputs]:
            key = storage._cdata
            if key not in known and key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self._total += storage.nbytes()
                weakref.finalize(storage, self._release, key).atexit = False
        self.in_use.append(self._total)

    def _release(self, key: int) -> None:
        self._total -= self._sizes.pop(key)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor in memory; those of an expanded one are fewer than its elements."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@dataclass(frozen=True)
class StepCounts:
    """Counts of one step on two batches, from which those on any batch follow: all of them are linear in the examples.

    Attributes:
        sizes: examples of the two batches.
        small: counted on the first.
        large: counted on the second.
    """

    sizes: tuple[int, int]
    small: Count
    large: Count

    def at(self, n: int) -> Count:
        """The count of a step on n examples.

        Exact, the memory too, when both batches met the same kernels: what is in use after each of them is linear, and
        the most of it need not be. Steps of random length (Russian roulette) are told roughly: each is one of many.
        """
        a, b = self.small, self.large
        same = len(a.in_use) == len(b.in_use)
        pairs = zip(a.in_use, b.in_use, strict=True) if same else [(a.memory, b.memory)]
        return Count(
            self._line(a.flops, b.flops, n),
            self._line(a.bytes, b.bytes, n),
            self._line(a.kernels, b.kernels, n),
            tuple(self._line(*pair, n) for pair in pairs),
        )

    def _line(self, small: int, large: int, n: int) -> int:
        first, second = self.sizes
        return small + (n - first) * max(0, large - small) // (second - first)


# -- predicting --------------------------------------------------------------------------------------------------------


EFFICIENCY = 0.5
"""The one assumption about kernels and links: they sustain half of the published peak rates."""

LAUNCH = 21e-6
"""Seconds of the host for an operation launched from Python, autograd included: as measured, see docs/scaling.md."""

FLOOR = 2.8e-6
"""Seconds of the device for an operation however small, as measured beside a GPU's peak rates, see docs/scaling.md."""

BACKWARD = 0.5
"""Share of a step behind which gradients travel, being ready one by one: the backward pass."""

BUCKET = 25 * 2**20
"""Bytes of gradients that ``DistributedDataParallel`` exchanges at once."""


@dataclass(frozen=True)
class Device:
    """A kind of device, and how many of them are connected. Rates are peaks, in units a second.

    Attributes:
        flops: dense operations, by precision of the recipe.
        bandwidth: bytes to and from its memory.
        memory: bytes that it has.
        link: bytes to the devices of the same machine, in one direction.
        network: bytes to other machines, for each device, in one direction.
        link_latency: seconds of a message within the machine.
        network_latency: seconds of a message between machines.
        per_machine: devices of a machine.
        efficiency: share of all peak rates that is sustained.
        launch: seconds of the host for a kernel.
        floor: seconds of the device for a kernel, besides what its rates give.
        asynchronous: whether the host launches kernels while others run; it does not where they run on it.
    """

    flops: dict[str, float]
    bandwidth: float
    memory: float = math.inf
    link: float = 0.0
    network: float = 0.0
    link_latency: float = 3.4e-6
    network_latency: float = 14e-6
    per_machine: int = 8
    efficiency: float = EFFICIENCY
    launch: float = LAUNCH
    floor: float = FLOOR
    asynchronous: bool = True

    def seconds(self, count: Count, precision: str = "float32") -> float:
        """Time of counted work: the longer one of :meth:`run_seconds` and :meth:`launch_seconds`, or both in turns."""
        times = self.run_seconds(count, precision), self.launch_seconds(count)
        return max(times) if self.asynchronous else sum(times)

    def run_seconds(self, count: Count, precision: str = "float32") -> float:
        r"""Time of K kernels, :math:`F / (e \hat{F}) + B / (e \hat{B}) + K t_0` for F operations and B bytes."""
        work = count.flops / self.flops[precision] + count.bytes / self.bandwidth
        return work / self.efficiency + count.kernels * self.floor

    def launch_seconds(self, count: Count) -> float:
        """Time that the host takes to launch all kernels."""
        return count.kernels * self.launch

    def exchange_seconds(self, sent: float, n: int) -> float:
        """Time in which each of n devices sends so many bytes around a ring, whose slowest link all wait for."""
        local = n <= self.per_machine
        rate, latency = (self.link, self.link_latency) if local else (self.network, self.network_latency)
        messages = 2 * (n - 1) * -(-sent // BUCKET)
        return sent / (self.efficiency * rate) + messages * latency if n > 1 else 0.0


DEVICES: dict[str, Device] = {
    "a100": Device(
        flops={"float32": 19.5e12, "tf32": 156e12, "bf16": 312e12, "fp16": 312e12},
        bandwidth=2.039e12,
        memory=80e9,
        link=300e9,
        network=25e9,
    ),
    "h100": Device(
        flops={"float32": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12, "fp16": 989.4e12},
        bandwidth=3.35e12,
        memory=80e9,
        link=450e9,
        network=50e9,
    ),
    "h200": Device(
        flops={"float32": 66.9e12, "tf32": 494.7e12, "bf16": 989.4e12, "fp16": 989.4e12},
        bandwidth=4.8e12,
        memory=141e9,
        link=450e9,
        network=50e9,
    ),
}
"""By name.

References:
    NVIDIA A100 Tensor Core GPU, data sheet 2021 (SXM, 80 GB), and DGX A100, data sheet (200 Gb/s for each),
    https://www.nvidia.com/en-us/data-center/a100; NVIDIA H100 Tensor Core GPU, data sheet 2022 (SXM, dense rates: half
    of those with sparsity), and DGX H100, data sheet (400 Gb/s), https://www.nvidia.com/en-us/data-center/h100; NVIDIA
    H200 Tensor Core GPU, data sheet 2023 (SXM, 141 GB), https://www.nvidia.com/en-us/data-center/h200;
    latencies of rings: NCCL, src/graph/tuning.cc, https://github.com/NVIDIA/nccl
"""


@dataclass(frozen=True)
class Workload:
    """A training run, in numbers that do not depend on where it runs.

    Attributes:
        counts: of its step, in terms of the examples.
        batch_size: examples of a step, on all devices together.
        n_steps: of the run.
        parameters: numbers that are trained, float32.
        resident_bytes: weights, buffers, optimizer state and training data, of which every device has a copy.
        precision: of the recipe.
    """

    counts: StepCounts
    batch_size: int
    n_steps: int
    parameters: int
    resident_bytes: int
    precision: str


@dataclass(frozen=True)
class Prediction:
    """What a run would take; a prediction and not a measurement.

    Attributes:
        device: name of the device.
        n: how many of them.
        memory: bytes of the tensors of each device at their most.
        fits: whether the device has as many.
        exchanged: bytes that each device sends in a step.
        kernel_seconds: time of the kernels of a step.
        launch_seconds: time of the host to launch them.
        exchange_seconds: time to wait for others.
        step_seconds: time of a step: the longer of the first two, and the third.
        total_seconds: time of all steps.
    """

    device: str
    n: int
    memory: int
    fits: bool
    exchanged: int
    kernel_seconds: float
    launch_seconds: float
    exchange_seconds: float
    step_seconds: float
    total_seconds: float


def exchanged_bytes(parameters: int, n: int) -> int:
    r"""Bytes of gradients that each of n devices sends around a ring: :math:`2 (n - 1) / n * 4 P` for P parameters."""
    return 2 * (n - 1) * 4 * parameters // n


def predict(workload: Workload, device: str, n: int) -> Prediction:
    """Predict what a run would take on n devices that share its batches.

    The exchange of gradients hides behind the backward pass, all but its last bucket; sealing, validation and pictures
    at snapshots are not counted.

    Args:
        workload: the run.
        device: a name in :data:`DEVICES`.
        n: how many of them.
    """
    kind, sent = DEVICES[device], exchanged_bytes(workload.parameters, n)
    count = workload.counts.at(workload.batch_size // n)
    compute, exchange = kind.seconds(count, workload.precision), kind.exchange_seconds(sent, n)
    last = exchange / max(1, -(-sent // BUCKET))
    waiting = max(last, exchange - BACKWARD * compute)
    buckets = 4 * workload.parameters if n > 1 else 0
    memory = workload.resident_bytes + count.memory + buckets
    return Prediction(
        device=device,
        n=n,
        memory=memory,
        fits=memory <= kind.memory,
        exchanged=sent,
        kernel_seconds=kind.run_seconds(count, workload.precision),
        launch_seconds=kind.launch_seconds(count),
        exchange_seconds=waiting,
        step_seconds=compute + waiting,
        total_seconds=(compute + waiting) * workload.n_steps,
    )


def table(predictions: Iterable[Prediction]) -> str:
    """Lines of text, one for each prediction, under a line of headings: times are those of a step."""
    headings = ("devices", "memory each", "kernels", "launching", "waiting", "step", "sent by each", "full run")
    rows = [headings, *(_cells(prediction) for prediction in predictions)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cells(p: Prediction) -> tuple[str, ...]:
    times = (p.kernel_seconds, p.launch_seconds, p.exchange_seconds, p.step_seconds)
    return (
        f"{p.n} {p.device}",
        f"{p.memory / 2**30:.2f} GiB{'' if p.fits else ', too much'}",
        *(f"{1000 * seconds:.1f} ms" for seconds in times),
        f"{p.exchanged / 1e6:.1f} MB",
        duration(p.total_seconds),
    )


def duration(seconds: float) -> str:
    """A time in the unit in which it reads well."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
