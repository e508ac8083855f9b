"""Batches of a split that lives on the device."""

__all__ = ["Batches", "check_batches"]

from collections.abc import Iterator

import torch
from torch import Tensor

from iresnet.data.dataset import Split
from iresnet.data.order import permutation
from iresnet.errors import DataError


class Batches:
    """Iterate over a split in batches; a batch is one ``index_select`` on the split's device.

    The order of an epoch is a function of ``(seed, epoch)`` and nothing else, so an interrupted run
    continues in the middle of an epoch with ``start``, and every process knows the order of all of them.
    With several processes, each takes its contiguous part of every batch: the parts, in the order of
    the ranks, are the batch that a single process would see.

    Args:
        split: the examples.
        batch_size: examples per step, over all processes together.
        shuffle: a new order every epoch; otherwise the split's own order.
        drop_last: leave out the last batch where it would be smaller. Keep it (``False``) to evaluate;
            the parts of that batch then differ by one example at most and can be empty.
        seed: selects the orders.
        rank: which part of each batch to yield.
        world_size: how many parts there are.

    Raises:
        DataError: a batch larger than the split (with ``drop_last``), or one that cannot be divided
            evenly among the processes.

    Example:
        >>> batches = Batches(Split(torch.arange(10.0)[:, None]), 4, seed=1)
        >>> len(batches)
        2
        >>> whole = [x for x, _ in batches.epoch(3)]
        >>> resumed = [x for x, _ in batches.epoch(3, start=1)]
        >>> torch.equal(whole[1], resumed[0])
        True
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        check_batches(batch_size, len(split), rank, world_size, drop_last=drop_last)
        self.split = split
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the batches of one epoch.

        Args:
            epoch: which epoch, from 0.
            start: how many of its batches to skip.

        Returns:
            An iterator over ``(x, y)``, shapes ``(n, *E)`` and ``(n,)``, or ``(x, None)`` without labels.

        Raises:
            DataError: ``start`` is not a step of the epoch.
        """
        if not 0 <= start <= len(self):
            raise DataError(f"an epoch has {len(self)} steps, cannot start at step {start}")
        return self._steps(self._order(epoch), start)

    def _order(self, epoch: int) -> Tensor:  # (N,) on the split's device
        n = len(self.split)
        order = torch.from_numpy(permutation(n, self.seed, epoch)) if self.shuffle else torch.arange(n)
        return order.to(self.split.x.device)

    def _steps(self, order: Tensor, start: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        x, y = self.split.x, self.split.y
        for step in range(start, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            index = batch.tensor_split(self.world_size)[self.rank]
            yield x.index_select(0, index), None if y is None else y.index_select(0, index)


def check_batches(batch_size: int, n: int, rank: int, world_size: int, *, drop_last: bool) -> None:
    """Refuse batches that cannot be made of n examples, or not by so many processes.

    Raises:
        DataError: says what is possible.
    """
    if batch_size < 1 or world_size < 1:
        raise DataError(f"batch size and number of processes must be positive, got {batch_size} and {world_size}")
    if batch_size > n and drop_last:
        remedy = f"use a batch size of at most {n} (--train.batch-size)"
        raise DataError(f"a batch of {batch_size} is larger than the {n} examples; {remedy}")
    if batch_size % world_size:
        remedy = f"make --train.batch-size a multiple of {world_size}"
        raise DataError(f"a batch of {batch_size} cannot be divided evenly among {world_size} processes: {remedy}")
    if not 0 <= rank < world_size:
        raise DataError(f"rank must lie in 0..{world_size - 1}, got {rank}")
