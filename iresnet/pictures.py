"""Pictures of data (grids, scatter plots, tables) and charts of what was measured."""

__all__ = [
    "PALETTE",
    "curves",
    "draw",
    "draw_each",
    "histograms",
    "image_grid",
    "plane_paths",
    "png",
    "rendered",
    "scatter",
    "titled",
    "write",
]

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from iresnet.data.columns import offsets, to_csv, to_values
from iresnet.files import write_atomically, write_folder_atomically, writing
from iresnet.inputs import Inputs, white_level

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# -- data --------------------------------------------------------------------------------------------------------------


PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
"""Colors that color-blind people can tell apart, of Okabe and Ito 2008, https://jfly.uni-koeln.de/color/"""


def draw(x: Tensor, inputs: Inputs, path: Path, *, columns: int | None = None) -> Path:
    r"""Draw images and points in the plane as a picture, and write longer vectors to a table.

    Args:
        x: examples on the scale of the data, (N, \*E).
        inputs: description of the data.
        path: file without suffix; its folder is created.
        columns: width of a grid of images; about square when None.

    Returns:
        The file: a PNG for images and for points in the plane, a CSV for longer vectors.
    """
    picture = len(inputs.shape) == 3 or inputs.shape == (2,)
    return write(x, inputs, path.with_name(path.name + (".png" if picture else ".csv")), columns=columns)


def write(x: Tensor, inputs: Inputs, path: Path, *, columns: int | None = None) -> Path:
    r"""Write examples to one file, in the format of its suffix.

    Args:
        x: examples on the scale of the data, (N, \*E).
        inputs: description of the data.
        path: ``.csv`` for a table like the one that the model was trained on; ``.npz`` for an array ``x`` of images,
            uint8 if the data are integers, or of vectors, float64, in the units of the table; else a PNG of a grid of
            images or of points.
        columns: width of a grid of images; about square when None.

    Returns:
        The file; its folder is created.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    x = x.detach().float().cpu()
    match path.suffix.lower():
        case ".csv":
            content = to_csv(inputs.columns, x)
        case ".npz":
            content = _npz(x, inputs)
        case _ if len(inputs.shape) == 3:
            content = png(image_grid(x, levels=inputs.levels, columns=columns))
        case _:
            content = png(scatter(x.double() + offsets(inputs.columns, 2)))
    write_atomically(path, content)
    return path


def _npz(x: Tensor, inputs: Inputs) -> bytes:
    if len(inputs.shape) == 1:
        values = to_values(inputs.columns, x)
    elif inputs.levels:
        values = x.nan_to_num(0.0).floor().clamp(0, inputs.levels - 1).byte().numpy()
    else:
        values = x.numpy()
    buffer = io.BytesIO()
    np.savez(buffer, x=values)
    return buffer.getvalue()


def draw_each(x: Tensor, inputs: Inputs, path: Path) -> Path:
    r"""Write each image to a PNG file in a folder, pixel by pixel; write other examples to one table.

    Args:
        x: examples on the scale of the data, (N, \*E).
        inputs: description of the data.
        path: folder of images, which is replaced, or name of the table without suffix.

    Returns:
        The folder, or the CSV file.
    """
    x = x.detach().float().cpu()
    if len(inputs.shape) != 3:
        table = path.with_name(path.name + ".csv")
        write_atomically(table, to_csv(inputs.columns, x))
        return table
    images = (_to_rgb(x, inputs.levels) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    width = len(str(len(images) - 1))
    write_folder_atomically(path, {f"{i:0{width}}.png": png(Image.fromarray(image)) for i, image in enumerate(images)})
    return path


def image_grid(x: Tensor, *, levels: int | None = 256, columns: int | None = None) -> Image.Image:
    """Arrange images in a grid, small ones enlarged.

    Args:
        x: images on [0, levels], (N, C, H, W); 1 channel is gray, of more the first 3 are shown.
        levels: the white level; the largest value when None.
        columns: width of the grid; about square when None.

    Example:
        >>> image_grid(torch.zeros(4, 1, 8, 8), levels=17).size
        (136, 136)
    """
    n, _, h, w = x.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    shown = _to_rgb(x, levels)
    gap = max(1, h // 16)
    sheet = torch.ones(3, rows * (h + gap) - gap, columns * (w + gap) - gap) * 0.6
    for i, image in enumerate(shown):
        top, left = (i // columns) * (h + gap), (i % columns) * (w + gap)
        sheet[:, top : top + h, left : left + w] = image
    picture = Image.fromarray((sheet * 255).round().byte().permute(1, 2, 0).numpy())
    zoom = max(1, 64 // max(h, w))
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def scatter(x: Tensor) -> Image.Image:
    """Plot points of the plane.

    Args:
        x: points, (N, 2).

    Example:
        >>> scatter(torch.randn(100, 2)).mode
        'RGB'
    """
    figure = _figure((5, 5))
    axes = figure.add_subplot()
    axes.plot(*x.numpy().T, ".", markersize=3, alpha=0.5)
    axes.set_aspect("equal")
    return rendered(figure)


def titled(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """Arrange pictures below each other, each under its title.

    Args:
        pictures: by title.

    Example:
        >>> titled({"black": Image.new("RGB", (200, 10)), "white": Image.new("RGB", (200, 10), "white")}).size
        (200, 68)
    """
    font, height = ImageFont.load_default(16), 24
    width = max([p.width for p in pictures.values()] + [int(font.getlength(title)) + 4 for title in pictures])
    sheet = Image.new("RGB", (width, sum(p.height + height for p in pictures.values())), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for title, picture in pictures.items():
        pen.text((2, top + 2), title, fill="black", font=font)
        sheet.paste(picture, (0, top + height))
        top += height + picture.height
    return sheet


def _to_rgb(x: Tensor, levels: int | None) -> Tensor:  # (N, C, H, W) -> (N, 3, H, W)
    """Convert images to red, green and blue in [0, 1]."""
    # Values of integer data lie in [k, k + 1) after dequantization: the floor, over the largest integer, shows k.
    shown = ((x.floor() if levels else x) / white_level(x, levels)).nan_to_num(0.0).clamp(0, 1)
    return shown[:, :3] if x.shape[1] >= 3 else shown[:, :1].expand(-1, 3, -1, -1)


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=size, layout="constrained")


def rendered(figure: "Figure") -> Image.Image:
    """Render a figure with 100 pixels per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer).convert("RGB")


def png(picture: Image.Image) -> bytes:
    """Return the content of a PNG file of a picture."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


# -- charts ------------------------------------------------------------------------------------------------------------


BLUE, ORANGE, GREEN, PURPLE = PALETTE[:4]

STYLES = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "^"), (PURPLE, ":", "D"))


def histograms(
    panels: Mapping[str, tuple[Sequence[float], Sequence[int], Sequence[int]]], names: tuple[str, str]
) -> Image.Image:
    """Draw histograms of two sets of numbers in each panel, one filled and one hatched.

    Args:
        panels: by heading, the edges of the bins and the counts of either set.
        names: of the sets.

    Example:
        >>> histograms({"score": ([0, 1, 2], [3, 1], [0, 4])}, ("digits", "letters")).mode
        'RGB'
    """
    figure = _figure((3.6 * len(panels), 3))
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (heading, (edges, first, second)) in zip(row, panels.items(), strict=True):
        shares = [np.asarray(counts) / max(1, sum(counts)) for counts in (first, second)]
        axes.stairs(shares[0], edges, fill=True, color=BLUE, alpha=0.55, label=names[0])
        axes.stairs(shares[1], edges, edgecolor=ORANGE, hatch="////", linewidth=1.5, fill=True, facecolor="none")
        axes.stairs(shares[1], edges, color=ORANGE, linewidth=1.5, label=f"{names[1]} (hatched)")
        axes.set_title(heading, fontsize=9)
        axes.set_ylabel("share")
    figure.axes[0].legend(fontsize=8)
    return rendered(figure)


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, log_y: bool = True
) -> Image.Image:
    """Draw curves that differ in color, dashes and markers.

    Args:
        lines: by name, abscissae and ordinates; ordinates that are not finite, or not positive on a logarithmic scale,
            are left out.
        x: label of the abscissa.
        y: label of the ordinate.
        log_y: use a logarithmic scale for the ordinate.

    Example:
        >>> curves({"halving": ([1, 2, 3], [1.0, 0.5, 0.25])}, x="steps", y="error").mode
        'RGB'
    """
    figure = _figure((5.5, 4))
    axes = figure.add_subplot()
    for i, (name, (across, up)) in enumerate(lines.items()):
        color, dashes, marker = STYLES[i % len(STYLES)]
        a, b = np.asarray(across, float), np.asarray(up, float)
        shown = np.isfinite(b) & ((b > 0) | (not log_y))
        axes.plot(a[shown], b[shown], color=color, linestyle=dashes, marker=marker, markersize=4, label=name)
    axes.set_yscale("log" if log_y else "linear")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return rendered(figure)


def plane_paths(kinds: Mapping[str, np.ndarray]) -> Image.Image:
    """Draw paths in the plane, with their ends marked.

    Args:
        kinds: by name, (paths, steps, 2).

    Example:
        >>> plane_paths({"straight": np.array([[[0.0, 0.0], [1.0, 1.0]]])}).mode
        'RGB'
    """
    figure = _figure((5, 5))
    axes = figure.add_subplot()
    for i, (name, paths) in enumerate(kinds.items()):
        color, dashes, marker = STYLES[i % len(STYLES)]
        for j, path in enumerate(paths):
            label = None if j else name
            axes.plot(*path.T, color=color, linestyle=dashes, marker=marker, markersize=3, label=label)
            axes.plot(*path[[0, -1]].T, "k*", markersize=9)
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(fontsize=8)
    return rendered(figure)
