"""What a residual block keeps of its forward pass until its backward pass."""

__all__ = ["MEMORY", "recomputed", "same_shape"]

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from iresnet.errors import IResNetError
from iresnet.jacobian import Linearization, linearize
from iresnet.lipschitz import LipschitzConv2d, LipschitzLinear, replace_weights
from iresnet.logdet import LogDetEstimator

Run = Callable[[nn.Module, Tensor, LogDetEstimator], tuple[Tensor, Tensor]]


def _keep(g: nn.Module, x: Tensor, estimator: LogDetEstimator) -> tuple[Tensor, Tensor]:
    jacobian = _linearize(g, x)
    return jacobian.value, estimator(jacobian)


def _recompute(g: nn.Module, x: Tensor, estimator: LogDetEstimator) -> tuple[Tensor, Tensor]:
    """Activation checkpointing: backward linearises again, with the probes of forward."""
    with torch.no_grad():  # apart, since torch.func.vjp refuses to run while what it saves is replaced
        finish = estimator.prepare(_linearize(g, x))

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        jacobian = _linearize(g, x)
        return jacobian.value, finish(jacobian)

    return recomputed(run, g, x)


def recomputed(run: Callable[[Tensor], Any], g: nn.Module, x: Tensor) -> Any:
    """Run a function of x and of the held weights of g, which keeps nothing and is run again in backward.

    Args:
        run: the function; may return several tensors.
        g: the map whose weights are held now; the same ones are used in backward.
        x: where.
    """
    weights = _held(g)

    def run_with_weights(x: Tensor) -> Any:
        with replace_weights(g, weights):
            return run(x)

    return checkpoint(run_with_weights, x, use_reentrant=False)


def _early(g: nn.Module, x: Tensor, estimator: LogDetEstimator) -> tuple[Tensor, Tensor]:
    """Differentiate the log-determinants in forward: what stays is the graph of the plain network."""
    jacobian = _linearize(g, x)
    finish = estimator.prepare(jacobian)
    logdet = finish(jacobian)
    if not logdet.requires_grad:
        return jacobian.value, logdet
    weights = _held(g)
    tensors = [*weights, *_other_parameters(g)]
    early = _gradients(logdet.sum(), [x, *tensors], retain_graph=True)

    def weighted(upstream: Tensor) -> list[Tensor | None]:
        leaves = [weight.detach().requires_grad_(weight.requires_grad) for weight in weights]
        with torch.enable_grad(), replace_weights(g, leaves):
            total = (upstream * finish(linearize(g, x.detach()))).sum()
        return _gradients(total, [*leaves, *_other_parameters(g)])

    return jacobian.value, _Scaled.apply(logdet.detach(), early, weighted, x, *tensors)  # pyright: ignore[reportReturnType]


class _Scaled(torch.autograd.Function):
    """Log-determinants whose gradients, of their sum, are known.

    Those of x belong to one sample each and are scaled by its upstream weight. Those of the parameters belong to all:
    they are scaled when the weights are equal, as in a mean, and computed anew when not.
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
        if bool((upstream == upstream[:1]).all()):
            of_tensors = [None if grad is None else upstream[:1].sum() * grad for grad in of_tensors]
        else:
            of_tensors = ctx.weighted(upstream)
        return (None, None, None, of_x, *of_tensors)


def _linearize(g: nn.Module, x: Tensor) -> Linearization:
    jacobian = linearize(g, x)
    same_shape(jacobian.value, x)
    return jacobian


def same_shape(y: Tensor, x: Tensor) -> Tensor:
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


MEMORY: dict[str, Run] = {"keep": _keep, "early": _early, "recompute": _recompute}
"""Ways to run a block whose weights are held: from g, x and an estimator to g(x) and log-determinants."""
