"""Laws of orders, splits and batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iresnet.data import Batches, Dataset, Split, permutation
from iresnet.data.dataset import hold_out
from iresnet.errors import DataError


def numbered(n, labels=True):
    return Split(torch.arange(float(n))[:, None], torch.arange(n) if labels else None)


def joined(lists):
    return [item for part in lists for item in part]


def seen(batches, **where):
    return [x.flatten().int().tolist() for x, _ in batches.epoch(**where)]


@given(n=st.integers(0, 300), key=st.lists(st.integers(-5, 2**40), max_size=3))
@settings(max_examples=50, deadline=None)
def test_a_permutation_holds_each_number_once_and_is_repeatable(n, key):
    order = permutation(n, *key)
    assert sorted(order) == list(range(n))
    assert np.array_equal(order, permutation(n, *key))


def test_permutations_are_pinned_to_these_values_for_ever():
    assert permutation(8, 0).tolist() == [5, 7, 2, 0, 3, 1, 6, 4]
    assert permutation(8, 3, 14).tolist() == [4, 5, 6, 3, 7, 1, 2, 0]


def test_permutations_are_uniform():
    n, draws = 6, 6000
    counts = np.zeros((n, n))
    for seed in range(draws):
        counts[np.arange(n), permutation(n, seed)] += 1
    expected = draws / n
    z = (counts - expected) / np.sqrt(expected * (1 - 1 / n))
    assert abs(z).max() < 4.5
    assert 0.4 < z.std() < 1.6


CASES = {
    "divides": {"n": 24, "batch_size": 6},
    "rest": {"n": 25, "batch_size": 6},
    "one batch": {"n": 6, "batch_size": 6},
    "in order": {"n": 25, "batch_size": 6, "shuffle": False},
    "rest kept": {"n": 25, "batch_size": 6, "drop_last": False},
    "small and kept": {"n": 4, "batch_size": 6, "drop_last": False},
}


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_holds_every_example_at_most_once_in_whole_batches(case):
    options = dict(CASES[case])
    n = options.pop("n")
    batches = Batches(numbered(n), **options)
    steps = seen(batches)
    flat = joined(steps)
    assert len(steps) == len(batches)
    assert len(set(flat)) == len(flat)
    assert len(flat) == (n - n % 6 if options.get("drop_last", True) else n)
    assert all(len(step) == 6 for step in steps[:-1])


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_epoch_continues_exactly(case):
    options = dict(CASES[case])
    batches = Batches(numbered(options.pop("n")), **options)
    whole = seen(batches, epoch=5)
    for start in range(len(batches) + 1):
        assert seen(batches, epoch=5, start=start) == whole[start:]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_parts_of_the_processes_are_the_batch_of_one_process(case, world_size):
    options = dict(CASES[case])
    split = numbered(options.pop("n"))
    alone = seen(Batches(split, **options), epoch=2)
    ranks = [seen(Batches(split, **options, rank=r, world_size=world_size), epoch=2) for r in range(world_size)]
    assert [joined(parts) for parts in zip(*ranks, strict=True)] == alone
    sizes = [[len(part) for part in parts] for parts in zip(*ranks, strict=True)]
    assert all(max(step) - min(step) <= 1 for step in sizes)


def test_labels_stay_with_their_examples_and_may_be_absent():
    assert all(torch.equal(x[:, 0].long(), y) for x, y in Batches(numbered(20), 5).epoch())
    assert all(y is None for _, y in Batches(numbered(20, labels=False), 5).epoch())


def test_orders_change_with_epoch_and_seed_and_only_if_shuffled():
    split = numbered(64)
    assert seen(Batches(split, 8), epoch=0) != seen(Batches(split, 8), epoch=1)
    assert seen(Batches(split, 8, seed=0)) != seen(Batches(split, 8, seed=1))
    assert joined(seen(Batches(split, 8, shuffle=False), epoch=3)) == list(range(64))


def test_orders_do_not_depend_on_the_state_of_torch():
    torch.manual_seed(0)
    first = seen(Batches(numbered(30), 6))
    torch.manual_seed(1)
    assert seen(Batches(numbered(30), 6)) == first


BAD_BATCHES = {
    "larger than the set": (lambda: Batches(numbered(5), 6), "batch of 6 is larger than the 5 examples"),
    "empty": (lambda: Batches(numbered(5), 0), "must be positive"),
    "not divisible": (lambda: Batches(numbered(50), 10, world_size=4), "cannot be divided evenly among 4"),
    "rank": (lambda: Batches(numbered(50), 10, rank=2, world_size=2), r"rank must lie in 0\.\.1"),
    "start": (lambda: next(Batches(numbered(50), 10).epoch(0, start=6)), "cannot start at step 6"),
    "labels": (lambda: Split(torch.zeros(3, 1), torch.zeros(2).long()), "3 examples need 3 int64 labels"),
    "label type": (lambda: Split(torch.zeros(3, 1), torch.zeros(3)), "int64"),
    "no examples": (lambda: Split(torch.zeros(0, 1)), "needs examples"),
    "scalars": (lambda: Split(torch.zeros(3)), "needs examples"),
    "type": (lambda: Split(torch.zeros(3, 1).int()), "must be uint8 or floating point"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_bad_splits_and_batches_are_refused_in_one_line(case):
    make, message = BAD_BATCHES[case]
    with pytest.raises(DataError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def images(n, size=4, dtype=torch.uint8):
    return Split(torch.zeros(n, 1, size, size, dtype=dtype), torch.zeros(n, dtype=torch.int64))


BAD_DATASETS = {
    "shapes": ((images(3), images(3), images(3, 5)), 256, ("a",), r"test examples \(1, 5, 5\)"),
    "levels missing": ((images(3),) * 3, None, ("a",), "integer examples have levels"),
    "levels for floats": ((images(3, dtype=torch.float32),) * 3, 256, ("a",), "integer examples have levels"),
    "values": ((Split(torch.full((3, 1), 17, dtype=torch.uint8)),) * 3, 17, (), r"lie in 0\.\.16, got 17"),
    "label": ((Split(images(3).x, torch.tensor([0, 1, 2])),) * 3, 256, ("a", "b"), r"lie in 0\.\.1, got 0\.\.2"),
    "names": ((images(3),) * 3, 256, (), "labels and class names go together"),
    "unlabeled test": ((images(3), images(3), Split(images(3).x)), 256, ("a",), "test: labels and class names"),
}


@pytest.mark.parametrize("case", BAD_DATASETS)
def test_inconsistent_data_sets_are_refused_in_one_line(case):
    splits, levels, names, message = BAD_DATASETS[case]
    with pytest.raises(DataError, match=message) as caught:
        Dataset("odd", *splits, levels=levels, class_names=names)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("given_kinds", [(), ("test",), ("validation",), ("validation", "test")])
def test_held_out_examples_are_fixed_disjoint_and_complete(shuffle, given_kinds):
    splits = {"train": numbered(50), **{kind: numbered(7) for kind in given_kinds}}
    train, validation, test = hold_out(splits, "here", shuffle=shuffle)
    again = hold_out(splits, "here", shuffle=shuffle)
    assert all(torch.equal(one.x, other.x) for one, other in zip((train, validation, test), again, strict=True))
    held = {"validation": validation, "test": test}
    assert all(held[kind] is splits[kind] for kind in given_kinds)
    drawn = torch.cat([train.x, *(split.x for kind, split in held.items() if kind not in given_kinds)])
    assert sorted(drawn.flatten().tolist()) == list(range(50))
    assert all(len(split) == 5 for kind, split in held.items() if kind not in given_kinds)
    assert torch.equal(train.x[:, 0].long(), train.y)


def test_at_most_5000_examples_validate_and_too_few_are_refused():
    _, validation, test = hold_out({"train": numbered(60_000), "test": numbered(9)}, "here", shuffle=False)
    assert len(validation) == 5000
    assert validation.y[-1] == 59_999
    assert len(test) == 9
    with pytest.raises(DataError, match="2 examples are too few"):
        hold_out({"train": numbered(2)}, "here", shuffle=True)
    with pytest.raises(DataError, match="expected training examples, found only test"):
        hold_out({"test": numbered(2)}, "here", shuffle=True)
