"""Noise and bias of log-determinants and gradients in a training step, by method and option.

    python benchmarks/training_noise.py RUN [--data-dir DIR] [--draws 40]

One batch of test images in the trained density of a run. Each method estimates the mean log-determinant of the batch
many times, with new probes each time, and its gradient with respect to the normalized weights of all convolutions. The
bias is the mean difference to 16 Krylov steps with the same probes. Writes results/training_noise.json and a table of
docs/performance.md.
"""

import argparse
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from baselines import Block2019, Bottleneck, free_conv, swap_blocks
from pages import Results, insert_all, number, save, table
from subjects import from_run
from torch import Tensor

import iresnet as ir
from iresnet.bijections import RandomChunk, ResidualBlock

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


@dataclass(frozen=True)
class Method:
    """Estimation of log-determinants in a training step.

    Attributes:
        block: builds what replaces a residual block.
        probe: of the estimator.
        n_chunks: see :class:`iresnet.bijections.RandomChunk`.
        bf16: whether products are in bfloat16.
    """

    block: Callable[[Bottleneck], ir.Bijection]
    probe: str = "rademacher"
    n_chunks: int = 1
    bf16: bool = False


def _block(g: Bottleneck, *, logdet: ir.LogDetEstimator) -> ir.ResidualBlock:
    return ir.ResidualBlock(g.build(free_conv), logdet=logdet)


def krylov(n_steps: int, **options) -> Method:
    return Method(partial(_block, logdet=ir.Krylov(n_steps)), **options)


def _block_2019(g: Bottleneck) -> Block2019:
    block = Block2019(g)
    block.g = g.build(free_conv)  # the gradients are with respect to normalized weights
    return block


METHODS = {
    "2019": Method(_block_2019, probe="gaussian"),
    "Krylov 3": krylov(3),
    "Krylov 4": krylov(4),
    "Krylov 3, half of the batch": krylov(3, n_chunks=2),
    "Krylov 4, half of the batch": krylov(4, n_chunks=2),
    "Krylov 3, bf16": krylov(3, bf16=True),
    "Krylov 4, bf16": krylov(4, bf16=True),
    "Krylov 4, half of the batch, bf16": krylov(4, n_chunks=2, bf16=True),
}


def sample(flow: ir.Flow, method: Method, x: Tensor, seeds: range) -> tuple[Tensor, Tensor]:  # (S,), (S, parameters)
    """Draw values and gradients of the mean log-determinant of the batch."""
    model = swap_blocks(flow, method.block).bijection
    convs = [p for name, p in model.named_parameters() if p.dim() == 4]
    chunks = {b: RandomChunk(b.logdet, method.n_chunks) for b in model.modules() if isinstance(b, ResidualBlock)}
    values, gradients = [], []
    for seed in seeds:
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16) if method.bf16 else nullcontext():
            value = model.forward_and_logdet(x, logdet=chunks)[1].mean()
        values.append(value.detach())
        gradients.append(torch.cat([grad.flatten() for grad in torch.autograd.grad(value, convs)]))
    return torch.stack(values), torch.stack(gradients)


def measure(path: str, data_dir: str | None, *, batch: int, draws: int) -> dict[str, dict[str, float]]:
    """Measure standard deviation and bias of every method."""
    subject = from_run(path, data_dir, batch)
    flow, x = subject.flow.float(), subject.x.float()
    seeds = range(draws)
    exact = {
        probe: sample(flow, Method(partial(_block, logdet=ir.Krylov(16, probe=probe))), x, seeds)
        for probe in ("rademacher", "gaussian")
    }
    size = float(exact["rademacher"][1].mean(0).norm())
    rows = {}
    for name, method in METHODS.items():
        values, gradients = sample(flow, method, x, seeds)
        reference = exact[method.probe] if method.n_chunks == 1 else None
        rows[name] = {
            "value_sd": float(values.std()),
            "gradient_sd": math.sqrt(float(gradients.var(0).sum())) / size,
            **(_bias(values, gradients, reference, size) if reference else {}),
        }
        print(name, rows[name], flush=True)
    return rows


def _bias(values: Tensor, gradients: Tensor, exact: tuple[Tensor, Tensor], size: float) -> dict[str, float]:
    of_values, of_gradients = values - exact[0], gradients - exact[1]
    draws = len(values)
    # The squared mean is biased by the variance of the mean.
    square = of_gradients.mean(0).square().sum() - of_gradients.var(0).sum() / draws
    return {
        "value_bias": float(of_values.mean()),
        "value_bias_error": float(of_values.std()) / math.sqrt(draws),
        "gradient_bias": math.sqrt(max(0.0, float(square))) / size,
    }


def noise_table(results: Results) -> str:
    """Format a row for each run and method."""
    rows = []
    for run, methods in results.items():
        for name, row in methods.items():
            value, gradient = "as whole", "as whole"
            if "value_bias" in row:
                value = f"{row['value_bias']:+.3f} ± {number(row['value_bias_error'])}"
                gradient = number(row["gradient_bias"])
            rows.append([run, name, value, number(row["value_sd"]), gradient, number(row["gradient_sd"])])
    header = ["run", "", "bias, nats", "sd, nats", "bias of the gradient", "sd of the gradient"]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data-dir")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--draws", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        Path(run).name: measure(run, options.data_dir, batch=options.batch, draws=options.draws) for run in options.runs
    }
    save("training_noise", results)
    insert_all({"training noise": noise_table}, results, page=PAGE)


if __name__ == "__main__":
    main()
