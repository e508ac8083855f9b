"""The baselines of the benchmarks compute what they should: a comparison with a wrong one would flatter."""

import importlib.util
import sys
from pathlib import Path

import baselines
import contenders
import marks
import pytest
import torch
from laws import close, dense_jacobian, gradients, norm, within_4_errors
from speed_cases import STEPS

import iresnet as ir
from iresnet import activations, operators
from iresnet.networks import conv_bottleneck

needs_normflows = pytest.mark.skipif(importlib.util.find_spec("normflows") is None, reason="needs normflows")
NORMFLOWS = pytest.param("normflows", marks=needs_normflows)

SHAPE = (2, 4, 4)
SWAPS = {
    "2019": baselines.Block2019,
    "plain": baselines.PlainBlock,
    "normflows": lambda g: baselines.NormflowsBlock(g, carry=True, tol=1e-6),
}


@pytest.fixture
def ours():
    """A sealed block with weights at their constraint, of single precision as all of normflows is."""
    block = ir.ResidualBlock(conv_bottleneck(SHAPE, 8))
    for parameter in block.parameters():
        parameter.data *= 5
    ir.seal(block.eval())
    return block


@pytest.fixture
def slow():
    """The map g(x) = -0.9 x, whose series and inverse converge slowly."""
    conv = baselines.Conv(torch.full((1, 1, 1, 1), -0.9), torch.zeros(1), (3, 3))
    return baselines.Bottleneck((conv,), preactivation=False)


def swapped(block, name):
    return baselines.swap_blocks(torch.nn.Sequential(block), SWAPS[name])[0]


@pytest.mark.parametrize("name", ["2019", "plain", NORMFLOWS])
def test_a_block_of_a_baseline_computes_the_same_map(ours, name):
    x = torch.randn(3, *SHAPE)
    block = swapped(ours, name)
    assert not isinstance(block, ir.ResidualBlock)
    close(block(x), ours(x), 1e-6)


@pytest.mark.parametrize("name", ["2019", NORMFLOWS])
def test_the_inverse_of_a_baseline_inverts(ours, name):
    x = torch.randn(3, *SHAPE)
    chain = ir.Chain([swapped(ours, name)])  # in the place of a residual block
    close(chain.inverse(chain.forward_and_logdet(x)[0]), x, 1e-5)


def test_the_estimator_of_2019_and_its_gradient_have_the_mean_of_the_dense_series(ours):
    x = torch.randn(1, *SHAPE, dtype=torch.float64, requires_grad=True)
    block = swapped(ours, "2019").double()
    J = dense_jacobian(block.g, x)[0]
    series = sum((-1) ** (k + 1) / k * torch.linalg.matrix_power(J, k).trace() for k in range(1, 6))
    copies = x.detach().expand(4000, -1, -1, -1).clone().requires_grad_()
    estimates = block.forward_and_logdet(copies)[1]
    within_4_errors(estimates.detach(), series.detach())
    within_4_errors(*gradients(estimates.sum(), [copies]), *gradients(series, [x]))


def test_2019_takes_five_terms_and_a_hundred_steps(slow):
    x, block = torch.ones(2, 1, 3, 3), baselines.Block2019(slow)
    torch.manual_seed(1)
    estimate = block.forward_and_logdet(x)[1]
    torch.manual_seed(1)
    square = torch.randn_like(x).flatten(1).square().sum(1)
    close(estimate, -sum(0.9**k / k for k in range(1, 6)) * square, 1e-5)
    close(block.inverse(x), (1 - 0.9**101) / 0.1 * x, 1e-5)


@needs_normflows
def test_normflows_solves_to_the_tolerance_that_is_asked_for(slow):
    z, block = torch.ones(2, 1, 3, 3), baselines.NormflowsBlock(slow, carry=True, tol=1e-4)
    residual = float((block(block.inverse(z)) - z).detach().abs().max())
    assert 1e-5 < residual <= 1e-4


def test_the_constraint_of_2019_holds_the_norm_of_the_operator():
    shape = (2, 5, 6)
    conv = baselines.Conv(torch.randn(3, 2, 3, 3), torch.zeros(3), shape[1:])
    layer = baselines.SpectralConv2d(conv, coeff=0.7)
    x = torch.randn(1, *shape)
    for _ in range(100):
        layer(x)
    assert norm(layer.eval(), x) == pytest.approx(0.7, rel=1e-4)


@pytest.fixture(scope="module")
def gpu():
    """The script of that name beside the baselines; there is another one here."""
    spec = importlib.util.spec_from_file_location("gpu_benchmark", Path(baselines.__file__).parent / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", ["density", marks.slow("classification")])
def test_what_a_gpu_would_launch_is_counted_anywhere(case, gpu, monkeypatch):
    """And that the host waits for nothing; what is patched for the count is put back."""
    few = {name: gpu.CONTENDERS[case][name] for name in ("iresnet", "2019", "plain")}
    monkeypatch.setattr(gpu, "CONTENDERS", {case: few})
    before = operators.FEW, activations._elu
    rows = {row["contender"]: row for row in gpu.counted(gpu.SMALL)}
    assert (operators.FEW, activations._elu) == before
    assert rows["iresnet"]["waits"] == 0
    assert rows["plain"]["kernels"] < rows["iresnet"]["kernels"] < 0.6 * rows["2019"]["kernels"]


def test_tables_of_a_gpu_are_made_of_what_was_measured(gpu):
    assert gpu.goal_table({}) == "Not measured: no GPU was at hand."
    row = {"events": [0.1, 0.2], "wall": [0.1, 0.3], "kernels": 1000, "busy": 0.05, "waits": 0, "memory": 2**30}
    cases = {case: {"rows": [{"contender": name, **row} for name in makes]} for case, makes in gpu.CONTENDERS.items()}
    device = {"name": "NVIDIA H200 (cuda:0)", "torch": "2.11", "date": "2026"}
    text = gpu.goal_table({**cases, "device": device, "start": {"seconds": 4.0}})
    assert "| density step: 2019 as run / iresnet | at least 6 | 10 | 1.00 |" in text
    assert "| 64 inverses: 2019 / iresnet | at least 6 | 12 | not measured |" in text
    assert "| density | iresnet, bf16 | 150 | 200 | 1,000 | 50.0 | 0 | 1.00 |" in text


@pytest.mark.parametrize("setting", STEPS.values(), ids=STEPS)
def test_the_blocks_of_the_main_settings_can_be_swapped(setting):
    """Also when their recipes change."""
    blocks = [type(module) for module in contenders.baseline(setting, "2019").task.modules()]
    assert baselines.Block2019 in blocks
    assert ir.ResidualBlock not in blocks
