"""Data sets as tensors: find, read, split, batch, dequantize and augment."""

__all__ = [
    "CONDITIONAL_TOYS",
    "DATASETS",
    "PADDINGS",
    "TOYS",
    "Batches",
    "Column",
    "Dataset",
    "Examples",
    "ImageConversion",
    "Split",
    "Stream",
    "StreamedBatches",
    "Toy",
    "check_columns",
    "check_density",
    "dequantise",
    "dequantize",
    "flip",
    "load",
    "match_format",
    "open_examples",
    "pad_crop",
    "permutation",
    "to_features",
    "training_batches",
]

from iresnet.data.batches import Batches, StreamedBatches, training_batches
from iresnet.data.columns import Column
from iresnet.data.dataset import Dataset, Split, permutation
from iresnet.data.examples import Examples, open_examples
from iresnet.data.images import ImageConversion, Stream
from iresnet.data.preparation import check_columns, check_density, to_features
from iresnet.data.registry import DATASETS, load
from iresnet.data.toys import CONDITIONAL_TOYS, TOYS, Toy
from iresnet.data.transforms import PADDINGS, dequantise, dequantize, flip, match_format, pad_crop
