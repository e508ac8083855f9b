"""Compiled blocks compute what uncompiled ones do."""

import shutil
from copy import deepcopy

import pytest
import torch
from laws import close

import iresnet as ir
from iresnet.bijections.memory import compiled
from iresnet.bijections.residual import RandomChunk


@pytest.fixture
def _compiled_quickly(monkeypatch):
    """Code without vectors compiles in a third of the time."""
    monkeypatch.setattr("torch._inductor.config.cpp.simdlen", 1)
    monkeypatch.setattr("torch._inductor.config.cpp_cache_precompile_headers", True)
    yield
    compiled.cache_clear()


needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


def few_to_many():
    """A block whose convolutions lead from few channels to many and back."""
    layers = [ir.LipschitzConv2d(*channels, 3, 0.9, image_size=(3, 3)) for channels in ((2, 9), (9, 2))]
    return ir.ResidualBlock(torch.nn.Sequential(layers[0], ir.activations.make_activation("elu"), layers[1]))


def loss_and_gradients(chain, x, logdet):
    torch.manual_seed(1)
    z, total = chain.forward_and_logdet(x, logdet=logdet)
    weights = torch.linspace(0.5, 2, len(x), dtype=x.dtype)
    value = (weights * (total - z.flatten(1).square().sum(1))).sum() + chain(x).sin().sum()
    return [z, total, *torch.autograd.grad(value, [x, *chain.parameters()])]


@needs_compiler
def test_a_compiled_block_gives_the_same_values_and_gradients():
    """From two graphs, without and with the log-determinant, neither of them broken, and few channels among many."""
    chain = ir.Chain([few_to_many()]).double()
    for parameter in chain.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # biases too
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    twin = deepcopy(chain)
    for block in twin.bijections:
        block.compile()
    counters = torch._dynamo.utils.counters
    counters.clear()
    expected, actual = (loss_and_gradients(c, x, ir.Krylov(2)) for c in (chain, twin))
    close(actual, expected, 1e-10)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2
    with torch.no_grad():  # uncompiled
        close(twin(x), chain(x), 1e-12)
    assert counters["stats"]["unique_graphs"] == 2
    assert deepcopy(twin).bijections[0]._compiled


@needs_compiler
@pytest.mark.slow
def test_chunks_of_a_batch_are_of_one_graph_wherever_they_lie_in_it():
    chain = ir.Chain([few_to_many()]).double()
    x, twin = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True), deepcopy(chain)
    twin.bijections[0].compile()
    graphs = set()
    for chosen in (0, 1):
        chunk = RandomChunk(ir.Krylov(2), 2, chosen=chosen)
        expected, actual = (loss_and_gradients(c, x, chunk) for c in (chain, twin))
        close(actual, expected, 1e-10)
        graphs.add(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(graphs) == 1


@needs_compiler
@pytest.mark.slow
def test_a_compiled_block_computes_its_products_in_bf16_where_autocast_does():
    block = ir.ResidualBlock(ir.networks.conv_bottleneck((2, 6, 6), 16))
    x, twin = torch.randn(4, 2, 6, 6, requires_grad=True), deepcopy(block)
    twin.compile()
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = (loss_and_gradients(b, x, ir.Krylov(2)) for b in (block, twin))
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        close(a.float(), e.float(), 0.05 * (1 + float(e.detach().abs().max())))
    assert not torch.equal(actual[0], twin.forward_and_logdet(x, logdet=ir.Krylov(2))[0])  # without autocast
    compiled.cache_clear()


def test_only_blocks_that_keep_their_graph_can_be_compiled():
    with pytest.raises(ValueError, match="need memory='keep', got 'early'"):
        ir.ResidualBlock(ir.networks.mlp(2, 4), memory="early").compile()
