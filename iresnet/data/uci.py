"""The UCI tables on which density models and regressions are compared."""

__all__ = ["UCI", "load_uci", "spread"]

from pathlib import Path

import torch
from torch import Generator, Tensor

from iresnet.data.dataset import Dataset, Split
from iresnet.data.places import VARIABLE, roots
from iresnet.data.split import hold_out
from iresnet.data.table import read_table
from iresnet.errors import DataError

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
    """Read a table, all columns of which are modeled together, targets of regressions too.

    Constant columns, and copies of earlier ones, have no density and are left out. All others get uniform noise of the
    resolution that they were recorded with (:func:`spread`), the same for every model and split. A random tenth of the
    rows is the test split, and another one the validation split.

    Args:
        name: one of :data:`UCI`.
        data_dir: a folder of data sets, tried first.
        split_seed: of the splits.

    Returns:
        The data set, float32, in the units of the table.

    Raises:
        DataError: the file is not to be found, or no table.
    """
    tried = [folder / f"{name}.txt.gz" for root in roots(data_dir) for folder in (root / "uci", root)]
    path = next((path for path in tried if path.is_file()), None)
    if path is None:
        looked = ", ".join(map(str, tried))
        raise DataError(f"{name}: not found; looked for {looked}; get the table and set --data-dir or ${VARIABLE}")
    x = read_table(path).split.x.float()
    kept, left_out = _choose(x)
    noisy = spread(x[:, kept], generator=Generator().manual_seed(0))
    train, validation, test = hold_out({"train": Split(noisy)}, str(path), shuffle=True, seed=split_seed)
    return Dataset(name, train, validation, test, levels=None, source=f"{path}{left_out}")


def _choose(x: Tensor) -> tuple[list[int], str]:  # (N, D)
    """The columns that have a density, and what is to be said of the others."""
    kept: list[int] = []
    said: list[str] = []
    for i, column in enumerate(x.T):
        copied = next((j for j in kept if torch.equal(x[:, j], column)), None)
        if bool((column == column[0]).all()):
            said.append(f"{i} (constant)")
        elif copied is not None:
            said.append(f"{i} (a copy of {copied})")
        else:
            kept.append(i)
    return kept, f", without columns {', '.join(said)}" if said else ""


def spread(
    x: Tensor,  # (N, D)
    *,
    generator: Generator | None = None,
) -> Tensor:
    r"""Add uniform noise of each column's resolution, the smallest distance of two of its values.

    .. math:: x_{ij} + \delta_j u_{ij}, \quad u_{ij} \sim U[0, 1), \quad
        \delta_j = \min_{x_{ij} \ne x_{kj}} |x_{ij} - x_{kj}|

    What was recorded as one of few values has no density: a model that puts ever narrower peaks on them has a
    likelihood without limit. With the noise a log-density is a bound of the log-probability of what was recorded, plus
    :math:`\sum_j \log 1 / \delta_j`, as with images.

    Args:
        x: a table without constant columns.
        generator: source of the noise.

    Reference:
        Masked Autoregressive Flow for Density Estimation, Papamakarios, Pavlakou and Murray 2017,
        https://arxiv.org/abs/1705.07057 (noise on the discrete columns of UCI tables)

    Example:
        >>> y = spread(torch.tensor([[1.0, 0.0], [1.5, 10.0], [4.0, 30.0]]))
        >>> bool(((y - torch.tensor([[1.0, 0.0], [1.5, 10.0], [4.0, 30.0]])) <= torch.tensor([0.5, 10.0])).all())
        True
    """
    resolution = torch.stack([column.unique().diff().min() for column in x.T])
    return x + resolution * torch.rand(x.shape, generator=generator, dtype=x.dtype)
