"""Checkpoints of published codes, read without executing them: their models as models of this package."""

__all__ = ["CLASSES", "CODES", "Imported", "code_of", "read_pickle"]

from typing import Any

from iresnet.imports import code2019, residual_flows
from iresnet.imports.filling import Imported
from iresnet.imports.pickles import read_pickle

CODES = {"2019": code2019.convert, "residual-flows": residual_flows.convert}
"""Published codes, and what makes a model of a checkpoint of each.

2019 is that of Invertible Residual Networks (jhjacobsen/invertible-resnet), residual-flows that of Residual Flows for
Invertible Generative Modeling (rtqichen/residual-flows).
"""

CLASSES = (*code2019.CLASSES, *residual_flows.CLASSES)
"""Classes whose objects checkpoints of any of them hold."""


def code_of(content: Any) -> str:
    """Tell by what a checkpoint holds which code wrote it: Residual Flows save weights, that of 2019 whole modules.

    Example:
        >>> code_of({"state_dict": {}, "args": None})
        'residual-flows'
    """
    return "residual-flows" if isinstance(content, dict) and "state_dict" in content else "2019"
