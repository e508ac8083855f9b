"""What goes on in each residual block of a model that is being trained."""

__all__ = ["BlockState", "block_states"]

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iresnet.bijections import ResidualBlock
from iresnet.lipschitz import LipschitzLayer
from iresnet.training.parts import whole


@dataclass(frozen=True)
class BlockState:
    """One residual block after a training step.

    Attributes:
        name: path of the block in the model, as in a certificate.
        sigmas: by path of each Lipschitz layer, the estimated norm of its weight before normalization: the layer
            divides by it, over its coefficient, where it is above the coefficient.
        grad_norm: norm of the gradient of its parameters as it was applied, clipped; NaN without one.
        logdet: mean of the last log-determinants in this process, in nats; NaN when none were computed.
    """

    name: str
    sigmas: dict[str, float]
    grad_norm: float
    logdet: float


@torch.no_grad()
def block_states(model: nn.Module) -> list[BlockState]:
    """Look at every residual block; this waits for the device once. Processes that share a model do so together.

    Args:
        model: as the last step left it, with the gradients.

    Example:
        >>> import iresnet as ir
        >>> block = ir.ResidualBlock(ir.networks.mlp(2, 8, coeff=0.9))
        >>> ir.Flow(block, ir.StandardNormal(2)).log_prob(torch.randn(16, 2)).sum().backward()
        >>> (state,) = block_states(block)
        >>> len(state.sigmas), state.grad_norm > 0
        (3, True)
    """
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, ResidualBlock)}
    layers = {name: _sigmas(name, block) for name, block in blocks.items()}
    scalars: list[Tensor] = []
    for name, block in blocks.items():
        scalars += [_grad_norm(block), _mean_logdet(block), *layers[name].values()]
    numbers = iter(torch.stack([s.float() for s in scalars]).tolist() if scalars else [])
    states = []
    for name in blocks:
        grad_norm, logdet = next(numbers), next(numbers)
        states.append(BlockState(name, {layer: next(numbers) for layer in layers[name]}, grad_norm, logdet))
    return states


def _sigmas(name: str, block: ResidualBlock) -> dict[str, Tensor]:
    found = {}
    for path, layer in block.named_modules(prefix=name):
        if isinstance(layer, LipschitzLayer) and layer.normalized:
            found[path] = layer.normalization.sigma(whole(layer.unnormalized_weight))
    return found


def _grad_norm(block: ResidualBlock) -> Tensor:
    gradients = [p.grad for p in block.parameters() if p.grad is not None]
    return whole(nn.utils.get_total_norm(gradients)) if gradients else _nan(block)


def _mean_logdet(block: ResidualBlock) -> Tensor:
    return _nan(block) if block.last_logdet is None else block.last_logdet.mean()


def _nan(block: ResidualBlock) -> Tensor:
    return torch.full((), torch.nan, device=next(block.parameters()).device)
