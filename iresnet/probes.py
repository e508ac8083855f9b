"""Probes: random vectors v with E[v v^T] = I, which estimate traces, tr M = E[v^T M v]."""

__all__ = ["PROBES"]

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Generator, Tensor

from iresnet.devices import random_device
from iresnet.operators import to_events


def _rademacher(like: Tensor, n: int, generator: Generator | None) -> Iterator[Tensor]:
    """Yield independent signs."""
    for _ in range(n):
        d, device = math.prod(like.shape[1:]), random_device(generator, like)
        # The signs of random bytes, since a CPU takes fifteen times as long for a random number each.
        size, limit = (len(like), -(-d // 8)), 2**63
        words = torch.randint(-limit, limit - 1, size, dtype=torch.int64, device=device, generator=generator)
        signs = (words.view(torch.int8)[:, :d] >> 7).bitwise_or_(1).to(like.dtype)
        yield to_events(signs.to(like.device), like.shape)


def _gaussian(like: Tensor, n: int, generator: Generator | None) -> Iterator[Tensor]:
    """Yield independent normal numbers: for comparison with published results."""
    for _ in range(n):
        # As vectors, since draws must not depend on a memory layout that a compiler may change.
        vectors = like.new_empty(len(like), math.prod(like.shape[1:]), device=random_device(generator, like))
        yield to_events(vectors.normal_(generator=generator).to(like.device), like.shape)


def _hadamard(like: Tensor, n: int, generator: Generator | None) -> Iterator[Tensor]:
    """Yield signs whose errors cancel in the mean of n probes, except between distant elements of an image.

    Each is a Rademacher probe, multiplied by another row of a Hadamard matrix: elements i and j contribute
    :math:`M_{ij} v_i v_j`, which sums to zero over :math:`2^b` probes unless the numbers of i and j agree in the last b
    bits.

    Reference:
        Hierarchical Probing for Estimating the Trace of the Matrix Inverse on Toroidal Lattices, Stathopoulos, Laeuchli
        and Orginos 2013, https://arxiv.org/abs/1302.4018
    """
    (signs,) = _rademacher(like, 1, generator)
    yield from _rows(signs, n)


def _fixed(like: Tensor, n: int, generator: Generator | None) -> Iterator[Tensor]:  # noqa: ARG001
    """Yield the same Hadamard probes at each call and for each sample: estimates depend on the sample alone."""
    signs = _fixed_signs(tuple(like.shape[1:]), like.device).to(like.dtype)
    yield from _rows(signs.expand(like.shape), n)


def _shared(like: Tensor, n: int, generator: Generator | None) -> Iterator[Tensor]:
    """Yield independent signs, the same for each sample: estimates depend on the sample and the generator alone."""
    for signs in _rademacher(like[:1], n, generator):
        yield torch.zeros_like(like) + signs


@lru_cache(maxsize=64)
def _fixed_signs(shape: tuple[int, ...], device: torch.device) -> Tensor:  # (*E,)
    # Drawn by numpy, since torch.vmap refuses to draw the same numbers for all samples.
    return torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], size=shape)).to(device)


def _rows(signs: Tensor, n: int) -> Iterator[Tensor]:
    """Multiply signs, (N, *E), with rows of a Hadamard matrix."""
    numbers = _numbers(tuple(signs.shape[1:]), signs.device)
    for row in range(n):
        yield signs * (1 - 2 * _parity(row & numbers)).to(signs.dtype)


@lru_cache(maxsize=64)
def _numbers(shape: tuple[int, ...], device: torch.device) -> Tensor:  # (*E,)
    """Return a number for each element, such that elements whose numbers agree in the last bits are far apart.

    In an image (C, H, W), the last bits are those of the channel; the next one colors the pixels like a chess board,
    and the one after splits each color by rows, which leaves coarser boards; these are split in the same way.
    """
    if len(shape) != 3:
        return torch.arange(math.prod(shape), device=device).view(shape)
    c, h, w = torch.meshgrid(*(torch.arange(n, device=device) for n in shape), indexing="ij")
    bits = [c >> b for b in range((shape[0] - 1).bit_length())]
    for b in range((max(shape[1:]) - 1).bit_length()):
        bits += [(h >> b) + (w >> b), h >> b]
    return sum(((bit & 1) << i for i, bit in enumerate(bits)), start=torch.zeros_like(c))


def _parity(x: Tensor) -> Tensor:
    """Return the sum of the bits modulo 2."""
    for shift in (32, 16, 8, 4, 2, 1):
        x = x ^ (x >> shift)
    return x & 1


PROBES: dict[str, Callable[[Tensor, int, Generator | None], Iterator[Tensor]]] = {
    "rademacher": _rademacher,
    "gaussian": _gaussian,
    "hadamard": _hadamard,
    "fixed": _fixed,
    "shared": _shared,
}
"""Probes by name: functions of a tensor of their shape and type, (N, *E), their number, and the generator."""
