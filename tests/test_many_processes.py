"""Several real processes train one model: as one process with the same batches would, and they end together."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from accelerate import PartialState
from marks import slow

from iresnet import cli
from iresnet.collectives import process_group
from iresnet.config import load_config
from iresnet.errors import Interrupted
from iresnet.runs import Run
from iresnet.training import Callback, train
from iresnet.training.callbacks import Stepped
from iresnet.training.checkpoints import checkpoint_folders, read_checkpoint

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs gloo")

QUIET = ("--train.snapshot-every", "100", "--train.n-pictures", "0", "--train.log-every", "3")
PATIENCE = 120  # seconds until a test gives up, on a machine that has much else to do
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@contextmanager
def running(*command):
    """A command in a process group of its own, which is gone at the end; yields its process."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([*map(str, command)], env=ENVIRONMENT, **options) as process:
        try:
            yield process
        finally:
            for pid in [*workers(process.pid), process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def iresnet(*tokens):
    return (sys.executable, "-m", "iresnet", *tokens)


def torchrun(*options):
    return (sys.executable, "-m", "torch.distributed.run", *options, "-m", "iresnet")


def workers(pid):
    """The processes that an agent started, in the order of their ranks."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def wait_for(event, process, timeout=PATIENCE):
    """Wait until something is the case, as long as a process is there."""
    end = time.monotonic() + timeout
    while not event():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)


def metrics(run):
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


# -- two are one -----------------------------------------------------------------------------------------------------

SHARDED = ("--train.sharding", "fsdp")
SAME = {
    "points, adam": ("toy-density", "--model.blocks", "3", "--optim.name", "adam", "--train.batch-size", "1000"),
    "images, muon": ("digits-density", "--data.name", "images.npz", "--optim.name", "muon"),
    "images, muon, sharded": ("digits-density", "--data.name", "images.npz", "--model.memory", "recompute", *SHARDED),
    "a classifier": ("digits-classify", "--optim.name", "sgd", "--optim.lr", "0.1"),
    "a hybrid": ("digits-hybrid", "--data.name", "labeled.npz", "--model.memory", "recompute"),
}
"""Recipes without noise of data; with exact log-determinants nothing random is left but the order of examples."""


def config_of(case):
    recipe, *changes = SAME[case]
    small = ["--model.hidden", "8", "--train.epochs", "2" if "images" in case else "1", *QUIET]
    small += [] if "points" in case else ["--model.blocks", "[1,1]", "--train.batch-size", "64"]
    small += ["--model.spline", "0", "--model.base", "diagonal-normal"]  # steep slopes amplify rounding
    small += ["--data.augment", "[]"] if "classifier" in case else ["--model.logdet", "exact"]
    return load_config(recipe, [*small, *changes])


def noisy_config(sharding):
    """Digits, which need noise, and log-determinants from random probes."""
    small = ["--model.hidden", "8", "--model.blocks", "[1,1]", "--train.batch-size", "400", *QUIET]
    return load_config("digits-density", [*small, "--train.epochs", "1", "--train.sharding", sharding])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Continuous images that are far from normalized."""
    generator = np.random.default_rng(0)
    x = generator.normal(3.0, 2.0, (400, 1, 6, 6)) * np.linspace(0.2, 3, 6)
    folder = tmp_path_factory.mktemp("data")
    np.savez(folder / "images.npz", x=x.astype(np.float32))
    np.savez(folder / "labeled.npz", x=x.astype(np.float32), y=generator.integers(0, 3, 400))
    return folder


def _work(rank, port, folder, data):
    """One of two processes: as torchrun starts them, but for all cases."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    with process_group():
        for case in SAME:
            train(config_of(case), folder / case, data_dir=data)
            assert PartialState().num_processes == 2
        for sharding in ("ddp", "fsdp"):
            train(noisy_config(sharding), folder / f"noisy {sharding}")
        with suppress(Interrupted):
            train(config_of("images, muon, sharded"), folder / "resumed", data_dir=data, callbacks=[_StopAt(6)])
        train(config_of("images, muon, sharded"), folder / "resumed", data_dir=data, resume=True)
        for case, (tokens, _) in COMMANDS.items():
            with (folder / f"{case} {rank}.txt").open("w") as file, redirect_stdout(file):
                assert cli.run([token.replace("RUN", str(folder / f"run {case}")) for token in tokens]) == 0


class _StopAt(Callback):
    """Asks for a stop after a step, in the process that has callbacks: the first one."""

    def __init__(self, step):
        self.step = step

    def __call__(self, event):
        if isinstance(event, Stepped) and event.step == self.step:
            signal.raise_signal(signal.SIGINT)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def shared(data, trained, tmp_path_factory):
    """What two processes trained, wrote and printed in all cases."""
    folder = tmp_path_factory.mktemp("two")
    for case in COMMANDS:
        copy_with_images(trained("hybrid"), folder / f"run {case}")
    mp.start_processes(_work, (free_port(), folder, data), nprocs=2, start_method="spawn")
    return folder


@pytest.mark.parametrize("case", SAME)
def test_two_processes_are_one_with_the_same_batches(case, data, shared, tmp_path):
    """Weights, power iterations, running averages, the optimizer's state and the metrics, to rounding."""
    config = config_of(case)
    config = replace(config, train=replace(config.train, sharding="ddp"))
    one, two = train(config, tmp_path / "one", data_dir=data), Run(shared / case)
    alone, both = read_checkpoint(one), read_checkpoint(two)
    assert alone.step == both.step >= 5
    for name, tensor in alone.model.items():
        a, b = tensor.double(), both.model[name].double()
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5 * max(1.0, float(a.abs().max())), msg=name)
    for a, b in zip(moments(alone), moments(both), strict=True):
        assert float(b) == pytest.approx(float(a), rel=1e-4)
    for a, b in zip(metrics(one), metrics(two), strict=True):
        a, b = flat(a), flat(b)
        assert b.pop("/split") == a.pop("/split")
        errors = [line.pop("/reconstruction_error", 0.0) for line in (a, b)]
        assert max(errors) < 1e-4  # all of it is rounding
        assert b == pytest.approx(a, rel=1e-4)


def flat(tree, where=""):
    """Values of nested dictionaries by their path."""
    if not isinstance(tree, dict):
        return {where: tree}
    return {path: value for key, below in tree.items() for path, value in flat(below, f"{where}/{key}").items()}


def moments(checkpoint):
    """Sizes of all tensors of the optimizer's state, however it names their parameters."""
    state = checkpoint.optimizer["state"].values()
    return sorted(t.double().norm() for tensors in state for t in tensors.values() if torch.is_tensor(t))


def test_sharded_weights_meet_the_same_noise_and_probes(shared):
    for a, b in zip(*(metrics(Run(shared / f"noisy {sharding}")) for sharding in ("ddp", "fsdp")), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)


def test_a_sharded_run_resumes_as_if_it_had_not_been_stopped(shared):
    resumed, whole = Run(shared / "resumed"), Run(shared / "images, muon, sharded")
    assert [folder.name for folder in checkpoint_folders(resumed)] == ["step-00000006", "step-00000010"]
    # To rounding, which Muon makes large in directions that matter little: where shards lie in memory decides how some
    # processors sum.
    for a, b in zip(metrics(resumed), metrics(whole), strict=True):
        assert (a.pop("split"), a["step"]) == (b.pop("split"), b["step"])
        if "grad_norm" in a:
            assert a == pytest.approx(b, rel=1e-5)
        elif "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


# -- evaluation ------------------------------------------------------------------------------------------------------

COMMANDS = {
    "evaluate": (("evaluate", "RUN", "--dequantize-samples", "2"), "evaluation.json"),
    "until it is good enough": (("evaluate", "RUN", "--standard-error", "0.05"), "evaluation.json"),
    "sample": (("sample", "RUN", "-n", "70"), "samples/samples.png"),
    "reconstruct": (("reconstruct", "RUN", "--solver-examples", "2"), "samples/reconstructions.png"),
    "score": (("score", "RUN", "RUN/new.npz", "--out", "RUN/scores.csv", "--train-examples", "120"), "scores.csv"),
    "predict": (("predict", "RUN", "RUN/new.npz", "--out", "RUN/classes.csv", "--batch-size", "7"), "classes.csv"),
}


def copy_with_images(source, target):
    """Copy a run, and put images to score beside it."""
    run = Path(shutil.copytree(source, target))
    np.savez(run / "new.npz", x=np.random.default_rng(1).integers(0, 17, (50, 1, 8, 8), dtype=np.uint8))
    return run


@pytest.mark.parametrize("case", COMMANDS)
def test_two_processes_write_and_print_what_one_does(case, trained, shared, tmp_path, capsys):
    tokens, written = COMMANDS[case]
    run = copy_with_images(trained("hybrid"), tmp_path / "run")
    assert cli.run([token.replace("RUN", str(run)) for token in tokens]) == 0
    expected = capsys.readouterr().out.replace(str(run), "RUN")
    printed = [
        (shared / f"{case} {rank}.txt").read_text().replace(str(shared / f"run {case}"), "RUN") for rank in range(2)
    ]
    assert printed == [expected, ""]
    assert expected.count(f"wrote RUN/{written}") == 1
    assert (run / written).read_bytes() == (shared / f"run {case}" / written).read_bytes()


# -- one ends, all end -----------------------------------------------------------------------------------------------

LONG = ("toy-density", "--model.blocks", "2", "--model.hidden", "8", "--train.batch-size", "1000", *QUIET)
LONG += ("--train.epochs", "6", "--train.checkpoint-every", "5")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of two processes that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with running(*iresnet("train", *LONG, "--out", out, "--processes", "2")) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert output.count("trained toy-density") == 1
    return Run(out)


def steps(run):
    return [line["step"] for line in metrics(run)] if run.metrics_file.exists() else []


def command_of(run):
    """The command line that trains a run in two processes."""
    return iresnet("train", *LONG, "--out", run.path, "--processes", "2")


def kill_the_second(run):
    """SIGKILL of the second of two processes."""
    with running(*command_of(run)) as process:
        wait_for(lambda: any(step >= 9 for step in steps(run)), process)
        pids = workers(process.pid)
        start = time.monotonic()
        os.kill(pids[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE)
    assert time.monotonic() - start < 60
    assert process.returncode == 1
    assert "was ended by SIGKILL, and the others with it" in errors or "lost the others" in errors
    assert "Traceback" not in errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
def test_a_killed_process_ends_all_with_one_line(tmp_path):
    kill_the_second(Run(tmp_path / "run"))


@pytest.mark.slow
def test_a_run_one_of_whose_processes_was_killed_is_resumed_as_if_it_had_not_been(undisturbed, tmp_path):
    run = Run(tmp_path / "run")
    kill_the_second(run)
    with running(*command_of(run), "--resume") as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert_same_run(run, undisturbed)


@pytest.mark.slow
def test_torchrun_restarts_and_the_run_resumes_by_itself(undisturbed, tmp_path):
    run = Run(tmp_path / "run")
    command = torchrun("--standalone", "--nproc_per_node=2", "--max-restarts=2")
    with running(*command, "train", *LONG, "--out", run.path) as process:
        wait_for(lambda: any(step >= 9 for step in steps(run)), process)
        os.kill(workers(process.pid)[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert_same_run(run, undisturbed)


@pytest.mark.slow
def test_a_request_to_stop_reaches_all(tmp_path):
    """Ctrl-C stops both between the same two steps, and the run is saved."""
    run = Run(tmp_path / "run")
    with running(*command_of(run)) as process:
        wait_for(lambda: any(step >= 9 for step in steps(run)), process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert errors.count("continue with the same command and --resume") == 1
    checkpoint = read_checkpoint(run)
    assert checkpoint.step == int(re.search(r"stopped after step (\d+)", errors)[1])
    assert not torch.equal(checkpoint.random[0]["cpu"], checkpoint.random[1]["cpu"])


def assert_same_run(run, other):
    assert run.metrics_file.read_text() == other.metrics_file.read_text()
    assert run.model_file.read_bytes() == other.model_file.read_bytes()


# -- two machines ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_agents_are_one_with_two_processes(undisturbed, tmp_path):
    """Two agents of one process each meet at an address, as on two machines."""
    run, port = Run(tmp_path / "run"), free_port()
    meeting = ("--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}")
    meeting += ("--rdzv_id=test", "--local_addr=127.0.0.1")
    command = ("train", *LONG, "--out", run.path)
    with ExitStack() as stack:
        nodes = [stack.enter_context(running(*torchrun(*meeting, f"--node_rank={i}"), *command)) for i in range(2)]
        outputs = [node.communicate(timeout=PATIENCE) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert sum(output.count("trained toy-density") for output, _ in outputs) == 1
    assert_same_run(run, undisturbed)


# -- bad input -------------------------------------------------------------------------------------------------------

REFUSED = {
    "a taken folder": ((), "holds a run already; continue it with --resume"),
    "more GPUs than there are": (("--gpus", "99"), "--gpus 99 needs as many GPUs"),
    "a batch that cannot be shared": (("--train.batch-size", "999"), "cannot be divided evenly among 2 processes"),
}


@pytest.mark.parametrize(
    "case",
    [
        "more GPUs than there are",
        "a batch that cannot be shared",
        slow("a taken folder"),
    ],
)
def test_what_goes_wrong_everywhere_is_told_once(case, trained):
    changes, expected = REFUSED[case]
    changes = changes if "--gpus" in changes else (*changes, "--processes", "2")
    with running(*iresnet("train", *LONG, "--out", trained("toy"), *changes)) as process:
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert expected in errors
    assert errors.count("\n") == 1
