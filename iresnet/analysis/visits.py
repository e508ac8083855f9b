"""What is analyzed: examples of a split as a model sees them, and the residual blocks that they pass through."""

__all__ = ["Visit", "bijection_of", "examples", "visits"]

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from iresnet.bijections import Bijection, ResidualBlock
from iresnet.data import Split, dequantize, permutation
from iresnet.errors import RecipeError


def examples(split: Split, n: int, *, levels: int | None, seed: int = 0) -> Split:
    """Take examples in a random order, with the noise of dequantization, in float64.

    Args:
        split: where they are taken from.
        n: how many; all of them where there are fewer.
        levels: values that an integer component takes, none for continuous data.
        seed: of the order and the noise.

    Example:
        >>> examples(Split(torch.zeros(9, 1, 2, 2, dtype=torch.uint8)), 4, levels=256).x.shape
        torch.Size([4, 1, 2, 2])
    """
    chosen = torch.from_numpy(permutation(len(split), seed)[:n]).to(split.x.device)
    noise = Generator().manual_seed(seed)
    x = dequantize(split.x[chosen], levels=levels, generator=noise, dtype=torch.float64)
    return Split(x, None if split.y is None else split.y[chosen])


def bijection_of(model: nn.Module) -> Bijection:
    """The bijection of a model, refused when it has none.

    Raises:
        RecipeError: for a network that maps different inputs to the same features.
    """
    bijection = getattr(model, "bijection", model)
    if not isinstance(bijection, Bijection):
        raise RecipeError(
            f"this model ({type(model).__name__}) is no bijection: it has no inverse and no log-determinant to "
            "analyze; give a run of an invertible architecture (see: iresnet recipes)"
        )
    return bijection


@dataclass(frozen=True)
class Visit:
    r"""A residual block, and what it maps in a pass through the model.

    Attributes:
        name: path of the block in the bijection.
        block: the block.
        x: what comes in, (N, \*E).
        z: what goes out, (N, \*E).
    """

    name: str
    block: ResidualBlock
    x: Tensor
    z: Tensor


@torch.no_grad()
def visits(bijection: Bijection, x: Tensor) -> list[Visit]:  # (N, *E)
    """The residual blocks that data pass through, from the data on.

    Raises:
        RecipeError: when there are none.

    Example:
        >>> import iresnet as ir
        >>> chain = ir.Chain([ir.ResidualBlock(ir.networks.mlp(2, 8)) for _ in range(2)])
        >>> first, second = visits(chain, torch.randn(3, 2))
        >>> second.name, bool((first.z == second.x).all())
        ('bijections.1', True)
    """
    names = {block: name for name, block in bijection.named_modules() if isinstance(block, ResidualBlock)}
    if not names:
        raise RecipeError("this model has no residual blocks to analyze; train one with --model.blocks")
    found: list[Visit] = []

    def note(block: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
        assert isinstance(block, ResidualBlock)
        found.append(Visit(names[block], block, args[0], z))

    hooks = [block.register_forward_hook(note) for block in names]
    try:
        bijection(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found
