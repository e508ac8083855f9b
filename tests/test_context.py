"""Conditional densities: at a context they are flows like any other, and contract in x at every context."""

import copy
import math

import pytest
import torch
from torch import nn

import iresnet as ir
from iresnet.bases import ContextNormal
from iresnet.bijections import RandomChunk
from iresnet.bounds import lower_bound, upper_bound
from iresnet.context import ContextShift, at_context, rows_of
from iresnet.errors import IResNetError, RecipeError

N, K = 6, 3


def conditional(name="toy-mlp", shape=(2,), seed=0, **options):
    """A float64 flow that depends on its context, certified."""
    torch.manual_seed(seed)
    options = {"blocks": 3, "hidden": 8} | options if name == "toy-mlp" else options
    flow = ir.zoo.build(name, shape=shape, context=K, n_power_steps=20, **options).double()
    with torch.no_grad():
        for module in flow.modules():
            if isinstance(module, (ContextShift, ContextNormal)):
                for parameter in module.parameters():
                    parameter.normal_(std=0.4)
    return flow.eval()


PRECISE = {"name": "anderson", "atol": 1e-13, "max_steps": 1000}
FLOWS = {
    "mlp": {},
    "dense": {"block": "dense", "activation": "clipswish"},
    "recompute": {"memory": "recompute"},
    "early": {"memory": "early"},
    "implicit": {"block": "implicit", "solver": PRECISE},
    "monotone": {"block": "monotone", "solver": PRECISE},
    "bilipschitz": {"block": "bilipschitz", "normalization": "power", "mu": 0.5, "nu": 3.0, "solver": PRECISE},
    "images": {"name": "iresnet-multiscale", "shape": (1, 4, 4), "blocks": (2, 1), "strides": (1, 2), "hidden": 6},
}


@pytest.fixture(params=FLOWS)
def flow(request):
    return conditional(**FLOWS[request.param])


def batch(flow, n=N):
    torch.manual_seed(1)
    scale = 1.0 if flow.event_shape == (2,) else 200.0
    return scale * torch.rand(n, *flow.event_shape).double(), torch.randn(n, K).double()


def dense_log_prob(flow, x, c):
    """The log-density of one example by its dense Jacobian."""
    at_c = flow.given(c)
    jacobian = torch.autograd.functional.jacobian(lambda x: at_c.encode(x[None])[0], x).reshape(x.numel(), x.numel())
    return at_c.base.log_prob(at_c.encode(x[None]))[0] + torch.linalg.slogdet(jacobian)[1]


def test_log_densities_are_those_of_dense_jacobians_at_each_context(flow):
    x, c = batch(flow)
    together = flow.log_prob(x, context=c, logdet=ir.Exact())
    apart = torch.stack([dense_log_prob(flow, *pair) for pair in zip(x, c, strict=True)])
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)
    assert float(flow.log_prob(x, context=c.flip(0), logdet=ir.Exact()).sub(together).detach().abs().min()) > 1e-4


def test_densities_given_a_context_integrate_to_one():
    flow = conditional()
    axis = torch.linspace(-12, 12, 400).double()
    grid = torch.cartesian_prod(axis, axis)
    for c in torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 0.5]]).double():
        density = flow.log_prob(grid, context=c, logdet=ir.Exact()).detach().exp()
        assert float(density.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=2e-3)


def test_inverses_are_inverses_at_each_context(flow):
    x, c = batch(flow)
    at_c = flow.given(c)
    inversion = at_c.invert(flow.encode(x, context=c))
    assert bool(inversion.converged.all())
    torch.testing.assert_close(inversion.x, x, atol=1e-3 * float(x.max()), rtol=0)
    _, logdet = at_c.decode_and_logdet(flow.encode(x, context=c), logdet=ir.Exact())
    torch.testing.assert_close(logdet, -at_c.density(x, logdet=ir.Exact()).logdet, atol=1e-2, rtol=0)


def test_samples_have_the_contexts_of_their_rows():
    flow = conditional()
    _, c = batch(flow)
    generator = torch.Generator().manual_seed(0)
    x = flow.sample(N, context=c, generator=generator)
    z = torch.randn(N, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    base = flow.given(c).base
    torch.testing.assert_close(flow.encode(x, context=c), base.mean + base.log_std.exp() * z, atol=1e-3, rtol=0)
    assert flow.sample((2, 3), context=c[0]).shape == (2, 3, 2)


def gradients(flow, x, c, memory_loss):
    flow.zero_grad()
    c = c.clone().requires_grad_()
    memory_loss(flow, x, c).backward()
    return [c.grad, *(p.grad for p in flow.parameters() if p.grad is not None)]


@pytest.mark.parametrize("memory", ["keep", "early", "recompute"])
def test_gradients_reach_parameters_and_context_as_by_dense_jacobians(memory):
    flow = conditional(blocks=2, logdet="exact", memory=memory)
    x, c = batch(flow)
    weights = torch.arange(1.0, N + 1).double()
    found = gradients(flow, x, c, lambda f, x, c: (weights * f.log_prob(x, context=c)).sum())

    def dense(flow, x, c):
        features = flow.context_encoder(c)
        total = x.new_zeros(())
        for i in range(N):
            at_c = at_context(flow, features[i : i + 1])
            forward = at_c.bijection
            jacobian = torch.autograd.functional.jacobian(lambda x, f=forward: f(x[None])[0], x[i], create_graph=True)
            density = at_c.base.log_prob(at_c.bijection(x[i : i + 1]))[0] + torch.linalg.slogdet(jacobian)[1]
            total = total + weights[i] * density
        return total

    for got, expected in zip(found, gradients(flow, x, c, dense), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-8)


def test_gradients_of_inverses_reach_the_context():
    flow = conditional(blocks=1, actnorm=False, solver={"name": "newton-krylov", "atol": 1e-12, "rtol": 0.0})
    _, c = batch(flow, 3)
    z = torch.randn(3, 2).double()
    assert torch.autograd.gradcheck(lambda z, c: flow.decode(z, context=c), (z.requires_grad_(), c.requires_grad_()))
    assert torch.autograd.gradgradcheck(lambda z, c: flow.decode(z, context=c), (z, c), atol=1e-4, rtol=1e-3)


def test_second_derivatives_of_log_densities():
    flow = conditional(blocks=1, logdet="exact")
    x, c = batch(flow, 2)
    assert torch.autograd.gradgradcheck(
        lambda x, c: flow.log_prob(x, context=c), (x.requires_grad_(), c.requires_grad_())
    )


@pytest.mark.parametrize("estimator", [ir.Exact(), ir.Krylov(2, probe="shared")], ids=["exact", "krylov"])
def test_parts_of_a_batch_have_their_own_contexts(estimator):
    flow = conditional(blocks=2)
    x, c = batch(flow)
    at_c = flow.given(c)
    torch.manual_seed(2)
    whole = at_c.density(x, logdet=estimator)
    for chosen in range(3):
        torch.manual_seed(2)
        z, logdet = at_c.bijection.forward_and_logdet(x, logdet=RandomChunk(estimator, 3, chosen=chosen))
        torch.testing.assert_close(z, whole.z)
        is_chosen = torch.arange(N) // 2 == chosen
        of_scales = logdet[~is_chosen]  # the same for all samples: no block adds anything
        assert float(of_scales.detach().std()) < 1e-12
        torch.testing.assert_close(logdet[is_chosen] - of_scales[0], 3 * (whole.logdet[is_chosen] - of_scales[0]))


def test_certificates_hold_at_every_context():
    flow = conditional()
    certificate = ir.certify(flow)
    assert certificate.certified
    for block in (m for m in flow.modules() if isinstance(m, ir.ResidualBlock)):
        bound = upper_bound(block.g)
        for scale in (0.0, 1.0, 100.0):
            at_c = at_context(block.g, scale * torch.randn(1, 64).double())
            assert upper_bound(at_c) == bound
            assert 0 < lower_bound(at_c, search_steps=30) <= bound * (1 + 1e-9)
        assert 0 < lower_bound(block.g, search_steps=30) <= bound * (1 + 1e-9)
    assert ir.certify(flow.given(torch.zeros(K).double())).certified


def test_training_learns_the_context():
    torch.manual_seed(0)
    flow = ir.zoo.build("toy-mlp", shape=(1,), blocks=2, hidden=16, context=1, logdet="exact")
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for _ in range(300):
        c = torch.rand(128, 1) * 4 - 2
        x = 3 * c + (0.2 + c.abs()) * torch.randn(128, 1)
        loss = -flow.log_prob(x, context=c).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    c = torch.linspace(-2, 2, 2000)[:, None]
    entropy = float((0.5 * math.log(2 * math.pi * math.e) + (0.2 + c.abs()).log()).mean())
    assert float(loss.detach()) < entropy + 0.25
    ir.seal(flow.eval())
    samples = flow.sample(4000, context=torch.tensor([1.5]))
    assert float(samples.mean()) == pytest.approx(4.5, abs=0.35)
    assert float(samples.std()) == pytest.approx(1.7, abs=0.35)


def test_classes_are_contexts():
    torch.manual_seed(0)
    flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=1, hidden=4, context="class", n_classes=K)
    flow.base.mean.weight.data.normal_()
    x, y = torch.randn(4, 2), torch.tensor([0, 2, 1, 2])
    torch.testing.assert_close(flow.log_prob(x, context=y), flow.log_prob(x, context=torch.eye(K)[y]), rtol=0.3, atol=1)
    assert flow.sample(5, context=torch.tensor(1)).shape == (5, 2)
    with pytest.raises(IResNetError, match=r"classes of the context are 0 to 2, got \[3\]"):
        flow.given(torch.tensor(3))


def test_a_flow_at_a_context_shares_parameters_and_takes_part_in_distributions():
    flow = conditional()
    at_c = flow.given(torch.zeros(K).double())
    own = {id(p) for p in flow.parameters()}
    assert all(id(p) in own for p in at_c.parameters())
    distribution = ir.as_distribution(at_c)
    x = distribution.sample((5,))
    assert distribution.log_prob(x).shape == (5,)
    again = copy.deepcopy(at_c)
    torch.testing.assert_close(again.encode(x), at_c.encode(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, x: f.log_prob(x), "this model is conditional, p(x | context): give the context"),
        (lambda f, x: f.sample(2), "this model is conditional"),
        (
            lambda f, x: f.log_prob(x, context=torch.zeros(4, K).double()),
            "a context of 4 rows goes with 4 samples, got 6",
        ),
        (
            lambda f, x: f.log_prob(x, context=torch.zeros(N, K + 1)),
            "has 3 real numbers, (N, 3) or (3,), got shape (6, 4)",
        ),
        (lambda f, x: f.given([1.0]), "a context is a tensor, got list"),
        (lambda f, x: f.given(torch.tensor([0.0] * K)).given(torch.zeros(K)), "this flow depends on no context"),
        (lambda f, x: next(m for m in f.modules() if isinstance(m, ir.ResidualBlock)).compile(), "are not compiled"),
    ],
)
def test_wrong_contexts_are_refused(call, message):
    flow = conditional()
    with pytest.raises(IResNetError) as caught:
        call(flow, batch(flow)[0])
    assert message in str(caught.value)


def test_classifiers_take_no_context_and_contexts_have_a_size():
    for context in ("class", -1, 0.5, "age"):
        with pytest.raises(RecipeError, match="context is how many numbers it has, or 'class' with n_classes"):
            ir.zoo.build("toy-mlp", shape=(2,), context=context)
    with pytest.raises(RecipeError, match="the task 'classify' takes no context"):
        ir.zoo.build("toy-mlp", shape=(2,), task="classify", n_classes=2, context=3)


def test_rows_of_modules_without_contexts_are_themselves():
    g = nn.Sequential(nn.Linear(2, 2))
    assert rows_of(g, slice(1)) is g


@pytest.mark.parametrize("context", [K, "class"])
def test_a_folder_to_publish_gives_the_same_density(context, tmp_path):
    flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=1, hidden=4, context=context, n_classes=K).eval()
    flow.base.mean.weight.data.normal_()
    ir.save_pretrained(flow, tmp_path / "flow")
    loaded, x, c = ir.from_pretrained(tmp_path / "flow"), torch.randn(4, 2), torch.randn(4, K)
    torch.testing.assert_close(loaded.log_prob(x, context=c), flow.log_prob(x, context=c))
    with pytest.raises(RecipeError, match="was put together by hand"):
        ir.save_pretrained(flow.given(c[0]), tmp_path / "given")


def test_parts_of_a_batch_whose_probes_take_the_pass_of_the_values():
    flow = conditional(blocks=2, block="dense")
    x, c = batch(flow)
    at_c = flow.given(c)
    z, logdet = at_c.bijection.forward_and_logdet(x, logdet=RandomChunk(ir.Krylov(2), 3, chosen=1))
    torch.testing.assert_close(z, at_c.encode(x))
    mean = torch.stack(
        [
            at_c.bijection.forward_and_logdet(x, logdet=RandomChunk(ir.Krylov(2), 3, chosen=1))[1][2:4]
            for _ in range(100)
        ]
    )
    exact = at_c.bijection.forward_and_logdet(x, logdet=RandomChunk(ir.Exact(), 3, chosen=1))[1][2:4]
    assert bool(((mean.mean(0) - exact).abs() < 5 * mean.std(0) / 10 + 1e-9).all())
    logdet.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in flow.parameters() if p.grad is not None)
