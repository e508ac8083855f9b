"""Watching a run: what trackers show is what the metrics file holds, and whatever they do, the training is the same."""

import base64
import io
import json
import math
import signal
import sys
import threading
import time
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from marks import slow
from PIL import Image
from rich.console import Console
from servers import VisdomServer

import iresnet as ir
from iresnet.cli import run as call
from iresnet.config import Config, VisdomConfig, check, load_config
from iresnet.errors import Interrupted, RecipeError, TrackerWarning
from iresnet.training import train
from iresnet.training.callbacks import Callback, Stepped, block_states
from iresnet.training.progress import BlockLog
from iresnet.training.tracking import TRACKERS, TrackerSpec, chosen_trackers
from iresnet.training.visdom import IMAGES, WINDOWS

KINDS = ("density", "classify", "hybrid", "toy")
TWO_EPOCHS = ("--train.epochs", "2", "--train.log-every", "7")


def settings(tiny, kind, *changes):
    recipe, *small = tiny[kind]
    return load_config(recipe, [*small, *TWO_EPOCHS, *changes])


def tracked(*names):
    return "--tracker", f"[{','.join(names)}]"


def metrics(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def curves(run):
    """The metrics file as curves: by split and name, the steps and the values."""
    found = {}
    for line in metrics(run):
        for name, value in line.items() if line["split"] in ("train", "validation") else ():
            if name not in ("split", "step", "epoch"):
                steps, values = found.setdefault((line["split"], name), ([], []))
                steps.append(line["step"])
                values.append(value)
    return found


def one_warning(caught):
    """Whether trackers were complained of once."""
    return [w.category for w in caught].count(TrackerWarning) == 1


class After(Callback):
    """Does something after a step."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def __call__(self, event):
        if isinstance(event, Stepped) and event.step == self.step:
            self.act()


# -- what there is to see --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["density", "hybrid", "toy"])
def test_the_terms_of_the_likelihood_add_up(kind, trained):
    dims = {"density": 64, "hybrid": 64, "toy": 2}[kind]
    lines = [json.loads(line) for line in (trained(kind) / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["split"] in ("train", "validation")]
    assert {line["split"] for line in lines} == {"train", "validation"}
    for line in lines:
        nats = line["log_prior"] + line["logdet"]
        assert line["bits_per_dim"] == pytest.approx(-nats / (dims * math.log(2)), rel=1e-5)


def test_the_terms_of_a_density_are_those_of_the_base_and_the_bijection():
    flow = ir.zoo.build("toy-mlp", shape=(3,), blocks=2, hidden=8, logdet="exact").double().eval()
    x = torch.randn(5, 3, dtype=torch.float64)
    density = flow.density(x)
    torch.testing.assert_close(density.z, flow.encode(x))
    torch.testing.assert_close(density.log_prior, flow.base.log_prob(density.z))
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda x: flow.encode(x[None])[0], row) for row in x])
    torch.testing.assert_close(density.logdet, torch.linalg.slogdet(jacobians).logabsdet)
    torch.testing.assert_close(density.log_prob, flow.log_prob(x))


def test_states_of_blocks_against_dense_linear_algebra():
    flow = ir.zoo.build("iresnet", shape=(1, 4, 4), blocks=[2], strides=[1], hidden=3, logdet="exact").double()
    flow(torch.rand(8, 1, 4, 4, dtype=torch.float64)).sum().backward()
    blocks = dict(flow.named_modules())
    states = block_states(flow)
    assert [state.name for state in states] == [bound.name for bound in ir.certify(flow).blocks]
    layers = {bound.name for bound in ir.certify(flow).layers}
    assert {name for state in states for name in state.sigmas} == layers
    for state in states:
        block = blocks[state.name]
        squares = sum(float(p.grad.square().sum()) for p in block.parameters())
        assert state.grad_norm == pytest.approx(math.sqrt(squares), rel=1e-5)
        assert state.logdet == pytest.approx(float(block.last_logdet.mean()), rel=1e-5)
        assert block.last_logdet.shape == (8,)
        assert not block.last_logdet.requires_grad
    for name in layers:
        layer = blocks[name]
        layer.normalization.converge(layer.unnormalized_weight)
        weight, (n, c) = layer.unnormalized_weight.detach(), layer.weight.shape[:2]
        images = torch.eye(c * 16, dtype=torch.float64).view(-1, c, 4, 4)
        dense = torch.nn.functional.conv2d(images, weight, padding="same").view(c * 16, n * 16)
        norm = float(torch.linalg.matrix_norm(dense, 2))
        (state,) = (state for state in block_states(flow) if name in state.sigmas)
        assert state.sigmas[name] == pytest.approx(norm, rel=1e-3)


def test_blocks_without_gradient_or_log_determinant():
    (state,) = block_states(ir.ResidualBlock(ir.networks.mlp(2, 8)))
    assert math.isnan(state.grad_norm)
    assert math.isnan(state.logdet)
    assert block_states(torch.nn.Linear(2, 2)) == []


def test_the_log_of_blocks_says_what_they_do(tiny, tmp_path):
    text = io.StringIO()
    run = train(settings(tiny, "hybrid"), tmp_path / "run", callbacks=[BlockLog(Console(file=text, width=1000))])
    lines = text.getvalue().splitlines()
    steps = [line["step"] for line in metrics(run) if line["split"] == "train"]
    assert [line.split(":")[0] for line in lines if line.startswith("step")] == [f"step {step}" for step in steps]
    certificate = ir.certify(ir.load(run.path))
    for bound in certificate.blocks:
        own = [line for line in lines if line.startswith(f"  {bound.name}: sigma ")]
        assert len(own) == len(steps)
        assert all(word in own[0] for word in ("gradient ", "log-det "))
        assert "bound" not in own[0]  # before the first snapshot
        assert "bound 0." in own[-1]


# -- TensorBoard -----------------------------------------------------------------------------------------------------


def tensorboard_events(run):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    size = {"scalars": 0, "images": 0, "tensors": 0}
    return accumulators.EventAccumulator(str(run.path / "tensorboard"), size_guidance=size).Reload()


def tensorboard_curves(events):
    return {
        tag: ([event.step for event in events.Scalars(tag)], [event.value for event in events.Scalars(tag)])
        for tag in events.Tags()["scalars"]
    }


@pytest.mark.parametrize("kind", ["density", "classify", "toy", slow("hybrid")])
def test_tensorboard_shows_the_run(kind, tiny, tmp_path):
    run = train(settings(tiny, kind, *tracked("tensorboard")), tmp_path / "run")
    events = tensorboard_events(run)
    shown = tensorboard_curves(events)
    for (split, name), (steps, values) in curves(run).items():
        if name in ("certified", "largest_block_bound"):
            continue
        assert shown[f"{split}/{name}"][0] == steps
        assert shown[f"{split}/{name}"][1] == pytest.approx(values, rel=1e-6)
    certificate = ir.certify(ir.load(run.path))
    for bound in (*certificate.layers, *certificate.blocks):
        assert shown[f"bound/{bound.name}"][1][-1] == pytest.approx(bound.upper, rel=1e-5)
    steps = shown["train/loss"][0]
    assert all(speed > 0 for speed in shown["train/examples_per_second"][1])
    for bound in certificate.layers:
        assert shown[f"sigma/{bound.name}"][0] == steps
    for bound in certificate.blocks:
        assert shown[f"grad_norm/{bound.name}"][0] == steps
        assert (f"logdet/{bound.name}" in shown) == (kind != "classify")
    assert "epochs: 2" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


@pytest.mark.parametrize(("kind", "names"), [("density", IMAGES), ("classify", IMAGES[1:]), ("toy", IMAGES[:1])])
def test_tensorboard_shows_the_pictures_of_the_run_folder(kind, names, tiny, tmp_path):
    run = train(settings(tiny, kind, *tracked("tensorboard")), tmp_path / "run")
    events = tensorboard_events(run)
    assert sorted(events.Tags()["images"]) == sorted(names)
    for name in names:
        for epoch, event in enumerate(events.Images(name), 1):
            ours = Image.open(run.samples / f"{name}-epoch-{epoch:04d}.png").convert("RGB")
            theirs = Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")
            assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_tensorboard_has_no_seam_where_a_run_was_resumed(tiny, tmp_path):
    """The process dies between two snapshots: the steps that are done again are shown once."""

    def die():
        raise MemoryError

    config = settings(tiny, "toy", *tracked("tensorboard"))
    with pytest.raises(MemoryError):
        train(config, tmp_path / "run", callbacks=[After(38, die)])
    run = train(config, tmp_path / "run", resume=True)
    steps, losses = tensorboard_curves(tensorboard_events(run))["train/loss"]
    expected_steps, expected = curves(run)["train", "loss"]
    assert steps == expected_steps
    assert losses == pytest.approx(expected, rel=1e-6)


def test_tensorboard_is_the_default_where_it_is_installed(tiny, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    assert chosen_trackers(Config()) == ("tensorboard",)
    assert chosen_trackers(Config(tracker=())) == ()
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert chosen_trackers(Config()) == ()
    run = train(settings(tiny, "toy", "--tracker", "null"), tmp_path / "run")
    assert not (run.path / "tensorboard").exists()
    assert metrics(run)


def test_a_folder_that_tensorboard_cannot_write_leaves_the_training_alone(tiny, tmp_path):
    pytest.importorskip("tensorboard")
    config = settings(tiny, "toy", *tracked())
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", callbacks=[After(10, lambda: signal.raise_signal(signal.SIGINT))])
    (tmp_path / "run" / "tensorboard").write_text("in the way")
    config = settings(tiny, "toy", *tracked("tensorboard"))
    with pytest.warns(
        TrackerWarning, match=r"the tracker tensorboard fails \(\w+Error: .*the training goes on"
    ) as caught:
        run = train(config, tmp_path / "run", resume=True)
    assert one_warning(caught)
    assert metrics(run)[-1]["step"] == 40


# -- visdom ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    pytest.importorskip("visdom")
    (tmp_path / "visdom").mkdir()
    server = VisdomServer(tmp_path / "visdom")
    yield server
    server.stop()


def visdom_curves(windows):
    """By split and name, the steps and the values of every line that a server shows."""
    return {
        (line["name"], name): (line["x"], line["y"])
        for name, window in windows.items()
        if window["type"] == "plot"
        for line in window["content"]["data"]
    }


def assert_visdom_shows(run, windows):
    expected = {key: curve for key, curve in curves(run).items() if key[1] in WINDOWS}
    if any(name == "bits_per_dim" for _, name in expected) and not any(name == "accuracy" for _, name in expected):
        expected = {key: curve for key, curve in expected.items() if key[1] != "loss"}  # they are the same
    shown = visdom_curves(windows)
    assert shown.keys() == expected.keys()
    for key, (steps, values) in expected.items():
        assert shown[key][0] == steps
        assert shown[key][1] == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize("kind", ["density", "classify", slow("hybrid")])
def test_visdom_shows_the_run(kind, server, tiny, tmp_path):
    folder = tmp_path / "some run"
    trackers = ("--tracker", "visdom", "--visdom.server", "http://127.0.0.1", "--visdom.port", str(server.port))
    recipe, *small = tiny[kind]
    assert call(["train", recipe, *small, *TWO_EPOCHS, *trackers, "--out", str(folder)]) == 0
    windows = server.windows("some run")
    run = ir.runs.Run.open(folder)
    assert_visdom_shows(run, windows)
    titles = {name: window["title"] for name, window in windows.items()}
    if kind == "density":
        assert titles == {
            "bits_per_dim": "bits/dim",
            "log_prior": "log p(z)",
            "logdet": "log-det",
            "reconstruction_error": "reconstruction error",
            "samples": "samples, step 40",
            "reconstructions": "reconstructions, step 40",
        }
    for name in set(IMAGES) & windows.keys():
        data = windows[name]["content"]["src"].split(",")[1]
        shown = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        ours = Image.open(run.samples / f"{name}-epoch-0002.png").convert("RGB")
        assert np.array_equal(np.asarray(shown), np.asarray(ours))
    assert ("samples" in windows) == (kind != "classify")
    assert "reconstructions" in windows


def visdom_options(server):
    return (*tracked("visdom"), "--visdom.server", "127.0.0.1", "--visdom.port", str(server.port))


def test_a_visdom_server_that_is_killed_leaves_the_training_alone(server, tiny, tmp_path):
    untracked = train(settings(tiny, "toy", *tracked()), tmp_path / "untracked")
    with pytest.warns(TrackerWarning, match=r"the tracker visdom fails \(ConnectionError.*again after 60 s") as caught:
        run = train(
            settings(tiny, "toy", *visdom_options(server)), tmp_path / "run", callbacks=[After(15, server.stop)]
        )
    assert one_warning(caught)
    assert metrics(run) == metrics(untracked)
    assert run.model_file.read_bytes() == untracked.model_file.read_bytes()


@pytest.mark.parametrize("back", [11, slow(30)])
def test_a_visdom_server_that_comes_back_shows_everything(back, server, tiny, tmp_path, monkeypatch):
    """It has lost what it knew: missed between two lines of metrics, or away for several of them."""
    monkeypatch.setattr("iresnet.training.tracking.PAUSES", (0.05, 0.05))

    def restart():
        time.sleep(0.2)
        server.start()
        time.sleep(0.2)

    callbacks = [After(10, server.stop), After(back, restart)]
    with pytest.warns(TrackerWarning) as caught:
        run = train(settings(tiny, "toy", *visdom_options(server)), tmp_path / "run", callbacks=callbacks)
    assert one_warning(caught)
    windows = server.windows("run")
    assert_visdom_shows(run, windows)
    assert "samples" in windows


def test_visdom_has_no_seam_where_a_run_was_resumed(server, tiny, tmp_path):
    def die():
        raise MemoryError

    config = settings(tiny, "toy", *visdom_options(server), "--visdom.env", "another name")
    with pytest.raises(MemoryError):
        train(config, tmp_path / "run", callbacks=[After(38, die)])
    run = train(config, tmp_path / "run", resume=True)
    assert_visdom_shows(run, server.windows("another name"))


def test_a_visdom_server_that_is_not_there_is_told_of_once(tiny, tmp_path, server):
    server.stop()
    with pytest.warns(TrackerWarning, match=rf"no visdom server at 127.0.0.1, port {server.port}; start one") as caught:
        train(settings(tiny, "toy", *visdom_options(server)), tmp_path / "run")
    assert one_warning(caught)


# -- trackers that fail ----------------------------------------------------------------------------------------------


class Spy(GeneralTracker):
    """Keeps what it is told; fails or hangs where it is made to."""

    name = "spy"
    requires_logging_directory = False
    tracker = None

    def __init__(self, trouble=None, act=None):
        super().__init__()
        self.trouble, self.act = trouble, act
        self.told = []

    def _tell(self, what, *args):
        self.told.append((what, *args))
        if what == self.trouble:
            self.act()

    def start(self):
        self._tell("start")

    def store_init_configuration(self, values):
        self._tell("describe", values)

    def log(self, values, step=None, **_):
        self._tell("log", values, step)

    def finish(self):
        self._tell("finish")


def fail():
    raise OSError("no space\nleft")


def use(monkeypatch, spy):
    show = lambda tracker, pictures, step: tracker._tell("show", pictures, step)  # noqa: E731
    monkeypatch.setitem(TRACKERS, "aim", TrackerSpec("json", "spy", lambda *_: spy, show))
    return tracked("aim")


def test_a_tracker_is_told_of_the_configuration_the_metrics_and_the_pictures(tiny, tmp_path, monkeypatch):
    spy = Spy()
    train(settings(tiny, "density", *use(monkeypatch, spy)), tmp_path / "run")
    what = [told[0] for told in spy.told]
    assert what == ["start", "describe", *["log"] * 4, "show", *["log"] * 5, "show", "finish"]
    assert spy.told[1][1]["train.epochs"] == 2
    assert all(isinstance(value, (str, int, float, bool, type(None))) for value in spy.told[1][1].values())
    assert [told[2] for told in spy.told if told[0] == "log"] == [7, 14, 20, 20, 21, 28, 35, 40, 40]


@pytest.mark.parametrize("trouble", ["start", slow("describe"), "log", slow("show"), slow("finish")])
def test_a_tracker_that_fails_leaves_the_training_alone(trouble, tiny, tmp_path, monkeypatch):
    untracked = train(settings(tiny, "toy", *tracked()), tmp_path / "untracked")
    spy = Spy(trouble, fail)
    with pytest.warns(TrackerWarning, match=r"^the tracker aim fails \(OSError: no space left\); the tr") as caught:
        run = train(settings(tiny, "toy", *use(monkeypatch, spy)), tmp_path / "run")
    assert one_warning(caught)
    assert [told[0] for told in spy.told].count(trouble) == 1  # left alone, for a minute at least
    assert metrics(run) == metrics(untracked)
    assert run.model_file.read_bytes() == untracked.model_file.read_bytes()


def test_a_tracker_is_tried_again(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("iresnet.training.tracking.PAUSES", (0.0, 0.0))
    spy = Spy("log", fail)
    with pytest.warns(TrackerWarning) as caught:
        train(settings(tiny, "toy", *use(monkeypatch, spy)), tmp_path / "run")
    assert one_warning(caught)
    what = [told[0] for told in spy.told]
    assert what.count("log") > 2
    assert what.count("start") >= what.count("log")


def test_a_tracker_that_hangs_leaves_the_training_alone(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("iresnet.training.tracking.PATIENCE", 0.1)
    release = threading.Event()
    spy = Spy("log", lambda: release.wait(60))
    with pytest.warns(TrackerWarning, match=r"the tracker aim did not finish within 0.1 s") as caught:
        run = train(settings(tiny, "toy", *use(monkeypatch, spy)), tmp_path / "run")
    release.set()
    assert one_warning(caught)
    assert metrics(run)[-1]["step"] == 40


def test_a_tracker_that_does_not_keep_up_misses_something(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("iresnet.training.tracking.MOST_JOBS", 2)
    release = threading.Event()
    spy = Spy("log", lambda: release.wait(60))
    callbacks = [After(39, release.set)]
    with pytest.warns(TrackerWarning, match=r"does not keep up: 2 messages wait, others are dropped") as caught:
        train(settings(tiny, "toy", *use(monkeypatch, spy)), tmp_path / "run", callbacks=callbacks)
    assert one_warning(caught)
    assert spy.told[-1] == ("finish",)


# -- trackers that cannot be used ------------------------------------------------------------------------------------


def test_every_tracker_of_accelerate_has_a_name():
    assert TRACKERS.keys() - {"visdom"} == {str(kind) for kind in LoggerType} - {"all"}


@pytest.mark.parametrize("name", TRACKERS)
def test_trackers_are_made_before_their_packages_are_needed(name, trained):
    run = ir.runs.Run.open(trained("toy"))
    tracker = TRACKERS[name].make(run, "run", Config(), 0)
    assert isinstance(tracker, GeneralTracker)
    assert tracker.name == name


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_named_before_anything_is_written(name, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recipe, *small = tiny["toy"]
    assert call(["train", recipe, *small, "--tracker", name, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    install = TRACKERS[name].install
    assert line.endswith(
        f"the tracker '{name}' needs the package {TRACKERS[name].module}, which is not installed: "
        f"pip install '{install}'"
    )
    assert not list(tmp_path.iterdir())
    extras = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    extras = extras["optional-dependencies"]
    if install.startswith("iresnet"):
        assert any(requirement.startswith(name) for requirement in extras[install[8:-1]])


REFUSED = {
    "an unknown tracker": (Config(tracker=("visdm",)), "unknown --tracker 'visdm'; did you mean 'visdom'"),
    "a port that is none": (Config(visdom=VisdomConfig(port=0)), "--visdom.port must be at least 1, got '0'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_trackers_that_are_refused(case):
    config, expected = REFUSED[case]
    with pytest.raises(ValueError, match=expected):
        check(config)


def test_trackers_are_chosen_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = []
    monkeypatch.setattr("iresnet.training.train", lambda config, *_, **__: chosen.append(config.tracker) or fail())
    for options in (
        ("--tracker", "visdom", "--tracker", "wandb"),
        ("--tracker", "visdom,wandb"),
        ("--no-tracker",),
        (),
    ):
        call(["train", "toy-density", *options])
    assert chosen == [("visdom", "wandb"), ("visdom", "wandb"), (), None]


def test_other_trackers_are_no_other_settings(tiny, tmp_path):
    run = train(settings(tiny, "toy", *tracked()), tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(settings(tiny, "toy", *tracked("tensorboard"), "--visdom.port", "1"), run.path, resume=True)
    with pytest.raises(RecipeError, match="--tracker must be of type"):
        load_config("toy-density", ["--tracker", "3"])
