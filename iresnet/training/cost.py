"""Cost model: count the work of a training step, and predict a run on other devices."""

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
from torch.utils.flop_counter import flop_registry

# -- counting ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """Operations, traffic, kernels and memory of some work.

    Attributes:
        flops: operations of matrix products and convolutions, by the formulas of torch's counter.
        bytes: read and written, if every kernel reads its inputs and writes its outputs once.
        kernels: launched, as a GPU does: none by views and allocations, one for each gradient of a convolution, and one
            for several tensors of a list.
        in_use: bytes of the tensors that were made and are still in use, after each kernel.
    """

    flops: int
    bytes: int
    kernels: int
    in_use: tuple[int, ...]

    @property
    def memory(self) -> int:
        """Most bytes in use at any time, without tensors that existed before."""
        return max(self.in_use, default=0)


def count(run: Callable[[], Any]) -> Count:
    """Run some work and count it, which takes about twice its time.

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
    return Count(counter.flops, counter.bytes, counter.kernels, tuple(counter.in_use))


class _Counter(TorchDispatchMode):
    """Dispatch mode that counts every operation, including those of the backward pass."""

    def __init__(self):
        super().__init__()
        self.flops = self.bytes = self.kernels = 0
        self.in_use: list[int] = []
        self._sizes: dict[int, int] = {}  # of the storages that were made and are in use
        self._total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.is_view:
            return out
        formula = flop_registry.get(func._overloadpacket)
        if formula:
            self.flops += formula(*args, **kwargs, out_val=out)
        inputs, outputs = _tensors((*args, *kwargs.values())), _tensors((out,))
        self.kernels += (kernels := _kernels(func, args))
        # An expanded tensor has more elements than its storage.
        if kernels:
            sizes = (min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in inputs + outputs)
            self.bytes += sum(sizes)
        self._track_memory(inputs, outputs)
        return out

    def _track_memory(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        # An operation in place returns a storage that existed before.
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


NO_KERNEL = (
    "empty",
    "new_empty",
    "_unsafe_view",
    "scalar_tensor",
    "promote_types",
    "result_type",
    "detach",
    "lift_fresh",
)
"""Beginnings of names of operations that allocate, view, or work on the host."""

LISTS = {1: 110, 2: 64, 3: 48, 4: 36}
"""Tensors of each list that a kernel takes, by the number of lists: ATen/native/cuda/MultiTensorApply.cuh of torch."""

CONCATENATED = 128
"""Tensors that a kernel puts together: ATen/native/cuda/Shape.cu of torch."""


def _kernels(func: Any, args: tuple) -> int:
    name, lists = func._schema.name.split("::")[1], [arg for arg in args if isinstance(arg, (list, tuple))]
    if name.startswith(NO_KERNEL):
        return 0
    if name.startswith("_foreach"):
        lists = [of for of in lists if isinstance(of[0], Tensor)]
        written = not name.rstrip("0123456789").endswith("_")  # to a further list
        return -(-len(lists[0]) // LISTS[min(4, len(lists) + written)])
    if name in ("cat", "stack"):
        return -(-len(args[0]) // CONCATENATED)
    if name == "convolution_backward":
        return sum(lists[-1])
    if name == "convolution":
        return 1 + (args[2] is not None)
    return 1


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors in arguments or results, which may be in lists: faster than torch's trees."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


@dataclass(frozen=True)
class StepCounts:
    """Counts of one step on two batches, from which those of any batch follow: all are linear in the examples.

    Attributes:
        sizes: examples of the two batches.
        small: count of the first.
        large: count of the second.
    """

    sizes: tuple[int, int]
    small: Count
    large: Count

    def at(self, n: int) -> Count:
        """Return the count of a step on n examples.

        It is exact, the memory too, when both batches launched the same kernels: the memory in use after each kernel
        is linear, its maximum need not be. Steps of random length (Russian roulette) are estimated from one draw.
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
"""Share of the published peak rates that kernels and links sustain: the one assumption."""

LAUNCH = 21e-6
"""Seconds of the host to launch an operation from Python, autograd included, as measured in docs/scaling.md."""

FLOOR = 2.8e-6
"""Seconds of the device for the smallest operation, as measured in docs/scaling.md."""

REPLAY = 0.3e-6
"""Seconds of the device between two kernels of a graph that it replays, as measured in docs/scaling.md."""

BACKWARD = 0.5
"""Share of the backward pass in a step, during which gradients are exchanged as they become ready."""

BUCKET = 25 * 2**20
"""Bytes of gradients that ``DistributedDataParallel`` exchanges at once."""


@dataclass(frozen=True)
class Device:
    """Type of device and its connections. Rates are peaks, in units a second.

    Attributes:
        flops: dense operations, by precision of the recipe.
        bandwidth: bytes to and from its memory.
        memory: its size in bytes.
        link: bytes to the devices of the same machine, in one direction.
        network: bytes to other machines, for each device, in one direction.
        link_latency: seconds of a message within the machine.
        network_latency: seconds of a message between machines.
        per_machine: devices of a machine.
        efficiency: share of all peak rates that is sustained.
        launch: seconds of the host for a kernel.
        floor: seconds of the device for a kernel, in addition to the time by its rates.
        asynchronous: whether the host launches kernels while others run, unlike on the CPU.
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

    def seconds(self, count: Count, precision: str = "float32", *, captured: bool = False) -> float:
        """Return the time of counted work: the longer of running and launching.

        It is their sum where the host waits for each kernel, and where the device launches those of a captured graph.
        """
        times = self.run_seconds(count, precision), self.launch_seconds(count, captured=captured)
        return max(times) if self.asynchronous and not captured else sum(times)

    def run_seconds(self, count: Count, precision: str = "float32") -> float:
        r"""Return :math:`F / (e \hat{F}) + B / (e \hat{B}) + K t_0`, for F operations, B bytes and K kernels."""
        work = count.flops / self.flops[precision] + count.bytes / self.bandwidth
        return work / self.efficiency + count.kernels * self.floor

    def launch_seconds(self, count: Count, *, captured: bool = False) -> float:
        """Return the time to launch all kernels, of the host, or of the device if they are captured in a graph."""
        return count.kernels * (REPLAY if captured else self.launch)

    def exchange_seconds(self, sent: float, n: int) -> float:
        """Return the time in which each of n devices sends so many bytes around a ring with one slowest link."""
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
"""Devices by name.

References:
    NVIDIA A100 Tensor Core GPU, data sheet 2021 (SXM, 80 GB), and DGX A100, data sheet (200 Gb/s for each),
    https://www.nvidia.com/en-us/data-center/a100; NVIDIA H100 Tensor Core GPU, data sheet 2022 (SXM, dense rates: half
    of those with sparsity), and DGX H100, data sheet (400 Gb/s), https://www.nvidia.com/en-us/data-center/h100; NVIDIA
    H200 Tensor Core GPU, data sheet 2023 (SXM, 141 GB), https://www.nvidia.com/en-us/data-center/h200;
    latencies of rings: NCCL, src/graph/tuning.cc, https://github.com/NVIDIA/nccl
"""


@dataclass(frozen=True)
class Workload:
    """Work of a training run, independent of the device.

    Attributes:
        counts: of a step, as a function of the examples.
        batch_size: examples of a step, on all devices together.
        total_steps: of the run.
        parameters: number of trained parameters, in float32.
        resident_bytes: weights, buffers, optimizer state and training data, of which every device has a copy.
        precision: of the recipe.
        captured: whether a single device replays a step as one graph.
    """

    counts: StepCounts
    batch_size: int
    total_steps: int
    parameters: int
    resident_bytes: int
    precision: str
    captured: bool = False


@dataclass(frozen=True)
class Prediction:
    """Predicted cost of a run on some devices.

    Attributes:
        device: name of the device.
        n: number of devices.
        memory: most bytes of tensors on each device at any time.
        fits: whether the device has as many.
        exchanged: bytes that each device sends in a step.
        kernel_seconds: time of the kernels of a step.
        launch_seconds: time to launch them, of the host, or of the device if they are captured.
        exchange_seconds: time to wait for the exchange of gradients.
        step_seconds: time of a step: the longer of the first two, plus the third.
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
    r"""Return :math:`2 (n - 1) / n * 4 P`, the bytes of gradients of P parameters that each of n devices sends."""
    return 2 * (n - 1) * 4 * parameters // n


def predict(workload: Workload, device: str, n: int) -> Prediction:
    """Predict the cost of a run on n devices that share its batches.

    The exchange of gradients overlaps with the backward pass, all but its last bucket; sealing, validation and pictures
    at snapshots are not counted.

    Args:
        workload: the run.
        device: a name in :data:`DEVICES`.
        n: number of devices.
    """
    spec, sent = DEVICES[device], exchanged_bytes(workload.parameters, n)
    count, captured = workload.counts.at(workload.batch_size // n), workload.captured and n == 1
    compute, exchange = spec.seconds(count, workload.precision, captured=captured), spec.exchange_seconds(sent, n)
    last = exchange / max(1, -(-sent // BUCKET))
    waiting = max(last, exchange - BACKWARD * compute)
    buckets = 4 * workload.parameters if n > 1 else 0
    memory = workload.resident_bytes + count.memory + buckets
    return Prediction(
        device=device,
        n=n,
        memory=memory,
        fits=memory <= spec.memory,
        exchanged=sent,
        kernel_seconds=spec.run_seconds(count, workload.precision),
        launch_seconds=spec.launch_seconds(count, captured=captured),
        exchange_seconds=waiting,
        step_seconds=compute + waiting,
        total_seconds=(compute + waiting) * workload.total_steps,
    )


def table(predictions: Iterable[Prediction]) -> str:
    """Format predictions as a text table; times are those of a step."""
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
    """Format a time in a readable unit."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
