"""score, predict, encode and decode: results of single examples, whatever stands beside them in a file."""

import csv
import json
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from data_fixtures import isolated  # noqa: F401 (used by all)
from laws import within_4_errors
from PIL import Image
from safetensors.torch import load_file, save_file

import iresnet as ir
from iresnet import evaluation
from iresnet.data import Examples, load
from iresnet.evaluation import Reference
from iresnet.pretrained import find_run
from iresnet.probes import PROBES


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def numbers(rows, name):
    return np.array([float(row[name]) for row in rows])


def check_refused(answer, expected):
    status, _, err = answer
    assert expected in err
    assert (status, err.count("\n")) == (2, 1)


def bundled(name):
    """A density of the package in float64, and what it knows of its data."""
    return ir.load(name).double(), find_run(name).read_config()[1]


def examples(x):
    return Examples(x, [*range(1, len(x) + 1)])


# -- p-values ----------------------------------------------------------------------------------------------------------


def test_p_values_count_the_examples_that_are_at_least_as_unusual():
    generator = torch.Generator().manual_seed(0)
    train, new = torch.randn(57, generator=generator).double(), torch.randn(40, generator=generator).double()
    train[:3], new[:3] = 0.5, torch.tensor([0.5, -9.0, 9.0])
    reference = Reference(train)
    for p, q, value in zip(reference.p_likelihood(new), reference.p_typicality(new), new, strict=True):
        assert float(p) == (1 + int((train <= value).sum())) / 58
        assert float(q) == (1 + int(((train - train.mean()).abs() >= (value - train.mean()).abs()).sum())) / 58


def test_examples_of_the_same_law_are_flagged_as_often_as_is_asked_for():
    generator = torch.Generator().manual_seed(1)
    rates = []
    for _ in range(400):
        reference = Reference(-torch.randn(199, generator=generator).square())
        new = -torch.randn(50, generator=generator).square()
        rates.append([(p(new) <= 0.1).double().mean() for p in (reference.p_likelihood, reference.p_typicality)])
    errors = torch.tensor(rates).std(0) / math.sqrt(len(rates))
    assert bool(((torch.tensor(rates).mean(0) - 0.1).abs() < 4 * errors).all())


# -- scores ------------------------------------------------------------------------------------------------------------


def test_shared_probes_are_signs_that_all_samples_have_and_draws_have_not():
    like = torch.empty(5, 2, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last)
    first, second = PROBES["shared"](like, 2, torch.Generator().manual_seed(0))
    assert first.shape == like.shape
    assert bool((first.abs() == 1).all())
    assert torch.equal(first, first[:1].expand(5, -1, -1, -1))
    assert not torch.equal(first, second)
    many = torch.stack(list(PROBES["shared"](like[:1, 0, :1, :3], 20_000, torch.Generator().manual_seed(0))))[:, 0, 0]
    within_4_errors(many[:, :, None] * many[:, None] - torch.eye(3), 0.0)
    (alone, _) = PROBES["shared"](like[:1], 2, torch.Generator().manual_seed(0))
    assert torch.equal(alone[0], first[0])


@pytest.mark.parametrize("name", ["digits-density", "mnist-density-small"])  # of 64 and of 784 dimensions
def test_a_score_depends_on_the_example_alone(name):
    flow, inputs = bundled(name)
    x = torch.randint(inputs.levels, (6, *inputs.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batches = (x.split(6), x.split(1), x.flip(0).split(4))
    together, alone, backwards = (
        torch.cat([s.log_prob for _, s in evaluation.score(flow, map(examples, some), inputs, n_draws=2)])
        for some in batches
    )
    torch.testing.assert_close(alone, together, rtol=1e-10, atol=0)
    torch.testing.assert_close(backwards.flip(0), together, rtol=1e-10, atol=0)


def test_a_score_is_the_mean_log_density_of_its_noisy_copies(trained):
    flow, inputs = bundled(trained("density"))
    x = load("digits").test.x[:3]
    ((_, scores),) = evaluation.score(flow, [examples(x)], inputs, n_draws=10)
    u = torch.rand(20, *x.shape, dtype=torch.float64)
    with torch.no_grad():
        truth = flow.log_prob((x + u).flatten(0, 1), logdet=ir.Exact()).view(20, 3)
    error = (scores.standard_error.square() + truth.var(0) / 20).sqrt()
    assert bool(((scores.log_prob - truth.mean(0)).abs() < 4 * error).all())
    assert bool((scores.standard_error / (truth.std(0) / math.sqrt(10)) - 1).abs().max() < 0.8)


def test_images_are_scored_from_files_arrays_and_any_batch(copied, call, tmp_path):
    folder, x = copied("density"), load("digits").test.x[:30]
    (tmp_path / "images" / "deep").mkdir(parents=True)
    for i, image in enumerate(x):
        gray = Image.fromarray((image[0].numpy() * (255 / 16)).round().astype(np.uint8))
        (gray.convert("RGB") if i < 5 else gray).save(tmp_path / "images" / ("deep" if i < 5 else ".") / f"{i:02}.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    np.savez(tmp_path / "x.npz", x=x.numpy())
    options = ("--train-examples", 300, "--data-dir", tmp_path)
    status, out, err = call("score", folder, tmp_path / "x.npz", *options, "--out", tmp_path / "a.csv")
    assert (status, err) == (0, "")
    assert "scored 300 training examples" in out
    kept = (folder / "training-scores.json").read_bytes()
    status, out, err = call(
        "score", folder, tmp_path / "images", "--batch-size", 5, "--out", tmp_path / "b.parquet", "--false-alarms", 0.3
    )
    assert (status, err) == (0, "")
    assert "training examples to compare" not in out  # they are kept
    assert (folder / "training-scores.json").read_bytes() == kept
    arrays, files = read(tmp_path / "a.csv"), pq.read_table(tmp_path / "b.parquet").to_pylist()
    files.sort(key=lambda row: row["file"].removeprefix("deep/"))
    assert [row["file"] for row in files][:6] == [*(f"deep/0{i}.png" for i in range(5)), "05.png"]
    assert [row["row"] for row in arrays] == [str(i + 1) for i in range(30)]
    np.testing.assert_allclose(numbers(files, "log_likelihood"), numbers(arrays, "log_likelihood"), rtol=1e-5)
    np.testing.assert_allclose(
        numbers(arrays, "bits_per_dim"), -numbers(arrays, "log_likelihood") / (64 * math.log(2)), rtol=1e-9
    )
    reference = Reference(torch.tensor(json.loads(kept)["log_likelihood"]))
    for row in files:
        assert row["p_typicality"] == float(reference.p_typicality(torch.tensor(row["log_likelihood"])))
        assert row["flagged"] == (row["p_typicality"] <= 0.3)
    assert f"flagged {sum(row['flagged'] for row in files)} of 30 at --false-alarms 0.3" in out


def test_scores_of_other_weights_or_draws_are_computed_again(copied, call, tmp_path):
    folder = copied("density")
    np.savez(tmp_path / "x.npz", x=load("digits").test.x[:3].numpy())
    command = ("score", folder, tmp_path / "x.npz", "--false-alarms", 0.1)
    assert "scored 50 training" in call(*command, "--train-examples", 50)[1]
    assert "scored" not in call(*command)[1]
    assert "scored 2000" not in call(*command, "--draws", 2)[1]  # there are 1297
    state = load_file(folder / "model.safetensors")
    state["base.mean"] += 0.1
    save_file(state, folder / "model.safetensors")
    assert "scored 60 training" in call(*command, "--draws", 2, "--train-examples", 60)[1]


def test_noise_is_where_no_density_would_be_without_it_and_rows_are_found_by_name(call, tmp_path):
    """A table with a category, integers, repeated decimals and a time; columns in another order beside others."""
    generator = np.random.default_rng(0)
    n = 400
    table = {
        "kind": generator.choice(["lily", "rose"], n),
        "count": generator.integers(0, 9, n),
        "tenths": generator.integers(0, 12, n) / 10,
        "time": 1.7e9 + generator.normal(0, 50, n),
        "real": generator.normal(0, 1, n),
    }
    lines = [",".join(table), *(",".join(map(str, row)) for row in zip(*table.values(), strict=True))]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    train = ("train", "uci-density", "--data.name", "t.csv", "--data.one-hot", "kind", "--data.dequantize", "true")
    train += ("--model.hidden", 8, "--model.blocks", 2, "--train.epochs", 1, "--train.snapshot-every", 1)
    assert call(*train, "--tracker", "[]", "--data-dir", tmp_path, "--out", tmp_path / "run")[0] == 0
    names = ["id", "real", "time", "tenths", "count", "kind"]
    table["id"] = np.array([f"n{i}" for i in range(n)])
    rows = [",".join(names), *(",".join(str(table[name][i]) for name in names) for i in range(50))]
    (tmp_path / "new.csv").write_text("\n".join(rows) + "\n")
    options = ("--false-alarms", 0.1, "--train-examples", 300)
    command = ("score", tmp_path / "run", tmp_path / "new.csv", *options, "--keep", "id")
    status, _, err = call(*command, "--out", tmp_path / "a.csv")
    assert (status, err) == (0, "")
    assert call(*command, "--out", tmp_path / "b.csv", "--batch-size", 7)[0] == 0
    first, second = read(tmp_path / "a.csv"), read(tmp_path / "b.csv")
    assert [row["id"] for row in first] == [f"n{i}" for i in range(50)]
    assert "bits_per_dim" not in first[0]
    np.testing.assert_allclose(numbers(first, "log_likelihood"), numbers(second, "log_likelihood"), atol=1e-4)
    # They are of the law of the training data, so their p-values are spread over [0, 1].
    assert 0.3 < numbers(first, "p_likelihood").mean() < 0.7
    assert (numbers(first, "standard_error") > 0).all()
    # Latents are of values with noise, which is rounded off again.
    assert call("encode", tmp_path / "run", tmp_path / "new.csv", "--out", tmp_path / "z.parquet")[0] == 0
    assert call("decode", tmp_path / "run", tmp_path / "z.parquet", "--out", tmp_path / "back.csv")[0] == 0
    back = read(tmp_path / "back.csv")
    assert [row["kind"] for row in back] == table["kind"][:50].tolist()
    np.testing.assert_array_equal(numbers(back, "count"), table["count"][:50])
    np.testing.assert_allclose(numbers(back, "real"), table["real"][:50], atol=1e-4)
    np.testing.assert_allclose(numbers(back, "time"), table["time"][:50], atol=1e-2)
    assert (numbers(back, "tenths") >= table["tenths"][:50] - 1e-4).all()
    assert (numbers(back, "tenths") <= table["tenths"][:50] + 0.1 + 1e-4).all()


def test_without_a_file_the_most_unusual_are_printed(copied, call, tmp_path):
    x = load("digits").test.x[:40].clone()
    x[33] = torch.randint(17, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "x.npz", x=x.numpy())
    status, out, _ = call("score", copied("density"), tmp_path / "x.npz", "--train-examples", 0)
    rows = [line.split()[0] for line in out.splitlines() if line[:1].isdecimal()]
    assert (status, rows[0], len(rows) - 1) == (0, "34", 20)
    assert "20 of 40 rows" in out
    assert "flagged" not in out


# -- predictions, latents ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classify", "hybrid"])
def test_predictions_of_a_file_are_those_of_the_model(kind, copied, call, tmp_path):
    folder, x = copied(kind), load("digits").test.x[:50]
    np.savez(tmp_path / "x.npz", x=x.numpy())
    command = ("predict", folder, tmp_path / "x.npz", "--out")
    assert call(*command, tmp_path / "a.csv")[0] == 0
    assert call(*command, tmp_path / "b.csv", "--batch-size", 7)[0] == 0
    rows, others = read(tmp_path / "a.csv"), read(tmp_path / "b.csv")
    probabilities = np.stack([numbers(rows, f"p_{digit}") for digit in range(10)], 1)
    np.testing.assert_allclose(probabilities, np.stack([numbers(others, f"p_{i}") for i in range(10)], 1), atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert [row["predicted"] for row in rows] == [str(i) for i in probabilities.argmax(1)]
    np.testing.assert_array_equal(numbers(rows, "probability"), probabilities.max(1))
    model = ir.load(folder)
    if kind == "classify":
        with torch.no_grad():
            logits = model(x.float())
        np.testing.assert_allclose(probabilities, logits.softmax(1), atol=1e-5)
        constant = evaluation.logit_constant(model, x[:1].float())
        expected = evaluation.certified_radius(logits, constant)
        np.testing.assert_allclose(numbers(rows, "certified_radius"), expected, rtol=1e-3)
    assert (numbers(rows, "certified_radius") > 0).all()


@pytest.mark.parametrize("kind", ["density", "classify", "hybrid"])
def test_decoded_latents_are_the_images(kind, copied, call, tmp_path):
    folder, x = copied(kind), load("digits").test.x[:20].numpy()
    np.savez(tmp_path / "x.npz", x=x)
    for suffix in ("npz", "parquet"):
        z = tmp_path / f"z.{suffix}"
        assert call("encode", folder, tmp_path / "x.npz", "--out", z, "--batch-size", 7)[0] == 0
        assert call("decode", folder, z, "--out", tmp_path / f"back-{suffix}.npz")[0] == 0
        np.testing.assert_array_equal(np.load(tmp_path / f"back-{suffix}.npz")["x"], x)
    stored = np.load(tmp_path / "z.npz")
    assert stored["row"].tolist() == [*range(1, 21)]
    table = pq.read_table(tmp_path / "z.parquet")
    np.testing.assert_array_equal(np.array(table.column("z").to_pylist(), np.float32), stored["z"])


def test_decoded_images_go_to_a_folder_that_can_be_scored(copied, call, tmp_path):
    folder = copied("density")
    np.savez(tmp_path / "z.npz", z=torch.randn(12, 64).numpy())
    assert call("decode", folder, tmp_path / "z.npz", "--out", tmp_path / "images")[0] == 0
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [f"{i:02}.png" for i in range(12)]
    status, out, _ = call("score", folder, tmp_path / "images", "--train-examples", 0)
    assert (status, "11.png" in out) == (0, True)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Files that no model of digits takes."""
    root = tmp_path / "files"
    (root / "empty").mkdir(parents=True)
    (root / "broken").mkdir()
    (root / "mixed").mkdir()
    Image.new("L", (8, 8)).save(root / "broken" / "a.png")
    (root / "broken" / "b.png").write_bytes((root / "broken" / "a.png").read_bytes()[:40])
    Image.new("L", (8, 8)).save(root / "mixed" / "a.png")
    Image.new("L", (9, 8)).save(root / "mixed" / "b.png")
    Image.effect_noise((8, 8), 90).convert("RGB").save(root / "gray.png")
    Image.merge("RGB", [Image.effect_noise((8, 8), s) for s in (20, 50, 90)]).save(root / "color.png")
    Image.new("L", (16, 16)).save(root / "large.png")
    np.savez(root / "levels.npz", x=np.full((3, 1, 8, 8), 17, np.uint8))
    np.savez(root / "real.npz", x=np.zeros((3, 1, 8, 8)))
    np.savez(root / "good.npz", x=np.zeros((3, 1, 8, 8), np.uint8))
    np.savez(root / "z.npz", z=np.zeros((3, 63)))
    np.savez(root / "no-z.npz", y=np.zeros((3, 63)))
    np.savez(root / "nan-z.npz", z=np.full((3, 64), np.nan))
    (root / "rows.csv").write_text("a,b\n1,2\n3,4\n")
    (root / "page.pdf").write_text("%PDF")
    return root


BAD_FILES = {
    "nothing": ("no.png", "no.png: no such file or folder"),
    "no images": ("empty", "no images found"),
    "a damaged image after a good one": ("broken", "b.png: expected a complete image file"),
    "another size after the first": ("mixed", "b.png"),
    "colors": ("color.png", "this run takes gray images of 8x8 pixels, got RGB images of 8x8 pixels"),
    "a larger image": ("large.png", "got gray images of 16x16 pixels"),
    "too many levels": ("levels.npz", "values must lie in 0..16, got 17"),
    "real numbers": ("real.npz", "this run takes integers in 0..16"),
    "a table": ("rows.csv", "this run takes a folder of images, an image file, or an array (.npz, .npy), got '.csv'"),
    "a document": ("page.pdf", "got '.pdf'"),
}


@pytest.mark.parametrize("command", ["score", "predict", "encode"])
@pytest.mark.parametrize("case", BAD_FILES)
def test_files_of_no_example_end_in_one_line(case, command, trained, call, files):
    name, expected = BAD_FILES[case]
    before = sorted(files.parent.rglob("*"))
    out = files.parent / ("z.parquet" if command == "encode" else "out.csv")
    options = ("--train-examples", 0) if command == "score" else ()
    check_refused(call(command, trained("hybrid"), files / name, "--out", out, "--batch-size", 1, *options), expected)
    assert sorted(files.parent.rglob("*")) == before


BAD_ROWS = {
    "a missing column": ("x\n1\n2\n", "expected the columns of the training data, got none called y"),
    "a gap": ("y,x\n1,2\n3,\n", "line 3, column 2 (x): expected a value, got none; fill it in"),
    "a word": ("y,x\n1,2\n1,2\n1,2\n3,high\n", "line 5, column 2 (x): expected a finite number, got 'high'"),
    "a short line": ("y,x\n1,2\n3\n", "line 3: expected 2 columns, got 1"),
    "no rows": ("y,x\n", "got only the header"),
    "nothing": ("", "got an empty file"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_of_no_example_end_in_one_line(case, trained, call, tmp_path):
    folder = shutil.copytree(trained("toy"), tmp_path / "run")
    text, columns = (folder / "config.yaml").read_text(), "  columns: [{name: x, position: 1}, {name: y, position: 2}]"
    before, _, after = text.rpartition("  columns: []")  # those of the inputs come last
    (folder / "config.yaml").write_text(before + columns + after)
    content, expected = BAD_ROWS[case]
    (tmp_path / "rows.csv").write_text(content)
    before = sorted(tmp_path.rglob("*"))
    for out in ("a.csv", "a.parquet"):
        options = ("--train-examples", 0, "--batch-size", 1)
        check_refused(call("score", folder, tmp_path / "rows.csv", "--out", tmp_path / out, *options), expected)
        assert sorted(tmp_path.rglob("*")) == before


BAD_USE = {
    "a classifier to score": (("score", "classify", "good.npz"), "this run is a classifier without a density"),
    "a density to predict with": (("predict", "density", "good.npz"), "this run is a density without classes"),
    "another format": (
        ("score", "density", "good.npz", "--out", "a.xlsx"),
        "expected a file ending in .csv or .parquet",
    ),
    "latents as text": (("encode", "density", "good.npz", "--out", "z.csv"), "ending in .npz or .parquet"),
    "latents of another run": (("decode", "density", "z.npz", "--out", "a.npz"), "latents of 64 numbers, got an array"),
    "no latents": (("decode", "density", "no-z.npz", "--out", "a.npz"), "expected a file with latents z"),
    "latents that are no numbers": (("decode", "density", "nan-z.npz", "--out", "a.npz"), "row 1 is not"),
    "images as a table": (("decode", "density", "z.npz", "--out", "a.csv"), "ending in .png, .npz"),
    "columns of images": (("score", "density", "good.npz", "--keep", "id"), "only tables have columns to keep"),
    "no model": (("score", "digits-densty", "good.npz"), "did you mean 'digits-density'?"),
    "no false alarms": (("score", "density", "good.npz", "--false-alarms", "0"), "Must be > 0"),
    "rarer alarms than examples": (
        ("score", "density", "good.npz", "--false-alarms", "0.001", "--train-examples", "50"),
        "--false-alarms 0.001 takes at least 999 training examples, got 50",
    ),
}


@pytest.mark.parametrize("case", BAD_USE)
def test_bad_use_ends_in_one_line(case, trained, call, files, tmp_path):
    (command, kind, name, *options), expected = BAD_USE[case]
    run = kind if "densty" in kind else shutil.copytree(trained(kind), tmp_path / "run")
    options = [tmp_path / token if "." in token and not token[0].isdecimal() else token for token in options]
    check_refused(call(command, run, files / name, *options), expected)
    assert not any((tmp_path / name).exists() for name in ("a.csv", "a.npz", "a.xlsx", "z.csv"))


def test_data_of_another_training_are_not_compared_with(copied, call, tmp_path):
    folder = copied("density")
    np.savez(tmp_path / "x.npz", x=load("digits").test.x[:3].numpy())
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("levels: 17", "levels: 16"))
    check_refused(call("score", folder, tmp_path / "x.npz"), "values must lie in 0..15")
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 1, 8, 8), np.uint8))
    check_refused(call("score", folder, tmp_path / "x.npz"), "was trained on other data")
