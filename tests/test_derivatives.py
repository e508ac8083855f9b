"""Derivatives of log-densities and inverses beyond the first, and by the transforms of torch.func."""

import itertools
import warnings

import pytest
import torch
from laws import close
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap

import iresnet as ir
from iresnet.activations import LipSwish
from iresnet.bijections.memory import MEMORY
from iresnet.operators import to_events
from iresnet.probes import PROBES

D = 3
UPSTREAM = torch.tensor([1.0, 0.3], dtype=torch.float64)
ESTIMATORS = {
    "krylov": lambda: ir.Krylov(D, 2**D, probe="all signs"),
    "power-series": lambda: ir.PowerSeries(60, 2**D, probe="all signs"),
    "russian-roulette": lambda: ir.RussianRoulette(60, 0.5, 2**D, probe="all signs"),
    "exact": ir.Exact,
}
"""Without approximation or chance: those with probes take all of them."""


class Sine(nn.Module):
    """A layer without linearization rule."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


MAPS = {"rules": LipSwish, "elu": nn.ELU, "no rule": Sine}


@pytest.fixture(autouse=True)
def _all_signs(monkeypatch):
    def signs(like, n, generator):  # noqa: ARG001
        for sign in itertools.product([1.0, -1.0], repeat=D):
            yield to_events(torch.tensor(sign).to(like).expand(len(like), D), like.shape)

    monkeypatch.setitem(PROBES, "all signs", signs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.script", category=DeprecationWarning)
        # Of torch: a solver looks at values, which functorch allows of gradients.
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad=True to a scalar")
        yield


def block(name: str, *, logdet=None, memory: str = "keep", solver=None) -> ir.ResidualBlock:
    torch.manual_seed(0)
    layers = [
        ir.LipschitzLinear(D, 8),
        nn.Softplus(3),
        ir.LipschitzLinear(8, 8),
        MAPS[name](),
        ir.LipschitzLinear(8, D),
    ]
    return ir.ResidualBlock(nn.Sequential(*layers), logdet=logdet, memory=memory, solver=solver).double().eval()


def batch() -> Tensor:
    return torch.linspace(-1, 1, 2 * D, dtype=torch.float64).view(2, D)


class LogDet(nn.Module):
    def __init__(self, inner: ir.ResidualBlock):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z, logdet = self.inner.forward_and_logdet(x)
        return ((logdet + z.square().sum(1)) * UPSTREAM[: len(x)]).sum()


def flat(tensors) -> Tensor:
    return torch.cat([t.flatten() for t in tensors if t is not None])


def penalty(f: LogDet, x: Tensor) -> Tensor:
    """The gradient by parameters of a gradient by data, as in score matching."""
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(f(x), x, create_graph=True)
    return flat(torch.autograd.grad(slope.square().sum() + f(x), f.parameters(), allow_unused=True))


def third(f: LogDet, x: Tensor) -> Tensor:
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(f(x), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.pow(3).sum(), x, create_graph=True)
    return torch.autograd.grad(curvature.square().sum(), x)[0]


def by_parameters(f: LogDet) -> tuple[dict[str, Tensor], object]:
    """Other parameters than those in the module, and the function of them and of one sample."""
    parameters = {name: 1.1 * p.detach() for name, p in f.named_parameters()}
    return parameters, lambda parameters, y: functional_call(f, parameters, (y[None],))


def each_sample(f: LogDet, x: Tensor) -> Tensor:
    parameters, run = by_parameters(f)
    return flat(vmap(grad(run), in_dims=(None, 0), randomness="different")(parameters, x).values())


def all_samples(f: LogDet, x: Tensor) -> Tensor:
    parameters, run = by_parameters(f)
    total = grad(lambda p: vmap(lambda y: run(p, y), randomness="different")(x).sum())(parameters)
    return flat(total.values())


def scores_of_each(f: LogDet, x: Tensor) -> Tensor:
    scores = vmap(grad(lambda y: f(y[None])), randomness="different")(x)
    return flat(torch.autograd.grad(scores.square().sum(), f.parameters(), allow_unused=True))


def scores_of_all(f: LogDet, x: Tensor) -> Tensor:
    parameters, run = by_parameters(f)

    def total(parameters: dict[str, Tensor]) -> Tensor:
        return vmap(grad(lambda y: run(parameters, y)), randomness="different")(x).square().sum()

    return flat(grad(total)(parameters).values())


WAYS = {
    "hessian": lambda f, x: torch.autograd.functional.hessian(f, x),
    "penalty": penalty,
    "third": third,
    "reverse": lambda f, x: jacrev(f)(x),
    "forward": lambda f, x: jacfwd(f)(x),
    "forward over reverse": lambda f, x: hessian(f)(x),
    "reverse over reverse": lambda f, x: jacrev(jacrev(f))(x),
    "reverse over forward": lambda f, x: jacrev(jacfwd(f))(x),
    "gradients of each sample": each_sample,
    "gradient of a mapped sum": all_samples,
    "scores of each sample": scores_of_each,
    "scores by other parameters": scores_of_all,
}
BY_VMAP = {"forward", "forward over reverse", "reverse over forward"} | set(list(WAYS)[-4:])
BY_AUTOGRAD = ("hessian", "penalty", "third")
CASES = [("keep", way) for way in WAYS] + [(memory, way) for memory in ("early", "recompute") for way in BY_AUTOGRAD]
"""The others keep everything under transforms of torch.func."""


@pytest.mark.parametrize(
    ("estimator", "name", "memory", "way"),
    [
        (estimator, name, memory, way)
        for i, estimator in enumerate(ESTIMATORS)
        for j, (memory, way) in enumerate(CASES)
        for k, name in enumerate(MAPS)
        if (estimator, memory) != ("exact", "keep")
        if k == (i + j) % 3 or (estimator == "krylov" and way in BY_VMAP)  # which roulette refuses
    ],
)
def test_derivatives_of_every_order_are_those_of_the_exact_log_determinant(estimator, name, memory, way):
    """Each way meets each estimator, and each of the maps with one of them."""
    f = LogDet(block(name, logdet=ESTIMATORS[estimator](), memory=memory))
    if estimator == "russian-roulette" and way in BY_VMAP:
        with pytest.raises((ir.errors.IResNetError, RuntimeError), match=r"RussianRoulette draws|randomness"):
            WAYS[way](f, batch())
        return
    close(WAYS[way](f, batch()), WAYS[way](LogDet(block(name, logdet=ir.Exact())), batch()), 1e-9)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("way", [*BY_AUTOGRAD, "reverse over reverse"])
@pytest.mark.parametrize("solving", [ir.Inverse, lambda of: ir.MonotoneBlock(of.g, logdet=of.logdet, solver=of.solver)])
def test_derivatives_of_solutions_are_those_of_the_exact_log_determinant_too(solving, way, memory):
    found, expected = (
        WAYS[way](LogDet(solving(block("rules", logdet=make(), memory=memory, solver=ir.Anderson(1e-13)))), batch())
        for make in (ESTIMATORS["krylov"], ir.Exact)
    )
    close(found, expected, 1e-8)


def test_the_exact_estimator_has_the_second_derivative_of_the_closed_form():
    x = torch.tensor([[0.7]], dtype=torch.float64)
    slope = 1 + 0.9 * torch.cos(3 * x)
    expected = -8.1 * torch.cos(3 * x) / slope - (-2.7 * torch.sin(3 * x) / slope).square()
    for estimator in (ir.Exact(), ir.Krylov(1), ir.PowerSeries(2000), ir.RussianRoulette(2000)):

        def logdet(x: Tensor, estimator=estimator) -> Tensor:
            return estimator(ir.linearize(lambda x: 0.3 * torch.sin(3 * x), x)).sum()

        close(torch.autograd.functional.hessian(logdet, x).flatten(), expected.flatten(), 1e-8)


@pytest.mark.parametrize("estimator", ["krylov", "power-series"])
def test_forward_mode_inside_forward_mode_is_refused(estimator):
    f = LogDet(block("rules", logdet=ESTIMATORS[estimator]()))
    with pytest.raises(ir.errors.IResNetError, match=r"torch\.func\.hessian"):
        jacfwd(jacfwd(f))(batch())


def test_first_derivatives_linearize_once(monkeypatch):
    calls = []
    for name in ("linearize_inner", "linearize_along"):
        original = getattr(ir.bijections.memory, name)
        counted = lambda *args, original=original: (calls.append(1), original(*args))[1]  # noqa: E731
        monkeypatch.setattr(f"iresnet.bijections.memory.{name}", counted)
    for memory, expected in {"keep": 1, "early": 1, "recompute": 3}.items():
        calls.clear()
        LogDet(block("rules", logdet=ir.Krylov(2), memory=memory))(batch()[:1]).backward()
        assert len(calls) == expected, memory


@pytest.mark.parametrize("memory", sorted(MEMORY.keys() - {"keep"}))
@pytest.mark.parametrize("name", MAPS)
def test_parameters_that_are_in_the_module_for_the_forward_pass_alone(name, memory):
    def derivatives(memory: str) -> list[Tensor]:
        f = LogDet(block(name, logdet=ir.Krylov(2), memory=memory))
        named = {key: (1.1 * p.detach()).requires_grad_() for key, p in f.named_parameters()}
        inputs = [batch().requires_grad_(), *named.values()]
        torch.manual_seed(0)
        first = torch.autograd.grad(functional_call(f, named, (inputs[0],)), inputs, create_graph=True)
        second = torch.autograd.grad(flat(first).square().sum(), inputs, allow_unused=True)
        return [flat(first), flat(second)]

    for actual, expected in zip(derivatives(memory), derivatives("keep"), strict=True):
        close(actual, expected, 1e-10)


# -- inverses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("name", MAPS)
def test_an_inverse_has_first_and_second_derivatives_by_latents_and_parameters(name, memory):
    f = ir.Inverse(block(name, memory=memory, solver=ir.Anderson(1e-13)))
    names = [key for key, _ in f.named_parameters()]
    inputs = [batch(), *(p.detach().clone() for p in f.parameters())]

    def run(z: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(f, dict(zip(names, parameters, strict=True)), (z,))

    inputs = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("name", MAPS)
def test_the_jacobian_of_an_inverse_is_the_inverse_of_the_jacobian(name):
    b = block(name, solver=ir.Anderson(1e-13))
    z = batch()[0]
    x = b.inverse(z[None])[0].detach()
    forward = torch.autograd.functional.jacobian(lambda x: b(x[None])[0], x)
    for transform in (jacrev, jacfwd):
        close(transform(lambda z: b.inverse(z[None])[0])(z) @ forward, torch.eye(D), 1e-10)
    curvatures = [
        twice(lambda z: b.inverse(z[None]).square().sum())(z) for twice in (hessian, lambda f: jacrev(jacrev(f)))
    ]
    expected = torch.autograd.functional.hessian(lambda z: b.inverse(z[None]).square().sum(), z)
    for curvature in curvatures:
        close(curvature, expected, 1e-9)


def test_an_inverse_under_vmap_is_refused_with_what_to_do():
    b = block("rules")
    with pytest.raises(ir.errors.IResNetError, match="give it the whole batch"):
        vmap(lambda z: b.inverse(z[None])[0])(batch())


def test_an_upstream_gradient_that_is_not_there_stays_so():
    assert torch.autograd.gradcheck(block("rules", solver=ir.Anderson(1e-13)).inverse, (batch().requires_grad_(),))
