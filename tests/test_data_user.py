"""The user's own folders, arrays and tables."""

import gzip
import os
import pickle

import numpy as np
import pytest
import torch
from data_fixtures import (
    GRAY,
    encode,
    examples,
    isolated,  # noqa: F401
    write_folder,
    write_idx,
    write_parquet,
)
from PIL import Image

from iresnet.data import load
from iresnet.data.image_folders import read_image_folder
from iresnet.data.images import EncodedImage, decode_images
from iresnet.errors import DataError, UnknownNameError
from iresnet.models import inputs_of

X, Y = examples(30, 3, 8, n_classes=3)


def everything(dataset):
    """Return all examples (and labels) of a data set as one sorted list."""
    parts = (dataset.train, dataset.validation, dataset.test)
    labels = [part.y if part.y is not None else [None] * len(part) for part in parts]
    return sorted(
        (x.numpy().tobytes(), None if y is None else int(y))
        for part, ys in zip(parts, labels, strict=True)
        for x, y in zip(part.x, ys, strict=True)
    )


def expected(x, y=None):
    return sorted((image.tobytes(), None if y is None else int(y[i])) for i, image in enumerate(x))


def folder_flat(root):
    write_folder(root, X)
    (root / "notes.txt").write_text("not an image")
    (root / ".hidden.png").write_bytes(b"not an image")
    return expected(X), (24, 3, 3), ()


def folder_classes(root):
    write_folder(root, X, Y)
    return expected(X, Y), (24, 3, 3), ("class0", "class1", "class2")


def folder_splits(root):
    write_folder(root / "train", X[:15], Y[:15])
    write_folder(root / "val", X[15:21], Y[15:21])
    write_folder(root / "test", X[21:], Y[21:])
    return expected(X, Y), (15, 6, 9), ("class0", "class1", "class2")


def folder_no_validation(root):
    write_folder(root / "train", X[:20])
    write_folder(root / "test", X[20:])
    return expected(X), (18, 2, 10), ()


def folder_gray(root):
    write_folder(root, X[:, :1], suffix=".PNG")
    return expected(X[:, :1]), (24, 3, 3), ()


def folder_deep(root):
    for label in range(3):
        write_folder(root / f"class{label}" / "more", X[np.equal(Y, label)])
    return expected(X, Y), (24, 3, 3), ("class0", "class1", "class2")


def folder_idx(root):
    write_idx(root, GRAY)
    x, y = (np.concatenate([GRAY[kind][i] for kind in ("train", "test")]) for i in (0, 1))
    return expected(x, y), (36, 4, 12), tuple("0123456789")


def folder_parquet(root):
    write_parquet(root / "data", {"train": (X, Y)}, image="image", names=["a", "b", "c"])
    return expected(X, Y), (24, 3, 3), ("a", "b", "c")


def folder_parquet_unlabeled(root):
    write_parquet(root, {"train": (X, Y)}, label=None)
    return expected(X), (24, 3, 3), ()


def npz(**arrays):
    def write(path):
        np.savez(path, **arrays)

    return write


X_FIRST, X_LAST = X, X.transpose(0, 2, 3, 1)
TABLE = np.random.default_rng(0).normal(size=(30, 5))
ARRAYS = {
    "channels first": (npz(x=X_FIRST, y=Y), expected(X, Y), (24, 3, 3), 256),
    "channels last": (npz(x=X_LAST, y=Y), expected(X, Y), (24, 3, 3), 256),
    "other integers": (npz(x=X_LAST.astype(np.int64), y=Y.astype(np.uint8)[:, None]), expected(X, Y), (24, 3, 3), 256),
    "gray": (npz(x=X[:, 0]), expected(X[:, :1]), (24, 3, 3), 256),
    "splits": (
        npz(train_x=X[:20], train_y=Y[:20], validation_x=X[20:24], validation_y=Y[20:24], test_x=X[24:], test_y=Y[24:]),
        expected(X, Y),
        (20, 4, 6),
        256,
    ),
    "no validation": (npz(train_x=X[:20], test_x=X[20:]), expected(X), (18, 2, 10), 256),
    "table": (npz(x=TABLE), expected(TABLE.astype(np.float32)), (24, 3, 3), None),
    "labeled table": (npz(x=TABLE, y=Y), expected(TABLE.astype(np.float32), Y), (24, 3, 3), None),
    "table of integers": (npz(x=X[:, 0, 0]), expected(X[:, 0, 0].astype(np.float32)), (24, 3, 3), None),
    "float images": (npz(x=X_LAST / 255), expected((X / 255).astype(np.float32)), (24, 3, 3), None),
    "npy": (lambda path: np.save(path, X_LAST), expected(X), (24, 3, 3), 256),
}
FOLDERS = {name.removeprefix("folder_"): write for name, write in list(globals().items()) if name.startswith("folder_")}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_are_read_as_they_were_written(case, tmp_path):
    content, sizes, class_names = FOLDERS[case](tmp_path / "mine")
    for dataset in (load(tmp_path / "mine"), load(str(tmp_path / "mine")), load("mine", tmp_path)):
        assert everything(dataset) == content
        assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == sizes
        assert (dataset.class_names, dataset.levels, dataset.name) == (class_names, 256, "mine")
        assert dataset.train.x.dtype == torch.uint8


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_are_read_as_they_were_written(case, tmp_path):
    write, content, sizes, levels = ARRAYS[case]
    path = tmp_path / ("mine.npy" if case == "npy" else "mine.npz")
    write(path)
    dataset = load(path)
    assert everything(dataset) == content
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == sizes
    assert (dataset.levels, dataset.name) == (levels, "mine")
    assert dataset.n_classes == (3 if content[0][1] is not None else 0)


def test_arrays_of_other_names_are_told_apart_by_keys(tmp_path):
    np.savez(
        tmp_path / "a.npz", images=X[:20], labels=Y[:20], others=X[20:], x_val=X[:5], y_val=Y[:5], extra=np.zeros(2)
    )
    keys = {"train_x": "images", "train_y": "labels", "validation_x": "x_val", "validation_y": "y_val"}
    dataset = load(tmp_path / "a.npz", keys=keys)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (18, 5, 2)
    with pytest.raises(
        DataError, match=r"got extra, images, labels, .*; rename them, or tell which is which, as in --data"
    ):
        load(tmp_path / "a.npz")


def test_all_of_another_file_or_folder_is_the_test_split(tmp_path):
    write_folder(tmp_path / "a", X[:20], Y[:20])
    write_folder(tmp_path / "b", X[20:][Y[20:] != 1], Y[20:][Y[20:] != 1])
    np.savez(tmp_path / "a.npz", x=X[:20])
    np.savez(tmp_path / "b.npz", x=X[20:])
    folder, array = load("a", tmp_path, test="b"), load(tmp_path / "a.npz", test=tmp_path / "b.npz")
    assert folder.test.y.tolist() == sorted(Y[20:][Y[20:] != 1])  # classes keep their numbers
    assert np.array_equal(array.test.x, X[20:])
    assert (len(folder.train), len(array.train), len(array.validation)) == (18, 18, 2)
    write_folder(tmp_path / "c" / "train", X[:9])
    write_folder(tmp_path / "c" / "test", X[:9])
    with pytest.raises(DataError, match="expected one split, the test examples, got test, train"):
        load("a", tmp_path, test="c")
    with pytest.raises(DataError, match=r"c: has a test split of its own; leave out --data.test"):
        load("c", tmp_path, test="a")


def test_a_test_file_may_have_fewer_examples_than_classes(tmp_path):
    x, y = examples(100, 3, 8, n_classes=10)
    np.savez(tmp_path / "train.npz", x=x, y=y)
    np.savez(tmp_path / "few.npz", x=x[y == 9][:2], y=y[y == 9][:2])
    assert load(tmp_path / "train.npz", test=tmp_path / "few.npz").test.y.tolist() == [9, 9]


def test_classes_that_are_sorted_are_mixed_before_the_split(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((300, 2)), y=np.arange(300) // 100)
    dataset = load(tmp_path / "a.npz")
    for part in (dataset.train, dataset.validation, dataset.test):
        assert len(part.y.unique()) == 3


def test_images_are_scaled_by_the_shorter_side_and_cut_at_the_center(tmp_path):
    stripe = np.zeros((1, 40, 120), np.uint8)
    stripe[:, :, 40:80] = 200  # the central square
    for i, image in enumerate((stripe, stripe.transpose(0, 2, 1), stripe[:, ::2, ::2])):
        (tmp_path / f"{i}.png").write_bytes(encode(image))
    dataset = load(tmp_path, image_size=10)
    assert dataset.shape == (1, 10, 10)
    inner = torch.cat([dataset.train.x, dataset.validation.x, dataset.test.x])[..., 2:-2, 2:-2]
    assert (inner.int() - 200).abs().max() <= 1


def test_photos_are_turned_upright(tmp_path):
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    x = decode_images([EncodedImage("turned", (tmp_path / "turned.png").read_bytes)])
    assert x.shape == (1, 1, 4, 3)
    assert x[0, 0, 0].tolist() == [8, 4, 0]


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("P", 3), ("RGB", 3)])
def test_gray_and_color_modes_are_kept_apart(mode, channels, tmp_path):
    image = Image.fromarray(X[0].transpose(1, 2, 0)).convert(mode)
    image.save(tmp_path / "a.png")
    x = decode_images([EncodedImage("a", (tmp_path / "a.png").read_bytes)])
    assert x.shape == (1, channels, 8, 8)
    wanted = np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(8, 8, channels).transpose(2, 0, 1)
    assert np.array_equal(x[0], wanted)


def picture(mode):
    """The first image in a mode, opaque where it could be transparent."""
    image = Image.fromarray(X[0].transpose(1, 2, 0))
    return Image.fromarray(X[0, 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)


@pytest.mark.parametrize("wanted", ["RGB", "L"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_images_of_any_mode_are_converted_when_asked(mode, wanted, tmp_path):
    for i in range(3):
        if mode in ("CMYK", "YCbCr"):  # compressed, since pillow 12.3 does not read the YCbCr that it writes plainly
            picture(mode).save(tmp_path / f"{i}.tiff", compression="tiff_lzw")
        else:
            picture(mode).save(tmp_path / f"{i}.png")
    dataset = load(tmp_path, mode=wanted)
    assert dataset.shape == (3 if wanted == "RGB" else 1, 8, 8)
    if mode == "I;16":
        gray = np.repeat(X[0, :1], dataset.shape[0], axis=0)
        assert np.array_equal(dataset.test.x[0], gray)
    else:
        plain = np.asarray(picture(mode).convert("RGB").convert(wanted)).reshape(8, 8, -1).transpose(2, 0, 1)
        assert np.abs(dataset.test.x[0].numpy().astype(int) - plain).max() <= 1


def test_transparent_pixels_are_laid_on_white(tmp_path):
    image = np.zeros((4, 4, 4), np.uint8)
    image[:2, :, 3] = 255
    for i in range(3):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    x = load(tmp_path, mode="RGB").test.x[0]
    assert (x[:, :2].unique().tolist(), x[:, 2:].unique().tolist()) == ([0], [255])


def test_folders_and_parquet_files_of_mixed_images_take_one_form(tmp_path):
    for i, mode in enumerate(("RGB", "L", "RGBA") * 4):
        picture(mode).resize((8 + i, 9)).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match=r"convert .* \(--data.mode RGB\)"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"give image_size to scale and crop them \(--data.image-size 32\)"):
        load(tmp_path, mode="L")
    assert load(tmp_path, mode="L", image_size=6).shape == (1, 6, 6)
    write_parquet(tmp_path / "parquet", {"train": (X, Y)})
    assert load(tmp_path / "parquet", mode="L", image_size=6).shape == (1, 6, 6)


CSV = {
    "header, commas": "a,b,c\n1,2,3\n4,5,6\n7,8,9\n",
    "no header": "1,2,3\n4,5,6\n7,8,9",
    "semicolons": "a;b;c\n1;2;3\n\n4;5;6\n7;8;9\n",
    "tabs": "1\t2\t3\n4\t5\t6\n7\t8\t9\n",
    "white space": "  1.0 \t2.0   3 \n 4 5 6  \n7 8 9\n   \n",
    "windows": "\ufeffa,b,c\r\n1,2,3\r\n4,5,6\r\n7,8,9\r\n",
    "quoted": '"a","b, or","c"\n"1",2,3\n4,"5",6\n7,8,9\n',
    "spaces": "a, b, c\n1, 2, 3\n4, 5, 6\n7, 8, 9\n",
}


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".csv.gz", ".txt.gz"])
@pytest.mark.parametrize("case", CSV)
def test_tables_are_read_whatever_separates_them(case, suffix, tmp_path):
    path = tmp_path / f"mine{suffix}"
    content = CSV[case].encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    dataset = load(path)
    assert everything(dataset) == expected(np.arange(1, 10, dtype=np.float32).reshape(3, 3))
    assert (dataset.name, dataset.levels, dataset.shape) == ("mine", None, (3,))


IRIS = "length,width,kind\n" + "".join(f"{i},{i / 4},{kind}\n" for i, kind in enumerate(["b", "a", "c"] * 4))
TARGETS = {
    "name": (IRIS, "kind", ("a", "b", "c"), [1, 0, 2] * 4),
    "position": (IRIS, 2, ("a", "b", "c"), [1, 0, 2] * 4),
    "from the end": (IRIS, -1, ("a", "b", "c"), [1, 0, 2] * 4),
    "position as text": (IRIS, "-1", ("a", "b", "c"), [1, 0, 2] * 4),
    "numbers": ("1,10,5\n2,9,6\n" * 6, 1, ("9", "10"), [1, 0] * 6),
    "whole numbers with a point": ("1,10.0,5\n2,9.0,6\n" * 6, 1, ("9", "10"), [1, 0] * 6),
}


@pytest.mark.parametrize("case", TARGETS)
def test_the_target_column_becomes_the_labels(case, tmp_path):
    text, target, class_names, labels = TARGETS[case]
    (tmp_path / "t.csv").write_text(text)
    dataset = load(tmp_path / "t.csv", target=target)
    assert dataset.class_names == class_names
    assert dataset.shape == (2,)
    rows = [line.split(",") for line in text.splitlines() if not line.startswith("length")]
    x = np.delete(np.array(rows, object), int(target) if str(target).lstrip("-").isdigit() else 2, 1).astype(np.float32)
    assert everything(dataset) == expected(x, labels)


def text(content, name="t.csv"):
    def write(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return write


def array(name="t.npz", **arrays):
    def write(folder):
        np.savez(folder / name, **arrays)
        return folder / name

    return write


def files(**contents):
    def write(folder):
        for name, content in contents.items():
            path = folder / name.replace("__", "/").replace("_png", ".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder

    return write


def saved(mode):
    def write(folder):
        Image.new(mode, (4, 4)).save(folder / "a.tiff")
        return folder

    return write


def cut(write, keep=0.7):
    def write_and_cut(folder):
        path = write(folder)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
        return path

    return write_and_cut


def objects(folder):
    np.save(folder / "t.npy", np.array([{}], object), allow_pickle=True)
    return folder / "t.npy"


NAN = TABLE.copy()
NAN[7, 3] = np.nan
A, B, WIDE = encode(X[0]), encode(X[1]), encode(X[0][:, :, :4])
BAD = {
    "csv: empty": (text(""), {}, "t.csv: expected a table of numbers, got an empty file"),
    "csv: blank": (text(" \n\n"), {}, "got an empty file"),
    "csv: only a header": (text("a,b\n"), {}, "got only the header a, b"),
    "csv: text": (text("a,b\n1,2\n3,x\n"), {}, r"line 3, column 2 \(b\): expected a finite number, got 'x'"),
    "csv: text without header": (text("1,2\n3,x\n"), {}, "line 2, column 2: expected a finite number, got 'x'"),
    "csv: text in the first line": (text("1,x\n3,4\n"), {}, "line 1, column 2: expected a finite number, got 'x'"),
    "csv: nan": (text("1,2\n\n3,nan\n5,6"), {}, "line 3, column 2: expected a finite number, got 'nan'"),
    "csv: inf": (text("1,2\n-inf,4\n5,6"), {}, "line 2, column 1: expected a finite number, got '-inf'"),
    "csv: too large": (text("1,2\n1e39,4\n5,6"), {}, "line 2, column 1: expected a finite number, got '1e39'"),
    "csv: missing": (text("1,2\n,4\n5,6"), {}, "line 2, column 1: expected a finite number, got ''"),
    "csv: short line": (text("1,2,3\n4,5\n6,7,8"), {}, "line 2: expected 3 columns, got 2"),
    "csv: long line": (text("1,2\n3,4,5\n6,7"), {}, "line 2: expected 2 columns, got 3"),
    "csv: all lines long": (text("a,b\n1,2,3\n4,5,6\n7,8,9"), {}, "line 2: expected 2 columns, got 3"),
    "csv: long line, target": (text("1,2\n3,4,5\n6,7"), {"target": 0}, "line 2: expected 2 columns, got 3"),
    "csv: long quoted line": (text('1,2\n"3",4,5\n6,7'), {}, "line 2: expected 2 columns, got 3"),
    "csv: decimal commas": (text("1,5;2,5\n1,5;2,5\n"), {}, "line 1"),
    "csv: unnamed column": (text(",a\n0,1\n1,2\n2,3"), {}, "expected a name of its own for each column"),
    "csv: two of a name": (text("a,a\n0,1\n1,2\n2,3"), {}, "expected a name of its own for each column"),
    "csv: not text": (text(bytes(range(128, 256))), {}, "expected a text file in UTF-8.*; save it as UTF-8"),
    "csv: zeros": (text("1,2\n3,\0\n4,5"), {}, "line 2, column 2"),
    "csv: too few rows": (text("1,2\n3,4\n"), {}, "2 examples are too few"),
    "csv.gz: truncated": (cut(text(gzip.compress(b"1,2\n" * 500), "t.csv.gz")), {}, "expected a complete gzip file"),
    "csv.gz: no gzip": (text("1,2\n" * 5, "t.csv.gz"), {}, "expected a complete gzip file"),
    "csv: unknown target": (text(IRIS), {"target": "knd"}, "unknown column 'knd'; did you mean 'kind'"),
    "csv: target outside": (text(IRIS), {"target": 3}, r"expected a target column in 0\.\.2, got 3"),
    "csv: real target": (text("1,2.5\n" * 9), {"target": 1}, "expected classes, got real numbers"),
    "csv: many classes": (
        text("".join(f"{i},{i}\n" for i in range(20))),
        {"target": 0},
        "column 1: expected classes, got 20 values in 20 rows",
    ),
    "csv: class missing": (text("1,a\n2,\n3,a"), {"target": 1}, "line 2, column 2: expected a class, got nothing"),
    "csv: only a target": (text("1\n2\n1\n"), {"target": 0}, "expected columns beside the target"),
    "csv: keys": (text("1\n2\n1\n"), {"keys": {"x": "a"}}, "keys is for the arrays of a .npz file, not for this .csv"),
    "csv: mode": (text("1\n2\n1\n"), {"mode": "RGB"}, r"mode is for folders of images, .* leave it out .--data.mode"),
    "csv: image_size": (text("1\n2\n1\n"), {"image_size": 8}, "image_size is for folders"),
    "npz: truncated": (cut(array(x=X)), {}, "expected a .npz file of plain arrays"),
    "npz: empty file": (text("", "t.npz"), {}, "expected a .npz file of plain arrays"),
    "npz: no arrays": (array(), {}, "expected x .and y., or train_x, .*, got nothing"),
    "npz: other keys": (array(images=X), {}, "expected x .*got images"),
    "npz: keys that are not there": (array(a=X), {"keys": {"x": "b"}}, "unknown array of .*t.npz 'b'.*valid: a"),
    "npz: keys of no meaning": (array(a=X), {"keys": {"z": "a"}}, "unknown array 'z'"),
    "npz: two trains": (array(x=X, train_x=X), {}, "expected x .*got train_x, x"),
    "npz: labels alone": (array(y=Y), {}, "expected train_x with train_y"),
    "npz: test labels alone": (array(x=X, y=Y, test_y=Y), {}, "expected test_x with test_y"),
    "npz: test alone": (array(test_x=X), {}, "expected training examples, found only test"),
    "npz: fewer labels": (array(x=X, y=Y[:-1]), {}, "expected 30 labels"),
    "npz: real labels": (array(x=X, y=Y / 2), {}, "expected 30 labels, integers from 0, got float64"),
    "npz: negative labels": (array(x=X, y=Y - 1), {}, "integers from 0"),
    "npz: labels with gaps": (
        array(x=X, y=np.array([0, 7, 100_000] * 10)),
        {},
        r"t.npz: labels up to 100000 are 100001 classes, more than the 30 training examples; number the classes 0, 1",
    ),
    "npz: labels that are numbers": (array(x=X, y=np.arange(30) + 2**40), {}, "labels up to 1099511627805 are"),
    "npz: unlabeled test": (array(x=X, y=Y, test_x=X), {}, "labels and class names go together"),
    "npz: empty": (array(x=X[:0]), {}, r"expected numbers, got uint8 of shape \(0, 3, 8, 8\)"),
    "npz: text": (array(x=np.array(["a", "b"])), {}, "expected numbers, got <U1"),
    "npz: one axis": (array(x=np.arange(5)), {}, r"expected shape .*, got \(5,\)"),
    "npz: five axes": (array(x=X[None]), {}, r"expected shape .*, got \(1, 30, 3, 8, 8\)"),
    "npz: many channels": (array(x=np.zeros((5, 8, 8, 8))), {}, r"1 to 4 channels, got \(5, 8, 8, 8\)"),
    "npz: two readings": (array(x=np.zeros((5, 3, 8, 3))), {}, "which can be read in two ways"),
    "npz: nan": (array(x=NAN), {}, r"expected finite float32 numbers, got nan at \(7, 3\)"),
    "npz: too large": (array(x=np.full((5, 2), 1e300)), {}, r"got inf at \(0, 0\)"),
    "npz: values": (array(x=X.astype(int) * 2), {}, "values from 0 to 255, got 0 to 5"),
    "npz: other test shape": (array(x=X, test_x=X[..., :7]), {}, r"test examples \(3, 8, 7\)"),
    "npz: target": (array(x=TABLE), {"target": 0}, "target column is for tables .* not for this .npz"),
    "npy: pickled": (objects, {}, "expected a .npy file of plain arrays"),
    "npy: pickle": (text(pickle.dumps([1, 2]), "t.npy"), {}, "expected a .npy file of plain arrays"),
    "folder: empty": (lambda f: f, {}, "no images found"),
    "folder: no images": (files(**{"a.txt": b"hello"}), {}, "no images found"),
    "folder: sizes": (files(a_png=A, b_png=WIDE), {}, r"a.png \(8x8 RGB\) and .*b.png \(4x8 RGB\); give image_size"),
    "folder: modes": (files(a_png=A, b_png=encode(X[0, :1])), {}, r"\(8x8 RGB\) and .*\(8x8 gray\); convert them"),
    "folder: transparency": (saved("RGBA"), {}, "a.tiff: expected a gray or RGB image, got mode RGBA; convert"),
    "folder: 16 bit": (saved("I;16"), {}, "expected a gray or RGB image, got mode I;16"),
    "folder: no image": (files(a_png=b"hello"), {}, "a.png: expected a complete image file"),
    "folder: empty image": (files(a_png=A, b_png=b""), {}, "b.png: expected a complete image file"),
    "folder: cut image": (files(a_png=A, b_png=B[:-60]), {}, "b.png: expected a complete image file"),
    "folder: few": (files(a_png=A, b_png=B), {}, "2 examples are too few"),
    "folder: mixed": (files(a_png=A, c__b_png=B), {}, "expected images or folders of images, got both; move a.png"),
    "folder: empty class": (files(a__a_png=A, **{"b/readme": b""}), {}, "no images in the class folder b"),
    "folder: no train": (files(test__a_png=A), {}, "expected a folder train beside test"),
    "folder: empty train": (files(test__a_png=A, **{"train/readme": b""}), {}, "train: no images found"),
    "folder: two validations": (files(train__a_png=A, val__a_png=A, valid__a_png=A), {}, "one validation folder"),
    "folder: images outside": (files(train__a_png=A, extra__a_png=A), {}, "expected images only in train, got extra"),
    "folder: other classes": (
        files(train__a__a_png=A, train__b__b_png=B, test__c__a_png=A),
        {},
        "class a is in only one of train and test",
    ),
    "folder: drop": (files(a_png=A), {"drop": ["a"]}, "drop is for tables .* not for this folder"),
    "folder: dequantize": (files(a_png=A), {"dequantize": True}, "images of integers always are"),
    "folder: mode": (files(a_png=A), {"mode": "rgb"}, r"unknown mode of images 'rgb' \(valid: L, RGB\)"),
    "folder: 32 bit": (saved("I"), {"mode": "L"}, "mode I has no range of gray levels; save it with 8 or 16 bits"),
    "folder: no size": (files(a_png=A), {"image_size": 0}, "must be at least 1, got 0"),
    "npz: dequantized images": (array(x=X), {"dequantize": True}, "dequantize is for tables"),
    "folder: target": (files(a_png=A), {"target": 0}, "target column is for tables .* not for this folder"),
    "other file": (text("hello", "t.pdf"), {}, "expected a folder or a file ending in .npz, .*, got '.pdf'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_told_in_one_line(case, tmp_path):
    write, options, message = BAD[case]
    root = tmp_path / "mine"
    root.mkdir()
    path = write(root)
    with pytest.raises((DataError, UnknownNameError), match=message) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    assert "<" not in str(caught.value).replace("<U1", "")  # files are named, not objects


PIXELS = {"of 0 to 255": (1, 0), "of 0 to 1": (255, 0), "of -1 to 1": (127.5, 1), "of 0 to 255/256": (256, 0)}


@pytest.mark.parametrize("case", PIXELS)
def test_pixels_saved_as_real_numbers_have_no_density(case, tmp_path):
    scale, less = PIXELS[case]
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8))
    np.savez(tmp_path / "t.npz", x=(pixels / scale - less).astype(np.float32), y=np.arange(40) % 2)
    dataset = load(tmp_path / "t.npz")
    for kind in ("density", "hybrid"):
        with pytest.raises(DataError, match=r"^t: all pixels are .*has no limit; save them as uint8 \(0..255\)"):
            inputs_of(dataset, kind)
    assert inputs_of(dataset, "classify").shape == (1, 8, 8)
    np.save(tmp_path / "real.npy", np.random.default_rng(0).random((40, 1, 8, 8)))
    assert inputs_of(load(tmp_path / "real.npy"), "density").levels is None


def test_image_size_is_refused_for_idx_files(tmp_path):
    write_idx(tmp_path, GRAY)
    with pytest.raises(DataError, match="not for idx files"):
        load(tmp_path, image_size=8)


@pytest.mark.parametrize("name", ["no/such/folder", "nothing.csv"])
def test_a_missing_path_says_where_it_looked(name, tmp_path):
    with pytest.raises(DataError, match="no such folder or file; looked for") as caught:
        load(name, tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_pixels_are_never_warned_about_as_bombs_but_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    (tmp_path / "a.png").write_bytes(A)
    with pytest.raises(DataError, match="DecompressionBomb"):
        load(tmp_path)


@pytest.fixture
def remembering(monkeypatch):
    """Remember sets of any size; return the names of the images that were decoded."""
    decoded = []

    def spy(images, *options):
        decoded.extend(image.name for image in images)
        return decode_images(images, *options)

    monkeypatch.setattr("iresnet.data.images._CACHED_FROM", 1)
    monkeypatch.setattr("iresnet.data.images.decode_images", spy)
    return decoded


def caches(folder):
    return sorted((folder / "decoded").iterdir()) if (folder / "decoded").is_dir() else []


@pytest.mark.parametrize("write", [folder_classes, folder_parquet], ids=["folder", "parquet"])
def test_decoded_images_are_remembered_until_the_files_change(write, tmp_path, remembering, isolated):  # noqa: F811
    content, _, _ = write(tmp_path)
    for times in (1, 1):
        assert everything(load(tmp_path)) == content
        assert len(remembering) == 30 * times
    assert len(caches(isolated)) == 1
    changed = next(path for path in sorted(tmp_path.rglob("*")) if path.is_file())
    os.utime(changed, ns=(1, 1))
    assert everything(load(tmp_path)) == content
    assert len(remembering) == 60
    assert len(caches(isolated)) == 1  # the earlier one is removed
    load(tmp_path, image_size=4)
    assert len(remembering) == 90
    assert len(caches(isolated)) == 2


@pytest.mark.parametrize("at", [0.0, 0.02, 0.5, 0.97])
@pytest.mark.parametrize("kind", ["cut", "flip"])
def test_a_damaged_memory_is_not_trusted_and_is_replaced(kind, at, tmp_path, remembering, isolated):  # noqa: F811
    content, _, _ = folder_flat(tmp_path)
    load(tmp_path)
    (cache,) = caches(isolated)
    valid = cache.read_bytes()
    place = int(at * len(valid))
    rest = b"" if kind == "cut" else bytes([valid[place] ^ 0xFF]) + valid[place + 1 :]
    cache.write_bytes(valid[:place] + rest)
    assert everything(load(tmp_path)) == content
    assert everything(load(tmp_path)) == content
    assert len(remembering) == 60


def test_a_memory_that_cannot_be_written_is_a_warning(tmp_path, remembering, isolated):  # noqa: F811
    content, _, _ = folder_flat(tmp_path)
    (isolated / "decoded").write_text("in the way")
    with pytest.warns(UserWarning, match="decoded images could not be kept"):
        assert everything(load(tmp_path)) == content
    assert len(remembering) == 30


def test_small_sets_are_not_remembered(tmp_path, isolated):  # noqa: F811
    folder_flat(tmp_path)
    load(tmp_path)
    assert not caches(isolated)


def test_classes_are_read_in_alphabetical_order(tmp_path):
    write_folder(tmp_path, X, Y)
    splits, names = read_image_folder(tmp_path)
    assert names == ("class0", "class1", "class2")
    assert splits["train"].y.tolist() == sorted(Y)
