"""Recipes: each builds its model, takes a training step on data of its shape, and says what was published."""

import math
import os

import pytest
import torch

import iresnet as ir
from iresnet.config import load_config, recipe_names
from iresnet.data import Batches, Dataset, Split, load
from iresnet.data.published import UCI
from iresnet.models import inputs_of
from iresnet.networks import PlainBlock
from iresnet.normalization import PowerIteration
from iresnet.training import dry_run
from iresnet.training.optim import make_optimizer
from iresnet.training.task import make_task

SHAPES = {
    **dict.fromkeys(("mnist", "fashion-mnist"), (1, 28, 28)),
    **dict.fromkeys(("cifar10", "cifar100", "svhn"), (3, 32, 32)),
    **dict.fromkeys(UCI, (9,)),
}


def small(recipe):
    """The recipe, with one block a scale when its blocks are many, narrow blocks, and small patches."""
    config = load_config(recipe)
    if config.model["hidden"] == 512 or config.model["blocks"] == [7, 7, 7]:
        config.model["blocks"] = [1] * len(config.model["blocks"])
        config.model["n_power_steps"] = 1
    if config.model["hidden"] == 512:
        config.model["hidden"] = 64
    if "whiten" in config.model:
        config.model["whiten"] = 2  # a few images have no more patches than large ones have numbers
    return config


def dataset_of(config, n=4):
    """The data set of a recipe, or random examples of its shape where it has to be got first."""
    name, side = config.data.name, config.data.pad_to
    if name not in SHAPES:
        return load(name)
    shape = (SHAPES[name][0], side, side) if side else SHAPES[name]
    if name in UCI:
        split = Split(torch.randn(n, *shape))
        return Dataset(name, split, split, split, None, (), "random")
    split = Split(torch.randint(0, 256, (n, *shape), dtype=torch.uint8), torch.arange(n) % 10)
    return Dataset(name, split, split, split, 256, tuple("0123456789"), "random")


TERMS = {"bits_per_dim", "log_prior", "logdet"}


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_takes_a_training_step(recipe):
    config = small(recipe)
    dataset = dataset_of(config)
    task = make_task(config, dataset, inputs_of(dataset, config.task.kind)).train()
    optimizer = make_optimizer(task.model, config.optim)
    x, y = next(Batches(dataset.train, 4).epoch())
    loss, metrics = task(x, y)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    expected = {"density": TERMS, "classify": {"accuracy"}, "hybrid": {*TERMS, "accuracy"}}
    assert metrics.keys() == expected[config.task.kind]
    before = [p.detach().clone() for p in task.parameters()]
    for name, p in task.named_parameters():
        assert p.grad is not None, name
        assert bool(torch.isfinite(p.grad).all()), name
    optimizer.step()
    assert any(not torch.equal(p, old) for p, old in zip(task.parameters(), before, strict=True))
    again, _ = task(x, y)
    assert math.isfinite(float(again.detach()))


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_trains_on_the_real_data(recipe):
    """Real steps on real data, where they are."""
    config = small(recipe)
    folder = os.environ.get("IRESNET_DATA", "")
    place = "uci" if config.data.name in UCI else config.data.name
    if config.data.name in SHAPES and not os.path.isdir(os.path.join(folder, place)):
        pytest.skip(f"needs $IRESNET_DATA with {config.data.name}")
    result = dry_run(config, sizes=(2, 4))
    assert math.isfinite(result.loss)
    if config.data.name in SHAPES and config.data.name not in UCI:
        n = {"cifar10": 45_000}.get(config.data.name, 55_000 if folder else 0)
        assert result.total_steps == config.train.epochs * (n // config.train.batch_size)


LARGE = [name for name in recipe_names() if load_config(name).cost.startswith("GPU")]
VARIANTS = {
    **{f"cifar10-classify {c}": ("cifar10-classify", ["--model.coeff", str(c)]) for c in (0.8, 0.7, 0.6, 0.5)},
    "unconstrained": ("cifar10-classify", ["--model.coeff", "null"]),
    "plain": ("cifar10-classify", ["--model.name", "resnet"]),
    "single-scale": ("cifar10-density", ["--model.name", "iresnet"]),
    "single-scale MNIST": ("mnist-density", ["--model.name", "iresnet"]),
}


@pytest.fixture
def _quickly(monkeypatch):
    """Large models, without finding norms and running an example."""
    monkeypatch.setattr(PowerIteration, "converge", lambda *_, **__: None)
    monkeypatch.setattr(ir.zoo, "_dry_forward", lambda _, shape: (math.prod(shape),))


@pytest.mark.usefixtures("_quickly")
@pytest.mark.parametrize(("recipe", "overrides"), [*((name, []) for name in LARGE), *VARIANTS.values()])
def test_the_published_sizes_are_built_whole_and_in_their_variants(recipe, overrides):
    config = load_config(recipe, overrides)
    model = model_of(config, SHAPES[config.data.name])
    blocks = [m for m in model.modules() if isinstance(m, (ir.ResidualBlock, PlainBlock))]
    assert len(blocks) == sum(load_config(recipe).model["blocks"])
    assert {isinstance(block, PlainBlock) for block in blocks} == {config.model["name"] == "resnet"}
    in_head = 2 * len(config.model["blocks"]) if config.task.kind == "hybrid" else 0
    assert sum(isinstance(m, torch.nn.Conv2d) for m in model.modules()) == 3 * len(blocks) + in_head
    coeffs = {m.coeff for m in model.modules() if isinstance(m, PowerIteration)}
    coeff = config.model.get("coeff", 0.9)
    assert coeffs == (set() if config.model["name"] == "resnet" else {math.inf if coeff is None else coeff})
    factored = any(isinstance(m, ir.FactorOut) for m in model.modules())
    assert factored == (config.model["name"] == "iresnet-multiscale")


def model_of(config, shape):
    """The full model, without data."""
    options = {key: value for key, value in config.model.items() if key != "name"}
    return ir.zoo.build(config.model["name"], shape=shape, task=config.task.kind, n_classes=10, **options)


def blocks_of(config, shape):
    """Residual blocks of the full model, without data."""
    return [m for m in model_of(config, shape).modules() if isinstance(m, ir.ResidualBlock)]


CLASSIFIER = {
    "model": {
        "name": "iresnet",
        "blocks": [7, 7, 7],
        "strides": [1, 2, 2],
        "hidden": [32, 64, 128],
        "coeff": 0.9,
        "injective_pad": 13,
        "squeeze": False,
        "activation": "elu",
        "n_power_steps": 1,
        "actnorm": True,
    },
    "optim": {
        "name": "sgd",
        "momentum": 0.9,
        "lr": 0.1,
        "factor": 0.2,
        "milestones": (60, 120, 160),
        "weight_decay": 5e-4,
        "warmup_epochs": 10,
        "schedule": "step",
        "clip_norm": None,
    },
    "train": {"batch_size": 128, "epochs": 200, "precision": "tf32"},
    "task": {"nll_weight": 0, "ce_weight": 1},
    "data": {"name": "cifar10", "augment": ("pad-crop", "flip"), "pad_to": None},
}
DENSITY = {
    "model": {
        "name": "iresnet-multiscale",
        "blocks": [16, 16, 16],
        "strides": [1, 2, 2],
        "hidden": 512,
        "coeff": 0.9,
        "squeeze": True,
        "activation": "elu",
        "n_power_steps": 5,
        "actnorm": True,
        "logdet": {"name": "power-series", "n_terms": 5, "n_probes": 1},
    },
    "optim": {"name": "adamax", "lr": 0.003, "warmup_epochs": 1, "schedule": "constant", "weight_decay": 0},
    "train": {"batch_size": 128},
    "task": {"nll_weight": 1, "ce_weight": 0},
    "data": {"name": "cifar10"},
}
RESIDUAL_FLOW = {
    "model": {
        "name": "iresnet",
        "blocks": [16, 16, 16],
        "strides": [1, 2, 2],
        "hidden": 512,
        "coeff": 0.98,
        "activation": "lipswish",
        "logdet": {"name": "russian-roulette", "n_exact": 2, "p": 0.5, "n_probes": 1},
    },
    "optim": {"name": "adam", "lr": 1e-3, "weight_decay": 0, "schedule": "constant"},
    "train": {"batch_size": 64, "ema": 0.999},
    "data": {"name": "cifar10", "augment": ("flip",)},
}
OTHERS = {"cifar100": ("pad-crop", "flip"), "svhn": ("pad-crop",), "mnist": ("pad-crop",)}
PUBLISHED = {
    "cifar10-classify": CLASSIFIER,
    "cifar10-density": DENSITY,
    "cifar10-residual-flow": RESIDUAL_FLOW,
    **{f"{name}-classify": CLASSIFIER | {"data": {"name": name, "augment": OTHERS[name]}} for name in OTHERS},
}
DEFAULTS = {"squeeze": False, "actnorm": True}
"""What the architectures do unless told otherwise; see test_zoo.py."""


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_published_settings_are_those_of_the_paper(recipe):
    config = load_config(recipe)
    for section, expected in PUBLISHED[recipe].items():
        got = getattr(config, section)
        for key, value in expected.items():
            assert (got.get(key, DEFAULTS.get(key)) if section == "model" else getattr(got, key)) == value, key


def test_the_published_classifier_is_built_whole():
    blocks = blocks_of(load_config("cifar10-classify"), SHAPES["cifar10"])
    channels = [block.g[0 if i == 0 else 1].in_channels for i, block in enumerate(blocks)]
    assert channels == [16] * 7 + [64] * 7 + [256] * 7
    assert [next(layer for layer in block.g if hasattr(layer, "out_channels")).out_channels for block in blocks] == (
        [32] * 7 + [64] * 7 + [128] * 7
    )


def test_the_published_density_has_its_scales():
    config = load_config("cifar10-density", ["--model.blocks", "[1,1,1]", "--model.hidden", "8"])
    blocks = blocks_of(config, SHAPES["cifar10"])
    layers = [next(layer for layer in block.g if hasattr(layer, "in_channels")) for block in blocks]
    assert [(layer.in_channels, *layer.image_size) for layer in layers] == [(12, 16, 16), (24, 8, 8), (48, 4, 4)]
