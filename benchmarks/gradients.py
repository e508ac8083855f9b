"""What numerics.py measures of gradients of the log-determinant with respect to the parameters."""

__all__ = ["GRADIENTS", "Gradient", "gradients", "gradients_at"]

import math
import statistics
from collections.abc import Sequence
from functools import partial

import torch
from exact import ExactBlock, SameProbe
from measure import ESTIMATORS, SHARED_LENGTH, Make, seeded
from subjects import Subject, blocks_of
from torch import Tensor

import iresnet as ir
from iresnet.logdet import LogDetEstimator

GRADIENTS = [name for name in ESTIMATORS if name not in ("PowerSeries 3, Gaussian", "Krylov 4", "Krylov 7")]


class Gradient:
    """The gradient of the log-determinant of an image with respect to the parameters of all residual blocks.

    It is of the sum over the blocks, through the normalization of the weights, and through what a block does to the
    inputs of the later ones.

    Args:
        flow: the model, in float64.
        x: the image, (1, C, H, W).
        exact: the blocks at the image.
    """

    def __init__(self, flow: ir.Flow, x: Tensor, exact: Sequence[ExactBlock]):
        self.flow = flow
        self.x = x
        self.exact_blocks = exact
        self.blocks = blocks_of(flow)
        self.parameters = [p for block in self.blocks for p in block.parameters()]
        self.exact = self._gradient([ir.Exact()] * len(self.blocks), copies=1)
        self._same: dict[tuple[str, int, int], Tensor] = {}

    def moments(self, make: Make, *, copies: int = 8, batches: int = 16) -> tuple[float, float, float]:
        """Bias, the noise of the bias, and standard deviation with one probe, relative to the exact gradient.

        Args:
            make: builds the estimator.
            copies: of the image in a batch, each with a probe of its own.
            batches: number of batches.
        """
        if make in SHARED_LENGTH:
            copies, batches = 1, copies * batches
        estimates = self._sample([make] * len(self.blocks), copies, batches)
        errors = estimates - self._same_probes(make().probe, copies, batches)
        size = float(self.exact.norm())
        noise = _spread(errors) / math.sqrt(batches)
        return float(errors.mean(0).norm()) / size, noise / size, _spread(estimates) * math.sqrt(copies) / size

    def variance(self, make: Make, *, copies: int, batches: int) -> float:
        """Variance of the mean over a batch of copies, times their number, relative to the exact gradient's square."""
        estimates = self._sample([make] * len(self.blocks), copies, batches)
        return copies * _spread(estimates) ** 2 / float(self.exact.square().sum())

    def _same_probes(self, probe: str, copies: int, batches: int) -> Tensor:
        key = (probe, copies, batches)
        if key not in self._same:
            makes = [partial(SameProbe, block, probe=probe) for block in self.exact_blocks]
            self._same[key] = self._sample(makes, copies, batches)
        return self._same[key]

    def _sample(self, makes: Sequence[Make], copies: int, batches: int) -> Tensor:  # (batches, parameters)
        def estimators(batch: int) -> list[LogDetEstimator]:
            return [seeded(make, len(makes) * batch + i) for i, make in enumerate(makes)]

        return torch.stack([self._gradient(estimators(batch), copies) for batch in range(batches)])

    def _gradient(self, estimators: Sequence[LogDetEstimator], copies: int) -> Tensor:  # (parameters,)
        for block, estimator in zip(self.blocks, estimators, strict=True):
            block.logdet = estimator
        logdet = self.flow.bijection.forward_and_logdet(self.x.expand(copies, *self.x.shape[1:]))[1]
        parts = torch.autograd.grad(logdet.mean(), self.parameters, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])


def _spread(x: Tensor) -> float:  # (n, parameters)
    """Root of the sum of the variances over the first dimension."""
    return math.sqrt(float(x.var(0).sum()))


def gradients(subject: Subject, images: Sequence[Sequence[ExactBlock]]) -> dict[str, dict[str, float]]:
    """Root mean squares over the images of every estimator's moments."""
    at = gradients_at(subject, images)
    rows = {}
    for name in GRADIENTS:
        columns = zip(*(gradient.moments(ESTIMATORS[name]) for gradient in at), strict=True)
        rows[name] = dict(zip(("bias", "noise", "sd"), map(_rms, columns), strict=True))
    return rows


def gradients_at(subject: Subject, images: Sequence[Sequence[ExactBlock]]) -> list[Gradient]:
    """The gradients at the first images of a subject, of which the exact blocks are given."""
    return [Gradient(subject.flow, x, exact) for x, exact in zip(subject.x.split(1), images, strict=False)]


def _rms(numbers: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(number**2 for number in numbers))
