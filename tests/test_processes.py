"""What several processes have to agree on, seen in two real ones."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import iresnet as ir


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
    torch.save((products, torch.rand(1)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
def test_all_processes_draw_the_same_roulette_lengths_and_other_random_numbers(tmp_path):
    mp.start_processes(_lengths, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    (first, random), (second, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert len(set(first)) > 3
    assert random != other
