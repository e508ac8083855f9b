"""What only a GPU can show: the laws on it, and a table of what is promised there. make gpu-test runs it.

Needs torch 2.11 or newer, pytest, and iresnet installed; no network and no root. Takes at most --minutes (8), of which
the measurements come first. With --device cpu it can be tried anywhere, with --small on smaller sizes. Exit status 1
when a row of the table is not what it should be, or a law fails.
"""

import argparse
import copy
import importlib.util
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import iresnet as ir
from iresnet.config import load_config
from iresnet.data import load
from iresnet.devices import choose_device, describe_device, deterministic_algorithms
from iresnet.models import inputs_of
from iresnet.solvers import Solver
from iresnet.training import dry_run
from iresnet.training.cost import predict
from iresnet.training.distributed import make_accelerator
from iresnet.training.optim import make_optimizer
from iresnet.training.step import Step
from iresnet.training.task import make_task

TESTS = Path(__file__).resolve().parent
LAWS = ("jacobian", "solvers", "normalization", "lipschitz", "certificates", "logdet", "bijections", "memory", "chunk")
LAWS += ("flows", "inversion", "bf16", "float32", "devices")
DIGITS = ("digits-density", "--model.blocks", "[2,2]", "--model.hidden", "32", "--train.n-pictures", "4")
DIGITS += ("--train.epochs", "2", "--tracker", "[]", "--train.deterministic", "true", "--train.log-every", "7")


@dataclass(frozen=True)
class Row:
    """A line of the table: what was run, what came, what is right, and whether it is."""

    what: str
    came: str
    right: str
    fine: bool


class Machine:
    """The device, and the sizes of what is run on it.

    Args:
        device: where to measure.
        small: sizes that a CPU does in seconds.
        folder: for runs and data.
    """

    def __init__(self, device: torch.device, small: bool, folder: Path):
        self.device, self.small, self.folder = device, small, folder
        width, side, blocks = (16, 8, (1, 1, 1)) if small else (128, 32, (4, 4, 4))
        torch.manual_seed(0)
        options = {"hidden": width, "coeff": 0.9, "mean": 128.0, "std": 256.0, "logdet": ir.Krylov(3)}
        self.flow = ir.zoo.build("iresnet-multiscale", shape=(1, side, side), blocks=blocks, **options)
        self.x = 256 * torch.rand(64, 1, side, side)
        self.flow.log_prob(self.x)
        for name, parameter in self.flow.named_parameters():  # as trained weights are: at their coefficient
            if name.endswith("original"):
                parameter.data.mul_(4)
        ir.seal(self.flow.eval().requires_grad_(False))
        self.there, self.x_there = copy.deepcopy(self.flow).to(device), self.x.to(device)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Callable[[], object], repeats: int = 3) -> float:
        """Median time of a call, after one to warm up."""
        times = []
        for _ in range(repeats + 1):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    def command(self, *tokens: object) -> subprocess.Popen:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "iresnet", *map(str, tokens), "--device", self.device.type],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=environment,
        )

    def images(self) -> Path:
        """A file of invented images of the size of MNIST, for recipes whose data are not here."""
        path = self.folder / "invented.npz"
        if not path.exists():
            rng = np.random.default_rng(0)
            np.savez(path, x=rng.integers(0, 256, (1000, 1, 28, 28), dtype=np.uint8))
        return path


# -- rows ------------------------------------------------------------------------------------------------------------


def inversions(machine: Machine) -> Iterator[Row]:
    """The inverse of 64 images by each solver, in float32."""
    z = machine.there.encode(machine.x_there)
    for solver in (ir.Anderson(), ir.FixedPointIteration(), ir.NewtonKrylov()):
        inversion = machine.there.invert(z, solver=solver)
        converged, error = int(inversion.converged.sum()), float((inversion.x - machine.x_there).abs().max())
        blocks = len(inversion.solutions)
        yield Row(
            f"invert 64 images, {type(solver).__name__}",
            f"{converged} of 64 converge in {int(inversion.evaluations.max()) / blocks:.0f} evaluations a block, "
            f"off by {error:.1e} gray values, {1e3 * _inverse_seconds(machine, z, solver):.0f} ms",
            "64 of 64, off by less than 1e-3",
            converged == 64 and error < 1e-3,
        )


def _inverse_seconds(machine: Machine, z: torch.Tensor, solver: Solver) -> float:
    return machine.seconds(lambda: machine.there.invert(z, solver=solver), repeats=1)


def mixed_inverse(machine: Machine) -> Iterator[Row]:
    """Whether first steps in TF32 would pay: the residual that they reach, and the float32 steps that are left."""
    block = next(m for m in machine.there.modules() if isinstance(m, ir.ResidualBlock))
    z = block(torch.randn(64, *_shape(block), device=machine.device))
    exact = ir.Anderson(atol=1e-5)
    full = machine.seconds(lambda: block.solve(z, solver=exact, lipschitz=1.0))
    with torch.no_grad(), ir.use_precision("tf32", machine.device):
        rough = z
        for _ in range(6):
            rough = z - block.g(rough)
        start = machine.seconds(lambda: block.g(rough))
    left = machine.seconds(lambda: exact.solve(lambda x, active: z[active] - block.g(x), rough))
    yield Row(
        "first 6 steps of a block's inverse in TF32",
        f"{1e3 * (6 * start + left):.1f} ms against {1e3 * full:.1f} ms in float32 alone",
        "kept only if faster (it is not in the package)",
        True,
    )


def _shape(block: ir.ResidualBlock) -> tuple[int, ...]:
    layer = next(m for m in block.g.modules() if isinstance(m, ir.LipschitzConv2d))
    return (layer.in_channels, *layer.image_size)


def alone(machine: Machine) -> Iterator[Row]:
    z = machine.there.encode(machine.x_there)
    difference = float((machine.there.decode(z[:1]) - machine.there.decode(z)[:1]).abs().max())
    yield Row("one sample alone and in a batch", f"differ by {difference:.1e}", "below 1e-3", difference < 1e-3)


def autocast(machine: Machine) -> Iterator[Row]:
    z = machine.there.encode(machine.x_there)
    expected = machine.there.decode(z)
    with torch.autocast(machine.device.type, torch.bfloat16):
        difference = float((machine.there.decode(z) - expected).abs().max())
    yield Row("decode under autocast to bf16", f"differs by {difference:.1e}", "as in float32", difference < 1e-3)


def samples(machine: Machine) -> Iterator[Row]:
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    found = [m.sample(4, generator=g).cpu() for m, g in zip((machine.flow, machine.there), generators, strict=True)]
    difference = float((found[0] - found[1]).abs().max())
    yield Row("sample from a seed, here and on the CPU", f"differ by {difference:.1e}", "1e-2", difference < 1e-2)


def certificates(machine: Machine) -> Iterator[Row]:
    pairs = [ir.certify(model) for model in (machine.flow, machine.there)]
    bounds = [[b.upper for b in (*c.layers, *c.blocks)] for c in pairs]
    difference = max(abs(a / b - 1) for a, b in zip(*bounds, strict=True))
    seconds = machine.seconds(lambda: ir.certify(machine.there), repeats=1)
    came = f"upper bounds differ by {difference:.1e}, {seconds:.1f} s"
    yield Row("certify here and on the CPU", came, "1e-10", difference < 1e-10)


def likelihoods(machine: Machine) -> Iterator[Row]:
    """What each precision costs: bits/dim with the same probes, and time."""
    found = {}
    for precision in ("float32", "tf32", "bf16"):
        with ir.use_precision(precision, machine.device), torch.no_grad():
            estimator = ir.Krylov(3, generator=torch.Generator().manual_seed(0))
            bits = machine.there.bits_per_dim(machine.x_there, logdet=estimator)
            seconds = machine.seconds(lambda: machine.there.bits_per_dim(machine.x_there))
        found[precision] = bits.cpu()
        difference = float((found[precision] - found["float32"]).abs().mean())
        came = f"{difference:.1e} bits/dim from float32, {1e3 * seconds:.1f} ms a batch of 64"
        limit = {"float32": 0.0, "tf32": 2e-3, "bf16": 1e-2}[precision]
        yield Row(f"likelihood in {precision}", came, f"at most {limit:g}", difference <= limit)


def steps(machine: Machine) -> Iterator[Row]:
    """A training step in each precision, timed as it is run, beside what the dry run says."""
    recipe = ("digits-density",) if machine.small else ("mnist-density", "--data.name", str(machine.images()))
    dry = dry_run(load_config(recipe[0], recipe[1:]), device=machine.device)
    for precision in ("tf32", "float32", "bf16"):
        changes = ("--train.precision", precision)
        seconds = _step_seconds(machine, load_config(recipe[0], (*recipe[1:], *changes)))
        fine = precision != "tf32" or not dry.timed or 1 / 1.3 < (dry.seconds or 0) / seconds < 1.3
        said = f"; the dry run says {1e3 * (dry.seconds or 0):.0f} ms" if precision == "tf32" else ""
        yield Row(f"training step, {precision}", f"{1e3 * seconds:.0f} ms{said}", "dry run within 1.3", fine)
    with deterministic_algorithms(True):
        seconds = _step_seconds(machine, load_config(recipe[0], recipe[1:]))
    yield Row("training step, deterministic", f"{1e3 * seconds:.0f} ms", "", True)
    for kind in ("h100", "h200"):
        predicted = predict(dry.workload, kind, 1)
        came = f"{1e3 * predicted.step_seconds:.0f} ms, kernels {1e3 * predicted.kernel_seconds:.0f} ms"
        yield Row(f"the step predicted for one {kind}", came, "the cost model", True)


def _step_seconds(machine: Machine, config: object) -> float:
    dataset = load(config.data.name, **config.data.options)
    task = make_task(config, dataset, inputs_of(dataset, config.task.kind)).to(machine.device).train()
    accelerator = make_accelerator(config.train.precision, machine.device)
    task, optimizer = accelerator.prepare(task, make_optimizer(task.model, config.optim))
    step = Step(accelerator, task, optimizer, config, None)
    x = dataset.train.x[: config.train.batch_size].to(machine.device)
    y = None if dataset.train.y is None else dataset.train.y[: config.train.batch_size].to(machine.device)
    return machine.seconds(lambda: step(x, y, 1e-3), repeats=15)  # replayed after four


def runs(machine: Machine) -> Iterator[Row]:
    """Train, kill, resume, evaluate, sample, reconstruct, certify, analyze, report: real commands, no warnings."""
    whole, run = machine.folder / "whole", machine.folder / "run"
    _, errors, status = _finished(machine.command("train", *DIGITS, "--out", whole))
    yield _command_row("train digits-density", status, errors)
    process = machine.command("train", *DIGITS, "--out", run)
    while process.poll() is None and not (run / "metrics.jsonl").exists():
        time.sleep(0.2)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    _, errors, status = _finished(process)
    yield Row("the same with SIGTERM", f"status {status}", "130, saved", status in (0, 130))
    _, errors, status = _finished(machine.command("train", *DIGITS, "--out", run, "--resume"))
    yield _command_row("--resume", status, errors)
    same = all(
        (whole / name).read_bytes() == (run / name).read_bytes() for name in ("model.safetensors", "metrics.jsonl")
    )
    yield Row("interrupted and not, deterministic", "equal" if same else "they differ", "equal to the bit", same)
    for words in (
        ("evaluate", run),
        ("sample", run, "-n", 16),
        ("reconstruct", run),
        ("interpolate", run, "-n", 2),
        ("certify", run),
        ("analyze", "logdet", run, "--n", 2, "--draws", 8),
        ("analyze", "latent", run, "--n", 200),
    ):
        output, errors, status = _finished(machine.command(*words))
        name = " ".join(str(word) for word in words if word != run)
        told = output.splitlines()[0] if output else ""
        right = f"computed on {describe_device(machine.device)}"
        came = next((line for line in output.splitlines() if "error at most" in line), told)
        fine = (status, errors) == (0, "") and (told == right or machine.device.type == "cpu")
        yield Row(name, (came if fine else f"status {status}: {told} {errors}")[:110], right, fine)
    report = subprocess.run([sys.executable, "-m", "iresnet", "report", str(run)], capture_output=True, check=False)
    yield Row("report", f"status {report.returncode}", "0", report.returncode == 0)


def _finished(process: subprocess.Popen) -> tuple[str, str, int]:
    output, errors = process.communicate(timeout=200)
    return output, errors, process.returncode


def _command_row(what: str, status: int, errors: str) -> Row:
    lines = [line for line in errors.splitlines() if "warning" in line or "Traceback" in line or "Error" in line]
    came = f"status {status}" + (f": {lines[-1][:90]}" if lines else ", no warning")
    return Row(what, came, "status 0, no warning", status == 0 and not lines)


GROUPS: tuple[Callable[[Machine], Iterator[Row]], ...] = (
    inversions,
    mixed_inverse,
    alone,
    autocast,
    samples,
    certificates,
    likelihoods,
    steps,
    runs,
)


# -- all of it -------------------------------------------------------------------------------------------------------


def measured(machine: Machine) -> list[Row]:
    """All rows; a warning or a failure is a row too."""
    rows = []
    for group in GROUPS:
        start = time.monotonic()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ir.errors.ConvergenceWarning)
            try:
                for row in group(machine):
                    rows.append(row)
                    print(f"{'ok ' if row.fine else 'NOT'} {row.what}: {row.came}", flush=True)
            except Exception as error:
                traceback.print_exc()
                rows.append(Row(group.__name__, f"{type(error).__name__}: {str(error)[:90]}", "a result", False))
        unconverged = [w for w in caught if issubclass(w.category, ir.errors.ConvergenceWarning)]
        if unconverged:
            rows.append(Row(group.__name__, str(unconverged[0].message)[:110], "no warning", False))
        print(f"    {group.__name__} took {time.monotonic() - start:.0f} s", flush=True)
    return rows


def laws(device: str, seconds: float) -> Row:
    """The laws on the device, for as long as there is time."""
    modules = [str(TESTS / f"test_{name}.py") for name in LAWS]
    workers = ["-n", str(min(8, max(1, (os.cpu_count() or 2) // 2)))]
    if importlib.util.find_spec("xdist") is None:
        workers = []
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", *workers, "--device", device, *modules]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=TESTS.parent, check=False)
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        return Row("laws", f"not done after {seconds:.0f} s: {output.count('F')} failed so far", "all pass", False)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    print("\n".join(line[:200] for line in failed[:40]))
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:]
    return Row("laws", f"{last} ({time.monotonic() - start:.0f} s)", "all pass", done.returncode == 0)


def table(rows: list[Row]) -> str:
    """The rows as a table of Markdown."""
    lines = ["| what was run | what came | what is right | |", "|---|---|---|---|"]
    lines += [f"| {r.what} | {r.came} | {r.right} | {'ok' if r.fine else '**no**'} |" for r in rows]
    return "\n".join(lines)


def main() -> int:
    """Measure, run the laws, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, help="write the table there too")
    options = parser.parse_args()
    start = time.monotonic()
    device = choose_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Machine(device, options.small, Path(folder)))
    rows.append(laws(options.device, 60 * options.minutes - (time.monotonic() - start) - 10))
    text = f"{describe_device(device)}, torch {torch.__version__}, {time.monotonic() - start:.0f} s\n\n{table(rows)}\n"
    print(f"\n{text}")
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return 0 if all(row.fine for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
