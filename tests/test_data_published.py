"""The published formats are read as what was written, and damage is told in one line."""

import gzip
import pickle
import shutil
import zlib
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fixtures import (
    COLOR,
    FORMATS,
    GRAY,
    cifar_python_files,
    encode,
    idx_bytes,
    isolated,  # noqa: F401
    load_back,
    python2_pickle,
    write_cifar_binary,
    write_cifar_python,
    write_cifar_python_tar,
    write_files,
    write_idx,
    write_parquet,
    write_svhn,
    write_tar,
)
from scipy.io import savemat

from iresnet.data import DATASETS, formats, load
from iresnet.data.published import PUBLISHED
from iresnet.errors import DataError, UnknownNameError


@pytest.mark.parametrize("case", FORMATS)
@pytest.mark.parametrize("inside", [True, False])
def test_what_was_written_is_read_back(case, inside, tmp_path):
    name, write, data = FORMATS[case]
    write(tmp_path / name if inside else tmp_path, data)
    dataset, back = load_back(name, tmp_path)
    for kind, (x, y) in data.items():
        assert np.array_equal(back[kind][0], x)
        assert np.array_equal(back[kind][1], y)
    assert (dataset.name, dataset.levels, dataset.shape) == (name, 256, x.shape[1:])
    assert len(dataset.validation) == 4
    assert str(tmp_path) in dataset.source


@pytest.mark.parametrize("case", FORMATS)
def test_the_environment_variable_and_the_cache_are_looked_into(case, tmp_path, isolated, monkeypatch):  # noqa: F811
    name, write, data = FORMATS[case]
    write(isolated / name, data)
    assert str(isolated) in load(name).source
    write(tmp_path / name, data)
    monkeypatch.setenv("IRESNET_DATA", str(tmp_path))
    assert str(tmp_path) in load(name).source


def test_pickles_of_python_3_are_read_too(tmp_path):
    for numpy_version in (b"numpy.core", b"numpy._core"):
        files = cifar_python_files(formats.CIFAR10, COLOR, dumps=lambda obj: pickle.dumps(obj, protocol=2))
        renamed = {name: content.replace(b"numpy._core", numpy_version) for name, content in files.items()}
        write_files(tmp_path / "cifar-10-batches-py", renamed)
        _, back = load_back("cifar10", tmp_path)
        assert np.array_equal(back["train"][0], COLOR["train"][0])


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_something_is_refused_and_does_not_run(protocol, tmp_path):
    traces = tmp_path / "was here"
    write_cifar_python(tmp_path, formats.CIFAR10, COLOR)
    evil = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    evil.write_bytes(pickle.dumps({b"data": Malicious(traces), b"labels": []}, protocol=protocol))
    with pytest.raises(DataError, match=r"data_batch_1: .*refused to run .*\.open"):
        load("cifar10", tmp_path)
    assert not traces.exists()
    pickle.loads(evil.read_bytes())[b"data"].close()  # it would have run
    assert traces.exists()


def object_array(path):
    return pickle.dumps({b"data": np.array([Malicious(path)], object), b"labels": [0]}, protocol=2)


def no_wrong_codec(_path):
    return b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R."


@pytest.mark.parametrize("make", [object_array, no_wrong_codec])
def test_arrays_of_objects_and_other_codecs_are_refused(make, tmp_path):
    traces = tmp_path / "was here"
    write_cifar_python(tmp_path, formats.CIFAR10, COLOR)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(make(traces))
    with pytest.raises(DataError, match=r"test_batch: .*refused"):
        load("cifar10", tmp_path)
    assert not traces.exists()


def shorten(path, keep=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def corrupt(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0xFF
    path.write_bytes(content)


def gz_of(path, content):
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
BATCHES, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
TRAIN, TEST = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"


def parquet_of(path, columns):
    pq.write_table(pa.table(columns), path)


def images_column(contents):
    return pa.array(
        [{"bytes": c, "path": None} for c in contents], pa.struct([("bytes", pa.binary()), ("path", "str")])
    )


def _python(folder):
    write_cifar_python(folder, formats.CIFAR10, COLOR)


def _tar(folder):
    write_cifar_python_tar(folder, formats.CIFAR10, COLOR)


def _binary(folder):
    write_cifar_binary(folder, formats.CIFAR10, COLOR)


def _idx(folder):
    write_idx(folder, GRAY)


def _mat(folder):
    write_svhn(folder, COLOR)


def _parquet(folder):
    write_parquet(folder, COLOR)


#: Name of the data set, valid files, the damage done to them, what the message says.
DAMAGE = {
    "idx: file missing": ("mnist", _idx, lambda f: (f / LABELS).unlink(), f"{LABELS} missing; add them"),
    "idx: truncated": ("mnist", _idx, lambda f: shorten(f / IMAGES), r"expected 31360 bytes for shape .*, got 18809"),
    "idx: empty": ("mnist", _idx, lambda f: (f / IMAGES).write_bytes(b""), "expected an idx header .*an empty file"),
    "idx: header cut": ("mnist", _idx, lambda f: (f / IMAGES).write_bytes(b"\0\0\x08\x03\0"), "expected an idx header"),
    "idx: other type": ("mnist", _idx, lambda f: (f / IMAGES).write_bytes(b"\0\0\x0d\x03" + bytes(12)), "got 00 00 0d"),
    "idx: other file": ("mnist", _idx, lambda f: shutil.copy(f / LABELS, f / IMAGES), "with 3 dimension"),
    "idx: no images": (
        "mnist",
        _idx,
        lambda f: [(f / n).write_bytes(idx_bytes(np.zeros(s))) for n, s in ((IMAGES, (0, 28, 28)), (LABELS, (0,)))],
        "got 0 images and 0 labels",
    ),
    "idx: fewer labels": (
        "mnist",
        _idx,
        lambda f: (f / LABELS).write_bytes(idx_bytes(np.zeros(39))),
        "got 40 images and 39 labels",
    ),
    "idx: wrong size": (
        "mnist",
        _idx,
        lambda f: (f / IMAGES).write_bytes(idx_bytes(np.zeros((40, 20, 20)))),
        r"mnist has images of shape \(1, 28, 28\), the train files have \(1, 20, 20\)",
    ),
    "idx: label too large": (
        "mnist",
        _idx,
        lambda f: (f / LABELS).write_bytes(idx_bytes(np.full(40, 10))),
        r"labels must lie in 0\.\.9, got 10\.\.10",
    ),
    "idx: other checksum": (
        "fashion-mnist",
        _idx,
        lambda f: gz_of(f / IMAGES, idx_bytes(GRAY["train"][0][:, 0])),
        f"{IMAGES}.gz: expected md5 8d4fb7e6c68d591d4c3dfef9ec88bf0d, got [0-9a-f]{{32}} ",
    ),
    "python: file missing": ("cifar10", _python, lambda f: (f / BATCHES / "data_batch_3").unlink(), "_3: no such file"),
    "python: truncated": (
        "cifar10",
        _python,
        lambda f: shorten(f / BATCHES / "data_batch_3"),
        "data_batch_3: expected",
    ),
    "python: empty": ("cifar10", _python, lambda f: (f / BATCHES / "test_batch").write_bytes(b""), "EOFError"),
    "python: no pickle": (
        "cifar10",
        _python,
        lambda f: (f / BATCHES / "test_batch").write_bytes(b"hello"),
        "test_batch",
    ),
    "python: no labels": (
        "cifar10",
        _python,
        lambda f: (f / BATCHES / "test_batch").write_bytes(python2_pickle({b"data": np.zeros((2, 3072), np.uint8)})),
        "test_batch: expected a pickle of arrays, .*labels",
    ),
    "python: fewer labels": (
        "cifar10",
        _python,
        lambda f: (f / BATCHES / "test_batch").write_bytes(
            python2_pickle({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]})
        ),
        "test_batch: expected 2 integer labels",
    ),
    "python: wrong shape": (
        "cifar10",
        _python,
        lambda f: (f / BATCHES / "test_batch").write_bytes(
            python2_pickle({b"data": np.zeros((2, 300), np.uint8), b"labels": [1, 2]})
        ),
        r"expected uint8 images of shape \(N, 3072\), got uint8 \(2, 300\)",
    ),
    "tar: truncated": ("cifar10", _tar, lambda f: shorten(f / ARCHIVE), f"{ARCHIVE}: expected a complete .tar.gz"),
    "tar: one byte": ("cifar10", _tar, lambda f: corrupt(f / ARCHIVE), f"{ARCHIVE}"),
    "tar: checksum": (
        "cifar10",
        _tar,
        lambda f: corrupt(f / ARCHIVE, 0.99999),
        f"{ARCHIVE}: .*CRC|{ARCHIVE}: .*length",
    ),
    "tar: empty": ("cifar10", _tar, lambda f: (f / ARCHIVE).write_bytes(b""), f"{ARCHIVE}: "),
    "tar: other content": (
        "cifar10",
        _tar,
        lambda f: write_tar(f / ARCHIVE, BATCHES, {"data_batch_1": b""}),
        "data_batch_2, data_batch_3, data_batch_4, data_batch_5, test_batch missing",
    ),
    "binary: truncated": (
        "cifar10",
        _binary,
        lambda f: shorten(f / "cifar-10-batches-bin" / "test_batch.bin"),
        "test_batch.bin: expected records of 3073 bytes, got 22125 bytes",
    ),
    "binary: file missing": (
        "cifar10",
        _binary,
        lambda f: (f / "cifar-10-batches-bin" / "data_batch_5.bin").unlink(),
        "data_batch_5.bin: no such file",
    ),
    "mat: file missing": ("svhn", _mat, lambda f: (f / "test_32x32.mat").unlink(), "test_32x32.mat missing"),
    "mat: truncated": ("svhn", _mat, lambda f: shorten(f / "train_32x32.mat"), "train_32x32.mat: expected a MATLAB"),
    "mat: empty": ("svhn", _mat, lambda f: (f / "train_32x32.mat").write_bytes(b""), "train_32x32.mat: expected"),
    "mat: one byte": ("svhn", _mat, lambda f: corrupt(f / "train_32x32.mat"), "train_32x32.mat: expected"),
    "mat: wrong shape": (
        "svhn",
        _mat,
        lambda f: savemat(f / "train_32x32.mat", {"X": np.zeros((3, 32, 32, 5), np.uint8), "y": np.ones((5, 1))}),
        r"train_32x32.mat: expected uint8 X of shape \(32, 32, 3, N\), got uint8 \(3, 32, 32, 5\)",
    ),
    "mat: fewer labels": (
        "svhn",
        _mat,
        lambda f: savemat(f / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 5), np.uint8), "y": np.ones((4, 1))}),
        r"expected 5 labels y in 1\.\.10, got shape \(4,\)",
    ),
    "mat: no labels": (
        "svhn",
        _mat,
        lambda f: savemat(f / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 5), np.uint8)}),
        "train_32x32.mat: expected a MATLAB file with variables X and y",
    ),
    "parquet: only train": (
        "cifar10",
        _parquet,
        lambda f: (f / TEST).unlink(),
        "cifar10 has a train and a test split, got only train",
    ),
    "parquet: only test": (
        "cifar10",
        _parquet,
        lambda f: (f / TRAIN).unlink(),
        "cifar10 has a train and a test split, got only test",
    ),
    "parquet: truncated": ("cifar10", _parquet, lambda f: shorten(f / TRAIN), f"{TRAIN}: expected a complete Parquet"),
    "parquet: damaged": ("cifar10", _parquet, lambda f: corrupt(f / TRAIN, 0.3), f"{TRAIN}: expected a complete"),
    "parquet: empty file": (
        "cifar10",
        _parquet,
        lambda f: (f / TRAIN).write_bytes(b""),
        f"{TRAIN}: expected a complete",
    ),
    "parquet: no rows": (
        "cifar10",
        _parquet,
        lambda f: parquet_of(f / TRAIN, {"img": images_column([]), "label": pa.array([], pa.int64())}),
        "expected images, got an empty table",
    ),
    "parquet: shard missing": (
        "cifar10",
        lambda f: write_parquet(f, COLOR, shards=2),
        lambda f: (f / "train-00001-of-00002.parquet").unlink(),
        "expected 2 train files, got 1",
    ),
    "parquet: no label": (
        "cifar10",
        _parquet,
        lambda f: parquet_of(f / TRAIN, {"img": images_column([b""])}),
        "expected a column img or image and a column label, got img",
    ),
    "parquet: image is text": (
        "cifar10",
        _parquet,
        lambda f: parquet_of(f / TRAIN, {"img": ["a.png"], "label": [0]}),
        "expected img to hold structs with encoded bytes, got string",
    ),
    "parquet: no bytes": (
        "cifar10",
        _parquet,
        lambda f: parquet_of(f / TRAIN, {"img": images_column([None]), "label": [0]}),
        "expected the bytes of every image, 1 are missing",
    ),
    "parquet: label is text": (
        "cifar10",
        _parquet,
        lambda f: parquet_of(f / TRAIN, {"img": images_column([encode(COLOR["train"][0][0])]), "label": ["cat"]}),
        "expected an integer label for every image",
    ),
    "parquet: image cut": (
        "cifar10",
        _parquet,
        lambda f: parquet_of(
            f / TRAIN,
            {
                "img": images_column([encode(x)[: 2000 - i] for i, x in enumerate(COLOR["train"][0][:3])]),
                "label": [0] * 3,
            },
        ),
        f"{TRAIN}, row 0: expected a complete image file",
    ),
    "parquet: no image": (
        "cifar10",
        _parquet,
        lambda f: parquet_of(f / TRAIN, {"img": images_column([b"hello"]), "label": [0]}),
        f"{TRAIN}, row 0: expected a complete image file",
    ),
    "parquet: other classes": (
        "svhn",
        lambda f: write_parquet(f, COLOR, names=["airplane", "automobile", *"abcdefgh"]),
        lambda _: None,
        "expected the classes 0, 1, 2, ..., got airplane, automobile, a, ...; this is another data set",
    ),
    "parquet: other data set": ("cifar100", _parquet, lambda _: None, "and a column fine_label, got img, label"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_told_in_one_line_that_names_the_file(case, tmp_path):
    name, write, damage, message = DAMAGE[case]
    folder = tmp_path / name
    write(folder)
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value) or name in str(caught.value)


FILES = {
    "idx": ("mnist", _idx, IMAGES),
    "python": ("cifar10", _python, f"{BATCHES}/data_batch_1"),
    "tar": ("cifar10", _tar, ARCHIVE),
    "mat": ("svhn", _mat, "train_32x32.mat"),
    "parquet": ("cifar10", _parquet, TRAIN),
}


@pytest.mark.parametrize("case", FILES)
def test_no_damage_ends_in_a_foreign_error(case, tmp_path):
    """Cut or flip at many places: either it is noticed in one line, or the pixels or labels hit are read."""
    name, write, file = FILES[case]
    write(tmp_path)
    path = tmp_path / file
    valid = path.read_bytes()
    rng = np.random.default_rng(zlib.crc32(case.encode()))
    for at in rng.integers(0, len(valid), 12):
        path.write_bytes(valid[:at])
        with pytest.raises(DataError) as caught:
            load(name, tmp_path)
        assert "\n" not in str(caught.value)
        path.write_bytes(valid[:at] + bytes([valid[at] ^ 0x55]) + valid[at + 1 :])
        with suppress(DataError):
            load(name, tmp_path)


def test_missing_data_says_where_it_looked_and_how_to_get_it(tmp_path, monkeypatch, isolated):  # noqa: F811
    monkeypatch.setenv("IRESNET_DATA", str(tmp_path / "nowhere"))
    for name, spec in PUBLISHED.items():
        with pytest.raises(DataError, match=f"{name}: not found; looked in ") as caught:
            load(name, tmp_path)
        message = str(caught.value)
        assert "\n" not in message
        for part in (tmp_path / name, tmp_path / "nowhere" / name, isolated / name, spec.hub.repo, "$IRESNET_DATA"):
            assert str(part) in message
        assert spec.files in message


def test_a_folder_of_data_sets_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected a folder of data sets, there is none"):
        load("mnist", tmp_path / "typo")


def test_every_hub_source_is_pinned_to_a_full_commit():
    for spec in PUBLISHED.values():
        assert len(spec.hub.revision) == 40
        assert set(spec.hub.revision) <= set("0123456789abcdef")
        assert len(spec.hub.files) == 2


def fake_hub(monkeypatch, fail_on=None):
    """Let the hub deliver small files; return the list of requests."""
    requests = []

    def download(repo, file, *, repo_type, revision, local_dir):
        requests.append((repo, file, repo_type, revision))
        if fail_on and fail_on in file:
            raise OSError("connection lost\nin the middle")
        kind = file.rpartition("/")[2].partition("-")[0]
        write_parquet((local_dir / file).parent, {kind: GRAY[kind]}, image="image")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: None)
    return requests


def test_a_download_is_pinned_and_kept(monkeypatch, isolated):  # noqa: F811
    requests = fake_hub(monkeypatch)
    assert load("mnist").shape == (1, 28, 28)
    assert {request[0] for request in requests} == {"ylecun/mnist"}
    assert {request[3] for request in requests} == {PUBLISHED["mnist"].hub.revision}
    assert len(requests) == 2
    assert str(isolated / "mnist") in load("mnist").source
    assert len(requests) == 2


def test_an_interrupted_download_leaves_nothing_that_looks_complete(monkeypatch, isolated):  # noqa: F811
    fake_hub(monkeypatch, fail_on="test")
    with pytest.raises(DataError, match=r"could not be fetched \(OSError: connection lost in the middle\)") as caught:
        load("mnist")
    assert "\n" not in str(caught.value)
    assert not (isolated / "mnist").exists()
    fake_hub(monkeypatch)
    assert len(load("mnist").test) == 12


def test_a_folder_in_the_way_of_a_download_is_told(monkeypatch, isolated):  # noqa: F811
    fake_hub(monkeypatch)
    (isolated / "mnist").mkdir()
    with pytest.raises(DataError, match="exists without its files; delete the folder"):
        load("mnist")


def test_without_a_network_the_hub_is_given_up_at_once(monkeypatch):
    def never(*_args, **_kwargs):
        raise AssertionError("the client would retry for half a minute")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", never)
    with pytest.raises(DataError, match="no network in tests"):
        load("mnist")


def test_unknown_names_are_told_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'cifar10'"):
        load("cifar-10")
    assert set(PUBLISHED) < set(DATASETS)


@pytest.mark.parametrize("option", [{"target": 0}, {"image_size": 8}])
@pytest.mark.parametrize("name", ["digits", "moons", "mnist"])
def test_options_that_do_not_apply_are_refused(name, option):
    with pytest.raises(DataError, match=f"{name}: {next(iter(option))} applies only"):
        load(name, **option)


def test_the_bundled_digits_are_the_published_ones():
    datasets = pytest.importorskip("sklearn.datasets")
    published = datasets.load_digits()
    digits = load("digits")
    parts = (digits.train, digits.validation, digits.test)
    assert [len(part) for part in parts] == [1297, 200, 300]
    assert (digits.levels, digits.shape, digits.n_classes) == (17, (1, 8, 8), 10)
    ours = sorted((int(y), x.numpy().tobytes()) for part in parts for x, y in zip(part.x, part.y, strict=True))
    theirs = sorted(
        (int(y), x.astype(np.uint8).tobytes()) for x, y in zip(published.images, published.target, strict=True)
    )
    assert ours == theirs
    for part in parts:
        share = np.bincount(part.y.numpy(), minlength=10) / np.bincount(published.target) * len(published.target)
        assert np.abs(share - len(part)).max() < 1797 / 174 * 1.5
    assert "CC BY 4.0" in digits.source
