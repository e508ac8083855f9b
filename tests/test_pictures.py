"""Pictures: what is drawn is what the data are."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from iresnet.errors import RunError
from iresnet.inputs import Inputs
from iresnet.pictures import draw, image_grid, scatter


def inputs(*shape, levels=None):
    return Inputs(shape, levels, (), (0.0,), (1.0,))


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def tile(picture, i, columns, height, width, gap):
    """The i-th image of a grid that is not enlarged, (H, W, 3)."""
    top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
    return np.asarray(picture)[top : top + height, left : left + width]


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_of_a_grid_are_those_of_the_data(channels):
    x = torch.randint(0, 256, (5, channels, 64, 96))
    picture = image_grid(x + torch.rand(x.shape), levels=256, columns=2)
    assert picture.size == (2 * 96 + 4, 3 * 64 + 2 * 4)
    for i, image in enumerate(x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()):
        assert np.array_equal(tile(picture, i, 2, 64, 96, 4), image)
    assert set(tile(picture, 5, 2, 64, 96, 4).flatten()) == {153}  # no sixth image
    assert set(np.asarray(picture)[:, 96:100].flatten()) == {153}


def test_few_levels_reach_from_black_to_white():
    x = torch.arange(17.0).view(17, 1, 1, 1).expand(17, 1, 64, 64)
    picture = image_grid(x, levels=17, columns=17)
    shades = [int(tile(picture, i, 17, 64, 64, 4)[0, 0, 0]) for i in range(17)]
    assert shades == [round(255 * i / 16) for i in range(17)]


def test_real_numbers_reach_from_black_to_their_largest():
    picture = image_grid(
        torch.tensor([-1.0, 0.0, 1.0, 4.0]).view(4, 1, 1, 1).expand(4, 1, 64, 64), levels=None, columns=4
    )
    assert [int(tile(picture, i, 4, 64, 64, 4)[0, 0, 0]) for i in range(4)] == [0, 0, 64, 255]


def test_small_images_are_enlarged_pixel_by_pixel():
    x = torch.randint(0, 2, (1, 1, 8, 8))
    picture = np.asarray(image_grid(x, levels=2))[..., 0]
    assert np.array_equal(picture, np.kron(255 * x[0, 0].numpy(), np.ones((8, 8))))


@pytest.mark.parametrize("levels", [2, None])
def test_values_that_are_not_finite_spare_the_others(levels):
    values = torch.tensor([math.nan, math.inf, -math.inf, 1.0]).view(4, 1, 1, 1).expand(4, 1, 64, 64)
    picture = image_grid(values, levels=levels, columns=4)
    assert [int(tile(picture, i, 4, 64, 64, 4)[0, 0, 0]) for i in range(4)] == [0, 255, 0, 255]


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_grids_are_about_square(n):
    width, height = image_grid(torch.zeros(n, 1, 64, 64)).size
    assert (width + 4) // 68 == math.ceil(math.sqrt(n))
    assert (width + 4) // 68 * ((height + 4) // 68) >= n


def test_images_become_a_png(tmp_path):
    x = torch.randint(0, 256, (4, 3, 64, 64))
    path = draw(x.float(), inputs(3, 64, 64, levels=256), tmp_path / "new" / "epoch-1.5", columns=4)
    assert path == tmp_path / "new" / "epoch-1.5.png"
    assert np.array_equal(tile(pixels(path), 3, 4, 64, 64, 4), x[3].permute(1, 2, 0).numpy())
    assert [entry.name for entry in path.parent.iterdir()] == ["epoch-1.5.png"]


def test_points_become_a_png(tmp_path):
    path = draw(torch.randn(50, 2), inputs(2), tmp_path / "points")
    assert path.name == "points.png"
    assert pixels(path).shape == (500, 500, 3)


def test_a_scatter_plot_shows_where_the_points_are():
    """Points on the falling diagonal: ink at the top left and bottom right of the axes, none in the other corners."""
    t = torch.linspace(0, 1, 200)
    axes = np.asarray(scatter(torch.stack([t, 1 - t], 1)))[30:-40, 60:-30].astype(int)
    ink = (axes[..., 2] - axes[..., 0]) > 60  # blue
    n = len(ink) // 3
    corners = [ink[:n, :n], ink[-n:, -n:], ink[:n, -n:], ink[-n:, :n]]
    assert [bool(corner.any()) for corner in corners] == [True, True, False, False]


@pytest.mark.parametrize("shape", [(1,), (3,), (11,)])
def test_longer_vectors_become_a_table(shape, tmp_path):
    x = torch.randn(20, *shape, dtype=torch.float64).requires_grad_()
    path = draw(x, inputs(*shape), tmp_path / "samples")
    assert path.name == "samples.csv"
    assert np.allclose(np.loadtxt(path, delimiter=",", ndmin=2), x.detach().numpy(), rtol=1e-5, atol=0)


BAD = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
NOT_FINITE = {
    "images": (BAD.view(4, 1, 1, 1).expand(4, 1, 8, 8), inputs(1, 8, 8, levels=17)),
    "real images": (BAD.view(4, 1, 1, 1).expand(4, 1, 8, 8), inputs(1, 8, 8)),
    "points": (torch.stack([BAD, BAD.flip(0)], 1), inputs(2)),
    "no points at all": (torch.full((3, 2), math.nan), inputs(2)),
    "a table": (BAD.view(1, 4), inputs(4)),
}


@pytest.mark.parametrize("case", NOT_FINITE)
def test_values_that_are_not_finite_can_be_drawn(case, tmp_path):
    x, what = NOT_FINITE[case]
    path = draw(x, what, tmp_path / "samples")
    if case == "a table":
        assert path.read_text() == "nan,inf,-inf,1\n"
    else:
        assert min(pixels(path).shape[:2]) >= 64


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file"):
        draw(torch.zeros(1, 3), inputs(3), tmp_path / "file" / "samples")
