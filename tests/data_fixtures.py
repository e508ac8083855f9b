"""Small valid files in every published format, and a machine without any data of its own."""

import gzip
import io
import json
import pickle
import struct
import tarfile
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from iresnet.data import formats

N_TRAIN, N_TEST = 40, 12


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory, monkeypatch):
    """Hide the user's data and cache, and the network."""

    def no_network(*_args):
        raise OSError("no network in tests")

    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.delenv("IRESNET_DATA", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda _: str(cache))
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("iresnet.data.storage.getproxies", dict)
    return cache


def examples(n, channels, size, n_classes=10, seed=0):
    """Return random images (n, C, H, W) and labels in which every class occurs."""
    rng = np.random.default_rng([seed, n, channels, size])
    return rng.integers(0, 256, (n, channels, size, size), np.uint8), np.arange(n) % n_classes


def both(channels, size, n_classes=10):
    return {
        "train": examples(N_TRAIN, channels, size, n_classes),
        "test": examples(N_TEST, channels, size, n_classes),
    }


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder, data, *, compressed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for kind, prefix in (("train", "train"), ("test", "t10k")):
        x, y = data[kind]
        for name, array in ((f"{prefix}-images-idx3-ubyte", x[:, 0]), (f"{prefix}-labels-idx1-ubyte", y)):
            content = idx_bytes(array)
            path = folder / (name + ".gz" if compressed else name)
            path.write_bytes(gzip.compress(content) if compressed else content)


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as in the published files."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, obj):
        self.write(pickle.BINSTRING + struct.pack("<i", len(obj)) + obj)
        self.memoize(obj)

    dispatch[bytes] = save_bytes


def python2_pickle(obj):
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(obj)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def cifar_parts(files, data):
    """Return the examples of each file of the distribution, by the file's name."""
    parts = {}
    for names, kind in ((files.train, "train"), (files.test, "test")):
        x, y = data[kind]
        for name, xs, ys in zip(names, np.array_split(x, len(names)), np.array_split(y, len(names)), strict=True):
            parts[name] = (xs, ys)
    return parts


def cifar_python_files(files, data, dumps=python2_pickle):
    return {
        name: dumps({b"data": x.reshape(len(x), -1), files.labels: y.tolist(), b"batch_label": b"a batch"})
        for name, (x, y) in cifar_parts(files, data).items()
    }


def cifar_binary_files(files, data):
    def record(image, label):
        return bytes([7] * (files.label_bytes - 1) + [label]) + image.tobytes()

    return {
        f"{name}.bin": b"".join(record(*pair) for pair in zip(x, y, strict=True))
        for name, (x, y) in cifar_parts(files, data).items()
    }


def write_files(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def write_tar(path, inner, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"readme.html": b"hello", **contents}.items():
            member = tarfile.TarInfo(f"{inner}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_cifar_python(folder, files, data):
    write_files(folder / files.python, cifar_python_files(files, data))


def write_cifar_python_tar(folder, files, data):
    write_tar(folder / f"{files.archive}-python.tar.gz", files.python, cifar_python_files(files, data))


def write_cifar_binary(folder, files, data):
    write_files(folder / files.binary, cifar_binary_files(files, data))


def write_cifar_binary_tar(folder, files, data):
    write_tar(folder / f"{files.archive}-binary.tar.gz", files.binary, cifar_binary_files(files, data))


def write_svhn(folder, data):
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    for kind, (x, y) in data.items():
        content = {"X": x.transpose(2, 3, 1, 0), "y": np.where(y == 0, 10, y).astype(np.uint8)[:, None]}
        savemat(folder / f"{kind}_32x32.mat", content, do_compression=True)


def encode(image, suffix="PNG"):
    """Return a (C, H, W) array as the content of an image file."""
    buffer = io.BytesIO()
    options = {"lossless": True} if suffix == "WEBP" else {}
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, suffix, **options)
    return buffer.getvalue()


PARQUET = {"write_page_checksum": True}


def write_parquet(folder, data, *, image="img", label="label", names=None, suffix="PNG", shards=1):
    folder.mkdir(parents=True, exist_ok=True)
    features = {label: {"names": list(names), "_type": "ClassLabel"}} if names else {}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for kind, (x, y) in data.items():
        for i, rows in enumerate(np.array_split(np.arange(len(x)), shards)):
            images = [{"bytes": encode(x[row], suffix), "path": None} for row in rows]
            columns = {image: pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
            if label:
                columns[label] = pa.array(y[rows], pa.int64())
            table = pa.table(columns).replace_schema_metadata(metadata)
            pq.write_table(table, folder / f"{kind}-{i:05d}-of-{shards:05d}.parquet", row_group_size=10, **PARQUET)


def write_folder(folder, x, y=None, *, suffix=".png"):
    """Write images into ``folder``, in one sub-folder per class when there are labels."""
    for i, image in enumerate(x):
        path = folder / (f"class{y[i]}" if y is not None else ".") / f"{i:05d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image))


def load_back(name, folder):
    from iresnet.data import load

    dataset = load(name, folder)
    x = np.concatenate([dataset.train.x.numpy(), dataset.validation.x.numpy()])
    y = np.concatenate([dataset.train.y.numpy(), dataset.validation.y.numpy()])
    return dataset, {"train": (x, y), "test": (dataset.test.x.numpy(), dataset.test.y.numpy())}


#: Every published format: name of the data set, how to write its files, what they hold.
GRAY, COLOR, COLOR100 = both(1, 28), both(3, 32), both(3, 32, 100)
FORMATS = {
    "mnist idx": ("mnist", write_idx, GRAY),
    "mnist parquet": ("mnist", lambda f, d: write_parquet(f / "mnist", d, image="image"), GRAY),
    "fashion-mnist idx": ("fashion-mnist", write_idx, GRAY),
    "fashion-mnist parquet": (
        "fashion-mnist",
        lambda f, d: write_parquet(f / "fashion_mnist", d, image="image", shards=2),
        GRAY,
    ),
    "cifar10 folder": ("cifar10", lambda f, d: write_cifar_python(f, formats.CIFAR10, d), COLOR),
    "cifar10 tar": ("cifar10", lambda f, d: write_cifar_python_tar(f, formats.CIFAR10, d), COLOR),
    "cifar10 binary": ("cifar10", lambda f, d: write_cifar_binary(f, formats.CIFAR10, d), COLOR),
    "cifar10 binary tar": ("cifar10", lambda f, d: write_cifar_binary_tar(f, formats.CIFAR10, d), COLOR),
    "cifar10 parquet": ("cifar10", lambda f, d: write_parquet(f, d, suffix="WEBP"), COLOR),
    "cifar10 parquet, hub": ("cifar10", lambda f, d: write_parquet(f / "plain_text", d, shards=3), COLOR),
    "cifar100 folder": ("cifar100", lambda f, d: write_cifar_python(f, formats.CIFAR100, d), COLOR100),
    "cifar100 tar": ("cifar100", lambda f, d: write_cifar_python_tar(f, formats.CIFAR100, d), COLOR100),
    "cifar100 binary": ("cifar100", lambda f, d: write_cifar_binary(f, formats.CIFAR100, d), COLOR100),
    "cifar100 binary tar": ("cifar100", lambda f, d: write_cifar_binary_tar(f, formats.CIFAR100, d), COLOR100),
    "cifar100 parquet": ("cifar100", lambda f, d: write_parquet(f, d, label="fine_label"), COLOR100),
    "svhn mat": ("svhn", write_svhn, COLOR),
    "svhn parquet": ("svhn", lambda f, d: write_parquet(f / "cropped_digits", d, image="image"), COLOR),
}
