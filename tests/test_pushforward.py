"""Flows as distributions of torch: gradients of samples, densities that agree with themselves, a fit by samples."""

import copy

import pytest
import torch
from laws import close, dense_logdet, frozen, gradients, randn, within_4_errors
from torch.distributions import MultivariateNormal, TransformedDistribution, constraints

import iresnet as ir
from iresnet.errors import IResNetError
from iresnet.lipschitz import hold_weights


def vectors(logdet=None, **options):
    """A flow of vectors in eval mode, in float64, with tight inverses."""
    flow = ir.zoo.build("toy-mlp", shape=(3,), blocks=2, hidden=8, logdet=logdet, solver=ir.Anderson(1e-12), **options)
    for norm in (m for m in flow.modules() if isinstance(m, ir.ActNorm)):
        torch.nn.init.normal_(norm.log_scale, std=0.3)
        torch.nn.init.normal_(norm.shift)
    torch.nn.init.normal_(flow.base.log_std, std=0.3)
    return frozen(flow)


def images():
    shape = (1, 4, 4)
    return frozen(ir.zoo.build("iresnet-multiscale", shape=shape, blocks=(1, 1), strides=(1, 2), hidden=4))


NOISY = {
    "Krylov": lambda: ir.Krylov(2),
    "power series": lambda: ir.PowerSeries(5, probe="gaussian"),
    "roulette": lambda: ir.RussianRoulette(),
}


# -- shapes and support ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [vectors, images])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)])
def test_batches_of_any_shape_are_those_of_the_flow(make, batch):
    flow = make()
    q = ir.as_distribution(flow, validate_args=0 not in batch)  # torch's own check of events knows no empty batches
    x = q.rsample(batch)
    assert isinstance(q, TransformedDistribution)
    assert (q.batch_shape, q.event_shape, q.has_rsample) == ((), flow.event_shape, True)
    assert x.shape == (*batch, *flow.event_shape)
    log_prob = q.log_prob(x)
    assert log_prob.shape == batch
    close(log_prob.reshape(-1), flow.log_prob(x.reshape(-1, *flow.event_shape)))
    assert not q.sample(batch).requires_grad


@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,)])
def test_samples_of_a_mixture_have_no_gradients_as_in_torch(batch):
    flow = ir.zoo.build("toy-mlp", shape=(3,), blocks=1, hidden=8, base="mixture-normal", components=3).eval()
    q = ir.as_distribution(flow, validate_args=0 not in batch)
    x = q.sample(batch)
    assert x.shape == (*batch, 3)
    assert not x.requires_grad
    assert not q.has_rsample
    assert q.log_prob(x).shape == batch
    with pytest.raises(IResNetError, match="MixtureNormal have no gradients"):
        q.rsample(batch)


def test_samples_take_a_number_or_a_shape():
    flow = vectors()

    def draw(n):
        return flow.sample(n, generator=torch.Generator().manual_seed(1))

    assert [tuple(draw(n).shape) for n in (4, (), (4,), torch.Size((2, 3)))] == [(4, 3), (3,), (4, 3), (2, 3, 3)]
    close(draw((2, 3)).view(6, 3), draw(6))
    for bad in (0, (2, 0), (-1, -1)):
        with pytest.raises(IResNetError, match="at least 1"):
            flow.sample(bad)
    with pytest.raises(IResNetError, match="negative"):
        flow.sample((), temperature=-1.0)


def test_the_event_shape_of_a_flow_that_states_none_is_that_of_its_data():
    flow = ir.Flow(ir.Chain([ir.Squeeze(), ir.Flatten((4, 2, 2))]), ir.StandardNormal(16))
    before = torch.get_rng_state()
    assert ir.as_distribution(flow).event_shape == (1, 4, 4)
    torch.set_rng_state(before)
    close(flow.sample(1).norm(), flow.sample(1, generator=torch.Generator().set_state(before)).norm(), 0)


def test_expanded_copies_are_independent_and_of_the_same_density():
    flow = vectors()
    q = ir.as_distribution(flow).expand((2, 3))
    x = q.rsample((4,))
    assert (q.batch_shape, x.shape) == ((2, 3), (4, 2, 3, 3))
    close(q.log_prob(x).reshape(-1), flow.log_prob(x.reshape(-1, 3)))
    assert len(x.reshape(-1, 3).unique(dim=0)) == 24


def test_data_of_a_logit_have_its_bounds_and_others_none():
    net = ir.ResidualBlock(ir.networks.mlp(2, 4))
    scaled = ir.Flow(ir.Chain([ir.Affine(1.0, 4.0), ir.Logit(0.05), net]), ir.StandardNormal(2), event_shape=(2,))
    q = ir.as_distribution(scaled, validate_args=True)
    interval = q.support.base_constraint
    close(interval.lower_bound, 1 - 4 * 0.05 / 0.9, 1e-6)
    close(interval.upper_bound, 1 + 4 * (1 + 0.05 / 0.9), 1e-6)
    assert bool(q.support.check(q.sample((50,))).all())
    with pytest.raises(ValueError, match="within the support"):
        q.log_prob(torch.tensor([[0.0, 2.0]]))
    plain = ir.as_distribution(ir.Flow(ir.Chain([net, ir.Logit()]), ir.StandardNormal(2), event_shape=(2,)))
    assert plain.support.base_constraint is constraints.real
    assert plain.support.event_dim == 1


# -- derivatives -----------------------------------------------------------------------------------------------------


def test_a_sample_moves_with_its_latent_and_the_parameters():
    """The implicit gradient of x = f^-1(z) is that of finite differences."""
    flow = vectors("exact", activation="softplus")
    transform, z, weights = ir.FlowTransform(flow), randn(2, 3).requires_grad_(), randn(2, 3)
    inputs = [z, *flow.bijection.parameters()]
    step = 1e-5
    analytic = gradients((weights * transform(z)).sum(), inputs)
    for value, gradient in zip(inputs, analytic, strict=True):
        along = torch.randn_like(value)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                value.add_(sign * step * along)
                ends.append((weights * transform(z)).sum())
                value.sub_(sign * step * along)
        close((gradient * along).sum(), (ends[0] - ends[1]) / (2 * step), 1e-6)


def test_log_determinants_are_those_of_the_dense_jacobian_with_gradients():
    flow = vectors("exact")
    transform, z = ir.FlowTransform(flow), randn(2, 2, 3).requires_grad_()
    x = transform(z)
    expected = -dense_logdet(flow.encode, x.view(4, 3)).view(2, 2)
    actual = transform.log_abs_det_jacobian(z, x)
    close(actual, expected, 1e-9)
    close(gradients(actual.sum(), [z]), gradients(expected.sum(), [z]), 1e-8)


def test_the_density_of_a_sample_can_be_differentiated_by_the_sample_and_by_the_parameters():
    """A cache that gave the latent back would lose both: the score by x, and that by the parameters at fixed data."""
    flow = vectors("exact")
    q = ir.as_distribution(flow)
    with torch.no_grad():
        drawn = q.rsample((4,))
    for x in (drawn.clone().requires_grad_(), q.rsample((4,))):
        inputs = [x, *flow.parameters()]
        close(gradients(q.log_prob(x).sum(), inputs), gradients(flow.log_prob(x).sum(), inputs), 1e-9)


# -- agreement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("training", [False, True])
def test_the_density_of_one_sample_is_one_number(name, training):
    flow = vectors(NOISY[name]()).train(training)
    q = ir.as_distribution(flow)
    x, other = q.rsample((5,)), q.sample((5,))
    first = q.log_prob(x)
    assert not torch.equal(first, q.log_prob(other))
    assert torch.equal(first, q.log_prob(x))
    assert torch.equal(first, q.log_prob(x.detach().clone()))
    close(q.transforms[0].log_abs_det_jacobian(flow.encode(x), x), q.transforms[0].log_abs_det_jacobian(randn(5, 3), x))
    first.sum().backward(retain_graph=True)
    q.log_prob(x).sum().backward()  # the first backward pass frees nothing that the second needs


def test_without_a_cache_estimates_are_drawn_anew():
    flow = vectors(ir.Krylov(1))
    transform, x = ir.FlowTransform(flow), randn(4, 3)
    fresh = transform.with_cache(0)
    z = transform.inv(x)
    assert transform.with_cache(1) is transform
    assert not torch.equal(fresh.log_abs_det_jacobian(z, x), fresh.log_abs_det_jacobian(z, x))
    assert torch.equal(transform.log_abs_det_jacobian(z, x), transform.log_abs_det_jacobian(z, x))


def test_data_that_are_changed_in_place_and_parameters_that_moved_have_other_estimates():
    flow = vectors(ir.Krylov(1))
    transform, x = ir.FlowTransform(flow), randn(4, 3)
    z = transform.inv(x)
    before = transform.log_abs_det_jacobian(z, x)
    with torch.no_grad():
        flow.base.mean.add_(0.0)  # as an optimizer does: nothing of the bijection changes, but the draws
    moved = transform.log_abs_det_jacobian(z, x)
    assert not torch.equal(before, moved)
    x[0] = x[1]
    changed = transform.log_abs_det_jacobian(z, x)
    close(transform.inv(x), flow.encode(x))
    assert not torch.equal(changed, moved)


def test_estimates_that_belong_to_data_are_unbiased_over_data_and_leave_the_stream_alone():
    flow = vectors(ir.Krylov(8))
    transform, x = ir.FlowTransform(flow), randn(1, 3)
    with torch.no_grad():
        draws = []
        state = torch.get_rng_state()
        for _ in range(300):
            flow.base.mean.add_(0.0)
            draws.append(-transform.log_abs_det_jacobian(x, x))
        assert torch.equal(state, torch.get_rng_state())
        exact = flow.density(x, logdet=ir.Exact()).logdet
    within_4_errors(torch.stack(draws), exact, bias=1e-4)
    assert torch.stack(draws).std() > 0


def test_two_transforms_draw_independently():
    flow, x = vectors(ir.Krylov(1)), randn(4, 3)
    first, second = (ir.FlowTransform(flow).log_abs_det_jacobian(x, x) for _ in range(2))
    assert not torch.equal(first, second)


# -- train mode ------------------------------------------------------------------------------------------------------


def test_power_iterations_advance_once_for_each_change_of_the_parameters():
    flow = vectors("exact").train()
    q = ir.as_distribution(flow)
    layer = next(m for m in flow.modules() if isinstance(m, ir.LipschitzLinear))
    with torch.no_grad():
        layer.unnormalized_weight.add_(torch.randn_like(layer.unnormalized_weight))
    seen = [layer.normalization.u.clone()]
    x = q.rsample((4,))
    seen.append(layer.normalization.u.clone())
    log_prob = q.log_prob(x)
    seen.append(layer.normalization.u.clone())
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
    # The sample and its density are of one map.
    with torch.no_grad(), hold_weights(flow, iterate=False):
        close(log_prob, flow.log_prob(flow.decode(flow.encode(x))), 1e-8)


@pytest.mark.parametrize("fitted", [False, True])
def test_samples_initialize_no_act_norm(fitted):
    flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=8)
    q = ir.as_distribution(flow)
    with torch.set_grad_enabled(fitted):
        q.log_prob(q.rsample((8,)) + 5)
    norms = [m for m in flow.modules() if isinstance(m, ir.ActNorm)]
    assert all(not norm.shift.any() and bool(norm.initialized) == fitted for norm in norms)
    flow.log_prob(5 + torch.randn(8, 2))  # data, which only norms that are not fitted take their scale from
    assert all(bool(norm.shift.any()) != fitted for norm in norms)


def test_a_distribution_can_be_copied():
    q = ir.as_distribution(vectors(ir.Krylov(1)))
    x = q.sample((3,))
    copied = copy.deepcopy(q)
    assert torch.equal(copied.log_prob(x), copied.log_prob(x))
    close(copied.base_dist.log_prob(x), q.base_dist.log_prob(x))


# -- a fit by samples --------------------------------------------------------------------------------------------------


MEAN, COVARIANCE = torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.6], [0.6, 0.8]])


def divergence(q, p, half_width=9.0, n=121):
    """KL(q || p) by the trapezoidal rule."""
    axis = torch.linspace(-half_width, half_width, n)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_q = q.log_prob(grid)
        terms = log_q.exp() * (log_q - p.log_prob(grid))
    return float(terms.sum() * (axis[1] - axis[0]) ** 2)


def test_a_flow_is_fitted_to_a_known_density_by_its_samples():
    flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=16, n_power_steps=5, logdet="krylov")
    q, p = ir.as_distribution(flow), MultivariateNormal(MEAN, COVARIANCE)
    optimizer = torch.optim.Adam(flow.parameters(), lr=4e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=120)
    start = divergence(ir.as_distribution(ir.Flow(ir.Chain([]), ir.StandardNormal(2), event_shape=(2,))), p)
    # of two Gaussians: (log det C + tr C^-1 + m^T C^-1 m - 2) / 2
    inverse = COVARIANCE.inverse()
    closed = 0.5 * float(COVARIANCE.logdet() + inverse.trace() + MEAN @ inverse @ MEAN - 2)
    assert start == pytest.approx(closed, abs=1e-3)
    for _ in range(120):
        x = q.rsample((128,))
        loss = (q.log_prob(x) - p.log_prob(x)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    certificate = ir.seal(flow.eval())
    assert certificate.certified
    found = ir.as_distribution(flow)
    for block in (m for m in flow.modules() if isinstance(m, ir.ResidualBlock)):
        block.logdet = None  # exact from here on
    with torch.no_grad():
        x = found.sample((8_000,))
        gaps = found.log_prob(x) - p.log_prob(x)
    kl = divergence(found, p)
    assert 0 <= kl < 0.01 < 0.5 < start
    within_4_errors(gaps, kl, bias=1e-3)
    close(x.mean(0), MEAN, 0.1)
    close(x.T.cov(), COVARIANCE, 0.15)


BAD = {
    "a hybrid": (lambda: ir.as_distribution(ir.Hybrid(vectors(), 2)), "made of a Flow, got Hybrid; take its .flow"),
    "a map": (lambda: ir.FlowTransform(ir.Squeeze()), "made of a Flow, got Squeeze"),
    "a large cache": (lambda: ir.FlowTransform(vectors(), cache_size=2), "must be 0 or 1, got 2"),
    "other latents": (lambda: ir.FlowTransform(vectors())(torch.zeros(2, 6)), r"\(\*, 3\), got \(2, 6\)"),
    "other data": (lambda: ir.FlowTransform(images()).inv(torch.zeros(1, 16)), r"\(\*, 1, 4, 4\), got \(1, 16\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_use_is_refused(name):
    make, message = BAD[name]
    with pytest.raises(IResNetError, match=message):
        make()
