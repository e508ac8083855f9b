"""What several processes have to agree on, seen in two real ones."""

import logging
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed import run

import iresnet as ir
from iresnet.errors import RecipeError
from iresnet.launch import check_processes, launch


def _lengths(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)
    estimator = ir.RussianRoulette(n_exact=1, p=0.3)
    x = torch.zeros(2, 3)
    products = []

    def g(x):
        return 0.5 * x

    for _ in range(30):
        jacobian = ir.linearize(g, x)
        products.append(estimator.estimate(jacobian).n_products)
        if len(products) == 15 and rank == 0:
            # A generator of its own: the other process does not do this, and would otherwise be waited for.
            estimator.drawing_from(torch.Generator()).estimate(jacobian)
    torch.save((products, torch.rand(1)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_all_processes_draw_the_same_roulette_lengths_and_other_random_numbers(tmp_path):
    mp.start_processes(_lengths, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    (first, random), (second, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert len(set(first)) > 3
    assert random != other


ASKED = {
    "nothing": (0, None, None, 1),
    "processes on the CPU": (0, 3, None, 3),
    "a process for each GPU": (4, 4, None, 4),
    "fewer processes than GPUs": (4, 2, None, 2),
    "GPUs": (4, None, 4, 4),
    "more processes than GPUs": (4, 5, None, "needs a GPU for each, torch finds 4"),
    "more GPUs than there are": (4, None, 5, "needs as many GPUs, torch finds 4"),
    "GPUs without any": (0, None, 2, "use --processes 2 for as many processes on the CPU"),
    "both": (4, 2, 2, "leave out --processes"),
    "a slip of the pen": (0, 99999, None, "--processes 99999 is more than 16 for each core: at most"),
}
"""GPUs that there are, ``--processes``, ``--gpus``, and what comes of it."""


@pytest.mark.parametrize("case", ASKED)
def test_numbers_of_processes(case, monkeypatch):
    found, processes, gpus, expected = ASKED[case]
    monkeypatch.setattr("torch.cuda.device_count", lambda: found)
    if isinstance(expected, int):
        assert check_processes(processes, gpus) == expected
    else:
        with pytest.raises(RecipeError, match=expected):
            check_processes(processes, gpus)


def test_the_launcher_says_nothing_of_its_own(monkeypatch, caplog):
    loggers = [logging.getLogger(f"torch.distributed.{name}") for name in ("run", "elastic.agent.server.api")]
    for logger in loggers:
        monkeypatch.setattr(logger, "level", logging.WARNING)
    monkeypatch.setattr(run, "run", lambda _: [logger.warning("received a signal") for logger in loggers])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch(["recipes"], 2, lambda *_: 1) == 0
    assert not caplog.records


@pytest.mark.parametrize(("n", "printed"), [(1, "done, late"), (2, "done")])
def test_one_of_several_processes_ends_without_the_end_of_the_interpreter(n, printed):
    """Its output is there, and its status; what torch does while an interpreter ends is not waited for."""
    code = "import atexit; from iresnet import cli; atexit.register(print, ', late', end='')"
    code += "; cli.run = lambda tokens: print('done', end='') or 3; cli.main()"
    environment = {**os.environ, "WORLD_SIZE": str(n)}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (3, printed, "")
