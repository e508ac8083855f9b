"""Which device is taken; and everything on another device: a GPU, or a pretended one that takes TF32 too."""

import contextlib
import copy
import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pretend
import pytest
import torch
from laws import lipschitz_layers
from marks import slow

import iresnet as ir
from iresnet.bounds import upper_bound
from iresnet.config import load_config
from iresnet.devices import _automatic, choose_device, describe_device, device_of, keep_freed_memory
from iresnet.errors import ConvergenceWarning, Interrupted, RecipeError, RunWarning
from iresnet.training import Callback, dry_run, train
from iresnet.training.callbacks import Stepped
from iresnet.training.optim import OPTIMIZERS

# -- choosing --------------------------------------------------------------------------------------------------------


def pretend_gpus(monkeypatch, n):
    chosen = []
    monkeypatch.setattr("iresnet.devices._automatic", _automatic)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    return chosen


def test_a_gpu_is_taken_when_there_is_one(monkeypatch):
    pretend_gpus(monkeypatch, 0)
    assert choose_device() == torch.device("cpu")
    chosen = pretend_gpus(monkeypatch, 2)
    assert choose_device() == choose_device("cuda") == torch.device("cuda:0")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cpu") == torch.device("cpu")
    assert [device.index for device in chosen] == [0, 0, 1]
    assert describe_device(torch.device("cuda:1")) == "NVIDIA H200 (cuda:1)"


def test_each_of_several_processes_takes_its_own(monkeypatch):
    pretend_gpus(monkeypatch, 4)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device() == torch.device("cuda:3")
    with pytest.raises(RecipeError, match="each of several processes"):
        choose_device("cuda:1")


@pytest.mark.parametrize(
    ("name", "n", "message"),
    [
        ("gpu", 1, "got 'gpu'"),
        ("cuda", 0, "finds none on this machine"),
        ("cuda:2", 2, "there is no cuda:2"),
        ("meta", 0, "not here, or lacks float64"),
        ("mps", 0, "not here, or lacks float64"),
    ],
)
def test_devices_that_are_not_there_are_refused(name, n, message, monkeypatch):
    pretend_gpus(monkeypatch, n)
    with pytest.raises(RecipeError, match=message):
        choose_device(name)


@pytest.mark.parametrize(
    ("command", "few"),
    [
        ("evaluate", ("--examples", 16)),
        ("sample", ("-n", 2)),
        ("reconstruct", ("--solver-examples", 0)),
        ("interpolate", ("-n", 1)),
        ("certify", ()),
    ],
)
def test_commands_refuse_a_device_in_one_line_and_say_which_they_took(command, few, copied, call):
    folder = copied("density")
    status, out, err = call(command, folder, "--device", "cuda:9")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "--device" in err
    status, out, _ = call(command, folder, *few, "--device", "cpu")
    assert (status, out.splitlines()[0]) == (0, "computed on CPU (1 threads)")


def test_a_model_is_loaded_where_it_is_wanted(trained, another_device):
    assert device_of(ir.load(trained("density"))) == torch.device("cpu")
    assert device_of(ir.load(trained("density"), device=another_device)).type == another_device


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    """In a process of its own: large blocks that are freed and allocated again bring no new pages."""
    script = """
import resource, torch
from iresnet.devices import keep_freed_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    tensors = [torch.ones(2**20) for _ in range(20)]
for keep in (False, True):
    if keep:
        keep_freed_memory()
    work(), work()
    before = faults()
    for _ in range(5):
        work()
    print(faults() - before)
"""
    command = [sys.executable, "-c", script]
    by_default, kept = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    if by_default > 1000:  # a C library that gives memory back
        assert kept < 0.1 * by_default
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory()  # does nothing


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sealed():
    """A sealed density, and images."""
    torch.manual_seed(0)
    options = {"blocks": (1, 1), "strides": (1, 2), "hidden": 16, "coeff": 0.9, "mean": 128.0, "std": 256.0}
    flow = ir.zoo.build("iresnet-multiscale", shape=(1, 8, 8), logdet=ir.Krylov(3), **options)
    x = 256 * torch.rand(8, 1, 8, 8)
    flow.log_prob(x)
    for name, p in flow.named_parameters():  # as trained weights are, which use all of their coefficient
        if name.endswith("original"):
            p.data.mul_(4)
    ir.seal(flow.eval().requires_grad_(False))
    return flow, x


@pytest.fixture
def twins(sealed, another_device):
    """A sealed density on the CPU and on another device, and images on both."""
    flow, x = sealed
    return copy.deepcopy(flow), x, copy.deepcopy(flow).to(another_device), x.to(another_device)


def test_a_mix_of_devices_is_refused_and_waits_are_seen(pretended):
    x = torch.ones(3).to(pretended)
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        torch.stack([x[0], torch.ones(())])
    assert float((x + torch.ones(())).sum()) == 6  # a number may be on the CPU
    with pretend.counted_waits() as waits:
        bool(x.sum() > 0)
    assert waits


def test_convolutions_take_tf32_as_those_of_a_gpu_do(pretended):
    layer, x = torch.nn.Conv2d(4, 4, 3).requires_grad_(False), torch.randn(2, 4, 8, 8)
    exact = layer(x)
    there = layer.to(pretended)(x.to(pretended)).cpu()
    assert 1e-5 < float((there - exact).abs().max()) < 1e-2


def test_every_sample_is_inverted_as_on_the_cpu(twins):
    flow, x, there, x_there = twins
    inversions = flow.invert(flow.encode(x)), there.invert(there.encode(x_there))
    for inversion, data in zip(inversions, (x, x_there), strict=True):
        assert bool(inversion.converged.all())
        assert float((inversion.x - data).abs().max()) < 1e-3  # gray values
    on_cpu, on_device = (int(inversion.evaluations.max()) for inversion in inversions)
    assert on_device <= on_cpu + 4
    alone = there.decode(there.encode(x_there)[:1])
    assert float((alone - inversions[1].x[:1]).abs().max()) < 1e-3


def test_without_the_policy_no_inverse_settles(twins, monkeypatch):
    """What a GPU did before there was one: the rounding of TF32 is far above the tolerance."""
    _, _, there, x = twins
    for module in ("solvers", "bijections.residual", "normalization"):
        monkeypatch.setattr(f"iresnet.{module}.use_precision", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("iresnet.bijections.residual.default_precision", lambda **_: contextlib.nullcontext())
    inversion = there.invert(there.encode(x))
    assert float(inversion.converged.float().mean()) < 0.5
    with pytest.warns(ConvergenceWarning, match="docs/precision.md"):
        there.decode(there.encode(x))


@pytest.mark.parametrize(
    "estimator",
    [ir.Krylov(3), ir.Krylov(3, 4, probe="hadamard"), ir.Krylov(tol=1e-3), ir.PowerSeries(), ir.RussianRoulette()],
    ids=repr,
)
def test_a_seed_gives_the_same_probes_and_log_densities(estimator, twins):
    flow, x, there, x_there = twins
    seeded = [estimator.drawing_from(torch.Generator().manual_seed(1)) for _ in range(2)]
    expected, found = flow.log_prob(x, logdet=seeded[0]), there.log_prob(x_there, logdet=seeded[1]).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


def test_a_seed_gives_the_same_samples(twins):
    flow, _, there, _ = twins
    expected, found = (m.sample(4, generator=torch.Generator().manual_seed(1)).cpu() for m in (flow, there))
    assert float((found - expected).abs().max()) < 1e-3


def test_training_takes_tf32_and_evaluation_float32(twins):
    _, _, there, x = twins
    exact = there.encode(x)
    with ir.use_precision("tf32", x.device):
        rounded = there.encode(x)
    with ir.use_precision("float32", x.device):
        asked = there.encode(x)
    in_training = there.train().encode(x)
    assert torch.equal(asked, exact)
    assert float((rounded - exact).abs().max()) > 1e-5
    torch.testing.assert_close(in_training.cpu(), rounded.cpu(), rtol=1e-3, atol=1e-3)
    assert float((in_training - exact).abs().max()) > 1e-5


def test_certificates_do_not_depend_on_the_device(twins):
    flow, _, there, _ = twins
    expected, found = ir.certify(flow, search_steps=3), ir.certify(there, search_steps=3)
    for a, b in zip((*expected.layers, *expected.blocks), (*found.layers, *found.blocks), strict=True):
        assert b.upper == pytest.approx(a.upper, rel=1e-10)
        assert b.lower == pytest.approx(a.lower, rel=1e-6)


def test_norms_are_taken_in_float32_proper(twins):
    flow, _, there, _ = twins
    for a, b in zip(lipschitz_layers(flow), lipschitz_layers(there), strict=True):
        norms = [float(layer.normalization.sigma(layer.unnormalized_weight)) for layer in (a, b)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-6)


def test_bounds_are_those_of_weights_that_no_device_has_rounded():
    """The bound of a layer in float32 is that of its twin in float64, and what rounding may add."""
    layer = ir.LipschitzConv2d(3, 8, 3, image_size=(8, 8)).eval()
    layer.unnormalized_weight.data.mul_(7)
    exact = copy.deepcopy(layer).double()
    may_add = 1 + layer.normalization.rounding_above * torch.finfo(torch.float32).eps
    assert upper_bound(layer) == pytest.approx(may_add * upper_bound(exact), rel=1e-13)


def test_sealing_leaves_weights_that_are_the_same_to_rounding(twins):
    flow, _, there, _ = twins
    ir.seal(there)
    ir.seal(flow)
    for a, b in zip(lipschitz_layers(flow), lipschitz_layers(there), strict=True):
        torch.testing.assert_close(b.weight.cpu(), a.weight, rtol=1e-5, atol=1e-6)


# -- runs ------------------------------------------------------------------------------------------------------------


class Stop(Callback):
    """Interrupts a training after so many steps, as SIGTERM does."""

    def __init__(self, step):
        self.step = step

    def __call__(self, event):
        if isinstance(event, Stepped) and event.step == self.step:
            import signal

            signal.raise_signal(signal.SIGTERM)


FEW_BLOCKS = ("--model.blocks", "[1,0]")  # each operation of the pretended device is a function of Python


def settings(tiny, kind, *changes):
    recipe, *small = tiny[kind]
    small += [*FEW_BLOCKS] if kind != "toy" else []
    small += ["--train.batch-size", "128", "--train.n-pictures", "0", "--train.log-every", "4"]
    return load_config(recipe, [*small, *changes])


OPTIONS = {
    "hybrid": ("hybrid",),
    "averaged": ("density", "--train.ema", "0.9", "--optim.name", "muon"),
    "in parts, half": ("density", "--train.accumulate", "2", "--train.logdet-chunks", "2", "--optim.name", "adam"),
}


@pytest.mark.parametrize("name", ["averaged", slow("hybrid"), slow("in parts, half")])
def test_a_run_that_was_interrupted_on_a_device_is_the_same_in_the_end(name, tiny, tmp_path, another_device):
    """Stopped within a window of metrics, which is restored to the device."""
    kind, *changes = OPTIONS[name]
    short = ("--train.log-every", "2", "--train.max-steps", "5")
    config = settings(tiny, kind, *changes, "--train.deterministic", "true", *short)
    whole = train(config, tmp_path / "whole", device=another_device)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", device=another_device, callbacks=[Stop(3)])
    resumed = train(config, tmp_path / "run", device=another_device, resume=True)
    assert resumed.model_file.read_bytes() == whole.model_file.read_bytes()
    assert resumed.metrics_file.read_bytes() == whole.metrics_file.read_bytes()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_goes_on_on_another_device_with_a_warning_where_noise_differs(tiny, tmp_path, pretended, monkeypatch):
    config = settings(tiny, "density")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", device=pretended, callbacks=[Stop(2)])
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    train(config, tmp_path / "run", device="cpu", resume=True)
    from iresnet.training.trainer import read_checkpoint

    def of_a_gpu(*args, **kwargs):
        checkpoint = read_checkpoint(*args, **kwargs)
        checkpoint.random[0]["cuda"] = checkpoint.random[0]["cpu"]
        return checkpoint

    monkeypatch.setattr("iresnet.training.trainer.read_checkpoint", of_a_gpu)
    with pytest.warns(RunWarning, match="on a GPU and continues with 1 on the CPU: with other noise"):
        train(config, tmp_path / "copy", device="cpu", resume=True)


@pytest.mark.parametrize("optimizer", [name if name in ("adam", "muon") else slow(name) for name in OPTIMIZERS])
def test_a_step_waits_for_nothing(optimizer, tiny, tmp_path, pretended):
    """The batch is on the device, as are all numbers of the optimizer; metrics are read every log_every steps."""
    waited = []

    class Count(Callback):
        def __call__(self, event):
            if isinstance(event, Stepped):
                waited.append(list(pretend.waits))
                pretend.waits.clear()

    kind = "density" if optimizer == "muon" else "toy"  # convolutions with one of them
    changes = ("--train.ema", "0.9", "--train.logdet-chunks", "2", "--train.log-every", "3")
    config = settings(tiny, kind, "--optim.name", optimizer, *changes)
    with pretend.counted_waits(), pytest.raises(Interrupted):
        train(config, tmp_path / "run", device=pretended, callbacks=[Count(), Stop(7)])
    assert waited[5]  # a window of metrics
    assert [waited[step] for step in (3, 4, 6)] == [[]] * 3


def test_a_dry_run_times_a_full_batch_as_the_loop_takes_it(tiny, pretended):
    dry = dry_run(settings(tiny, "density"), device=pretended)
    assert dry.timed
    assert dry.seconds > 0
    assert dry.workload.captured


def numbers(tree, path=""):
    """The numbers of a JSON file, by their path."""
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in numbers(value, f"{path}/{key}").items()}
    if isinstance(tree, list):
        return {k: v for i, value in enumerate(tree) for k, v in numbers(value, f"{path}/{i}").items()}
    return {path: tree} if isinstance(tree, (int, float)) and not isinstance(tree, bool) else {}


COMMANDS = {
    "evaluate": ("evaluation.json", 1e-5, ("--examples", 64)),
    "reconstruct": ("reconstruction.json", None, ("--solver-examples", 4)),
    "interpolate": ("interpolation.json", 1e-4, ("-n", 2)),
    "certify": ("certificate.json", 1e-6, ()),
    "analyze logdet": ("analysis/logdet.json", 1e-4, ("--n", 1, "--draws", 2)),
    "analyze lipschitz": ("analysis/lipschitz.json", 1e-4, ()),
    "analyze inverse": ("analysis/inverse.json", None, ("--n", 2, "--coeff", 0.9)),
    "analyze latent": ("analysis/latent.json", 1e-3, ("--n", 64)),
    "sample": (None, None, ("-n", 4)),
}


@pytest.fixture(scope="module")
def hybrid(tiny, tmp_path_factory):
    """The folder of a run of one block."""
    recipe, *small = tiny["hybrid"]
    config = load_config(recipe, [*small, *FEW_BLOCKS])
    return train(config, tmp_path_factory.mktemp("hybrid") / "run", device="cpu").path


@pytest.mark.slow
def test_what_commands_save_does_not_depend_on_the_device(hybrid, tmp_path, call, another_device):
    """Errors of inverses are rounding, and differ; all else agrees to the stated tolerances. Nothing warns."""
    folders = {device: shutil.copytree(hybrid, tmp_path / device) for device in ("cpu", another_device)}
    for command, (file, tolerance, options) in COMMANDS.items():
        found = {}
        for device, folder in folders.items():
            words = command.split()
            status, out, err = call(*words, folder, *options, "--device", device)
            assert (status, err) == (0, ""), command
            assert out.splitlines()[0] == f"computed on {describe_device(choose_device(device))}"
            found[device] = numbers(json.loads((folder / file).read_text())) if file else {}
        expected, other = found.values()
        assert other.keys() == expected.keys()
        for path in expected if tolerance else ():
            assert other[path] == pytest.approx(expected[path], rel=tolerance, abs=tolerance), f"{command} {path}"
    largest = [json.loads((f / "reconstruction.json").read_text())["largest"] for f in folders.values()]
    assert max(largest) < 1e-4
    assert call("report", folders[another_device])[0] == 0


@pytest.mark.parametrize(("command", "options"), [("score", ("--train-examples", 120)), ("predict", ())])
def test_what_is_told_of_single_examples_does_not_depend_on_the_device(
    command, options, hybrid, tmp_path, call, another_device
):
    np.savez(tmp_path / "new.npz", x=np.random.default_rng(1).integers(0, 17, (30, 1, 8, 8), dtype=np.uint8))
    rows = []
    for device in ("cpu", another_device):
        run = shutil.copytree(hybrid, tmp_path / device)
        written = tmp_path / f"{device}.csv"
        status, _, err = call(command, run, tmp_path / "new.npz", "--out", written, "--device", device, *options)
        assert (status, err) == (0, "")
        with written.open() as file:
            rows.append(list(csv.DictReader(file)))
    assert len(rows[0]) == len(rows[1]) == 30
    for expected, found in zip(*rows, strict=True):
        assert found.keys() == expected.keys()
        for name, text in expected.items():
            try:
                assert float(found[name]) == pytest.approx(float(text), rel=1e-4, abs=1e-5), name
            except ValueError:  # a word, such as the class
                assert found[name] == text


def test_the_whole_way_on_a_device_without_a_warning(tiny, tmp_path, call, another_device):
    folder = tmp_path / "run"
    status, _, err = call(
        "train", *tiny["density"], *FEW_BLOCKS, "--train.batch-size", 256, "--out", folder, "--device", another_device
    )
    assert status == 0
    assert "warning" not in err
    name = describe_device(choose_device(another_device))
    assert err.splitlines()[0] == f"training on {name}"
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    errors = [line["reconstruction_error"] for line in metrics if "reconstruction_error" in line]
    assert errors
    assert max(errors) < 1e-5
    assert json.loads((folder / "env.json").read_text())["device"] == name.partition(" (")[0]
