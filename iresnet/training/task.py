"""What is trained: the loss of a model on a batch, as one module."""

__all__ = ["AUGMENTATIONS", "Task", "make_task"]

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresnet.bijections import RandomChunk, ResidualBlock
from iresnet.classifiers import Classifier, Hybrid
from iresnet.config import Config, TaskConfig
from iresnet.data import Dataset, dequantize, flip, pad_crop
from iresnet.errors import UnknownNameError
from iresnet.flows import Density, Flow
from iresnet.inputs import Inputs
from iresnet.lipschitz import hold_weights
from iresnet.logdet import LogDetEstimator, default_logdet
from iresnet.models import build_model

AUGMENTATIONS = {"pad-crop": lambda x: pad_crop(x, padding=4, mode="symmetric"), "flip": flip}
"""Random changes of a batch of training images, by name."""


class Task(nn.Module):
    r"""The loss of a batch; the whole of it is this module's ``forward``, as distributed training needs.

    .. math:: w_{nll} \cdot \mathrm{bits/dim}(x) + w_{ce} \cdot \mathrm{crossentropy}(y \mid x)

    Args:
        model: a :class:`~iresnet.Flow`, :class:`~iresnet.Classifier` or :class:`~iresnet.Hybrid`.
        weights: the two weights.
        levels: values that an integer component takes, none for continuous data.
        augment: names in :data:`AUGMENTATIONS`, applied in train mode.
        logdet_chunks: in train mode, estimate log-determinants on a :class:`~iresnet.bijections.RandomChunk` of each
            batch, one of so many, drawn for each block.
        hold: whether a step normalizes all weights at once; else each block normalizes its own, when it is used.

    Raises:
        UnknownNameError: for an unknown augmentation.

    Example:
        >>> import torch, iresnet as ir
        >>> model = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=8)
        >>> loss, metrics = Task(model, TaskConfig(), levels=None)(torch.randn(16, 2), None)
        >>> sorted(metrics)
        ['bits_per_dim', 'log_prior', 'logdet']
    """

    def __init__(
        self,
        model: nn.Module,
        weights: TaskConfig,
        *,
        levels: int | None,
        augment: Sequence[str] = (),
        logdet_chunks: int = 1,
        hold: bool = True,
    ):
        super().__init__()
        for name in augment:
            if name not in AUGMENTATIONS:
                raise UnknownNameError("augmentation", name, AUGMENTATIONS)
        self.model = model
        self.weights = weights
        self.levels = levels
        self.augment = tuple(augment)
        self.logdet_chunks = logdet_chunks
        self.hold = hold

    def forward(
        self,
        x: Tensor,  # (N, *E), as stored: uint8 or float
        y: Tensor | None,  # (N,)
        *,
        iterate: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss and batch means, where they apply.

        The means are ``bits_per_dim`` and its terms ``log_prior`` and ``logdet``, in nats an example, and ``accuracy``.

        Args:
            x: examples.
            y: their labels.
            iterate: whether power iterations advance in train mode; once for each step of the optimizer.
        """
        x = self.augmented(x) if self.training else x
        with hold_weights(self.model, iterate=iterate) if self.hold else nullcontext():
            density, logits = self._outputs(x)
        loss, metrics = x.new_zeros((), dtype=next(self.model.parameters()).dtype), {}
        if density is not None:
            bits = -_Mean.apply(density.log_prob) / (x[0].numel() * math.log(2))  # pyright: ignore[reportOperatorIssue]
            loss, metrics["bits_per_dim"] = loss + self.weights.nll_weight * bits, bits.detach()
            metrics["log_prior"], metrics["logdet"] = (t.detach().mean() for t in (density.log_prior, density.logdet))
        if logits is not None:
            assert y is not None
            loss = loss + self.weights.ce_weight * F.cross_entropy(logits.float(), y)
            metrics["accuracy"] = (logits.detach().argmax(1) == y).float().mean()
        return loss, metrics

    def augmented(self, x: Tensor) -> Tensor:  # (N, *E)
        """Change each example at random."""
        for name in self.augment:
            x = AUGMENTATIONS[name](x)
        return x

    def _outputs(self, x: Tensor) -> tuple[Density | None, Tensor | None]:
        """Return densities and logits, as far as the model has them."""
        match self.model:
            case Flow():
                return self.model.density(dequantize(x, levels=self.levels), logdet=self._logdets()), None
            case Hybrid():
                return self.model.density_and_logits(dequantize(x, levels=self.levels), logdet=self._logdets())
            case Classifier():
                return None, self.model(x.float())
            case _:
                raise TypeError(f"a Task trains a Flow, Classifier or Hybrid, got {type(self.model).__name__}")

    def _logdets(self) -> dict[nn.Module, LogDetEstimator] | None:
        """Return estimators on random chunks for all residual blocks, or None for their own."""
        if not self.training or self.logdet_chunks == 1:
            return None
        blocks = (module for module in self.model.modules() if isinstance(module, ResidualBlock))
        return {
            block: RandomChunk(block.logdet or default_logdet(1, training=True), self.logdet_chunks) for block in blocks
        }


class _Mean(torch.autograd.Function):
    """The mean, whose gradient is one number that is expanded: that all examples weigh the same is seen from it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # (N,) -> ()
        ctx.n = len(values)
        return values.mean()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (upstream / ctx.n).expand(ctx.n)


def make_task(config: Config, dataset: Dataset, inputs: Inputs) -> Task:
    """Build the model of a recipe, with the weights of its seed, and the loss of it.

    Args:
        config: the recipe.
        dataset: the data, on which the augmentations are tried.
        inputs: what the model needs to know of the data.

    Raises:
        IResNetError: when model, task, augmentations and data do not go together.
    """
    torch.manual_seed(config.train.seed)
    task = Task(
        build_model(config, inputs),
        config.task,
        levels=dataset.levels,
        augment=config.data.augment,
        logdet_chunks=config.train.logdet_parts,
        hold=config.train.sharding == "ddp",  # sharded weights are there when their block is used
    )
    task.augmented(dataset.train.x[:1])
    for module in task.modules() if config.train.compile else ():
        if isinstance(module, ResidualBlock):
            module.compile()
    return task
