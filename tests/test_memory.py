"""What blocks keep for backward: less, and the same gradients."""

import copy
import gc
import weakref

import pytest
import torch
from laws import CONTRACTIONS, close, contraction, randn
from torch import nn

import iresnet as ir
from iresnet.bijections.memory import MEMORY
from iresnet.errors import UnknownNameError
from iresnet.lipschitz import hold_weights
from iresnet.zoo import LOGDETS, make_logdet

pytestmark = pytest.mark.usefixtures("default_device")

SAVING = sorted(set(MEMORY) - {"keep"})
UPSTREAM = {
    "equal": lambda n: torch.full((n,), -0.7, dtype=torch.float64),
    "of their own": lambda n: torch.linspace(-1, 2, n, dtype=torch.float64),
    "zero but one": lambda n: torch.eye(n, dtype=torch.float64)[0],
}


def everything(block, memory, weigh, x):
    """Value, log-determinant and all gradients of a block with this memory."""
    block = copy.deepcopy(block)
    block.memory = memory
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    z, logdet = block.forward_and_logdet(x)
    loss = (weigh(len(x)) * logdet).sum() + z.pow(3).sum()
    grads = torch.autograd.grad(loss, [x, *block.parameters()], allow_unused=True, materialize_grads=True)
    return [z.detach(), logdet.detach(), *grads, *block.buffers()]


@pytest.mark.parametrize("upstream", UPSTREAM)
@pytest.mark.parametrize("logdet", LOGDETS)
@pytest.mark.parametrize("memory", SAVING)
def test_every_estimator_has_the_gradients_of_the_kept_graph(memory, logdet, upstream):
    g = ir.networks.conv_bottleneck((2, 3, 4), 4).double()
    block = ir.ResidualBlock(g, logdet=make_logdet(logdet))
    x = randn(5, 2, 3, 4)
    expected = everything(block, "keep", UPSTREAM[upstream], x)
    close(everything(block, memory, UPSTREAM[upstream], x), expected, 1e-11)


@pytest.mark.parametrize("name", CONTRACTIONS)
@pytest.mark.parametrize("memory", SAVING)
def test_every_map_has_the_gradients_of_the_kept_graph(memory, name):
    g, x = contraction(name)
    block = ir.ResidualBlock(g.train(), logdet=ir.Krylov(2, n_probes=2))
    close(
        everything(block, memory, UPSTREAM["of their own"], x),
        everything(block, "keep", UPSTREAM["of their own"], x),
        1e-11,
    )


@pytest.mark.parametrize("memory", MEMORY)
def test_a_probe_from_a_generator_of_its_own_is_the_same_in_backward(memory):
    def gradient(memory):
        logdet = ir.Krylov(2, generator=torch.Generator().manual_seed(3))
        torch.manual_seed(0)
        block = ir.ResidualBlock(ir.networks.mlp(4, 8), logdet=logdet, memory=memory).double()
        x = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(block.forward_and_logdet(x)[1].sum(), x)[0]

    close(gradient(memory), gradient("keep"), 1e-12)


@pytest.mark.parametrize("memory", SAVING)
def test_without_gradients_there_is_nothing_to_free(memory):
    block = ir.ResidualBlock(ir.networks.mlp(4, 8), memory=memory).eval()
    with torch.no_grad():
        z, logdet = block.forward_and_logdet(torch.randn(3, 4))
    assert not z.requires_grad
    assert not logdet.requires_grad


@pytest.mark.parametrize("memory", SAVING)
def test_frozen_weights_still_give_the_gradient_of_the_data(memory):
    block = ir.ResidualBlock(ir.networks.mlp(4, 8).requires_grad_(False).double().eval(), logdet=ir.Exact())
    x = randn(3, 4)
    expected = everything_of_x(block, "keep", x)
    close(everything_of_x(block, memory, x), expected, 1e-12)


def everything_of_x(block, memory, x):
    block.memory = memory
    x = x.clone().requires_grad_()
    z, logdet = block.forward_and_logdet(x)
    return torch.autograd.grad((torch.arange(len(x)) * logdet).sum() + z.sum(), x)[0]


def test_the_plain_forward_recomputes_too():
    block = ir.ResidualBlock(ir.networks.mlp(4, 64).double().eval())
    x = randn(3, 4).requires_grad_()
    expected = torch.autograd.grad(block(x).pow(2).sum(), [x, *block.g.parameters()])
    kept = kept_numbers(lambda: block(x))
    block.memory = "recompute"
    assert kept_numbers(lambda: block(x)) < 0.5 * kept
    close(list(torch.autograd.grad(block(x).pow(2).sum(), [x, *block.g.parameters()])), list(expected), 1e-12)


def test_recomputing_in_train_mode_advances_the_power_iteration_once():
    blocks = {m: ir.ResidualBlock(ir.networks.mlp(4, 8), logdet=ir.Krylov(2)) for m in MEMORY}
    for memory, block in blocks.items():
        block.load_state_dict(blocks["keep"].state_dict())
        block.memory = memory
    x = torch.randn(3, 4)
    for block in blocks.values():
        sum(part.sum() for part in block.forward_and_logdet(x)).backward()
    for block in blocks.values():
        close(list(block.buffers()), list(blocks["keep"].buffers()), 0.0)


class Kept:
    """A tensor that a graph saved; counted while the graph lives."""

    def __init__(self, tensor):
        self.tensor = tensor


def kept_numbers(forward) -> int:
    """Numbers that the graph of what forward returns keeps, beside parameters."""
    live = weakref.WeakSet()

    def pack(tensor):
        kept = Kept(tensor)
        if not isinstance(tensor, nn.Parameter):
            live.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        result = forward()
    storages = {kept.tensor.untyped_storage().data_ptr(): kept.tensor.untyped_storage().nbytes() for kept in live}
    del result
    return sum(storages.values()) // 8


def test_each_option_keeps_less_and_none_keeps_more_for_more_steps():
    kept = {}
    for memory in MEMORY:
        for n_steps in (2, 6):
            g = ir.networks.conv_bottleneck((2, 8, 8), 16).double()
            block = ir.ResidualBlock(g, logdet=ir.Krylov(n_steps), memory=memory)
            x = randn(16, 2, 8, 8).requires_grad_()
            kept[memory, n_steps] = kept_numbers(lambda block=block, x=x: block.forward_and_logdet(x))
    assert kept["recompute", 2] < 0.5 * kept["early", 2] < 0.4 * kept["keep", 2]
    for memory in MEMORY:
        assert kept[memory, 6] == kept[memory, 2]


def live_bytes() -> int:
    """Of the tensors that Python objects hold, such as closures; what autograd saves is not among them."""
    gc.collect()
    # Those that a compiler left behind have no memory.
    kinds = (torch.Tensor, torch.nn.Parameter)
    tensors = [t for t in gc.get_objects() if type(t) in kinds and not torch._is_functional_tensor(t)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("logdet", [ir.Krylov(3), ir.PowerSeries(3), ir.RussianRoulette()])
def test_what_is_recomputed_is_not_held_by_a_closure(logdet):
    block = ir.ResidualBlock(ir.networks.conv_bottleneck((1, 4, 4), 512), logdet=logdet, memory="recompute")
    x = torch.randn(512, 1, 4, 4, requires_grad=True)
    with hold_weights(block):
        before = live_bytes()
        z, total = block.forward_and_logdet(x)
        kept = live_bytes() - before
    hidden = 512 * x.nbytes
    assert kept < hidden / 2, (kept, hidden)
    assert z.requires_grad
    assert total.requires_grad


def test_an_unknown_memory_is_named():
    with pytest.raises(UnknownNameError, match="recompute"):
        ir.ResidualBlock(ir.networks.mlp(2, 4), memory="recomputed")
