"""Convolutions from and to few channels on a CPU, as matrix products, against torch's: values and all derivatives."""

import math

import pytest
import torch
import torch.nn.functional as F
from laws import close, randn

from iresnet import operators
from iresnet.operators import channels_last, same_conv, same_conv_transpose

SHAPES = {
    "to few": (12, 3, 3, 3),
    "from few": (2, 16, 3, 3),
    "a wide kernel": (9, 1, 5, 3),
    "from one": (1, 9, 3, 5),
}
"""Channels from and to, and the sides of the kernel."""


def inputs(name, n=5, size=(6, 5)):
    fan_in, out, kh, kw = SHAPES[name]
    x, y = channels_last(randn(n, fan_in, *size)), channels_last(randn(n, out, *size))
    return (
        x.requires_grad_(),
        y.requires_grad_(),
        randn(out, fan_in, kh, kw).requires_grad_(),
        randn(out).requires_grad_(),
    )


def by_torch(x, weight, bias=None):
    return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


def transposed_by_torch(y, weight):
    return F.conv_transpose2d(y, weight, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


@pytest.fixture
def own(monkeypatch):
    """Convolutions that torch is asked for by the code under test."""
    asked = []
    for name in ("_conv", "_transpose"):
        original = getattr(operators, name)
        monkeypatch.setattr(operators, name, lambda *args, original=original: (asked.append(1), original(*args))[1])
    return asked


@pytest.mark.parametrize("name", SHAPES)
def test_values_and_derivatives_of_three_orders(name, own):
    x, y, weight, bias = inputs(name)

    def derivatives(conv, transpose):
        total = (
            (conv(x, weight, bias) * y).sum() + (transpose(y, weight) ** 2).sum() + (conv(x, weight, bias) ** 3).sum()
        )
        found, of = [total], [x, y, weight, bias]
        for _ in range(2):
            total = sum((grad**2).sum() for grad in torch.autograd.grad(total, of, create_graph=True))
            found.append(total)
        return [*found, *torch.autograd.grad(total, of, allow_unused=True, materialize_grads=True)]

    close(same_conv(x, weight, bias), by_torch(x, weight, bias))
    close(same_conv_transpose(y, weight), transposed_by_torch(y, weight))
    found, expected = derivatives(same_conv, same_conv_transpose), derivatives(by_torch, transposed_by_torch)
    for a, b in zip(found, expected, strict=True):
        close(a / b.abs().max(), b / b.abs().max(), 1e-9)
    assert own


@pytest.mark.parametrize("name", SHAPES)
def test_only_the_gradients_that_are_asked_for_are_there(name):
    for wanted in range(3):
        x, _, weight, bias = (t.detach() for t in inputs(name))
        of = (x, weight, bias)[wanted].requires_grad_()
        found, expected = (conv(x, weight, bias).sin().sum() for conv in (same_conv, by_torch))
        close(torch.autograd.grad(found, of)[0], torch.autograd.grad(expected, of)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layouts_and_precision(dtype):
    x, _, weight, _ = (t.detach().to(dtype) for t in inputs("to few", n=70, size=(16, 16)))
    found = same_conv(x, weight)
    assert found.is_contiguous(memory_format=torch.channels_last)
    close(found, by_torch(x.double(), weight.double()).to(dtype), 1e-4 if dtype == torch.float32 else 1e-10)
    close(same_conv(x.contiguous(), weight), found, 1e-5)


def test_what_is_left_to_torch(own):
    x, _, weight, _ = (t.detach() for t in inputs("to few"))
    same_conv(x[:1], weight)  # one image
    same_conv(x, weight[..., :1, :1])  # no neighbors
    same_conv(x, torch.cat([weight] * 3))  # not few
    same_conv(x, weight[..., :2, :2])  # an even kernel
    torch.vmap(lambda x: same_conv(x, weight))(x[:, None])
    torch.func.grad(lambda x: same_conv(x, weight).sum())(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert same_conv(x.float(), weight.float()).dtype == torch.bfloat16
    assert not own
    same_conv(x, weight)
    assert len(own) == 1


@pytest.mark.parametrize("kernel", [(3, 3), (2, 3), (5, 1), (4, 4)])
@pytest.mark.parametrize("size", [(5, 6), (1, 2)])
@pytest.mark.parametrize("recorded", [False, True])
def test_windows_are_added_up_as_torch_folds_them(kernel, size, recorded):
    columns = torch.randn(2, 3 * math.prod(kernel), math.prod(size), dtype=torch.float64)
    before = [(k - 1) // 2 for k in kernel]
    expected = operators._fold(columns, kernel, before, size)
    with torch.set_grad_enabled(recorded):
        close(operators._overlap(columns.clone(), kernel, before, size), expected, 1e-12)
