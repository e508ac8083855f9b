"""Convolutions to few channels, several pixels at a time, are the convolutions that torch computes."""

import pytest
import torch
import torch.nn.functional as F
from laws import close, gradients, randn
from torch.autograd import gradcheck, gradgradcheck

from iresnet.narrow import is_narrow, narrow_conv, one_pixel_at_a_time
from iresnet.operators import same_conv

# kernel (out, in, k), image (H, W), and whether several pixels are computed at a time
CASES = {
    "sixteen pixels": ((1, 16, 3), (4, 8), True),
    "four pixels, one channel": ((1, 17, 3), (6, 4), True),
    "four pixels": ((4, 16, 3), (2, 4), True),
    "three channels": ((3, 18, 5), (4, 4), True),
    "from few": ((16, 2, 3), (4, 6), True),
    "five channels": ((5, 16, 3), (4, 4), False),
    "odd image": ((2, 16, 3), (4, 5), False),
    "even kernel": ((2, 16, 2), (4, 4), False),
    "one pixel": ((2, 16, 1), (4, 4), False),
    "few to few": ((2, 4, 3), (4, 4), False),
}


def case(name):
    (out, fan_in, k), size, _ = CASES[name]
    return randn(3, fan_in, *size).requires_grad_(), randn(out, fan_in, k, k).requires_grad_(), randn(out)


@pytest.mark.parametrize("name", CASES)
def test_only_what_gains_is_narrow(name):
    x, weight, _ = case(name)
    assert is_narrow(x, weight) == CASES[name][2]
    assert not is_narrow(x[:1], weight)  # a single image is not worth the trouble
    with one_pixel_at_a_time():
        assert not is_narrow(x, weight)
    assert is_narrow(x, weight) == CASES[name][2]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", [name for name in CASES if name != "even kernel"])
def test_values_and_gradients_are_those_of_torch(name, with_bias):
    x, weight, bias = case(name)
    inputs = [x, weight, *([bias.requires_grad_()] if with_bias else [])]
    results = []
    for conv in (narrow_conv, lambda *inputs: F.conv2d(*inputs, padding="same")):
        y = conv(*inputs)
        results.append([y, *gradients((y.sin() * y).sum(), inputs)])
    close(results[0], results[1], 1e-11)


@pytest.mark.parametrize("kernel", [(1, 2, 3), (2, 1, 3)])
def test_derivatives_of_both_orders_and_modes_agree(kernel, monkeypatch):
    monkeypatch.setattr("iresnet.narrow.LANES", 4)
    out, fan_in, k = kernel
    inputs = tuple(t.requires_grad_() for t in (randn(2, fan_in, 2, 4), randn(out, fan_in, k, k), randn(out)))
    assert gradcheck(narrow_conv, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(narrow_conv, inputs)


def test_it_maps_over_probes():
    x, weight, _ = case("four pixels")
    xs = torch.stack([x, 2 * x, x - 1])
    expected = torch.stack([F.conv2d(x, weight, padding=1) for x in xs])
    close(torch.vmap(lambda x: narrow_conv(x, weight))(xs), expected)


@pytest.mark.parametrize("name", ["four pixels", "from few"])
def test_autocast_takes_the_products_in_bfloat16_and_the_gradients_back(name):
    x, weight, bias = (t.detach().float().requires_grad_() for t in case(name))
    with torch.autocast("cpu", torch.bfloat16):
        y = same_conv(x, weight, bias)
    assert y.dtype == torch.bfloat16
    exact = F.conv2d(x, weight, bias, padding=1)
    close(y.float(), exact, 0.05)
    for found, expected in zip(
        gradients(y.float().square().sum(), [x, weight, bias]),
        gradients(exact.square().sum(), [x, weight, bias]),
        strict=True,
    ):
        assert found.dtype == torch.float32
        assert bool((found - expected).norm() < 0.02 * expected.norm())


def test_autocast_leaves_double_precision_alone():
    x, weight, bias = case("four pixels")
    with torch.autocast("cpu", torch.bfloat16):
        assert same_conv(x, weight, bias).dtype == torch.float64
