"""Every test starts from the same seed, on one thread; tiny models to test with are trained once.

Laws hold on every device: tests that use ``device`` run on the CPU and, where there is one, on a GPU.
"""

import os
import shutil

import hypothesis
import pretend
import pytest
import torch
from filelock import FileLock

torch.set_num_threads(1)
if pretend.AVAILABLE:
    pretend.register()  # before the first backward pass, which fixes the number of devices
hypothesis.settings.register_profile("laws", deadline=None, derandomize=True, max_examples=25, database=None)
hypothesis.settings.load_profile("laws")


@pytest.fixture(autouse=True)
def _same_seed():
    torch.manual_seed(0)


# -- devices ---------------------------------------------------------------------------------------------------------


def pytest_addoption(parser):
    parser.addoption(
        "--device", action="append", help="run on this device: cpu, cuda, pretend; all that are here by default"
    )


def pytest_generate_tests(metafunc):
    chosen = metafunc.config.getoption("device")
    here = ["cuda"] if torch.cuda.is_available() else []
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", chosen or ["cpu", *here], indirect=True)
    if "another_device" in metafunc.fixturenames:
        metafunc.parametrize("another_device", chosen or [pretend.NAME, *here], indirect=True)


@pytest.fixture(autouse=True)
def _on_the_cpu(request, monkeypatch):
    """Tests that do not ask for a device run on the CPU, also where there is a GPU."""
    if "device" not in request.fixturenames:
        monkeypatch.setattr("iresnet.devices._automatic", lambda: "cpu")


@pytest.fixture
def device(request, monkeypatch):
    """The name of a device, which commands and trainings of the test take by themselves."""
    monkeypatch.setattr("iresnet.devices._automatic", lambda: request.param)
    return request.param


@pytest.fixture
def default_device(device):
    """The same, and tensors that are made without a device are there."""
    torch.set_default_device(None if device == "cpu" else device)
    torch.manual_seed(0)
    yield device
    torch.set_default_device(None)


@pytest.fixture
def another_device(request):
    """The name of a device that is not the CPU: a GPU where there is one, and the pretended one."""
    if request.param == pretend.NAME and not pretend.AVAILABLE:
        pytest.skip("this torch has no devices that are written in Python")
    return request.param


@pytest.fixture
def pretended():
    """The name of the pretended device."""
    if not pretend.AVAILABLE:
        pytest.skip("this torch has no devices that are written in Python")
    return pretend.NAME


# -- models ----------------------------------------------------------------------------------------------------------


SMALL = ("--model.hidden", "8", "--train.epochs", "1", "--train.batch-size", "64", "--train.snapshot-every", "1")
SMALL += ("--train.n-pictures", "4", "--tracker", "[]")
NORMAL = ("--model.spline", "0", "--model.base", "diagonal-normal")
# Without a spline, whose steep slopes amplify rounding: runs are compared with each other.
TINY = {
    "density": ("digits-density", "--model.blocks", "[1,1]", "--model.spline", "0", *SMALL),
    "classify": ("digits-classify", "--model.blocks", "[1,1]", *SMALL),
    "hybrid": ("digits-hybrid", "--model.blocks", "[1,1]", *SMALL),
    "toy": ("toy-density", "--model.blocks", "2", *NORMAL, *SMALL, "--train.batch-size", "500"),
    "learned-noise": ("digits-density", "--model.blocks", "[1,1]", "--model.dequantization", "variational", *SMALL),
    "of-class": ("digits-conditional", "--model.blocks", "[1,1]", *SMALL),
    "of-angle": ("toy-conditional", "--model.blocks", "2", *SMALL, "--train.batch-size", "500"),
}


@pytest.fixture(scope="session")
def tiny():
    """Command lines of ``iresnet train``, by kind, for models that train in a second."""
    return TINY


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A function from the kind to the folder of a tiny run, trained when first asked for; read it, copy it to write.

    The processes of a session share it.
    """
    from iresnet import devices
    from iresnet.config import load_config
    from iresnet.training import train

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def folder(kind):
        run = shared / f"trained-{kind}-{devices._automatic()}" / kind
        with FileLock(f"{run.parent}.lock"):
            if not run.exists():
                recipe, *changes = TINY[kind]
                train(load_config(recipe, changes), run)
        return run

    return folder


@pytest.fixture(scope="session")
def full(trained, tmp_path_factory):
    """A function from the kind to a run in which what reports show was done; read it, copy it to write."""
    from iresnet.cli import run

    folders = {}

    def folder(kind):
        if kind not in folders:
            path = shutil.copytree(trained(kind), tmp_path_factory.mktemp("full") / kind)
            commands = [["evaluate"], ["reconstruct", "--solver-examples", "2"], ["certify"]]
            if kind != "classify":
                commands.append(["sample"])
            for command, *options in commands:
                assert run([command, str(path), *options]) == 0
            folders[kind] = path
        return folders[kind]

    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """A function that copies a trained run, to write into."""
    return lambda kind, name="run": shutil.copytree(trained(kind), tmp_path / name)


@pytest.fixture
def worse_after(monkeypatch):
    """A function of a step, after which validation losses rise, whatever is learned."""
    from iresnet.training import Trainer

    measured = Trainer._validate

    def worse_after(step):
        def validate(trainer, sealed):
            metrics = measured(trainer, sealed)
            return {**metrics, "loss": metrics["loss"] + 100 * max(0, trainer.step - step)}

        monkeypatch.setattr(Trainer, "_validate", validate)

    return worse_after


@pytest.fixture
def call(capsys):
    """A function that runs one command and returns status, output and complaints."""

    def call(*tokens):
        from iresnet.cli import run

        status = run([str(token) for token in tokens])
        return status, *capsys.readouterr()

    return call
