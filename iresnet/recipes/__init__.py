"""Recipes as nested dictionaries: read from YAML, with those that they are based on, and changed by dotted keys."""

__all__ = ["ABOUT", "WITHOUT", "Loader", "parse_overrides", "read_recipe", "recipe_names", "set_value"]

import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from iresnet.errors import RecipeError, UnknownNameError
from iresnet.options import leaves
from iresnet.renamed import with_current_names

ABOUT = ("name", "description", "expected", "cost")
"""What a recipe says of itself alone, and not of those that are based on it."""

WITHOUT = {
    "resnet": (
        *("actnorm", "coeff", "activation", "normalization"),
        *("n_power_steps", "block", "mu", "nu", "logdet", "solver", "memory", "base"),
    ),
}
"""Options that an architecture does not share with the others: its name alone turns their recipes into its own."""

_SUFFIXES = (".yaml", ".yml")


class Loader(yaml.SafeLoader):
    """Loader that reads 1e-3 as a number, as YAML 1.2 does."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def recipe_names() -> list[str]:
    """Return the names of the bundled recipes, sorted.

    Example:
        >>> "digits-density" in recipe_names()
        True
    """
    files = resources.files("iresnet.recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def read_recipe(recipe: str | Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a recipe, with what it takes from its base.

    Args:
        recipe: name of a bundled recipe, or path of a YAML file.
        above: recipes that are based on it, which it must not be based on.

    Raises:
        UnknownNameError: for an unknown recipe, with the nearest valid one.
        RecipeError: for a file that is not there or no recipe, and a recipe that is its own base.

    Example:
        >>> read_recipe("digits-density")["data"]
        {'name': 'digits'}
    """
    tree = _read_file(recipe)
    base = tree.pop("base", None)
    if base is None:
        return tree
    source = str(Path(recipe).parent / str(base) if Path(str(base)).suffix in _SUFFIXES else base)
    if source in (*above, str(recipe)):
        raise RecipeError(f"the recipe {recipe} is its own base: {' -> '.join((*above, str(recipe), source))}")
    below = read_recipe(source, (*above, str(recipe)))
    result = {key: value for key, value in below.items() if key not in ABOUT}
    for key, value in leaves(tree):
        set_value(result, key, value)
    return result


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


# -- overrides -------------------------------------------------------------------------------------------------------


def parse_overrides(tokens: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield keys and values of command-line tokens, ``--section.key value`` or ``--section.key=value``.

    Raises:
        RecipeError: for a token that is no option, has no value, or one that is not YAML.

    Example:
        >>> dict(parse_overrides(["--train.batch-size", "64", "--optim.lr=1e-3"]))
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
        try:
            yield key.replace("-", "_"), yaml.load(text, Loader)
        except yaml.YAMLError as error:
            raise RecipeError(f"'{text}' is not a value: {' '.join(str(error).split())}") from error


def set_value(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key.

    A new name of an architecture, estimator or solver drops the options that only the old one has. A plain value on
    the way, such as ``logdet: exact``, becomes a section.

    Example:
        >>> tree = {"model": {"logdet": {"name": "krylov", "n_steps": 3}}}
        >>> set_value(tree, "model.logdet.name", "power-series")
        >>> set_value(tree, "model.logdet.n_terms", 5)
        >>> tree
        {'model': {'logdet': {'name': 'power-series', 'n_terms': 5}}}
    """
    *sections, last = key.split(".")
    if len(sections) == 2 and last == "name":  # of an estimator or a solver
        (*sections, last), value = sections, {"name": value}
    if key == "model.name" and isinstance(tree.get("model"), dict):
        for option in WITHOUT.get(str(value), ()):
            tree["model"].pop(option, None)
    for section in sections:
        below = tree.get(section)
        if not isinstance(below, dict):
            below = tree[section] = {} if below is None else {"name": below}
        tree = below
    tree[last] = value
