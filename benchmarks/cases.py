"""What speed.py measures without a trained model: of each case the settings, and of each setting the jobs."""

__all__ = ["CASES", "MAIN", "PUBLISHED", "Settings"]

import itertools
from collections.abc import Callable
from functools import partial

import torch
from behrmann2019 import SpectralConv2d
from contenders import Contender, Setting, contenders, ours
from normflows.nets.lipschitz import InducedNormConv2d
from normflows_block import update
from timing import Job, Make
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from iresnet.config import TaskConfig
from iresnet.data import Batches, Split, dequantize
from iresnet.lipschitz import hold_weights
from iresnet.training.task import Task

DENSITY, CLASSIFIER = "fashion-mnist-density-32", "cifar10-classify-small"
KRYLOV = ("--model.logdet.name", "krylov", "--model.logdet.n-steps", "3")

Settings = dict[str, dict[str, Make]]


def _scaled(recipe: str, channels: int, width: int, batch: int) -> Setting:
    overrides = ("--model.blocks", "[4, 4, 4]", "--model.hidden", str(width))
    return Setting(f"{channels}x32x32, width {width}, batch {batch}", recipe, (channels, 32, 32), batch, overrides)


def _all(recipe: str) -> tuple[Setting, ...]:
    return tuple(_scaled(recipe, *size) for size in itertools.product((1, 3), (64, 128), (32, 64)))


MAIN = _scaled(DENSITY, 1, 64, 64)
"""The task of the 2019 reference, on which everything is measured."""

CLASSIFICATION = _scaled(CLASSIFIER, 3, 64, 64)

STEPS = {"density": MAIN, "classification": CLASSIFICATION}

FULL = (
    Setting("cifar10-density", "cifar10-density", (3, 32, 32), 8, KRYLOV),
    Setting("mnist-density", "mnist-density", (1, 28, 28), 8, KRYLOV),
    Setting("cifar10-classify", "cifar10-classify", (3, 32, 32), 8),
)
"""The full published architectures, eight images a step."""


# -- training --------------------------------------------------------------------------------------------------------


def _step(make: Contender) -> Job:
    training = make()
    return Job(lambda: (training.step(), training.update()))


COMPILED = ("--train.compile", "true")
BF16 = ("--train.precision", "bf16")


def training(setting: Setting) -> dict[str, Make]:
    """Forward, backward and optimizer; of one size compiled too, which takes minutes, while it warms up."""
    makes = contenders(setting)
    makes["iresnet, bf16"] = partial(ours, setting, *BF16)
    if setting in (MAIN, CLASSIFICATION):
        makes["iresnet, compiled"] = partial(ours, setting, *COMPILED)
    return {name: partial(_step, make) for name, make in makes.items()}


def density(setting: Setting) -> dict[str, Make]:
    """The same; also with less memory, on the whole batch, and with the steps that take the bias below a tenth."""
    options = {
        "iresnet, recompute": ("--model.memory", "recompute"),
        "iresnet, whole batch": ("--train.logdet-chunks", "1"),
    }
    if setting == MAIN:
        four = ("--model.logdet.n-steps", "4")
        options |= {"iresnet, 4 steps": four, "iresnet, 4 steps, compiled": (*four, *COMPILED)}
    makes = {name: partial(_step, partial(ours, setting, *changes)) for name, changes in options.items()}
    return {**training(setting), **makes}


def on_all_threads(setting: Setting) -> dict[str, Make]:
    """The same for the contenders alone: what the wall clock says with all threads."""
    return {name: partial(_step, make) for name, make in contenders(setting).items()}


# -- evaluation ------------------------------------------------------------------------------------------------------


def likelihood(setting: Setting) -> dict[str, Make]:
    """Log-densities of a batch, each with the estimator that its method evaluates with."""
    return {name: partial(_evaluation, make) for name, make in contenders(setting).items() if name != "plain"}


def _evaluation(make: Contender) -> Job:
    training = make()
    x, _ = next(training.batches)
    _loss(training.task, x[:8])  # sets the scales of the ActNorms
    training.update()
    return Job(partial(_loss, training.task.eval(), x))


@torch.no_grad()
def _loss(task: Task, x: torch.Tensor) -> None:
    task(x, None)


# -- parts of a step -------------------------------------------------------------------------------------------------


def spectral_normalization(setting: Setting) -> dict[str, Make]:
    """Normalized weights of all layers, after a training step has moved them."""
    makes = contenders(setting)
    return {name: partial(_normalization, makes[name], name) for name in NORMALIZE}


def _normalization(make: Contender, name: str) -> Job:
    training = make()
    return Job(partial(NORMALIZE[name], training.task), prepare=training.step)


def _normalize(task: nn.Module) -> None:
    with hold_weights(task):
        pass


def _normalize_2019(task: nn.Module) -> list[torch.Tensor]:
    return [layer.normalized() for layer in task.modules() if isinstance(layer, SpectralConv2d)]


def _normalize_normflows(task: nn.Module) -> list[torch.Tensor]:
    update(task)
    return [layer.compute_weight(update=False) for layer in task.modules() if isinstance(layer, InducedNormConv2d)]


NORMALIZE: dict[str, Callable[[nn.Module], object]] = {
    "iresnet": _normalize,
    "2019": _normalize_2019,
    "normflows": _normalize_normflows,
}


def data_pipeline(setting: Setting) -> dict[str, Make]:
    """A hundred batches: chosen, augmented, dequantized; beside torch's loader of examples in this process."""
    return {name: partial(_pipeline, setting, name) for name in ("iresnet", "DataLoader")}


def _pipeline(setting: Setting, name: str) -> Job:
    random = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (20_000, *setting.shape), dtype=torch.uint8, generator=random)
    y = torch.randint(0, 10, (20_000,), generator=random)
    task = Task(nn.Identity(), TaskConfig(), levels=256, augment=("pad-crop", "flip"))

    def run() -> None:
        if name == "iresnet":
            batches = Batches(Split(x, y), setting.batch).epoch()
        else:
            batches = iter(DataLoader(TensorDataset(x, y), setting.batch, shuffle=True))
        for images, _ in itertools.islice(batches, 100):
            dequantize(task.augmented(images), levels=256)

    return Job(run)


# -- all -------------------------------------------------------------------------------------------------------------


def _at(jobs: Callable[[Setting], dict[str, Make]], *settings: Setting) -> Settings:
    return {setting.name: jobs(setting) for setting in settings}


CASES: dict[str, Settings] = {
    "density": _at(density, *_all(DENSITY)),
    "classification": _at(training, *_all(CLASSIFIER)),
    "threads": {f"{name}: {of.name}": on_all_threads(of) for name, of in STEPS.items()},
    "likelihood": _at(likelihood, MAIN),
    "normalization": _at(spectral_normalization, MAIN),
    "data": _at(data_pipeline, CLASSIFICATION),
}
"""Jobs by case, setting and contender."""

PUBLISHED: dict[str, Settings] = {"published": _at(training, *FULL)}
"""The same, for those who have the time."""
