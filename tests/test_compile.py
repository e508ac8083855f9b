"""Compiled blocks compute what uncompiled ones do."""

import shutil
from copy import deepcopy

import pytest
import torch
from laws import close

import iresnet as ir
from iresnet.bijections.memory import compiled

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


def loss_and_gradients(chain, x, logdet):
    torch.manual_seed(1)
    z, total = chain.forward_and_logdet(x, logdet=logdet)
    weights = torch.linspace(0.5, 2, len(x), dtype=x.dtype)
    value = (weights * (total - z.flatten(1).square().sum(1))).sum() + chain(x).sin().sum()
    return [z, total, *torch.autograd.grad(value, [x, *chain.parameters()])]


@needs_compiler
def test_a_compiled_block_gives_the_same_values_and_gradients():
    """From two graphs, without and with the log-determinant, neither of them broken."""
    chain = ir.Chain([ir.ResidualBlock(ir.networks.conv_bottleneck((2, 6, 6), 4)) for _ in range(2)])
    x = torch.randn(3, 2, 6, 6, requires_grad=True)
    twin = deepcopy(chain)
    for block in twin.bijections:
        block.compile()
    counters = torch._dynamo.utils.counters
    counters.clear()
    expected, actual = (loss_and_gradients(c, x, ir.Krylov(2)) for c in (chain, twin))
    close(actual, expected, 1e-4)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 4
    with torch.no_grad():  # uncompiled
        close(twin(x), chain(x), 1e-5)
    assert counters["stats"]["unique_graphs"] == 4
    assert deepcopy(twin).bijections[0]._compiled
    compiled.cache_clear()


def test_only_blocks_that_keep_their_graph_can_be_compiled():
    with pytest.raises(ValueError, match="need memory='keep', got 'early'"):
        ir.ResidualBlock(ir.networks.mlp(2, 4), memory="early").compile()
