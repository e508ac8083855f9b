"""Streamed batches: every example once, shuffled, shared out, and the same again from any step."""

from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from data_fixtures import both, examples, isolated, write_folder, write_parquet  # noqa: F401
from test_training import Events, assert_same_run

from iresnet.config import load_config
from iresnet.data import StreamedBatches, load
from iresnet.errors import DataError, Interrupted
from iresnet.training import train

N, N_TRAIN = 200, 180
NAMES = [f"class {i}" for i in range(10)]


@pytest.fixture
def folder(tmp_path):
    """Images in three files of row groups of ten, like CIFAR-10, with their number in the first pixel."""
    x, y = examples(N, 3, 32)
    x[:, 0, 0, 0] = np.arange(N)
    write_parquet(tmp_path / "cifar10", {"train": (x, y), "test": both(3, 32)["test"]}, shards=3)
    return tmp_path


def numbers(batches, **where):
    return [x[:, 0, 0, 0].tolist() for x, _ in batches.epoch(**where)]


def joined(lists):
    return [item for part in lists for item in part]


CASES = {
    "blocks of whole batches": {"batch_size": 12, "buffer": 24},
    "blocks that end within batches": {"batch_size": 12, "buffer": 17},
    "blocks smaller than batches": {"batch_size": 12, "buffer": 5},
    "one block": {"batch_size": 50, "buffer": 1000},
    "no shuffling within groups": {"batch_size": 30, "buffer": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_holds_every_example_at_most_once(case, folder):
    stream, options = load("cifar10", folder, stream=True).stream, CASES[case]
    batches = StreamedBatches(stream, **options)
    seen = numbers(batches, epoch=2)
    assert len(seen) == len(batches) == N_TRAIN // options["batch_size"]
    assert {len(batch) for batch in seen} == {options["batch_size"]}
    assert len(set(joined(seen))) == len(seen) * options["batch_size"]
    assert set(joined(seen)) <= set(range(N_TRAIN))
    assert numbers(batches, epoch=2) == seen
    assert numbers(batches, epoch=3) != seen
    assert numbers(StreamedBatches(stream, seed=1, **options), epoch=2) != seen


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_continues_from_any_step(case, folder):
    batches = StreamedBatches(load("cifar10", folder, stream=True).stream, **CASES[case])
    whole = numbers(batches, epoch=5)
    for start in range(len(batches) + 1):
        assert numbers(batches, epoch=5, start=start) == whole[start:]


@pytest.mark.parametrize("case", CASES)
def test_processes_share_an_epoch(case, folder):
    stream, options = load("cifar10", folder, stream=True).stream, dict(CASES[case])
    parts = [numbers(StreamedBatches(stream, rank=rank, world_size=2, **options), epoch=1) for rank in range(2)]
    assert {len(batch) for part in parts for batch in part} == {options["batch_size"] // 2}
    everything = joined(joined(parts))
    assert len(set(everything)) == len(everything) == N_TRAIN // options["batch_size"] * options["batch_size"]


def test_a_process_reads_its_own_groups_alone(folder, monkeypatch):
    stream = load("cifar10", folder, stream=True).stream
    read = type(stream)._read_group
    seen = []
    monkeypatch.setattr(type(stream), "_read_group", lambda *args: seen.append(args[1:]) or read(*args))
    batches = StreamedBatches(stream, 12, buffer=20, rank=1, world_size=2)
    list(batches.epoch())
    assert len(set(seen)) <= len(stream.groups) / 2 + 1
    seen.clear()
    list(batches.epoch(start=len(batches) - 1))
    assert len(seen) <= 3  # what was done before is not read again


@pytest.mark.slow
def test_examples_are_well_shuffled(folder):
    """Neighbors in the files come together no more often than by chance, and every place is as likely."""
    batches = StreamedBatches(load("cifar10", folder, stream=True).stream, 10, buffer=60)
    orders = np.array([joined(numbers(batches, epoch=epoch)) for epoch in range(60)])
    places = np.argsort(orders, axis=1)
    assert abs(places.mean(0) - 89.5).max() < 4.5 * 52 / np.sqrt(60)
    neighbors = sum(abs(a - b) == 1 for order in orders.tolist() for a, b in pairwise(order))
    assert neighbors < 0.1 * orders.size  # in order: 1; with groups in order and shuffled within: 0.18


@pytest.mark.parametrize("pad_to", [None, 36])
def test_the_examples_are_those_of_memory(pad_to, folder):
    memory, streamed = (load("cifar10", folder, pad_to=pad_to, stream=stream) for stream in (False, True))
    assert str(memory) == str(streamed)
    for kind in ("validation", "test"):
        assert torch.equal(getattr(memory, kind).x, getattr(streamed, kind).x)
        assert torch.equal(getattr(memory, kind).y, getattr(streamed, kind).y)
    c = memory.shape[-1] // 2 - 16
    n_seen = 0
    for x, y in StreamedBatches(streamed.stream, 12, buffer=50).epoch():
        index = x[:, 0, c, c].long()
        assert torch.equal(x, memory.train.x[index])
        assert torch.equal(y, memory.train.y[index])
        n_seen += len(x)
    assert n_seen == N_TRAIN
    assert set(streamed.train.x[:, 0, c, c].tolist()) == set(range(N_TRAIN))


def test_a_folder_of_ones_own_is_streamed(tmp_path):
    write_parquet(tmp_path / "mine", {"train": examples(60, 1, 8)}, image="image", names=NAMES)
    dataset = load("mine", tmp_path, stream=True)
    assert str(dataset) == "mine: 48 train, 6 validation, 6 test; 1x8x8, 256 levels, 10 classes"
    assert torch.equal(dataset.test.x, torch.from_numpy(examples(60, 1, 8)[0][54:]))


REFUSED = {
    "no Parquet": (lambda f: write_folder(f / "mine", *examples(9, 1, 8)), "reads Parquet files of images"),
    "nothing": (lambda f: None, "reads Parquet files of images, and there are none in"),
    "no names": (lambda f: write_parquet(f / "mine", {"train": examples(60, 1, 8)}), "declare no class names"),
    "no training examples": (
        lambda f: write_parquet(f / "mine", {"test": examples(60, 1, 8)}, names=NAMES),
        "expected training examples, found only test",
    ),
    "too few": (lambda f: write_parquet(f / "mine", {"train": examples(2, 1, 8)}, names=NAMES), "too few"),
    "labels beyond the names": (
        lambda f: write_parquet(f / "mine", {"train": examples(60, 1, 8)}, names=NAMES[:5]),
        "labels must lie in 0..4",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_streamed_is_refused(case, tmp_path):
    write, expected = REFUSED[case]
    write(tmp_path)
    with pytest.raises(DataError, match=expected):
        load("mine", tmp_path, stream=True)


def test_a_file_that_is_damaged_in_the_middle_is_refused(folder):
    stream = load("cifar10", folder, stream=True).stream
    images = pq.read_metadata(stream.paths[0]).row_group(3).column(0)
    content = bytearray(stream.paths[0].read_bytes())
    content[images.data_page_offset + images.total_compressed_size // 2] ^= 255
    stream.paths[0].write_bytes(content)
    with pytest.raises(DataError, match=r"expected a complete (Parquet|image) file"):
        list(StreamedBatches(stream, 12).epoch())


def test_streamed_training_resumes_exactly(folder, tmp_path):
    tokens = ["--data.name", "cifar10", "--data.stream", "true", "--data.shuffle-buffer", "50", "--model.hidden", "4"]
    tokens += ["--model.blocks", "[1,0]", "--train.batch-size", "20", "--train.epochs", "2", "--train.n-pictures", "0"]
    config = load_config("digits-density", [*tokens, "--train.log-every", "2", "--data.augment", "flip"])
    whole = train(config, tmp_path / "whole", data_dir=folder)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises((Interrupted, KeyboardInterrupt)):
        train(config, tmp_path / "run", data_dir=folder, callbacks=[Events(13, stop)])
    config_step = train(config, tmp_path / "run", data_dir=folder, resume=True)
    assert_same_run(config_step, whole)
    assert config_step.metrics_file.read_text() == whole.metrics_file.read_text()
