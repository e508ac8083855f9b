"""Counts of a training step, exactly linear in its examples, and the cost model, in closed form where there is one."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from iresnet.config import load_config
from iresnet.data import load
from iresnet.models import inputs_of
from iresnet.normalization import PowerIteration
from iresnet.training.cost import (
    BUCKET,
    DEVICES,
    LAUNCH,
    REPLAY,
    Count,
    Device,
    StepCounts,
    Workload,
    count,
    duration,
    exchanged_bytes,
    predict,
    table,
)
from iresnet.training.optim import make_optimizer
from iresnet.training.task import make_task

# -- counting --------------------------------------------------------------------------------------------------------


def counted_step(config, sizes):
    """Counts of a training step of a model on batches of several sizes."""
    dataset = load(config.data.name)
    task = make_task(config, dataset, inputs_of(dataset, config.task.kind)).train()
    for module in task.modules():
        if isinstance(module, PowerIteration):
            module.tol = 0.0
    optimizer = make_optimizer(task.model, config.optim)

    def step(n):
        loss, _ = task(dataset.train.x[:n], None if dataset.train.y is None else dataset.train.y[:n])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step(2)  # ActNorms initialize themselves
    return [count(lambda n=n: step(n)) for n in sizes]


STEPS = {
    "density": ("density",),
    "classify": ("classify",),
    "hybrid": ("hybrid",),
    "toy": ("toy",),
    "recompute": ("density", "--model.memory", "recompute"),
    "early": ("density", "--model.memory", "early"),
    "power series": ("density", "--model.logdet.name", "power-series"),
    "krylov 7": ("density", "--model.logdet.n-steps", "7"),
    "gram": ("density", "--model.normalization", "gram"),
    **{name: ("density", "--optim.name", name) for name in ("adamax", "sgd", "muon")},
}


@pytest.mark.parametrize("name", STEPS)
def test_all_counts_of_a_step_are_linear_in_its_examples(name, tiny):
    kind, *changes = STEPS[name]
    recipe, *small = tiny[kind]
    first, second, many = counted_step(load_config(recipe, [*small, *changes]), (2, 4, 31))
    assert StepCounts((2, 4), first, second).at(31) == many
    assert 0 < first.flops < many.flops
    assert 0 < first.memory < many.memory


def test_a_step_of_random_length_is_counted_too(tiny):
    recipe, *small = tiny["density"]
    config = load_config(recipe, [*small, "--model.logdet.name", "russian-roulette"])
    first, second, many = counted_step(config, (2, 8, 64))
    estimate = StepCounts((2, 8), first, second).at(64)
    assert 0.7 < estimate.memory / many.memory < 1.5


def test_operations_are_those_of_the_counter_of_torch():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ELU(), torch.nn.ConvTranspose2d(8, 3, 3))
    x = torch.randn(5, 3, 8, 8, requires_grad=True)

    def run():
        model(x).square().mean().backward()

    with FlopCounterMode(display=False) as truth:
        run()
    assert count(run).flops == truth.get_total_flops()


def test_memory_is_that_of_the_tensors_in_use():
    x = torch.zeros(1000)  # 4000 bytes, there before

    def run():
        x.mul_(2)  # in place, nothing is made
        y = x + 1
        z = y * 2  # 8000 in use
        del y
        w = z.view(10, 100) + 1  # 8000
        del z
        w.add_(1)
        return (w.sum(), torch.cat([w, w]))[0]  # 12004

    counted = count(run)
    assert counted.in_use == (0, 4000, 8000, 8000, 4000, 4004, 12004)
    assert counted.memory == 12004
    assert counted.bytes == 2 * 4000 + 2 * 4000 + 2 * 4000 + 2 * 4000 + 2 * 4000 + 4004 + 4 * 4000


def test_reading_an_expanded_tensor_is_reading_what_it_holds():
    x = torch.ones(()).expand(1000)
    assert count(lambda: x + 1).bytes == 4 + 4000


# -- the model -------------------------------------------------------------------------------------------------------

WORK = Count(flops=6 * 10**12, bytes=10**9, kernels=1000, in_use=(10**9,))
DEVICE = Device(
    {"float32": 1e13, "bf16": 2e13},
    bandwidth=1e12,
    link=1e11,
    network=1e10,
    efficiency=0.5,
    launch=1e-5,
    floor=1e-6,
)


def test_seconds_are_the_closed_form():
    assert DEVICE.seconds(WORK) == pytest.approx(1.2 + 0.002 + 0.001)
    assert DEVICE.seconds(WORK, "bf16") == pytest.approx(0.6 + 0.002 + 0.001)
    many = replace(WORK, kernels=10**6)
    assert DEVICE.seconds(many) == pytest.approx(10.0)  # the host is slower than the device
    assert replace(DEVICE, asynchronous=False).seconds(many) == pytest.approx(10.0 + 1.202 + 1.0)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 64])
def test_exchanged_bytes_are_those_that_a_ring_sends(n):
    """In n - 1 turns each device passes on a part of the sums, in n - 1 more the sums themselves."""
    parameters = 64 * 3 * 1000
    part = 4 * parameters // n
    sent = sum(part for _ in range(n - 1)) + sum(part for _ in range(n - 1))
    assert exchanged_bytes(parameters, n) == sent


def test_a_ring_is_as_fast_as_its_slowest_link():
    sent = 2 * BUCKET
    assert DEVICE.exchange_seconds(sent, 8) == pytest.approx(sent / 5e10 + 2 * 7 * 2 * 3.4e-6)
    assert DEVICE.exchange_seconds(sent, 9) == pytest.approx(sent / 5e9 + 2 * 8 * 2 * 14e-6)
    assert DEVICE.exchange_seconds(0, 1) == 0


def workload(**changes):
    def counted(n):
        return Count(n * 10**11, n * 10**9, 1000, (n * 10**8,))

    run = {"batch_size": 128, "total_steps": 1000, "parameters": 10**8, "resident_bytes": 10**9, "precision": "float32"}
    return Workload(StepCounts((2, 4), counted(2), counted(4)), **{**run, **changes})


@pytest.mark.parametrize("kind", DEVICES)
def test_one_device_waits_for_nobody_and_more_share_the_work(kind):
    one, eight, many = (predict(workload(), kind, n) for n in (1, 8, 64))
    assert (one.exchanged, one.exchange_seconds) == (0, 0)
    assert one.step_seconds == pytest.approx(DEVICES[kind].seconds(workload().counts.at(128)))
    assert one.memory == 10**9 + 128 * 10**8
    assert eight.memory == 10**9 + 16 * 10**8 + 4 * 10**8  # with the buckets of the gradients
    assert one.step_seconds / 8 < eight.step_seconds < one.step_seconds
    assert 0 < eight.exchange_seconds < many.exchange_seconds
    for prediction in (one, eight, many):
        busy = max(prediction.kernel_seconds, prediction.launch_seconds)
        assert prediction.step_seconds == pytest.approx(busy + prediction.exchange_seconds)
        assert prediction.total_seconds == pytest.approx(1000 * prediction.step_seconds)


def test_a_run_that_does_not_fit_is_told():
    fits = [predict(workload(batch_size=8 * n), "h100", 8) for n in (700, 900)]
    assert [p.fits for p in fits] == [True, False]
    _, small, large = table(fits).splitlines()
    assert ("too much" in small, "too much" in large) == (False, True)


@pytest.mark.parametrize("kind", DEVICES)
def test_the_exchange_hides_behind_the_backward_pass_but_for_its_last_bucket(kind):
    work = workload(batch_size=128 * 1000)  # so much that all else fits behind
    prediction = predict(work, kind, 8)
    exchange = DEVICES[kind].exchange_seconds(prediction.exchanged, 8)
    assert prediction.exchange_seconds == pytest.approx(exchange / math.ceil(prediction.exchanged / BUCKET))
    nothing = workload(batch_size=8, parameters=10**11)
    assert predict(nothing, kind, 8).exchange_seconds > 0.5 * predict(nothing, kind, 8).step_seconds


def test_a_table_has_a_line_for_each_prediction():
    lines = table(predict(workload(), name, n) for name in DEVICES for n in (1, 8)).splitlines()
    assert len(lines) == 1 + 2 * len(DEVICES)
    assert [line.split()[:2] for line in lines[1:]] == [[str(n), name] for name in DEVICES for n in (1, 8)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 seconds"), (119, "119 seconds"), (120, "2.0 minutes"), (7200, "2.0 hours"), (2e6, "23.1 days")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_one_device_replays_a_captured_step_and_several_launch_it():
    small, large = Count(10, 10, 1000, (0,)), Count(20, 20, 1000, (0,))
    workload = Workload(StepCounts((1, 2), small, large), 8, 1, 0, 0, "tf32", captured=True)
    kernels = {n: predict(workload, "h200", n) for n in (1, 8)}
    assert kernels[1].step_seconds == pytest.approx(1000 * (DEVICES["h200"].floor + REPLAY), rel=1e-6)
    assert kernels[8].step_seconds == pytest.approx(1000 * DEVICES["h200"].launch, rel=1e-6)
    assert predict(replace(workload, captured=False), "h200", 1).step_seconds == pytest.approx(1000 * LAUNCH)


def test_kernels_are_those_that_a_gpu_launches():
    x = [torch.ones(2) for _ in range(200)]
    image, kernel = torch.ones(2, 1, 4, 4), torch.ones(1, 1, 3, 3, requires_grad=True)
    bias = torch.ones(1)

    def kernels(run):
        return count(run).kernels

    assert kernels(lambda: torch.empty(3).view(3, 1)) == 0
    assert kernels(lambda: torch._foreach_add(x, x)) == 5  # 48 of each of three lists at a time
    assert kernels(lambda: torch._foreach_mul_(x, 2.0)) == 2
    assert kernels(lambda: torch.cat(x)) == 2
    assert kernels(lambda: torch.conv2d(image, kernel.detach())) == 1
    assert kernels(lambda: torch.conv2d(image, kernel.detach(), bias)) == 2
    y = torch.conv2d(image, kernel)
    assert kernels(lambda: torch.autograd.grad(y, kernel, torch.ones(2, 1, 2, 2))) == 2  # ones, and of the kernel alone
