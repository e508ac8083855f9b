"""CPU time to a test likelihood: Fashion-MNIST padded to 32x32, the architecture and batch size of the 2019 reference.

    python benchmarks/time_to_likelihood.py --data-dir DIR [--steps 200] [--seeds 0 1 2]

The published code on one thread reaches 4.51 bits/dim (training) after 3119 CPU seconds. The time measured here is that
of all training steps, without loading the data and without the evaluation of the sealed model on the test split.
"""

import argparse
import copy
import json
import statistics
import time
from dataclasses import replace

import torch

import iresnet as ir
from iresnet.config import Config, load_config
from iresnet.data import Batches, Dataset, load
from iresnet.evaluation import likelihood
from iresnet.models import inputs_of
from iresnet.training.optim import learning_rate, make_optimizer, set_learning_rate
from iresnet.training.task import Task, make_task

RECIPE = "fashion-mnist-density-32"
REFERENCE = {"bits_per_dim": 4.51, "cpu_seconds": 3119}


def train(config: Config, dataset: Dataset, n_steps: int) -> tuple[Task, float, list[float]]:
    """Train for so many steps; return the task, CPU seconds, and the loss of every step."""
    task = make_task(config, dataset, inputs_of(dataset, "density")).train()
    optimizer = make_optimizer(task.model, config.optim)
    batches = Batches(dataset.train, config.train.batch_size, seed=config.train.seed)
    torch.manual_seed(config.train.seed + 1)
    losses, start = [], time.process_time()
    for step, (x, y) in zip(range(n_steps), batches.epoch(0), strict=False):
        set_learning_rate(optimizer, learning_rate(config.optim, (step + 0.5) / n_steps, 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
            loss, _ = task(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return task, time.process_time() - start, torch.stack(losses).tolist()


def run(seed: int, arguments: argparse.Namespace, dataset: Dataset) -> dict[str, float]:
    """Train, seal and evaluate; the gap is the loss by sealing on a batch with the same noise and probes."""
    config = load_config(RECIPE, arguments.overrides)
    config = replace(config, train=replace(config.train, seed=seed))
    task, seconds, losses = train(config, dataset, arguments.steps)
    sealed = copy.deepcopy(task).eval()
    certificate = ir.seal(sealed.model)
    bits = []
    for each in (task.eval(), sealed):
        torch.manual_seed(0)
        with torch.no_grad():
            bits.append(float(each(dataset.test.x[:512], None)[1]["bits_per_dim"]))
    score = likelihood(
        sealed.model, replace(dataset.test, x=dataset.test.x[: arguments.n], y=None), levels=dataset.levels
    )
    return {
        "seed": seed,
        "cpu_seconds": seconds,
        "test_bits_per_dim": score.bits_per_dim.mean,
        "half_width": score.bits_per_dim.half_width,
        "train_bits_per_dim": statistics.fmean(losses[-50:]),
        "gap_at_sealing": bits[1] - bits[0],
        "largest_block_bound": max(block.upper for block in certificate.blocks),
        "certified": certificate.certified,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--steps", type=int, default=200, help="training steps, at most an epoch")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=10_000, help="test images")
    arguments, arguments.overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    config = load_config(RECIPE, arguments.overrides)
    dataset = load(config.data.name, arguments.data_dir, pad_to=config.data.pad_to)
    rows = []
    for seed in arguments.seeds:
        rows.append(run(seed, arguments, dataset))
        print(json.dumps(rows[-1]), flush=True)
    for key in ("cpu_seconds", "test_bits_per_dim"):
        numbers = [row[key] for row in rows]
        sd = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
        print(f"{key}: mean {statistics.fmean(numbers):.4g}, sd {sd:.2g}, {len(numbers)} seeds")
    print("reference: {bits_per_dim} bits/dim after {cpu_seconds} CPU seconds".format(**REFERENCE))


if __name__ == "__main__":
    main()
