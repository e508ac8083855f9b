"""Log-determinants of a random chunk of a batch have the expectation of those of all of it."""

import itertools

import pytest
import torch
from laws import CONTRACTIONS, close, contraction, randn

import iresnet as ir
from iresnet.bijections import RandomChunk, residual
from iresnet.bijections.memory import MEMORY
from iresnet.config import TaskConfig
from iresnet.training.task import Task

pytestmark = pytest.mark.usefixtures("default_device")

CHUNKS = (2, 3, 5)


def outcomes(run, n_chunks, n_blocks=1):
    """What a function of no arguments gives for each choice of chunks, which are equally likely."""
    for choice in itertools.product(range(n_chunks), repeat=n_blocks):
        draws = iter(choice)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(residual.torch, "randint", lambda high, size, draws=draws: torch.tensor(next(draws) % high))
            yield run()


def everything(module, x, logdet=None):
    """Value, log-determinants and all gradients, with weights of their own for the samples."""
    x = x.clone().requires_grad_()
    z, value = module.forward_and_logdet(x, logdet=logdet)
    loss = (torch.linspace(-1, 2, len(x), dtype=x.dtype) * value).sum() + z.pow(3).sum()
    grads = torch.autograd.grad(loss, [x, *module.parameters()], allow_unused=True, materialize_grads=True)
    return [z.detach(), value.detach(), *grads]


def mean(results):
    return [torch.stack(tensors).mean(0) for tensors in zip(*results, strict=True)]


@pytest.mark.parametrize("n_chunks", CHUNKS)
@pytest.mark.parametrize("name", CONTRACTIONS)
def test_the_mean_over_the_choices_is_the_whole(name, n_chunks):
    g, x = contraction(name)
    x = torch.cat([x, x + 0.1, x - 0.2])  # not divisible by all numbers of chunks
    block = ir.ResidualBlock(g, logdet=ir.Exact())
    chunk = RandomChunk(ir.Exact(), n_chunks)
    found = mean(outcomes(lambda: everything(block, x, chunk), n_chunks))
    close(found, everything(block, x), 1e-9)


@pytest.mark.parametrize("memory", MEMORY)
def test_every_memory_gives_the_same(memory):
    block = ir.ResidualBlock(ir.networks.mlp(3, 8).double().eval(), logdet=ir.Exact(), memory=memory)
    x = randn(5, 3)
    found = mean(outcomes(lambda: everything(block, x, RandomChunk(ir.Exact(), 2)), 2))
    close(found, everything(block, x), 1e-9)


def test_blocks_draw_chunks_of_their_own():
    flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=4, actnorm=False, logdet=ir.Exact()).double().eval()
    x = randn(4, 2)
    chunk = RandomChunk(ir.Exact(), 2)
    found = list(outcomes(lambda: everything(flow.bijection, x, chunk), 2, n_blocks=2))
    assert len({tuple(logdet.tolist()) for _, logdet, *_ in found}) == 4
    close(mean(found), everything(flow.bijection, x), 1e-9)


def test_the_batch_mean_is_that_of_the_chunk():
    block = ir.ResidualBlock(ir.networks.mlp(2, 8).eval(), logdet=ir.Exact())
    x = torch.randn(6, 2)
    whole = block.forward_and_logdet(x)[1]
    chunk = RandomChunk(ir.Exact(), 3)
    means = [logdet.mean() for _, logdet in outcomes(lambda: block.forward_and_logdet(x, logdet=chunk), 3)]
    close(torch.stack(means), whole.view(3, 2).mean(1), 1e-6)


def test_a_batch_of_less_than_one_a_chunk_is_not_divided():
    block = ir.ResidualBlock(ir.networks.mlp(2, 8).eval(), logdet=ir.Exact())
    x = torch.randn(2, 2)
    whole = block.forward_and_logdet(x)[1]
    close(block.forward_and_logdet(x, logdet=RandomChunk(ir.Exact(), 3))[1], whole)


def test_one_chunk_takes_no_random_numbers():
    block = ir.ResidualBlock(ir.networks.mlp(2, 8).eval(), logdet=ir.Exact())
    before = torch.get_rng_state()
    block.forward_and_logdet(torch.ones(4, 2), logdet=RandomChunk(ir.Exact(), 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_estimators_can_be_given_to_each_block():
    flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=4, actnorm=False, logdet=ir.Exact()).double().eval()
    first, second = (m for m in flow.modules() if isinstance(m, ir.ResidualBlock))
    x = randn(4, 2)
    z, logdet = flow.bijection.forward_and_logdet(x, logdet={first: ir.PowerSeries(1, probe="fixed")})
    middle, estimated = first.forward_and_logdet(x, logdet=ir.PowerSeries(1, probe="fixed"))
    close(logdet, estimated + second.forward_and_logdet(middle)[1])
    close(z, flow.bijection(x))


@pytest.mark.parametrize("n_chunks", [2, 3])
def test_a_task_divides_batches_in_training_only_and_its_mean_over_rotations_is_the_whole(n_chunks):
    options = {"blocks": 3, "hidden": 4, "actnorm": False, "logdet": ir.Exact()}
    flow = ir.zoo.build("toy-mlp", shape=(2,), **options)
    x = torch.randn(7, 2)

    def gradients(task):
        task.zero_grad()
        loss, _ = task(x, None, iterate=False)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in task.parameters())]

    whole = gradients(Task(flow, TaskConfig(), levels=None).train())
    task = Task(flow, TaskConfig(), levels=None, logdet_chunks=n_chunks).train()
    rotated = []
    for first in range(len(x)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randint", lambda high, size, device, first=first: torch.tensor(first))
            rotated.append(gradients(task))
    assert len({float(loss) for loss, *_ in rotated}) == len(x)
    close(mean(rotated), whole, 1e-5)
    close(gradients(task.eval()), whole, 1e-5)


def test_labels_are_rotated_with_their_examples():
    task = Task(torch.nn.Identity(), TaskConfig(), levels=None, logdet_chunks=2)
    x, y = torch.arange(5.0)[:, None], torch.arange(5)
    orders = set()
    for _ in range(50):
        rotated, labels = task._rotated(x, y)
        assert torch.equal(rotated[:, 0].long(), labels)
        orders.add(tuple(labels.tolist()))
    assert len(orders) == 5


def test_a_chosen_chunk_stands_for_the_batch_by_its_size():
    block = ir.ResidualBlock(ir.networks.mlp(2, 8).eval(), logdet=ir.Exact())
    x = torch.randn(7, 2)
    whole = block.forward_and_logdet(x)[1]
    for chosen, rows in enumerate((slice(0, 3), slice(3, 5), slice(5, 7))):
        found = block.forward_and_logdet(x, logdet=RandomChunk(ir.Exact(), 3, chosen=chosen))[1]
        expected = torch.zeros(7)
        expected[rows] = 7 / (rows.stop - rows.start) * whole[rows]
        close(found, expected, 1e-6)


@pytest.mark.parametrize(
    ("estimator", "n_chunks", "expected"),
    [
        (ir.Exact(), 0, "n_chunks must be an integer of at least 1, got 0"),
        (ir.Exact(), 2.5, "n_chunks must be an integer of at least 1, got 2.5"),
        ("exact", 2, "a log-determinant is computed by an object such as logdet=ir.Exact\\(\\), got 'exact'"),
    ],
)
def test_refused(estimator, n_chunks, expected):
    with pytest.raises(ir.errors.IResNetError, match=expected):
        RandomChunk(estimator, n_chunks)


def test_a_chunk_that_is_not_there_is_refused():
    with pytest.raises(ir.errors.IResNetError, match="from 0 to 1, got 2"):
        RandomChunk(ir.Exact(), 2, chosen=2)
