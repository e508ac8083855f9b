"""What does not fit into memory is refused in a moment, by name, with what there is and what to lower."""

import re
import time

import pytest
import torch
from data_fixtures import isolated  # noqa: F401 (used by all)

import iresnet as ir
from iresnet import capacity, evaluation
from iresnet.capacity import parameter_bytes
from iresnet.cli import REMEDIES
from iresnet.config import load_config
from iresnet.data import load
from iresnet.models import inputs_of
from iresnet.training import dry_run
from iresnet.training.dryrun import SIZES, check_step_fits
from iresnet.training.task import make_task

ARCHITECTURES = {
    "single scale": ("iresnet", (1, 8, 8), {"blocks": [4, 3], "strides": [1, 2], "hidden": 16}),
    "a scale without blocks": ("iresnet", (1, 8, 8), {"blocks": [3, 0], "strides": [1, 2], "hidden": 16}),
    "a default": ("iresnet", (3, 8, 8), {"hidden": 4, "injective_pad": 5}),
    "widths": ("iresnet-multiscale", (3, 16, 16), {"blocks": (3, 2, 1), "strides": (1, 2, 2), "hidden": [4, 5, 6]}),
    "dense blocks": ("iresnet", (1, 8, 8), {"blocks": [3], "strides": [1], "block": "dense", "hidden": 4}),
    "deep": ("toy-mlp", (5,), {"blocks": 2, "depth": 9, "hidden": 6}),
    "deep and dense": ("toy-mlp", (3,), {"blocks": 3, "depth": 8, "hidden": 4, "block": "dense"}),
    "flat": ("toy-mlp", (3,), {"blocks": 3, "depth": 1, "hidden": 4}),
    "points": ("toy-mlp", (5,), {"blocks": 7, "depth": 5, "hidden": 6, "actnorm": False}),
    "no blocks": ("toy-mlp", (5,), {"blocks": 0}),
    "plain": ("resnet", (1, 8, 8), {"blocks": [4, 3], "strides": [1, 2], "hidden": 16, "injective_pad": 2}),
    "other normalizations": ("toy-mlp", (2,), {"blocks": 3, "normalization": "gram", "n_power_steps": 9}),
}


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_the_size_of_a_model_is_known_before_it_is_built(case):
    name, shape, options = ARCHITECTURES[case]
    network = ir.zoo.ARCHITECTURES[name](shape, **options)
    assert parameter_bytes(name, shape, options) == 4 * sum(p.numel() for p in network.parameters())


@pytest.fixture
def little(monkeypatch):
    """A function that leaves so many bytes free."""
    return lambda free: monkeypatch.setattr(capacity, "free_memory", lambda device: free)


HUGE = {
    "channels": ("digits-density", "--model.hidden", "1000000", "lower --model.hidden or --model.blocks"),
    "channels of a scale": ("digits-density", "--model.hidden", "[4,1000000]", "lower --model.hidden"),
    "channels that cannot be counted": ("digits-classify", "--model.hidden", "1000000000000", "than can be counted"),
    "blocks": ("digits-density", "--model.blocks", "[1000000,100000000]", "lower --model.hidden or --model.blocks"),
    "layers": ("toy-density", "--model.hidden", "10000000", "lower --model.hidden or --model.blocks"),
    "depth": ("toy-density", "--model.depth", "1000000", "--model.blocks, or --model.depth"),
    "depth beyond floats": ("toy-density", "--model.depth", "9" * 400, "than can be counted"),
    "pictures": ("digits-density", "--train.n-pictures", "1000000000000", "lower --train.n-pictures"),
}


@pytest.mark.parametrize(
    ("case", "how"), [*((case, ()) for case in HUGE), *((case, ("--dry-run",)) for case in HUGE if case != "pictures")]
)
def test_what_is_too_large_is_refused_in_a_moment(case, how, call, tmp_path):
    recipe, option, value, expected = HUGE[case]
    start = time.monotonic()
    status, out, err = call("train", recipe, option, value, "--out", tmp_path / "run", *how)
    assert time.monotonic() - start < 20
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "GiB" in err
    assert "are free on cpu: " in err
    assert expected in err
    assert not list(tmp_path.iterdir())


def test_a_batch_too_large_is_refused_and_what_makes_it_smaller_helps(tiny, call, tmp_path, little):
    recipe, *changes = tiny["hybrid"]
    whole = ("train", recipe, *changes, "--train.batch-size", 1000, "--out", tmp_path / "run")
    config = load_config(recipe, [*changes, "--train.batch-size", "1000"])
    needed = dry_run(config, sizes=SIZES).workload.counts.at(1000).memory
    little(0.5 * needed)
    status, out, err = call(*whole)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "a step on 1000 examples takes " in err
    assert "lower --train.batch-size, or raise --train.accumulate" in err
    assert not (tmp_path / "run").exists()
    assert call(*whole, "--train.accumulate", 4)[0] == 0


@pytest.mark.parametrize("kind", ["density", "classify", "hybrid", "toy"])
def test_asking_for_the_memory_of_a_step_leaves_everything_alone(kind, tiny):
    recipe, *changes = tiny[kind]
    config = load_config(recipe, changes)
    dataset = load(config.data.name)
    task = make_task(config, dataset, inputs_of(dataset, config.task.kind))
    before, state = {k: v.clone() for k, v in task.state_dict().items()}, torch.get_rng_state()
    check_step_fits(task, config, dataset, torch.device("cpu"))
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in task.parameters())


def test_samples_and_weights_that_do_not_fit_are_refused(copied, call, little):
    folder = copied("density")
    status, _, err = call("sample", folder, "-n", 10**12)
    assert (status, err.count("\n")) == (2, 1)
    assert "ask for fewer with -n" in err
    little(1000)
    status, _, err = call("evaluate", folder)
    assert (status, err.count("\n")) == (2, 1)
    assert "model.safetensors takes 0.0 GiB of memory" in err


FAILURES = {
    "a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "torch": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 256000000000 bytes."),
    "python": MemoryError(),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_memory_that_runs_out_is_one_line_with_an_option_of_the_command(failure, copied, call, monkeypatch):
    def fail(*_, **__):
        raise FAILURES[failure]

    folder = copied("density")
    for name in ("likelihood", "reconstruction", "decode", "interpolate"):
        monkeypatch.setattr(evaluation, name, fail)
    for command, option in (("evaluate", "--batch-size"), ("reconstruct", "--batch-size"), ("sample", "-n")):
        status, _, err = call(command, folder)
        assert (status, err.count("\n")) == (2, 1)
        assert f"memory ran out: lower {option}" in err or f"memory ran out: ask for fewer with {option}" in err


@pytest.mark.parametrize("command", REMEDIES)
def test_every_remedy_is_an_option_of_its_command(command, call):
    text = call(command, *(["logdet"] if command == "analyze" else []), "--help")[1]
    for option in re.findall(r"(?<![\w-])--?[a-z][\w.-]*", REMEDIES[command]):
        assert option in text or option == "--model.hidden"


def test_examples_can_be_evaluated_a_few_at_a_time(copied, call):
    folder = copied("density")
    assert call("evaluate", folder, "--examples", 20, "--batch-size", 7)[0] == 0
    assert call("reconstruct", folder, "--solver-examples", 0, "--batch-size", 70)[0] == 0


def test_other_failures_stay_failures(copied, call, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("something else")

    monkeypatch.setattr(evaluation, "likelihood", fail)
    with pytest.raises(RuntimeError, match="something else"):
        call("evaluate", copied("density"))
