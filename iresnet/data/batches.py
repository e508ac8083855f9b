"""Batches of a split in memory, or of images that stay in their Parquet files."""

__all__ = [
    "Batches",
    "Stream",
    "StreamedBatches",
    "check_batches",
    "training_batches",
]

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from iresnet.data.dataset import Dataset, Split, permutation
from iresnet.data.images import Encoded, decode_images
from iresnet.data.reading import reading
from iresnet.errors import DataError

# -- in memory ---------------------------------------------------------------------------------------------------------


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


# -- streamed ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """The first rows of Parquet files of images, in the hub's layout.

    Args:
        paths: the files.
        image: column of structs with encoded ``bytes``.
        label: column of the class labels, or ``None``.
        n: how many rows belong to it.
        n_classes: labels lie below it.
        sides: zeros to add left, right, above and below.
    """

    paths: tuple[Path, ...]
    image: str
    label: str | None
    n: int
    n_classes: int = 0
    sides: tuple[int, int, int, int] = (0, 0, 0, 0)

    def __len__(self) -> int:
        return self.n

    @cached_property
    def _metadata(self) -> dict[Path, pq.FileMetaData]:
        return {path: pq.read_metadata(path) for path in self.paths}

    @cached_property
    def groups(self) -> list[tuple[Path, int, int]]:
        """File, number in it and rows of each row group: what can be read without reading anything else."""
        found, left = [], self.n
        for path, metadata in self._metadata.items():
            for i in range(metadata.num_row_groups):
                rows = min(left, metadata.row_group(i).num_rows)
                found += [(path, i, rows)] if rows else []
                left -= rows
        return found

    def read(self, order: Sequence[int], start: int, stop: int) -> pa.Table:
        """Read rows ``start`` to ``stop`` of the row groups in an order; of no group more than once."""
        parts, begin = [], 0
        for i in order:
            path, number, rows = self.groups[i]
            first, last = max(start - begin, 0), min(stop - begin, rows)
            if first < last:
                parts.append(self._read_group(path, number).slice(first, last - first))
            begin += rows
        return pa.concat_tables(parts)

    def _read_group(self, path: Path, number: int) -> pa.Table:
        columns = [self.image, *([self.label] if self.label else [])]
        options = {"metadata": self._metadata[path], "page_checksum_verification": True}
        with reading(path, "complete Parquet file"), pq.ParquetFile(path, **options) as file:
            return file.read_row_group(number, columns)

    def decode(self, table: pa.Table) -> tuple[Tensor, Tensor | None]:  # (n, C, H, W), (n,)
        """Decode images, and check their labels."""
        images = [image for chunk in table.column(self.image).chunks for image in chunk.field("bytes")]
        if any(not image.is_valid for image in images):
            raise DataError(f"{self.paths[0].parent}: expected the bytes of every image, some are missing")
        x = decode_images([Encoded(f"an image of {self.paths[0].parent}", image.as_py) for image in images])
        x = F.pad(torch.from_numpy(x), self.sides)
        return x, None if self.label is None else self._labels(table.column(self.label))

    def _labels(self, column: pa.ChunkedArray) -> Tensor:
        y = torch.tensor(column.to_numpy())
        if y.is_floating_point() or not 0 <= int(y.min()) <= int(y.max()) < self.n_classes:
            raise DataError(f"{self.paths[0].parent}: labels must lie in 0..{self.n_classes - 1} and not be missing")
        return y.to(torch.int64)

    def split(self, start: int, stop: int, order: Sequence[int] | None = None) -> Split:
        """Rows ``start`` to ``stop`` in memory, of the files as they are or of the row groups in an order."""
        return Split(*self.decode(self.read(range(len(self.groups)) if order is None else order, start, stop)))


class StreamedBatches:
    """Iterate over a stream as :class:`~iresnet.data.Batches` does over a split, holding a part of it in memory.

    An epoch takes the row groups in a new order; each process reads a contiguous part of it, block by block, and
    shuffles the examples of a block. All of that is a function of ``(seed, epoch)``, so an interrupted run continues
    in the middle of an epoch by reading the block that it had reached. The next batch is decoded while one is used.

    With several processes the parts are disjoint; unlike those of ``Batches`` their batches are not together what a
    single process would see.

    Args:
        stream: the examples.
        batch_size: examples per step, over all processes together.
        buffer: examples of a block, encoded, which each process holds in memory.
        seed: selects the orders.
        rank: which part of each epoch to yield.
        world_size: how many parts there are.
        device: where the batches are put.

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
        self.share = batch_size // world_size
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
        return self._ahead(self._batches(epoch, start))

    def _ahead(self, batches: Iterator[tuple[Tensor, Tensor | None]]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Prepare the next batch, in a thread, while one is used."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            coming = pool.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = pool.submit(next, batches, None)
                x, y = batch
                yield x.to(self.device), None if y is None else y.to(self.device)

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        waiting: list[pa.Table] = []
        for block in self._blocks(epoch, start * self.share):
            waiting.append(block)
            table = pa.concat_tables(waiting)
            n = len(table) // self.share
            for i in range(n):
                yield self.stream.decode(table.slice(i * self.share, self.share))
            waiting = [table.slice(n * self.share)]

    def _blocks(self, epoch: int, skip: int) -> Iterator[pa.Table]:
        """The examples of this process from the ``skip``-th on, shuffled block by block."""
        order = permutation(len(self.stream.groups), self.seed, epoch).tolist()
        n = len(self) * self.share
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
    """Batches of the training examples, from memory or from files.

    Args:
        dataset: the data.
        batch_size: examples per step, over all processes together.
        buffer: of :class:`StreamedBatches`.
        device: where the batches are put.
        seed: selects the orders.
        rank: which part of each batch, or of each epoch, to yield.
        world_size: how many parts there are.

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
