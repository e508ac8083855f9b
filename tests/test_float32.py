"""What runs in float32 proper does so under every setting of torch: inverses, sums, small systems."""

import threading

import pytest
import torch
from laws import trained_like
from pretend import round_to_tf32
from torch.utils._python_dispatch import TorchDispatchMode

import iresnet as ir
from iresnet.errors import ConvergenceWarning, UnknownNameError
from iresnet.precision import use_precision

pytestmark = pytest.mark.usefixtures("default_device")


# -- the policy ------------------------------------------------------------------------------------------------------

NEWER = hasattr(torch._C, "_get_fp32_precision_getter")
KEYS = [("generic", "all"), ("cuda", "all"), ("cuda", "conv"), ("cuda", "rnn"), ("cuda", "matmul")]
KEYS += [("mkldnn", "all"), ("mkldnn", "conv"), ("mkldnn", "matmul")]


def readable(read):
    try:
        return read()
    except RuntimeError:  # settings that contradict each other, which torch refuses to read
        return "contradictory"


def torch_settings():
    newer = {key: torch._C._get_fp32_precision_getter(*key) for key in KEYS} if NEWER else {}
    return newer | {
        "matmul": readable(torch.get_float32_matmul_precision),
        "cudnn": readable(lambda: torch.backends.cudnn.allow_tf32),
        "cublas": readable(lambda: torch.backends.cuda.matmul.allow_tf32),
    }


@pytest.fixture
def clean_settings():
    """The settings of a new process, before and after a test that changes them."""

    def reset():
        for key in KEYS if NEWER else ():
            torch._C._set_fp32_precision_setter(*key, "none")
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = True
        for key in (("cuda", "matmul"), ("mkldnn", "matmul")) if NEWER else ():
            torch._C._set_fp32_precision_setter(*key, "none")

    reset()
    yield
    reset()


WAYS = {
    "nothing": lambda: None,
    "older, no convolutions": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "older, products": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
}
if NEWER:
    WAYS |= {
        "newer, no convolutions": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
        "newer, products": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        "newer, everything": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
        "newer, convolutions of the CPU": lambda: setattr(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
    }
CONTRADICTORY = {"older, no convolutions", "newer, everything"}  # which torch refuses to read before and after


@pytest.mark.usefixtures("clean_settings")
@pytest.mark.parametrize("name", ["float32", "tf32"])
@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
def test_settings_of_torch_are_consistent_inside_and_put_back(first, second, name):
    WAYS[first]()
    WAYS[second]()
    before = torch_settings()
    with use_precision(name, "cuda"), use_precision(name, "cpu"):
        inside = torch_settings()
    assert inside["matmul"] == "highest"
    assert (inside["cudnn"], inside["cublas"]) == (name == "tf32", False)
    if NEWER:
        assert (inside["cuda", "conv"] == "tf32") == (name == "tf32")
        assert {inside["cuda", "matmul"], inside["mkldnn", "matmul"], inside["mkldnn", "conv"]} <= {"ieee", "none"}
    after = torch_settings()
    if {first, second} == CONTRADICTORY:
        before.pop("cudnn"), after.pop("cudnn")
    assert after == before


def tf32_allowed():
    return readable(lambda: torch.backends.cudnn.allow_tf32)


@pytest.mark.usefixtures("clean_settings")
def test_of_several_threads_the_most_precise_wins():
    entered, leave = threading.Event(), threading.Event()

    def other():
        with use_precision("float32", "cuda"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with use_precision("tf32", "cuda"):
        assert tf32_allowed() is True
        thread.start()
        entered.wait(10)
        assert tf32_allowed() is False
        leave.set()
        thread.join()
        assert tf32_allowed() is True
    assert tf32_allowed() is True  # as torch begins


@pytest.mark.usefixtures("clean_settings")
def test_precisions_nest():
    torch.backends.cudnn.allow_tf32 = False
    with use_precision("tf32", "cuda"):
        with use_precision("float32", "cuda"):
            assert tf32_allowed() is False
        assert tf32_allowed() is True
        with pytest.raises(ZeroDivisionError), use_precision("float32", "cuda"):
            raise ZeroDivisionError
        assert tf32_allowed() is True
    assert tf32_allowed() is False


def test_an_unknown_precision_is_refused():
    with pytest.raises(UnknownNameError, match="unknown precision"), use_precision("float16", "cpu"):
        pass


@pytest.mark.parametrize("solver", [ir.Anderson(), ir.FixedPointIteration(), ir.NewtonKrylov()], ids=repr)
def test_a_decoder_is_that_of_single_precision_under_autocast(solver, device):
    block = ir.ResidualBlock(trained_like((4, 8, 8), 16), solver=solver)
    z = torch.randn(3, 4, 8, 8)
    expected = block.inverse(z)
    with torch.autocast(device, torch.bfloat16):
        x = block.inverse(z)
        z_rounded = block(x)
        back = block.inverse(z_rounded.bfloat16())
    assert torch.equal(x, expected)
    assert (x.dtype, back.dtype) == (torch.float32, torch.float32)
    assert bool((block(x) - z).abs().max() < 1e-4)


def test_the_gradient_of_a_decoder_is_that_of_single_precision_under_autocast(device):
    block = ir.ResidualBlock(trained_like((4, 8, 8), 16))
    z, found = torch.randn(3, 4, 8, 8), []
    for enabled in (False, True):
        leaf = z.clone().requires_grad_()
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            found.append(torch.autograd.grad(block.inverse(leaf).square().sum(), leaf)[0])
    assert bool((found[0] - found[1]).norm() <= 1e-5 * found[0].norm())


@pytest.mark.parametrize("estimator", [ir.Exact(), ir.Krylov(4), ir.Krylov(tol=1e-3)], ids=repr)
def test_sums_and_small_systems_run_in_single_precision_under_autocast(estimator, device):
    block = ir.ResidualBlock(trained_like((4, 4, 4), 8), logdet=estimator)
    x = torch.randn(2, 4, 4, 4)
    with Types() as types, torch.autocast(device, torch.bfloat16):
        block.forward_and_logdet(x)
    assert torch.bfloat16 in types.found["convolution"]
    for operation, dtypes in types.found.items():
        if operation in ("bmm", "linalg_solve_ex", "_linalg_solve_ex", "_linalg_slogdet", "linalg_vector_norm", "sum"):
            assert dtypes == {torch.float32}, operation


class Types(TorchDispatchMode):
    """Notes the types of the first tensor of each operation."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, function, _, args=(), kwargs=None):
        first = next((a for a in args if torch.is_tensor(a) and a.is_floating_point()), None)
        if first is not None:
            self.found.setdefault(function._schema.name.split("::")[1], set()).add(first.dtype)
        return function(*args, **(kwargs or {}))


# -- a map that rounds ------------------------------------------------------------------------------------------------


class Rounding(torch.nn.Module):
    """Rounds to 10 bits of mantissa, as TF32 does with the factors of products, whatever is asked for."""

    def forward(self, x):
        return round_to_tf32(x)


def rounding(g):
    """The same map, whose layers see rounded images."""
    return torch.nn.Sequential(*(part for layer in g for part in (Rounding(), layer)))


@pytest.mark.parametrize("solver", [ir.Anderson(), ir.FixedPointIteration(), ir.NewtonKrylov(max_steps=40)], ids=repr)
def test_a_solver_that_meets_the_rounding_of_the_map_says_so(solver):
    """That is what a GPU's convolutions do by default: a fixed-point iteration cannot settle below the rounding."""
    g = trained_like((8, 16, 16), 64)
    block = ir.ResidualBlock(rounding(g), solver=solver)
    z = 3 * torch.randn(2, 8, 16, 16)
    with pytest.warns(ConvergenceWarning, match="as in TF32 or bf16.*docs/precision.md") as caught:
        block.inverse(z)
    assert "Seal" not in str(caught[0].message)
    solution = block.solve(z, lipschitz=0.9)
    assert not bool(solution.converged.any())
    assert bool(solution.stagnated.all())
    exact = ir.ResidualBlock(g, solver=solver).solve(z, lipschitz=0.9)
    assert bool(exact.converged.all())
    assert not bool(exact.stagnated.any())


def test_a_tolerance_below_rounding_is_told_apart_from_a_map_that_rounds():
    block = ir.ResidualBlock(trained_like((4, 8, 8), 32), solver=ir.Anderson(atol=1e-12, rtol=0.0))
    with pytest.warns(ConvergenceWarning, match="Raise atol=1e-12, or compute in float64"):
        block.inverse(3 * torch.randn(8, 4, 8, 8))


def test_a_map_that_does_not_contract_is_not_taken_for_one_that_rounds():
    block = ir.ResidualBlock(torch.nn.Linear(4, 4).requires_grad_(False), solver=ir.FixedPointIteration())
    torch.nn.init.eye_(block.g.weight).mul_(-1.1)
    with pytest.warns(ConvergenceWarning, match="Seal the model"):
        block.inverse(torch.randn(3, 4))


@pytest.mark.parametrize("rate", [0.97, 0.999])
def test_a_slow_contraction_is_not_taken_for_rounding(rate):
    """0.97^200 is 2e-3: it falls a hundredfold, and never stands still; 0.999^200 is 0.8: it has hardly fallen."""
    solution = ir.FixedPointIteration(max_steps=200).solve(lambda x, active: rate * x, torch.ones(2, 3))
    assert not bool(solution.converged.any() | solution.stagnated.any())
