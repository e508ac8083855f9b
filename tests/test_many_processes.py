"""Several real processes train one model: as one process with the same batches would, and they end together."""

import json
import os
import socket
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from accelerate import PartialState

from iresnet.config import load_config
from iresnet.processes import joined
from iresnet.runs import Run
from iresnet.training import train
from iresnet.training.checkpoints import read_checkpoint

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")

QUIET = ("--train.snapshot-every", "100", "--train.n-pictures", "0", "--train.log-every", "3")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def together(*tokens, n=2, torchrun=(), timeout=60):
    """Run a command line in n processes, and return what came of it."""
    command = [*TORCHRUN, f"--nproc_per_node={n}", *torchrun, "-m", "iresnet", *map(str, tokens)]
    return subprocess.run(command, env=ENVIRONMENT, timeout=timeout, capture_output=True, text=True, check=False)


def iresnet(*tokens, timeout=60):
    """Run a command line in a process of its own."""
    command = [sys.executable, "-m", "iresnet", *map(str, tokens)]
    return subprocess.run(command, env=ENVIRONMENT, timeout=timeout, capture_output=True, text=True, check=False)


def metrics(run):
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


# -- two are one -----------------------------------------------------------------------------------------------------

SAME = {
    "points, adam": ("toy-density", "--model.blocks", "3", "--optim.name", "adam", "--train.batch-size", "1000"),
    "images, muon": ("digits-density", "--data.name", "images.npz", "--optim.name", "muon"),
    "a classifier": ("digits-classify", "--optim.name", "sgd", "--optim.lr", "0.1"),
    "a hybrid": ("digits-hybrid", "--data.name", "labelled.npz", "--model.memory", "recompute"),
}
"""Recipes without noise of data; with exact log-determinants nothing random is left but the order of examples."""


def config_of(case):
    recipe, *changes = SAME[case]
    small = ["--model.hidden", "8", "--train.epochs", "2" if "images" in case else "1", *QUIET]
    small += [] if "points" in case else ["--model.blocks", "[1,1]", "--train.batch-size", "64"]
    small += ["--data.augment", "[]"] if "classifier" in case else ["--model.logdet", "exact"]
    return load_config(recipe, [*small, *changes])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Continuous images that are far from normalised."""
    generator = np.random.default_rng(0)
    x = generator.normal(3.0, 2.0, (400, 1, 6, 6)) * np.linspace(0.2, 3, 6)
    folder = tmp_path_factory.mktemp("data")
    np.savez(folder / "images.npz", x=x.astype(np.float32))
    np.savez(folder / "labelled.npz", x=x.astype(np.float32), y=generator.integers(0, 3, 400))
    return folder


def _train_all(rank, port, folder, data):
    """One of two processes: as torchrun starts them, but for all cases."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    warnings.simplefilter("error")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    with joined():
        for case in SAME:
            train(config_of(case), f"{folder}/{case}", data_dir=data)
            assert PartialState().num_processes == 2


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def shared(data, tmp_path_factory):
    """All cases, trained by two processes."""
    folder = tmp_path_factory.mktemp("two")
    mp.start_processes(_train_all, (free_port(), str(folder), str(data)), nprocs=2, start_method="spawn")
    return folder


@pytest.mark.parametrize("case", SAME)
def test_two_processes_are_one_with_the_same_batches(case, data, shared, tmp_path):
    """Weights, power iterations, running averages, the optimiser's state and the metrics, to rounding."""
    one, two = train(config_of(case), tmp_path / "one", data_dir=data), Run(shared / case)
    alone, both = read_checkpoint(one), read_checkpoint(two)
    assert alone.step == both.step >= 5
    for name, tensor in alone.model.items():
        a, b = tensor.double(), both.model[name].double()
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5 * max(1.0, float(a.abs().max())), msg=name)
    for a, b in zip(moments(alone), moments(both), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-4 * float(a.abs().max()))
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert b.pop("split") == a.pop("split")
        assert b == pytest.approx(a, rel=1e-4)


def moments(checkpoint):
    state = checkpoint.optimiser["state"]
    return [tensor for key in sorted(state) for _, tensor in sorted(state[key].items()) if torch.is_tensor(tensor)]
