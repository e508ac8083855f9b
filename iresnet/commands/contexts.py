"""Contexts on the command line: what a conditional density is given."""

__all__ = ["Context", "at_context", "class_number", "has_contexts", "open_run_at", "read_context"]

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from iresnet.commands.arguments import open_run
from iresnet.errors import RecipeError, UnknownNameError

if TYPE_CHECKING:
    import torch

    from iresnet.data import Dataset, Split
    from iresnet.inputs import Inputs
    from iresnet.runs import Run
    from iresnet.zoo import Model

Context = Annotated[
    list[str] | None,
    Parameter(
        name="--context",
        negative="",
        help="Of a conditional density: a class, by name or number; or a value, as angle=0.5, for each column.",
    ),
]


def at_context(
    model: "Model", inputs: "Inputs", context: list[str] | None, data: "Split | None" = None
) -> "tuple[Model, Split]":
    """Return a conditional density at a context, and the examples of its class; other models and data as they are.

    Args:
        model: on its device.
        inputs: what the model knows of its data.
        context: of the command line.
        data: examples, where there are any.

    Raises:
        RecipeError: when there is no context and one is needed, or the other way round.
    """
    if not inputs.is_conditional:
        if context:
            raise RecipeError("this run models the density of its data without a context: leave out --context")
        return model, data  # pyright: ignore[reportReturnType]
    if not context:
        raise RecipeError(f"this run models the density given {_names(inputs)}: add {_example(inputs)}")
    from iresnet.devices import device_of
    from iresnet.flows import Flow

    assert isinstance(model, Flow)
    value = read_context(context, inputs)
    if data is not None and data.y is not None and not inputs.context:
        data = data.take((data.y == value.to(data.y.device)).nonzero().flatten())
    return model.given(value.to(device_of(model))), data  # pyright: ignore[reportReturnType]


def open_run_at(
    path: Path, data_dir: Path | None, split: str, device: str, context: list[str] | None
) -> "tuple[Run, Model, Dataset, Split]":
    """Open a run folder and a split of its data, a conditional density at a context, with the examples of its class."""
    folder, model, dataset, data = open_run(path, data_dir, split, device)
    model, data = at_context(model, folder.read_config()[1], context, data)
    return folder, model, dataset, data


def has_contexts(inputs: "Inputs", files: Path, context: list[str] | None) -> bool:
    """Return whether the contexts of examples stand in their own file: a table, when none is given for all."""
    return bool(inputs.context) and not context and not files.is_dir() and files.suffix not in (".npz", ".npy")


def read_context(context: list[str], inputs: "Inputs") -> "torch.Tensor":  # () int64, or (K,)
    """Read a class, or the numbers of a context.

    Raises:
        RecipeError: a column without a value, twice, or with one that is no number.
        UnknownNameError: for a class or column that does not exist.

    Example:
        >>> from iresnet.inputs import Column, Inputs
        >>> inputs = Inputs((2,), None, (), (0.0,), (1.0,), context=(Column("angle", 1),), context_mean=(0.0,))
        >>> read_context(["angle=0.5"], inputs), read_context(["0.5"], inputs)
        (tensor([0.5000]), tensor([0.5000]))
    """
    import torch

    if not inputs.context:
        if len(context) > 1:
            raise RecipeError(f"--context is one class, got {', '.join(context)}")
        return torch.tensor(class_number(context[0], inputs))
    titles = [column.title for column in inputs.context]
    values: dict[str, str] = {}
    for text in context:
        name, equals, value = text.rpartition("=")
        name = name if equals else titles[0] if len(titles) == 1 else ""
        if name not in titles:
            raise UnknownNameError("column of the context", name or text, titles)
        if name in values:
            raise RecipeError(f"--context {name} is given twice")
        values[name] = value
    if missing := [title for title in titles if title not in values]:
        raise RecipeError(f"--context has no value of {', '.join(missing)}: add {_example(inputs)}")
    numbers: list[float] = []
    for column in inputs.context:
        value = values[column.title]
        if column.categories:
            if value not in column.categories:
                raise UnknownNameError(f"category of {column.title}", value, column.categories)
            numbers += [float(value == category) for category in column.categories]
        else:
            numbers.append(_number(column.title, value))
    return torch.tensor(numbers)


def class_number(name: str, inputs: "Inputs") -> int:
    """Find a class by its name, or else by its number.

    Raises:
        RecipeError: when there are no classes.
        UnknownNameError: for a name that no class has.
    """
    names = inputs.class_names
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    if not names:
        raise RecipeError("the data of this run have no classes; leave out --class")
    raise UnknownNameError("class", name, names)


def _number(column: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RecipeError(f"--context {column} must be a number, got '{text}'")
    return number


def _names(inputs: "Inputs") -> str:
    return ", ".join(column.title for column in inputs.context) or "the class"


def _example(inputs: "Inputs") -> str:
    if not inputs.context:
        return f"--context {inputs.class_names[0]}"
    values = [(c.title, c.categories[0] if c.categories else 0.5) for c in inputs.context]
    return " ".join(f"--context {title}={value}" for title, value in values)
