"""Options declared once, as fields of dataclasses: default, help and limits; defaults, checks and listings follow."""

__all__ = [
    "Limits",
    "Option",
    "check_types",
    "flag",
    "from_dict",
    "leaves",
    "option",
    "options",
    "type_name",
    "yaml_text",
]

import collections.abc
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from iresnet.errors import RecipeError, UnknownNameError, nearest

_LARGEST = 3e38  # of float32


@dataclass(frozen=True)
class Limits:
    """Values that an option takes: numbers within bounds, or names among choices; of a list, each entry.

    Example:
        >>> str(Limits(at_least=0, below=1))
        'at least 0, below 1'
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        bounds = [f"{word.replace('_', ' ')} {bound}" for word, bound in self._bounds()]
        return ", ".join([f"one of {', '.join(self.choices)}"] if self.choices else bounds)

    def _bounds(self) -> list[tuple[str, float]]:
        return [(word, bound) for word, bound in asdict(self).items() if word != "choices" and bound is not None]

    def check(self, value: Any, key: str) -> None:
        """Refuse a value outside of the limits; None is within.

        Raises:
            UnknownNameError: for a name that is not among the choices.
            RecipeError: for a number out of bounds, or not finite.
        """
        if isinstance(value, tuple):
            for item in value:
                self.check(item, key)
        elif self.choices and value is not None and value not in self.choices:
            raise UnknownNameError(flag(key), value, self.choices)
        elif isinstance(value, (int, float)):
            if not abs(value) < _LARGEST:
                raise RecipeError(f"{flag(key)} must be a finite number, got '{value}'")
            for word, bound in self._bounds():
                if not _HOLDS[word](value, bound):
                    raise RecipeError(f"{flag(key)} must be {word.replace('_', ' ')} {bound}, got '{value}'")


_HOLDS = {
    "at_least": lambda value, bound: value >= bound,
    "above": lambda value, bound: value > bound,
    "at_most": lambda value, bound: value <= bound,
    "below": lambda value, bound: value < bound,
}


@dataclass(frozen=True)
class Option:
    """Option as it is listed: dotted name, type and default as in YAML, help and limits."""

    name: str
    type: str
    default: str
    help: str
    limits: Limits = Limits()
    changes: str = "result"


def option(default: Any, text: str, *, changes: str = "result", **limits: Any) -> Any:
    """Declare an option as the field of a dataclass.

    Args:
        default: its default.
        text: its help, in one line.
        changes: what it changes: the "result" of a recipe, the course of a "run" alone, or only which "files" are kept.
        limits: arguments of :class:`Limits`.
    """
    return field(default=default, metadata={"help": text, "limits": Limits(**limits), "changes": changes})


def options(cls: type, where: str = "") -> Iterator[Option]:
    """Yield the options that a dataclass and its sections declare.

    Args:
        cls: the dataclass.
        where: dotted path of the section.

    Example:
        >>> @dataclass
        ... class Loop:
        ...     batch_size: int = option(64, "examples a step", at_least=1)
        >>> for o in options(Loop, "train."):
        ...     print(o.name, o.type, o.default, o.help, o.limits, sep=" | ")
        train.batch_size | int | 64 | examples a step | at least 1
    """
    hints = typing.get_type_hints(cls)
    for f in fields(cls):
        if is_dataclass(hints[f.name]):
            yield from options(typing.cast(type, hints[f.name]), f"{where}{f.name}.")
        elif "limits" in f.metadata:
            yield Option(f"{where}{f.name}", type_name(hints[f.name]), yaml_text(f.default), **f.metadata)


def flag(key: str) -> str:
    """Return a dotted name as it is typed on the command line.

    Example:
        >>> flag("train.batch_size")
        '--train.batch-size'
    """
    return f"--{key.replace('_', '-')}"


def leaves(tree: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of a nested dictionary, tuples as lists.

    Example:
        >>> dict(leaves({"train": {"epochs": 3}, "name": "x"}))
        {'train.epochs': 3, 'name': 'x'}
    """
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", list(value) if isinstance(value, tuple) else value


# -- checks ----------------------------------------------------------------------------------------------------------


def from_dict(cls: type, tree: Any, where: str = "") -> Any:
    """Build a dataclass from nested dictionaries, checking names, types and limits.

    Args:
        cls: the dataclass.
        tree: its fields; those left out take their defaults.
        where: dotted path of the section, for messages.

    Raises:
        RecipeError: for a key that is no field, a value of the wrong type, or a number out of bounds.
        UnknownNameError: for a name that is not among the choices of its field.

    Example:
        >>> @dataclass
        ... class Loop:
        ...     batch_size: int = option(64, "examples a step", at_least=1)
        >>> from_dict(Loop, {"batch_size": 0}, "train.")
        Traceback (most recent call last):
        iresnet.errors.RecipeError: --train.batch-size must be at least 1, got '0'
    """
    if not isinstance(tree, dict):
        raise RecipeError(f"{where[:-1] or 'a recipe'} is a section with keys, got '{tree}'")
    hints, known, values = typing.get_type_hints(cls), {f.name: f for f in fields(cls)}, {}
    for key, value in tree.items():
        if key not in known:
            _raise_unknown(cls, where, key, value)
        values[key] = _coerce(value, hints[key], f"{where}{key}")
        known[key].metadata.get("limits", Limits()).check(values[key], f"{where}{key}")
    return cls(**values)


def _raise_unknown(cls: type, where: str, key: str, value: Any) -> typing.NoReturn:
    """Refuse a key that does not exist, with the nearest one, or with those of its section."""
    section = [f"{where}{f.name}" for f in fields(cls)]
    while isinstance(value, dict) and value:  # an unknown section: name the key that was meant
        inner, value = next(iter(value.items()))
        key = f"{key}.{inner}"
    hint = nearest(f"{where}{key}", [*section, *([] if where else (o.name for o in options(cls)))])
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
    raise RecipeError(f"{flag(where)} must be of type {getattr(origin or kind, '__name__', kind)}, got '{value}'")


def check_types(parameters: Mapping[str, inspect.Parameter], values: Mapping[str, Any], where: str) -> None:
    """Compare values with the types that a function declares for its arguments.

    Args:
        parameters: of the function, by name.
        values: values by name; names that are no parameters are passed over.
        where: dotted path of the options, for messages.

    Raises:
        RecipeError: for a value of another type.

    Example:
        >>> def block(*, hidden: int | collections.abc.Sequence[int]): ...
        >>> check_types(inspect.signature(block).parameters, {"hidden": [8, "x"]}, "model.")
        Traceback (most recent call last):
        iresnet.errors.RecipeError: --model.hidden must be of type int | list of int, got '[8, 'x']'
    """
    for name, value in values.items():
        kind = parameters[name].annotation if name in parameters else Any
        if kind is not Any and not _fits(value, kind):
            raise RecipeError(f"{flag(where + name)} must be of type {type_name(kind)}, got '{value}'")


def _fits(value: Any, kind: Any) -> bool:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return any(_fits(value, arg) for arg in args)
    if origin is collections.abc.Sequence:
        return isinstance(value, (list, tuple)) and all(_fits(item, args[0]) for item in value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def type_name(kind: Any) -> str:
    """Return what can be written for a type in YAML; empty when nothing can.

    Example:
        >>> type_name(tuple[float, ...]), type_name(int | None)
        ('list of float', 'int | null')
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return " | ".join(name for arg in args if (name := type_name(arg)))
    if origin in (collections.abc.Sequence, tuple):
        entry = type_name(args[0])
        return f"list of {f'({entry})' if '|' in entry else entry}"
    names = {int: "int", float: "float", str: "str", bool: "bool", types.NoneType: "null", dict: "mapping"}
    return names.get(origin or kind, "")


def yaml_text(value: Any) -> str:
    """Write a plain value, or a sequence of numbers, as it is typed in YAML.

    Example:
        >>> yaml_text((1, 2)), yaml_text(None), yaml_text(False), yaml_text("adam")
        ('[1, 2]', 'null', 'false', 'adam')
    """
    text = str(list(value) if isinstance(value, tuple) else value)
    return {"None": "null", "True": "true", "False": "false"}.get(text, text)
