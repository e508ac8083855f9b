"""The truth that estimators are measured against: residual blocks at one image as dense matrices in float64."""

__all__ = ["ExactBlock", "SameProbe", "exact_blocks"]

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from subjects import blocks_of
from torch import Tensor

import iresnet as ir
from iresnet.jacobian import Linearization
from iresnet.lipschitz import hold_weights
from iresnet.logdet import Hutchinson, Quadratic
from iresnet.operators import to_events, to_vectors


@dataclass(frozen=True)
class ExactBlock:
    """A residual block at one image.

    Attributes:
        shape: event shape of its input, D numbers.
        jacobian: J, (D, D), of vectors in the order of :func:`iresnet.operators.to_vectors`.
        eigenvalues: of J, (D,), complex.
        log: log(I + J), (D, D).
        inverse: (I + J)^-1, (D, D).
    """

    shape: torch.Size
    jacobian: Tensor
    eigenvalues: Tensor
    log: Tensor
    inverse: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, block: ir.ResidualBlock, x: Tensor) -> "ExactBlock":  # (1, C, H, W)
        """Take the matrices from the linearization of the block, and check them."""
        with hold_weights(block.g):
            linearization = ir.linearize(block.g, x)
            basis = to_events(torch.eye(x[0].numel()).to(x), x.shape)[:, None]
            columns = torch.vmap(linearization.jvp, chunk_size=512)(basis)
        J = to_vectors(columns[:, 0]).t().contiguous()
        identity = torch.eye(len(J)).to(J)
        eigenvalues, vectors = torch.linalg.eig(J)

        def function(values: Tensor) -> Tensor:
            return torch.linalg.solve(vectors, vectors * values, left=False).real

        exact = cls(x.shape[1:], J, eigenvalues, function(torch.log1p(eigenvalues)), torch.linalg.inv(identity + J))
        torch.testing.assert_close(function(eigenvalues), J, rtol=0, atol=1e-7)
        torch.testing.assert_close(exact.logdet, torch.linalg.slogdet(identity + J)[1], rtol=0, atol=1e-7)
        return exact

    @property
    def logdet(self) -> Tensor:
        """The exact log-determinant."""
        return self.log.trace()

    def linearization(self, n: int) -> Linearization:
        """The block at n copies of the image, which n probes then measure at once."""

        def product(matrix: Tensor, v: Tensor) -> Tensor:
            return to_events(to_vectors(v) @ matrix, v.shape)

        value = self.jacobian.new_zeros(n, *self.shape)
        return Linearization(value, jvp=partial(product, self.jacobian.t()), vjp=partial(product, self.jacobian))


@torch.no_grad()
def exact_blocks(flow: ir.Flow, x: Tensor) -> Iterator[ExactBlock]:  # (1, C, H, W)
    """The blocks of a flow at an image, one after the other."""
    blocks, inputs = blocks_of(flow), {}
    hooks = [b.register_forward_pre_hook(lambda block, args: inputs.update({block: args[0]})) for b in blocks]
    flow.encode(x)
    for hook in hooks:
        hook.remove()
    return (ExactBlock.of(block, inputs[block]) for block in blocks)


class SameProbe(Hutchinson):
    """What an estimator without bias makes of a probe: its exact quadratic form, and its exact w for the gradient.

    With a generator of the same seed it draws the probes that an estimator draws. The difference of the two then has
    the estimator's bias, without the noise of the probes, so that a bias far below the standard deviation shows.
    """

    def __init__(self, block: ExactBlock, *, n_probes: int = 1, probe: str, generator: torch.Generator | None):
        super().__init__(n_probes, probe, generator)
        self.block = block

    def _solve(self, vjp, v: Tensor) -> Quadratic:  # noqa: ARG002
        value = ((v @ self.block.log) * v).sum(1)
        return Quadratic(value, v @ self.block.inverse, lambda lipschitz: torch.zeros_like(value), 0)
