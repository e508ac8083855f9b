"""Configurations: what can be set, with defaults and limits, read from recipes and the command line; without torch."""

__all__ = [
    "ABOUT",
    "Config",
    "DataConfig",
    "OptimConfig",
    "TaskConfig",
    "TrainConfig",
    "VisdomConfig",
    "WITHOUT",
    "check",
    "differences",
    "from_dict",
    "leaves",
    "load_config",
    "recipe_names",
    "to_yaml",
]

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from iresnet.errors import RecipeError, UnknownNameError, nearest
from iresnet.options import flag, from_dict, leaves, option, options
from iresnet.recipes import ABOUT, WITHOUT, parse_overrides, read_recipe, recipe_names, set_value
from iresnet.renamed import current_name, without_network

# -- what can be set: the choices are the keys of the registries, without importing them -------------------------------

AUGMENTATIONS = ("flip", "pad-crop")
IMAGE_MODES = ("L", "RGB")
OPTIMIZERS = ("adam", "adamax", "adamw", "muon", "sgd")
PRECISIONS = ("bf16", "float32", "fp16", "tf32")
SCHEDULES = ("constant", "cosine", "linear", "step")
SHARDINGS = ("ddp", "fsdp")
TRACKERS = (
    *("aim", "clearml", "comet_ml", "dvclive", "mlflow"),
    *("swanlab", "tensorboard", "trackio", "visdom", "wandb"),
)


@dataclass(frozen=True)
class DataConfig:
    """Data to model."""

    name: str = option("digits", "data set, or path of a folder of images, .npz, .npy, .parquet or .csv")
    pad_to: int | None = option(None, "surround images with zeros up to this height and width", at_least=1)
    augment: tuple[str, ...] = option((), "augmentations of training images", choices=AUGMENTATIONS)
    stream: bool = option(
        False, "read training images from Parquet files as they are needed, for data beyond memory", changes="run"
    )
    shuffle_buffer: int = option(
        10_000, "stream: examples that are read and shuffled together, by each process", at_least=1, changes="run"
    )
    split_seed: int = option(
        0, "of random splits: of UCI tables, and of your own data without splits", at_least=0, changes="run"
    )
    image_size: int | None = option(
        None, "your images: scale the shorter side to this, and cut out the central square", at_least=1
    )
    mode: str | None = option(
        None, "your images: convert them to color or gray, whatever they are", choices=IMAGE_MODES
    )
    target: str | int | None = option(None, "your table: column of class labels, by name, or by position from 0")
    columns: tuple[str | int, ...] = option(
        (), "your table: read these columns alone; those without a name: 'column 3'"
    )
    drop: tuple[str | int, ...] = option((), "your table: leave these columns out")
    one_hot: tuple[str | int, ...] = option((), "your table: columns of categories, a feature for each category")
    impute: bool = option(False, "your table: put others of the column, drawn at random, in place of missing values")
    context: tuple[str | int, ...] = option(
        (), "your table: columns that a conditional density of the others is given; they are no features"
    )
    dequantize: bool = option(False, "your table: add uniform noise of one step to columns of integers or few values")
    keys: tuple[str, ...] = option((), "your .npz: what its arrays are, if not called so: [x=images,y=labels]")
    test: str | None = option(None, "your data: another file or folder, all of which is the test split")

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of :func:`iresnet.data.load`, besides the name and the folder of data sets."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["keys"] = {key: name for key, _, name in (pair.partition("=") for pair in self.keys)}
        return {key: value for key, value in values.items() if key not in ("name", "augment", "shuffle_buffer")}


@dataclass(frozen=True)
class TaskConfig:
    """Weights of the loss: of a density (1, 0), a classifier (0, 1), or a hybrid (both)."""

    nll_weight: float = option(1.0, "weight of the negative log-likelihood, in bits per dimension", at_least=0)
    ce_weight: float = option(0.0, "weight of the cross-entropy, in nats", at_least=0)
    conditional: bool = option(
        False, "model the density given a context: the class of an example, or columns of its data (--data.context)"
    )

    @property
    def kind(self) -> str:
        """``density``, ``classify`` or ``hybrid``."""
        if self.ce_weight == 0:
            return "density"
        return "classify" if self.nll_weight == 0 else "hybrid"


@dataclass(frozen=True)
class OptimConfig:
    """Minimization of the loss."""

    name: str = option("adamax", "optimizer", choices=OPTIMIZERS)
    lr: float = option(1e-3, "learning rate after warm-up", above=0)
    adam_lr: float = option(0.1, "muon: learning rate of what is no Lipschitz weight, by Adam", above=0)
    weight_decay: float = option(0.0, "weight decay", at_least=0)
    momentum: float = option(0.9, "momentum of sgd and muon", at_least=0)
    nesterov: bool = option(False, "sgd: Nesterov momentum")
    warmup_epochs: float = option(0.0, "epochs of linear warm-up from 0", at_least=0)
    schedule: str = option("constant", "schedule of the learning rate after warm-up", choices=SCHEDULES)
    decay_from: float = option(0.5, "linear: fraction of the run after which the rate falls to 0", at_least=0)
    milestones: tuple[float, ...] = option((), "step: epochs at which the rate is multiplied by factor")
    factor: float = option(0.2, "step: see milestones", at_least=0)
    clip_norm: float | None = option(None, "largest gradient norm, none when null", at_least=0)


@dataclass(frozen=True)
class TrainConfig:
    """Length of the training, how it computes, and what it writes."""

    epochs: int = option(10, "passes over the training split", at_least=1)
    max_steps: int | None = option(
        None, "stop after so many steps, if the epochs have more; schedules end there too", at_least=1
    )
    init: str | None = option(
        None, "start from the weights of this run folder or bundled model, with the data's own scale"
    )
    batch_size: int = option(64, "examples a step, over all processes", at_least=1)
    seed: int = option(0, "of weights, order, noise and probes", at_least=0, below=2**63, changes="run")
    sharding: str = option(
        "ddp", "ddp: all weights in each process; fsdp: a shard in each, for models beyond a device", choices=SHARDINGS
    )
    precision: str = option(
        "tf32", "precision of products; tf32 is float32 where the device has none", choices=PRECISIONS
    )
    deterministic: bool = option(
        False, "take only algorithms that give the same bits each time, also on a GPU", changes="run"
    )
    capture: str = option(
        "auto",
        "replay a step on a GPU as one graph of kernels where that can be captured, or never",
        choices=("auto", "never"),
    )
    compile: bool = option(False, "compile the residual blocks (minutes, once for each architecture), for faster steps")
    logdet_chunks: int = option(
        1, "estimate log-determinants on a random chunk of a batch, one of so many, each block on the next", at_least=1
    )
    log_every: int = option(20, "steps between lines of metrics.jsonl", at_least=1, changes="run")
    snapshot_every: int = option(
        1, "epochs between snapshots: validation, pictures, model and checkpoint", at_least=1, changes="run"
    )
    n_pictures: int = option(64, "samples drawn at a snapshot", at_least=0, changes="run")
    checkpoint_every: int = option(
        200, "steps between checkpoints, besides those of snapshots", at_least=1, changes="files"
    )
    keep_checkpoints: int = option(
        3, "how many of the last checkpoints are kept, besides that of the best snapshot", at_least=1, changes="files"
    )
    accumulate: int = option(
        1, "microbatches into which a batch is divided, one after the other, to save memory", at_least=1
    )
    ema: float | None = option(
        None, "decay of averaged weights, validated and saved instead of the last, as 0.999", at_least=0, below=1
    )
    patience: int | None = option(
        None, "stop after so many snapshots without a better validation loss, save the best", at_least=1
    )
    max_bad_steps: int = option(
        10, "stop after more steps in a row whose loss or gradient is not finite", at_least=0, changes="run"
    )


@dataclass(frozen=True)
class VisdomConfig:
    """Server at which the tracker ``visdom`` shows the run."""

    server: str = option("localhost", "host of the visdom server, with http:// or https:// before it if need be")
    port: int = option(8097, "port of the visdom server", at_least=1, at_most=2**16 - 1)
    env: str | None = option(None, "visdom environment to show the run in; the name of the run folder when null")


@dataclass(frozen=True)
class Config:
    """Everything needed to rerun a result."""

    name: str = option("", "name of the recipe")
    description: str = option("", "what it is")
    expected: str = option("", "the result to expect")
    cost: str = option("", "time it takes, and where that was measured")
    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=dict)  # name and options of an architecture, see iresnet.zoo
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracker: tuple[str, ...] | None = option(
        None, "trackers that show the run; tensorboard, if installed, when null", choices=TRACKERS
    )
    visdom: VisdomConfig = field(default_factory=VisdomConfig)

    def __post_init__(self) -> None:
        """Replace an option of the model that is a part of another one now."""
        object.__setattr__(self, "model", without_network(self.model))


# -- checks ------------------------------------------------------------------------------------------------------------


def check(config: Config) -> None:
    """Refuse values that are out of their limits, alone or together.

    Raises:
        RecipeError: names the option, what was expected and what came.
        UnknownNameError: for a name that is not among the choices of its option, with the nearest.

    Example:
        >>> check(Config(train=TrainConfig(epochs=0)))
        Traceback (most recent call last):
        iresnet.errors.RecipeError: --train.epochs must be at least 1, got '0'
    """
    from_dict(Config, asdict(config))
    _refuse_conflicts(config)


def _refuse_conflicts(config: Config) -> None:
    if conflict := next(_conflicts(config), None):
        raise RecipeError(conflict)


def _conflicts(config: Config) -> Iterator[str]:
    """Yield what is wrong with options together, which are right each by itself."""
    task, optim, train = config.task, config.optim, config.train
    smallest = 1 if task.kind == "density" else 2  # examples at once: the head has a batch norm
    most_chunks = train.batch_size // smallest
    if task.nll_weight == task.ce_weight == 0:
        yield "--task.nll-weight or --task.ce-weight must be above 0, got '0' for both"
    if task.conditional and task.kind != "density":
        yield "--task.conditional is for a density alone: leave out --task.ce-weight"
    if task.conditional and train.sharding == "fsdp":
        yield "--train.sharding fsdp shards no conditional density: leave it out"
    if task.conditional and train.compile:
        yield "--train.compile compiles no conditional density: leave it out"
    if train.sharding == "fsdp" and not has_residual_blocks(config):
        yield f"--train.sharding fsdp shards residual blocks, got --model.block {config.model['block']}: leave it out"
    if train.compile and not has_residual_blocks(config):
        yield f"--train.compile compiles residual blocks, got --model.block {config.model['block']}: leave it out"
    if config.data.context and not task.conditional:
        yield "--data.context is what a conditional density is given: add --task.conditional true"
    if train.batch_size < smallest:
        yield f"--train.batch-size must be at least 2 for the batch norm of a classifier, got '{train.batch_size}'"
    if train.accumulate > most_chunks:
        size = f"each microbatch of a batch of {train.batch_size} has {smallest} or more"
        yield f"--train.accumulate must be at most {most_chunks}, so that {size}, got '{train.accumulate}'"
    if optim.nesterov and (optim.name != "sgd" or optim.momentum == 0):
        yield f"--optim.nesterov is for sgd with momentum, got {optim.name} with --optim.momentum {optim.momentum}"
    if train.sharding == "fsdp" and train.ema is not None:
        yield "--train.sharding fsdp keeps no averaged weights: leave out --train.ema"
    if train.sharding == "fsdp" and train.precision == "fp16":
        yield "--train.sharding fsdp does not scale losses, as fp16 needs: use --train.precision bf16"


def has_residual_blocks(config: Config) -> bool:
    """Return whether the blocks of a recipe are residual ones, of any map and scale, whose forward pass solves nothing.

    Example:
        >>> has_residual_blocks(load_config("toy-density", ["--model.block", "implicit"]))
        False
    """
    return config.model.get("block", "residual") in ("residual", "dense", "bilipschitz")


# -- reading and writing -----------------------------------------------------------------------------------------------


def load_config(recipe: str | Path, overrides: Sequence[str] = (), *, flags: Sequence[str] = ()) -> Config:
    """Read a recipe and change it.

    A recipe may begin with ``base: NAME``, another recipe or file: it then says only what is different. What it says
    of itself goes when it is changed into something else: its figures with whatever decides them, its description with
    the data, the task and the architecture.

    Args:
        recipe: name of a bundled recipe, or path of a YAML file, such as the ``config.yaml`` of a run to repeat.
        overrides: command-line tokens, ``--section.key value`` or ``--section.key=value``; values are YAML.
        flags: other options of the command line that may have been meant by an unknown one.

    Raises:
        UnknownNameError: for an unknown recipe or a name that is no choice of its option, with the nearest valid one.
        RecipeError: for an unknown key, a value of the wrong type or out of bounds, or a file that is not a recipe.

    Example:
        >>> config = load_config("digits-density", ["--train.epochs", "3", "--model.logdet.n-steps=2"])
        >>> config.train.epochs, config.description, config.expected
        (3, 'Density of handwritten digits, 8x8 in 17 levels, bundled with the package', '')
    """
    tree = read_recipe(recipe)
    try:
        before = from_dict(Config, deepcopy(tree))
    except (RecipeError, UnknownNameError) as error:
        raise RecipeError(f"{recipe}: {error}") from error
    changed = set()
    for old, value in parse_overrides(overrides):
        key = current_name(old)
        _check_known(key, flags)
        set_value(tree, key, value)
        changed.add(key)
    config = from_dict(Config, tree)
    _refuse_conflicts(config)
    return replace(config, **dict.fromkeys(_outdated(before, config) - changed, ""))


def _check_known(key: str, flags: Sequence[str]) -> None:
    """Refuse an option that does not exist, with the nearest one, be it of the recipe or of the command."""
    names = [o.name for o in options(Config)]
    if key in names or key.startswith("model.") or key in (f.name for f in fields(Config)):
        return
    hint = nearest(key.replace("_", "-"), [name.replace("_", "-") for name in (*names, *flags)])
    valid = ", ".join(sorted(map(flag, (*names, *flags))))
    advice = f"; did you mean '--{hint}'?" if hint else f" (valid: {valid})"
    raise RecipeError(f"unknown option '{flag(key)}'{advice}")


def _outdated(before: Config, after: Config) -> set[str]:
    """Find what a recipe says of itself that does not hold after a change of settings."""
    decisive = {name for name, change in _changes(before, after).items() if change == "result"}
    other = {name for name in decisive if name.startswith(("data.", "task.")) or name == "model.name"}
    return ({"expected", "cost"} if decisive else set()) | ({"description"} if other else set())


def differences(new: Config, old: Config) -> list[str]:
    """List the settings that make another run, with both values: all but which files are kept.

    Example:
        >>> differences(Config(train=TrainConfig(seed=1, keep_checkpoints=9)), Config())
        ['train.seed: 0 -> 1']
    """
    values = [dict(leaves(asdict(config))) for config in (old, new)]
    names = [name for name, change in _changes(old, new).items() if change != "files"]
    return [f"{name}: {values[0].get(name)} -> {values[1].get(name)}" for name in names]


def _changes(before: Config, after: Config) -> dict[str, str]:
    """Find the settings that differ, and what each changes; trackers and names change nothing."""
    old, new = (dict(leaves(asdict(config))) for config in (before, after))
    kinds: Mapping[str, str] = {o.name: o.changes for o in options(Config)}
    sections = ("data.", "model.", "task.", "optim.", "train.")
    names = [name for name in {**old, **new} if name.startswith(sections) and old.get(name) != new.get(name)]
    return {name: kinds.get(name, "result") for name in names}


def to_yaml(config: Config) -> str:
    """Write a configuration as the YAML text that :func:`load_config` reads."""
    return yaml.safe_dump(_lists(asdict(config)), sort_keys=False, allow_unicode=True, width=110)


def _lists(tree: Any) -> Any:
    """Replace tuples by lists, which YAML has."""
    if isinstance(tree, dict):
        return {key: _lists(value) for key, value in tree.items()}
    return [_lists(value) for value in tree] if isinstance(tree, (list, tuple)) else tree
