"""Recipes and configurations: typed sections, read from YAML, changed by dotted overrides. Imports no torch."""

__all__ = [
    "Config",
    "DataConfig",
    "OptimConfig",
    "TaskConfig",
    "TrainConfig",
    "VisdomConfig",
    "WITHOUT",
    "WORDS",
    "check_types",
    "from_dict",
    "leaves",
    "load_config",
    "options",
    "recipe_names",
    "to_yaml",
]

import collections.abc
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from iresnet.errors import RecipeError, UnknownNameError, nearest
from iresnet.overrides import WITHOUT, Loader, change, pairs
from iresnet.renamed import current_name, with_current_names


def _option(default: Any, doc: str) -> Any:
    """A field with its one-line description, which ``iresnet train --help`` shows."""
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class DataConfig:
    """What is modeled."""

    name: str = _option("digits", "data set, or path of a folder of images, .npz, .npy, .parquet or .csv")
    pad_to: int | None = _option(None, "surround images with zeros up to this height and width")
    augment: tuple[str, ...] = _option((), "augmentations of training images: pad-crop, flip")
    stream: bool = _option(False, "read training images from Parquet files as they are needed, for data beyond memory")
    shuffle_buffer: int = _option(10_000, "stream: examples that are read and shuffled together, by each process")
    split_seed: int = _option(0, "of random splits: of UCI tables, and of your own data without splits")
    image_size: int | None = _option(
        None, "your images: scale the shorter side to this, and cut out the central square"
    )
    mode: str | None = _option(None, "your images: convert them to RGB or L (gray), whatever they are")
    target: str | int | None = _option(None, "your table: column of class labels, by name, or by position from 0")
    columns: tuple[str | int, ...] = _option(
        (), "your table: read these columns alone; those without a name: 'column 3'"
    )
    drop: tuple[str | int, ...] = _option((), "your table: leave these columns out")
    one_hot: tuple[str | int, ...] = _option((), "your table: columns of categories, a feature for each category")
    impute: bool = _option(False, "your table: put others of the column, drawn at random, in place of missing values")
    dequantize: bool = _option(False, "your table: add uniform noise of one step to columns of integers or few values")
    keys: tuple[str, ...] = _option((), "your .npz: what its arrays are, if not called so: [x=images,y=labels]")
    test: str | None = _option(None, "your data: another file or folder, all of which is the test split")

    @property
    def options(self) -> dict[str, Any]:
        """What :func:`iresnet.data.load` takes besides the name and the folder of data sets."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        given["keys"] = {key: name for key, _, name in (pair.partition("=") for pair in self.keys)}
        return {key: value for key, value in given.items() if key not in ("name", "augment", "shuffle_buffer")}


@dataclass(frozen=True)
class TaskConfig:
    """What is trained: density (1, 0), classifier (0, 1), or hybrid (both)."""

    nll_weight: float = _option(1.0, "weight of the negative log-likelihood, in bits per dimension")
    ce_weight: float = _option(0.0, "weight of the cross-entropy, in nats")

    @property
    def kind(self) -> str:
        """``density``, ``classify`` or ``hybrid``."""
        if min(self.nll_weight, self.ce_weight) < 0 or self.nll_weight == self.ce_weight == 0:
            raise RecipeError(
                f"task weights must not be negative nor both 0, got nll_weight={self.nll_weight} and "
                f"ce_weight={self.ce_weight}"
            )
        if self.ce_weight == 0:
            return "density"
        return "classify" if self.nll_weight == 0 else "hybrid"


@dataclass(frozen=True)
class OptimConfig:
    """How the loss is minimized."""

    name: str = _option("adamax", "muon, adam, adamw, adamax or sgd")
    lr: float = _option(1e-3, "learning rate after warm-up")
    adam_lr: float = _option(0.1, "muon: learning rate of what is no Lipschitz weight, by Adam")
    weight_decay: float = _option(0.0, "weight decay")
    momentum: float = _option(0.9, "momentum of sgd and muon")
    nesterov: bool = _option(False, "sgd: Nesterov momentum")
    warmup_epochs: float = _option(0.0, "epochs of linear warm-up from 0")
    schedule: str = _option("constant", "constant, cosine, linear or step, after warm-up")
    decay_from: float = _option(0.5, "linear: fraction of the run after which the rate falls to 0")
    milestones: tuple[float, ...] = _option((), "step: epochs at which the rate is multiplied by factor")
    factor: float = _option(0.2, "step: see milestones")
    clip_norm: float | None = _option(None, "largest gradient norm, none when null")


@dataclass(frozen=True)
class TrainConfig:
    """How long, on what, and what is written."""

    epochs: int = _option(10, "passes over the training split")
    batch_size: int = _option(64, "examples a step, over all processes")
    seed: int = _option(0, "of weights, order, noise and probes")
    sharding: str = _option("ddp", "ddp: all weights in each process; fsdp: a part in each, for models beyond a device")
    precision: str = _option("tf32", "of the products: tf32 (float32 where the device has none), float32, bf16 or fp16")
    deterministic: bool = _option(False, "take only algorithms that give the same bits each time, also on a GPU")
    compile: bool = _option(
        False, "compile the residual blocks (minutes, once for each architecture), for faster steps"
    )
    logdet_parts: int = _option(1, "estimate log-determinants on one of so many parts of a batch, drawn for each block")
    log_every: int = _option(20, "steps between lines of metrics.jsonl")
    snapshot_every: int = _option(1, "epochs between snapshots: validation, pictures, model and checkpoint")
    n_pictures: int = _option(64, "samples drawn at a snapshot")
    checkpoint_every: int = _option(200, "steps between checkpoints, besides those of snapshots")
    keep_checkpoints: int = _option(3, "how many of the last checkpoints are kept, besides that of the best snapshot")
    accumulate: int = _option(1, "parts in which a batch is differentiated, one after the other, to save memory")
    ema: float | None = _option(None, "decay of averaged weights, validated and saved instead of the last, as 0.999")
    patience: int | None = _option(None, "stop after so many snapshots without a better validation loss, save the best")
    max_bad_steps: int = _option(10, "stop after more steps in a row whose loss or gradient is not finite")


@dataclass(frozen=True)
class VisdomConfig:
    """Where the tracker ``visdom`` shows the run."""

    server: str = _option("localhost", "host of the visdom server, with http:// or https:// before it if need be")
    port: int = _option(8097, "port of the visdom server")
    env: str | None = _option(None, "visdom environment to show the run in; the name of the run folder when null")


@dataclass(frozen=True)
class Config:
    """Everything needed to rerun a result."""

    name: str = _option("", "name of the recipe")
    description: str = _option("", "what it is")
    expected: str = _option("", "the result to expect")
    cost: str = _option("", "time it takes, and where that was measured")
    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=dict, metadata={"doc": "architecture and its options (iresnet.zoo)"})
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracker: tuple[str, ...] | None = _option(None, "trackers that show the run; tensorboard, if installed, when null")
    visdom: VisdomConfig = field(default_factory=VisdomConfig)


# -- reading ---------------------------------------------------------------------------------------------------------


def recipe_names() -> list[str]:
    """Names of the bundled recipes, sorted.

    Example:
        >>> "digits-density" in recipe_names()
        True
    """
    return sorted(
        entry.name[:-5] for entry in resources.files("iresnet.recipes").iterdir() if entry.name[-5:] == ".yaml"
    )


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
        UnknownNameError: for an unknown recipe, with the nearest valid one.
        RecipeError: for an unknown key, a value of the wrong type, or a file that is not a recipe.

    Example:
        >>> config = load_config("digits-density", ["--train.epochs", "3", "--model.logdet.n-steps=2"])
        >>> config.train.epochs, config.description, config.expected
        (3, 'Density of handwritten digits, 8x8 in 17 levels, bundled with the package', '')
    """
    tree = _read(recipe)
    before, given = _leaves_of_file(recipe, tree), set()
    for old, value in pairs(overrides):
        key = current_name(old)
        _check_known(key, flags)
        change(tree, key, value)
        given.add(key)
    config = from_dict(Config, tree)
    untrue = _untrue(before, dict(leaves(asdict(config)))) - given
    return replace(config, **dict.fromkeys(untrue, ""))


def _leaves_of_file(recipe: str | Path, tree: dict[str, Any]) -> dict[str, Any]:
    """What a recipe says before it is changed; what is wrong with it is told with its name."""
    try:
        return dict(leaves(asdict(from_dict(Config, tree))))
    except RecipeError as error:
        raise RecipeError(f"{recipe}: {error}") from error


def _untrue(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """Which words of a recipe do not hold after a change of settings."""
    changed = {key for key in {**before, **after} if before.get(key) != after.get(key)}
    decisive = {key for key in changed - _INDIFFERENT if key.startswith(_SECTIONS)}
    other = {key for key in decisive if key.startswith(("data.", "task.")) or key == "model.name"}
    return ({"expected", "cost"} if decisive else set()) | ({"description"} if other else set())


_SECTIONS = ("data.", "model.", "task.", "optim.", "train.")
_INDIFFERENT = {
    *("data.stream", "data.shuffle_buffer", "data.split_seed"),
    *("train.seed", "train.deterministic", "train.log_every", "train.snapshot_every", "train.n_pictures"),
    *("train.checkpoint_every", "train.keep_checkpoints", "train.max_bad_steps"),
}
"""Settings that leave the figures of a recipe true: they change chance, or what is written."""


def _read(recipe: str | Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """The tree of a recipe, with that of its base below it."""
    tree = _read_file(recipe)
    base = tree.pop("base", None)
    if base is None:
        return tree
    source = str(Path(recipe).parent / str(base) if Path(str(base)).suffix in _SUFFIXES else base)
    if source in (*above, str(recipe)):
        raise RecipeError(f"the recipe {recipe} is its own base: {' -> '.join((*above, str(recipe), source))}")
    below = _read(source, (*above, str(recipe)))
    result = {key: value for key, value in below.items() if key not in WORDS}
    for key, value in leaves(tree):
        change(result, key, value)
    return result


_SUFFIXES = (".yaml", ".yml")
WORDS = ("name", "description", "expected", "cost")
"""What a recipe says of itself alone, and not of those that are based on it."""


def _read_file(recipe: str | Path) -> dict[str, Any]:
    path = Path(recipe)
    if path.suffix in _SUFFIXES:
        if not path.is_file():
            raise RecipeError(f"there is no recipe file {path}")
        text, name = path.read_bytes(), path.stem
    elif str(recipe) in recipe_names():
        text, name = resources.files("iresnet.recipes").joinpath(f"{recipe}.yaml").read_bytes(), str(recipe)
    else:
        raise UnknownNameError("recipe", str(recipe), recipe_names())
    try:
        tree = yaml.load(text, Loader)
    except (yaml.YAMLError, UnicodeError) as error:
        raise RecipeError(f"{recipe} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{recipe} must hold sections such as 'data:' and 'model:', got {type(tree).__name__}")
    tree.pop("inputs", None)  # what a run noted of its data
    return {"name": name, **with_current_names(tree)}


def _check_known(key: str, flags: Sequence[str]) -> None:
    """Refuse an option that does not exist, with the nearest one, be it of the recipe or of the command."""
    names = [name for name, _, _ in options()]
    if key in names or key.startswith("model.") or key in map(_section, names):
        return
    valid = [name.replace("_", "-") for name in (*names, *flags)]
    name = key.replace("_", "-")
    hint = nearest(name, valid)
    listed = f" (valid: {', '.join('--' + name for name in sorted(valid))})"
    raise RecipeError(f"unknown option '--{name}'" + (f"; did you mean '--{hint}'?" if hint else listed))


def _section(name: str) -> str:
    return name.partition(".")[0]


# -- types -----------------------------------------------------------------------------------------------------------


def from_dict(cls: type, tree: Any, where: str = "") -> Any:
    """Build a dataclass from nested dictionaries, checking names and types.

    Args:
        cls: the dataclass.
        tree: its fields; those left out take their defaults.
        where: dotted path of the section, for messages.

    Raises:
        UnknownNameError: for a key that is no field.
        RecipeError: for a value of the wrong type.
    """
    if not isinstance(tree, dict):
        raise RecipeError(f"{where[:-1] or 'a recipe'} is a section with keys, got '{tree}'")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    for key in tree:
        if key not in known:
            _raise_unknown(cls, where, key, tree[key])
    return cls(**{key: _coerce(value, hints[key], f"{where}{key}") for key, value in tree.items()})


def _raise_unknown(cls: type, where: str, key: str, value: Any) -> typing.NoReturn:
    """Tell of a key of a file that does not exist, with the nearest, or with those of its section."""
    section = [f"{where}{f.name}" for f in fields(cls)]
    while isinstance(value, dict) and value:  # an unknown section: name the key that was meant
        inner, value = next(iter(value.items()))
        key = f"{key}.{inner}"
    hint = nearest(f"{where}{key}", [*section, *([] if where else (name for name, _, _ in options()))])
    advice = f"did you mean '{hint}'?" if hint else f"there are {', '.join(section)}"
    raise RecipeError(f"unknown key '{where}{key}'; {advice}")


def _coerce(value: Any, kind: Any, where: str) -> Any:
    if is_dataclass(kind):
        return from_dict(typing.cast(type, kind), value, f"{where}.")
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        fitting = (arg for arg in args if isinstance(value, typing.get_origin(arg) or arg))
        return None if value is None else _coerce(value, next(fitting, args[0]), where)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_coerce(item, args[0], where) for item in items)
    if origin is dict:
        if isinstance(value, dict):
            return value
    elif kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    name = getattr(origin or kind, "__name__", str(kind))
    raise RecipeError(f"--{where.replace('_', '-')} must be of type {name}, got '{value}'")


def check_types(function: Callable, options: Mapping[str, Any], where: str) -> None:
    """Compare values with the types that a function declares for its arguments.

    Args:
        function: the function, or class.
        options: values by argument name; names that it does not have are passed over.
        where: dotted path of the options, for messages.

    Raises:
        RecipeError: for a value of another type.

    Example:
        >>> def block(*, hidden: int | Sequence[int]): ...
        >>> check_types(block, {"hidden": [8, "x"]}, "model.")
        Traceback (most recent call last):
        iresnet.errors.RecipeError: --model.hidden must be of type int | list of int, got '[8, 'x']'
    """
    hints = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)
    for name, value in options.items():
        if name in hints and not _fits(value, hints[name]):
            key, kinds = f"{where}{name}".replace("_", "-"), _type_names(hints[name])
            raise RecipeError(f"--{key} must be of type {' | '.join(kinds)}, got '{value}'")


def _fits(value: Any, kind: Any) -> bool:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return any(_fits(value, arg) for arg in args)
    if origin is collections.abc.Sequence:
        return isinstance(value, (list, tuple)) and all(_fits(item, args[0]) for item in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def _type_names(kind: Any) -> list[str]:
    """What can be written for a type in YAML."""
    if typing.get_origin(kind) is types.UnionType:
        return [name for arg in typing.get_args(kind) for name in _type_names(arg)]
    if typing.get_origin(kind) is collections.abc.Sequence:
        return [f"list of {_type_names(typing.get_args(kind)[0])[0]}"]
    plain = {int: "int", float: "float", str: "str", bool: "bool", types.NoneType: "null"}
    return [plain[kind]] if kind in plain else []


# -- writing ---------------------------------------------------------------------------------------------------------


def options(cls: type = Config, where: str = "") -> Iterator[tuple[str, Any, str]]:
    """Dotted name, default and description of every option.

    Example:
        >>> next(options(DataConfig, "data."))[:2]
        ('data.name', 'digits')
    """
    for f in fields(cls):
        kind = typing.get_type_hints(cls)[f.name]
        if is_dataclass(kind):
            yield from options(typing.cast(type, kind), f"{where}{f.name}.")
        else:
            yield f"{where}{f.name}", getattr(cls(), f.name), f.metadata["doc"]


def leaves(tree: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of a nested dictionary, tuples as lists.

    Example:
        >>> dict(leaves({"train": {"epochs": 3}, "name": "x"}))
        {'train.epochs': 3, 'name': 'x'}
    """
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", list(value) if isinstance(value, tuple) else value


def to_yaml(config: Config) -> str:
    """Write a configuration as the YAML text that :func:`load_config` reads."""
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False, allow_unicode=True, width=110)


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(value) for value in tree] if isinstance(tree, (list, tuple)) else tree
