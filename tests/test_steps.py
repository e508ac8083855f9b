"""Steps of training: in parts, averaged, skipped when they are not finite; and runs that end early."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from marks import slow

import iresnet as ir
from iresnet.bijections import ActNorm, ResidualBlock
from iresnet.certificates import excesses, seal
from iresnet.config import load_config
from iresnet.data import load
from iresnet.errors import RunError, RunWarning
from iresnet.models import inputs_of
from iresnet.training import Callback, train
from iresnet.training.callbacks import Snapshot, Stepped, Stopped
from iresnet.training.checkpoints import read_checkpoint, serialize, write_checkpoint
from iresnet.training.distributed import make_accelerator
from iresnet.training.optim import Ema, make_optimizer
from iresnet.training.step import NotFinite, Step
from iresnet.training.task import make_task

BLOCKS = ("bijection.bijections.2", "bijection.bijections.5")
"""Names of the residual blocks of the tiny density."""

LARGE = ("--train.batch-size", "256", "--train.n-pictures", "0")
"""Batches of which an epoch has 5."""


def settings(tiny, kind, *changes):
    recipe, *small = tiny[kind]
    return load_config(recipe, [*small, *changes])


def a_step(config, dtype=torch.float32):
    """A step that can be taken, its average, and batches for it."""
    dataset = load("digits")
    task = make_task(config, dataset, inputs_of(dataset, config.task.kind)).to(dtype).train()
    accelerator = make_accelerator("float32", torch.device("cpu"))
    optimizer = make_optimizer(task.model, config.optim)
    ema = None if config.train.ema is None else Ema(task.model, config.train.ema)
    batches = zip(dataset.train.x.split(64), dataset.train.y.split(64), strict=True)
    return Step(accelerator, task, optimizer, config, ema), list(batches)


def lines(run, split):
    every = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [line for line in every if line["split"] == split]


# -- in parts --------------------------------------------------------------------------------------------------------


def spied_sizes(step):
    """Numbers of examples that the loss is computed of, one after the other."""
    sizes = []
    step.own_task.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


@pytest.mark.parametrize("n_parts", [2, 7])
@pytest.mark.parametrize("optimizer", ["muon", "adamax"])
def test_a_batch_in_parts_is_the_batch(n_parts, optimizer, tiny, monkeypatch):
    """To rounding, when noise and probes are the same; ActNorm is initialized from the whole batch."""
    monkeypatch.setattr("iresnet.training.task.dequantize", lambda x, **_: x.double() + 0.25)
    changes = ("--model.logdet.name", "exact", "--optim.name", optimizer)
    runs = []
    for n in (1, n_parts):
        step, batches = a_step(settings(tiny, "density", *changes, "--train.accumulate", str(n)), torch.float64)
        sizes = spied_sizes(step)
        metrics = [step(x, y, 0.01) for x, y in batches[:2]]
        assert max(sizes[-n:]) == -(-64 // n)
        assert sum(sizes) == 64 * (2 + (n > 1))  # once more to initialize
        runs.append((metrics, step.own_task.state_dict()))
    (metrics, state), (others, other) = runs
    torch.testing.assert_close(others, metrics, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(other, state, rtol=1e-7, atol=1e-9)
    assert sum(isinstance(m, ActNorm) for m in step.own_task.modules()) > 1


# -- averaged --------------------------------------------------------------------------------------------------------


def test_averages_are_those_of_the_weights_so_far(tiny):
    step, batches = a_step(settings(tiny, "density", "--train.ema", "0.3"))
    expected = None
    for i, (x, y) in enumerate(batches[:4]):
        step(x, y, 0.02)
        weights = dict(step.own_task.model.named_parameters())
        decay = min(0.3, i / (i + 9))
        expected = {n: w.detach() * (1 - decay) + (decay * expected[n] if expected else 0) for n, w in weights.items()}
    torch.testing.assert_close(dict(step.ema.model.named_parameters()), expected, rtol=1e-5, atol=1e-6)
    buffers = dict(step.own_task.model.named_buffers())
    assert all(torch.equal(b, buffers[name]) for name, b in step.ema.model.named_buffers())


def test_the_averages_are_what_is_saved_and_validated(tiny, tmp_path):
    few = ("--train.max-steps", "5")
    run = train(settings(tiny, "density", "--train.ema", "0.9", *few), tmp_path / "run")
    plain = train(settings(tiny, "density", *few), tmp_path / "plain")
    checkpoint, other = read_checkpoint(run), read_checkpoint(plain)
    assert all(torch.equal(tensor, other.model[name]) for name, tensor in checkpoint.model.items())
    model = copy.deepcopy(ir.load(run.path))
    model.load_state_dict(checkpoint.average["model"])
    seal(model)
    saved = ir.load(run.path).state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    assert lines(run, "validation")[-1]["loss"] != lines(plain, "validation")[-1]["loss"]


# -- not finite ------------------------------------------------------------------------------------------------------


def nan_output(z):
    return z * float("nan")


def nan_gradient(z):
    return z + (z - z.detach()).abs().sqrt()


class Sick:
    """Makes one residual block of a model sick while it is told to."""

    def __init__(self, monkeypatch, index, illness):
        self.active, self.order = False, []
        healthy = ResidualBlock.forward_and_logdet

        def forward_and_logdet(block, x, **options):
            if block.training and id(block) not in self.order:
                self.order.append(id(block))
            z, logdet = healthy(block, x, **options)
            sick = self.active and block.training and self.order.index(id(block)) == index
            return (illness(z) if sick else z), logdet

        monkeypatch.setattr(ResidualBlock, "forward_and_logdet", forward_and_logdet)
        monkeypatch.setattr("iresnet.training.trainer.check_step_fits", lambda *_: None)  # which runs copies of blocks


ILLNESSES = {
    "the output": (nan_output, lambda name: f"the output of '{name}' is not finite"),
    "the gradient": (nan_gradient, lambda name: f"the gradient of '{name}' is not finite"),
}


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("case", ILLNESSES)
@pytest.mark.parametrize("n_parts", ["1", "2"])
def test_a_step_that_is_not_finite_changes_nothing_and_names_the_block(case, index, n_parts, tiny, monkeypatch):
    illness, reason = ILLNESSES[case]
    sick = Sick(monkeypatch, index, illness)
    step, batches = a_step(settings(tiny, "density", "--train.ema", "0.9", "--train.accumulate", n_parts))
    for x, y in batches[:2]:  # the first one initializes ActNorm
        before = copy.deepcopy(state_of(step))
        sick.active = True
        with pytest.raises(NotFinite, match=reason(BLOCKS[index])):
            step(x, y, 0.01)
        assert same(state_of(step), before)
        sick.active = False
        assert torch.isfinite(step(x, y, 0.01)["loss"])
        assert not same(state_of(step), before)


def state_of(step):
    return step.own_task.state_dict(), step.optimizer.state_dict(), step.ema.state_dict()


def same(a, b):
    (value, tensors), (other, others) = [(serialize(v, tensors), tensors) for v, tensors in ((a, {}), (b, {}))]
    return value == other and all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def test_weights_that_are_not_finite_are_named(tiny):
    step, batches = a_step(settings(tiny, "density"))
    layer = next(m for m in step.own_task.modules() if isinstance(m, ir.LipschitzConv2d))
    with torch.no_grad():
        layer.bias[0] = float("inf")
    with pytest.raises(NotFinite, match=r"the weights 'bijection.bijections.2.g.\d.bias' are not finite"):
        step(*batches[0], 0.01)


class At(Callback):
    """Does something after certain steps."""

    def __init__(self, **acts):
        self.acts, self.events = {int(step[1:]): act for step, act in acts.items()}, []

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, Stepped) and event.step in self.acts:
            self.acts[event.step]()


def test_bad_steps_are_skipped_counted_and_told(tiny, tmp_path, monkeypatch):
    sick = Sick(monkeypatch, 1, nan_output)
    at = At(s4=lambda: setattr(sick, "active", True), s6=lambda: setattr(sick, "active", False))
    run = train(settings(tiny, "density", "--train.log-every", "1"), tmp_path / "run", callbacks=[at])
    reason = f"the output of '{BLOCKS[1]}' is not finite"
    told = [{"split": "skipped", "step": s, "epoch": s / 20, "reason": reason, "total": s - 4} for s in (5, 6)]
    assert lines(run, "skipped") == told
    assert [line["step"] for line in lines(run, "train")] == [*range(1, 5), *range(7, 21)]
    assert read_checkpoint(run).skipped == {"total": 2, "in_a_row": 0, "longest": 0}


def test_too_many_bad_steps_end_a_run_with_a_diagnosis(tiny, tmp_path, monkeypatch):
    """The checkpoint before them is intact: a run that goes on from it is the run that never was ill."""
    sick = Sick(monkeypatch, 0, nan_gradient)
    changes = ("--train.epochs", "2", "--train.max-bad-steps", "3", "--train.checkpoint-every", "1", *LARGE)
    whole = train(settings(tiny, "density", *changes), tmp_path / "whole")
    at = At(s5=lambda: setattr(sick, "active", True))
    expected = rf"4 steps in a row had to be skipped, up to step 9: the gradient of '{BLOCKS[0]}' is not finite; "
    expected += r"lower --optim.lr \(now 0.04\), or set --optim.clip-norm; the last checkpoint, of step 5, is intact"
    sick.order.clear()
    with pytest.raises(RunError, match=expected):
        train(settings(tiny, "density", *changes), tmp_path / "run", callbacks=[at])
    assert at.events[-1] == Stopped(complete=False)
    sick.active = False
    run = train(settings(tiny, "density", *changes), tmp_path / "run", resume=True)
    assert run.metrics_file.read_bytes() == whole.metrics_file.read_bytes()
    assert run.model_file.read_bytes() == whole.model_file.read_bytes()


def test_weights_that_are_not_finite_are_not_saved(tiny, tmp_path, monkeypatch):
    tasks = []
    monkeypatch.setattr("iresnet.training.trainer.make_task", lambda *args: tasks.append(make_task(*args)) or tasks[0])
    poison = At(s6=lambda: next(tasks[0].model.parameters()).data.fill_(float("nan")))
    with pytest.raises(RunError, match=r"the weights 'bijection.* are not finite: .* the last checkpoint is intact"):
        train(settings(tiny, "density", "--train.checkpoint-every", "3"), tmp_path / "run", callbacks=[poison])
    assert [folder.name for folder in (tmp_path / "run" / "state").iterdir()] == ["step-00000003"]


# -- bounds that are left --------------------------------------------------------------------------------------------


def test_layers_that_leave_their_coefficient_are_logged(tiny, tmp_path):
    """One power iteration a step cannot follow weights that move this fast."""
    changes = ("--model.n-power-steps", "1", "--optim.lr", "0.5")
    snapshots = At()
    run = train(settings(tiny, "density", *changes), tmp_path / "run", callbacks=[snapshots])
    model = ir.load(run.path)
    model.load_state_dict(read_checkpoint(run).model)
    bounds = {bound.name: bound.upper for bound in ir.certify(model).layers}
    expected = {name: bound for name, bound in bounds.items() if bound > 1.01 * 0.9}
    assert expected
    (line,) = lines(run, "excess")
    assert line.pop("layers") == {name: {"bound": bound, "coeff": 0.9} for name, bound in expected.items()}
    assert line == {"split": "excess", "step": 20, "epoch": 1.0}
    (snapshot,) = [event for event in snapshots.events if isinstance(event, Snapshot)]
    assert snapshot.excesses == excesses(model)
    assert excesses(snapshot.model) == ()


# -- patience --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", ["null", slow("0.5")])
def test_a_run_ends_when_it_gets_no_better_and_saves_the_best(ema, tiny, tmp_path, worse_after):
    worse_after(10)
    options = ("--train.epochs", "12", "--train.patience", "2", "--train.keep-checkpoints", "1")
    config = settings(tiny, "hybrid", *options, *LARGE, "--train.ema", ema)
    at = At()
    run = train(config, tmp_path / "run", callbacks=[at])
    losses = {line["step"]: line["loss"] for line in lines(run, "validation")}
    best = min(losses, key=losses.get)
    assert max(losses) == best + 10 < 60
    assert at.events[-1] == Stopped(complete=True)
    checkpoint = read_checkpoint(run, best)
    saved = ir.load(run.path)
    model = copy.deepcopy(saved)
    model.load_state_dict(checkpoint.average["model"] if checkpoint.average else checkpoint.model)
    seal(model)
    assert all(map(torch.equal, model.state_dict().values(), saved.state_dict().values()))
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    train(config, run.path, resume=True)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_best_snapshot_that_is_damaged_is_named_and_the_last_model_stays(tiny, tmp_path, worse_after):
    worse_after(10)
    config = settings(tiny, "hybrid", "--train.epochs", "12", "--train.patience", "2", *LARGE)
    run = train(config, tmp_path / "run")
    losses = {line["step"]: line["loss"] for line in lines(run, "validation")}
    best = run.state / f"step-{min(losses, key=losses.get):08d}"
    (best / "model.safetensors").write_bytes(b"")
    before = run.model_file.read_bytes()
    with pytest.warns(RunWarning, match=f"{best.name} is damaged.*the model is that of the last step, not the best"):
        train(config, run.path, resume=True)
    assert run.model_file.read_bytes() == before
    shutil.rmtree(best)
    with pytest.warns(RunWarning, match="has no checkpoint of step"):
        train(config, run.path, resume=True)


# -- processes -------------------------------------------------------------------------------------------------------


def test_another_number_of_processes_goes_on_with_other_noise(tiny, tmp_path):
    run = train(settings(tiny, "toy"), tmp_path / "run")
    checkpoint = read_checkpoint(run)
    shutil.rmtree(run.state)
    write_checkpoint(run, replace(checkpoint, step=10, random=2 * checkpoint.random), keep=1)
    with pytest.warns(RunWarning, match="by 2 processes on the CPU and continues with 1 on the CPU: with other noise"):
        train(settings(tiny, "toy"), tmp_path / "run", resume=True)
