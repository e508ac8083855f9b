"""Residual blocks at examples, and the exact log-determinants that estimators are compared with."""

__all__ = [
    "BlockCall",
    "Converged",
    "DENSE_LIMIT",
    "Dense",
    "Reference",
    "bijection_of",
    "block_calls",
    "dequantized_examples",
    "reference",
]

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Generator, Tensor, nn

from iresnet.bijections import Bijection, Inverse, ResidualBlock
from iresnet.data import Split, dequantize, permutation
from iresnet.errors import IResNetError, RecipeError
from iresnet.jacobian import Linearization, linearize
from iresnet.krylov import KrylovSpace
from iresnet.operators import to_events, to_vectors

# -- examples and blocks -----------------------------------------------------------------------------------------------


def dequantized_examples(split: Split, n: int, *, levels: int | None, seed: int = 0) -> Split:
    """Take examples in a random order, with the noise of dequantization, in float64.

    Args:
        split: the split that they are taken from.
        n: number of examples; all of them where there are fewer.
        levels: values that an integer component takes, none for continuous data.
        seed: of the order and the noise.

    Example:
        >>> split = Split(torch.zeros(9, 1, 2, 2, dtype=torch.uint8))
        >>> dequantized_examples(split, 4, levels=256).x.shape
        torch.Size([4, 1, 2, 2])
    """
    chosen = torch.from_numpy(permutation(len(split), seed)[:n]).to(split.x.device)
    noise = Generator().manual_seed(seed)
    x = dequantize(split.x[chosen], levels=levels, generator=noise, dtype=torch.float64)
    return Split(x, None if split.y is None else split.y[chosen])


def bijection_of(model: nn.Module) -> Bijection:
    """Return the bijection of a model, and refuse a model that has none.

    Raises:
        RecipeError: for a network that maps different inputs to the same features.
    """
    bijection = getattr(model, "bijection", model)
    if not isinstance(bijection, Bijection):
        raise RecipeError(
            f"this model ({type(model).__name__}) is no bijection: it has no inverse and no log-determinant to "
            "analyze; give a run of an invertible architecture (see: iresnet recipes)"
        )
    return bijection


@dataclass(frozen=True)
class BlockCall:
    r"""Residual block with its input and output in a forward pass through the model.

    Attributes:
        name: path of the block in the bijection.
        block: the block.
        x: input, (N, \*E).
        z: output, (N, \*E).
    """

    name: str
    block: ResidualBlock
    x: Tensor
    z: Tensor


@torch.no_grad()
def block_calls(bijection: Bijection, x: Tensor) -> list[BlockCall]:  # (N, *E)
    """Run a forward pass and return the residual blocks in the order in which they are called.

    Raises:
        RecipeError: when there are none, or some are solved in forward.

    Example:
        >>> import iresnet as ir
        >>> chain = ir.Chain([ir.ResidualBlock(ir.networks.mlp(2, 8)) for _ in range(2)])
        >>> first, second = block_calls(chain, torch.randn(3, 2))
        >>> second.name, bool((first.z == second.x).all())
        ('bijections.1', True)
    """
    names = {block: name for name, block in bijection.named_modules() if isinstance(block, ResidualBlock)}
    if not names:
        raise RecipeError("this model has no residual blocks to analyze; train one with --model.blocks")
    if any(isinstance(module, Inverse) for module in bijection.modules()):
        raise RecipeError("this model has implicit or monotone blocks, and analyses of blocks take residual ones")
    calls: list[BlockCall] = []

    def record(block: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
        assert isinstance(block, ResidualBlock)
        calls.append(BlockCall(names[block], block, args[0], z))

    hooks = [block.register_forward_hook(record) for block in names]
    try:
        bijection(x)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


# -- exact log-determinants --------------------------------------------------------------------------------------------


DENSE_LIMIT = 1024
"""Largest number of dimensions of a block whose Jacobian is computed as a dense matrix."""


class Reference(ABC):
    r"""Value of :math:`\log\det(I + J)`, and of the estimates that an estimator without bias gives for a probe.

    The difference of an estimate from that of :meth:`evaluate` for the same probes has the estimator's bias without the
    noise of the probes, so that a bias far below the standard deviation can be measured.

    Attributes:
        logdet: the log-determinant in nats, None where it is not known exactly.
    """

    logdet: float | None

    @abstractmethod
    def linearization(self, n: int) -> Linearization:
        """Linearize the block at n copies of the example, for n probes at once."""

    @abstractmethod
    def evaluate(self, v: Tensor) -> tuple[Tensor, Tensor, float]:  # (n, D)
        r"""Return :math:`v^T \log(I + J) v`, (n,), :math:`(I + J^T)^{-1} v`, (n, D), and the error of the former."""


class Dense(Reference):
    r"""Reference by dense matrices in float64.

    The logarithm is an integral over [0, 1], taken by Gauss-Legendre quadrature with :math:`t = 1 - u^2`:

    .. math:: \log(I + J) = \int_0^1 J (I + tJ)^{-1} dt.

    Its trace must be the log-determinant by elimination; where it is not, as for maps that do not contract, values are
    compared with that log-determinant, and only the noise is larger.

    Args:
        jacobian: J, (D, D), of vectors in the order of :func:`iresnet.operators.to_vectors`.
        shape: event shape.
    """

    def __init__(self, jacobian: Tensor, shape: torch.Size):
        identity = torch.eye(len(jacobian)).to(jacobian)
        self.jacobian, self.shape = jacobian, shape
        self.logdet: float = float(torch.linalg.slogdet(identity + jacobian)[1])
        self.inverse = torch.linalg.inv(identity + jacobian)
        nodes, weights = np.polynomial.legendre.leggauss(16)
        log = torch.zeros_like(jacobian)
        for u, weight in zip((nodes + 1) / 2, weights, strict=True):
            log += u * weight * torch.linalg.solve(identity + (1 - u**2) * jacobian, jacobian)
        self.error = abs(float(log.trace()) - self.logdet)
        self.log = log if self.error < 1e-6 * len(jacobian) else None

    @classmethod
    @torch.no_grad()
    def of(cls, call: BlockCall) -> "Dense":
        """Compute the Jacobian of a block at a single example."""
        jacobian = linearize(call.block.g, call.x)
        basis = to_events(torch.eye(call.x[0].numel()).to(call.x), call.x.shape)[:, None]
        columns = torch.vmap(jacobian.jvp, chunk_size=128)(basis)
        return cls(to_vectors(columns[:, 0]).t().contiguous(), call.x.shape[1:])

    def linearization(self, n: int) -> Linearization:
        """See :meth:`Reference.linearization`."""

        def product(matrix: Tensor, v: Tensor) -> Tensor:
            return to_events(to_vectors(v) @ matrix, v.shape)

        value = self.jacobian.new_zeros(n, *self.shape)
        return Linearization(value, jvp=partial(product, self.jacobian.t()), vjp=partial(product, self.jacobian))

    def evaluate(self, v: Tensor) -> tuple[Tensor, Tensor, float]:
        """See :meth:`Reference.evaluate`."""
        values = v.new_full((len(v),), self.logdet) if self.log is None else ((v @ self.log) * v).sum(1)
        return values, v @ self.inverse, 0.0 if self.log is None else self.error


class Converged(Reference):
    r"""Reference by Krylov spaces that grow until the values converge, for blocks too large for dense matrices.

    Args:
        call: a block at a single example.
        tol: change of a value in nats at which it has converged.
        max_steps: largest number of products for a probe.
    """

    def __init__(self, call: BlockCall, *, tol: float = 1e-6, max_steps: int = 60):
        self.call, self.tol, self.max_steps = call, tol, max_steps
        self.logdet = None
        self._jacobians: dict[int, Linearization] = {}

    def linearization(self, n: int) -> Linearization:
        """See :meth:`Reference.linearization`; caches products, which different estimators have in common."""
        if n not in self._jacobians:
            jacobian = linearize(self.call.block.g, self.call.x.expand(n, *self.call.x.shape[1:]))
            self._jacobians[n] = replace(jacobian, vjp=_Cache(jacobian.vjp))
        return self._jacobians[n]

    @torch.no_grad()
    def evaluate(self, v: Tensor) -> tuple[Tensor, Tensor, float]:
        """See :meth:`Reference.evaluate`; the error is the change that the last product made."""
        vjp, shape = self.linearization(len(v)).vjp, self.call.x.shape
        space = KrylovSpace(lambda q: to_vectors(vjp(to_events(q, shape))), v, min(self.max_steps, v.shape[1]))
        while not space.complete:
            space.extend()
            if space.steps > 1 and float(space.last_change().max()) <= self.tol:
                break
        return *space.solve(), float(space.last_change().max())


class _Cache:
    """Product with a matrix that is computed once for each vector.

    The first terms of all series, and steps of all Krylov spaces, are the same.
    """

    def __init__(self, product: Callable[[Tensor], Tensor]):
        self.product = product
        self.known: list[tuple[Tensor, Tensor]] = []

    def __call__(self, w: Tensor) -> Tensor:
        for vector, image in self.known:
            if torch.equal(vector, w):
                return image
        self.known.append((w.clone(), self.product(w)))
        return self.known[-1][1]


def reference(call: BlockCall) -> Reference:
    """Return the reference for a block at a single example: dense where that is affordable.

    Raises:
        IResNetError: when there are several examples.
    """
    if len(call.x) != 1:
        raise IResNetError(f"a reference is of one example at a time, got {len(call.x)}")
    return Dense.of(call) if call.x.numel() <= DENSE_LIMIT else Converged(call)
