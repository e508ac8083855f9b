"""Batches shared out over processes."""

__all__ = ["shared"]

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from iresnet.processes import gather, rank, world_size
from iresnet.series import own_lengths

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def shared(batches: Iterable[Batch], evaluate: Callable[[Batch], Result]) -> Iterator[Result]:
    """Evaluate each batch in one of the processes, and yield the results of all, in order, in every process.

    What is drawn at random when a batch is made is drawn in every process, so that it does not depend on their number.

    Args:
        batches: the same in all processes.
        evaluate: from a batch to a result that can be pickled.

    Example:
        >>> list(shared([1, 2, 3], lambda n: n**2))
        [1, 4, 9]
    """
    remaining = iter(batches)
    while turn := list(islice(remaining, world_size())):
        with own_lengths():
            mine = evaluate(turn[rank()]) if rank() < len(turn) else None
        yield from gather(mine)[: len(turn)]  # pyright: ignore[reportReturnType]
