"""The heart: z = x + g(x) with a contraction g."""

__all__ = ["RandomChunk", "ResidualBlock"]

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from iresnet.accelerated import Anderson
from iresnet.bijections.base import Bijection, LogDets, Report, check_dtype, check_events
from iresnet.bijections.memory import MEMORY, Directions, compiled_directions, linearize_held, same_shape
from iresnet.bounds import upper_bound
from iresnet.context import has_rows, is_conditional, rows_of
from iresnet.devices import in_a_checkpoint, is_readable, is_transforming
from iresnet.errors import IResNetError, UnknownNameError
from iresnet.implicit import Product, implicit, solve_linear
from iresnet.jacobian import Linearization, linearize
from iresnet.lipschitz import hold_weights
from iresnet.logdet import LogDetEstimate, LogDetEstimator, default_logdet
from iresnet.operators import channels_last
from iresnet.precision import default_precision, use_precision
from iresnet.solvers import Solution, Solver, warn_unless_converged


class ResidualBlock(Bijection):
    r"""An invertible residual block.

    .. math:: z = x + g(x), \quad \mathrm{Lip}(g) < 1, \quad \log|\det dz/dx| = \log\det(I + J), \quad J = dg/dx

    Args:
        g: a map with Lipschitz constant below 1 that keeps the shape and treats samples independently, usually a
            sequence of contractive layers (:mod:`iresnet.networks`). Nothing here makes it contract:
            :func:`iresnet.certify` tells whether it does.
        logdet: estimator of the log-determinant. By default ``Krylov()`` in train mode, and one without chance in eval
            mode: see :func:`iresnet.logdet.default_logdet`.
        solver: solver of the inverse.
        memory: what is kept for backward: ``"keep"`` everything; ``"early"`` differentiates the log-determinant in
            forward and keeps the graph of the plain network, for about a quarter more time, and more where samples have
            different upstream weights; ``"recompute"`` keeps x and the probes, and runs forward again in backward.

    Attributes:
        last_logdet: the last log-determinants, (N,), without gradient, for those who watch a training; None before.

    Raises:
        UnknownNameError: for an unknown ``memory``.
        IResNetError: when g holds a layer that mixes samples (batch norm), is random (dropout), keeps running
            statistics or overwrites its input; at use, when g changes the shape of its input, and at the first use in
            train and in eval mode, when the value of a sample depends on the others or on chance.

    Reference:
        Invertible Residual Networks, Behrmann et al. 2019, https://arxiv.org/abs/1811.00995

    Example:
        >>> import iresnet as ir
        >>> block = ir.ResidualBlock(ir.networks.mlp(2, 16), logdet=ir.Exact())
        >>> x = torch.randn(5, 2)
        >>> z, logdet = block.forward_and_logdet(x)
        >>> bool(torch.allclose(block.inverse(z), x, atol=1e-4))
        True
    """

    def __init__(
        self,
        g: nn.Module,
        *,
        logdet: LogDetEstimator | None = None,
        solver: Solver | None = None,
        memory: str = "keep",
    ):
        super().__init__()
        if memory not in MEMORY:
            raise UnknownNameError("memory", memory, MEMORY)
        for name, module in g.named_modules():
            _refuse_unsound(name, module)
        self.g = g
        self.logdet = logdet
        self.solver = solver or Anderson()
        self.memory = memory
        # Shared with this block at a context, which is a copy that has another g:
        self._last_logdet: list[Tensor] = []
        self._independent: set[bool] = set()  # modes, train or eval, in which g is known not to mix samples
        self._compiled = False

    def compile(self) -> None:
        """Use compiled code (``torch.compile``) in forward passes that are differentiated: those of training.

        The first passes take minutes, one for each kind of block and shape of x; the code is then kept on disk. Needs a
        C++ compiler. Inverses and passes without gradients run as before.

        Raises:
            IResNetError: unless ``memory`` is ``"keep"``: the other ways manage the graph themselves; or for a map that
                depends on a context, which would be compiled again for each batch.
        """
        if is_conditional(self.g):
            raise IResNetError("blocks that depend on a context are not compiled: leave out --train.compile")
        if self.memory != "keep":
            raise IResNetError(f"compiled blocks need memory='keep', got '{self.memory}'")
        self._compiled = True

    @property
    def last_logdet(self) -> Tensor | None:
        """See the class."""
        return self._last_logdet[0] if self._last_logdet else None

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        self._check(x)
        x = channels_last(x)
        with default_precision(training=self.training, device=x.device), hold_weights(self.g):
            self._check_independence(x)
            return self._directions.forward(self.g, x)

    def forward_and_logdet(self, x: Tensor, *, logdet: LogDets | None = None) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`."""
        self._check(x)
        x = channels_last(x)
        estimator = self.estimator_of(x, logdet)
        with default_precision(training=self.training, device=x.device), hold_weights(self.g):
            self._check_independence(x)
            z, value = self._run_in_rows(x, estimator)
        if not is_transforming():  # whose tensors do not outlive it
            self._last_logdet[:] = [value.detach()]
        return z, value

    def estimator_of(self, x: Tensor, logdet: LogDets | None) -> LogDetEstimator:
        r"""Return the estimator of a call: the one that it was given, else that of the block, else the default.

        Args:
            x: data, (N, \*E).
            logdet: of :meth:`forward_and_logdet`.
        """
        given = logdet.get(self) if isinstance(logdet, Mapping) else logdet
        estimator = given or self.logdet or default_logdet(x.shape[1:].numel(), training=self.training)
        _check_kind(estimator, LogDetEstimator, "a log-determinant", "logdet=ir.Exact()")
        return estimator

    def _run_in_rows(self, x: Tensor, estimator: LogDetEstimator) -> tuple[Tensor, Tensor]:
        """Map all samples, and estimate the log-determinants of all, or of those of a chunk."""
        rows, factor = (0, len(x)), 1.0
        if isinstance(estimator, RandomChunk):
            (rows, factor), estimator = estimator.draw(len(x)), estimator.estimator
        z, logdet = self._directions.forward_and_logdet(self.g, x, estimator, rows)
        if len(logdet) == len(x):
            return z, logdet
        return z, F.pad(factor * logdet, (rows[0], len(x) - rows[1]))

    def _check(self, x: Tensor) -> None:
        check_events(x, "a residual block")
        check_dtype(x, "a residual block", self.g)

    @property
    def _directions(self) -> Directions:
        """Keep all under transforms of torch.func, and where a checkpoint cannot run early gradients again."""
        if self._compiled and torch.is_grad_enabled():
            return compiled_directions()
        all_of_it = is_transforming() or (self.memory == "early" and in_a_checkpoint())
        return MEMORY["keep" if all_of_it else self.memory]

    @torch.no_grad()
    def _check_independence(self, x: Tensor) -> None:
        """Once in each mode, and not in compiled code: a sample gets the same value alone and in company."""
        if self.training in self._independent or len(x) == 0 or not is_readable(x):
            return
        company = x[:16] if len(x) > 1 else torch.cat([x, 2 * x + 1])
        g = rows_of(self.g, torch.arange(len(company)) % len(x))
        together, again, alone = g(company), g(company), rows_of(g, slice(1))(x[:1])
        different = (together - again).abs().amax() + (together[:1] - alone).abs().amax()
        if bool(different > 1e-2 * together.abs().max()):  # never where it is not finite
            raise IResNetError(
                "g gives a sample another value when it comes alone: it mixes samples or is random (dropout), so that "
                "no sample has a Jacobian of its own; g must be a function of each sample"
            )
        self._independent.add(self.training)

    def solve(self, z: Tensor, *, solver: Solver | None = None, lipschitz: float | None = None) -> Solution:
        """Solve x + g(x) = z and report on every sample; without gradients, which :meth:`inverse` has.

        The weights are held for the whole solve, in train mode too. It runs in float32 proper at least, whatever
        autocast and TF32 allow: see :class:`~iresnet.solvers.Solver`.

        Args:
            z: outputs of the block, (N, *E).
            solver: for this call, replaces the solver of the block.
            lipschitz: bound of g for the error bound; computed when None, which costs more than the solve where layers
                are large. Infinite: no error bound.

        Returns:
            The solution, with an error bound when the block is certified.
        """
        _check_kind(solver or self.solver, Solver, "an inverse", "solver=ir.NewtonKrylov()")
        bound = upper_bound(self.g) if lipschitz is None else lipschitz
        z = self._as_weights(z)
        takes_rows = has_rows(self.g)  # asked once, not at each step
        with torch.no_grad(), hold_weights(self.g, iterate=False):

            def at(active: Tensor) -> nn.Module:
                return rows_of(self.g, active) if takes_rows else self.g

            def linearized(x: Tensor, active: Tensor) -> Linearization:
                g = linearize(at(active), x)
                return Linearization(z[active] - g.value, lambda v: -g.jvp(v), lambda w: -g.vjp(w))

            return (solver or self.solver).solve(
                lambda x, active: z[active] - same_shape(at(active)(x), x),
                z,
                lipschitz=bound,
                linearized=linearized,
            )

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:
        r"""Solve x + g(x) = z; see :meth:`Bijection.inverse`.

        The gradient is implicit, whatever the solver did: with upstream gradient a, :math:`u = (I + J^T)^{-1} a` at the
        solution reaches z, and :math:`-(dg/d\theta)^T u` the parameters. It can be differentiated in turn.

        Warns:
            ConvergenceWarning: with residual, steps and advice, when a sample did not converge.
        """
        z = self._as_weights(z)
        if is_transforming() and not is_readable(z):
            raise IResNetError(
                "an inverse iterates until each sample has converged, which torch.vmap cannot do; give it the whole "
                "batch, outside of torch.vmap"
            )
        if forward_ad._current_level >= 0 and not is_transforming():
            raise IResNetError("an inverse has no derivatives by dual numbers; use torch.func.jvp or torch.func.jacfwd")
        solution = self.solve(z.detach(), solver=solver, lipschitz=math.inf)
        if report:
            report(self, solution)
        else:
            warn_unless_converged("the inverse of a residual block", solution, solver or self.solver)
        if not (torch.is_grad_enabled() or is_transforming()):
            return solution.value
        with use_precision("float32", z.device), hold_weights(self.g, iterate=False):
            jacobian = linearize_held(self.g, solution.value)

        def equation(x: Tensor, z: Tensor, *inputs: Tensor) -> tuple[Tensor, Product, Product]:
            assert jacobian.relinearize is not None
            at = jacobian.relinearize(x, *inputs) if torch.is_grad_enabled() or is_transforming() else jacobian
            return z - x - at.value, at.jvp, at.vjp

        x = z - jacobian.value
        return implicit(x, x.detach(), equation, self._solve_linear, z, *jacobian.inputs[1:])

    def _as_weights(self, z: Tensor) -> Tensor:
        """Take latents that autocast has rounded in the type of the weights."""
        check_events(z, "the inverse of a residual block")
        weight = next(self.g.parameters(), z)
        z = z.to(torch.promote_types(z.dtype, weight.dtype))
        check_dtype(z, "the inverse of a residual block", self.g)
        return z

    def stretch(self, lipschitz: Callable[[nn.Module], float] = upper_bound) -> tuple[float, float]:
        """See :meth:`Bijection.stretch`."""
        bound = lipschitz(self.g)
        return max(0.0, 1 - bound), 1 + bound

    def _solve_linear(self, product: Product, b: Tensor) -> Tensor:
        with hold_weights(self.g, iterate=False):
            return solve_linear(product, b, solver=self.solver)


class RandomChunk(LogDetEstimator):
    r"""Log-determinants of a random chunk of each batch; their expectation is that of the whole batch.

    .. math:: n \log\det(I + J) \text{ for the samples in the chunk, } 0 \text{ for the others}

    For training: given to a residual block, the other samples cost no log-determinant. Values and gradients of every
    sample keep their expectation, so that the mean over the batch is that of the chunk.

    Args:
        estimator: of the log-determinants of the chunk.
        n_chunks: n, in how many chunks a batch is divided; a smaller batch is not.
        chosen: the chunk, for batches whose samples come in random order; drawn at each call when None.

    Raises:
        IResNetError: when the estimator is none, the number of chunks is not a positive integer, or there is no such
            chunk.

    Example:
        >>> import iresnet as ir
        >>> block = ir.ResidualBlock(ir.networks.mlp(2, 8))
        >>> z, logdet = block.forward_and_logdet(torch.ones(6, 2), logdet=RandomChunk(ir.Exact(), 2))
        >>> int((logdet == 0).sum())
        3
    """

    def __init__(self, estimator: LogDetEstimator, n_chunks: int, *, chosen: int | None = None):
        _check_kind(estimator, LogDetEstimator, "a log-determinant", "logdet=ir.Exact()")
        if not isinstance(n_chunks, int) or n_chunks < 1:
            raise IResNetError(f"n_chunks must be an integer of at least 1, got {n_chunks}")
        if chosen is not None and chosen not in range(n_chunks):
            raise IResNetError(f"chosen is the number of a chunk, from 0 to {n_chunks - 1}, got {chosen}")
        self.estimator = estimator
        self.n_chunks = n_chunks
        self.chosen = chosen

    def draw(self, n: int) -> tuple[tuple[int, int], float]:
        """Draw a chunk of n samples.

        Returns:
            Its first sample and its last plus one, and the factor of its log-determinants.
        """
        if self.n_chunks == 1 or n < self.n_chunks:
            return (0, n), 1.0
        chosen = int(torch.randint(self.n_chunks, ())) if self.chosen is None else self.chosen
        size, larger = divmod(n, self.n_chunks)  # the first ones have one more, as those of torch.tensor_split
        start = chosen * size + min(chosen, larger)
        stop = start + size + (chosen < larger)
        return (start, stop), self.n_chunks if self.chosen is None else n / (stop - start)

    def prepare(self, jacobian: Linearization) -> Callable[[Linearization], Tensor]:
        """Estimate the log-determinants of all samples; a residual block takes one chunk of them."""
        return self.estimator.prepare(jacobian)

    def estimate(self, jacobian: Linearization, *, lipschitz: float = math.inf) -> LogDetEstimate:
        """Estimate the log-determinants of all samples and report on them."""
        return self.estimator.estimate(jacobian, lipschitz=lipschitz)


def _check_kind(part: Any, kind: type, what: str, example: str) -> None:
    if not isinstance(part, kind):
        raise IResNetError(f"{what} is computed by an object such as {example}, got {part!r}")


def _refuse_unsound(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        raise IResNetError(
            f"'{name}' in g is a batch norm: it mixes samples, so no sample has a Jacobian of its own; put an ActNorm "
            "before the block"
        )
    if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
        raise IResNetError(
            f"'{name}' in g is a dropout with p={module.p}: g must be a function, or its inverse and log-determinant "
            "are those of another map; leave it out"
        )
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
        raise IResNetError(
            f"'{name}' in g keeps running statistics, so g is another map in train and in eval mode; build it with "
            "track_running_stats=False"
        )
    if getattr(module, "inplace", False):
        raise IResNetError(
            f"'{name}' in g overwrites its input, which x + g(x) still needs; build it with inplace=False"
        )
