"""Loss of a model on a batch, as one module."""

__all__ = ["AUGMENTATIONS", "Task", "make_task"]

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresnet.bijections import (
    Affine,
    Bijection,
    RandomChunk,
    ResidualBlock,
    Spline,
    VariationalDequantization,
    Whitening,
    trace,
)
from iresnet.classifiers import Classifier, Hybrid
from iresnet.config import Config, TaskConfig
from iresnet.data import Dataset, dequantize, flip, pad_crop
from iresnet.devices import random_state, set_random_state
from iresnet.errors import RecipeError, UnknownNameError
from iresnet.flows import Density, Flow
from iresnet.inputs import Inputs
from iresnet.lipschitz import hold_weights
from iresnet.logdet import LogDetEstimator, default_logdet
from iresnet.models import Model, build_model, start_from
from iresnet.pretrained import load

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
        logdet_chunks: in train mode, estimate log-determinants on one of so many chunks of each batch, whose examples
            are rotated by a random number; one block after the other takes the next chunk
            (:class:`~iresnet.bijections.RandomChunk`).
        hold: whether a step normalizes all weights at once; else each block normalizes its own, when it is used.
        generator: source of randomness of the estimators in eval mode; torch's global one, of all processes together,
            when None.

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
        generator: torch.Generator | None = None,
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
        self.generator = generator

    def forward(
        self,
        x: Tensor,  # (N, *E), as stored: uint8 or float
        y: Tensor | None,  # (N,), or (N, K): contexts
        *,
        iterate: bool = True,
        report: Callable[[Bijection, tuple[Tensor, ...]], None] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss and batch means, where they apply.

        The means are ``bits_per_dim`` and its terms ``log_prior`` and ``logdet``, in nats an example, and ``accuracy``.

        Args:
            x: examples.
            y: their labels, or contexts: a density that depends on a context is given them.
            iterate: whether power iterations advance in train mode: they do once for each step of the optimizer.
            report: called first with each bijection and its outputs, in a pass of its own with the same random numbers.
        """
        x, y = self._rotated(self.augmented(x), y) if self.training else (x, y)
        with hold_weights(self.model, iterate=iterate) if self.hold else nullcontext():
            x = x.float() if isinstance(self.model, Classifier) else dequantize(x, levels=self.levels)
            model = self._at_context(y)
            if report:
                self._report(model, x, report)
            density, logits = self._outputs(model, x)
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

    def _rotated(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Rotate a batch by a number drawn on its device, where chunks stand for all of it."""
        if self.logdet_chunks == 1:
            return x, y
        first = torch.randint(len(x), (), device=x.device)
        order = (torch.arange(len(x), device=x.device) + first) % len(x)
        return x[order], None if y is None else y[order]

    def augmented(self, x: Tensor) -> Tensor:  # (N, *E)
        """Change each example at random."""
        for name in self.augment:
            x = AUGMENTATIONS[name](x)
        return x

    def _at_context(self, y: Tensor | None) -> nn.Module:
        """Return the model, at the contexts where it depends on one."""
        if not isinstance(self.model, Flow) or self.model.context_encoder is None:
            return self.model
        assert y is not None
        return self.model.given(y)

    def _outputs(self, model: nn.Module, x: Tensor) -> tuple[Density | None, Tensor | None]:
        """Return densities and logits, None where the model has none."""
        match model:
            case Flow():
                return model.density(x, logdet=self._logdets(model)), None
            case Hybrid():
                return model.density_and_logits(x, logdet=self._logdets(model))
            case Classifier():
                return None, model(x)
            case _:
                raise TypeError(f"a Task trains a Flow, Classifier or Hybrid, got {type(model).__name__}")

    def _logdets(self, model: nn.Module) -> dict[nn.Module, LogDetEstimator] | None:
        """Return estimators for the residual blocks, or None for their own."""
        blocks = (module for module in model.modules() if isinstance(module, ResidualBlock))  # walked if needed
        if self.training and self.logdet_chunks > 1:
            default, n = default_logdet(1, training=True), self.logdet_chunks
            return {block: RandomChunk(block.logdet or default, n, chosen=i % n) for i, block in enumerate(blocks)}
        if not self.training and self.generator is not None:
            return {block: block.logdet.drawing_from(self.generator) for block in blocks if block.logdet}
        return None

    @torch.no_grad()
    def _report(self, model: Any, x: Tensor, report: Callable[[Bijection, tuple[Tensor, ...]], None]) -> None:
        """Report the outputs of every bijection, and restore the random state."""
        random, density = random_state(), not isinstance(model, Classifier)
        network = model.bijection if density else model.network
        if isinstance(network, Bijection):
            for bijection, outputs in trace(network, x, density=density, logdet=self._logdets(model)):
                report(bijection, outputs)
        set_random_state(random)


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
    model = build_model(config, inputs)
    if dataset.levels is None and any(isinstance(module, VariationalDequantization) for module in model.modules()):
        raise RecipeError(
            f"--model.dequantization variational is for integers such as pixels, {dataset.name} has real numbers: "
            "leave it out"
        )
    if config.train.init is not None:
        start_from(model, load(config.train.init), config.train.init)
    else:
        _fit(model, dataset)
    task = Task(
        model,
        config.task,
        levels=dataset.levels,
        augment=config.data.augment,
        logdet_chunks=config.train.logdet_chunks,
        hold=config.train.sharding == "ddp",  # sharded weights are there when their block is used
    )
    task.augmented(dataset.train.x[:1])
    for module in task.modules() if config.train.compile else ():
        if isinstance(module, ResidualBlock):
            module.compile()
    return task


_N_FIT = 10_000
"""Training examples that a whitening and a spline are fitted to."""


@torch.no_grad()
def _fit(model: Model, dataset: Dataset) -> None:
    """Start the whitening and the spline that data pass first, where there are, from training examples."""
    parts = [module for module in model.modules() if isinstance(module, (Affine, Whitening, Spline))]
    fitted = [part for part in parts if isinstance(part, (Whitening, Spline))]
    if not fitted:
        return
    x = dataset.train.shuffled(0, _N_FIT).x
    x = parts[0](x.float() if isinstance(model, Classifier) else dequantize(x, levels=dataset.levels))
    for part in fitted:
        part.fit(x)
        x = part(x) if part is not fitted[-1] else x
