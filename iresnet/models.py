"""Models of run folders: described by their data, built, saved and loaded."""

__all__ = [
    "build_model",
    "inputs_of",
    "is_trained_on",
    "load_model",
    "model_options",
    "recipe_of",
    "save_model",
    "save_weights",
    "start_from",
    "weights_of",
]

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from iresnet import zoo
from iresnet.bijections import Affine
from iresnet.capacity import check_room
from iresnet.certificates import Certificate, seal
from iresnet.config import Config, DataConfig, TaskConfig
from iresnet.context import N_HIDDEN, ContextEncoder
from iresnet.data import Dataset, check_columns, check_density
from iresnet.errors import DataError, RecipeError, RunError
from iresnet.files import write_atomically
from iresnet.flows import Flow
from iresnet.inputs import Column, Inputs, level_scale
from iresnet.options import check_types
from iresnet.runs import Run
from iresnet.zoo import Model

_TOLERANCE = 1e-8
"""Standard deviations by which moments of the same data differ at most."""

# -- what a model knows of its data ------------------------------------------------------------------------------------


def inputs_of(dataset: Dataset, kind: str, *, conditional: bool = False) -> Inputs:
    """Describe a data set to a model.

    Integer data of densities is centered and scaled by its number of levels, as published; all other data is
    standardized with the moments of each channel or feature of the training split.

    Args:
        dataset: the data.
        kind: ``density``, ``classify`` or ``hybrid``.
        conditional: whether the model is given the class, or the context that the data have.

    Raises:
        DataError: when a task needs labels or a context that are not there, a feature is constant, or a density is
            asked of columns that have none.
    """
    if conditional and dataset.train.y is None:
        raise DataError(
            f"{dataset.name} has neither classes nor a context for a conditional density; give a target column "
            "(--data.target) or context columns (--data.context), or leave out --task.conditional"
        )
    if kind != "density" and not dataset.n_classes:
        remedy = "--task.ce-weight 0" + (" --task.nll-weight 1" if kind == "classify" else "")
        raise DataError(f"{dataset.name} has no labels, which the task '{kind}' needs; use {remedy}")
    if dataset.levels is None or kind == "classify":
        check_columns(dataset)
    if dataset.levels is None and kind != "classify":
        check_density(dataset)
    facts = dataset.shape, dataset.levels, dataset.class_names, *_scale(dataset, kind), dataset.columns
    return Inputs(*facts, dataset.context, *_context_scale(dataset)) if conditional else Inputs(*facts)


def is_trained_on(dataset: Dataset, kind: str, inputs: Inputs) -> bool:
    """Check that a data set is the one that a model was trained on, by all that the model knows of it.

    Moments are compared to a hundred-millionth of a standard deviation: sums in another order differ by less, those
    with another row by more.

    Args:
        dataset: the data, as they are now.
        kind: ``density``, ``classify`` or ``hybrid``.
        inputs: what the model knows.
    """
    # runs of earlier versions have no columns
    columns = inputs.columns or tuple(replace(column, offset=0.0) for column in dataset.columns)
    known = (inputs.shape, inputs.levels, inputs.class_names, columns)
    if (dataset.shape, dataset.levels, dataset.class_names, dataset.columns) != known:
        return False
    if not _is_near(_scale(dataset, kind), (inputs.mean, inputs.std)):
        return False
    if not inputs.is_conditional:
        return True
    known_context = inputs.context_mean, inputs.context_std
    return dataset.context == inputs.context and _is_near(_context_scale(dataset), known_context)


def _is_near(scale: tuple[Sequence[float], Sequence[float]], known: tuple[Sequence[float], Sequence[float]]) -> bool:
    """Compare means and standard deviations with known ones, in units of the latter."""
    tolerance = [_TOLERANCE * value for value in known[1]] * 2
    pairs = zip([*scale[0], *scale[1]], [*known[0], *known[1]], tolerance, strict=True)
    return all(abs(now - then) <= most for now, then, most in pairs)


def _context_scale(dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std of the numbers of a context; classes are not standardized."""
    if not dataset.context:
        return (0.0,) * dataset.n_classes, (1.0,) * dataset.n_classes
    assert dataset.train.y is not None
    values = dataset.train.y.double()
    return tuple(values.mean(0).tolist()), tuple((std or 1.0) for std in values.std(0).tolist())


def _scale(dataset: Dataset, kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and std of :class:`~iresnet.inputs.Inputs`."""
    if dataset.levels is not None and kind != "classify":
        mean, std = level_scale(dataset.levels)
        return (mean,), (std,)
    values = dataset.train.x.transpose(0, 1).flatten(1).double()
    return tuple(values.mean(dim=1).tolist()), tuple(values.std(dim=1).tolist())


# -- building ----------------------------------------------------------------------------------------------------------


def model_options(config: Config, inputs: Inputs) -> tuple[str, dict[str, Any]]:
    """Read the name of the architecture of a recipe, and its options, of the right types.

    Raises:
        RecipeError: when an option is of another type, or follows from the data.
    """
    options = dict(config.model)
    name = str(options.pop("name", "iresnet" if len(inputs.shape) == 3 else "toy-mlp"))
    for key in options.keys() & {"shape", "task", "n_classes", "mean", "std", "context"}:
        raise RecipeError(f"--model.{key.replace('_', '-')} follows from the data and the task; leave it out")
    for option, default, registry in (("logdet", "krylov", zoo.LOGDETS), ("solver", "anderson", zoo.SOLVERS)):
        if isinstance(options.get(option), dict):
            options[option] = spec = {"name": default, **options[option]}
            if str(spec["name"]) in registry:
                check_types(zoo.options_of(registry[str(spec["name"])]), spec, f"model.{option}.")
    if name in zoo.ARCHITECTURES:
        check_types(zoo.options_of(zoo.ARCHITECTURES[name]), options, "model.")
    return name, options


def build_model(config: Config, inputs: Inputs) -> Model:
    """Build the model of a recipe for the given data.

    Raises:
        RecipeError: when the architecture does not fit the data or has no such option.
    """
    name, options = model_options(config, inputs)
    model = zoo.build(
        name,
        shape=inputs.shape,
        task=config.task.kind,
        n_classes=len(inputs.class_names),
        mean=_per_channel(inputs.mean, inputs.shape),
        std=_per_channel(inputs.std, inputs.shape),
        context=_context_encoder(inputs),
        **options,
    )
    if not isinstance(model, Flow):
        model.class_names = inputs.class_names
    model.origin = (config, inputs)
    return model


def _context_encoder(inputs: Inputs) -> ContextEncoder | int:
    """Return an encoder of the context: classes as they are, numbers by a perceptron."""
    if not inputs.is_conditional:
        return 0
    return ContextEncoder(inputs.context_mean, inputs.context_std, hidden=N_HIDDEN if inputs.context else None)


def recipe_of(model: Model) -> tuple[Config, Inputs]:
    """Describe a model so that :func:`build_model` builds it again: what it was built from, of a run or of the zoo.

    Args:
        model: a model of :func:`build_model` or of :func:`iresnet.zoo.build`. Of the data of the latter nothing is
            known but shape and scale.

    Raises:
        RecipeError: when the model was put together by hand, or has an estimator or a solver without a name.

    Example:
        >>> model = zoo.build("toy-mlp", shape=(2,), blocks=1, hidden=4, logdet=zoo.make_logdet("exact"))
        >>> config, inputs = recipe_of(model)
        >>> config.model["name"], config.model["logdet"], inputs.shape
        ('toy-mlp', {'name': 'exact', 'max_gib': 8.0}, (2,))
    """
    match model.origin:
        case (Config() as config, Inputs() as inputs):
            return config, inputs
        case {"shape": shape, "task": task, "mean": mean, "std": std, **options}:
            for key, registry in (("logdet", zoo.LOGDETS), ("solver", zoo.SOLVERS)):
                if key in options:
                    options[key] = _named(options[key], key, registry)
            names = () if isinstance(model, Flow) else model.class_names
            scale = [tuple(torch.as_tensor(numbers).flatten().tolist()) for numbers in (mean, std)]
            inputs = Inputs(shape, None, names, *scale)
            if options.pop("context", None) is not None:
                inputs = _with_context(inputs, model.context_encoder)  # pyright: ignore[reportArgumentType]
            task = replace(_TASKS[task], conditional=inputs.is_conditional)
            return Config(data=DataConfig(name="unknown"), model=options, task=task), inputs
    raise RecipeError(
        f"this {type(model).__name__} was put together by hand, and cannot be built again from names; build it with "
        "iresnet.zoo.build, or save its state_dict() with safetensors"
    )


def _with_context(inputs: Inputs, encoder: ContextEncoder) -> Inputs:
    """Add what is known of a context: classes by number, or numbers without names."""
    scale = tuple(encoder.mean.tolist()), tuple(encoder.std.tolist())
    n, hidden = len(encoder.mean), encoder.features if len(encoder.network) else None
    if hidden not in (None, N_HIDDEN):
        raise RecipeError(f"recipes encode a context by {N_HIDDEN} hidden units, or classes by none, got {hidden}")
    names = tuple(map(str, range(n))) if hidden is None else ()
    columns = () if hidden is None else tuple(Column("", i + 1) for i in range(n))
    return replace(inputs, class_names=names, context=columns, context_mean=scale[0], context_std=scale[1])


_TASKS = {"density": TaskConfig(1.0, 0.0), "classify": TaskConfig(0.0, 1.0), "hybrid": TaskConfig(1.0, 1.0)}


def _named(part: Any, key: str, registry: Mapping[str, type]) -> Any:
    """Write an estimator or a solver as its name and options, as recipes do."""
    if part is None or isinstance(part, (str, Mapping)):
        return part
    name = next((name for name, kind in registry.items() if type(part) is kind), None)
    if name is None:
        raise RecipeError(
            f"{key}={part!r} has no name in recipes (valid: {', '.join(registry)}); build with one of them"
        )
    return {"name": name, **{option: getattr(part, option) for option in zoo.options_of(registry[name])}}


def _per_channel(numbers: tuple[float, ...], shape: tuple[int, ...]) -> float | Tensor:
    return numbers[0] if len(numbers) == 1 else torch.tensor(numbers).view(-1, *[1] * (len(shape) - 1))


# -- saving and loading ------------------------------------------------------------------------------------------------


def save_model(run: Run, model: Model) -> tuple[Model, Certificate]:
    """Seal a copy of the model and save its weights in a run folder.

    Returns:
        The sealed copy, in eval mode, and its certificate.
    """
    sealed = copy.deepcopy(model).eval()
    certificate = seal(sealed)
    save_weights(run, sealed)
    return sealed, certificate


def save_weights(run: Run, model: Model) -> None:
    """Save the weights of a model in a run folder as they are."""
    write_atomically(run.model_file, save(weights_of(model)))


def weights_of(model: Model) -> dict[str, Tensor]:
    """Return the tensors of a model as they are saved, by name."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def load_model(run: Run) -> Model:
    """Rebuild the model of a run folder from its configuration and weights, in eval mode.

    Raises:
        RunError: when the weights are missing, damaged, or of another model.
    """
    config, inputs = run.read_config()
    resume = f"with --resume: {run.resume_command}"
    if not run.model_file.is_file():
        raise RunError(f"{run.path} has no model yet; continue its training {resume}")
    check_room(run.model_file.stat().st_size, torch.device("cpu"), f"{run.model_file}", "free some of it")
    model = build_model(config, inputs)
    try:
        model.load_state_dict(load_file(run.model_file))
    except SafetensorError as error:
        raise RunError(f"{run.model_file} is damaged: {error}; continue the run {resume}") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"{run.model_file} does not fit config.yaml: {reason}") from error
    return model.eval()


@torch.no_grad()
def start_from(model: Model, source: Model, name: str) -> None:
    """Give a model the weights of another of the same architecture, as the start of a training.

    The scale of the data stays the model's own, which is that of the data that it is trained on.

    Args:
        model: changed in place.
        source: has the weights.
        name: of the source, for the message.

    Raises:
        RunError: names the weights that do not fit, with both shapes; nothing is changed then.

    Example:
        >>> from iresnet.zoo import build
        >>> flow, other = (build("toy-mlp", shape=(2,), blocks=1, hidden=hidden) for hidden in (4, 8))
        >>> start_from(flow, other, "runs/other")
        Traceback (most recent call last):
        iresnet.errors.RunError: the weights of runs/other do not fit this model: '...' is ... there and ... here; ...
    """
    found, own = source.state_dict(), model.state_dict()
    scale = {f"{path}.{name}" for path, m in model.named_modules() if isinstance(m, Affine) for name in m.state_dict()}
    shapes = [{name: tuple(t.shape) for name, t in state.items() if name not in scale} for state in (found, own)]
    there, here = shapes
    misfits = [key for key in {**here, **there} if there.get(key) != here.get(key)]
    if misfits:
        pairs = [f"'{key}' is {there.get(key, 'missing')} there and {here.get(key, 'missing')} here" for key in misfits]
        more = f", and {len(pairs) - 3} more" if len(pairs) > 3 else ""
        raise RunError(
            f"the weights of {name} do not fit this model: {'; '.join(pairs[:3])}{more}; --init needs the task, the "
            "number of classes and the --model options of that run"
        )
    model.load_state_dict({**found, **{name: own[name] for name in scale}})
