"""What each precision costs: bits/dim beside those of float32 with the same noise and probes, and time.

python benchmarks/precision.py mnist-density-small --data-dir DIR              # on a GPU where there is one
python benchmarks/precision.py mnist-density-small --data-dir DIR --emulate    # TF32 by rounding, on a CPU
"""

import argparse
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import iresnet as ir
from iresnet.data import dequantize, load
from iresnet.devices import choose_device, describe_device

BATCH = 64


def round_to_tf32(x: Tensor) -> Tensor:
    """Round float32 numbers to the 10 bits of mantissa of TF32, to the nearest."""
    bits = x.clone().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


class EmulatedTf32(TorchDispatchMode):
    """Rounds the factors of convolutions, whose sums stay in float32, as a GPU does."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.convolution.default:
            args = (*map(round_to_tf32, args[:2]), *args[2:])
        return function(*args, **(kwargs or {}))


def evaluated(flow: ir.Flow, x: Tensor, precision: str, *, emulate: bool) -> tuple[Tensor, float]:
    """Bits/dim of every example, and seconds for a batch."""
    mode = EmulatedTf32() if emulate and precision == "tf32" else nullcontext()
    found, start = [], time.perf_counter()
    with torch.no_grad(), ir.use_precision(precision, x.device), mode:
        for i, batch in enumerate(x.split(BATCH)):
            estimator = ir.Krylov(tol=1e-2, generator=torch.Generator().manual_seed(i))
            found.append(flow.bits_per_dim(batch, logdet=estimator).double().cpu())
    return torch.cat(found), (time.perf_counter() - start) / len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run folder of images, or name of a model")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--emulate", action="store_true")
    options = parser.parse_args()
    device = choose_device(options.device)
    flow = ir.load(options.model, device=device)
    dataset = load(options.data, options.data_dir)
    noise = torch.Generator().manual_seed(0)
    x = dequantize(dataset.test.x[: options.examples], levels=dataset.levels, generator=noise).to(device)
    exact, _ = evaluated(flow, x, "float32", emulate=False)
    print(f"{options.model}, {len(x)} examples, {describe_device(device)}, torch {torch.__version__}\n")
    print("| precision | mean difference, bits/dim | standard error | largest of an example | ms a batch |")
    print("|---|---:|---:|---:|---:|")
    for precision in ("float32", "tf32", "bf16"):
        bits, seconds = evaluated(flow, x, precision, emulate=options.emulate)
        d = bits - exact
        error = float(d.std()) / math.sqrt(len(d))
        name = f"{precision}, emulated" if options.emulate and precision == "tf32" else precision
        print(f"| {name} | {float(d.mean()):+.1e} | {error:.0e} | {float(d.abs().max()):.1e} | {1e3 * seconds:.0f} |")


if __name__ == "__main__":
    main()
