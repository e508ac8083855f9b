"""Memory of a residual block between forward and backward: keep, differentiate early, recompute; compiled code."""

__all__ = ["MEMORY", "Directions", "compiled", "compiled_directions", "linearize_held", "same_shape"]

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from iresnet.context import Shift, has_rows, rows_of
from iresnet.devices import is_transforming
from iresnet.errors import IResNetError
from iresnet.jacobian import Linearization, linearize_inner
from iresnet.joint import can_join, linearize_along
from iresnet.lipschitz import LipschitzLayer, lipschitz_layers, replace_weights
from iresnet.logdet import LogDetEstimator
from iresnet.operators import along_first

Rows = tuple[int, int]


@dataclass(frozen=True)
class Directions:
    """Differentiable functions of a residual block, whose weights are held.

    Attributes:
        forward: from g and x to z = x + g(x).
        forward_and_logdet: from g, x, an estimator, and the first row of x and the last plus one whose log-determinants
            are wanted, to z and these.
    """

    forward: Callable[[nn.Module, Tensor], Tensor]
    forward_and_logdet: Callable[[nn.Module, Tensor, LogDetEstimator, Rows], tuple[Tensor, Tensor]]


def _forward(g: nn.Module, x: Tensor) -> Tensor:
    return x + same_shape(g(x), x)


def _keep(g: nn.Module, x: Tensor, estimator: LogDetEstimator, rows: Rows) -> tuple[Tensor, Tensor]:
    chosen = x[slice(*rows)]
    in_one_pass = can_join() and (len(chosen) == len(x) or not has_rows(g))
    v = estimator.direction(chosen) if in_one_pass else None
    if v is None:
        return _apart(g, x, estimator, rows)
    value, jacobian = linearize_along(g, x, v, rows)
    same_shape(value, x)
    return x + value, estimator(_repeatable(g, chosen, jacobian))


def _linearized(g: nn.Module, x: Tensor, estimator: LogDetEstimator) -> tuple[Tensor, Tensor]:
    jacobian = linearize_held(g, x)
    return x + jacobian.value, estimator(jacobian)


def _with_others(forward: Callable, run: Callable) -> Callable:
    """Extend a function that takes log-determinants of all its samples to batches that have others too."""

    def of_rows(g: nn.Module, x: Tensor, estimator: LogDetEstimator, rows: Rows) -> tuple[Tensor, Tensor]:
        start, stop = rows
        if stop - start == len(x):
            return run(g, x, estimator)
        z, logdet = run(rows_of(g, slice(start, stop)), x[start:stop], estimator)
        z_before, z_after = (
            forward(rows_of(g, others), x[others]) if len(x[others]) else x[others]
            for others in (slice(start), slice(stop, None))
        )
        return torch.cat([z_before, z, z_after]), logdet

    return of_rows


_apart = _with_others(_forward, _linearized)


def compiled_directions() -> Directions:
    """Return those of ``"keep"``, compiled."""
    run = compiled(_keep)

    def with_chosen_first(g: nn.Module, x: Tensor, estimator: LogDetEstimator, rows: Rows) -> tuple[Tensor, Tensor]:
        start, stop = rows
        if start == 0:
            return run(g, x, estimator, rows)
        z, logdet = run(g, x.roll(-start, 0), estimator, (0, stop - start))  # no code for each place in the batch
        return z.roll(start, 0), logdet

    return Directions(compiled(_forward), with_chosen_first)


def _forward_again(g: nn.Module, x: Tensor) -> Tensor:
    return _recomputed(lambda x: _forward(g, x), g, x)


def _recompute(g: nn.Module, x: Tensor, estimator: LogDetEstimator) -> tuple[Tensor, Tensor]:
    """Activation checkpointing: backward linearizes again, with the probes of forward."""
    with torch.no_grad():  # apart, since torch.func.vjp refuses to run while what it saves is replaced
        finish = estimator.prepare(linearize_held(g, x))

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        jacobian = linearize_held(g, x)
        return x + jacobian.value, finish(jacobian)

    return _recomputed(run, g, x)


def _recomputed(run: Callable[[Tensor], Any], g: nn.Module, x: Tensor) -> Any:
    """Run a function of x and of the held weights of g, which keeps nothing and is run again in backward."""
    layers = lipschitz_layers(g)
    weights, others = [layer.weight for layer in layers], _others(g, layers)  # the same ones are used in backward

    def run_with_these(x: Tensor) -> Any:
        with replace_weights(g, weights):
            return (run if _has(g, others) else _with_others_in(g, others, run))(x)

    return checkpoint(run_with_these, x, use_reentrant=False)


def _early(g: nn.Module, x: Tensor, estimator: LogDetEstimator) -> tuple[Tensor, Tensor]:
    """Differentiate the log-determinants in forward: what stays is the graph of the plain network."""
    jacobian = linearize_held(g, x)
    finish = estimator.prepare(jacobian)
    logdet = finish(jacobian)
    z = x + jacobian.value
    if not logdet.requires_grad:
        return z, logdet
    inputs, again = jacobian.inputs, jacobian.relinearize
    assert again is not None
    early = _gradients(logdet.sum(), inputs, retain_graph=True)
    return z, _Scaled.apply(logdet.detach(), early, lambda *inputs: finish(again(*inputs)), *inputs)  # pyright: ignore[reportReturnType]


class _Scaled(torch.autograd.Function):
    """Log-determinants whose gradients, of their sum, are known.

    Those of x belong to one sample each and are scaled by its upstream weight. Those of the parameters belong to all:
    they are scaled when the weights are equal, as in a mean, and computed anew when not. On the CPU that is seen from
    their values; elsewhere, where looking would wait for the device, from their being one number that is expanded. All
    are computed anew where they are to be differentiated themselves.
    """

    @staticmethod
    def forward(ctx: Any, logdet: Tensor, early: list[Tensor | None], again: Callable, *inputs: Tensor) -> Tensor:
        ctx.early, ctx.again = early, again
        ctx.save_for_backward(*inputs)
        return logdet

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = _gradients(ctx.again(x, *tensors), (x, *tensors), upstream, create_graph=True)
            return (None, None, None, *found)
        of_x, *of_tensors = ctx.early
        if of_x is not None:
            of_x = along_first(upstream, of_x) * of_x
        expanded = upstream.stride() == (0,)
        if expanded or (upstream.is_cpu and bool((upstream == upstream[:1]).all())):
            of_tensors = [None if grad is None else upstream[:1].sum() * grad for grad in of_tensors]
        else:
            with torch.enable_grad():
                of_tensors = _gradients(ctx.again(x.detach(), *tensors), tensors, upstream)
        return (None, None, None, of_x, *of_tensors)


def linearize_held(g: nn.Module, x: Tensor) -> Linearization:
    """Linearize g, whose weights are held, so that it can be linearized with the same weights later."""
    jacobian = linearize_inner(g, x)
    same_shape(jacobian.value, x)
    return _repeatable(g, x, jacobian)


def _repeatable(g: nn.Module, x: Tensor, jacobian: Linearization) -> Linearization:
    """Add to a linearization of g at x what is needed to linearize it again."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() or is_transforming()):
        return jacobian
    layers = lipschitz_layers(g)
    weights = [layer.weight if (held := layer.normalization.held) is None else held for layer in layers]
    return replace(jacobian, inputs=(x, *weights, *_others(g, layers)), relinearize=partial(_linearize_with, g))


def _others(g: nn.Module, layers: Sequence[LipschitzLayer]) -> list[Tensor]:
    """Return the parameters of g that no layer normalizes, and its shifts by a context, each once."""
    of_layers = {id(layer.parametrizations.weight) for layer in layers}  # pyright: ignore
    others = [p for m in g.modules() if id(m) not in of_layers for p in m._parameters.values() if p is not None]
    others += [m.shift for m in g.modules() if isinstance(m, Shift)]
    return list({id(p): p for p in others}.values())


def _has(g: nn.Module, others: Sequence[Tensor]) -> bool:
    """Return whether g still has these for what no layer normalizes, and not only in its forward pass.

    A pass through :func:`torch.func.functional_call`, for one, puts other parameters there.
    """
    return all(p is q for p, q in zip(_others(g, lipschitz_layers(g)), others, strict=True))


def _with_others_in(g: nn.Module, others: Sequence[Tensor], run: Callable) -> Callable:
    """Return a function that uses g, with these in it for what no layer normalizes."""
    names = {id(p): name for name, p in (*g.named_parameters(), *g.named_buffers())}
    replaced = zip(_others(g, lipschitz_layers(g)), others, strict=True)
    named = {f"g.{names[id(p)]}": q for p, q in replaced}
    return lambda *args: functional_call(_Using(g, run), named, args)


class _Using(nn.Module):
    """Function that uses g, as a module whose parameters torch.func can replace."""

    def __init__(self, g: nn.Module, run: Callable):
        super().__init__()
        self.g, self.run = g, run

    def forward(self, *args: Any) -> Any:
        return self.run(*args)


def _linearize_with(g: nn.Module, x: Tensor, *tensors: Tensor) -> Linearization:
    """Linearize g with these normalized weights and other parameters."""
    n_layers = len(lipschitz_layers(g))
    others, held = tensors[n_layers:], replace_weights(g, tensors[:n_layers])
    if _has(g, others):
        found = held(linearize_inner)(g, x)
        value, jvp, vjp = found.value, held(found.jvp), held(found.vjp)
    else:
        at = held(_with_others_in(g, others, partial(_part, g)))
        value, jvp, vjp = at("value", x), partial(at, "jvp", x), partial(at, "vjp", x)
    return Linearization(value, jvp, vjp, (x, *tensors), partial(_linearize_with, g))


def _part(g: nn.Module, what: str, x: Tensor, *v: Tensor) -> Tensor:
    """Return the value of g at x, or a product with its Jacobian."""
    found = getattr(linearize_inner(g, x), what)
    return found(*v) if v else found


def same_shape(y: Tensor, x: Tensor) -> Tensor:
    """Return y = g(x), or refuse a g that changes the shape."""
    if y.shape != x.shape:
        raise IResNetError(
            f"g must keep the shape of its input, got {tuple(x.shape[1:])} -> {tuple(y.shape[1:])}; "
            "change shapes between blocks with Squeeze, InjectivePad or Flatten"
        )
    return y


def _gradients(
    of: Tensor, inputs: Sequence[Tensor], upstream: Tensor | None = None, **options: bool
) -> list[Tensor | None]:
    """Differentiate with respect to the inputs that require it; None for the others."""
    wanted = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(of, wanted, upstream, allow_unused=True, **options) if wanted else ())
    return [next(found) if t.requires_grad else None for t in inputs]


MEMORY: dict[str, Directions] = {
    "keep": Directions(_forward, _keep),
    "early": Directions(_forward, _with_others(_forward, _early)),
    "recompute": Directions(_forward_again, _with_others(_forward_again, _recompute)),
}


@cache
def compiled(run: Callable) -> Callable:
    """Compile a function of a map g and tensors, once for all blocks; what it draws is what it draws uncompiled.

    Blocks whose maps have the same layers meet the same code: the first is generated, in tens of seconds, the others
    find it on disk, also in later processes.
    """
    from torch._dynamo import config  # slow to import
    from torch._dynamo.exc import BackendCompilerFailed

    config.recompile_limit = max(config.recompile_limit, 256)  # each block counts
    code = torch.compile(run, dynamic=False, options={"fallback_random": True})

    def quiet(*args: Any) -> Any:
        with warnings.catch_warnings():  # the compiler looks at everything, at the gradients of held weights too
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            try:
                return code(*args)
            except BackendCompilerFailed as error:
                raise IResNetError(
                    f"a block could not be compiled ({str(error).splitlines()[0]}); a C++ compiler such as g++ is "
                    "needed, or do without --compile"
                ) from error

    return quiet
