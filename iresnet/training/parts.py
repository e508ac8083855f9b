"""Tensors of which each process has a part."""

__all__ = ["placed_like", "whole"]

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of it when this process has a part; all processes have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(other: Tensor, tensor: Tensor) -> Tensor:
    """The part of a whole tensor that this process has of another one; all of it when that is whole."""
    return distribute_tensor(tensor, other.device_mesh, other.placements) if isinstance(other, DTensor) else tensor
