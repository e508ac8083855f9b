"""Fit the neural spline flow of zuko to UCI tables, with the same rows, noise and standardization as iresnet.

    python experiments/spline_flow.py --data-dir DIR [--only concrete ...] [--splits 3] [--seconds 120]

Writes spline_flow.json beside this script. A fit runs on one thread until so many CPU seconds are spent or the
validation loss has not improved for 20 epochs; the weights of the best epoch are evaluated on the test split.
"""

import argparse
import copy
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import zuko
from torch import Tensor, nn

from iresnet.data import Dataset, load
from iresnet.data.published import UCI
from iresnet.models import inputs_of

PATIENCE = 20
RESULTS = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Fit:
    """Mean test nats of an example in the units of the table, with epochs, CPU seconds and number of parameters."""

    nats: float
    epochs: int
    cpu_seconds: float
    parameters: int


def fit(dataset: Dataset, *, seed: int, seconds: float) -> Fit:
    """Fit a spline flow of five transforms to the standardized training split."""
    torch.manual_seed(seed)
    inputs = inputs_of(dataset, "density")
    mean, std = torch.tensor(inputs.mean), torch.tensor(inputs.std)
    train, validation, test = ((split.x - mean) / std for split in (dataset.train, dataset.validation, dataset.test))
    flow = zuko.flows.NSF(dataset.shape[0], transforms=5, hidden_features=(64, 64))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    begin, epoch, best, state, waited = time.process_time(), 0, float("inf"), flow.state_dict(), 0
    while waited < PATIENCE and time.process_time() - begin < seconds:
        _one_epoch(flow, optimizer, train)
        epoch += 1
        loss, waited = _nats(flow, validation), waited + 1
        if loss < best:
            best, state, waited = loss, copy.deepcopy(flow.state_dict()), 0
    took = time.process_time() - begin
    flow.load_state_dict(state)
    n_parameters = sum(parameter.numel() for parameter in flow.parameters())
    return Fit(_nats(flow, test) + float(std.log().sum()), epoch, round(took, 1), n_parameters)


def _one_epoch(flow: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    for batch in x[torch.randperm(len(x))].split(min(256, max(32, len(x) // 20))):
        optimizer.zero_grad()
        (-flow().log_prob(batch).mean()).backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
        optimizer.step()


@torch.no_grad()
def _nats(flow: nn.Module, x: Tensor) -> float:
    return float(-torch.cat([flow().log_prob(chunk) for chunk in x.split(1024)]).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="a folder of data sets")
    parser.add_argument("--only", nargs="+", choices=UCI, default=UCI)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, dict]] = {}
    for seed in range(options.splits):
        for name in options.only:
            found = fit(load(name, options.data_dir, split_seed=seed), seed=seed, seconds=options.seconds)
            print(name, seed, found, flush=True)
            results.setdefault(name, {})[str(seed)] = asdict(found)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
