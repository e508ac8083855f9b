"""What a residual block keeps of its forward pass until its backward pass, and compiled code for the two."""

__all__ = ["MEMORY", "Ways", "compiled"]

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from iresnet.errors import IResNetError
from iresnet.jacobian import Linearization, linearize
from iresnet.lipschitz import LipschitzConv2d, LipschitzLinear, replace_weights
from iresnet.logdet import LogDetEstimator


@dataclass(frozen=True)
class Ways:
    """The two directions of a block that are differentiated, while its weights are held.

    Attributes:
        forward: from g and x to z = x + g(x).
        forward_and_logdet: from g, x and an estimator to z and log-determinants.
    """

    forward: Callable[[nn.Module, Tensor], Tensor]
    forward_and_logdet: Callable[[nn.Module, Tensor, LogDetEstimator], tuple[Tensor, Tensor]]


def _forward(g: nn.Module, x: Tensor) -> Tensor:
    return x + _same_shape(g(x), x)


def _keep(g: nn.Module, x: Tensor, estimator: LogDetEstimator) -> tuple[Tensor, Tensor]:
    jacobian = _linearize(g, x)
    return x + jacobian.value, estimator(jacobian)


def _forward_again(g: nn.Module, x: Tensor) -> Tensor:
    return _recomputed(lambda x: _forward(g, x), g, x)


def _recompute(g: nn.Module, x: Tensor, estimator: LogDetEstimator) -> tuple[Tensor, Tensor]:
    """Activation checkpointing: backward linearises again, with the probes of forward."""
    with torch.no_grad():  # apart, since torch.func.vjp refuses to run while what it saves is replaced
        finish = estimator.prepare(_linearize(g, x))

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        jacobian = _linearize(g, x)
        return x + jacobian.value, finish(jacobian)

    return _recomputed(run, g, x)


def _recomputed(run: Callable[[Tensor], Any], g: nn.Module, x: Tensor) -> Any:
    """Run a function of x and of the held weights of g, which keeps nothing and is run again in backward."""
    weights = _held(g)  # the same ones are used in backward

    def run_with_weights(x: Tensor) -> Any:
        with replace_weights(g, weights):
            return run(x)

    return checkpoint(run_with_weights, x, use_reentrant=False)


def _early(g: nn.Module, x: Tensor, estimator: LogDetEstimator) -> tuple[Tensor, Tensor]:
    """Differentiate the log-determinants in forward: what stays is the graph of the plain network."""
    jacobian = _linearize(g, x)
    finish = estimator.prepare(jacobian)
    logdet = finish(jacobian)
    z = x + jacobian.value
    if not logdet.requires_grad:
        return z, logdet
    weights = _held(g)
    tensors = [*weights, *_other_parameters(g)]
    early = _gradients(logdet.sum(), [x, *tensors], retain_graph=True)

    def weighted(upstream: Tensor) -> list[Tensor | None]:
        leaves = [weight.detach().requires_grad_(weight.requires_grad) for weight in weights]
        with torch.enable_grad(), replace_weights(g, leaves):
            total = (upstream * finish(linearize(g, x.detach()))).sum()
        return _gradients(total, [*leaves, *_other_parameters(g)])

    return z, _Scaled.apply(logdet.detach(), early, weighted, x, *tensors)  # pyright: ignore[reportReturnType]


class _Scaled(torch.autograd.Function):
    """Log-determinants whose gradients, of their sum, are known.

    Those of x belong to one sample each and are scaled by its upstream weight. Those of the parameters belong to all:
    they are scaled when the weights are equal, as in a mean, and computed anew when not. On the CPU that is seen from
    their values; elsewhere, where looking would wait for the device, from their being one number that is expanded.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logdet: Tensor,
        early: list[Tensor | None],
        weighted: Callable,
        *inputs: Tensor,  # noqa: ARG004
    ) -> Tensor:
        ctx.early, ctx.weighted = early, weighted
        return logdet

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        of_x, *of_tensors = ctx.early
        if of_x is not None:
            of_x = upstream.view(-1, *[1] * (of_x.dim() - 1)) * of_x
        expanded = upstream.stride() == (0,)
        if expanded or (upstream.is_cpu and bool((upstream == upstream[:1]).all())):
            of_tensors = [None if grad is None else upstream[:1].sum() * grad for grad in of_tensors]
        else:
            of_tensors = ctx.weighted(upstream)
        return (None, None, None, of_x, *of_tensors)


def _linearize(g: nn.Module, x: Tensor) -> Linearization:
    jacobian = linearize(g, x)
    _same_shape(jacobian.value, x)
    return jacobian


def _same_shape(y: Tensor, x: Tensor) -> Tensor:
    """Return y = g(x), or refuse a g that changes the shape."""
    if y.shape != x.shape:
        raise IResNetError(
            f"g must keep the shape of its input, got {tuple(x.shape[1:])} -> {tuple(y.shape[1:])}; "
            "change shapes between blocks with Squeeze, InjectivePad or Flatten"
        )
    return y


def _gradients(total: Tensor, inputs: Sequence[Tensor], *, retain_graph: bool = False) -> list[Tensor | None]:
    """Gradients of the inputs that have one, None for the others."""
    wanted = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(total, wanted, retain_graph=retain_graph, allow_unused=True) if wanted else ())
    return [next(found) if t.requires_grad else None for t in inputs]


def _layers(g: nn.Module) -> list[LipschitzLinear | LipschitzConv2d]:
    return [m for m in g.modules() if isinstance(m, (LipschitzLinear, LipschitzConv2d))]


def _held(g: nn.Module) -> list[Tensor]:
    """The normalised weights in use."""
    return [layer.weight for layer in _layers(g)]


def _other_parameters(g: nn.Module) -> list[Tensor]:
    normalised = {id(layer.unnormalised_weight) for layer in _layers(g)}
    return [p for p in g.parameters() if id(p) not in normalised]


MEMORY: dict[str, Ways] = {
    "keep": Ways(_forward, _keep),
    "early": Ways(_forward, _early),
    "recompute": Ways(_forward_again, _recompute),
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
