"""Training: the loss falls, everything random is a function of the seed, and an interruption leaves no trace."""

import errno
import json
import math
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from marks import slow

import iresnet as ir
from iresnet.config import Config, DataConfig, OptimConfig, TaskConfig, load_config
from iresnet.data import load
from iresnet.errors import DataError, Interrupted, IResNetError, RunError
from iresnet.models import build_model, inputs_of, load_model, start_from
from iresnet.runs import Run
from iresnet.training import Callback, Task, Trainer, dry_run, train
from iresnet.training.callbacks import Snapshot, Started, Stepped, Stopped
from iresnet.training.checkpoints import read_checkpoint
from iresnet.training.optim import OPTIMIZERS, SCHEDULES, learning_rate, make_optimizer
from iresnet.training.task import make_task

KINDS = ("density", "classify", "hybrid", "toy")


class Events(Callback):
    """Keeps all events, and does something after a step."""

    def __init__(self, at=None, act=None):
        self.events, self.at, self.act = [], at, act

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, Stepped) and event.step == self.at:
            self.act()

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def settings(tiny, kind, *changes):
    recipe, *small = tiny[kind]
    return load_config(recipe, [*small, *changes])


def metrics(run, split="train"):
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def same(a, b):
    """Whether nested containers of tensors are equal, bit for bit."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(run, other):
    a, b = read_checkpoint(run), read_checkpoint(other)
    assert a.step == b.step
    for part in ("model", "optimizer", "average", "random", "best", "skipped"):
        assert same(getattr(a, part), getattr(b, part)), part
    assert run.model_file.read_bytes() == other.model_file.read_bytes()


# -- learning --------------------------------------------------------------------------------------------------------

FALLS = {
    "density": ("0.02", 1.0),
    "classify": ("0.01", 0.5),
    "hybrid": ("0.02", 1.5),
    "toy": ("0.01", 0.05),
}
"""Learning rates, and by how much the loss falls in three epochs."""


def test_a_trainer_takes_a_configuration():
    with pytest.raises(IResNetError, match=r"takes a configuration, got 'toy-density'; make one with ir.load_config"):
        ir.Trainer("toy-density")


@pytest.mark.parametrize("kind", ["density", "classify", "toy", slow("hybrid")])
def test_the_loss_falls(kind, tiny, tmp_path):
    lr, fall = FALLS[kind]
    changes = ("--train.epochs", "3", "--train.snapshot-every", "3", "--train.log-every", "5", "--optim.lr", lr)
    run = train(settings(tiny, kind, *changes), tmp_path / "run")
    first, *_, last = metrics(run)
    (validation,) = metrics(run, "validation")
    assert first["loss"] - last["loss"] > fall
    assert first["loss"] - validation["loss"] > fall
    assert validation["certified"]
    assert validation["largest_block_bound"] < 1


TWO_EPOCHS = ("--train.epochs", "2", "--train.log-every", "7")


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A function from the kind to a run of two epochs that nothing interrupted, and its events."""
    runs = {}

    def run(kind):
        if kind not in runs:
            events = Events()
            out = tmp_path_factory.mktemp("whole") / kind
            runs[kind] = train(settings(tiny, kind, *TWO_EPOCHS), out, callbacks=[events]), events
        return runs[kind]

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_say_what_was_done(kind, whole):
    run, events = whole(kind)
    assert isinstance(events.events[0], Started)
    assert events.events[-1] == Stopped(complete=True)
    n = events.of(Started)[0].steps_per_epoch
    assert [event.step for event in events.of(Stepped)] == list(range(1, 2 * n + 1))
    logged = sorted({*range(7, 2 * n + 1, 7), n, 2 * n})
    assert [line["step"] for line in metrics(run)] == logged
    assert [line["step"] for line in metrics(run, "validation")] == [n, 2 * n]
    assert [line["epoch"] for line in metrics(run, "validation")] == [1, 2]
    density = {"bits_per_dim", "log_prior", "logdet"}
    scores = {"density": density, "toy": density, "classify": {"accuracy"}, "hybrid": {"accuracy", *density}}[kind]
    names = {"split", "step", "epoch", "loss"} | scores
    assert metrics(run)[0].keys() == names | {"lr", "grad_norm"}
    assert metrics(run, "validation")[0].keys() == names | {"certified", "largest_block_bound", "reconstruction_error"}


def test_validation_is_of_the_saved_model(trained):
    """The last line of validation is what the loaded model gives, with the noise of the seed."""
    run = Run.open(trained("density"))
    config, _ = run.read_config()
    dataset = load("digits")
    task = Task(load_model(run), config.task, levels=17)
    torch.manual_seed(config.train.seed)
    losses = [task(x, None)[0].detach() * len(x) for x in dataset.validation.x.split(config.train.batch_size)]
    assert float(sum(losses)) / len(dataset.validation) == pytest.approx(
        metrics(run, "validation")[-1]["loss"], abs=1e-5
    )


# -- the same again --------------------------------------------------------------------------------------------------


def test_the_seed_decides_everything(tiny, whole, tmp_path):
    first, _ = whole("toy")
    torch.manual_seed(99)  # what came before does not matter
    again = train(settings(tiny, "toy", *TWO_EPOCHS), tmp_path / "again")
    assert_same_run(again, first)
    assert again.metrics_file.read_text() == first.metrics_file.read_text()
    other = train(settings(tiny, "toy", *TWO_EPOCHS, "--train.seed", "1"), tmp_path / "other")
    with pytest.raises(AssertionError):
        assert_same_run(other, first)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("density", signal.SIGINT),
        slow("classify", signal.SIGINT),
        slow("hybrid", signal.SIGINT),
        ("toy", signal.SIGINT),
        ("toy", signal.SIGTERM),
    ],
)
def test_an_interruption_leaves_no_trace(kind, number, tiny, whole, tmp_path):
    """Stopped within an epoch and within a window of metrics, then resumed: the same run, bit for bit."""
    config = settings(tiny, kind, *TWO_EPOCHS)
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    events = Events(10, lambda: signal.raise_signal(number))
    with pytest.raises(Interrupted, match=r"stopped after step 10 of \d+, saved in .*run$"):
        train(config, tmp_path / "run", callbacks=[events])
    assert events.events[-1] == Stopped(complete=False)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert ir.certify(ir.load(tmp_path / "run")).certified
    torch.manual_seed(99)
    events = Events()
    resumed = train(config, tmp_path / "run", resume=True, callbacks=[events])
    assert events.of(Started)[0].step == 10
    assert events.of(Stepped)[0].step == 11
    assert_same_run(resumed, whole(kind)[0])
    assert resumed.metrics_file.read_text() == whole(kind)[0].metrics_file.read_text()


def test_what_was_done_after_the_last_checkpoint_is_done_again(tiny, whole, tmp_path):
    """A run that dies, as by a loss of power, continues from its last snapshot."""

    def die():
        raise MemoryError

    config = settings(tiny, "toy", *TWO_EPOCHS)
    events = Events(38, die)
    with pytest.raises(MemoryError):
        train(config, tmp_path / "run", callbacks=[events])
    assert events.events[-1] == Stopped(complete=False)  # whoever follows can clean up
    assert metrics(Run(tmp_path / "run"))[-1]["step"] == 35
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"split": "tra')  # half a line
    resumed = train(config, tmp_path / "run", resume=True)
    assert_same_run(resumed, whole("toy")[0])
    assert resumed.metrics_file.read_text() == whole("toy")[0].metrics_file.read_text()


def test_resuming_a_complete_run_changes_nothing(tiny, tmp_path):
    config = settings(tiny, "toy")
    run = train(config, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    train(config, tmp_path / "run", resume=True)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("changes", [slow(()), ("--train.ema", "0.9"), ("--train.patience", "1")])
def test_resuming_a_complete_run_writes_its_model_again(changes, tiny, tmp_path, worse_after):
    worse_after(20)
    config = settings(tiny, "toy", *TWO_EPOCHS, *changes)
    run = train(config, tmp_path / "run")
    before = run.model_file.read_bytes()
    for damaged in (before[:-100], b"hello", None):
        run.model_file.unlink() if damaged is None else run.model_file.write_bytes(damaged)
        train(config, tmp_path / "run", resume=True)
        assert run.model_file.read_bytes() == before


def test_a_second_ctrl_c_acts_at_once(tiny, tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start its jobs with SIGINT ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            train(settings(tiny, "toy"), tmp_path / "run", callbacks=[Events(3, twice)])
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", ["density", "toy"])
def test_snapshots_and_pictures_leave_the_training_alone(kind, tiny, whole, tmp_path):
    fewer = ("--train.snapshot-every", "2", "--train.n-pictures", "0")
    run = train(settings(tiny, kind, *TWO_EPOCHS, *fewer), tmp_path / "run")
    often, _ = whole(kind)
    assert_same_run(run, often)
    assert metrics(run) == metrics(often)
    assert metrics(run, "validation")[-1] == metrics(often, "validation")[-1]


# -- another start, another end ----------------------------------------------------------------------------------------


def test_a_run_stops_after_so_many_steps_and_goes_on_as_if_it_had_not(tiny, tmp_path):
    """25 steps end within the second epoch of 20; without its limit the run is that which never had one."""
    constant = (*TWO_EPOCHS, "--optim.schedule", "constant")
    short, long = (settings(tiny, "toy", *constant, *limit) for limit in (("--train.max-steps", "25"), ()))
    stopped, straight = train(short, tmp_path / "run"), train(long, tmp_path / "straight")
    assert read_checkpoint(stopped).step == 25
    assert [line["step"] for line in metrics(stopped)] == [7, 14, 20, 21, 25]
    assert [line["step"] for line in metrics(stopped, "validation")] == [20, 25]
    ir.load(stopped.path)
    train(short, stopped.path, resume=True)  # it is complete
    with pytest.raises(RunError, match=r"train.max_steps: 25 -> 24"):
        train(settings(tiny, "toy", *constant, "--train.max-steps", "24"), stopped.path, resume=True)
    longer = train(long, stopped.path, resume=True)
    assert longer.read_config()[0].train.max_steps is None
    a, b = read_checkpoint(longer), read_checkpoint(straight)
    for part in ("step", "model", "optimizer", "random"):
        assert same(getattr(a, part), getattr(b, part)), part
    with pytest.raises(RunError, match=r"train.max_steps: None -> 25"):
        train(short, longer.path, resume=True)


def test_an_interrupted_short_run_ends_the_same(tiny, tmp_path):
    config = settings(tiny, "toy", *TWO_EPOCHS, "--train.max-steps", "25", "--optim.schedule", "cosine")
    straight = train(config, tmp_path / "straight")
    with pytest.raises(Interrupted, match="after step 22 of 25"):
        train(config, tmp_path / "run", callbacks=[Events(22, lambda: signal.raise_signal(signal.SIGINT))])
    resumed = train(config, tmp_path / "run", resume=True)
    assert_same_run(resumed, straight)
    assert resumed.metrics_file.read_text() == straight.metrics_file.read_text()


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules_end_with_the_last_step(schedule, tiny, tmp_path):
    changes = ("--train.epochs", "9", "--train.max-steps", "25", "--optim.schedule", schedule, "--train.log-every", "1")
    config = settings(tiny, "toy", *changes, "--train.snapshot-every", "9")
    run = train(config, tmp_path / "run")
    rates = [line["lr"] for line in metrics(run)]
    expected = [learning_rate(config.optim, (step - 0.5) / 20, 25 / 20) for step in range(1, 26)]
    assert rates == pytest.approx(expected, rel=1e-6)
    assert rates[-1] < 0.1 * max(rates)


def test_more_steps_than_the_epochs_have_change_nothing(tiny, whole, tmp_path):
    run = train(settings(tiny, "toy", *TWO_EPOCHS, "--train.max-steps", "41"), tmp_path / "run")
    assert_same_run(run, whole("toy")[0])
    assert dry_run(settings(tiny, "toy", *TWO_EPOCHS, "--train.max-steps", "25")).total_steps == 25


@pytest.mark.parametrize("kind", ["density", "classify", "toy"])
def test_a_training_starts_from_the_weights_of_a_run(kind, tiny, trained, tmp_path):
    """Bit for bit before the first step, whose loss is below that of a new model."""
    first = ("--train.log-every", "1", "--train.max-steps", "1")
    config = settings(tiny, kind, *first, "--train.init", str(trained(kind)))
    trainer = Trainer(config, device="cpu")
    assert same(dict(trainer.model.state_dict()), dict(load_model(Run(trained(kind))).state_dict()))
    run = trainer.fit(tmp_path / "run")
    fresh = train(settings(tiny, kind, *first), tmp_path / "fresh")
    assert metrics(run)[0]["loss"] < metrics(fresh)[0]["loss"] - 0.02
    assert run.read_config()[0].train.init == str(trained(kind))


def test_a_spline_starts_from_the_training_split_unless_weights_do(tiny, tmp_path):
    tiny = {"density": (*tiny["density"], "--model.spline", "8")}
    other = train(settings(tiny, "density", "--train.max-steps", "1"), tmp_path / "other")
    dataset = load("digits")
    latents = []
    for init in ((), ("--train.init", str(other.path))):
        task = make_task(settings(tiny, "density", *init), dataset, inputs_of(dataset, "density"))
        scale, spline = (next(m for m in task.modules() if isinstance(m, kind)) for kind in (ir.Affine, ir.Spline))
        latents.append(spline(scale(ir.dequantize(dataset.train.x, levels=17))).detach())
    assert float(latents[0].std()) == pytest.approx(1, abs=0.05)
    assert torch.equal(spline.widths, next(m for m in load_model(other).modules() if isinstance(m, ir.Spline)).widths)


def test_weights_that_do_not_fit_are_named(tiny, trained, tmp_path):
    init = ("--train.init", str(trained("density")))
    with pytest.raises(
        RunError, match=r"'bijection\S+' is \(8, 1, 3, 3\) there and \(9, 1, 3, 3\) here; .*and \d+ more"
    ):
        train(settings(tiny, "density", *init, "--model.hidden", "9"), tmp_path / "run")
    with pytest.raises(RunError, match=r"missing.*--init needs the task"):
        train(settings(tiny, "classify", *init), tmp_path / "run")
    with pytest.raises(RunError, match="did you mean 'digits-density'"):
        train(settings(tiny, "density", "--train.init", "digits-densty"), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_start_keeps_the_scale_of_the_new_data():
    source, model = (ir.zoo.build("toy-mlp", shape=(2,), blocks=1, hidden=4, mean=mean) for mean in (1.0, 5.0))
    start_from(model, source, "source")
    assert float(model.bijection.bijections[0].mean) == 5.0
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(source.named_parameters())[name])


# -- resuming what is not there --------------------------------------------------------------------------------------


def test_other_settings_are_listed(tiny, whole):
    run, _ = whole("density")
    config = settings(tiny, "density", *TWO_EPOCHS, "--optim.lr", "0.5", "--model.hidden", "9")
    with pytest.raises(RunError) as caught:
        train(config, run.path, resume=True)
    assert "optim.lr: 0.04 -> 0.5" in str(caught.value)
    assert "model.hidden: 8 -> 9" in str(caught.value)
    assert "epochs" not in str(caught.value)


def test_other_words_in_the_recipe_are_no_other_settings(tiny, whole):
    config = replace(settings(tiny, "toy", *TWO_EPOCHS), name="new", description="new", expected="new", cost="new")
    train(config, whole("toy")[0].path, resume=True)


def test_runs_that_cannot_be_resumed(tiny, tmp_path):
    config = settings(tiny, "toy")
    with pytest.raises(RunError, match="is not a run folder"):
        train(config, tmp_path / "run", resume=True)
    assert not list(tmp_path.iterdir())
    run = train(config, tmp_path / "run")
    with pytest.raises(RunError, match="holds a run already; continue it with --resume"):
        train(config, tmp_path / "run")
    (weights,) = run.state.glob("*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"no checkpoint of .*run is sound \(.*step-00000020 is damaged: model.safe"):
        train(config, tmp_path / "run", resume=True)
    shutil.rmtree(run.state)
    with pytest.raises(RunError, match="has no checkpoint to resume from"):
        train(config, tmp_path / "run", resume=True)


# -- trouble on the way ----------------------------------------------------------------------------------------------


def test_a_loss_that_explodes_is_an_error_with_advice(tiny, tmp_path):
    changes = ("--optim.name", "sgd", "--optim.lr", "1e30", "--optim.warmup-epochs", "0", "--optim.clip-norm", "null")
    events = Events()
    with pytest.raises(RunError, match=r"11 steps in a row had to be .* not finite; lower --optim.lr"):
        train(settings(tiny, "density", *changes), tmp_path / "run", callbacks=[events])
    assert events.events[-1] == Stopped(complete=False)


def test_a_full_disk_leaves_the_last_snapshot(tiny, tmp_path, monkeypatch):
    """The disk fills up in the second epoch; the run continues when there is room again."""
    config = settings(tiny, "toy", "--train.epochs", "2")

    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    events = Events(25, lambda: monkeypatch.setattr("os.fsync", fsync))
    with pytest.raises(RunError, match="No space left on device"):
        train(config, tmp_path / "run", callbacks=[events])
    assert read_checkpoint(Run(tmp_path / "run")).step == 20
    ir.load(tmp_path / "run")
    assert not [path for path in (tmp_path / "run").rglob("*") if path.suffix == ".tmp"]
    monkeypatch.undo()
    train(config, tmp_path / "run", resume=True)
    assert read_checkpoint(Run(tmp_path / "run")).step == 40


REFUSED = {
    "batch larger than the set": (("--train.batch-size", "1298"), "larger than the 1297 examples; use .* at most 1297"),
    "no batch": (("--train.batch-size", "0"), "--train.batch-size must be at least 1, got '0'"),
    "no epochs": (("--train.epochs", "0"), "--train.epochs must be at least 1, got '0'"),
    "never a line": (("--train.log-every", "0"), "--train.log-every must be at least 1"),
    "never a snapshot": (("--train.snapshot-every", "0"), "--train.snapshot-every must be at least 1"),
    "fewer pictures than none": (("--train.n-pictures", "-1"), "--train.n-pictures must be at least 0"),
    "a negative seed": (("--train.seed", "-1"), "--train.seed must be at least 0"),
    "a huge seed": (("--train.seed", str(2**64)), "--train.seed must be below"),
    "an unknown precision": (("--train.precision", "bf61"), "unknown --train.precision 'bf61'; did you mean 'bf16'"),
    "lr 0": (("--optim.lr", "0"), "--optim.lr must be above 0"),
    "lr below 0": (("--optim.lr", "-1"), "--optim.lr must be above 0"),
    "lr nan": (("--optim.lr", "nan"), "--optim.lr must be a finite number, got 'nan'"),
    "lr inf": (("--optim.lr", "inf"), "--optim.lr must be a finite number, got 'inf'"),
    "negative weight decay": (("--optim.weight-decay", "-1"), "--optim.weight-decay must be at least 0"),
    "negative clip norm": (("--optim.clip-norm", "-1"), "--optim.clip-norm must be at least 0"),
    "negative warm-up": (("--optim.warmup-epochs", "-1"), "--optim.warmup-epochs must be at least 0"),
    "an unknown optimizer": (("--optim.name", "adm"), "unknown --optim.name 'adm'; did you mean 'adam'"),
    "an unknown schedule": (("--optim.schedule", "cosin"), "unknown --optim.schedule 'cosin'; did you mean 'cosine'"),
    "an unknown augmentation": (("--data.augment", "flop"), "unknown --data.augment 'flop'; did you mean 'flip'"),
    "an unknown data set": (("--data.name", "digit"), "unknown data set 'digit'; did you mean 'digits'"),
    "no task": (("--task.nll-weight", "0"), "--task.nll-weight or --task.ce-weight must be above 0"),
    "no labels": (("--data.name", "moons", "--task.ce-weight", "1"), "moons has no labels"),
    "one example a batch, with a head": (
        ("--task.ce-weight", "1", "--train.batch-size", "1"),
        "--train.batch-size must be at least 2",
    ),
    "coefficient 1": (("--model.coeff", "1"), r"must lie in \(0, 1\)"),
    "shifts of small images": (("--data.name", "images.npz", "--data.augment", "pad-crop"), "padding must lie in 0..3"),
    "flipped points": (("--data.name", "points.csv", "--data.augment", "flip"), "augmentation needs images"),
}


CALLS = {
    "train": lambda config, folder: train(config, folder / "run", data_dir=folder),
    "dry run": lambda config, folder: dry_run(config, data_dir=folder),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(case, call, tiny, tmp_path):
    changes, expected = REFUSED[case]
    np.savez(tmp_path / "images.npz", x=np.arange(320 * 16, dtype=np.uint8).reshape(320, 4, 4))
    np.savetxt(tmp_path / "points.csv", torch.randn(100, 2).numpy(), delimiter=",")
    with pytest.raises(IResNetError, match=expected) as caught:
        CALLS[call](settings(tiny, "toy" if "points.csv" in changes else "density", *changes), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("call", CALLS)
def test_settings_made_in_python_are_checked_too(call, tmp_path):
    with pytest.raises(IResNetError, match=r"--optim\.lr must be above 0, got '0\.0'"):
        CALLS[call](Config(optim=OptimConfig(lr=0.0)), tmp_path)
    assert not (tmp_path / "run").exists()


# -- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["density", "classify", "hybrid"])
def test_the_loss_is_the_weighted_sum(kind):
    weights = {"density": (2.0, 0.0), "classify": (0.0, 3.0), "hybrid": (2.0, 3.0)}[kind]
    config = Config(
        data=DataConfig("digits"),
        model={"blocks": [1], "strides": [1], "hidden": 4, "logdet": "exact"},
        task=TaskConfig(*weights),
    )
    dataset = load("digits")
    x, y = dataset.train.x[:16], dataset.train.y[:16]
    model = build_model(config, inputs_of(dataset, kind)).eval()
    torch.manual_seed(3)
    loss, metrics = Task(model, config.task, levels=17).eval()(x, y)
    torch.manual_seed(3)
    noisy = x + torch.rand(x.shape)
    expected = 0.0
    if kind != "classify":
        flow = model if kind == "density" else model.flow
        bits = flow.bits_per_dim(noisy).mean()
        expected += 2 * bits
        torch.testing.assert_close(metrics["bits_per_dim"], bits)
    if kind != "density":
        logits = model(noisy if kind == "hybrid" else x.float())
        expected += 3 * F.cross_entropy(logits, y)
        assert metrics["accuracy"] == (logits.argmax(1) == y).float().mean()
    torch.testing.assert_close(loss, expected)


def test_images_are_augmented_in_train_mode_alone():
    model = ir.zoo.build("iresnet", shape=(1, 8, 8), task="classify", n_classes=2, blocks=[1], strides=[1], hidden=4)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    task = Task(model, TaskConfig(0, 1), levels=256, augment=["flip", "pad-crop"])
    x, y = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)
    task.train()(x, y)
    task.eval()(x, y)
    assert not torch.equal(seen[0], x.float())
    assert torch.equal(seen[1], x.float())


# -- optimizers and schedules ----------------------------------------------------------------------------------------

RATES = {
    "constant": (OptimConfig(lr=0.1), 10, {0.1: 0.1, 10: 0.1}),
    "warm-up": (OptimConfig(lr=0.1, warmup_epochs=4), 10, {0.01: 0.00025, 1: 0.025, 4: 0.1, 10: 0.1}),
    "cosine": (OptimConfig(lr=0.2, schedule="cosine"), 10, {0: 0.2, 2.5: 0.1 * (1 + math.sqrt(0.5)), 5: 0.1, 10: 0}),
    "cosine after warm-up": (
        OptimConfig(lr=0.2, schedule="cosine", warmup_epochs=2),
        10,
        {1: 0.1, 2: 0.2, 6: 0.1, 10: 0},
    ),
    "linear": (OptimConfig(lr=0.2, schedule="linear", decay_from=0.5), 10, {1: 0.2, 5: 0.2, 7.5: 0.1, 10: 0}),
    "linear from the start": (OptimConfig(lr=0.2, schedule="linear", decay_from=0), 10, {0: 0.2, 5: 0.1, 10: 0}),
    "linear at the end": (OptimConfig(lr=0.2, schedule="linear", decay_from=1), 10, {9.9: 0.2}),
    "step": (
        OptimConfig(lr=0.1, schedule="step", milestones=(60, 120, 160), factor=0.2, warmup_epochs=10),
        200,
        {5: 0.05, 10: 0.1, 59.9: 0.1, 60: 0.02, 119.9: 0.02, 120: 0.004, 160: 0.0008, 200: 0.0008},
    ),
}


@pytest.mark.parametrize("case", RATES)
def test_learning_rates_against_their_closed_forms(case):
    config, epochs, expected = RATES[case]
    rates = {epoch: learning_rate(config, epoch, epochs) for epoch in expected}
    assert rates == pytest.approx(expected, abs=1e-12)
    assert {config.schedule for config, _, _ in RATES.values()} == set(SCHEDULES)


def test_the_rate_in_the_metrics_is_that_of_the_schedule(tiny, tmp_path):
    config = settings(tiny, "toy", "--train.epochs", "3", "--train.log-every", "1", "--optim.warmup-epochs", "1.5")
    config = replace(config, train=replace(config.train, snapshot_every=3))
    run = train(config, tmp_path / "run")
    assert [line["lr"] for line in metrics(run)] == pytest.approx(
        [learning_rate(config.optim, (step - 0.5) / 20, 3) for step in range(1, 61)], rel=1e-6
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_minimizes(name):
    parameter = torch.nn.Linear(1, 1, bias=False)
    optimizer = make_optimizer(parameter, OptimConfig(name=name, lr=0.1, weight_decay=0.01, momentum=0.5))
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    assert optimizer.param_groups[0].get("momentum", 0.5) == 0.5
    for _ in range(50):
        optimizer.zero_grad()
        (parameter.weight - 2).square().sum().backward()
        optimizer.step()
    assert abs(parameter.weight.item() - 2) < 0.1


@pytest.mark.parametrize(("limit", "clipped"), [("0.01", True), ("1e6", False), ("null", False)])
def test_a_step_is_no_longer_than_the_clipped_gradient(limit, clipped, tiny, tmp_path):
    """One step of plain gradient descent moves the weights by lr times the norm of the clipped gradient."""
    changes = {"batch-size": 1297, "n-pictures": 0, "log-every": 1}
    changes = [token for key, value in changes.items() for token in (f"--train.{key}", str(value))]
    optim = {"name": "sgd", "momentum": 0, "lr": 0.5, "warmup-epochs": 0, "schedule": "constant", "clip-norm": limit}
    changes += [token for key, value in optim.items() for token in (f"--optim.{key}", str(value))]
    config = settings(tiny, "density", *changes, "--model.actnorm", "false")
    run = train(config, tmp_path / "run")
    torch.manual_seed(config.train.seed)
    start = dict(build_model(config, run.read_config()[1]).named_parameters())
    end = read_checkpoint(run).model
    moved = math.sqrt(sum(float((end[name] - p.detach()).square().sum()) for name, p in start.items()))
    norm = metrics(run)[0]["grad_norm"]
    assert norm > 0.02
    assert moved == pytest.approx(0.5 * (float(limit) if clipped else norm), rel=1e-3)


# -- dry runs --------------------------------------------------------------------------------------------------------


def test_a_dry_run_counts_and_writes_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = settings(tiny, "hybrid", "--train.epochs", "7")
    result = dry_run(config)
    model = build_model(config, inputs_of(load("digits"), "hybrid"))
    assert result.parameters == sum(p.numel() for p in model.parameters())
    assert result.total_steps == 7 * (1297 // 64)
    assert result.state_bytes >= 4 * 4 * result.parameters  # weights, gradients and two moments
    assert result.example_bytes > 64 * 4
    assert result.seconds > 0
    assert not result.timed
    assert math.isfinite(result.loss)
    assert not list(tmp_path.iterdir())


def test_the_memory_of_a_dry_run_grows_with_the_model(tiny):
    small, large = (dry_run(settings(tiny, "density", "--model.blocks", f"[{n},{n}]")) for n in (1, 3))
    assert 2 < large.example_bytes / small.example_bytes < 4


def test_the_memory_of_a_dry_run_is_that_of_a_step_of_the_whole_batch(tiny):
    result = dry_run(settings(tiny, "density", "--train.batch-size", "6"), sizes=(2, 4))
    same = dry_run(settings(tiny, "density", "--train.batch-size", "6"), sizes=(2, 6))
    assert result.workload.counts.at(6) == same.workload.counts.large


def test_a_dry_run_predicts_for_the_precision_of_the_recipe(tiny):
    full, half = (dry_run(settings(tiny, "density", "--train.precision", name)) for name in ("tf32", "bf16"))
    assert half.workload.precision == "bf16"
    assert half.workload.counts.at(64).memory < full.workload.counts.at(64).memory
    assert [p.exchanged for p in half.predictions()] == [p.exchanged for p in full.predictions()]


def test_every_device_holds_the_model_its_optimizer_and_the_data(tiny):
    config, dataset = settings(tiny, "hybrid"), load("digits")
    result = dry_run(config)
    held = [*build_model(config, inputs_of(dataset, "hybrid")).buffers(), dataset.train.x, dataset.train.y]
    assert result.workload.resident_bytes == result.state_bytes + sum(t.nbytes for t in held)


def test_dry_runs_need_data(tiny):
    with pytest.raises(DataError, match="no such folder or file"):
        dry_run(settings(tiny, "density", "--data.name", "nowhere.csv"))


def test_snapshots_come_with_a_sealed_model(tiny, tmp_path):
    events = Events()
    run = train(settings(tiny, "density"), tmp_path / "run", callbacks=[events])
    (snapshot,) = events.of(Snapshot)
    assert snapshot.certificate.certified
    assert ir.certify(snapshot.model).to_dict() == snapshot.certificate.to_dict()
    assert same(ir.load(run.path).state_dict(), snapshot.model.state_dict())
    assert sorted(path.name for path in run.samples.iterdir()) == [
        "reconstructions-epoch-0001.png",
        "samples-epoch-0001.png",
    ]
