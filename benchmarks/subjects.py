"""Trained models and test images to measure on: runs of the recipes, and a model trained to contract."""

__all__ = ["Subject", "blocks_of", "contracting", "from_run"]

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import iresnet as ir
from iresnet.data import Batches, dequantize, load
from iresnet.lipschitz import hold_weights
from iresnet.models import load_model
from iresnet.runs import Run


@dataclass(frozen=True)
class Subject:
    """A trained density and dequantized test images, in float64.

    Attributes:
        name: of the model, for tables.
        flow: sealed, in eval mode.
        x: test images, (N, C, H, W).
    """

    name: str
    flow: ir.Flow
    x: Tensor


def blocks_of(module: nn.Module) -> list[ir.ResidualBlock]:
    """Residual blocks, from the data on."""
    return [part for part in module.modules() if isinstance(part, ir.ResidualBlock)]


def from_run(path: str, data_dir: str | None, n: int) -> Subject:
    """Load the model of a run folder and the first n test images of its data."""
    run = Run.open(path)
    config, inputs = run.read_config()
    test = load(config.data.name, data_dir or run.data_dir, pad_to=config.data.pad_to).test
    flow = load_model(run)
    assert isinstance(flow, ir.Flow), f"{path} is no density"
    return Subject(Path(path).name, flow.double(), _images(test.x[:n], inputs.levels))


def contracting(n: int, *, epochs: int = 20, lr: float = 0.01) -> Subject:
    """Train a model whose blocks must contract, until eigenvalues come near -0.9: 15 s of CPU.

    The digits are scaled to be many times broader than the base density, a standard normal, and there is no ActNorm
    that could take the scale away.
    """
    torch.manual_seed(0)
    digits = load("digits")
    flow = ir.zoo.build(
        "iresnet",
        shape=digits.shape,
        blocks=(3,),
        strides=(1,),
        hidden=32,
        actnorm=False,
        coeff=0.985,
        n_power_steps=5,
        base="standard-normal",
        mean=float(digits.train.x.double().mean()) + 0.5,
        std=0.2,
        logdet=ir.Krylov(5),
    )
    assert isinstance(flow, ir.Flow)
    optimizer = torch.optim.Adamax(flow.parameters(), lr=lr)
    batches = Batches(digits.train, 64)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - epoch / epochs))
        for x, _ in batches.epoch(epoch):
            optimizer.zero_grad()
            with hold_weights(flow):
                loss = flow.bits_per_dim(dequantize(x, levels=digits.levels)).mean()
            loss.backward()
            optimizer.step()
    ir.seal(flow.eval())
    return Subject("contracting", flow.double(), _images(digits.test.x[:n], digits.levels))


def _images(x: Tensor, levels: int | None) -> Tensor:
    return dequantize(x, levels=levels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
