"""What torch does with modules: threads, checkpoints, averages, pickles, and parametrizations that are removed."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from laws import close
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import iresnet as ir
from iresnet.lipschitz import hold_weights, lipschitz_layers
from iresnet.normalization import NORMALIZATIONS

LAYERS = {
    "linear": lambda: ir.LipschitzLinear(16, 12, coeff=0.7),
    "3x3": lambda: ir.LipschitzConv2d(2, 3, 3, 0.7, image_size=(4, 4)),
    "1x1": lambda: ir.LipschitzConv2d(2, 3, 1, 0.7, image_size=(4, 4)),
    "gram": lambda: ir.LipschitzConv2d(2, 3, 3, 0.7, image_size=(4, 4), normalization="gram"),
    "cayley": lambda: ir.LipschitzLinear(16, 12, coeff=0.7, normalization="cayley"),
    "linf": lambda: ir.LipschitzLinear(16, 12, coeff=0.7, normalization="linf"),
}


def input_of(layer: nn.Module) -> torch.Tensor:
    return torch.randn(3, 16) if isinstance(layer, nn.Linear) else torch.randn(3, 2, 4, 4)


def in_a_thread(function):
    """Run a function in another thread and return what it returned."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_threads_hold_weights_of_their_own():
    g = ir.networks.mlp(3, 4).eval()

    def without_gradients():
        with torch.no_grad(), hold_weights(g):
            return g[0].weight

    with hold_weights(g):
        mine = g[0].weight
        theirs = in_a_thread(without_gradients)
        assert g[0].weight is mine
        assert in_a_thread(lambda: g[0].weight) is not mine
    assert mine.requires_grad
    assert not theirs.requires_grad


# -- what torch does with modules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_checkpoint_has_the_gradients_of_the_values_that_it_gave(name, reentrant):
    layer = LAYERS[name]().double()
    with torch.no_grad():
        layer.unnormalized_weight.add_(torch.randn_like(layer.unnormalized_weight))  # so that a step moves the norm
    twin, x = copy.deepcopy(layer), input_of(layer).double().requires_grad_()
    plain, again = layer(x), checkpoint(twin, x, use_reentrant=reentrant)
    close(again, plain)
    again.square().sum().backward()
    plain.square().sum().backward()
    close(twin.unnormalized_weight.grad, layer.unnormalized_weight.grad)
    for mine, other in zip(twin.buffers(), layer.buffers(), strict=True):
        close(mine, other, 0.0)


AVERAGES = {
    "exponential": {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
    "stochastic": {"multi_avg_fn": get_swa_multi_avg_fn()},
    "default": {},
    "one by one": {"avg_fn": get_ema_avg_fn(0.9)},
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_of_weights_and_buffers_are_normalized_as_by_unit_vectors(name):
    flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=8, logdet=ir.Exact())
    average = AveragedModel(flow, use_buffers=True, **AVERAGES[name])
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        (-flow.log_prob(torch.randn(32, 2)).mean()).backward()
        optimizer.step()
        average.update_parameters(flow)
    layers = lipschitz_layers(average.eval())
    weights = [layer.weight for layer in layers]
    shrunk = min(float(layer.normalization.u.norm()) for layer in layers)
    for layer in layers:
        layer.normalization.u.div_(layer.normalization.u.norm())
    assert shrunk < 0.999
    close([layer.weight for layer in layers], weights, 1e-5)
    assert all(bool(m.initialized) for m in average.modules() if isinstance(m, ir.ActNorm))
    assert ir.seal(average.module).certified


@pytest.mark.parametrize("norm", NORMALIZATIONS)
def test_layers_and_models_travel_through_pickle(norm, tmp_path):
    options = {"logdet": ir.Exact(), "normalization": norm}
    flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=4, **options)
    flow(torch.randn(8, 2))
    flow.eval()
    flow.bijection.bijections[2].g[0].normalization.train()
    torch.save(flow, tmp_path / "flow.pt")
    for again in (
        pickle.loads(pickle.dumps(flow)),
        torch.load(tmp_path / "flow.pt", weights_only=False),
        copy.deepcopy(flow),
    ):
        assert [m.training for m in again.modules()] == [m.training for m in flow.modules()]
        assert [key for key, _ in again.named_parameters()] == [key for key, _ in flow.named_parameters()]
        x = torch.ones(1, 2)
        close(again.log_prob(x), flow.log_prob(x), 0.0)
        again.train()(torch.randn(8, 2)).sum().backward()
        assert all(p.grad is not None for p in lipschitz_layers(again)[0].parameters())
        assert ir.certify(again.eval()).certified


@pytest.mark.parametrize("name", LAYERS)
def test_a_plain_layer_is_what_the_normalized_one_was(name):
    layer = LAYERS[name]().eval()
    x = input_of(layer)
    y = layer(x)
    block = ir.ResidualBlock(nn.Sequential(layer, nn.ELU()))
    certificate = ir.seal(block)
    y = layer(x)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) in (ir.LipschitzLinear, ir.LipschitzConv2d)
    assert lipschitz_layers(block) == []
    close(layer(x), y, 0.0)
    close(ir.linearize(layer, x).value, y, 0.0)
    plain = ir.certify(block)
    assert plain.certified
    assert plain.layers[0].upper <= 1.0001 * certificate.layers[0].upper
    assert ir.seal(block).certified
    assert pickle.loads(pickle.dumps(layer)).weight.equal(layer.weight)


@pytest.mark.parametrize("name", LAYERS)
def test_copies_do_not_lose_their_weights_with_each_other(name):
    layer = LAYERS[name]()
    layer(input_of(layer))
    first, second = copy.deepcopy([layer, layer])
    assert first is second
    assert type(copy.deepcopy(layer)).__name__ == type(layer).__name__
    x, copied = input_of(layer), copy.deepcopy(layer.eval())
    assert [m.training for m in copied.modules()] == [m.training for m in layer.modules()]
    parametrize.remove_parametrizations(copied, "weight")
    close(layer(x), copied(x), 0.0)
    close(copy.deepcopy(copied)(x), copied(x), 0.0)
    assert not copy.deepcopy(copied).weight.is_set_to(copied.weight)
