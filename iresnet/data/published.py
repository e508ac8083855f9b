"""Published data sets: their files, classes and credits, and functions that find and read them."""

__all__ = [
    "PUBLISHED",
    "Published",
    "UCI",
    "add_resolution_noise",
    "load_published",
    "load_uci",
]

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from iresnet.data.dataset import Dataset, Split, Splits, hold_out
from iresnet.data.formats import CIFAR10, CIFAR100, read_cifar_binary, read_cifar_python, read_idx, read_svhn
from iresnet.data.image_folders import ParquetFiles, find_parquet
from iresnet.data.preparation import find_copies, smallest_step
from iresnet.data.storage import VARIABLE, HubFiles, candidate_paths, fetch, user_cache
from iresnet.data.table import read_table
from iresnet.errors import DataError

# -- images ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """Published image data set.

    Args:
        name: the registered name, also the name of its folder.
        shape: ``(C, H, W)``.
        class_names: one per class.
        readers: one per original file format; each returns ``None`` where its files are not in the folder.
        files: the files of the original distribution, for the user who has none.
        hub: the same data in Parquet files, which are downloaded.
        credit: reference and license.
        label: column of the labels in the Parquet files.
        subfolders: of a folder of data sets, in which the Parquet files may be.

    Example:
        >>> PUBLISHED["cifar10"].shape, PUBLISHED["cifar10"].class_names[3]
        ((3, 32, 32), 'cat')
    """

    name: str
    shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    readers: tuple[Callable[[Path], Splits | None], ...]
    files: str
    hub: HubFiles
    credit: str
    label: str = "label"
    subfolders: tuple[str, ...] = ()

    def find_parquet(self, folder: Path) -> ParquetFiles | None:
        """Look for the Parquet files of the data set; see :func:`~iresnet.data.image_folders.find_parquet`."""
        return find_parquet(folder, label=self.label, class_names=self.class_names, subfolders=self.subfolders)

    def read(self, folder: Path) -> Splits | None:
        """Read the data set from a folder, in the first format whose files are there; ``None`` without any."""
        for reader in self.readers:
            if (splits := reader(folder)) is not None:
                return splits
        files = self.find_parquet(folder)
        return None if files is None else {kind: files.read(kind) for kind in files.splits}


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
    tried = candidate_paths(data_dir, spec.name, ".")
    for folder in tried:
        if (splits := spec.read(folder)) is not None:
            break
    else:
        folder, splits = _download(spec, tried)
    if not {"train", "test"} <= set(splits):
        raise DataError(
            f"{folder}: {spec.name} has a train and a test split, got only {', '.join(splits)}; add the other"
        )
    for kind, split in splits.items():
        if tuple(split.x.shape[1:]) != spec.shape:
            got = tuple(split.x.shape[1:])
            raise DataError(f"{folder}: {spec.name} has images of shape {spec.shape}, the {kind} files have {got}")
    train, validation, test = hold_out(splits, str(folder), shuffle=False)
    return Dataset(spec.name, train, validation, test, 256, spec.class_names, f"{folder}: {spec.credit}")


def _download(spec: Published, tried: list[Path]) -> tuple[Path, Splits]:
    folder = user_cache() / spec.name
    try:
        fetch(spec.hub, folder)
    except DataError as error:
        raise DataError(
            f"{spec.name}: not found; looked in {', '.join(map(str, tried))}, and {error}; "
            f"put {spec.files} into a folder and give it as data_dir or ${VARIABLE}"
        ) from error
    splits = spec.read(folder)
    if splits is None:
        raise DataError(f"{folder}: the download of {spec.name} is not readable; delete the folder and try again")
    return folder, splits


def _hub(repo: str, revision: str, folder: str) -> HubFiles:
    return HubFiles(repo, revision, tuple(f"{folder}/{kind}-00000-of-00001.parquet" for kind in ("train", "test")))


_DIGITS = tuple("0123456789")

_CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)

_THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# fmt: off
_THINGS_100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)
# fmt: on

_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}

_FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}

_SPECS = (
    Published(
        name="mnist",
        shape=(1, 28, 28),
        class_names=_DIGITS,
        readers=(partial(read_idx, md5=_MNIST_MD5),),
        subfolders=("mnist",),
        files="train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-... or the hub's Parquet files",
        hub=_hub("ylecun/mnist", "77f3279092a1c1579b2250db8eafed0ad422088c", "mnist"),
        credit="The MNIST database of handwritten digits, Y. LeCun, C. Cortes and C. J. C. Burges, 1998, CC BY-SA 3.0",
    ),
    Published(
        name="fashion-mnist",
        shape=(1, 28, 28),
        class_names=_CLOTHES,
        readers=(partial(read_idx, md5=_FASHION_MNIST_MD5),),
        subfolders=("fashion_mnist",),
        files="train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-... or the hub's Parquet files",
        hub=_hub("zalando-datasets/fashion_mnist", "531be5e2ccc9dba0c201ad3ae567a4f3d16ecdd2", "fashion_mnist"),
        credit="Fashion-MNIST, H. Xiao, K. Rasul and R. Vollgraf, 2017, arXiv:1708.07747, MIT license",
    ),
    Published(
        name="cifar10",
        shape=(3, 32, 32),
        class_names=_THINGS,
        readers=(partial(read_cifar_python, files=CIFAR10), partial(read_cifar_binary, files=CIFAR10)),
        files="cifar-10-python.tar.gz, cifar-10-binary.tar.gz or the hub's Parquet files",
        hub=_hub("uoft-cs/cifar10", "0b2714987fa478483af9968de7c934580d0bb9a2", "plain_text"),
        credit="CIFAR-10: Learning multiple layers of features from tiny images, A. Krizhevsky, 2009",
    ),
    Published(
        name="cifar100",
        shape=(3, 32, 32),
        class_names=_THINGS_100,
        readers=(partial(read_cifar_python, files=CIFAR100), partial(read_cifar_binary, files=CIFAR100)),
        label="fine_label",
        subfolders=("cifar100",),
        files="cifar-100-python.tar.gz, cifar-100-binary.tar.gz or the hub's Parquet files",
        hub=_hub("uoft-cs/cifar100", "aadb3af77e9048adbea6b47c21a81e47dd092ae5", "cifar100"),
        credit="CIFAR-100: Learning multiple layers of features from tiny images, A. Krizhevsky, 2009",
    ),
    Published(
        name="svhn",
        shape=(3, 32, 32),
        class_names=_DIGITS,
        readers=(read_svhn,),
        subfolders=("cropped_digits",),
        files="train_32x32.mat and test_32x32.mat, or the hub's Parquet files",
        hub=_hub("ufldl-stanford/svhn", "f9e1717d73324ebbc1ece84267ccd80d0aca0690", "cropped_digits"),
        credit="SVHN: Reading digits in natural images with unsupervised feature learning, Y. Netzer, T. Wang, "
        "A. Coates, A. Bissacco, B. Wu and A. Y. Ng, 2011, for non-commercial use",
    ),
)

#: The published image data sets by name.
PUBLISHED: dict[str, Published] = {spec.name: spec for spec in _SPECS}


# -- UCI tables --------------------------------------------------------------------------------------------------------


UCI = (
    "concrete",
    "energy",
    "kin8nm",
    "naval-propulsion-plant",
    "power-plant",
    "protein-tertiary-structure",
    "wine-quality-red",
    "yacht",
)
"""Names of the tables, and of their files ``uci/NAME.txt.gz``."""


def load_uci(name: str, data_dir: str | Path | None = None, *, split_seed: int = 0) -> Dataset:
    """Read a table of the UCI repository; all columns are modeled together, targets of regressions too.

    Constant columns, and copies of earlier ones, have no density and are left out. All others get uniform noise of the
    resolution that they were recorded with (:func:`add_resolution_noise`), the same for every model and split. A random
    tenth of the rows is the test split, and another one the validation split.

    Args:
        name: one of :data:`UCI`.
        data_dir: a folder of data sets, tried first.
        split_seed: of the splits.

    Returns:
        The data set, float32, in the units of the table.

    Raises:
        DataError: the file is not to be found, or no table.
    """
    tried = candidate_paths(data_dir, f"uci/{name}.txt.gz", f"{name}.txt.gz")
    path = next((path for path in tried if path.is_file()), None)
    if path is None:
        looked = ", ".join(map(str, tried))
        raise DataError(f"{name}: not found; looked for {looked}; get the table and set --data-dir or ${VARIABLE}")
    x = read_table(path).split.x.float()
    left_out = {i: f"{i} (a copy of {copied})" for i, copied in find_copies(x).items()}
    left_out |= {i: f"{i} (constant)" for i, column in enumerate(x.T) if bool((column == column[0]).all())}
    kept = [i for i in range(x.shape[1]) if i not in left_out]
    noisy = add_resolution_noise(x[:, kept], generator=Generator().manual_seed(0))
    train, validation, test = hold_out({"train": Split(noisy)}, str(path), shuffle=True, seed=split_seed)
    note = f", without columns {', '.join(left_out[i] for i in sorted(left_out))}" if left_out else ""
    return Dataset(name, train, validation, test, levels=None, source=f"{path}{note}")


def add_resolution_noise(
    x: Tensor,  # (N, D)
    *,
    generator: Generator | None = None,
) -> Tensor:
    r"""Add uniform noise of each column's resolution, the smallest distance of two of its values.

    .. math:: x_{ij} + \delta_j u_{ij}, \quad u_{ij} \sim U[0, 1), \quad
        \delta_j = \min_{x_{ij} \ne x_{kj}} |x_{ij} - x_{kj}|

    Values recorded at a finite resolution have no density: a model that puts ever narrower peaks on them has an
    unbounded likelihood. With the noise, a log-density is a lower bound of the log-probability of the recorded values,
    plus :math:`\sum_j \log 1 / \delta_j`, as with images.

    Args:
        x: a table without constant columns.
        generator: source of the noise.

    Reference:
        Masked Autoregressive Flow for Density Estimation, Papamakarios, Pavlakou and Murray 2017,
        https://arxiv.org/abs/1705.07057 (noise on the discrete columns of UCI tables)

    Example:
        >>> y = add_resolution_noise(torch.tensor([[1.0, 0.0], [1.5, 10.0], [4.0, 30.0]]))
        >>> bool(((y - torch.tensor([[1.0, 0.0], [1.5, 10.0], [4.0, 30.0]])) <= torch.tensor([0.5, 10.0])).all())
        True
    """
    resolution = torch.stack([smallest_step(column) for column in x.T])
    return x + resolution * torch.rand(x.shape, generator=generator, dtype=x.dtype)
