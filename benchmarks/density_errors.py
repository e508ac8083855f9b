"""Errors of log-densities of trained models: of the default estimator in eval mode, and of lower precisions.

    python benchmarks/density_errors.py default RUN... --data-dir DIR [--images 16]
    python benchmarks/density_errors.py precision MODEL --data-dir DIR              # on a GPU, if any
    python benchmarks/density_errors.py precision MODEL --data-dir DIR --emulate    # TF32 by rounding

*default*: log-densities with the default estimator, which is deterministic, against the exact ones. *precision*:
bits/dim with the products in TF32 and bfloat16 against those in float32 with the same noise and probes.
"""

import argparse
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pages import table
from subjects import Subject, from_run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import iresnet as ir
from iresnet.data import dequantize, load
from iresnet.devices import choose_device, describe_device
from iresnet.logdet import EXACT_LIMIT, LogDetEstimator, default_logdet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    default = commands.add_parser("default", help="the default estimator against the exact log-determinant")
    default.set_defaults(run=compare_with_exact)
    default.add_argument("runs", nargs="+", help="run folders of densities of images")
    default.add_argument("--data-dir", help="a folder of data sets, if not where the run found them")
    default.add_argument("--images", type=int, default=16, help="test images of each run")
    precision = commands.add_parser("precision", help="TF32 and bfloat16 against float32")
    precision.set_defaults(run=compare_precisions)
    precision.add_argument("model", help="run folder of images, or name of a model")
    precision.add_argument("--data", default="mnist")
    precision.add_argument("--data-dir", type=Path)
    precision.add_argument("--device", default="auto")
    precision.add_argument("--examples", type=int, default=512)
    precision.add_argument("--emulate", action="store_true", help="round the factors of convolutions to TF32")
    options = parser.parse_args()
    options.run(options)


# -- the default estimator -------------------------------------------------------------------------------------------


def compare_with_exact(options: argparse.Namespace) -> None:
    """Print errors in nats, and the time relative to that of the exact log-density."""
    torch.set_num_threads(1)
    header = ("model", "mean log-density, nats", "mean error", "sd", "largest", "time, exact = 1")
    print(table(header, [_row(from_run(run, options.data_dir, options.images)) for run in options.runs]))


def _row(subject: Subject) -> list[str]:
    dims = subject.x[0].numel()
    assert dims > EXACT_LIMIT, "the default is exact here"
    default, default_seconds = log_densities(subject, default_logdet(dims, training=False))
    exact, exact_seconds = log_densities(subject, ir.Exact())
    error = default - exact
    numbers = (f"{value:.3f}" for value in (error.mean(), error.std(), error.abs().max()))
    return [subject.name, f"{exact.mean():.0f}", *numbers, f"{default_seconds / exact_seconds:.2f}"]


@torch.no_grad()
def log_densities(subject: Subject, logdet: LogDetEstimator) -> tuple[Tensor, float]:
    """Evaluate the log-densities of all images; return them and the CPU seconds."""
    start = time.process_time()
    values = torch.cat([subject.flow.log_prob(batch, logdet=logdet) for batch in subject.x.split(4)])
    return values, time.process_time() - start


# -- precisions ------------------------------------------------------------------------------------------------------

BATCH = 64


def compare_precisions(options: argparse.Namespace) -> None:
    """Print differences of bits/dim to those in float32, and the time of a batch."""
    device = choose_device(options.device)
    flow = ir.load(options.model, device=device)
    dataset = load(options.data, options.data_dir)
    noise = torch.Generator().manual_seed(0)
    x = dequantize(dataset.test.x[: options.examples], levels=dataset.levels, generator=noise).to(device)
    print(f"{options.model}, {len(x)} examples, {describe_device(device)}, torch {torch.__version__}\n")
    exact, _ = bits_per_dim(flow, x, "float32", emulate=False)
    rows = []
    for precision in ("float32", "tf32", "bf16"):
        bits, seconds = bits_per_dim(flow, x, precision, emulate=options.emulate)
        d = bits - exact
        error = float(d.std()) / math.sqrt(len(d))
        name = f"{precision}, emulated" if options.emulate and precision == "tf32" else precision
        numbers = (f"{float(d.mean()):+.1e}", f"{error:.0e}", f"{float(d.abs().max()):.1e}", f"{1e3 * seconds:.0f}")
        rows.append([name, *numbers])
    header = ("precision", "mean difference, bits/dim", "standard error", "largest of an example", "ms a batch")
    print(table(header, rows))


def bits_per_dim(flow: ir.Flow, x: Tensor, precision: str, *, emulate: bool) -> tuple[Tensor, float]:
    """Evaluate bits/dim of every example; return them and the seconds for a batch."""
    mode = EmulatedTf32() if emulate and precision == "tf32" else nullcontext()
    found, start = [], time.perf_counter()
    with torch.no_grad(), ir.use_precision(precision, x.device), mode:
        for i, batch in enumerate(x.split(BATCH)):
            estimator = ir.Krylov(tol=1e-2, generator=torch.Generator().manual_seed(i))
            found.append(flow.bits_per_dim(batch, logdet=estimator).double().cpu())
    return torch.cat(found), (time.perf_counter() - start) / len(found)


class EmulatedTf32(TorchDispatchMode):
    """Mode that rounds the factors of convolutions to TF32, while sums stay in float32, as on a GPU."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.convolution.default:
            args = (*map(round_to_tf32, args[:2]), *args[2:])
        return function(*args, **(kwargs or {}))


def round_to_tf32(x: Tensor) -> Tensor:
    """Round float32 numbers to the nearest with the 10 bits of mantissa of TF32."""
    bits = x.clone().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


if __name__ == "__main__":
    main()
