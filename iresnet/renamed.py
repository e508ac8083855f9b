"""Old names of arguments, attributes and keys, accepted with a warning for one release."""

__all__ = [
    "MODULES",
    "RENAMED",
    "OldModules",
    "accept_old_names",
    "current_name",
    "moved",
    "old_attribute",
    "with_current_names",
    "without_network",
]

import functools
import importlib
import warnings
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

RENAMED = {
    "dequantise": "dequantize",
    "dequantise_samples": "dequantize_samples",
    "initialised": "initialized",
    "logdet_parts": "logdet_chunks",
    "normalisation": "normalization",
    "optimiser": "optimizer",
}
"""Old names of arguments, options and file keys, with the names that replace them."""

MODULES = {
    "batchnorm": "networks",
    "bijections.actnorm": "bijections.elementwise",
    "bijections.inversion": "bijections.base",
    "data.arrays": "data.user",
    "data.cifar": "data.formats",
    "data.idx": "data.formats",
    "data.order": "data.dataset",
    "data.split": "data.dataset",
    "data.svhn": "data.formats",
    "data.uci": "data.published",
    "distributions": "flows",
    "evaluation.baselines": "evaluation.likelihood",
    "evaluation.ood": "evaluation.detection",
    "normalisation": "normalization",
    "pretrained.loading": "pretrained",
    "processes": "collectives",
    "resnet": "networks",
    "training.ema": "training.optim",
    "training.loop": "training.trainer",
    "training.muon": "training.optim",
}
"""Modules within the package: the old name, and the module that holds what was in it."""


def accept_old_names(function: F) -> F:
    """Let a function accept arguments by their old names too.

    Example:
        >>> @accept_old_names
        ... def norm(normalization="power"):
        ...     return normalization
        >>> norm(normalisation="gram")
        'gram'
    """

    @functools.wraps(function)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        for old in RENAMED.keys() & kwargs.keys():
            warnings.warn(f"{old} is now {RENAMED[old]}", DeprecationWarning, stacklevel=2)
            kwargs[RENAMED[old]] = kwargs.pop(old)
        return function(*args, **kwargs)

    return renamed  # type: ignore[return-value]


def old_attribute(old: str, new: str) -> property:
    """Return a property that reads an attribute by its old name too.

    Example:
        >>> class Layer:
        ...     normalization = "power"
        ...     normalisation = old_attribute("normalisation", "normalization")
        >>> Layer().normalisation
        'power'
    """

    def read(self: Any) -> Any:
        warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    return property(read)


def with_current_names(tree: Any) -> Any:
    """Replace old keys in nested dictionaries and lists, such as those of a file written by an older release.

    Example:
        >>> with_current_names({"model": {"normalisation": "gram"}})
        {'model': {'normalization': 'gram'}}
        >>> with_current_names({"bijections.1.initialised": 1.0})
        {'bijections.1.initialized': 1.0}
    """
    if isinstance(tree, dict):
        return {current_name(key): with_current_names(value) for key, value in tree.items()}
    return [with_current_names(value) for value in tree] if isinstance(tree, list) else tree


def current_name(key: Any) -> Any:
    """Replace an old name at the end of a dotted key.

    Example:
        >>> current_name("model.normalisation")
        'model.normalization'
    """
    head, dot, last = str(key).rpartition(".")
    return f"{head}{dot}{RENAMED[last]}" if last in RENAMED else key


def without_network(options: dict[str, Any]) -> dict[str, Any]:
    """Replace the option ``network`` of a model, which named the map g, by the kind of block that holds such maps.

    Example:
        >>> without_network({"network": "dense-concat", "block": "implicit"})
        {'block': 'dense-implicit'}
        >>> without_network({"network": "mlp"})
        {}
    """
    if options.get("network") not in ("mlp", "conv-bottleneck", "dense-concat"):
        return options
    rest = {name: value for name, value in options.items() if name != "network"}
    if options["network"] == "dense-concat":
        rest["block"] = f"dense-{rest['block']}" if rest.get("block", "residual") != "residual" else "dense"
    new = rest.get("block", "residual")
    warnings.warn(f"network={options['network']} is now block={new}", DeprecationWarning, stacklevel=3)
    return rest


class OldModules(MetaPathFinder, Loader):
    """Finder of modules by their old names: imports the new module in their place.

    Example:
        >>> import iresnet.distributions, iresnet.flows
        >>> iresnet.distributions is iresnet.flows
        True
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # noqa: ARG002
        """Return a specification for an old name, and None for any other."""
        is_old = name.removeprefix("iresnet.") in MODULES and name.startswith("iresnet.")
        return ModuleSpec(name, self) if is_old else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the new module."""
        new = f"iresnet.{MODULES[spec.name.removeprefix('iresnet.')]}"
        warnings.warn(f"{spec.name} is now {new}", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own specification back; it has run already."""
        module.__spec__ = self.spec


def moved(module: str, name: str, new: str, names: tuple[str, ...]) -> Any:
    """Return what has moved to another module, for the ``__getattr__`` of the one where it was.

    Args:
        module: where it was.
        name: of what is asked for.
        new: where it is.
        names: all that has moved there.

    Raises:
        AttributeError: for any other name.
    """
    if name not in names:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warnings.warn(f"{module}.{name} is now {new}.{name}", DeprecationWarning, stacklevel=3)
    return getattr(importlib.import_module(new), name)
