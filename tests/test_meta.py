"""A training step and a log-density on the meta device, where a wait for the device, or a mix of devices, raises.

There are no values there: ``.item()``, ``bool(tensor)`` and an index by a mask fail, and so does an operation on
tensors of two devices. So what would stop a GPU, or make it wait, is found on every machine.
"""

import pytest
import torch
from marks import slow

import iresnet as ir
from iresnet.config import load_config
from iresnet.data import load
from iresnet.models import inputs_of
from iresnet.training.distributed import make_accelerator
from iresnet.training.optim import OPTIMIZERS, Ema, make_optimizer
from iresnet.training.step import Step, mean_metrics
from iresnet.training.task import make_task

STEPS = {
    "density": ("density",),
    "classify": ("classify", "--data.augment", "[pad-crop, flip]"),
    "hybrid": ("hybrid",),
    "toy": ("toy",),
    **{f"memory {name}": ("density", "--model.memory", name) for name in ("early", "recompute")},
    **{
        f"estimator {name}": ("density", "--model.logdet.name", name)
        for name in ("power-series", "russian-roulette", "exact")
    },
    **{
        f"estimator {name} with memory {memory}": ("density", "--model.logdet.name", name, "--model.memory", memory)
        for name in ("russian-roulette", "exact")
        for memory in ("early", "recompute")
    },
    **{f"probe {name}": ("density", "--model.logdet.probe", name) for name in ("gaussian", "hadamard")},
    "many probes": ("density", "--model.logdet.n-probes", "3"),
    **{
        f"normalization {name}": ("density", "--model.normalization", name, "--model.n-power-steps", "null")
        for name in ("gram", "aol", "l1", "linf")
    },
    **{
        f"activation {name}": ("density", "--model.activation", name)
        for name in ("lipswish", "maxmin", "householder", "relu")
    },
    "bilipschitz blocks": (
        *("toy", "--model.block", "bilipschitz", "--model.activation", "elu"),
        *("--model.normalization", "cayley", "--model.n-power-steps", "null"),
    ),
    "dense blocks": ("density", "--model.block", "dense", "--model.activation", "clipswish"),
    **{f"optimizer {name}": ("density", "--optim.name", name) for name in OPTIMIZERS},
    "whitened": ("density", "--model.whiten", "2"),
    "learned noise": ("density", "--model.dequantization", "variational"),
    "clipped": ("density", "--optim.clip-norm", "1"),
    "half of the log-determinants": ("density", "--train.logdet-chunks", "2"),
    "half of the log-determinants, early": ("density", "--train.logdet-chunks", "2", "--model.memory", "early"),
    "in parts": ("density", "--train.accumulate", "2"),
    "averaged": ("density", "--train.ema", "0.9"),
    "float32": ("density", "--train.precision", "float32"),
}


def step_on_meta(config, monkeypatch):
    """A step whose model has seen a first batch on the CPU, and a batch for it, both on the meta device."""
    dataset = load(config.data.name)
    task = make_task(config, dataset, inputs_of(dataset, config.task.kind)).train()
    x, y = dataset.train.x[:16], None if dataset.train.y is None else dataset.train.y[:16]
    task(x, y)
    task.to("meta")
    optimizer = make_optimizer(task.model, config.optim)
    ema = None if config.train.ema is None else Ema(task.model, config.train.ema)
    own = config.optim.name == "muon"  # torch's do not keep numbers on a device without values
    accelerator = make_accelerator(config.train.precision, torch.device("meta"))
    step = Step(accelerator, task, optimizer, config, ema, defers=own)
    if not own:
        monkeypatch.setattr(Step, "_is_finite", lambda *_: True)  # what it would wait for
    step.maybe_uninitialized = False
    return step, x.to("meta"), None if y is None else y.to("meta")


VARIANTS = ("activation", "normalization", "optimizer", "probe")


@pytest.mark.parametrize("name", [slow(name) if name.startswith(VARIANTS) else name for name in STEPS])
def test_a_step_waits_for_nothing_and_stays_on_its_device(name, tiny, monkeypatch):
    kind, *changes = STEPS[name]
    recipe, *small = tiny[kind]
    step, x, y = step_on_meta(load_config(recipe, [*small, *changes]), monkeypatch)
    window = [step(x, y, 0.01) for _ in range(2)]
    means = mean_metrics(window)
    assert means.is_meta
    assert means.shape == (len(window[0]),)
    assert all(p.is_meta and p.grad.is_meta for p in step.own_task.parameters())


def test_a_window_that_was_resumed_meets_that_of_new_steps(tiny, monkeypatch):
    """Metrics of a checkpoint are put on the device; one that stayed on the CPU, the learning rate, stopped the run."""
    recipe, *small = tiny["density"]
    step, x, y = step_on_meta(load_config(recipe, small), monkeypatch)
    metrics = step(x, y, 0.01)
    assert {value.device.type for value in metrics.values()} == {"meta"}
    stayed = {**metrics, "lr": torch.tensor(0.01)}
    with pytest.raises(RuntimeError, match="device"):
        mean_metrics([metrics, stayed])


ESTIMATORS = {
    "Exact": ir.Exact,
    "Krylov": ir.Krylov,
    "PowerSeries": ir.PowerSeries,
    "RussianRoulette": ir.RussianRoulette,
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("memory", ["keep", "early", "recompute"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_log_density_waits_for_nothing(estimator, memory, mode):
    options = {"blocks": (1, 1), "strides": (1, 2), "hidden": 8, "memory": memory, "logdet": ESTIMATORS[estimator]()}
    flow = ir.zoo.build("iresnet-multiscale", shape=(1, 8, 8), **options)
    flow.log_prob(torch.rand(4, 1, 8, 8))
    flow = flow.to("meta").train(mode == "train")
    log_prob = flow.log_prob(torch.empty(4, 1, 8, 8, device="meta"))
    assert (log_prob.shape, log_prob.is_meta) == ((4,), True)
    log_prob.sum().backward()


def test_a_wait_is_seen():
    with pytest.raises(RuntimeError):
        bool(torch.empty((), device="meta") > 0)
    with pytest.raises(RuntimeError, match="device"):
        torch.empty(2, device="meta") + torch.ones(2)
