"""Log-determinants of one part of a batch stand for all of it."""

import itertools

import pytest
import torch
from laws import CONTRACTIONS, close, contraction, randn
from torch import nn

import iresnet as ir
from iresnet.bijections import logdet_of_one_part, part
from iresnet.bijections.memory import MEMORY
from iresnet.config import TaskConfig
from iresnet.errors import IResNetError
from iresnet.training.task import Task

pytestmark = pytest.mark.usefixtures("default_device")

PARTS = (2, 3, 5)


def outcomes(run, n_parts, n_blocks=1):
    """What a function of no arguments gives for each choice of parts, which are equally likely."""
    for choice in itertools.product(range(n_parts), repeat=n_blocks):
        draws = iter(choice)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(part.torch, "randint", lambda high, size, draws=draws: torch.tensor(next(draws) % high))
            yield run()


def everything(module, x):
    """Value, log-determinants and all gradients, with weights of their own for the samples."""
    x = x.clone().requires_grad_()
    z, logdet = module.forward_and_logdet(x)
    loss = (torch.linspace(-1, 2, len(x), dtype=x.dtype) * logdet).sum() + z.pow(3).sum()
    grads = torch.autograd.grad(loss, [x, *module.parameters()], allow_unused=True, materialize_grads=True)
    return [z.detach(), logdet.detach(), *grads]


def mean(results):
    return [torch.stack(tensors).mean(0) for tensors in zip(*results, strict=True)]


@pytest.mark.parametrize("n_parts", PARTS)
@pytest.mark.parametrize("name", CONTRACTIONS)
def test_the_mean_over_the_choices_is_the_whole(name, n_parts):
    g, x = contraction(name)
    x = torch.cat([x, x + 0.1, x - 0.2])  # not divisible by all numbers of parts
    block = ir.ResidualBlock(g, logdet=ir.Exact())
    with logdet_of_one_part(block, n_parts):
        found = mean(outcomes(lambda: everything(block, x), n_parts))
    close(found, everything(block, x), 1e-9)


@pytest.mark.parametrize("memory", MEMORY)
def test_every_memory_gives_the_same(memory):
    block = ir.ResidualBlock(ir.networks.mlp(3, 8).double().eval(), logdet=ir.Exact(), memory=memory)
    x = randn(5, 3)
    with logdet_of_one_part(block, 2):
        found = mean(outcomes(lambda: everything(block, x), 2))
    close(found, everything(block, x), 1e-9)


def test_blocks_draw_parts_of_their_own():
    flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=4, actnorm=False, logdet=ir.Exact()).double().eval()
    x = randn(4, 2)
    with logdet_of_one_part(flow, 2):
        found = list(outcomes(lambda: everything(flow.bijection, x), 2, n_blocks=2))
    assert len({tuple(logdet.tolist()) for _, logdet, *_ in found}) == 4
    close(mean(found), everything(flow.bijection, x), 1e-9)


def test_the_batch_mean_is_that_of_the_part():
    block = ir.ResidualBlock(ir.networks.mlp(2, 8).eval(), logdet=ir.Exact())
    x = torch.randn(6, 2)
    whole = block.forward_and_logdet(x)[1]
    with logdet_of_one_part(block, 3):
        means = [logdet.mean() for _, logdet in outcomes(lambda: block.forward_and_logdet(x), 3)]
    close(torch.stack(means), whole.view(3, 2).mean(1), 1e-6)


def test_a_batch_of_less_than_one_a_part_is_not_divided():
    block = ir.ResidualBlock(ir.networks.mlp(2, 8).eval(), logdet=ir.Exact())
    x = torch.randn(2, 2)
    with logdet_of_one_part(block, 3):
        close(block.forward_and_logdet(x)[1], block.forward_and_logdet(x)[1])
        assert bool((block.forward_and_logdet(x)[1] != 0).all())


def test_the_whole_batch_takes_no_random_numbers_and_no_copy():
    block = ir.ResidualBlock(ir.networks.mlp(2, 8).eval(), logdet=ir.Exact())
    whole = torch.randn(4, 2), torch.randn(4)
    before = torch.get_rng_state()
    block.forward_and_logdet(torch.ones(4, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert part.one_part(lambda x: x, lambda x: whole, torch.ones(4, 2), 1) is whole


def test_it_ends_with_the_context_also_after_an_error():
    block = ir.ResidualBlock(ir.networks.mlp(2, 8).eval(), logdet=ir.Exact())
    with pytest.raises(IResNetError), logdet_of_one_part(nn.Sequential(block), 2):
        block.forward_and_logdet(torch.randn(4, 3))
    assert bool((block.forward_and_logdet(torch.randn(4, 2))[1] != 0).all())


@torch.no_grad()
def test_a_task_divides_batches_in_training_only():
    flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=4, logdet=ir.Exact())
    task, x = Task(flow, TaskConfig(), levels=None, logdet_parts=2), torch.randn(8, 2)
    task(x, None)  # sets the ActNorms
    drawn = {float(bits) for bits in (task.train()(x, None)[0] for _ in range(20))}
    assert len(drawn) == 4  # two choices in each of two blocks
    assert len({float(task.eval()(x, None)[0]) for _ in range(20)}) == 1
