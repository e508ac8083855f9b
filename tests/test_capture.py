"""Steps that the device decides, and their replay as one graph, against steps that the host looks at."""

import copy
import importlib
import json
import warnings

import pytest
import torch
from recording import Recording

from iresnet.config import load_config
from iresnet.data import load
from iresnet.devices import host_random_state
from iresnet.errors import RunError, RunWarning
from iresnet.models import inputs_of
from iresnet.normalization import PowerIteration
from iresnet.training import Callback, train
from iresnet.training.callbacks import BadStep
from iresnet.training.capture import WARM_UP, Captured, obstacle
from iresnet.training.distributed import make_accelerator
from iresnet.training.optim import OPTIMIZERS, Ema, make_optimizer
from iresnet.training.step import Step
from iresnet.training.task import make_task


@pytest.fixture(autouse=True)
def on_a_device(monkeypatch):
    """Values are checked on a CPU alone, whose random numbers are the host's."""
    monkeypatch.setattr("iresnet.training.capture.host_random_state", lambda: None)
    for module in ("flows", "bijections.elementwise"):
        monkeypatch.setattr(f"iresnet.{module}.is_readable", lambda _: False)
    noise = lambda x, levels: x if levels is None else x + torch.rand(x.shape)  # noqa: E731
    monkeypatch.setattr("iresnet.training.task.dequantize", noise)


STEPS = {
    **{f"density, {name}": ("density", "--optim.name", name) for name in OPTIMIZERS},
    "half, averaged, decayed": (
        *("density", "--train.logdet-chunks", "2", "--train.ema", "0.9"),
        *("--optim.weight-decay", "0.01", "--optim.clip-norm", "0.5"),
    ),
    "in parts": ("density", "--train.accumulate", "2"),
    "early": ("density", "--model.memory", "early"),
    "series": ("density", "--model.logdet.name", "power-series"),
    # A bias before a batch norm has no gradient but rounding, which Adamax would take for one.
    "classify": ("classify", "--data.augment", "[pad-crop, flip]", "--optim.name", "sgd"),
    "hybrid": ("hybrid", "--optim.name", "sgd"),
    "toy": ("toy",),
}
RATES = (0.01, 0.02, 0.005, 0.03, 0.01, 0.02, 0.004)


def settings(tiny, kind, *changes):
    recipe, *small = tiny[kind]
    return load_config(recipe, [*small, *changes])


def stepping(monkeypatch, config, how):
    """A step that the host looks at, that the device decides, or that is captured; and batches."""
    if how != "looked at":  # as on a GPU, where the tensors of torch's optimizers may be
        supported = "_get_capturable_supported_devices"
        for name in ("adam", "adamw", "adamax"):
            module = importlib.import_module(f"torch.optim.{name}")
            monkeypatch.setattr(module, supported, lambda *_, **__: ["cpu"], raising=False)
    dataset = load(config.data.name, **config.data.options)
    task = make_task(config, dataset, inputs_of(dataset, config.task.kind)).train()
    accelerator = make_accelerator("float32", torch.device("cpu"))
    optimizer = make_optimizer(task.model, config.optim)
    ema = None if config.train.ema is None else Ema(task.model, config.train.ema)
    step = Step(accelerator, task, optimizer, config, ema, defers=how != "looked at")
    if how == "captured":
        step.run = Captured(step._on_device, Recording)
    for module in task.modules():
        if isinstance(module, PowerIteration):
            module.tol = 0.0  # as elsewhere than on a CPU
    labels = dataset.train.y if dataset.train.y is not None else [None] * len(dataset.train.x)
    starts = range(0, 32 * len(RATES), 32)
    batches = [(dataset.train.x[i : i + 32], None if labels[0] is None else labels[i : i + 32]) for i in starts]
    return step, batches


def everything(step):
    state = {"model": step.own_task.state_dict(), "optimizer": step.optimizer.state_dict()["state"]}
    return copy.deepcopy({**state, "average": step.ema.state_dict() if step.ema else None})


def taken(monkeypatch, config, how):
    torch.manual_seed(0)
    step, batches = stepping(monkeypatch, config, how)
    torch.manual_seed(1)
    metrics = [step(x, y, rate) for (x, y), rate in zip(batches, RATES, strict=True)]
    metrics = [{name: value.clone() for name, value in of.items() if name != "done"} for of in metrics]
    return metrics, everything(step), torch.get_rng_state(), step


@pytest.mark.parametrize("name", STEPS)
def test_what_the_device_decides_and_what_is_replayed_is_what_the_host_does(name, tiny, monkeypatch):
    kind, *changes = STEPS[name]
    config = settings(tiny, kind, *changes)
    metrics, state, random, _ = taken(monkeypatch, config, "looked at")
    for how in ("decided", "captured"):
        others, other, after, step = taken(monkeypatch, config, how)
        torch.testing.assert_close(others, metrics, rtol=2e-4, atol=2e-5)
        torch.testing.assert_close(other["model"], state["model"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(other["average"], state["average"], rtol=1e-3, atol=1e-4)
        assert torch.equal(after, random)
        if how == "decided":
            decided = others, other
        else:
            torch.testing.assert_close(others, decided[0], rtol=0, atol=0)
            torch.testing.assert_close(other, decided[1], rtol=0, atol=0)
            assert step.run.graph.n_replays == len(RATES) - 1 - WARM_UP


@pytest.mark.parametrize("how", ["decided", "captured"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_random_state(how, tiny, monkeypatch):
    step, batches = stepping(monkeypatch, settings(tiny, "toy", "--train.ema", "0.9"), how)
    for x, y in batches[:5]:
        assert float(step(x, y, 0.01)["done"]) == 1
    before = everything(step)
    bad = batches[5][0].clone()
    bad[3, 0] = 1e30  # whose square is infinite
    metrics = step(bad, None, 0.01)
    assert float(metrics["done"]) == 0
    assert not torch.isfinite(metrics["loss"])
    torch.testing.assert_close(everything(step), before, rtol=0, atol=0)
    reason = step.explain()
    assert reason == "the loss is not finite, although the outputs of all bijections are"
    torch.testing.assert_close(everything(step), before, rtol=0, atol=0)
    assert float(step(*batches[6], 0.01)["done"]) == 1
    assert everything(step)["average"]["n_updates"] == 6
    with pytest.raises(AssertionError):
        torch.testing.assert_close(everything(step), before, rtol=0, atol=0)


def test_a_reason_that_is_gone_is_said_to_be(tiny, monkeypatch):
    step, batches = stepping(monkeypatch, settings(tiny, "toy"), "decided")
    for x, y in batches[:3]:
        step(x, y, 0.01)
    step.suspect = batches[0]
    assert step.explain() == "its loss or gradient was not finite, which those of its batch are with the weights of now"


def test_batches_of_another_shape_are_not_replayed(tiny, monkeypatch):
    step, batches = stepping(monkeypatch, settings(tiny, "density"), "captured")
    for x, y in batches[:6]:
        step(x, y, 0.01)
    assert step.run.graph.n_replays == 2
    before = everything(step)
    metrics = step(batches[6][0][:7], batches[6][1][:7], 0.01)
    assert float(metrics["done"]) == 1
    assert step.run.graph.n_replays == 2
    with pytest.raises(AssertionError):
        torch.testing.assert_close(everything(step), before, rtol=0, atol=0)


def test_numbers_drawn_on_the_host_are_seen(tiny, monkeypatch):
    monkeypatch.setattr("iresnet.training.capture.host_random_state", host_random_state)
    config = settings(tiny, "density", "--model.logdet.name", "russian-roulette")
    step, batches = stepping(monkeypatch, config, "captured")
    step(*batches[0], 0.01)
    with pytest.warns(RunWarning, match="not captured as one graph.*russian-roulette"):
        step(*batches[1], 0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x, y in batches[2:]:
            assert float(step(x, y, 0.01)["done"]) == 1


def test_what_cannot_be_recorded_goes_on_as_before():
    class Refusing(Recording):
        def record(self, run):  # noqa: ARG002
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    captured = Captured(lambda x, y: x + y, Refusing)
    x = torch.ones(2)
    found = [captured(x, x) for _ in range(WARM_UP)]
    with pytest.warns(RunWarning, match="one by one: operation not permitted when stream is capturing; --train"):
        found.append(captured(x, x))
    found.append(captured(x, 2 * x))
    assert [y[0].item() for y in found] == [2.0] * (WARM_UP + 1) + [3.0]


def test_what_is_never_captured():
    assert obstacle(load_config("digits-density")) is None
    assert obstacle(load_config("digits-density"), 2) == "several processes exchange gradients"
    assert obstacle(load_config("digits-density", ["--train.capture", "never"])) == "--train.capture never"
    assert "solve" in obstacle(load_config("digits-density", ["--model.block", "implicit"]))
    assert "fp16" in obstacle(load_config("digits-density", ["--train.precision", "fp16"]))


def test_the_emulated_graph_bakes_in_what_comes_from_the_host():
    """So that the laws above would not hold with a rate, a count or a choice that is."""
    rate, x = [1.0], torch.zeros(2)
    recording = Recording()
    recording.record(lambda: x.add_(rate[0]))
    assert x.tolist() == [0, 0]
    rate[0] = 5.0
    recording.replay()
    assert x.tolist() == [1, 1]
    with pytest.raises(AssertionError, match="waits"):
        Recording().record(lambda: x if x.sum() > 0 else -x)


# -- a whole run -----------------------------------------------------------------------------------------------------


class Infinite(Callback):
    """Spoils the batches of some steps."""

    def __init__(self, monkeypatch, steps):
        self.bad, self.spoiled = [], steps
        original = Step.__call__
        count = iter(range(1, 10**6))

        def spoiled(step, x, y, rate):
            return original(step, 1e30 * x if next(count) in steps else x, y, rate)

        monkeypatch.setattr(Step, "__call__", spoiled)

    def __call__(self, event):
        if isinstance(event, BadStep):
            self.bad.append((event.step, event.total))


def deferring(monkeypatch):
    original = Step.__init__
    monkeypatch.setattr(Step, "__init__", lambda *args, **kw: original(*args, **{**kw, "defers": True}))


def test_a_run_counts_what_was_skipped_when_it_reads_its_metrics(tiny, tmp_path, monkeypatch):
    deferring(monkeypatch)
    spoiled = Infinite(monkeypatch, {3, 4, 12})
    config = settings(tiny, "toy", "--optim.name", "muon", "--train.log-every", "5")
    run = train(config, tmp_path / "run", callbacks=[spoiled])
    assert spoiled.bad == [(5, 2), (15, 3)]
    skipped = [json.loads(line) for line in run.metrics_file.read_text().splitlines() if '"skipped"' in line]
    assert {line["reason"] for line in skipped} == {
        "the loss is not finite, although the outputs of all bijections are"
    }
    assert "NaN" not in run.metrics_file.read_text()


def test_too_many_in_a_row_end_it_wherever_they_lie(tiny, tmp_path, monkeypatch):
    deferring(monkeypatch)
    Infinite(monkeypatch, {6, 7, 8, 9})
    changes = ("--optim.name", "muon", "--train.log-every", "5", "--train.max-bad-steps", "3")
    with pytest.raises(RunError, match="4 steps in a row had to be skipped, up to step 10: the loss is not finite"):
        train(settings(tiny, "toy", *changes), tmp_path / "run")
