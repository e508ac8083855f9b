"""Laws of dequantization and augmentation."""

import pytest
import torch
import torch.nn.functional as F

from iresnet.data import PADDINGS, TOYS, Batches, Split, dequantize, flip, load, pad_crop
from iresnet.errors import DataError, UnknownNameError

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def random_images(n=64, channels=3, size=9, dtype=torch.uint8):
    return torch.randint(0, 256, (n, channels, size, size), generator=generator()).to(dtype)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_dequantized_values_have_the_integers_as_floor_and_uniform_rests(dtype, levels):
    x = torch.arange(levels, dtype=torch.uint8).repeat(200_000 // levels)[:, None]
    z = dequantize(x, levels=levels, generator=generator(), dtype=DTYPES[dtype])
    assert z.dtype == DTYPES[dtype]
    assert torch.equal(z.floor(), x.to(z.dtype))
    assert z.max() < levels
    u = (z - x).flatten().double()
    n = len(u)
    assert abs(u.mean() - 1 / 2) < 4 * (1 / 12 / n) ** 0.5
    assert abs((u**2).mean() - 1 / 3) < 4 * (4 / 45 / n) ** 0.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_largest_noise_does_not_reach_the_next_integer(dtype, levels, monkeypatch):
    largest = torch.nextafter(torch.ones((), dtype=DTYPES[dtype]), torch.zeros((), dtype=DTYPES[dtype]))
    monkeypatch.setattr(torch, "rand", lambda shape, **_: largest.expand(shape))
    x = torch.arange(levels, dtype=torch.uint8)[:, None]
    assert torch.equal(dequantize(x, levels=levels, dtype=DTYPES[dtype]).floor(), x.to(DTYPES[dtype]))


def test_continuous_data_is_only_cast():
    x = torch.randn(5, 2)
    assert torch.equal(dequantize(x, levels=None, dtype=torch.float64), x.double())


def shifts(mode, x, padding):
    """All crops of the padded image, by an independent route."""
    top = {"zero": "constant", "reflect": "reflect", "symmetric": None}[mode]
    sides = (padding,) * 4
    if top is None:  # repeat the edge by padding, one mirrored slice a side
        left, right = x[..., :padding].flip(-1), x[..., -padding:].flip(-1)
        wide = torch.cat([left, x, right], -1)
        padded = torch.cat([wide[..., :padding, :].flip(-2), wide, wide[..., -padding:, :].flip(-2)], -2)
    else:
        padded = F.pad(x.double(), sides, mode=top).to(x.dtype)
    size, span = x.shape[-1], range(2 * padding + 1)
    return torch.stack([padded[..., i : i + size, j : j + size] for i in span for j in span], 1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("mode", PADDINGS)
def test_each_crop_is_one_of_the_crops_of_the_padded_image_and_all_occur(mode, dtype):
    padding = 2
    x = random_images(n=1500, size=5, dtype=dtype)
    cropped = pad_crop(x, padding=padding, mode=mode, generator=generator())
    assert cropped.dtype == dtype
    matches = (shifts(mode, x, padding) == cropped[:, None]).flatten(2).all(2)  # (N, shifts)
    assert matches.any(1).all()
    counts = matches.double().sum(0)
    expected = 1500 / counts.numel()
    assert ((counts - expected).abs() < 4.5 * expected**0.5).all()


def test_crops_without_padding_change_nothing():
    x = random_images()
    assert torch.equal(pad_crop(x, padding=0), x)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_half_of_the_images_are_mirrored_as_a_whole(dtype):
    x = random_images(n=1000, dtype=dtype)
    flipped = flip(x, generator=generator())
    same = (flipped == x).flatten(1).all(1)
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert abs(int(mirrored.sum()) - 500) < 4 * 250**0.5


RANDOM = {
    "dequantize": lambda x, g: dequantize(x, levels=256, generator=g),
    "pad_crop": lambda x, g: pad_crop(x, generator=g),
    "flip": lambda x, g: flip(x, generator=g),
}


@pytest.mark.parametrize("name", RANDOM)
def test_the_generator_alone_decides(name):
    x = random_images()
    one, other = RANDOM[name](x, generator(1)), RANDOM[name](x, generator(1))
    assert torch.equal(one, other)
    assert not torch.equal(one, RANDOM[name](x, generator(2)))


@pytest.mark.parametrize(("size", "before"), [(8, 0), (9, 0), (10, 1), (16, 4)])
def test_padding_surrounds_images_with_zeros(size, before):
    plain, padded = load("digits"), load("digits", pad_to=size)
    inside = slice(before, before + 8)
    assert padded.shape == (1, size, size)
    for kind in ("train", "validation", "test"):
        x, y = getattr(padded, kind).x, getattr(padded, kind).y
        assert torch.equal(x[..., inside, inside], getattr(plain, kind).x)
        assert torch.equal(y, getattr(plain, kind).y)
        assert x.dtype == torch.uint8
        assert x.sum() == getattr(plain, kind).x.sum()


BAD = {
    "half precision": (lambda: dequantize(random_images(), levels=256, dtype=torch.float16), "float32 or float64"),
    "levels of floats": (lambda: dequantize(torch.zeros(2, 2), levels=256), "integers have levels"),
    "integers without": (lambda: dequantize(random_images(), levels=None), "integers have levels"),
    "crop of a table": (lambda: pad_crop(torch.zeros(2, 2)), r"shape \(N, C, H, W\), got \(2, 2\)"),
    "flip of a table": (lambda: flip(torch.zeros(2, 2)), r"shape \(N, C, H, W\), got \(2, 2\)"),
    "much padding": (lambda: pad_crop(random_images(size=4), padding=4), r"lie in 0\.\.3"),
    "small pad_to": (lambda: load("digits", pad_to=7), "8x8 images cannot be padded to 7x7"),
    "pad a table": (lambda: load("moons", pad_to=7), "only images can be padded"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused_in_one_line(case):
    make, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_an_unknown_padding_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="did you mean 'symmetric'"):
        pad_crop(random_images(), mode="symetric")


@pytest.mark.parametrize("name", RANDOM)
def test_results_stay_on_the_device_of_the_batch(name, device):
    x = random_images().to(device)
    for source in (None, torch.Generator(device).manual_seed(0)):
        assert RANDOM[name](x, source).device == x.device
    batches = Batches(Split(x), 16)
    assert all(batch.device == x.device for batch, _ in batches.epoch())
    assert TOYS["moons"].sample(4, torch.Generator(device)).device == x.device
    assert TOYS["moons"].log_prob(torch.zeros(4, 2, device=device)).device == x.device
