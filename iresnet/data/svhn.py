"""The original files of the Street View House Numbers, cropped to 32x32."""

__all__ = ["read_svhn"]

from pathlib import Path

import numpy as np
import torch

from iresnet.data.dataset import Split
from iresnet.data.reading import reading
from iresnet.data.split import Splits
from iresnet.errors import DataError


def read_svhn(folder: Path) -> Splits | None:
    """Read ``train_32x32.mat`` and ``test_32x32.mat``; the label 10, for the digit 0, becomes 0.

    Args:
        folder: where the two files are.

    Returns:
        Train and test, images of shape ``(3, 32, 32)``; ``None`` where neither file is there.

    Raises:
        DataError: a file is missing, damaged or of another form.

    Example:
        >>> read_svhn(Path("no such folder")) is None
        True
    """
    paths = {kind: folder / f"{kind}_32x32.mat" for kind in ("train", "test")}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if len(missing) == len(paths):
        return None
    if missing:
        raise DataError(f"{folder}: expected train_32x32.mat and test_32x32.mat, {missing[0]} missing; add it")
    return {kind: _read(path) for kind, path in paths.items()}


def _read(path: Path) -> Split:
    from scipy.io import loadmat  # here: a slow import for one data set

    with reading(path, "MATLAB file with variables X and y"):
        content = loadmat(path, variable_names=("X", "y"))
        images, labels = np.asarray(content["X"]), np.asarray(content["y"]).reshape(-1)
    if images.dtype != np.uint8 or images.shape[:-1] != (32, 32, 3):
        raise DataError(f"{path}: expected uint8 X of shape (32, 32, 3, N), got {images.dtype} {images.shape}")
    if labels.shape != images.shape[-1:] or not np.isin(labels, np.arange(11)).all():
        raise DataError(f"{path}: expected {images.shape[-1]} labels y in 1..10, got shape {labels.shape}")
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1)))
    return Split(x, torch.from_numpy(labels.astype(np.int64) % 10))
