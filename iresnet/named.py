"""Estimators and solvers by name, and the options of what has a name."""

__all__ = ["LOGDETS", "SOLVERS", "check_options", "make_logdet", "make_solver", "one_of", "own_options"]

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from iresnet.accelerated import Anderson, NewtonKrylov
from iresnet.errors import UnknownNameError
from iresnet.logdet import Exact, Krylov, LogDetEstimator
from iresnet.series import PowerSeries, RussianRoulette
from iresnet.solvers import FixedPointIteration, Solver

LOGDETS: dict[str, type[LogDetEstimator]] = {
    "exact": Exact,
    "krylov": Krylov,
    "power-series": PowerSeries,
    "russian-roulette": RussianRoulette,
}
SOLVERS: dict[str, type[Solver]] = {
    "anderson": Anderson,
    "fixed-point": FixedPointIteration,
    "newton-krylov": NewtonKrylov,
}


def make_logdet(spec: LogDetEstimator | Mapping[str, Any] | str | None) -> LogDetEstimator | None:
    """Build an estimator from its name and options; an estimator, or None for the default, is returned as it is.

    Args:
        spec: a name, or a mapping of ``name`` and the options of the class.

    Raises:
        UnknownNameError: for an unknown name.
        RecipeError: for an unknown option.

    Example:
        >>> make_logdet({"name": "krylov", "n_steps": 3})
        Krylov(n_steps=3, n_probes=1)
    """
    return spec if spec is None or isinstance(spec, LogDetEstimator) else _make("log-determinant", LOGDETS, spec)


def make_solver(spec: Solver | Mapping[str, Any] | str | None) -> Solver:
    """Build a solver from its name and options; a solver is returned as it is.

    Args:
        spec: a name, or a mapping of ``name`` and the options of the class.

    Raises:
        UnknownNameError: for an unknown name.
        RecipeError: for an unknown option.

    Example:
        >>> make_solver("fixed-point")
        FixedPointIteration(atol=1e-05, max_steps=200)
    """
    return spec if isinstance(spec, Solver) else _make("solver", SOLVERS, spec or "anderson")


def _make(kind: str, registry: Mapping[str, Callable], spec: Mapping[str, Any] | str) -> Any:
    options: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = str(options.pop("name", None))
    make = one_of(registry, kind, name)
    check_options(f"{kind} '{name}'", own_options(make), options)
    return make(**options)


def one_of(registry: Mapping[str, Callable], kind: str, name: str) -> Callable:
    """Return what has a name.

    Raises:
        UnknownNameError: for a name that nothing has, with the nearest.
    """
    if name not in registry:
        raise UnknownNameError(kind, name, registry)
    return registry[name]


def own_options(function: Callable) -> dict[str, inspect.Parameter]:
    """Return the options that a function or class takes by itself, by name: without those that data and task decide.

    Example:
        >>> {name: p.default for name, p in own_options(Exact).items()}
        {'max_gib': 8.0}
    """
    parameters = inspect.signature(function).parameters
    decided = ("shape", "g", "context", "generator", "options")
    return {name: parameter for name, parameter in parameters.items() if name not in decided}


def check_options(of: str, valid: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse options that are not among the valid ones.

    Raises:
        UnknownNameError: names the option, and what has such options.
    """
    for name in options:
        if name not in valid:
            raise UnknownNameError(f"option of {of}", name, valid)
