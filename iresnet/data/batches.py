"""Batches of examples in memory, or of images that are streamed from their files."""

__all__ = [
    "Batches",
    "StreamedBatches",
    "check_batches",
    "training_batches",
]

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from iresnet.data.dataset import Dataset, Split, permutation
from iresnet.data.images import Stream
from iresnet.errors import DataError

# -- in memory ---------------------------------------------------------------------------------------------------------


class Batches:
    """Batches of a split in memory; each is one ``index_select`` on the split's device.

    The order of an epoch is a function of ``(seed, epoch)`` and nothing else, so an interrupted run
    continues in the middle of an epoch with ``start``, and every process knows the order of all of them.
    With several processes, each takes a contiguous slice of every batch: the slices, in the order of
    the ranks, are the batch that a single process would see.

    Args:
        split: the examples.
        batch_size: examples per step, over all processes together.
        shuffle: a new order every epoch; otherwise the split's own order.
        drop_last: leave out the last batch where it would be smaller. Keep it (``False``) to evaluate;
            the slices of that batch then differ by one example at most and can be empty.
        seed: selects the orders.
        rank: of this process, which selects its slice of each batch.
        world_size: number of processes.

    Raises:
        DataError: a batch larger than the split (with ``drop_last``), or one that cannot be divided
            evenly among the processes.

    Example:
        >>> batches = Batches(Split(torch.arange(10.0)[:, None]), 4, seed=1)
        >>> len(batches)
        2
        >>> full = [x for x, _ in batches.epoch(3)]
        >>> resumed = [x for x, _ in batches.epoch(3, start=1)]
        >>> torch.equal(full[1], resumed[0])
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
        full, rest = divmod(len(self.split), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

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
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        x, y, n = self.split.x, self.split.y, len(self.split)
        order = torch.from_numpy(permutation(n, self.seed, epoch)) if self.shuffle else torch.arange(n)
        order = order.to(x.device)
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


# -- streamed ----------------------------------------------------------------------------------------------------------


class StreamedBatches:
    """Batches of a stream, as :class:`~iresnet.data.Batches` makes them of a split, with one block of it in memory.

    An epoch takes the row groups in a new order; each process reads a contiguous shard of it, block by block, and
    shuffles the examples of a block. All of that is a function of ``(seed, epoch)``, so an interrupted run continues
    in the middle of an epoch by reading the block that it had reached. The next batch is decoded while one is used.

    With several processes the shards are disjoint; unlike those of ``Batches``, the batches of all processes together
    are not what a single process would see.

    Args:
        stream: the examples.
        batch_size: examples per step, over all processes together.
        buffer: examples of a block, encoded, which each process holds in memory.
        seed: selects the orders.
        rank: of this process, which selects its shard of each epoch.
        world_size: number of processes.
        device: of the batches.

    Raises:
        DataError: a batch larger than the stream, or one that cannot be divided evenly among the processes.
    """

    def __init__(
        self,
        stream: Stream,
        batch_size: int,
        *,
        buffer: int = 10_000,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
    ):
        check_batches(batch_size, len(stream), rank, world_size, drop_last=True)
        if buffer < 1:
            raise DataError(f"the shuffle buffer must hold at least 1 example, got {buffer}")
        self.stream = stream
        self.batch_size = batch_size
        self.local_batch_size = batch_size // world_size
        self.buffer = buffer
        self.seed = seed
        self.rank = rank
        self.device = device

    def __len__(self) -> int:
        return len(self.stream) // self.batch_size

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the batches of one epoch; see :meth:`Batches.epoch <iresnet.data.Batches.epoch>`."""
        if not 0 <= start <= len(self):
            raise DataError(f"an epoch has {len(self)} steps, cannot start at step {start}")
        return self._prefetch(self._batches(epoch, start))

    def _prefetch(self, batches: Iterator[tuple[Tensor, Tensor | None]]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Prepare the next batch, in a thread, while one is used."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            coming = pool.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = pool.submit(next, batches, None)
                x, y = batch
                yield x.to(self.device), None if y is None else y.to(self.device)

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        size = self.local_batch_size
        rest: list[pa.Table] = []  # rows of earlier blocks that do not fill a batch
        for block in self._blocks(epoch, start * size):
            table = pa.concat_tables([*rest, block])
            n = len(table) // size
            for i in range(n):
                yield self.stream.decode(table.slice(i * size, size))
            rest = [table.slice(n * size)]

    def _blocks(self, epoch: int, skip: int) -> Iterator[pa.Table]:
        """Read the examples of this process from the ``skip``-th on, shuffled block by block."""
        order = permutation(len(self.stream.groups), self.seed, epoch).tolist()
        n = len(self) * self.local_batch_size
        for begin in range(skip - skip % self.buffer, n, self.buffer):
            size = min(self.buffer, n - begin)
            first = self.rank * n + begin
            block = self.stream.read(order, first, first + size)
            shuffled = np.asarray(permutation(size, self.seed, epoch, self.rank, begin))
            yield block.take(shuffled[max(skip - begin, 0) :])


def training_batches(
    dataset: Dataset,
    batch_size: int,
    *,
    buffer: int = 10_000,
    device: torch.device | str = "cpu",
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Batches | StreamedBatches:
    """Return batches of the training examples, from memory or from files.

    Args:
        dataset: the data.
        batch_size: examples per step, over all processes together.
        buffer: of :class:`StreamedBatches`.
        device: of the batches.
        seed: selects the orders.
        rank: of this process, which selects its share of each batch or epoch.
        world_size: number of processes.

    Example:
        >>> from iresnet.data import load
        >>> len(training_batches(load("digits"), 64))
        20
    """
    if dataset.stream is None:
        return Batches(dataset.train.to(device), batch_size, seed=seed, rank=rank, world_size=world_size)
    return StreamedBatches(
        dataset.stream, batch_size, buffer=buffer, device=device, seed=seed, rank=rank, world_size=world_size
    )
