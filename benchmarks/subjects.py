"""Trained densities with test images to measure on, and the exact matrices of their residual blocks in float64."""

__all__ = ["ExactBlock", "SameProbe", "Subject", "blocks_of", "contracting", "exact_blocks", "from_run"]

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import iresnet as ir
from iresnet.data import Batches, dequantize, load
from iresnet.jacobian import Linearization
from iresnet.lipschitz import hold_weights
from iresnet.logdet import Hutchinson, Quadratic
from iresnet.models import load_model
from iresnet.operators import to_events, to_vectors
from iresnet.runs import Run

# -- densities and images --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """Trained density with dequantized test images, in float64.

    Attributes:
        name: of the model, for tables.
        flow: sealed, in eval mode.
        x: test images, (N, C, H, W).
    """

    name: str
    flow: ir.Flow
    x: Tensor


def blocks_of(module: nn.Module) -> list[ir.ResidualBlock]:
    """Return the residual blocks in the order from data to latent."""
    return [block for block in module.modules() if isinstance(block, ir.ResidualBlock)]


def from_run(path: str, data_dir: str | None, n: int) -> Subject:
    """Load the density of a run folder and the first n test images of its data."""
    run = Run.open(path)
    config, inputs = run.read_config()
    test = load(config.data.name, data_dir or run.data_dir, pad_to=config.data.pad_to).test
    flow = load_model(run)
    assert isinstance(flow, ir.Flow), f"{path} is no density"
    return Subject(Path(path).name, flow.double(), _images(test.x[:n], inputs.levels))


def contracting(n: int, *, epochs: int = 20, lr: float = 0.01) -> Subject:
    """Train a density whose blocks have to contract, until eigenvalues come near -0.9: 15 s of CPU.

    The digits are scaled to be much broader than the base density, a standard normal, and there is no ActNorm that
    could undo the scale.
    """
    torch.manual_seed(0)
    digits = load("digits")
    flow = ir.zoo.build(
        "iresnet",
        shape=digits.shape,
        blocks=(3,),
        strides=(1,),
        hidden=32,
        actnorm=False,
        coeff=0.985,
        n_power_steps=5,
        base="standard-normal",
        mean=float(digits.train.x.double().mean()) + 0.5,
        std=0.2,
        logdet=ir.Krylov(5),
    )
    assert isinstance(flow, ir.Flow)
    optimizer = torch.optim.Adamax(flow.parameters(), lr=lr)
    batches = Batches(digits.train, 64)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - epoch / epochs))
        for x, _ in batches.epoch(epoch):
            optimizer.zero_grad()
            with hold_weights(flow):
                loss = flow.bits_per_dim(dequantize(x, levels=digits.levels)).mean()
            loss.backward()
            optimizer.step()
    ir.seal(flow.eval())
    return Subject("contracting", flow.double(), _images(digits.test.x[:n], digits.levels))


def _images(x: Tensor, levels: int | None) -> Tensor:
    return dequantize(x, levels=levels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# -- exact matrices --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExactBlock:
    """Dense matrices of a residual block at one image.

    Attributes:
        shape: event shape of the input, D numbers.
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
        """Compute the matrices from the linearization of the block, and check them."""
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
        """Exact log-determinant."""
        return self.log.trace()

    def linearization(self, n: int) -> Linearization:
        """Return the linearization at n copies of the image, for n probes at once."""

        def product(matrix: Tensor, v: Tensor) -> Tensor:
            return to_events(to_vectors(v) @ matrix, v.shape)

        value = self.jacobian.new_zeros(n, *self.shape)
        return Linearization(value, jvp=partial(product, self.jacobian.t()), vjp=partial(product, self.jacobian))


@torch.no_grad()
def exact_blocks(flow: ir.Flow, x: Tensor) -> Iterator[ExactBlock]:  # (1, C, H, W)
    """Yield the matrices of every block of a flow at an image."""
    blocks, inputs = blocks_of(flow), {}
    hooks = [b.register_forward_pre_hook(lambda block, args: inputs.update({block: args[0]})) for b in blocks]
    flow.encode(x)
    for hook in hooks:
        hook.remove()
    return (ExactBlock.of(block, inputs[block]) for block in blocks)


class SameProbe(Hutchinson):
    """Estimator with the exact quadratic form of each probe, and the exact vector w for its gradient.

    With a generator of the same seed it draws the same probes as another estimator. Their difference has the bias of
    the other one without the noise of the probes, so that a bias far below the standard deviation is visible.
    """

    def __init__(self, block: ExactBlock, *, n_probes: int = 1, probe: str, generator: torch.Generator | None):
        super().__init__(n_probes, probe, generator)
        self.block = block

    def _solve(self, vjp, v: Tensor) -> Quadratic:  # noqa: ARG002
        value = ((v @ self.block.log) * v).sum(1)
        return Quadratic(value, v @ self.block.inverse, lambda lipschitz: torch.zeros_like(value), 0)
