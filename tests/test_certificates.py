"""Certificates: never a false pass, never a lower bound above an upper one, and sealing that leads to a pass."""

import copy
import json
import math

import pytest
import torch
from laws import CONTRACTIONS, close, contraction, dense_jacobian, frozen, lipschitz_layers, randn
from torch import nn

import iresnet as ir
from iresnet.bounds import upper_bound
from iresnet.errors import IResNetError

pytestmark = pytest.mark.usefixtures("default_device")


def toy(**options):
    return ir.zoo.build("toy-mlp", shape=(3,), blocks=2, hidden=8, **options)


def image(**options):
    return ir.zoo.build("iresnet", shape=(2, 4, 4), blocks=(1, 1), strides=(1, 2), hidden=6, **options)


MODULES = {
    "flow": (toy, 2, 6),
    "flow of images": (image, 2, 6),
    "classifier": (lambda: image(task="classify", n_classes=3, injective_pad=2), 2, 6),
    "hybrid": (lambda: image(task="hybrid", n_classes=3), 2, 6),
    "block": (lambda: ir.ResidualBlock(ir.networks.mlp(3, 8)), 1, 3),
    "map": (lambda: ir.networks.conv_bottleneck((2, 4, 4), 6), 1, 3),
    "layer": (lambda: ir.LipschitzLinear(4, 5), 1, 1),
    "convolution": (lambda: ir.LipschitzConv2d(2, 3, 3, image_size=(4, 6)), 1, 1),
    "layers behind a plain one": (
        lambda: nn.Sequential(small(nn.Linear(4, 8)), nn.ELU(), ir.LipschitzLinear(8, 4)),
        1,
        1,
    ),
    "activation": (lambda: nn.Sequential(nn.ELU(), ir.LipschitzLinear(3, 3), nn.Flatten()), 1, 1),
}


def small(layer):
    nn.init.constant_(layer.weight, 0.01)
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODULES)
def test_fresh_modules_certify_with_lower_bounds_below_upper_ones(name, dtype):
    make, n_blocks, n_layers = MODULES[name]
    certificate = ir.certify(make().to(dtype))
    assert certificate.certified
    assert len(certificate.blocks) == n_blocks
    assert len(certificate.layers) == n_layers
    assert all(0 <= bound.lower <= bound.upper < 1 for bound in (*certificate.layers, *certificate.blocks))
    assert all(bound.lower > 0.5 * bound.upper for bound in certificate.layers)


@pytest.mark.parametrize("name", MODULES)
def test_certifying_changes_nothing(name):
    module = MODULES[name][0]().train()
    before = copy.deepcopy(module.state_dict())
    assert str(ir.certify(module)) == str(ir.certify(module))
    close(list(module.state_dict().values()), list(before.values()), 0.0)


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows))
    layer.weight.data = torch.tensor(rows)
    return layer


def lagging(scale=1.3):
    """A layer whose weight has outgrown its norm estimate."""
    layer = ir.LipschitzLinear(4, 4, coeff=0.9)
    with torch.no_grad():
        layer.unnormalized_weight.copy_(torch.eye(4))
        layer.normalization.u.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
        layer.unnormalized_weight[1, 1] = scale
    return layer


class Doubled(nn.ReLU):
    def forward(self, x):
        return 2 * super().forward(x)


NOT_CERTIFIED = {
    "a large weight": lambda: linear([0.8, 0.8], [0.8, 0.8]),
    "a norm of exactly one": lambda: linear([1.0, 0.0], [0.0, 1.0]),
    "a bound of exactly one": nn.ReLU,
    "an unknown layer": lambda: nn.Sequential(nn.GELU(), linear([0.1])),
    "a subclass": lambda: nn.Sequential(Doubled(), linear([0.5])),
    "batch norm": lambda: nn.Sequential(nn.BatchNorm1d(2), linear([0.1, 0.1])),
    "an unknown container": lambda: ir.ResidualBlock(CONTRACTIONS["no rule"]()[0]),
    "a bijection without blocks": lambda: ir.Affine(0.0, 2.0),
    "a chain without blocks": lambda: ir.Chain([]),
    "a flow without blocks": lambda: ir.Flow(ir.Flatten((2,)), ir.StandardNormal(2)),
    "a norm that lags": lambda: ir.ResidualBlock(lagging()),
    "one bad block of two": lambda: ir.Chain([ir.ResidualBlock(lagging()), ir.ResidualBlock(ir.LipschitzLinear(4, 4))]),
}


@pytest.mark.parametrize("name", NOT_CERTIFIED)
def test_what_is_not_proved_is_not_certified(name):
    certificate = ir.certify(NOT_CERTIFIED[name]())
    assert not certificate.certified
    assert "not certified" in str(certificate)
    assert "NOT CERTIFIED" in str(certificate)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["unnormalized weight", "buffer", "bias"])
def test_weights_that_are_not_finite_are_refused(where, value):
    model = toy()
    layer = lipschitz_layers(model)[0]
    target = {"unnormalized weight": layer.unnormalized_weight, "buffer": layer.normalization.u, "bias": layer.bias}[
        where
    ]
    target.data.view(-1)[0] = value
    for use in (ir.certify, ir.seal):
        with pytest.raises(IResNetError, match="not finite"):
            use(model)


def test_a_certificate_is_a_table_and_plain_numbers():
    certificate = ir.certify(toy())
    record = json.loads(json.dumps(certificate.to_dict()))
    assert record["certified"] is True
    assert [b["name"] for b in record["blocks"]] == ["bijection.bijections.2", "bijection.bijections.4"]
    assert record["layers"][0].keys() == {"name", "lower", "upper", "norm", "by"}
    for bound in (*certificate.layers, *certificate.blocks):
        assert f"{bound.name}" in str(certificate)
        assert f"{bound.lower:.4f}  {bound.upper:.4f}" in str(certificate)
    for block in certificate.blocks:
        inside = [bound.upper for bound in certificate.layers if bound.name.startswith(block.name + ".")]
        assert block.upper == pytest.approx(math.prod(inside), rel=1e-9)


# -- the whole network -----------------------------------------------------------------------------------------------

NETWORKS = {
    "flow of images": image,
    "flow of vectors": toy,
    "a spline and blocks": lambda: toy(spline=5),
    "two scales": lambda: ir.zoo.build("iresnet-multiscale", shape=(1, 4, 4), blocks=(1, 1), strides=(2, 1), hidden=4),
    "classifier": MODULES["classifier"][0],
    "affine": lambda: ir.Affine(torch.zeros(3), torch.tensor([0.5, 2.0, 3.0])),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_no_jacobian_of_the_network_leaves_its_bi_lipschitz_constants(name):
    model = NETWORKS[name]().double().eval()
    for module in model.modules():
        if isinstance(module, ir.ActNorm):
            nn.init.normal_(module.log_scale, std=0.3)
        if isinstance(module, ir.Spline):
            for parameter in module.parameters():
                nn.init.normal_(parameter)
    network = ir.certify(model).network
    bijection = getattr(model, "bijection", model)
    vectors = dict.fromkeys(("flow of vectors", "a spline and blocks", "affine"), (3,))
    shape = {**vectors, "two scales": (1, 4, 4)}.get(name, (2, 4, 4))
    points = torch.cat([scale * torch.rand(20, *shape).double() for scale in (1, 100)])
    singular = torch.linalg.svdvals(dense_jacobian(bijection, points).detach())
    assert 0 < network.lower <= float(singular.min())
    assert float(singular.max()) <= network.upper < math.inf


def test_the_constants_of_the_affine_map_are_exact():
    network = ir.certify(ir.Chain([NETWORKS["affine"](), ir.Affine(0.0, 0.5)])).network
    assert (network.lower, network.upper) == pytest.approx((2 / 3, 4.0))


def test_nothing_is_claimed_where_nothing_is_known():
    network = ir.certify(ir.Chain([ir.Logit(), ir.ResidualBlock(CONTRACTIONS["no rule"]()[0])])).network
    assert (network.lower, network.upper) == (0.0, math.inf)
    assert ir.certify(ir.LipschitzLinear(2, 2)).network is None


def test_a_bijection_that_states_no_constants_leaves_the_network_without():
    class Twice(ir.Bijection):
        def forward(self, x):
            return 2 * x

        def forward_and_logdet(self, x, *, logdet=None):  # noqa: ARG002
            return 2 * x, x.new_zeros(len(x))

        def inverse(self, z, *, solver=None, report=None):  # noqa: ARG002
            return z / 2

    certificate = ir.certify(ir.Chain([Twice(), ir.ResidualBlock(ir.networks.mlp(2, 8))]))
    assert certificate.certified
    assert certificate.network is None
    assert json.loads(json.dumps(ir.certify(nn.GELU()).to_dict(), allow_nan=False))["blocks"][0]["upper"] is None


def test_blocks_of_several_norms_have_constants_in_the_euclidean_one():
    parts = [ir.ResidualBlock(ir.networks.mlp(3, 8, normalization=name)) for name in ("power", "linf")]
    certificate = ir.certify(ir.Chain(parts).double())
    assert [b.norm for b in certificate.blocks] == [2, math.inf]
    assert certificate.network.norm == 2
    euclidean = [upper_bound(part.g) for part in parts]
    assert certificate.network.upper == pytest.approx(math.prod(1 + bound for bound in euclidean))


def test_the_guaranteed_steps_are_enough_and_one_less_may_not_be():
    block = ir.ResidualBlock(frozen(ir.LipschitzLinear(3, 3, coeff=0.7)))
    (bound,) = ir.certify(block).blocks
    x = randn(5, 3)
    z, start = block(x), randn(5, 3)
    for tolerance in (1e-2, 1e-5):
        y = start
        for _ in range(int(bound.steps(tolerance))):
            y = z - block.g(y)
        assert bool(((y - x).norm(dim=1) <= tolerance * (start - x).norm(dim=1)).all())
    assert bound.upper ** bound.steps() <= 1e-5 < bound.upper ** (bound.steps() - 1)
    assert ir.certify(nn.ReLU()).blocks[0].steps() == math.inf
    assert ir.certify(linear([0.0])).blocks[0].steps() == 1


# -- an adversary ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CONTRACTIONS if name != "no rule"])
def test_no_pair_of_points_stretches_more_than_the_bound(name):
    g, x = contraction(name)
    (bound,) = ir.certify(g, search_steps=100).blocks
    x = randn(50, *x.shape[1:]).requires_grad_()
    step = (0.1 * torch.randn_like(x)).requires_grad_()
    optimizer = torch.optim.Adam([x, step], lr=0.05)
    largest = 0.0
    for _ in range(60):
        ratio = (g(x + step) - g(x)).flatten(1).norm(dim=1) / step.flatten(1).norm(dim=1)
        largest = max(largest, float(ratio.detach().max()))
        optimizer.zero_grad()
        (-ratio.sum()).backward()
        optimizer.step()
    assert largest <= bound.upper * (1 + 1e-9)
    # And the lower bound is a stretch that some point really has.
    dense = torch.linalg.matrix_norm(dense_jacobian(g, torch.cat([x, randn(500, *x.shape[1:])])).detach(), 2)
    assert bound.lower <= bound.upper
    assert bound.lower <= 1.3 * max(largest, float(dense.max()))


# -- sealing ---------------------------------------------------------------------------------------------------------

SEALABLE = {
    "a norm that lags": lambda: ir.ResidualBlock(lagging()),
    "a norm that lags, in a map": lambda: nn.Sequential(lagging(), nn.ELU()),
    "a norm that lags, alone": lagging,
    "a plain layer beside it": lambda: ir.ResidualBlock(
        nn.Sequential(ir.LipschitzLinear(3, 3), linear(*(5 * torch.eye(3)).tolist()))
    ),
    "a plain layer in a map": lambda: nn.Sequential(ir.LipschitzLinear(3, 3), linear(*(5 * torch.eye(3)).tolist())),
    "a bound looser than the norm": lambda: ir.ResidualBlock(
        nn.Sequential(nn.ELU(alpha=3.0), frozen(ir.LipschitzConv2d(1, 1, 3, 0.99, image_size=(4, 4))).float())
    ),
    "a model": toy,
}


@pytest.mark.parametrize("name", SEALABLE)
def test_a_sealed_module_certifies_in_train_and_eval_and_after_loading(name):
    module = SEALABLE[name]()
    for layer in lipschitz_layers(module):
        with torch.no_grad():
            layer.unnormalized_weight.mul_(1.7)
    assert ir.seal(module).certified
    assert ir.certify(module.eval()).certified
    module.train()
    (module.g if isinstance(module, ir.ResidualBlock) else module)(sample_for(module))  # iterates once more
    assert ir.certify(module).certified
    fresh = SEALABLE[name]()
    fresh.load_state_dict(module.state_dict())
    assert ir.certify(fresh).certified
    x = sample_for(module)
    if isinstance(module, ir.ResidualBlock):
        close(module.eval().inverse(module(x)), x, 1e-3)


def sample_for(module):
    layer = lipschitz_layers(module)[0]
    return torch.randn(
        5, *(layer.in_channels, *layer.image_size) if hasattr(layer, "image_size") else (layer.in_features,)
    )


def test_sealing_brings_layers_back_to_their_coefficient():
    model = toy(coeff=0.8)
    for layer in lipschitz_layers(model):
        nn.init.normal_(layer.unnormalized_weight)
    assert max(bound.upper for bound in ir.certify(model).layers) > 0.85
    assert [bound.upper for bound in ir.seal(model).layers] == pytest.approx([0.8] * 6, rel=1e-4)


def test_sealing_scales_a_block_to_the_target_and_leaves_the_certified_ones():
    plain = linear(*(5 * torch.eye(3)).tolist())
    good = ir.ResidualBlock(frozen(ir.networks.mlp(3, 8), scale=0.3).float())
    bad = ir.ResidualBlock(nn.Sequential(plain, ir.LipschitzLinear(3, 3), ir.LipschitzLinear(3, 3)))
    x = torch.randn(4, 3)
    before = good(x)
    certificate = ir.seal(ir.Chain([good, bad]), target=0.9)
    assert certificate.blocks[1].upper == pytest.approx(0.9, rel=1e-4)
    close(good(x), before, 1e-5)


@pytest.mark.parametrize("name", ["flow", "flow of images", "classifier", "map"])
def test_sealing_a_converged_model_changes_nothing(name):
    model = frozen(MODULES[name][0]())
    x = 256 * torch.rand(2, 2, 4, 4).double() if name != "flow" else randn(2, 3)
    before = model.encode(x) if isinstance(model, ir.Flow) else model(x)
    bounds = ir.certify(model)
    assert [b.upper for b in ir.seal(model).blocks] == pytest.approx([b.upper for b in bounds.blocks], rel=1e-9)
    close(model.encode(x) if isinstance(model, ir.Flow) else model(x), before, 1e-8)


def test_sealing_says_so_when_it_cannot():
    assert not ir.seal(ir.ResidualBlock(nn.Sequential(ir.LipschitzLinear(2, 2), nn.GELU()))).certified
    assert not ir.seal(linear([2.0])).certified
