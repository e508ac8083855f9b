"""Data sets as tensors: find, read, split, batch, dequantise and augment."""

__all__ = [
    "DATASETS",
    "Batches",
    "Dataset",
    "Split",
    "dequantise",
    "flip",
    "load",
    "pad_crop",
]

from iresnet.data.batches import Batches
from iresnet.data.dataset import Dataset, Split
from iresnet.data.registry import DATASETS, load
from iresnet.data.transforms import dequantise, flip, pad_crop
