"""Training steps and inverses on one GPU, beside the method of 2019 and the plain network, in at most eight minutes.

    python benchmarks/gpu.py                 on a GPU: times, kernels, waits, memory
    python benchmarks/gpu.py --count         anywhere: kernels and waits of a rehearsal

Contenders of a case take turns; a time is that between two events of the device, the wall clock stands beside it. A
rehearsal counts the operations of a step on two examples, since their number does not depend on the batch, as a GPU
launches them (:func:`iresnet.training.cost.count`), and takes a step on the meta device, where a wait is an error.
Writes results/gpu.json and the tables of docs/performance.md. Needs no network, and none of the package's extras.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from baselines import Block2019, swap_blocks
from contenders import Setting, Training, baseline, ours
from pages import RESULTS, Results, insert_all, number, save, table

import iresnet as ir
from iresnet import activations, operators
from iresnet.devices import describe_device
from iresnet.normalization import PowerIteration
from iresnet.training.cost import count
from iresnet.training.distributed import make_accelerator
from iresnet.training.optim import make_optimizer
from iresnet.training.step import Step

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"

KRYLOV = ("--model.logdet.name", "krylov", "--model.logdet.n-steps", "3")
DENSITY = Setting("cifar10-density", "cifar10-density", (3, 32, 32), 128, KRYLOV)
CLASSIFIER = Setting("cifar10-classify", "cifar10-classify", (3, 32, 32), 128)
SMALL = ("--model.blocks", "[2, 2, 2]", "--model.hidden", "32")

EAGER = ("--train.capture", "never")
BF16 = ("--train.precision", "bf16")
HALF = ("--train.logdet-chunks", "2")

Make = Callable[..., Training]

CONTENDERS: dict[str, dict[str, Make]] = {
    "density": {
        "iresnet": partial(ours, DENSITY),
        "iresnet, one by one": partial(ours, DENSITY, *EAGER),
        "iresnet, bf16": partial(ours, DENSITY, *BF16),
        "iresnet, half": partial(ours, DENSITY, *HALF),
        "iresnet, half, bf16": partial(ours, DENSITY, *HALF, *BF16),
        "iresnet, float32": partial(ours, DENSITY, "--train.precision", "float32"),
        "iresnet, recompute": partial(ours, DENSITY, "--model.memory", "recompute"),
        "2019": partial(baseline, DENSITY, "2019"),
        "2019, captured": partial(baseline, DENSITY, "2019", captured=True),
        "plain": partial(baseline, DENSITY, "plain"),
        "plain, captured": partial(baseline, DENSITY, "plain", captured=True),
        "plain, bf16, captured": partial(baseline, DENSITY, "plain", *BF16, captured=True),
    },
    "classification": {
        "iresnet": partial(ours, CLASSIFIER),
        "iresnet, one by one": partial(ours, CLASSIFIER, *EAGER),
        "iresnet, bf16": partial(ours, CLASSIFIER, *BF16),
        "2019": partial(baseline, CLASSIFIER, "2019"),
        "plain": partial(baseline, CLASSIFIER, "plain"),
        "plain, captured": partial(baseline, CLASSIFIER, "plain", captured=True),
    },
}
"""Builders of training steps by case and name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="count kernels and waits, on any machine")
    parser.add_argument("--minutes", type=float, default=8, help="stop measuring after so many; what came is kept")
    parser.add_argument("--small", action="store_true", help="small models, to try the script; nothing is written")
    options = parser.parse_args()
    path = RESULTS / "gpu.json"
    results: Results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    small = SMALL if options.small else ()
    if options.count:
        results["counts"] = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "rows": counted(small)}
    elif torch.cuda.is_available():
        measure(results, small, deadline=time.monotonic() + 60 * options.minutes)
    else:
        raise SystemExit("torch finds no GPU here: use --count, which needs none")
    if not options.small:
        save("gpu", results)
        insert_all({"gpu counts": count_table, "gpu": goal_table}, results, page=PAGE)


# -- counted anywhere --------------------------------------------------------------------------------------------------


def counted(changes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Count kernels and waits of a step of each contender; those that are captured launch a single graph instead."""
    rows = []
    for case, makes in CONTENDERS.items():
        for name in ("iresnet", "2019", "plain"):
            training = makes[name](*changes, "--train.batch-size", "2")
            training.step()  # initializes
            with _as_on_a_gpu():
                kernels = kernels_of_a_step(training)
                waits = waits_of_a_step(training) if training.trainer else None
            rows.append({"case": case, "contender": name, "kernels": kernels, "waits": waits})
            print(f"{case}, {name}: {kernels:,} kernels, {waits} waits", flush=True)
    return rows


def kernels_of_a_step(training: Training) -> int:
    """Count the kernels of a step on the CPU as those of a GPU: all power iterations run, and the device decides."""
    for part in training.task.modules():
        if isinstance(part, PowerIteration):
            part.tol = 0.0
    if training.trainer:
        trainer = training.trainer
        own = trainer.accelerator, trainer.task, trainer.optimizer, trainer.config, trainer.ema
        trainer.take_step = Step(*own, defers=True)
        training.step()
    return count(training.step).kernels


def waits_of_a_step(training: Training) -> int:
    """Take a step on the meta device, where a number that the host asks for is an error."""
    trainer, (x, y), device = training.trainer, next(training.batches), torch.device("meta")
    assert trainer
    task, config = training.task.to(device), trainer.config
    optimizer = make_optimizer(task.model, config.optim)
    step = Step(make_accelerator("float32", device), task, optimizer, config, None, defers=True)
    step.maybe_uninitialized = False
    for group in optimizer.param_groups:
        if group.get("fused"):  # torch has no fused SGD there
            group |= {"fused": False, "foreach": True, "lr": 1e-3}
    try:
        step(x.to(device), None if y is None else y.to(device), 1e-3)
    except (RuntimeError, NotImplementedError) as error:
        print(f"a wait: {error}")
        return 1
    return 0


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Leave out what is done on a CPU alone, and let torch's Adamax keep its numbers on any device."""
    adamax = sys.modules["torch.optim.adamax"]
    patches = [
        (operators, "FEW", 0),
        (operators, "_overlap", operators._fold),
        (activations, "_elu", lambda x, out=None: F.elu(x) if out is None else torch.ops.aten.elu.out(x, out=out)),
        (adamax, "_get_capturable_supported_devices", lambda *_, **__: ["cpu", "meta"]),
    ]
    before = [getattr(module, name) for module, name, _ in patches]
    for module, name, value in patches:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(patches, before, strict=True):
            setattr(module, name, value)


# -- measured on a GPU -------------------------------------------------------------------------------------------------


def measure(results: Results, changes: tuple[str, ...], *, deadline: float) -> None:
    """Measure all cases in turn into ``results``, as far as the time goes."""
    device = torch.device("cuda", torch.cuda.current_device())
    results["device"] = {
        "name": describe_device(device),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    for case, makes in CONTENDERS.items():
        results[case] = {"rows": steps(makes, changes, deadline)}
    results["inversion"] = {"rows": inversions(device, bool(changes))}
    results["start"] = {"seconds": first_step(changes)}


def steps(makes: Mapping[str, Make], changes: tuple[str, ...], deadline: float) -> list[dict[str, Any]]:
    """Time the steps of all contenders in turns, count their kernels and waits, and measure their memory."""
    built, rows = {}, {}
    for name, make in makes.items():
        if time.monotonic() > deadline:
            break
        try:
            built[name] = make(*changes, device="cuda")
            rows[name] = {"contender": name, "memory": _warm(built[name]), "events": [], "wall": []}
        except (RuntimeError, torch.OutOfMemoryError) as error:
            built.pop(name, None)
            print(f"{name}: not measured, {str(error).splitlines()[0]}")
        gc.collect()
    for _ in range(10):
        for name, training in built.items():
            if time.monotonic() < deadline:
                events, wall = _timed(training.step)
                rows[name]["events"].append(events)
                rows[name]["wall"].append(wall)
    for name, training in built.items():
        rows[name] |= {"waits": _waits(training.step), **_kernels(training.step)}
        print(_line(rows[name]), flush=True)
    return [row for row in rows.values() if row["events"]]


def _warm(training: Training) -> int:
    """Take the steps before a capture and the first replays, and return the most bytes that they add."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    training.step()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(6):
        training.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _timed(run: Callable[[], Any]) -> tuple[float, float]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3, time.perf_counter() - start


def _waits(run: Callable[[], Any]) -> int:
    """Count how often the host waits for the device in a call."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run()
        return sum("called a synchronizing" in str(warning.message) for warning in seen)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _kernels(run: Callable[[], Any]) -> dict[str, Any]:
    """Count the kernels of a call, replayed ones too, and the seconds in which any is busy."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    kernels = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return {"kernels": len(kernels), "busy": sum(event.device_time for event in kernels) / 1e6}


def inversions(device: torch.device, small: bool) -> list[dict[str, Any]]:
    """Invert 64 latents of a density of the published size in float32: to 1e-5, and by the 100 steps of 2019."""
    torch.manual_seed(0)
    blocks, hidden = ((2, 2, 2), 32) if small else ((16, 16, 16), 512)
    options = {"blocks": blocks, "strides": (1, 2, 2), "hidden": hidden, "squeeze": True, "mean": 128.0, "std": 256.0}
    flow = ir.zoo.build("iresnet-multiscale", shape=(3, 32, 32), logdet=ir.Krylov(3), **options)
    assert isinstance(flow, ir.Flow)
    x = 256 * torch.rand(64, 3, 32, 32)
    with torch.no_grad():
        flow.to(device).log_prob(x.to(device)[:8])
        for name, parameter in flow.named_parameters():  # as trained weights are: at their coefficient
            if name.endswith("original"):
                parameter.mul_(4)
    ir.seal(flow.eval().requires_grad_(False))
    flows = {"iresnet": flow, "2019": swap_blocks(flow, Block2019)}
    rows = []
    with torch.no_grad(), ir.use_precision("float32", device):
        z = flow.encode(x.to(device))
        for name, of in flows.items():
            back = of.decode(z)
            times = [_timed(partial(of.decode, z)) for _ in range(3)]
            error = float((back - x.to(device)).abs().max())
            rows.append(
                {"contender": name, "events": [t for t, _ in times], "wall": [t for _, t in times], "error": error}
            )
            print(
                f"inversion, {name}: {1e3 * statistics.median(rows[-1]['events']):.0f} ms, off by {error:.1e}",
                flush=True,
            )
    return rows


START = """
import time; start = time.perf_counter()
import sys; sys.path.insert(0, {folder!r})
import torch
from gpu import DENSITY, ours
training = ours(DENSITY, *{changes!r}, device="cuda")
training.step(); torch.cuda.synchronize()
print(time.perf_counter() - start)
"""


def first_step(changes: tuple[str, ...]) -> float:
    """Measure the seconds from the start of a process to the end of its first step, for a second time."""
    script = START.format(folder=str(Path(__file__).parent), changes=changes)
    command = [sys.executable, "-c", script]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    return float(runs[-1].stdout.split()[-1])


# -- tables ------------------------------------------------------------------------------------------------------------


def _line(row: dict[str, Any]) -> str:
    events, wall, kernels, busy, waits, memory = _cells(row)
    return (
        f"{row['contender']}: {events} ms, wall {wall} ms, {kernels} kernels busy for {busy} ms, {waits} waits, "
        f"{memory} GiB"
    )


@dataclass(frozen=True)
class Goal:
    """Number that is to be reached.

    Attributes:
        name: for the table.
        value: of it in the results, from the rows by case and contender.
        bound: at least so much, or at most.
        aim: better.
        at_least: which of the two.
    """

    name: str
    value: Callable[[Any], float]
    bound: float
    aim: float
    at_least: bool = True


def _ratio(case: str, above: str, below: str) -> Callable[[Any], float]:
    def value(rows: Any) -> float:
        pairs = zip(rows[case, above]["events"], rows[case, below]["events"], strict=False)
        return statistics.median(a / b for a, b in pairs)

    return value


GOALS = (
    Goal("density step: 2019 as run / iresnet", _ratio("density", "2019", "iresnet"), 6, 10),
    Goal(
        "density step: iresnet / plain, both captured", _ratio("density", "iresnet", "plain, captured"), 3, 2.5, False
    ),
    Goal("the same in bf16", _ratio("density", "iresnet, bf16", "plain, bf16, captured"), 3, 2.5, False),
    Goal("density step: bf16 / TF32", _ratio("density", "iresnet, bf16", "iresnet"), 0.85, 0.7, False),
    Goal("density step: log-det on half / on all", _ratio("density", "iresnet, half", "iresnet"), 0.9, 0.7, False),
    Goal(
        "classification step: iresnet / plain, both captured",
        _ratio("classification", "iresnet", "plain, captured"),
        1.3,
        1.1,
        False,
    ),
    Goal("host waits in a density step", lambda rows: rows["density", "iresnet"]["waits"], 0, 0, False),
    Goal(
        "kernels of a density step", lambda rows: rows["density", "iresnet, one by one"]["kernels"], 8000, 4000, False
    ),
    Goal("64 inverses: 2019 / iresnet", _ratio("inversion", "2019", "iresnet"), 6, 12),
    Goal(
        "memory of a density step: 2019 / iresnet",
        lambda rows: rows["density", "2019"]["memory"] / rows["density", "iresnet, one by one"]["memory"],
        4,
        6,
    ),
    Goal("seconds to the first step", lambda rows: rows["start", ""]["seconds"], 10, 5, False),
)


def goal_table(results: Results) -> str:
    """Format the goals with what was measured, and the times of all contenders."""
    if "device" not in results:
        return "Not measured: no GPU was at hand."
    rows = {(case, row["contender"]): row for case in results for row in results[case].get("rows", ())}
    rows["start", ""] = results["start"]
    lines = [
        [goal.name, f"{'at least' if goal.at_least else 'at most'} {goal.bound:g}", f"{goal.aim:g}", came]
        for goal in GOALS
        for came in _came(goal, rows)
    ]
    times = [[case, row["contender"], *_cells(row)] for case in CONTENDERS for row in results[case]["rows"]]
    heads = ["case", "", "ms", "wall ms", "kernels", "busy ms", "waits", "GiB"]
    of = results["device"]
    goals = table(["number", "goal", "aim", "measured"], lines)
    return f"{goals}\n\n{table(heads, times)}\n\n{of['name']}; torch {of['torch']}; {of['date']}."


def _came(goal: Goal, rows: Any) -> Iterator[str]:
    try:
        yield number(goal.value(rows), 3)
    except (KeyError, statistics.StatisticsError):
        yield "not measured"


def _cells(row: dict[str, Any]) -> list[str]:
    milliseconds = [number(1e3 * statistics.median(row[kind]), 3) for kind in ("events", "wall")]
    busy, memory = number(1e3 * row["busy"], 3), number(row["memory"] / 2**30, 3)
    return [*milliseconds, f"{row['kernels']:,}", busy, str(row["waits"]), memory]


def count_table(results: Results) -> str:
    """Format what a rehearsal counted."""
    if "counts" not in results:
        return "Not counted."
    of = results["counts"]
    rows = [
        [row["case"], row["contender"], f"{row['kernels']:,}", "-" if row["waits"] is None else str(row["waits"])]
        for row in of["rows"]
    ]
    return f"{table(['step', '', 'kernels', 'waits'], rows)}\n\ntorch {of['torch']}; {of['date']}."


if __name__ == "__main__":
    main()
