"""Solvers of x = f(x): what they find against known solutions, and whether their reports are true."""

import itertools
import math

import pytest
import torch
from laws import close, contraction, randn
from marks import slow
from torch import Tensor

import iresnet as ir
from iresnet.errors import IResNetError
from iresnet.jacobian import Linearization
from iresnet.zoo import SOLVERS, make_solver

pytestmark = pytest.mark.usefixtures("default_device")

N, D = 5, 6


def orthogonal(d: int) -> Tensor:
    return torch.linalg.qr(randn(d, d))[0]


def linear(matrix: Tensor):
    """The map x -> A x + b, its Lipschitz constant and its solution."""
    b = 3 * randn(N, D)
    solution = torch.linalg.solve(torch.eye(D).double() - matrix, b.T).T
    return (lambda x, active: x @ matrix.T + b[active]), float(torch.linalg.matrix_norm(matrix, 2)), solution


def residual_block(name: str):
    """The map x -> z - g(x) of an inverse: x is the solution when z = x + g(x)."""
    g, x = contraction(name)
    with torch.no_grad():
        z = x + g(x)
    return (lambda x, active: z[active] - g(x)), ir.certify(g).blocks[0].upper, x


def symmetric(low: float, high: float) -> Tensor:
    q = orthogonal(D)
    return q * torch.linspace(low, high, D, dtype=torch.float64) @ q.T


def nilpotent() -> Tensor:
    return 0.9 * torch.eye(D, dtype=torch.float64).roll(1, 1).triu()


PROBLEMS = {
    "symmetric": lambda: linear(symmetric(-0.9, 0.9)),
    "contracting": lambda: linear(symmetric(-0.9, -0.5)),
    "nilpotent": lambda: linear(nilpotent()),
    "rotation": lambda: linear(0.5 * orthogonal(D)),
    "constant": lambda: linear(torch.zeros(D, D).double()),
    "multiple of the identity": lambda: linear(-0.9 * torch.eye(D).double()),
    "mlp": lambda: residual_block("mlp"),
    "convolutions": lambda: residual_block("convolutions"),
    "nonsmooth": lambda: residual_block("mlp with relu"),
    "permuting": lambda: residual_block("mlp with maxmin"),
}


def unrecorded(f):
    """The linearization of f, which a test that counts calls of f must not count."""
    return lambda x, active: ir.linearize(lambda x: f(x, active), x)


class Recorder:
    """The map f, with everything that it was called with and what it returned."""

    def __init__(self, f, n: int):
        self.f = f
        self.calls = []
        self.evaluations: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(n)]

    def __call__(self, x: Tensor, active: Tensor) -> Tensor:
        fx = self.f(x, active)
        self.calls.append(active.tolist())
        for i, x_i, fx_i in zip(active.tolist(), x, fx, strict=True):
            self.evaluations[i].append((x_i, fx_i))
        return fx


@pytest.mark.parametrize("atol", [1e-2, 1e-6, 1e-12])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_finds_the_solution_within_its_error_bound(solver, problem, atol):
    f, lipschitz, expected = PROBLEMS[problem]()
    solution = make_solver({"name": solver, "atol": atol, "max_steps": 1000}).solve(
        f, torch.zeros_like(expected), lipschitz=lipschitz
    )
    error = (solution.value - expected).flatten(1).norm(dim=1)
    assert bool(solution.converged.all())
    assert bool((error <= solution.error_bound + 1e-12).all()), (error, solution.error_bound)
    rounding = 1e-14 * expected.abs().max()
    assert bool((solution.residual <= atol + rounding).all())
    factor = lipschitz / (1 - lipschitz) * math.sqrt(expected[0].numel())
    assert bool((solution.error_bound <= factor * (atol + rounding)).all())
    assert bool((error <= 10 * factor * (atol + rounding)).all())


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_report_is_what_happened(solver, problem):
    f, _, expected = PROBLEMS[problem]()
    for max_steps in (3, 300):
        recorder = Recorder(f, len(expected))
        solution = make_solver({"name": solver, "atol": 1e-8, "max_steps": max_steps}).solve(
            recorder, torch.zeros_like(expected), linearized=unrecorded(f)
        )
        for i, evaluations in enumerate(recorder.evaluations):
            x, fx = evaluations[-1]
            assert int(solution.steps[i]) == len(evaluations) <= max_steps
            close(solution.value[i], fx, 0.0)
            close(solution.residual[i], (fx - x).abs().max(), 0.0)
            assert bool(solution.converged[i]) == bool(solution.residual[i] <= 1e-8 + 1e-15 * fx.abs().max())
        assert all(
            set(later) <= set(earlier) for earlier, later in zip(recorder.calls, recorder.calls[1:], strict=False)
        )
        assert not bool(solution.error_bound[solution.residual > 0].isfinite().any())


@pytest.mark.parametrize("solver", SOLVERS)
def test_samples_that_converged_leave_the_batch_and_change_nothing_for_the_others(solver):
    rates = torch.tensor([0.0, 0.9, 0.1, 0.5], dtype=torch.float64)
    q, b = orthogonal(D), randn(4, D)

    def f(x: Tensor, active: Tensor) -> Tensor:
        return rates[active, None] * (x @ q.T).sin() + b[active]

    recorder = Recorder(f, 4)
    solver = make_solver(solver)
    together = solver.solve(recorder, torch.zeros_like(b), linearized=unrecorded(f))
    assert together.converged.all()
    assert together.steps.argsort().tolist() == rates.argsort().tolist()
    assert [len(active) for active in recorder.calls] == sorted(map(len, recorder.calls), reverse=True)
    assert sum(map(len, recorder.calls)) == int(together.steps.sum())
    for i in range(4):
        alone = solver.solve(lambda x, active, i=i: rates[i] * (x @ q.T).sin() + b[i], torch.zeros_like(b[:1]))
        close(together.value[i], alone.value[0])
        assert together.steps[i] == alone.steps[0]


@pytest.mark.parametrize("when", [1, 3])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_sample_that_is_not_finite_is_reported_at_once_and_spoils_no_other(solver, bad, when):
    f, lipschitz, expected = PROBLEMS["symmetric"]()
    step = iter(range(1, 10_000))

    def spoilt(x: Tensor, active: Tensor) -> Tensor:
        now = next(step) >= when
        return f(x, active).masked_fill(((active == 2) & now)[:, None], bad)

    solution = make_solver(solver).solve(
        spoilt, torch.zeros_like(expected), lipschitz=lipschitz, linearized=unrecorded(f)
    )
    assert solution.converged.tolist() == [True, True, False, True, True]
    assert int(solution.steps[2]) == when
    assert not bool(solution.residual[2].isfinite() | solution.error_bound[2].isfinite())
    others = [0, 1, 3, 4]
    close(solution.value[others], expected[others], 1e-3)
    assert bool(solution.error_bound[others].isfinite().all())


@pytest.mark.parametrize("solver", SOLVERS)
def test_maps_without_a_fixed_point_are_reported_and_not_believed(solver):
    for f in (lambda x, active: x + 1, lambda x, active: 2 * x + 1 + x.square()):
        solution = make_solver({"name": solver, "max_steps": 50}).solve(f, torch.ones(3, 2), lipschitz=2.0)
        assert not bool(solution.converged.any())
        assert bool((solution.steps <= 50).all())
        assert bool((solution.error_bound == math.inf).all() | solution.error_bound.isnan().any())
        assert "0 of 3 samples converged" in str(solution)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_diverging_sample_is_reported_early_and_spoils_no_other(solver):
    # Doubles its distance from the fixed point in each plain step, in directions that turn, with a fold.
    q, b = orthogonal(D), randn(N, D)
    rates = torch.tensor([0.5, 0.5, 2.0, 0.5, 0.5], dtype=torch.float64)

    def f(x: Tensor, active: Tensor) -> Tensor:
        return rates[active, None] * (x @ q.T).abs() + b[active].abs() + 1

    solution = make_solver(solver).solve(f, torch.zeros_like(b))
    assert solution.converged.tolist() == [True, True, False, True, True]
    assert int(solution.steps[2]) <= 25  # 10 sqrt(D) = 25 is 5 doublings, with accelerated steps between
    alone = make_solver(solver).solve(lambda x, active: rates[0] * (x @ q.T).abs() + b[:1].abs() + 1, b[:1] * 0)
    close(solution.value[0], alone.value[0])


@pytest.mark.parametrize("solver", SOLVERS)
def test_growth_that_a_contraction_in_another_norm_may_show_is_no_divergence(solver):
    # The largest row sum is 0.9, but the residual grows by 0.9 sqrt(400) = 18 in the first step.
    matrix = torch.zeros(400, 400, dtype=torch.float64)
    matrix[:, 0] = 0.9
    b = torch.zeros(3, 400, dtype=torch.float64)
    b[:, 0] = 1.0
    solution = make_solver(solver).solve(lambda x, active: x @ matrix.T + b[active], torch.zeros_like(b))
    assert bool(solution.converged.all())
    close(solution.value, torch.linalg.solve(torch.eye(400).double() - matrix, b.T).T, 1e-3)


def test_growth_is_forgiven_when_the_residual_was_halved_since():
    """A spiral along a flat ellipse: the residual grows twice in each turn, and shrinks to 0.43 over it."""
    c = math.sqrt(0.5)
    matrix = 0.9 * torch.tensor([[c, -3 * c], [c / 3, c]], dtype=torch.float64)
    start = torch.zeros(1, 2, dtype=torch.float64)
    recorder = Recorder(lambda x, active: x @ matrix.T + torch.tensor([[1.0, 0.0]], dtype=torch.float64), 1)
    solution = ir.FixedPointIteration(1e-8).solve(recorder, start)
    assert bool(solution.converged.all())
    sizes = [float((fx - x).norm()) for x, fx in recorder.evaluations[0]]
    growth = math.prod(max(1.0, after / before) for before, after in itertools.pairwise(sizes))
    assert growth > 1000 * math.sqrt(2)


def kinked(d: int, rate: float):
    """Rotations with a fold between them: neither differences nor derivatives say much of the next step."""
    first, second, shift, b = orthogonal(d), orthogonal(d), randn(d), randn(20, d)
    return (lambda x, active: rate * (x @ first.T + shift).abs() @ second.T + b[active]), torch.zeros_like(b)


def turning(d: int, rate: float):
    q, b = orthogonal(d), randn(20, d)
    return (lambda x, active: rate * x @ q.T + b[active]), torch.zeros_like(b)


@pytest.mark.parametrize("problem", [turning, kinked])
@pytest.mark.parametrize(
    ("solver", "rate"),
    [
        slow(s, rate) if (s, rate) == ("newton-krylov", 0.98) else (s, rate)
        for s in SOLVERS
        for rate in (0.3, 0.9, 0.98)
    ],
)
def test_two_evaluations_reduce_the_residual_by_the_lipschitz_constant_or_half(solver, problem, rate):
    f, start = problem(30, rate)
    recorder = Recorder(f, len(start))
    solution = make_solver({"name": solver, "atol": 1e-6, "max_steps": 3000}).solve(
        recorder, start, linearized=unrecorded(f)
    )
    assert bool(solution.converged.all())
    for evaluations in recorder.evaluations:
        sizes = [float((fx - x).norm()) for x, fx in evaluations]
        for k in range(len(sizes) // 2):
            assert min(sizes[: 2 * k + 1]) <= max(rate, 0.5) ** k * sizes[0] * (1 + 1e-6)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_converges_to_atol_or_to_rounding_far_from_the_data(solver, scale):
    g, _ = contraction("mlp")
    g.float()
    x = scale * torch.randn(50, 4)
    with torch.no_grad():
        z = x + g(x)
        solution = make_solver(solver).solve(lambda x, active: z[active] - g(x), z)
        left = (solution.value + g(solution.value) - z).abs().amax(1)
    assert bool(solution.converged.all())
    assert bool((left <= 1e-5 + 1e-6 * x.abs().amax(1)).all())
    assert solution.value.dtype == torch.float32


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solution_given_as_the_start_costs_one_evaluation(solver):
    f, lipschitz, expected = PROBLEMS["multiple of the identity"]()
    solution = make_solver(solver).solve(f, expected, lipschitz=lipschitz)
    assert solution.steps.tolist() == [1] * N
    empty = make_solver(solver).solve(f, expected[:0])
    assert empty.value.shape == (0, D)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solve_records_nothing_and_does_not_write_into_its_start(solver):
    f, _, expected = PROBLEMS["mlp"]()
    start = torch.zeros_like(expected)
    assert not make_solver(solver).solve(f, start).value.requires_grad
    close(start, torch.zeros_like(start), 0.0)


# -- acceleration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(-0.9, 0.9), (-0.9, 0.0), (0.0, 0.9), (0.9, 0.9)])
def test_anderson_takes_a_fraction_of_the_plain_evaluations_on_stiff_maps(low, high):
    q = orthogonal(30)
    matrix = q * torch.linspace(low, high, 30, dtype=torch.float64) @ q.T
    b = randn(10, 30)
    steps = {
        make: int(make(atol=1e-8).solve(lambda x, active: x @ matrix + b[active], b).steps.sum())
        for make in (ir.Anderson, ir.FixedPointIteration)
    }
    assert steps[ir.Anderson] < 0.4 * steps[ir.FixedPointIteration]


def test_anderson_costs_no_more_than_plain_steps_where_it_gains_nothing():
    """Steps that reduce the residual by less than half stay, if plain ones do no better."""
    f, start = turning(64, 0.9)
    steps = {
        make: int(make(1e-8, max_steps=1000).solve(f, start).steps.sum())
        for make in (ir.Anderson, ir.FixedPointIteration)
    }
    assert steps[ir.Anderson] < 1.1 * steps[ir.FixedPointIteration]


def folded(n: int, rate: float):
    """A nonsmooth contraction of the plane on which unguarded Anderson acceleration runs in circles."""
    q, b = orthogonal(2), 10 * randn(n, 2)
    return lambda x, active: rate * torch.stack([x.amax(1), x.amin(1)], 1) @ q + b[active]


def test_anderson_converges_on_nonsmooth_maps():
    for _ in range(4):
        solution = ir.Anderson(1e-9, max_steps=2000).solve(folded(500, 0.99), 10 * randn(500, 2))
        assert bool(solution.converged.all()), solution


@pytest.mark.parametrize("solver", ["anderson", "newton-krylov"])
def test_a_step_that_made_it_worse_is_taken_back(solver):
    f = folded(200, 0.95)
    recorder = Recorder(f, 200)
    make_solver({"name": solver, "atol": 1e-9}).solve(recorder, 10 * randn(200, 2), linearized=unrecorded(f))
    taken_back = 0
    for evaluations in recorder.evaluations:
        sizes = [float((fx - x).norm()) for x, fx in evaluations]
        for i in range(2, len(sizes) - 1):
            if sizes[i] > max(sizes[i - 2 : i]):  # one of the two stayed
                earlier = torch.stack([fx for _, fx in evaluations[:i]])
                close((earlier - evaluations[i + 1][0]).norm(dim=1).min(), 0.0)  # a plain step from an earlier x
                taken_back += 1
    assert taken_back > 20


@pytest.mark.parametrize("window", [1, 2, 8])
def test_anderson_with_any_window_solves_dependent_problems(window):
    # Rank one, and samples that start converged: the least-squares problems are singular.
    a = 0.9 * orthogonal(D)[:, :1]
    b = randn(3, D)
    b[0] = 0.0
    matrix = a @ a.T
    solution = ir.Anderson(1e-10, window=window).solve(
        lambda x, active: x @ matrix + b[active], torch.zeros(3, D).double()
    )
    close(solution.value, torch.linalg.solve(torch.eye(D).double() - matrix, b.T).T, 1e-8)


BAD = {
    "tolerance": {"atol": 0.0},
    "tolerance that is not a number": {"atol": math.nan},
    "relative tolerance": {"rtol": -1.0},
    "steps": {"max_steps": 0},
}


@pytest.mark.parametrize("option", BAD)
@pytest.mark.parametrize("solver", SOLVERS)
def test_bad_options_are_refused(solver, option):
    with pytest.raises(IResNetError, match=r"must be positive|at least 1"):
        make_solver({"name": solver, **BAD[option]})


def test_anderson_needs_a_window():
    with pytest.raises(IResNetError, match="window must be at least 1"):
        ir.Anderson(window=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_evaluations_count_products_too(solver):
    f, _, expected = PROBLEMS["mlp"]()
    products = [0] * len(expected)

    def linearized(x: Tensor, active: Tensor) -> Linearization:
        jacobian = ir.linearize(lambda x: f(x, active), x)

        def jvp(v: Tensor) -> Tensor:
            for i in active.tolist():
                products[i] += 1
            return jacobian.jvp(v)

        return Linearization(jacobian.value, jvp, jacobian.vjp)

    solution = make_solver(solver).solve(f, torch.zeros_like(expected), linearized=linearized)
    assert (solution.evaluations - solution.steps).tolist() == products
    assert (max(products) > 0) == (solver == "newton-krylov")


def test_newton_krylov_solves_rotations_in_few_steps():
    """Where plain iteration turns in circles, and Anderson gains little."""
    f, _, expected = PROBLEMS["rotation"]()
    solution = ir.NewtonKrylov(atol=1e-10, n_steps=6).solve(f, torch.zeros_like(expected))
    close(solution.value, expected, 1e-8)
    assert int(solution.steps.max()) <= 3


def test_newton_krylov_converges_quadratically():
    f, _, expected = PROBLEMS["mlp"]()
    few = ir.NewtonKrylov(atol=1e-12, n_steps=expected[0].numel()).solve(f, torch.zeros_like(expected))
    assert few.converged.all()
    assert int(few.steps.max()) <= 6


@pytest.mark.parametrize("name", ["anderson", "newton-krylov"])
def test_the_scale_of_one_sample_does_not_slow_another(name):
    matrix = 0.9 * torch.linalg.qr(torch.randn(12, 12))[0] @ torch.diag(torch.linspace(0.1, 1, 12))
    b = torch.randn(2, 12) * torch.tensor([[1.0], [1e6]])
    solver = make_solver({"name": name, "atol": 1e-4})
    together = solver.solve(lambda x, active: x @ matrix.T + b[active], torch.zeros(2, 12))
    alone = solver.solve(lambda x, active: x @ matrix.T + b[:1], torch.zeros(1, 12))
    assert together.steps[0] == alone.steps[0]
