"""Start a command line in several processes of this machine, as torchrun does; torch is imported only when it is used.

The processes join each other in :mod:`iresnet.collectives`, a file of its own since it needs torch.
"""

__all__ = ["check_processes", "launch", "started_together"]

import logging
import os
import signal
from collections.abc import Callable, Sequence

from iresnet.errors import RecipeError

MOST_A_CORE = 16
"""Processes for each core, of which more are a slip of the pen that would bring the machine down."""


def started_together() -> bool:
    """Return whether torchrun, or :func:`launch`, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def check_processes(processes: int | None, gpus: int | None, device: str = "auto") -> int:
    """Return how many processes ``--processes`` or ``--gpus`` ask for; 1 when neither is given.

    Args:
        processes: the first of the two options.
        gpus: the second.
        device: value of ``--device``: processes on the CPU need no GPUs.

    Raises:
        RecipeError: when both are given, or there are not as many GPUs, or far fewer cores.

    Example:
        >>> check_processes(None, None)
        1
    """
    if processes is None and gpus is None:
        return 1
    import torch

    found = 0 if device == "cpu" else torch.cuda.device_count()
    if processes is not None and gpus is not None:
        raise RecipeError("--gpus N starts N processes, one for each GPU: leave out --processes")
    if gpus is not None and device == "cpu":
        raise RecipeError(f"--gpus {gpus} and --device cpu contradict each other: leave out one of them")
    if gpus is not None and gpus > found:
        remedy = "" if found else f"; use --processes {gpus} for as many processes on the CPU"
        raise RecipeError(f"--gpus {gpus} needs as many GPUs, torch finds {found} on this machine{remedy}")
    if processes is not None and 0 < found < processes:
        raise RecipeError(
            f"--processes {processes} needs a GPU for each, torch finds {found} on this machine; or use --device cpu"
        )
    most = MOST_A_CORE * (os.cpu_count() or 1)
    if processes is not None and not found and processes > most:
        raise RecipeError(f"--processes {processes} is more than {MOST_A_CORE} for each core: at most {most} here")
    return processes or gpus or 1


def launch(tokens: Sequence[str], n: int, complain: Callable[[str, int], int]) -> int:
    """Run ``iresnet TOKENS`` in n processes that know of each other, and return the exit status of all together.

    Args:
        tokens: the command line after the program's name.
        n: number of processes.
        complain: prints an error and returns the exit status that it is given.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith(("torch.distributed.elastic", "torch.distributed.run")):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is told in one line, here or by the process
    # What torchrun leaves to its user: one thread each is too few, all cores each are too many.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n)))
    try:
        run(parse_args(["--standalone", f"--nproc_per_node={n}", "--module", "iresnet", *tokens]))
    except ChildFailedError as error:
        number, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
        if failure.exitcode >= 0:
            return failure.exitcode
        ended = signal.Signals(-failure.exitcode).name  # which the process could not say itself
        return complain(f"process {number} was ended by {ended}, and the others with it", 1)
    except SignalException:  # it was handed on to the processes, which stopped in order
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all that is left is to say so
        return 130
    return 0
