"""Processes that are really ended, in every way in which they end: the run goes on as if nothing had happened."""

import hashlib
import json
import math
import os
import pickle
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
import torch
from killing import RECIPE, Trial, at_step, differences, done, saved
from killing import train as start
from marks import slow

from iresnet.cli import run as command_line
from iresnet.config import load_config
from iresnet.errors import RunError, RunWarning
from iresnet.models import load_model
from iresnet.runs import Run
from iresnet.training import train
from iresnet.training.checkpoints import checkpoint_folders, read_checkpoint, write_checkpoint

OPTIONS = ("--train.epochs", "1")  # 20 steps, checkpoints at 7, 14 and 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    return train(load_config(RECIPE[0], [*RECIPE[1:], *OPTIONS]), tmp_path_factory.mktemp("whole") / "run").path


@pytest.fixture
def copied(whole, tmp_path):
    """A complete run, to be damaged."""
    return Run(shutil.copytree(whole, tmp_path / "run"))


def go_on(out, *changes):
    """Start the run in this process, or continue it if it has begun."""
    config = load_config(RECIPE[0], [*RECIPE[1:], *OPTIONS, *changes])
    return train(config, out, resume=(out / "config.yaml").exists())


# -- processes that end ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_is_killed_twice_is_the_same_run(whole, tmp_path):
    """kill -9 at moments of chance, each time in another process: weights, state and metrics are equal to the bit."""
    trial = Trial(tmp_path / "run", OPTIONS)
    chance = random.Random(0)
    for step in sorted(chance.sample(range(1, 19), 2)):
        outcome = trial.interrupt(at_step(trial.out, step, signal.SIGKILL, chance.uniform(0, 0.05)))
        assert outcome.status == -signal.SIGKILL
    assert trial.complete().status == 0
    assert differences(trial.out, whole) == []
    assert max(trial.redone) <= 8  # a checkpoint every 7 steps, the last step perhaps not yet in the metrics


def test_a_run_that_is_asked_to_stop_loses_nothing(whole, tmp_path):
    trial = Trial(tmp_path / "run", OPTIONS)
    outcome = trial.interrupt(at_step(trial.out, 10, signal.SIGTERM))
    assert outcome.status == 130
    assert "; continue with the same command and --resume" in outcome.message
    assert trial.redone == [0]
    go_on(trial.out)
    assert differences(trial.out, whole) == []


MOMENTS = {
    "importing": lambda out: True,
    "beginning": lambda out: out.exists(),
    "training": lambda out: done(out) >= 3,
    "saving": lambda out: any((out / "state").glob(".*.tmp")),
}


@pytest.mark.parametrize("moment", ["importing", slow("beginning"), slow("training"), slow("saving")])
def test_three_times_ctrl_c_in_half_a_second_end_a_run_without_a_traceback(moment, whole, tmp_path):
    out = tmp_path / "run"
    process = start(out, *OPTIONS)
    time.sleep(0.3)  # until Python itself has started
    while not MOMENTS[moment](out):
        assert process.poll() is None
        time.sleep(0.001)
    for _ in range(3):
        process.send_signal(signal.SIGINT)  # which does nothing to a process that has ended
        time.sleep(0.15)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.fullmatch(r"(?:(?!Traceback).*\n)*iresnet: (interrupted|stopped after step .* and --resume)\n", err)
    go_on(out)
    assert differences(out, whole) == []


@pytest.mark.parametrize("die_at", [slow(1), slow(15), 28, slow(44)])
def test_a_run_that_dies_while_it_writes_is_the_same_run(die_at, whole, tmp_path):
    """Killed when it flushes or moves a file: of the configuration, a checkpoint, the model, the last checkpoint."""
    trial = Trial(tmp_path / "run", OPTIONS)
    assert trial.interrupt(lambda process: None, die_at).status == -signal.SIGKILL
    go_on(trial.out)
    assert differences(trial.out, whole) == []
    assert not list(trial.out.rglob(".*.tmp"))


@contextmanager
def mounted(folder, *options):
    """Mount something on a folder, which needs root."""
    if subprocess.run(["mount", *options, folder], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_in_one_line_and_leaves_its_checkpoint(whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        trial = Trial(disk / "run", OPTIONS)
        outcome = trial.interrupt(lambda process: fill(process, trial.out))
        assert outcome.status == 2
        assert outcome.message.startswith("iresnet: cannot write ")
        assert outcome.message.endswith("No space left on device; free the space or choose another --out")
        assert read_checkpoint(Run(trial.out)).step == saved(trial.out) >= 14
        (disk / "ballast").unlink()
        go_on(trial.out)
        assert differences(trial.out, whole) == []


def fill(process, run):
    """Fill the disk of a run when it has two checkpoints."""
    while saved(run) < 14 and process.poll() is None:
        time.sleep(0.005)
    with (run.parent / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1000))


@pytest.mark.slow
def test_a_file_that_may_not_grow_ends_a_run_without_a_traceback(whole, tmp_path):
    """A quota: no file may be larger than some of those of a checkpoint."""
    limit = (whole / "model.safetensors").stat().st_size // 2
    out = tmp_path / "run"
    command = [sys.executable, "-m", "iresnet", "train", *RECIPE, *OPTIONS, "--out", str(out)]
    small = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))}
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **small)
    assert process.returncode == 2
    began, *warned, told = process.stderr.splitlines()
    assert began.startswith("training on ")
    assert told.startswith(f"iresnet: cannot write {out / 'state' / 'step-00000007'}: File too large")
    assert all(line.startswith("iresnet: warning: ") for line in warned)  # of trackers, whose files do not grow either
    assert not checkpoint_folders(Run(out))
    go_on(out)
    assert differences(out, whole) == []


# -- checkpoints -----------------------------------------------------------------------------------------------------


def validation(run):
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["split"] == "validation"}


def steps(run):
    return [int(folder.name[5:]) for folder in checkpoint_folders(run)]


def test_the_last_checkpoints_and_the_best_are_kept(whole, tmp_path, worse_after):
    assert steps(Run(whole)) == [7, 14, 20]
    worse_after(10)
    changes = ("--train.batch-size", "256", "--train.epochs", "4", "--train.ema", "null")  # 5 steps an epoch
    run = go_on(tmp_path / "run", *changes, "--train.keep-checkpoints", "1")
    losses = validation(run)
    best = min(losses, key=losses.get)
    assert best <= 10
    assert steps(run) == [best, 20]
    assert read_checkpoint(run).best == {"step": best, "loss": losses[best], "waited": (20 - best) // 5}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def plant(path, trap):
    """Replace a file by a pickle, and the manifest's checksum by that of the pickle."""
    replace_file(path, pickle.dumps(Payload(trap)))


def replace_file(path, content):
    manifest = json.loads((path.parent / "manifest.json").read_text())
    path.write_bytes(content)
    manifest[path.name] = hashlib.sha256(content).hexdigest()
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


DAMAGE = {
    "half of the weights": (lambda f: cut(f / "model.safetensors"), "model.safetensors is not what was written"),
    "another bit in the optimizer": (lambda f: flip(f / "optimizer.safetensors"), "optimizer.safetensors is not what"),
    "another bit in the state": (lambda f: flip(f / "state.json"), "state.json is not what was written (SHA-256)"),
    "no averages": (lambda f: (f / "average.safetensors").unlink(), "average.safetensors cannot be read"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "its manifest.json cannot be read"),
    "half of the manifest": (lambda f: cut(f / "manifest.json"), "its manifest.json cannot be read"),
    "a manifest of another kind": (
        lambda f: (f / "manifest.json").write_text("[1]"),
        "its manifest.json cannot be read",
    ),
    "an empty manifest": (lambda f: (f / "manifest.json").write_text("{}"), "does not belong into it"),
    "a file too many": (lambda f: (f / "extra.pt").write_bytes(b""), "extra.pt does not belong into it"),
    "a pickle": (lambda f: plant(f / "model.safetensors", f.parent / "trap"), "does not hold a checkpoint"),
    "a pickled state": (lambda f: plant(f / "state.json", f.parent / "trap"), "does not hold a checkpoint"),
    "an empty folder": (lambda f: [path.unlink() for path in f.iterdir()], "its manifest.json cannot be read"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(case, copied):
    damage, expected = DAMAGE[case]
    newest = checkpoint_folders(copied)[-1]
    damage(newest)
    with pytest.warns(RunWarning) as caught:
        assert read_checkpoint(copied).step == 14
    message = str(caught[0].message)
    assert message.startswith(f"{newest} is damaged: ")
    assert expected in message
    assert message.endswith("; the checkpoint before it is used")
    assert not (copied.state / "trap").exists()


@pytest.mark.parametrize("case", ["half of the weights", "an empty folder"])
def test_a_run_whose_last_checkpoint_is_damaged_is_the_same_run(case, whole, copied):
    """The metrics are cut as far as the checkpoint before it."""
    DAMAGE[case][0](checkpoint_folders(copied)[-1])
    with pytest.warns(RunWarning, match="the checkpoint before it is used"):
        go_on(copied.path)
    assert differences(copied.path, whole) == []


def test_a_run_without_a_sound_checkpoint_is_refused(copied):
    for folder in checkpoint_folders(copied):
        flip(folder / "model.safetensors")
    with pytest.warns(RunWarning), pytest.raises(RunError, match=r"no checkpoint of .* is sound \(.*20 .*14 .*7 "):
        go_on(copied.path)


@pytest.mark.parametrize("where", ["state/checkpoint.pt", "state/step-00000020/checkpoint.pt", "model.safetensors"])
def test_a_pickle_in_a_run_is_not_executed(where, copied, tmp_path):
    trap = tmp_path / "trap"
    shutil.rmtree(copied.state)
    (copied.path / where).parent.mkdir(parents=True, exist_ok=True)
    torch.save(Payload(trap), copied.path / where)
    with pytest.raises(RunError, match=r"is a pickle|step-00000020 is damaged|no checkpoint to"):
        go_on(copied.path)
    if where == "model.safetensors":
        with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
            load_model(copied)
    assert not trap.exists()
    torch.load(shutil.copy(copied.path / where, tmp_path / "copy.pt"), weights_only=False)
    assert trap.exists()  # the trap works


def test_metrics_that_were_lost_are_told(whole, copied):
    shutil.rmtree(checkpoint_folders(copied)[-1])
    os.truncate(copied.metrics_file, 1000)
    with pytest.warns(RunWarning, match=r"metrics\.jsonl has lost its end: metrics are missing"):
        go_on(copied.path)
    assert b"\0" not in copied.metrics_file.read_bytes()
    assert set(differences(copied.path, whole)) == {"metrics.jsonl", "state.json", "manifest.json"}


@pytest.mark.parametrize("tensor", [torch.rand(3, 4, 5), torch.rand(2, 3, 4, 5).mT, torch.tensor(1.5), torch.ones(0)])
def test_tensors_keep_their_layout(tensor, copied):
    last = read_checkpoint(copied)
    odd = {"a": (tensor, None, True), 3: [tensor.to(torch.float16), math.inf, "x"], "$": -0.0}
    write_checkpoint(copied, replace(last, step=21, optimizer=odd), keep=3)
    back = read_checkpoint(copied).optimizer
    assert str(back) == str(odd)
    assert torch.equal(back["a"][0], tensor)
    assert back["a"][0].stride() == tensor.stride()


# -- runs that cannot go on ------------------------------------------------------------------------------------------


def test_a_run_in_use_is_left_alone(tmp_path):
    """A process that is killed leaves its lock file, but not its lock."""
    process = start(tmp_path / "run", "--train.epochs", "500")
    while not saved(tmp_path / "run"):
        assert process.poll() is None
        time.sleep(0.02)
    before = done(tmp_path / "run")
    expected = rf"run is in use by process {process.pid} on {platform.node()}; wait for its end, or choose another"
    with pytest.raises(RunError, match=expected):
        go_on(tmp_path / "run", "--train.epochs", "500")
    assert done(tmp_path / "run") >= before
    process.kill()
    process.communicate()
    assert (tmp_path / "run" / ".lock").read_text()
    with pytest.raises(RunError, match=r"other settings \(train.epochs: 500 -> 1\)"):
        go_on(tmp_path / "run")


def of_a_newer_version(run):
    (run.path / "env.json").write_text(json.dumps({**run.read_json("env.json"), "iresnet": "99.0"}))


def of_a_newer_format(run):
    for file in run.state.glob("*/state.json"):
        tree = {**json.loads(file.read_text()), "format": 2, "iresnet": "99.0", "state": "of another kind"}
        replace_file(file, json.dumps(tree).encode())


def sharded(run):
    write_checkpoint(run, replace(read_checkpoint(run), step=21, world_size=4), keep=1)


def emptied(run):
    shutil.rmtree(run.path)
    run.path.mkdir()


REFUSED = {
    "a newer version": (of_a_newer_version, r"run was made by iresnet 99.0, this is [\d.]+: install the newer version"),
    "a newer format": (
        of_a_newer_format,
        r"step-00000020 was written by iresnet 99.0, this is [\d.]+: install the newer",
    ),
    "shards of more processes": (sharded, "step-00000021 is sharded over 4 processes, this run has 1: continue with"),
    "an empty folder": (emptied, r"is not a run folder \(no config.yaml in it\)"),
    "no checkpoints": (lambda run: shutil.rmtree(run.state), "has no checkpoint to resume from"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_runs_that_cannot_go_on_are_refused_in_one_line(case, copied, capsys):
    change, expected = REFUSED[case]
    change(copied)
    before = {path: path.read_bytes() for path in copied.path.rglob("*") if path.is_file()}
    assert command_line(["train", *RECIPE, *OPTIONS, "--out", str(copied.path), "--resume"]) == 2
    complaint = capsys.readouterr().err
    assert re.search(expected, complaint)
    assert complaint.count("\n") == 1
    assert {path: path.read_bytes() for path in copied.path.rglob("*") if path.is_file()} == before


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(copied, capsys):
    with mounted(copied.path, "--bind", copied.path):
        subprocess.run(["mount", "-o", "remount,ro,bind", copied.path], check=True)
        assert command_line(["train", *RECIPE, *OPTIONS, "--out", str(copied.path), "--resume"]) == 2
    expected = f"cannot write {copied.path / '.lock'}: Read-only file system; make it writable or choose another --out"
    assert capsys.readouterr().err == f"iresnet: {expected}\n"


def test_what_checkpoints_are_kept_may_change(copied):
    go_on(copied.path, "--train.keep-checkpoints", "9", "--train.checkpoint-every", "1000")


def test_a_run_that_was_stopped_before_it_began_can_be_started(whole, tmp_path):
    out = tmp_path / "run"
    (out / "samples").mkdir(parents=True)
    (out / "state").mkdir()
    (out / ".config.yaml.1.tmp").write_text("half")
    (out / ".lock").write_text("process 1 on moon")
    go_on(out)
    assert differences(out, whole) == []


def test_a_folder_of_the_users_samples_is_no_beginning_of_a_run(tmp_path):
    (tmp_path / "run" / "samples").mkdir(parents=True)
    (tmp_path / "run" / "samples" / "mine.png").write_text("irreplaceable")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        go_on(tmp_path / "run")
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "samples", "mine.png"]
