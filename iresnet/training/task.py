"""Loss of a model on a batch, as one module."""

__all__ = ["AUGMENTATIONS", "Task", "make_task"]

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresnet.bijections import ResidualBlock, logdet_of_one_part
from iresnet.classifiers import Classifier, Hybrid
from iresnet.config import Config, TaskConfig
from iresnet.data import Dataset, dequantize, flip, pad_crop
from iresnet.errors import UnknownNameError
from iresnet.flows import Density, Flow
from iresnet.lipschitz import hold_weights
from iresnet.runs import Inputs, build_model

AUGMENTATIONS = {"pad-crop": lambda x: pad_crop(x, padding=4, mode="symmetric"), "flip": flip}
"""Random changes of a batch of training images, by name."""


class Task(nn.Module):
    r"""Loss of a model on a batch, all of it in ``forward``, as distributed training needs.

    .. math:: w_{nll} \cdot \mathrm{bits/dim}(x) + w_{ce} \cdot \mathrm{crossentropy}(y \mid x)

    Args:
        model: a :class:`~iresnet.Flow`, :class:`~iresnet.Classifier` or :class:`~iresnet.Hybrid`.
        weights: the two weights.
        levels: number of values that an integer component takes, None for continuous data.
        augment: names in :data:`AUGMENTATIONS`, applied in train mode.
        logdet_parts: in train mode, see :func:`~iresnet.bijections.logdet_of_one_part`.

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
        logdet_parts: int = 1,
    ):
        super().__init__()
        for name in augment:
            if name not in AUGMENTATIONS:
                raise UnknownNameError("augmentation", name, AUGMENTATIONS)
        self.model = model
        self.weights = weights
        self.levels = levels
        self.augment = tuple(augment)
        self.logdet_parts = logdet_parts
        self.hold = hold_weights  # of the whole model, unless each block is to hold its own

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
            iterate: whether power iterations advance in train mode: they do once for each step of the optimizer.
        """
        x = self.augmented(x) if self.training else x
        part = logdet_of_one_part(self.model, self.logdet_parts if self.training else 1)
        with self.hold(self.model, iterate=iterate), part:
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
        """Return densities and logits, None where the model has none."""
        match self.model:
            case Flow():
                return self.model.density(dequantize(x, levels=self.levels)), None
            case Hybrid():
                return self.model.density_and_logits(dequantize(x, levels=self.levels))
            case Classifier():
                return None, self.model(x.float())
            case _:
                raise TypeError(f"a Task trains a Flow, Classifier or Hybrid, got {type(self.model).__name__}")


class _Mean(torch.autograd.Function):
    """Mean whose gradient is one expanded number, from which estimators see that all examples weigh the same."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # (N,) -> ()
        ctx.n = len(values)
        return values.mean()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (upstream / ctx.n).expand(ctx.n)


def make_task(config: Config, dataset: Dataset, inputs: Inputs) -> Task:
    """Build the model of a recipe, with the weights of its seed, and its loss.

    Args:
        config: the recipe.
        dataset: the data, on which the augmentations are tried.
        inputs: facts about the data that the model needs.

    Raises:
        IResNetError: when model, task, augmentations and data do not go together.
    """
    torch.manual_seed(config.train.seed)
    task = Task(
        build_model(config, inputs),
        config.task,
        levels=dataset.levels,
        augment=config.data.augment,
        logdet_parts=config.train.logdet_parts,
    )
    task.augmented(dataset.train.x[:1])
    for module in task.modules() if config.train.compile else ():
        if isinstance(module, ResidualBlock):
            module.compile()
    return task
