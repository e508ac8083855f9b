"""Cases of speed.py: for each case its settings, and for each setting the jobs of all contenders."""

__all__ = ["CASES", "MAIN", "PUBLISHED", "Settings", "inversion", "sampling"]

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from baselines import Block2019, Bottleneck, NormflowsBlock, SpectralConv2d, normalize_normflows, swap_blocks
from contenders import Contender, Setting, contenders, ours
from subjects import from_run
from timing import Job, Make
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import iresnet as ir
from iresnet.bijections import Bijection
from iresnet.config import TaskConfig
from iresnet.data import Batches, Split, dequantize
from iresnet.lipschitz import hold_weights
from iresnet.training.task import Task

DENSITY, CLASSIFIER = "fashion-mnist-density-32", "cifar10-classify-small"
AS_IN_2019 = ("--model.activation", "elu", "--optim.name", "sgd", "--optim.lr", "0.1", "--optim.momentum", "0.9")
"""Of the classifier, for which the baselines have no sorted pairs."""
KRYLOV = ("--model.logdet.name", "krylov", "--model.logdet.n-steps", "3")

Settings = dict[str, dict[str, Make]]


def _scaled(recipe: str, channels: int, width: int, batch: int) -> Setting:
    overrides = ("--model.blocks", "[4, 4, 4]", "--model.hidden", str(width))
    overrides += AS_IN_2019 if recipe == CLASSIFIER else ()
    return Setting(f"{channels}x32x32, width {width}, batch {batch}", recipe, (channels, 32, 32), batch, overrides)


def _all_sizes(recipe: str) -> tuple[Setting, ...]:
    return tuple(_scaled(recipe, *size) for size in itertools.product((1, 3), (64, 128), (32, 64)))


MAIN = _scaled(DENSITY, 1, 64, 64)
"""Task of the 2019 reference, on which everything is measured."""

CLASSIFICATION = _scaled(CLASSIFIER, 3, 64, 64)

STEPS = {"density": MAIN, "classification": CLASSIFICATION}

FULL = (
    Setting("cifar10-density", "cifar10-density", (3, 32, 32), 8, KRYLOV),
    Setting("mnist-density", "mnist-density", (1, 28, 28), 8, KRYLOV),
    Setting("cifar10-classify", "cifar10-classify", (3, 32, 32), 8),
)
"""Published architectures in full, eight images a step."""


# -- training --------------------------------------------------------------------------------------------------------


def _step(make: Contender) -> Job:
    training = make()
    return Job(lambda: (training.step(), training.update()))


COMPILED = ("--train.compile", "true")
BF16 = ("--train.precision", "bf16")


def training(setting: Setting) -> dict[str, Make]:
    """Measure forward, backward and optimizer; for one size also compiled, which takes minutes in warm-up."""
    makes = contenders(setting)
    makes["iresnet, bf16"] = partial(ours, setting, *BF16)
    if setting in (MAIN, CLASSIFICATION):
        makes["iresnet, compiled"] = partial(ours, setting, *COMPILED)
    return {name: partial(_step, make) for name, make in makes.items()}


def density(setting: Setting) -> dict[str, Make]:
    """Measure a training step; also with recomputation, on the whole batch, and with four Krylov steps."""
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
    """Measure a training step of the contenders alone, for its wall time on all threads."""
    return {name: partial(_step, make) for name, make in contenders(setting).items()}


# -- evaluation ------------------------------------------------------------------------------------------------------


def likelihood(setting: Setting) -> dict[str, Make]:
    """Measure log-densities of a batch, each with the estimator that its method has for evaluation."""
    return {name: partial(_evaluation, make) for name, make in contenders(setting).items() if name != "plain"}


def _evaluation(make: Contender) -> Job:
    training = make()
    x, _ = next(training.batches)
    with torch.no_grad():
        training.task(x[:8], None)  # sets the scales of the ActNorms
    training.update()
    training.task.eval()
    return Job(torch.no_grad()(lambda: training.task(x, None)))


# -- normalization and data -------------------------------------------------------------------------------------------


def spectral_normalization(setting: Setting) -> dict[str, Make]:
    """Measure the normalization of all weights after a training step."""
    makes = contenders(setting)
    return {name: partial(_normalization, makes[name], name) for name in NORMALIZE}


def _normalization(make: Contender, name: str) -> Job:
    training = make()
    return Job(partial(NORMALIZE[name], training.task), prepare=training.step)


def _normalize(task: nn.Module) -> None:
    with hold_weights(task):
        pass


def _normalize_2019(task: nn.Module) -> list[Tensor]:
    return [layer.normalized() for layer in task.modules() if isinstance(layer, SpectralConv2d)]


NORMALIZE: dict[str, Callable[[nn.Module], object]] = {
    "iresnet": _normalize,
    "2019": _normalize_2019,
    "normflows": normalize_normflows,
}


def data_pipeline(setting: Setting) -> dict[str, Make]:
    """Measure a hundred batches, augmented and dequantized, beside torch's DataLoader in this process."""
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


# -- trained models --------------------------------------------------------------------------------------------------

SAMPLES = 64

INVERTERS: dict[str, Callable[[Bottleneck], Bijection] | None] = {
    "iresnet": None,
    "2019": Block2019,
    "normflows": partial(NormflowsBlock, carry=True),
    "normflows to 1e-5": partial(NormflowsBlock, carry=True, tol=1e-5),
}
"""Blocks in the place of the residual blocks; None keeps those."""


def inversion(run: Path, data_dir: str | None) -> dict[str, Make]:
    """Measure the inversion of latents of test images, with its errors."""
    return {name: partial(_inversion, name, run, data_dir) for name in INVERTERS}


def sampling(run: Path) -> dict[str, Make]:
    """Measure sampling."""
    return {name: partial(_sampling, name, run) for name in INVERTERS}


def _sampling(name: str, run: Path) -> Job:
    flow, random = _flow(name, run), torch.Generator()
    return Job(lambda: flow.sample(SAMPLES, generator=random.manual_seed(0)))


@torch.no_grad()
def _inversion(name: str, run: Path, data_dir: str | None) -> Job:
    subject, flow = from_run(str(run), data_dir, SAMPLES), _flow(name, run)
    z = subject.flow.encode(subject.x).float()
    decode = torch.no_grad()(flow.decode)
    return Job(lambda: decode(z), check=partial(_errors, flow, subject.flow, subject.x, z))


def _flow(name: str, run: Path) -> ir.Flow:
    flow = ir.load(run)
    assert isinstance(flow, ir.Flow), f"{run} is no density"
    block = INVERTERS[name]
    return flow if block is None else swap_blocks(flow, block)


@torch.no_grad()
def _errors(flow: ir.Flow, exact: ir.Flow, x: Tensor, z: Tensor) -> dict[str, float]:
    """Compute errors of inverses by the same model in double precision.

    These are the largest error of an image in units of the range of the data, the largest residual of x + g(x) = z of a
    block, and the fraction of images with residuals of at most 1e-5.
    """
    scale = exact.bijection.bijections[0]  # centers and scales the data
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    blocks = {name: block for name, block in exact.named_modules() if isinstance(block, ir.ResidualBlock)}
    for name in blocks:
        _record(flow.get_submodule(name), name, calls)
    error = (scale(flow.decode(z).double()) - scale(x)).flatten(1).abs().amax(1)
    residual = torch.stack(
        [(blocks[name](back.double()) - z.double()).flatten(1).abs().amax(1) for name, (z, back) in calls.items()]
    ).amax(0)
    return {
        "error": float(error.max()),
        "residual": float(residual.max()),
        "within": float((residual <= 1e-5).double().mean()),
    }


def _record(block: torch.nn.Module, name: str, calls: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Record the argument and the result of every inverse of a block."""
    inverse = block.inverse

    def recorded(z: Tensor, **options) -> Tensor:
        calls[name] = (z, inverse(z, **options))
        return calls[name][1]

    block.inverse = recorded


# -- all -------------------------------------------------------------------------------------------------------------


def _at(jobs: Callable[[Setting], dict[str, Make]], *settings: Setting) -> Settings:
    return {setting.name: jobs(setting) for setting in settings}


CASES: dict[str, Settings] = {
    "density": _at(density, *_all_sizes(DENSITY)),
    "classification": _at(training, *_all_sizes(CLASSIFIER)),
    "threads": {f"{name}: {of.name}": on_all_threads(of) for name, of in STEPS.items()},
    "likelihood": _at(likelihood, MAIN),
    "normalization": _at(spectral_normalization, MAIN),
    "data": _at(data_pipeline, CLASSIFICATION),
}
"""Jobs by case, setting and contender."""

PUBLISHED: dict[str, Settings] = {"published": _at(training, *FULL)}
"""Cases that take minutes a step."""
