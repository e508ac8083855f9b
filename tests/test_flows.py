"""Flows: densities against closed forms and quadrature, samples, and round trips."""

import copy
import math

import pytest
import torch
from laws import close, dense_logdet, frozen, gradients, randn, within_4_errors
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

import iresnet as ir
from iresnet.bases import BASES
from iresnet.bijections import Bijection
from iresnet.errors import IResNetError

pytestmark = pytest.mark.usefixtures("default_device")

LOG_2 = math.log(2)


def trained_base(name: str, features: int):
    options = {"components": 4} if name == "mixture-normal" else {}
    base = BASES[name](features, **options).double()
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter)
    return base


def toy(depth: int = 3):
    return frozen(ir.zoo.build("toy-mlp", shape=(2,), blocks=depth, hidden=16, activation="softplus", logdet="exact"))


def integral(flow: ir.Flow, half_width: float, n: int = 201) -> Tensor:
    """Integral of a density on the plane, by the trapezoidal rule."""
    axis = torch.linspace(-half_width, half_width, n, dtype=torch.float64)
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(axis, axis)).exp()
    return density.sum() * (axis[1] - axis[0]) ** 2


# -- bases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
def test_a_base_integrates_to_one_and_its_samples_follow_it(name):
    base = trained_base(name, 2)
    z = base.sample(20_000, generator=torch.Generator().manual_seed(1))
    flow = ir.Flow(ir.Chain([]), base)
    close(integral(flow, 40.0, 1601), 1.0, 1e-6)
    # E[p(z)] and the entropy, from samples and from quadrature.
    axis = torch.linspace(-40, 40, 1601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_p = base.log_prob(grid).detach()
    within_4_errors(base.log_prob(z).detach(), (log_p.exp() * log_p).sum() * 0.05**2)
    within_4_errors(z.detach(), (grid * log_p.exp()[:, None]).sum(0) * 0.05**2)


@pytest.mark.parametrize("name", [name for name in BASES if name != "mixture-normal"])
def test_temperature_scales_the_spread_about_the_mode(name):
    base = trained_base(name, 3)

    def sample(temperature):
        return base.sample(5, temperature=temperature, generator=torch.Generator().manual_seed(2)).detach()

    mode = sample(0.0)
    close(sample(0.5) - mode, 0.5 * (sample(1.0) - mode))
    assert bool((base.log_prob(mode) >= base.log_prob(sample(1.0))).all())
    close(gradients(base.log_prob(mode.requires_grad_()).sum(), [mode])[0], torch.zeros(5, 3))


def test_a_mixture_is_that_of_torch():
    base = trained_base("mixture-normal", 3)
    components = Independent(Normal(base.mean, base.log_std.exp()), 1)
    truth = MixtureSameFamily(Categorical(logits=base.logits), components)
    z = randn(9, 3).requires_grad_()
    inputs = [z, *base.parameters()]
    close(base.log_prob(z), truth.log_prob(z))
    close(gradients(base.log_prob(z).sum(), inputs), gradients(truth.log_prob(z).sum(), inputs))


def test_temperature_scales_the_spread_about_the_means_of_a_mixture():
    base = trained_base("mixture-normal", 3)

    def sample(temperature):
        return base.sample(2000, temperature=temperature, generator=torch.Generator().manual_seed(2)).detach()

    means = sample(0.0)
    of_component = (means[:, None] - base.mean).abs().amax(2) == 0
    assert bool((of_component.sum(1) == 1).all())
    within_4_errors(of_component.double(), base.logits.softmax(0).detach())
    close(sample(0.5) - means, 0.5 * (sample(1.0) - means))


@pytest.mark.parametrize("features", [1, 2, 10])
def test_a_fresh_mixture_has_the_scale_of_a_standard_normal(features):
    base = ir.MixtureNormal(features, 1000).double()
    expected = torch.ones(features)
    close(base.mean.var(0) + (2 * base.log_std).exp().mean(0), expected, 0.1)
    close(base.mean.mean(0), torch.zeros(features), 0.15)
    assert sum(p.numel() for p in base.parameters()) == 1000 * (2 * features + 1)


def test_a_mixture_has_a_component_and_no_moments():
    with pytest.raises(IResNetError, match="at least 1 component, got 0"):
        ir.MixtureNormal(2, 0)
    assert not ir.MixtureNormal(2).has_moments
    with pytest.raises(IResNetError, match=r"MixtureNormal is not known to be normal.*--kind linear"):
        ir.MixtureNormal(2).moments()


@pytest.mark.parametrize("name", ["diagonal-normal", "mixture-normal"])
def test_standardized_latents_have_the_standard_normal_density(name):
    """By the change of variables: log p(z) = log N(u(z)) + log |det du/dz|."""
    base = trained_base(name, 3)
    z = torch.cat([base.sample(5), 20 * randn(2, 3)]).detach().requires_grad_()
    jacobian = torch.autograd.functional.jacobian(lambda z: base.standardize(z).sum(0), z).transpose(0, 1)
    standard = ir.StandardNormal(3).double().log_prob(base.standardize(z))
    close(standard + torch.linalg.slogdet(jacobian)[1], base.log_prob(z), 1e-8)


def test_a_flow_with_a_spline_and_a_mixture_integrates_to_one():
    flow = ir.zoo.build(
        "toy-mlp", shape=(2,), blocks=2, hidden=8, logdet="exact", spline=4, base="mixture-normal", components=4
    )
    for module in flow.modules():
        if isinstance(module, ir.Spline):
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, std=0.5)
    close(integral(frozen(flow), 12.0, 601), 1.0, 1e-2)


# -- known densities -------------------------------------------------------------------------------------------------


def test_an_affine_flow_is_a_gaussian():
    mean, std = randn(3), torch.rand(3).double() + 0.1
    base = trained_base("diagonal-normal", 3)
    flow = ir.Flow(ir.Affine(mean, std).double(), base)
    x = randn(7, 3)
    expected = Normal(mean + std * base.mean, std * base.log_std.exp()).log_prob(x).sum(1)
    close(flow.log_prob(x), expected, 1e-6)


def test_a_linear_residual_block_is_a_gaussian_with_its_covariance():
    g = frozen(ir.LipschitzLinear(3, 3))
    flow = ir.Flow(ir.ResidualBlock(g), ir.StandardNormal(3).double())
    inverse = torch.linalg.inv(torch.eye(3).double() + g.weight)
    x = randn(5, 3)
    expected = MultivariateNormal(-inverse @ g.bias, inverse @ inverse.T).log_prob(x)
    close(flow.log_prob(x, logdet=ir.Exact()), expected)


class NormalCdf(Bijection):
    """From the uniform density on [0, 1) to the standard normal one."""

    def forward(self, x):
        return Normal(0.0, 1.0).icdf(x)

    def forward_and_logdet(self, x, *, logdet=None):  # noqa: ARG002
        z = self(x)
        return z, -Normal(0.0, 1.0).log_prob(z).flatten(1).sum(1)

    def inverse(self, z, *, solver=None, report=None):  # noqa: ARG002
        return Normal(0.0, 1.0).cdf(z)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_bits_per_dim_of_the_uniform_density_is_the_logarithm_of_the_levels(levels):
    chain = ir.Chain([ir.Affine(0.0, float(levels)), ir.Squeeze(), ir.Flatten((8, 1, 2)), NormalCdf()])
    flow = ir.Flow(chain, ir.StandardNormal(16)).double()
    x = levels * torch.rand(6, 2, 2, 4).double()
    close(flow.bits_per_dim(x), torch.full((6,), math.log2(levels), dtype=torch.float64))


def test_bits_per_dim_of_gaussian_data_is_its_entropy():
    std = 31.0
    flow = ir.Flow(ir.Chain([ir.Affine(128.0, std), ir.Flatten((3, 2, 2))]), ir.StandardNormal(12)).double()
    x = 128 + std * randn(20_000, 3, 2, 2)
    within_4_errors(flow.bits_per_dim(x), 0.5 * math.log2(2 * math.pi * math.e * std**2))
    close(flow.bits_per_dim(x[:3]), -flow.log_prob(x[:3]) / (12 * LOG_2))


def test_a_toy_flow_integrates_to_one():
    flow = toy()
    close(integral(flow, 12.0), 1.0, 1e-6)
    flow.base.mean.data += 0.5
    flow.base.log_std.data -= 0.3
    close(integral(flow, 12.0), 1.0, 1e-6)


# -- both ways -------------------------------------------------------------------------------------------------------


def test_samples_are_decoded_latents_and_follow_the_density():
    flow = toy()
    x = flow.sample(4000, generator=torch.Generator().manual_seed(3))
    assert not x.requires_grad
    close(x, flow.decode(flow.base.sample(4000, generator=torch.Generator().manual_seed(3))).detach(), 1e-4)
    close(flow.decode(flow.encode(x[:50])), x[:50], 1e-4)
    # The share of samples in a box is the integral of the density over it.
    inside = (x.abs() <= 1.0).all(1).double()
    axis = torch.linspace(-1, 1, 101, dtype=torch.float64)
    weights = torch.ones(101).double()
    weights[0] = weights[-1] = 0.5
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(axis, axis)).exp().view(101, 101)
    within_4_errors(inside, 0.02**2 * torch.einsum("i,j,ij->", weights, weights, density), bias=1e-4)


def test_temperature_zero_decodes_the_mode():
    flow = toy()
    mode = flow.decode(flow.base.mean.expand(3, 2)).detach()
    close(flow.sample(3, temperature=0.0), mode, 1e-6)


def test_encoding_and_log_density_come_from_one_pass():
    flow, x = toy(), randn(4, 2)
    z, log_prob = flow.encode_and_log_prob(x)
    close(z, flow.encode(x))
    close(log_prob, flow(x))
    twin = copy.deepcopy(flow)
    for block in twin.bijection.bijections:
        block.logdet = ir.PowerSeries(1)
    close(twin.log_prob(x, logdet=ir.Exact()), log_prob)
    close(twin.bits_per_dim(x, logdet=ir.Exact()), flow.bits_per_dim(x))


def test_a_hybrid_s_density_is_its_flow_s_and_its_logits_those_of_the_latent():
    flow, x = toy(), randn(6, 2)
    hybrid = ir.Hybrid(flow, n_classes=3).double()
    hybrid(x)
    hybrid.eval()
    log_prob, logits = hybrid.log_prob_and_logits(x)
    close(log_prob, flow.log_prob(x))
    close(logits, hybrid(x))
    close(logits, hybrid.head(flow.encode(x)))


def test_a_classifier_s_features_go_back_to_the_input():
    block = ir.ResidualBlock(ir.networks.conv_bottleneck((2, 4, 4), 4), solver=ir.Anderson(1e-10))
    classifier = ir.Classifier(frozen(ir.Chain([ir.InjectivePad(1), ir.Chain([])])), 3).double()
    classifier.bijection.bijections.insert(0, frozen(block))
    x = randn(3, 2, 4, 4)
    assert classifier(x).shape == (3, 3)
    close(classifier.invert(classifier.features(x)), x, 1e-8)
    # Norm, ReLU, mean over pixels, linear: the published order.
    classifier.eval()
    norm, linear = classifier.head.norm, classifier.head.linear
    z = classifier.features(x)
    channel = (1, 3, 1, 1)
    z = (z - norm.running_mean.view(channel)) / (norm.running_var.view(channel) + norm.eps).sqrt()
    z = z * norm.weight.view(channel) + norm.bias.view(channel)
    close(classifier(x), linear(torch.relu(z).mean((2, 3))))


# -- decoding with log-determinants ------------------------------------------------------------------------------------


def scales():
    shape = (2, 4, 4)
    return ir.zoo.build("iresnet-multiscale", shape=shape, blocks=(2, 1), strides=(1, 2), hidden=4, squeeze=False)


DECODERS = {
    "blocks": lambda: ir.zoo.build("toy-mlp", shape=(3,), blocks=2, hidden=8, activation="softplus"),
    "scales": scales,
    "logit": lambda: ir.Flow(
        ir.Chain([ir.Affine(1.0, 3.0), ir.Logit(), ir.ResidualBlock(ir.networks.mlp(3, 8))]), ir.DiagonalNormal(3)
    ),
}


def decoder(name):
    flow = frozen(DECODERS[name]())
    for module in flow.modules():
        if isinstance(module, ir.ActNorm):
            torch.nn.init.normal_(module.log_scale, std=0.3)
            torch.nn.init.normal_(module.shift)
        elif isinstance(module, ir.ResidualBlock):
            module.solver = ir.Anderson(1e-12)
    return flow


@pytest.mark.parametrize("name", DECODERS)
def test_the_log_determinant_of_decoding_is_that_of_the_dense_jacobian_and_the_negative_of_encoding(name):
    flow = decoder(name)
    z = randn(3, flow.base.features).requires_grad_()
    x, logdet = flow.decode_and_logdet(z)
    close(x, flow.decode(z), 1e-9)
    close(logdet, -flow.density(x).logdet, 1e-8)
    close(logdet, dense_logdet(flow.decode, z), 1e-8)
    close(flow.base.log_prob(z) - logdet, flow.log_prob(x), 1e-8)
    close(gradients(logdet.sum(), [z]), gradients(dense_logdet(flow.decode, z).sum(), [z]), 1e-7)
    parameters = [*flow.bijection.parameters()]
    fixed = gradients(-flow.density(flow.decode(z)).logdet.sum(), parameters)
    close(gradients(logdet.sum(), parameters), fixed, 1e-7)


def test_decoding_with_log_determinants_passes_each_block_once_and_takes_an_estimator():
    flow, taken = decoder("scales"), []
    for name, block in flow.named_modules():
        if isinstance(block, ir.ResidualBlock):
            block.logdet = ir.PowerSeries(1)
            inverse, forward = block.inverse, block.forward_and_logdet
            block.inverse = lambda z, _i=inverse, _n=name, **k: taken.append(f"solve {_n}") or _i(z, **k)
            block.forward_and_logdet = lambda x, _f=forward, _n=name, **k: taken.append(f"logdet {_n}") or _f(x, **k)
    z = randn(2, 32)
    with torch.no_grad():
        logdet = flow.decode_and_logdet(z, logdet=ir.Exact())[1]
    names = [entry.split()[1] for entry in taken]
    assert [entry.split()[0] for entry in taken] == ["solve", "logdet"] * 3
    assert names[::2] == names[1::2] == sorted(names[::2], reverse=True)
    close(logdet, dense_logdet(flow.decode, z), 1e-8)


def test_decoding_in_train_mode_leaves_the_model_as_it_is():
    flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=8, logdet="exact").double()
    before = copy.deepcopy(flow.state_dict())
    x, logdet = flow.decode_and_logdet(5 + randn(4, 2))
    assert all(torch.equal(before[key], value) for key, value in flow.state_dict().items())
    close(logdet, -flow.eval().density(x).logdet, 1e-5)
    flow.train().log_prob(randn(8, 2))
    assert all(bool(m.initialized) for m in flow.modules() if isinstance(m, ir.ActNorm))


@pytest.mark.parametrize("bad", [torch.zeros(2, 3), torch.zeros(2)])
def test_latents_of_another_shape_are_not_decoded(bad):
    with pytest.raises(IResNetError, match=r"decoding takes batches of shape \(N, 2\)"):
        toy().decode_and_logdet(bad.double())


def test_a_hybrid_samples_what_its_flow_does():
    flow = toy()
    hybrid = ir.Hybrid(flow, n_classes=3).double()
    drawn = [
        model.sample((2, 5), temperature=0.7, generator=torch.Generator().manual_seed(1)) for model in (flow, hybrid)
    ]
    assert drawn[1].shape == (2, 5, 2)
    close(drawn[1], drawn[0], 0)
    assert hybrid.class_names == ir.Classifier(ir.Squeeze(), 3).class_names == ("0", "1", "2")


BAD = {
    "no samples": (lambda: toy().sample(0), "at least 1"),
    "negative temperature": (lambda: toy().sample(1, temperature=-1.0), "not be negative"),
    "temperature that is not a number": (lambda: toy().sample(1, temperature=math.nan), "not be negative"),
    "no flatten": (lambda: ir.Flow(ir.Squeeze(), ir.StandardNormal(4)).log_prob(torch.zeros(1, 1, 2, 2)), "Flatten"),
    "one class": (lambda: ir.Classifier(ir.Squeeze(), 1), "at least 2 classes"),
    "hybrid of one class": (lambda: ir.Hybrid(toy(), 1), "at least 2 classes"),
    "head without channels": (lambda: ir.Hybrid(toy(), 2, hidden=0), "at least 1 channel, got 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_use_is_refused(name):
    make, message = BAD[name]
    with pytest.raises(IResNetError, match=message):
        make()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("training", [False, True])
def test_data_that_are_not_finite_are_refused_and_counted(bad, training):
    block = ir.ResidualBlock(ir.networks.mlp(2, 4))
    flow, x = ir.Flow(block, ir.StandardNormal(2)).train(training), torch.zeros(5, 2)
    x[3, 1] = bad
    classifier = ir.Classifier(block, 3).train(training)
    for use in (flow.log_prob, flow.encode, flow.bits_per_dim, classifier.features):
        with pytest.raises(ValueError, match=r"1 of 5 samples .* \(first: number 3\)"):
            use(x)
