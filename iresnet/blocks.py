"""Blocks from the names of their parts: kinds, estimators, solvers, and all options of a block."""

__all__ = [
    "BLOCKS",
    "LOGDETS",
    "SOLVERS",
    "block",
    "check_options",
    "make_logdet",
    "make_solver",
    "one_of",
    "options_of",
]

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from iresnet.accelerated import Anderson, NewtonKrylov
from iresnet.bijections import Bijection, BiLipschitzBlock, Chain, Inverse, MonotoneBlock, ResidualBlock
from iresnet.errors import RecipeError, UnknownNameError
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
    check_options(f"{kind} '{name}'", make, options)
    return make(**options)


def one_of(registry: Mapping[str, Callable], kind: str, name: str) -> Callable:
    """Return what a registry holds by a name.

    Raises:
        UnknownNameError: lists the valid names.

    Example:
        >>> one_of(SOLVERS, "solver", "anderson").__name__
        'Anderson'
    """
    if name not in registry:
        raise UnknownNameError(kind, name, registry)
    return registry[name]


def options_of(function: Callable) -> dict[str, inspect.Parameter]:
    """Return the options that an architecture, an estimator or a solver takes, by name.

    Args:
        function: a value of one of the dictionaries here; ``**options`` of an architecture are those of :func:`block`.

    Example:
        >>> {name: p.default for name, p in options_of(LOGDETS["exact"]).items()}
        {'max_gib': 8.0}
    """
    parameters = inspect.signature(function).parameters
    given = ("shape", "g", "dense", "context", "generator", "options")
    own = {name: p for name, p in parameters.items() if name not in given}
    return own | (options_of(block) if "options" in parameters else {})


def check_options(of: str, function: Callable, options: Mapping[str, Any]) -> None:
    """Refuse options that a function does not take.

    Args:
        of: owner of the options, for the message.
        function: see :func:`options_of`.
        options: by name.

    Raises:
        UnknownNameError: lists the valid names.

    Example:
        >>> check_options("solver 'anderson'", SOLVERS["anderson"], {"atol": 1e-3})
    """
    valid = options_of(function)
    for name in options:
        if name not in valid:
            raise UnknownNameError(f"option of {of}", name, valid)


# -- blocks ----------------------------------------------------------------------------------------------------------


def _residual(make_g: Callable[..., nn.Module], **parts: Any) -> ResidualBlock:
    return ResidualBlock(make_g(), **parts)


def _implicit(make_g: Callable[..., nn.Module], **parts: Any) -> Chain:
    return Chain([ResidualBlock(make_g(), **parts), Inverse(ResidualBlock(make_g(), **parts))])


def _monotone(make_g: Callable[..., nn.Module], **parts: Any) -> MonotoneBlock:
    return MonotoneBlock(make_g(), **parts)


BLOCKS: dict[str, Callable[..., Bijection]] = {
    "residual": _residual,
    "implicit": _implicit,
    "monotone": _monotone,
    "bilipschitz": BiLipschitzBlock,
    "dense": _residual,
    "dense-implicit": _implicit,
    "dense-monotone": _monotone,
}
"""Kinds of blocks, from a function that makes a map g, a dense one where named so, and the other parts of a block."""


def block(
    g: Callable[..., nn.Module],
    dense: Callable[..., nn.Module] | None = None,
    *,
    block: str = "residual",
    coeff: float | None = 0.9,
    mu: float | None = None,
    nu: float | None = None,
    activation: str = "elu",
    normalization: str = "power",
    n_power_steps: int | None = None,
    logdet: LogDetEstimator | Mapping[str, Any] | str | None = None,
    solver: Solver | Mapping[str, Any] | str | None = None,
    memory: str = "keep",
    context: int = 0,
) -> Bijection:
    """Build a block; all invertible architectures take these options.

    Args:
        g: builds the map from the options of its layers.
        dense: builds that of dense blocks likewise, usually by :func:`iresnet.networks.dense_concat`.
        block: kind of the block, one of :data:`iresnet.blocks.BLOCKS`: z = x + g(x); z + g_z(z) = x + g_x(x) or
            2 (I + g)^-1 - I, with solves in both directions; the same three with dense maps g, in which every layer
            takes the outputs of all before it; or c (x + g(x)), which keeps two bi-Lipschitz constants.
        coeff: Lipschitz coefficient of each layer, in (0, 1); None for no constraint: classification only, to compare.
            That of bilipschitz blocks follows from mu and nu.
        mu: how far a bilipschitz block stretches distances at least, in (0, nu); 0.25 when None.
        nu: how far it stretches them at most; 4 when None.
        activation: one of :data:`iresnet.activations.ACTIVATIONS`.
        normalization: of weights, one of :data:`iresnet.normalization.NORMALIZATIONS`.
        n_power_steps: power iterations a step (1 when None), Gram iterations (7), or updates of aol (5).
        logdet: estimator of log-determinants, its name, or a mapping of name and options.
        solver: solver of inverses, its name, or a mapping of name and options.
        memory: what is kept for backward, one of :data:`iresnet.bijections.memory.MEMORY`, see
            :class:`~iresnet.ResidualBlock`.
        context: features of a context on which the map depends.

    Raises:
        UnknownNameError: for an unknown name.
        RecipeError: for dense blocks of an architecture that has none.
    """
    make, make_g = one_of(BLOCKS, "block", block), dense if block.startswith("dense") else g
    if make_g is None:
        raise RecipeError(
            f"this architecture has no dense blocks, got the block '{block}'; take residual, implicit or monotone"
        )
    layers = {"coeff": coeff, "activation": activation, "normalization": normalization, "n_steps": n_power_steps}
    parts = {"logdet": make_logdet(logdet), "solver": make_solver(solver), "memory": memory}
    parts |= {name: constant for name, constant in (("mu", mu), ("nu", nu)) if constant is not None}
    if block != "bilipschitz" and parts.keys() & {"mu", "nu"}:
        raise RecipeError(f"mu and nu are the constants of bilipschitz blocks, got block={block}; leave them out")
    return make(partial(make_g, **layers, context=context), **parts)
