"""Mixed precision: the products run in bfloat16, and what is summed, solved and reported does not."""

import pytest
import torch
from marks import slow
from torch.utils._python_dispatch import TorchDispatchMode

import iresnet as ir
from iresnet.config import TaskConfig, load_config
from iresnet.training import Task, train
from iresnet.training.checkpoints import read_checkpoint

KINDS = {"density": (1.0, 0.0), "classify": (0.0, 1.0), "hybrid": (1.0, 0.5)}
PRODUCTS = {torch.ops.aten.convolution.default, torch.ops.aten.addmm.default, torch.ops.aten.mm.default}
SOLVES = ("linalg_solve", "linalg_lu", "linalg_det", "linalg_slogdet", "triangular_solve", "addcmul.")


class Dtypes(TorchDispatchMode):
    """Notes in which types the products of a step run, and its solves and sums."""

    def __init__(self):
        super().__init__()
        self.products, self.solves = set(), set()

    def __torch_dispatch__(self, function, _, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        first = next((a for a in args if torch.is_tensor(a)), None)
        if first is not None and function in PRODUCTS:
            self.products.add(first.dtype)
        if first is not None and any(name in str(function) for name in SOLVES):
            self.solves.add(first.dtype)
        return result


@pytest.mark.parametrize("kind", KINDS)
def test_products_run_in_bfloat16_and_the_rest_does_not(kind):
    options = {"blocks": (1, 1), "strides": (1, 2), "hidden": 8, "logdet": ir.Krylov(3)}
    model = ir.zoo.build("iresnet", shape=(1, 8, 8), task=kind, n_classes=3, mean=8.5, std=17, **options)
    task = Task(model, TaskConfig(*KINDS[kind]), levels=17)
    x, y = torch.randint(0, 17, (32, 1, 8, 8), dtype=torch.uint8), torch.randint(0, 3, (32,))
    task(x, y)  # initializes
    losses = {}
    for enabled in (False, True):
        torch.manual_seed(1)
        with Dtypes() as dtypes, torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses[enabled], metrics = task.eval()(x, y)
        assert {losses[enabled].dtype, *(value.dtype for value in metrics.values())} == {torch.float32}
        assert (torch.bfloat16 in dtypes.products) == enabled
        assert dtypes.solves <= {torch.float32}
        assert dtypes.solves or kind == "classify"
    losses[True].backward()
    assert {p.grad.dtype for p in task.parameters()} == {torch.float32}
    assert losses[True] != losses[False]
    assert losses[True].item() == pytest.approx(losses[False].item(), rel=0.02)


@pytest.mark.parametrize("kind", ["density", slow("classify"), slow("hybrid")])
def test_training_in_bfloat16_goes_as_in_float32(kind, tiny, tmp_path):
    recipe, *changes = tiny[kind]
    runs = {}
    for precision in ("float32", "bf16"):
        config = load_config(recipe, [*changes, "--train.precision", precision, "--train.n-pictures", "0"])
        runs[precision] = train(config, tmp_path / precision)
    full, mixed = (read_checkpoint(run) for run in runs.values())
    assert {tensor.dtype for tensor in mixed.model.values()} <= {torch.float32, torch.bool, torch.int64}
    assert any(not torch.equal(mixed.model[name], tensor) for name, tensor in full.model.items())
    last = [float(checkpoint.best["loss"]) for checkpoint in (full, mixed)]
    assert last[1] == pytest.approx(last[0], rel=0.02)
    assert ir.certify(ir.load(runs["bf16"].path)).certified
