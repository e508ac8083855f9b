"""Checkpoints of published codes, read without executing them: their models as models of this package."""

__all__ = ["CLASSES", "CODES", "Imported", "convert", "read_pickle"]

from iresnet.imports.code2019 import Imported, convert
from iresnet.imports.layers2019 import CLASSES
from iresnet.imports.pickles import read_pickle

CODES = ("2019",)
"""Published codes whose checkpoints are read: 2019, of Invertible Residual Networks."""
