"""How exactly a model inverts."""

__all__ = ["Reconstruction", "reconstruction"]

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from iresnet.bijections import Bijection
from iresnet.data import Batches, Split
from iresnet.evaluation.draws import noisy
from iresnet.evaluation.shares import shared
from iresnet.lipschitz import hold_weights


@dataclass(frozen=True)
class Reconstruction:
    """Errors of data -> latent -> data, in units of the data's range: 1 is from black to white.

    Attributes:
        largest: over all elements of all examples.
        mean: over all elements of all examples.
        n: examples.
    """

    largest: float
    mean: float
    n: int

    def __str__(self) -> str:
        return f"reconstruction error at most {self.largest:.1e}, mean {self.mean:.1e} ({self.n} examples)"


@torch.no_grad()
def reconstruction(
    bijection: Bijection,
    split: Split,
    *,
    levels: int | None,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Reconstruction:
    """Invert every example of a split and measure how far it comes back from itself.

    Args:
        bijection: the map, of a flow or of a classifier's features.
        split: the examples; integer ones are dequantized.
        levels: values that an integer component takes; the range of continuous data is taken from the split.
        batch_size: examples at a time.
        seed: of the dequantization noise.
        progress: called with the number of examples done after each batch.

    Example:
        >>> import iresnet as ir
        >>> reconstruction(ir.Affine(mean=1.0, std=2.0), Split(torch.randn(10, 2)), levels=None).largest < 1e-6
        True
    """
    tensors = chain(bijection.parameters(), bijection.buffers())
    tensor = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))
    split = split.to(tensor.device)
    generator = torch.Generator().manual_seed(seed)
    scale = float(levels or (split.x.max() - split.x.min())) or 1.0
    batches = Batches(split, batch_size, shuffle=False, drop_last=False).epoch()
    drawn = (noisy(x, levels, generator, tensor.dtype) for x, _ in batches)
    bijection.eval()

    def evaluate(x: Tensor) -> Tensor:
        return ((bijection.inverse(bijection(x)) - x).abs().flatten(1).double() / scale).cpu()

    errors = []
    with hold_weights(bijection):
        for error in shared(drawn, evaluate):
            errors.append(error)
            progress(sum(map(len, errors)))
    error = torch.cat(errors)
    return Reconstruction(float(error.max()), float(error.mean()), len(split))
