"""Solvers of fixed-point equations x = f(x), sample by sample."""

__all__ = [
    "FixedPointIteration",
    "Jacobian",
    "Solution",
    "Solver",
    "State",
    "Stepper",
    "error_bound",
    "warn_unless_converged",
]

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from iresnet.errors import ConvergenceWarning, IResNetError
from iresnet.jacobian import Linearization, linearize
from iresnet.operators import at_least_float32, to_events, to_vectors
from iresnet.precision import use_precision
from iresnet.renamed import moved

Jacobian = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]
"""From x, (n, D), and the indices of its samples to the products v -> J v."""


@dataclass(frozen=True)
class Solution:
    r"""Solution of a fixed-point equation with its report; all but ``value`` are per sample, shape (N,).

    Attributes:
        value: the solution x, (N, \*E).
        converged: whether the last step was within the tolerance.
        stagnated: whether the residual had fallen a hundredfold and then stood still, above the tolerance, for the last
            half of the steps: it has met the rounding of the map.
        residual: largest change of any element in the last step, :math:`|x_k - x_{k-1}|_\infty`.
        steps: steps that the sample took part in, each with one evaluation of f.
        evaluations: evaluations of f and products with its Jacobian that were spent on the sample.
        last_step: Euclidean length of the last step, :math:`|x_k - x_{k-1}|_2`.
        error_bound: upper bound of the Euclidean distance to the true solution,
            :math:`L/(1-L) \, |x_k - x_{k-1}|_2`, from a Lipschitz bound L of f; infinite when none below 1 is known.
    """

    value: Tensor
    converged: Tensor
    stagnated: Tensor
    residual: Tensor
    steps: Tensor
    evaluations: Tensor
    last_step: Tensor
    error_bound: Tensor

    def __str__(self) -> str:
        if not len(self.converged):
            return "no samples"
        error = float(self.error_bound.max())
        return (
            f"{int(self.converged.sum())} of {len(self.converged)} samples converged; residual at most "
            f"{float(self.residual.max()):.1e}, steps {int(self.steps.min())} to {int(self.steps.max())}"
            + (f", error at most {error:.1e}" if math.isfinite(error) else "")
        )


def error_bound(last_step: Tensor, lipschitz: float) -> Tensor:  # (N,) -> (N,)
    r"""Bound the distance to the fixed point of a map with Lipschitz constant L by the length of the last step.

    .. math:: |x_k - x^*| \le L/(1-L) \, |x_k - x_{k-1}|

    Args:
        last_step: Euclidean lengths of the last steps.
        lipschitz: L; infinite where none is known.

    Example:
        >>> error_bound(torch.tensor([0.0, 0.1]), 0.9)
        tensor([0.0000, 0.9000])
    """
    factor = lipschitz / (1 - lipschitz) if lipschitz < 1 else math.inf
    return torch.where(last_step == 0, 0.0, factor * last_step)


class Solver(ABC):
    r"""Solver of x = f(x) for maps f that contract.

    A sample has converged when one application of f changes none of its elements by more than ``atol``, or than the
    rounding of f itself: ``rtol`` times its largest element. It diverges when it is not finite, or when plain steps
    :math:`x \to f(x)` have made its Euclidean residual grow by more than :math:`10 \sqrt D` in all since it was last
    halved: no contraction lets it grow at all, and plain iteration of one in another p-norm lets it grow by at most
    :math:`\sqrt D`. Samples that have converged or diverge leave the batch, so hard samples do not make easy ones pay,
    nor spoil them.

    A step cannot get below the rounding of the map, so all of a solve runs without autocast and without TF32.

    Args:
        atol: tolerance on the largest change of an element in one step.
        rtol: the same, relative to the largest element; four units of rounding when None.
        max_steps: evaluations of f after which a sample is given up.

    Raises:
        IResNetError: when a tolerance or the number of steps cannot be used.
    """

    def __init__(self, atol: float = 1e-5, *, rtol: float | None = None, max_steps: int = 200):
        if not atol > 0 or (rtol is not None and not rtol >= 0):
            raise IResNetError(f"tolerances must be positive, got atol={atol} and rtol={rtol}")
        if max_steps < 1:
            raise IResNetError(f"max_steps must be at least 1, got {max_steps}")
        self.atol = atol
        self.rtol = rtol
        self.max_steps = max_steps

    @abstractmethod
    def _start(self, x: Tensor, jacobian: Jacobian) -> "Stepper":
        """Return the memory of a solve that starts at x, (N, D)."""

    def solve(
        self,
        f: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,  # (N, *E)
        *,
        lipschitz: float = math.inf,
        linearized: Callable[[Tensor, Tensor], Linearization] | None = None,
    ) -> Solution:
        r"""Solve x = f(x).

        Args:
            f: called with x, (n, \*E), and the indices (n,) of the samples that are still active.
            x: where to start.
            lipschitz: a bound of f's Lipschitz constant, for the error bound.
            linearized: called like f, returns its linearization, for solvers that use one; ``torch.func`` makes it
                from f when None.

        Returns:
            The solution of every sample and its report.
        """
        with torch.no_grad(), use_precision("float32", x.device):
            return self._solve(f, x, lipschitz, linearized)

    def _solve(
        self,
        f: Callable[[Tensor, Tensor], Tensor],
        x: Tensor,
        lipschitz: float,
        linearized: Callable[[Tensor, Tensor], Linearization] | None,
    ) -> Solution:
        n, shape = len(x), x.shape
        value = at_least_float32(to_vectors(x)).clone()
        residual = value.new_full((n,), math.inf)
        last_step = value.new_full((n,), math.inf)
        converged = torch.zeros(n, dtype=torch.bool, device=x.device)
        stagnated = torch.zeros_like(converged)
        steps = torch.zeros(n, dtype=torch.long, device=x.device)
        active = torch.arange(n, device=x.device)

        def events(v: Tensor) -> Tensor:
            return to_events(v, shape).to(x.dtype)

        def vectors(x: Tensor) -> Tensor:
            return at_least_float32(to_vectors(x))

        def jacobian(v: Tensor, active: Tensor) -> Callable[[Tensor], Tensor]:
            at = events(v)
            at_x = linearized(at, active) if linearized else linearize(lambda x: f(x, active), at)
            return lambda u: vectors(at_x.jvp(events(u)))

        stepper = self._start(value, jacobian)
        rtol = 4 * torch.finfo(x.dtype).eps if self.rtol is None else self.rtol
        v = value.clone()
        for step in range(1, self.max_steps + 1 if n else 0):
            fv = vectors(f(events(v), active))
            change = fv - v
            largest, length = change.abs().amax(1), change.norm(dim=1)
            finite = torch.isfinite(largest)  # else inf <= atol + rtol * inf would pass for convergence
            done = finite & (largest <= self.atol + rtol * fv.abs().amax(1))
            diverges = stepper.observe(v, change, length)
            leave = ~finite | done | diverges | (step == self.max_steps)
            if bool(leave.any()):
                left = active[leave]
                value[left], residual[left], last_step[left] = fv[leave], largest[leave], length[leave]
                converged[left], steps[left] = done[leave], step
                stagnated[left] = (~done & stepper.stands_still(diverges))[leave]
                active = active[~leave]
                if len(active) == 0:
                    break
                stepper.state = stepper.state.select(~leave)
            v = stepper.propose(active)
        evaluations = steps + stepper.products * (steps - 1).clamp(min=0)
        bound = error_bound(last_step, lipschitz)
        return Solution(events(value), converged, stagnated, residual, steps, evaluations, last_step, bound)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(atol={self.atol}, max_steps={self.max_steps})"


@dataclass
class State:
    """Tensors that a solve keeps of its active samples, one row for each.

    Attributes:
        x: last iterate that was kept, (n, D).
        r: its residual f(x) - x, (n, D).
        size: Euclidean norm of r, (n,).
        lowest: norm of the residual when it was last halved, (n,).
        highest: largest norm of a residual so far, (n,).
        mark: norm of the residual when it had last fallen to an eighth, (n,).
        marked_at: number of the step at which that was, (n,).
        growth: factor by which plain steps made the residual grow since it was last halved, (n,).
        rate: largest ratio of successive residuals that a plain step has shown, at least 1/2, (n,).
        plain: whether the iterate to be observed next comes from a plain step, (n,).
    """

    x: Tensor
    r: Tensor
    size: Tensor
    lowest: Tensor
    highest: Tensor
    mark: Tensor
    marked_at: Tensor
    growth: Tensor
    rate: Tensor
    plain: Tensor

    @classmethod
    def start(cls, x: Tensor, **further: Tensor) -> Self:  # (N, D)
        """Return the state before the first step from x, with the fields that a subclass adds."""
        n = len(x)
        infinite = x.new_full((n,), math.inf)
        return cls(
            x=x,
            r=torch.zeros_like(x),
            size=infinite,
            lowest=infinite,
            highest=x.new_zeros(n),
            mark=infinite,
            marked_at=torch.zeros(n, dtype=torch.long, device=x.device),
            growth=x.new_ones(n),
            rate=x.new_full((n,), 0.5),
            plain=torch.ones(n, dtype=torch.bool, device=x.device),
            **further,
        )

    def select(self, samples: Tensor) -> Self:  # (n,), a mask
        """Return the state of some of the samples."""
        return replace(self, **{field.name: getattr(self, field.name)[samples] for field in fields(self)})


class Stepper:
    """Proposal of the next iterate of each sample: an accelerated step, or a plain one where those do not pay.

    An accelerated step stays when it halves the residual, or reduces it by as much as a plain step was seen to do on
    this sample; else it is taken back, and a plain step from the last iterate that stayed follows. So with a Lipschitz
    constant L, two evaluations reduce the residual at least by max(L, 1/2).

    Args:
        state: of all samples, before the first step.
    """

    products = 0
    """Jacobian products spent on each sample in a step."""

    def __init__(self, state: State):
        self.state = state
        self.observed = 0
        self.growth_allowed = 10 * math.sqrt(state.x.shape[1])

    def observe(self, x: Tensor, r: Tensor, size: Tensor) -> Tensor:  # (n, D), (n, D), (n,) -> (n,)
        """Take note of r = f(x) - x, whose norm is size; return which samples diverge."""
        state = self.state
        self.observed += 1
        ratio = size / state.size  # zero at the first step
        rate = torch.where(state.plain, torch.maximum(state.rate, ratio.clamp(max=1.0)), state.rate)
        growth = torch.where(state.plain, state.growth * ratio.clamp(min=1.0), state.growth)
        halved = size <= 0.5 * state.lowest
        growth = torch.where(halved, 1.0, growth)
        fell = size <= state.mark / 8
        self.learn(x, r)
        worse = ~state.plain & ~(ratio <= rate)
        state.lowest = torch.where(halved, size, state.lowest)
        state.highest = torch.maximum(state.highest, size)
        state.mark = torch.where(fell, size, state.mark)
        state.marked_at = torch.where(fell, self.observed, state.marked_at)
        if bool(worse.any()):
            x = torch.where(worse[:, None], state.x, x)
            r = torch.where(worse[:, None], state.r, r)
            size = torch.where(worse, state.size, size)
        state.x, state.r, state.size, state.growth, state.rate, state.plain = x, r, size, growth, rate, worse
        return growth > self.growth_allowed

    def stands_still(self, diverges: Tensor) -> Tensor:  # (n,) -> (n,)
        """Return which residuals fell a hundredfold, and then stood still where they were lowest, or seemed to diverge.

        To stand still is not to fall to an eighth in the last half of the steps.
        """
        state = self.state
        fell = (state.lowest <= 0.01 * state.highest) & (state.size <= 16 * state.lowest)
        return fell & (diverges | (2 * state.marked_at <= self.observed))

    def learn(self, x: Tensor, r: Tensor) -> None:
        """Remember what the last step showed, also where the step is taken back."""

    def propose(self, active: Tensor) -> Tensor:
        """Return the next iterate, (n, D), of the samples with these indices, (n,)."""
        plain = self.state.plain
        step = self.state.x + self.state.r
        accelerated = None if bool(plain.all()) else self.accelerate(active)
        if accelerated is None:
            self.state.plain = torch.ones_like(plain)
            return step
        return torch.where(plain[:, None], step, accelerated) if bool(plain.any()) else accelerated

    def accelerate(self, active: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return the next iterate by acceleration, (n, D), or None where there is none (yet)."""
        return None


class FixedPointIteration(Solver):
    r"""Plain iteration :math:`x_{k+1} = f(x_k)`: converges for every contraction, by a factor L a step.

    Use :class:`Anderson` unless you want to compare with the published method: it takes a fraction of the steps.

    Reference:
        Invertible Residual Networks, Behrmann et al. 2019, https://arxiv.org/abs/1811.00995

    Example:
        >>> solution = FixedPointIteration(atol=1e-6).solve(lambda x, active: 0.5 * x + 1, torch.zeros(3, 2))
        >>> bool((solution.value - 2).abs().max() < 1e-5)
        True
    """

    def _start(self, x: Tensor, jacobian: Jacobian) -> Stepper:  # noqa: ARG002
        return Stepper(State.start(x))


# -- what to do without convergence ------------------------------------------------------------------------------------


def warn_unless_converged(what: str, solution: Solution, solver: Solver) -> None:
    """Warn, with residual, steps and advice, when a sample did not converge.

    Args:
        what: was solved for, to begin the message with.
        solution: what was found.
        solver: that found it.

    Warns:
        ConvergenceWarning: see above.
    """
    if bool(solution.converged.all()):
        return
    if bool((solution.converged | solution.stagnated).all()):
        advice = _advice_on_rounding(solution, solver)
    else:
        advice = (
            f"Seal the model (iresnet.seal) so that g contracts, raise max_steps={solver.max_steps} or "
            f"atol={solver.atol}, or compute in float64."
        )
    warnings.warn(f"{what} did not converge: {solution}. {advice}", ConvergenceWarning, stacklevel=3)


def _advice_on_rounding(solution: Solution, solver: Solver) -> str:
    """Compare the last residual with the rounding of its type, from which the precision of g can be told."""
    value = solution.value
    size = float(value.abs().max())
    units = float(solution.residual[solution.stagnated].max()) / max(size * torch.finfo(value.dtype).eps, 1e-300)
    dtype = str(value.dtype).removeprefix("torch.")
    found = (
        f"The residual fell, and then stood still at {units:.0f} units of rounding of {dtype} (elements are up to "
        f"{size:.3g}): that is the rounding of g. "
    )
    if units > ROUNDING_UNITS:
        return found + (
            f"So g computes in less than {dtype}, as in TF32 or bf16: let it compute in {dtype} (docs/precision.md), "
            f"or raise atol={solver.atol}."
        )
    return found + f"Raise atol={solver.atol}, or compute in float64."


ROUNDING_UNITS = 8
"""Units of rounding of the largest element that a map in that type makes at the most; more are of another precision."""


def __getattr__(name: str) -> Any:
    """Find accelerated solvers where the last release had them."""
    return moved(__name__, name, "iresnet.accelerated", ("Anderson", "NewtonKrylov"))
