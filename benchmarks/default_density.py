"""Error of the default log-density in eval mode, which owes nothing to chance, against the exact one: docs/numerics.md.

python benchmarks/default_density.py --data-dir ~/data --images 16
"""

import argparse
import time

import torch

import iresnet as ir
from iresnet.data import load
from iresnet.logdet import EXACT_LIMIT, LogDetEstimator, default_logdet

MODELS = {"mnist-density-small": "mnist", "fashion-mnist-density-small": "fashion-mnist"}
"""Bundled densities of more than EXACT_LIMIT dimensions, and the data that they are of."""


@torch.no_grad()
def measure(model: str, data: str, data_dir: str | None, n: int) -> str:
    """A line of the table: errors in nats, and the time against that of the exact log-density."""
    dataset, flow = load(data, data_dir=data_dir), ir.load(model).eval()
    x = ir.dequantise(dataset.test.x[:n], levels=dataset.levels, generator=torch.Generator().manual_seed(0))
    assert x[0].numel() > EXACT_LIMIT
    default, default_seconds = evaluated(flow, x, default_logdet(x[0].numel(), training=False))
    exact, exact_seconds = evaluated(flow, x, ir.Exact())
    error = default - exact
    return (
        f"| {model} | {exact.mean():.0f} | {error.mean():.3f} | {error.std():.3f} | {error.abs().max():.3f} "
        f"| {default_seconds / exact_seconds:.2f} |"
    )


def evaluated(flow: ir.Flow, x: torch.Tensor, logdet: LogDetEstimator) -> tuple[torch.Tensor, float]:
    start = time.process_time()
    values = torch.cat([flow.log_prob(part, logdet=logdet) for part in x.split(4)])
    return values, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="where the data sets are")
    parser.add_argument("--images", type=int, default=16, help="test images of each model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | mean log-density, nats | mean error | sd | largest | time, exact = 1 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for model, data in MODELS.items():
        print(measure(model, data, options.data_dir, options.images), flush=True)


if __name__ == "__main__":
    main()
