"""Draw true and learned densities of the toy data sets into docs/pictures/toys.png.

python experiments/toy_pictures.py RUNS      # the folder of experiments/reproduce.py
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from reproduce import TOYS as NAMES
from torch import Tensor

from iresnet import pretrained
from iresnet.data import TOYS
from iresnet.flows import Flow

PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "toys.png"
PIXELS = 160


def grid(name: str) -> tuple[Tensor, tuple[float, float, float, float]]:
    """Return grid points (PIXELS squared, 2) that cover the data, and their extent."""
    x = TOYS[name].sample(4000, torch.Generator().manual_seed(0))
    low, high = x.amin(0), x.amax(0)
    low, high = low - 0.15 * (high - low), high + 0.15 * (high - low)
    axes = [torch.linspace(float(a), float(b), PIXELS) for a, b in zip(low, high, strict=True)]
    points = torch.cartesian_prod(*axes).reshape(PIXELS, PIXELS, 2).transpose(0, 1).reshape(-1, 2)
    return points, (float(low[0]), float(high[0]), float(low[1]), float(high[1]))


@torch.no_grad()
def densities(name: str, run: Path, points: Tensor) -> list[np.ndarray]:
    """Evaluate the true density and that of the model, (PIXELS, PIXELS) each."""
    model = pretrained.load(run)
    assert isinstance(model, Flow)
    logs = [TOYS[name].log_prob(points), torch.cat([model.log_prob(chunk) for chunk in points.split(4096)])]
    return [log.exp().reshape(PIXELS, PIXELS).numpy() for log in logs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = {name: options.runs / f"toy-{name}" / "seed-0" for name in NAMES}
    found = {name: run for name, run in runs.items() if (run / "evaluation.json").exists()}
    figure = Figure(figsize=(2 * len(found), 4.3), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False)
    for column, (name, run) in zip(axes.T, found.items(), strict=True):
        points, extent = grid(name)
        true, learned = densities(name, run, points)
        top = float(np.quantile(true[true > true.max() / 100], 0.99)) if math.isfinite(true.max()) else None
        for panel, density in zip(column, (true, learned), strict=True):
            panel.imshow(density, origin="lower", extent=extent, vmin=0, vmax=top, cmap="viridis", aspect="auto")
            panel.set(xticks=[], yticks=[])
        column[0].set_title(name)
    axes[0, 0].set_ylabel("true")
    axes[1, 0].set_ylabel("learned")
    figure.savefig(PICTURE, dpi=100)


if __name__ == "__main__":
    main()
