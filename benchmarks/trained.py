"""Inversion of a trained model, and sampling from it: by iresnet, and by what the baselines do with the same maps."""

__all__ = ["inversion", "sampling"]

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from behrmann2019 import Block2019
from blocks import Bottleneck, swapped
from normflows_block import NormflowsBlock
from timing import Job, Make
from torch import Tensor

import iresnet as ir
from iresnet.bijections import Bijection
from iresnet.data import dequantize, load
from iresnet.runs import Run

SAMPLES = 64

INVERTERS: dict[str, Callable[[Bottleneck], Bijection] | None] = {
    "iresnet": None,
    "2019": Block2019,
    "normflows": partial(NormflowsBlock, carry=True),
    "normflows to 1e-5": partial(NormflowsBlock, carry=True, tol=1e-5),
}
"""What stands in the place of the residual blocks; nothing else does for iresnet."""


def inversion(run: Path, data_dir: str | None) -> dict[str, Make]:
    """Latents of test images back to images, with the errors that came of it."""
    return {name: partial(_inversion, name, run, data_dir) for name in INVERTERS}


def sampling(run: Path) -> dict[str, Make]:
    """Latents of the base density to images."""
    return {name: partial(_sampling, name, run) for name in INVERTERS}


def _sampling(name: str, run: Path) -> Job:
    flow, random = _flow(name, run), torch.Generator()
    return Job(lambda: flow.sample(SAMPLES, generator=random.manual_seed(0)))


@torch.no_grad()
def _inversion(name: str, run: Path, data_dir: str | None) -> Job:
    flow, exact = _flow(name, run), _flow("iresnet", run).double()
    x = _test_images(run, data_dir)
    z = exact.encode(x).float()
    decode = torch.no_grad()(flow.decode)
    return Job(lambda: decode(z), check=partial(_errors, flow, exact, x, z))


def _flow(name: str, run: Path) -> ir.Flow:
    flow = ir.load(run)
    assert isinstance(flow, ir.Flow), f"{run} is no density"
    block = INVERTERS[name]
    return flow if block is None else swapped(flow, block)


def _test_images(run: Path, data_dir: str | None) -> Tensor:
    config, inputs = Run.open(run).read_config()
    test = load(config.data.name, data_dir or Run.open(run).data_dir, pad_to=config.data.pad_to).test
    noise = torch.Generator().manual_seed(0)
    return dequantize(test.x[:SAMPLES], levels=inputs.levels, generator=noise, dtype=torch.float64)


@torch.no_grad()
def _errors(flow: ir.Flow, exact: ir.Flow, x: Tensor, z: Tensor) -> dict[str, float]:
    """By the same model in double precision: the largest element of the error of an image, in units of the range of the
    data, and of the residual of a block's equation x + g(x) = z; the share of images with residuals of at most 1e-5.
    """
    scale = exact.bijection.bijections[0]  # centers and scales the data  # pyright: ignore
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    blocks = {name: part for name, part in exact.named_modules() if isinstance(part, ir.ResidualBlock)}
    for name in blocks:
        _record(flow.get_submodule(name), name, calls)
    error = (scale(flow.decode(z).double()) - scale(x)).flatten(1).abs().amax(1)
    residual = torch.stack(
        [(blocks[name](back.double()) - z.double()).flatten(1).abs().amax(1) for name, (z, back) in calls.items()]
    ).amax(0)
    return {
        "error": float(error.max()),
        "residual": float(residual.max()),
        "within": float((residual <= 1e-5).double().mean()),
    }


def _record(block: torch.nn.Module, name: str, calls: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Note what a block inverts and what comes of it."""
    inverse = block.inverse

    def noted(z: Tensor, **options) -> Tensor:
        calls[name] = (z, inverse(z, **options))
        return calls[name][1]

    block.inverse = noted  # pyright: ignore[reportAttributeAccessIssue]
