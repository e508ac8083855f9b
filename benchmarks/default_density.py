"""Error of the default log-density in eval mode, which owes nothing to chance, against the exact one: docs/numerics.md.

python benchmarks/default_density.py iresnet/pretrained/mnist-density-small --data-dir ~/data --images 16
"""

import time

import torch
from report import arguments, table
from subjects import Subject, from_run

import iresnet as ir
from iresnet.logdet import EXACT_LIMIT, LogDetEstimator, default_logdet

HEADER = ("model", "mean log-density, nats", "mean error", "sd", "largest", "time, exact = 1")


@torch.no_grad()
def measure(subject: Subject) -> list[str]:
    """A line of the table: errors in nats, and the time against that of the exact log-density."""
    dims = subject.x[0].numel()
    assert dims > EXACT_LIMIT, "the default is exact here"
    default, default_seconds = evaluated(subject, default_logdet(dims, training=False))
    exact, exact_seconds = evaluated(subject, ir.Exact())
    error = default - exact
    numbers = (f"{value:.3f}" for value in (error.mean(), error.std(), error.abs().max()))
    return [subject.name, f"{exact.mean():.0f}", *numbers, f"{default_seconds / exact_seconds:.2f}"]


def evaluated(subject: Subject, logdet: LogDetEstimator) -> tuple[torch.Tensor, float]:
    start = time.process_time()
    values = torch.cat([subject.flow.log_prob(part, logdet=logdet) for part in subject.x.split(4)])
    return values, time.process_time() - start


def main() -> None:
    options = arguments(__doc__, images=16)
    print(table(HEADER, [measure(from_run(run, options.data_dir, options.images)) for run in options.runs]))


if __name__ == "__main__":
    main()
