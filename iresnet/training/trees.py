"""Nested containers as JSON, with the tensors in them apart: what is read back is data, never code."""

__all__ = ["pack", "unpack"]

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_KIND = "$"
"""Key of the JSON objects that stand for something that JSON does not have."""


def pack(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Turn nested containers into what JSON can hold.

    Args:
        tree: dictionaries, lists and tuples of tensors, numbers, strings, booleans and None.
        tensors: receives the tensors, by their path in the tree: copies on the CPU, contiguous.
        path: of the tree in a larger one.

    Raises:
        TypeError: for any other object.

    Example:
        >>> tensors = {}
        >>> packed = pack({"state": {0: torch.ones(2)}, "betas": (0.9, 0.99)}, tensors)
        >>> list(tensors), unpack(packed, tensors)
        (['state/0'], {'state': {0: tensor([1., 1.])}, 'betas': (0.9, 0.99)})
    """
    match tree:
        case Tensor():
            return _pack_tensor(tree, tensors, path)
        case dict():
            items = [[key, pack(value, tensors, f"{path}/{key}".lstrip("/"))] for key, value in tree.items()]
            plain = all(isinstance(key, str) and key != _KIND for key in tree)
            return dict(items) if plain else {_KIND: "dict", "items": items}
        case list():
            return [pack(value, tensors, f"{path}/{i}".lstrip("/")) for i, value in enumerate(tree)]
        case tuple():
            return {_KIND: "tuple", "items": pack(list(tree), tensors, path)}
        case None | bool() | int() | float() | str():
            return tree
    raise TypeError(f"'{path}' is a {type(tree).__name__}; a checkpoint holds tensors, numbers and containers of them")


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Turn back what :func:`pack` gave.

    Raises:
        LookupError, TypeError, ValueError: when it is not that.
    """
    match tree:
        case {"$": "tensor", "name": name, "order": order}:
            return tensors[name].permute([order.index(i) for i in range(len(order))])
        case {"$": "dict", "items": items}:
            return {key: unpack(value, tensors) for key, value in items}
        case {"$": "tuple", "items": items}:
            return tuple(unpack(value, tensors) for value in items)
        case dict():
            return {key: unpack(value, tensors) for key, value in tree.items()}
        case list():
            return [unpack(value, tensors) for value in tree]
    return tree


def _pack_tensor(tensor: Tensor, tensors: dict[str, Tensor], path: str) -> Any:
    # Dimensions in the order of memory, so that a channels-last tensor is one again when it is read: what is computed
    # from it may differ in the last bit with the layout.
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    in_order = tensor.detach().permute(order)
    tensors[path] = torch.empty_like(in_order, device="cpu", memory_format=torch.contiguous_format).copy_(in_order)
    return {_KIND: "tensor", "name": path, "order": order}
