"""The published image data sets: what they are, and how to find and read them."""

__all__ = ["PUBLISHED", "Published", "load_published"]

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from iresnet.data.dataset import Dataset
from iresnet.data.hub import HubFiles, fetch
from iresnet.data.idx import read_idx
from iresnet.data.places import VARIABLE, roots, user_cache
from iresnet.data.split import Splits, hold_out
from iresnet.errors import DataError


@dataclass(frozen=True)
class Published:
    """A published image data set.

    Args:
        name: the registered name, also the name of its folder.
        shape: ``(C, H, W)``.
        class_names: one per class.
        readers: one per file format; each returns ``None`` where its files are not in the folder.
        files: the files of the original distribution, for the user who has none.
        hub: where to download it.
        credit: reference and licence.
    """

    name: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    readers: tuple[Callable[[Path], Splits | None], ...]
    files: str
    hub: HubFiles
    credit: str


def load_published(spec: Published, data_dir: str | Path | None = None) -> Dataset:
    """Find and read a published data set; download it if it is nowhere.

    The validation split is the last tenth of the original training examples, at most 5000; the
    original test split is kept as it is.

    Args:
        spec: the data set.
        data_dir: a folder that holds its files, or its folder; tried first.

    Returns:
        The data set, uint8.

    Raises:
        DataError: nowhere to be found, damaged, or not this data set.
    """
    tried = [folder for root in roots(data_dir) for folder in (root / spec.name, root)]
    for folder in tried:
        splits = _read(spec, folder)
        if splits is not None:
            return _assemble(spec, splits, folder)
    return _download(spec, tried)


def _read(spec: Published, folder: Path) -> Splits | None:
    return next((splits for reader in spec.readers if (splits := reader(folder)) is not None), None)


def _download(spec: Published, tried: list[Path]) -> Dataset:
    folder = user_cache() / spec.name
    try:
        fetch(spec.hub, folder)
    except DataError as error:
        looked = ", ".join(dict.fromkeys(map(str, tried)))
        raise DataError(
            f"{spec.name}: not found; looked in {looked}, and {error}; "
            f"put {spec.files} into a folder and give it as data_dir or ${VARIABLE}"
        ) from error
    splits = _read(spec, folder)
    if splits is None:
        raise DataError(f"{folder}: the download of {spec.name} is not readable; delete the folder and try again")
    return _assemble(spec, splits, folder)


def _assemble(spec: Published, splits: Splits, folder: Path) -> Dataset:
    for kind, split in splits.items():
        if tuple(split.x.shape[1:]) != spec.shape:
            got = tuple(split.x.shape[1:])
            raise DataError(f"{folder}: {spec.name} has images of shape {spec.shape}, the {kind} files have {got}")
    train, validation, test = hold_out(splits, str(folder), shuffle=False)
    return Dataset(spec.name, train, validation, test, 256, spec.class_names, f"{folder}: {spec.credit}")


_DIGITS = tuple("0123456789")

MNIST = Published(
    name="mnist",
    shape=(1, 28, 28),
    class_names=_DIGITS,
    readers=(
        partial(
            read_idx,
            md5={
                "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
                "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
                "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
            },
        ),
    ),
    files="the four idx files train-images-idx3-ubyte.gz, ... or the hub's Parquet files",
    hub=HubFiles(
        "ylecun/mnist",
        "77f3279092a1c1579b2250db8eafed0ad422088c",
        ("mnist/train-00000-of-00001.parquet", "mnist/test-00000-of-00001.parquet"),
    ),
    credit="The MNIST database of handwritten digits, Y. LeCun, C. Cortes and C. J. C. Burges, 1998, CC BY-SA 3.0",
)

FASHION_MNIST = Published(
    name="fashion-mnist",
    shape=(1, 28, 28),
    class_names=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    readers=(
        partial(
            read_idx,
            md5={
                "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
                "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
                "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
            },
        ),
    ),
    files="the four idx files train-images-idx3-ubyte.gz, ... or the hub's Parquet files",
    hub=HubFiles(
        "zalando-datasets/fashion_mnist",
        "531be5e2ccc9dba0c201ad3ae567a4f3d16ecdd2",
        ("fashion_mnist/train-00000-of-00001.parquet", "fashion_mnist/test-00000-of-00001.parquet"),
    ),
    credit="Fashion-MNIST, H. Xiao, K. Rasul and R. Vollgraf, 2017, arXiv:1708.07747, MIT licence",
)

#: The published image data sets by name.
PUBLISHED: dict[str, Published] = {spec.name: spec for spec in (MNIST, FASHION_MNIST)}
