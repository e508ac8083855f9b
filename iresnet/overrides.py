"""Changes of a recipe: tokens of a command line, and what they do to the tree that a file holds."""

__all__ = ["WITHOUT", "Loader", "change", "pairs"]

import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from iresnet.errors import RecipeError


class Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 does."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def pairs(tokens: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Keys and values of command-line tokens, ``--section.key value`` or ``--section.key=value``.

    Raises:
        RecipeError: for a token that is no option, has no value, or one that is not YAML.

    Example:
        >>> dict(pairs(["--train.batch-size", "64", "--optim.lr=1e-3"]))
        {'train.batch_size': 64, 'optim.lr': 0.001}
    """
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            raise RecipeError(f"expected an option such as --train.epochs 3, got '{token}'")
        key, equals, text = token[2:].partition("=")
        if not equals:
            if not rest:
                raise RecipeError(f"the option {token} needs a value")
            text = rest.pop(0)
        yield key.replace("-", "_"), _scalar(text)


def _scalar(text: str) -> Any:
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"'{text}' is not a value: {' '.join(str(error).split())}") from error


def change(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key; the options of what had another name before are left out."""
    path = key.split(".")
    if len(path) == 3 and path[-1] == "name":  # a part of the model: the options of the old part belong to it
        path, value = path[:2], {"name": value}
    if key == "model.name" and isinstance(tree.get("model"), dict):
        for option in WITHOUT.get(str(value), ()):
            tree["model"].pop(option, None)
    _set(tree, path, value)


WITHOUT = {
    "resnet": (
        *("actnorm", "network", "coeff", "activation", "normalization"),
        *("n_power_steps", "logdet", "solver", "memory", "base"),
    ),
}
"""Options that an architecture does not share with the others: its name alone turns their recipes into its own."""


def _set(tree: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a value in the nested dictionary; a plain value on the way, such as ``logdet: exact``, becomes a section."""
    key, *rest = path
    if not rest:
        tree[key] = value
        return
    below = tree.get(key)
    if not isinstance(below, dict):
        below = {} if below is None else {"name": below}
        tree[key] = below
    _set(below, rest, value)
