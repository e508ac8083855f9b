"""What the tests share: independent truths to compare with, and cases to compare on."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import iresnet as ir
from iresnet.activations import ACTIVATIONS
from iresnet.jacobian import Linearization

# -- truths ----------------------------------------------------------------------------------------------------------


def dense_jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:  # (N, *E) -> (N, D', D)
    """Jacobian of every sample, row by row in reverse mode through the plain forward; differentiable."""
    rows = torch.autograd.functional.jacobian(lambda x: f(x).flatten(1).sum(0), x, create_graph=True)
    return rows.flatten(2).transpose(0, 1)


def dense_logdet(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Log-determinant of the dense Jacobian of f, (N,); differentiable."""
    return torch.linalg.slogdet(dense_jacobian(f, x))[1]


def norm(f: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Largest singular value of the dense Jacobians of f at the samples of x."""
    return float(torch.linalg.matrix_norm(dense_jacobian(f, x).detach(), 2).max())


def gradients(loss: Tensor, inputs: Iterable[Tensor]) -> list[Tensor]:
    """Gradients, zero where the loss does not depend on an input."""
    inputs = list(inputs)
    if not loss.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    return list(torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True))


def close(actual, expected, tol: float = 1e-10) -> None:
    """Assert that tensors, or lists of tensors, agree up to ``tol``, relative for large numbers."""
    if isinstance(expected, list):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            close(a, e, tol)
    else:
        torch.testing.assert_close(actual, torch.as_tensor(expected).to(actual), rtol=tol, atol=tol)


def within_4_errors(samples: Tensor, expected: Tensor | float, bias: float = 0.0) -> None:
    """Assert that the mean over the first dimension is within four standard errors of what is expected."""
    error = samples.std(0) / math.sqrt(len(samples))
    distance = (samples.mean(0) - expected).abs()
    assert bool((distance <= 4 * error + bias).all()), f"off by {distance}, standard error {error}"


# -- maps ------------------------------------------------------------------------------------------------------------


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def frozen(module: nn.Module, scale: float = 3.0) -> nn.Module:
    """The module in float64 and eval mode, weights scaled up so that normalization has to act, norms converged."""
    module.double().eval()
    for layer in lipschitz_layers(module):
        with torch.no_grad():
            layer.unnormalized_weight.mul_(scale)
        layer.normalization.converge(layer.unnormalized_weight, tol=1e-15, max_steps=20_000)
    return module


def trained_like(shape: tuple[int, ...], hidden: int) -> nn.Module:
    """A map whose layers are at their coefficients."""
    g = ir.networks.conv_bottleneck(shape, hidden, coeff=0.9)
    for layer in g:
        if isinstance(layer, ir.LipschitzConv2d):
            with torch.no_grad():
                layer.unnormalized_weight.mul_(5)
                layer.normalization.converge(layer.unnormalized_weight)
    return g.eval()


def lipschitz_layers(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, (ir.LipschitzLinear, ir.LipschitzConv2d))]


def counted(jacobian: Linearization) -> tuple[Linearization, dict[str, int]]:
    """The linearization, and how often its products are taken, with and without autograd."""
    calls = {"jvp": 0, "vjp": 0, "recorded": 0}

    def counting(name: str) -> Callable[[Tensor], Tensor]:
        def product(v: Tensor) -> Tensor:
            calls[name] += 1
            calls["recorded"] += torch.is_grad_enabled()
            return getattr(jacobian, name)(v)

        return product

    return replace(jacobian, jvp=counting("jvp"), vjp=counting("vjp")), calls


def operator(matrices: Tensor) -> Linearization:  # (N, D, D)
    """The Jacobian that these matrices are, one a sample."""
    return Linearization(
        value=matrices.sum(2),
        jvp=lambda v: torch.einsum("nij,nj->ni", matrices, v),
        vjp=lambda w: torch.einsum("nij,ni->nj", matrices, w),
    )


class Sine(nn.Module):
    """A contraction whose linearization and bound the library does not know."""

    def __init__(self, features: int):
        super().__init__()
        self.inner = ir.LipschitzLinear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.inner(x))


CONTRACTIONS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": lambda: (ir.networks.mlp(4, 8, coeff=0.9), randn(3, 4)),
    "mlp of one layer": lambda: (ir.networks.mlp(3, 8, depth=1, coeff=0.9), randn(3, 3)),
    "convolutions": lambda: (ir.networks.conv_bottleneck((2, 3, 2), 4, coeff=0.9), randn(2, 2, 3, 2)),
    "convolutions without preactivation": lambda: (
        ir.networks.conv_bottleneck((1, 2, 4), 4, coeff=0.9, preactivation=False),
        randn(2, 1, 2, 4),
    ),
    "dense concatenation": lambda: (
        ir.networks.dense_concat((2, 2, 3), 3, coeff=0.9, activation="clipswish"),
        randn(2, 2, 2, 3),
    ),
    "no rule": lambda: (Sine(3), randn(2, 3)),
} | {
    f"mlp with {name}": lambda name=name: (ir.networks.mlp(4, 6, coeff=0.9, activation=name), randn(2, 4))
    for name in ACTIVATIONS
}
"""Maps g of residual blocks, and points: the truth about them is their dense Jacobian."""


def contraction(name: str) -> tuple[nn.Module, Tensor]:
    g, x = CONTRACTIONS[name]()
    return frozen(g), x


def loosen(folder):
    """Blow up the weights, and make the norm estimates look in one direction only."""
    state = load_file(folder / "model.safetensors")
    for name, tensor in state.items():
        if name.endswith(".original"):
            state[name] = 5 * tensor
        if name.endswith(".u"):
            state[name] = torch.zeros_like(tensor)
            state[name].view(-1)[0] = 1
    save_file(state, folder / "model.safetensors")
