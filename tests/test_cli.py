"""The command line: every command does what it says, and whatever goes wrong is one line and an exit status."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import pytest
import torch
from data_fixtures import both, examples, isolated, write_folder, write_idx  # noqa: F401 (isolated is used by all)
from laws import loosen
from marks import slow
from PIL import Image
from safetensors.torch import load_file, save_file

import iresnet as ir
from iresnet import evaluation
from iresnet.config import load_config, recipe_names
from iresnet.data import load
from iresnet.errors import RunWarning
from iresnet.training import train as train_
from iresnet.training.optim import learning_rate

ON_CPU = "computed on CPU (1 threads)\n"
KINDS = ("density", "classify", "hybrid", "toy")
POINTS = (
    "toy-density",
    "--model.blocks",
    "1",
    "--model.hidden",
    "4",
    "--train.epochs",
    "1",
    "--train.batch-size",
    "40",
)


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def python(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


# -- what the commands do --------------------------------------------------------------------------------------------


def test_recipes_are_listed(call):
    status, out, err = call("recipes")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines() if line.split()[0] in recipe_names()] == recipe_names()
    assert "hybrid" in out


def read_evaluation(folder):
    """What the file holds; JSON knows no NaN and no infinity, although Python reads them."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads((folder / "evaluation.json").read_text(), parse_constant=refuse)


def check_evaluation(kind, out, result, model, split, levels):
    assert (result["split"], result["examples"]) == ("test", len(split))
    if kind != "classify":
        score = evaluation.likelihood(getattr(model, "flow", model), split, levels=levels)
        assert result["likelihood"]["bits_per_dim"]["mean"] == pytest.approx(score.bits_per_dim.mean)
        assert f"{score.bits_per_dim.mean:.4f}" in out
        assert f"{score.bits_per_dim.mean - score.bits_per_dim.half_width:.4f} to " in out
        assert result["likelihood"]["uncertainty"] == pytest.approx(asdict(score.uncertainty))
        assert f"{score.uncertainty}\n" in out
        assert "full-covariance Gaussian" in result["baselines"]
        assert ("uniform on 17 levels" in result["baselines"]) == (levels is not None)
        assert all(f"{b['bits_per_dim']['mean']:.4f}" in out for b in result["baselines"].values())
    if kind in ("classify", "hybrid"):
        score = evaluation.classification(model, split, levels=levels)
        assert result["classification"]["accuracy"] == score.accuracy
        assert f"test {score}" in out


@pytest.mark.parametrize("kind", ["density", "classify", "toy", slow("hybrid")])
def test_a_run_from_the_first_command_to_the_last(kind, tiny, call, tmp_path):
    folder = tmp_path / "a [bold] :smile: run"  # printed as it is
    status, out, err = call("train", *tiny[kind], "--out", folder)
    assert status == 0
    assert f"next: iresnet evaluate {folder}" in out
    told, _, err = err.partition("\n")
    assert told == "training on CPU (1 threads)"
    assert err.startswith("epoch 1, step ")
    assert ", certified\n" in err
    model = ir.load(folder)
    dataset = load("8gaussians" if kind == "toy" else "digits")

    status, out, err = call("evaluate", folder)
    assert (status, err) == (0, "")
    assert f"wrote {folder / 'evaluation.json'}\n" in out
    check_evaluation(kind, out, read_evaluation(folder), model, dataset.test, dataset.levels)

    if kind == "classify":
        status, out, err = call("sample", folder)
        assert (status, out) == (2, "")
        assert err == "iresnet: this run is a classifier without a density; train one with --task.nll-weight 1\n"
    else:
        status, out, err = call("sample", folder, "-n", "4", "--temperature", "0.7")
        assert (status, out, err) == (0, f"{ON_CPU}wrote {folder / 'samples' / 'samples.png'}\n", "")

    status, out, err = call("reconstruct", folder, "-n", 3, "--solver-examples", 2)
    assert (status, err) == (0, "")
    assert f"wrote {folder / 'samples' / 'reconstructions.png'}" in out
    error = float(out.partition("at most ")[2].partition(",")[0])
    assert 0 <= error < 1e-4

    status, out, err = call("certify", folder)
    assert (status, err) == (0, "")
    assert "certified: largest block bound 0." in out
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["certified"]
    assert len(certificate["blocks"]) == 2
    assert len(certificate["layers"]) == 6
    assert all(bound["lower"] <= bound["upper"] < 1 for bound in certificate["blocks"])


def test_reconstructions_show_data_above_what_comes_back(copied, call):
    folder = copied("density")
    call("reconstruct", folder, "-n", 3, "--solver-examples", 0)
    with Image.open(folder / "samples" / "reconstructions.png") as picture:
        pixels = np.asarray(picture)[4::8, 4::8, 0]  # 8 screen pixels each
    x = load("digits").test.x[:3, 0].double().numpy() * 255 / 16
    for i in range(3):
        above, below = pixels[:8, 9 * i : 9 * i + 8], pixels[9:17, 9 * i : 9 * i + 8]
        assert np.abs(above - x[i]).max() <= 1
        assert np.array_equal(above, below)


def test_samples_depend_on_seed_and_temperature_alone(copied, call):
    folder = copied("density")
    pictures = []
    for options in ((), (), ("--seed", 1), ("--temperature", 0)):
        assert call("sample", folder, "-n", 2, *options)[0] == 0
        pictures.append((folder / "samples" / "samples.png").read_bytes())
    assert pictures[0] == pictures[1]
    assert len(set(pictures)) == 3


def write_table(path, n=300):
    x = np.random.default_rng(0).normal(size=(n, 3)) @ np.array([[1, 2, 0], [0, 1, 0], [0, 1, 5]]) + 100
    np.savetxt(path, x, delimiter=",", header="a,b,c", comments="")
    return x


def read_rows(path):
    """The numbers below the header that the table had."""
    header, _, rows = path.read_text().partition("\n")
    assert header == "a,b,c"
    return np.loadtxt(rows.splitlines(), delimiter=",")


def test_a_table_from_the_first_command_to_the_last(call, tmp_path):
    x = write_table(tmp_path / "points.csv")
    folder = tmp_path / "run"
    data = ("--data.name", "points.csv", "--data-dir", tmp_path, "--out", folder)
    assert call("train", *POINTS, *data)[0] == 0
    for command in ("evaluate", "reconstruct", "certify"):
        status, _, err = call(command, folder)  # the run knows where its data are
        assert (status, err) == (0, "")
    result = json.loads((folder / "evaluation.json").read_text())
    assert list(result["baselines"]) == ["full-covariance Gaussian"]
    assert call("sample", folder, "-n", 50)[1] == f"{ON_CPU}wrote {folder / 'samples' / 'samples.csv'}\n"
    samples = read_rows(folder / "samples" / "samples.csv")
    assert samples.shape == (50, 3)
    assert np.abs(samples.mean(0) - x.mean(0)).max() < 2 * x.std(0).max()  # in the units of the table
    rows = read_rows(folder / "samples" / "reconstructions.csv")
    assert np.allclose(rows[:10], rows[10:], atol=1e-2)


@pytest.mark.parametrize("how", [(), ("--config",)])
def test_a_run_is_repeated_from_its_configuration_alone(how, call, tmp_path):
    write_table(tmp_path / "points.csv")
    first, again = tmp_path / "first", tmp_path / "again"
    settings = ("--train.epochs", 2, "--train.seed", 7, "--train.ema", 0.9, "--optim.lr=3e-3", "--train.accumulate", 2)
    assert (
        call("train", *POINTS, *settings, "--data.name", "points.csv", "--data-dir", tmp_path, "--out", first)[0] == 0
    )
    assert call("train", *how, first / "config.yaml", "--out", again)[0] == 0
    for name in ("config.yaml", "model.safetensors", "metrics.jsonl"):
        assert (again / name).read_bytes() == (first / name).read_bytes()
    checkpoints = [path.read_bytes() for run in (first, again) for path in sorted(run.glob("state/*/*.*"))]
    assert checkpoints[: len(checkpoints) // 2] == checkpoints[len(checkpoints) // 2 :]


def test_a_run_is_continued_from_its_folder_alone(call, tmp_path, monkeypatch):
    """All but the folder is that of the run; more epochs make the run that had them from the start."""
    write_table(tmp_path / "points.csv")
    settings = (*POINTS, "--optim.schedule", "constant", "--data.name", "points.csv", "--train.snapshot-every", 1)
    run, whole = tmp_path / "run", tmp_path / "whole"
    monkeypatch.setenv("IRESNET_DATA", "")
    assert call("train", *settings, "--data-dir", tmp_path, "--out", run)[0] == 0
    before = {path: content for path, content in files(run).items() if "tensorboard" not in path.parts}
    assert call("train", "--out", run, "--resume")[0] == 0
    assert {path: files(run)[path] for path in before} == before  # it was complete
    for tokens in (("--out", run, "--resume", "--train.epochs", 3), ("--train.epochs=3", "--resume", "--out", run)):
        status, _, err = call("train", *tokens)
        assert (status, "warning" in err) == (0, False)
    assert call("train", *settings, "--train.epochs", 3, "--data-dir", tmp_path, "--out", whole)[0] == 0
    for name in ("config.yaml", "model.safetensors", "metrics.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    check_refused(call("train", "--out", run, "--resume", "--train.epochs", 2), "(train.epochs: 3 -> 2); use another")
    check_refused(call("train", "--out", run, "--resume", "--optim.lr", 1), "(optim.lr: 0.02 -> 1.0); use another")
    check_refused(call("train", "--resume"), "--out RUN --resume")


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_run_that_becomes_longer_says_what_its_learning_rate_does(schedule, tiny, call, tmp_path):
    run = tmp_path / "run"
    changes = ("--optim.schedule", schedule, "--train.snapshot-every", 4)
    assert call("train", *tiny["toy"], *changes, "--out", run)[0] == 0
    with pytest.warns(RunWarning, match=f"goes on to 4 epochs .* rate is that of the {schedule} schedule over all"):
        train_(load_config(run / "config.yaml", ["--train.epochs", "4"]), run, resume=True)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = {line["epoch"]: line["lr"] for line in lines if line["split"] == "train"}
    config = load_config(run / "config.yaml").optim
    assert rates[2.0] == pytest.approx(learning_rate(config, 2 - 0.5 / 20, 4), rel=0.5)
    assert rates[1.0] < rates[2.0]


def test_a_fine_tuning_remembers_where_it_began(tiny, trained, call, tmp_path, monkeypatch):
    """A run folder by its full path, so that it is found from elsewhere; a bundled model by its name."""
    monkeypatch.chdir(trained("toy").parent)
    run = tmp_path / "run"
    limits = ("--train.max-steps", 3, "--optim.schedule", "constant")
    assert call("train", *tiny["toy"], "--init", "toy", *limits, "--out", run)[0] == 0
    assert load_config(run / "config.yaml").train.init == str(trained("toy"))
    monkeypatch.chdir(tmp_path)
    assert call("train", "--out", run, "--resume", "--train.max-steps", 5)[0] == 0
    assert call("train", "digits-density", "--init", "digits-density", "--dry-run")[0] == 0
    check_refused(
        call("train", *tiny["density"], "--init", "digits-densty", "--out", "new"), "did you mean 'digits-dens"
    )
    check_refused(call("train", *tiny["density"], "--init", "digits-density", "--out", "new"), "there and")
    check_refused(call("train", *tiny["toy"], "--train.max-steps", 0), "--train.max-steps must be at least 1, got '0'")
    assert not (tmp_path / "new").exists()


def test_a_configuration_can_be_changed(call, tmp_path, monkeypatch):
    write_table(tmp_path / "points.csv")
    (tmp_path / "other.yaml").write_text(
        "data: {name: points.csv}\nmodel: {blocks: 1, hidden: 4}\ntrain: {epochs: 9}\n"
    )
    monkeypatch.chdir(tmp_path)
    for tokens in (("--config", "other.yaml", "--train.epochs", 1), ("--train.epochs=1", "--config", "other.yaml")):
        assert call("train", *tokens)[0] == 0
        assert "epochs: 1\n" in (tmp_path / "runs" / "other" / "config.yaml").read_text()
        shutil.rmtree("runs")


def test_real_numbers_have_no_noise_to_draw(copied, call):
    answer = call("evaluate", copied("toy"), "--dequantize-samples", 2)
    check_refused(answer, "continuous data are evaluated as they are")


def test_the_split_can_be_chosen(copied, call):
    folder = copied("classify")
    assert call("evaluate", folder, "--split", "validation")[0] == 0
    result = json.loads((folder / "evaluation.json").read_text())
    assert (result["split"], result["examples"]) == ("validation", 200)


def test_a_standard_error_and_several_draws_can_be_asked_for(copied, call):
    folder = copied("density")
    status, out, err = call("evaluate", folder, "--standard-error", 0.08, "--dequantize-samples", 3)
    assert (status, err) == (0, "")
    likelihood = read_evaluation(folder)["likelihood"]
    assert (likelihood["n"], likelihood["dequantize_samples"]) == (256, 3)  # two batches
    assert read_evaluation(folder)["baselines"]["full-covariance Gaussian"]["dequantize_samples"] == 3
    assert "upper bounds, by uniform dequantization, importance-weighted over 3 draws\n" in out
    error = likelihood["bits_per_dim"]["half_width"] / 1.96
    assert f"standard error {error:.2g} after 256 of 300 examples, 0.08 was asked for\n" in out


def lines_of(rows):
    return dict(line.split(maxsplit=1) for line in rows)


def test_a_dry_run_prints_the_cost_and_writes_nothing(tiny, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = call("train", *tiny["density"], "--train.epochs", 9, "--dry-run")
    assert (status, err) == (0, "")
    measured, predicted = out.split("\n\n")
    header, *rows = measured.replace("per step", "").replace("run ", "").splitlines()
    assert header == "measured on CPU (1 threads)"
    assert "at batch size 64, estimated from a few examples" in lines_of(rows)["time"]
    lines = lines_of(rows)
    assert lines.keys() == {"parameters", "loss", "memory", "time", "full"}
    assert lines["full"].startswith(f"{9 * (1297 // 64)} steps, ")
    assert int(lines["parameters"].replace(",", "")) > 1000
    assert "batch size 64" in lines["memory"]
    header, _, *rows = predicted.splitlines()
    assert header.startswith("predicted, not measured: batches of 64 over all devices in tf32, ")
    assert [row.split()[:2] for row in rows] == [
        [n, name] for name in ("a100", "h100", "h200") for n in ("1", "8", "64")
    ]
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_what_a_batch_cannot_be_divided_among(tiny, call):
    status, out, _ = call("train", *tiny["density"], "--train.batch-size", 40, "--dry-run")
    assert status == 0
    assert out.endswith("\na batch of 40 cannot be divided among 64 devices\n")
    assert "64 h100" not in out


def test_the_folder_of_a_run_is_named_after_the_recipe(call, tmp_path, monkeypatch):
    write_table(tmp_path / "points.csv", 100)
    (tmp_path / "mine.yaml").write_text("data: {name: points.csv}\nmodel: {blocks: 1, hidden: 4}\ntrain: {epochs: 1}\n")
    monkeypatch.chdir(tmp_path)
    assert call("train", "mine.yaml")[1] == "trained mine.yaml: runs/mine; next: iresnet evaluate runs/mine\n"
    assert (tmp_path / "runs" / "mine" / "model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["density", "hybrid"])
def test_a_model_that_does_not_contract_fails_the_check(kind, copied, call):
    folder = copied(kind)
    loosen(folder)
    status, out, err = call("certify", folder)
    assert (status, err) == (1, "")
    assert "NOT CERTIFIED" in out
    assert "not certified: largest block bound" in out
    certificate = json.loads((folder / "certificate.json").read_text())
    assert not certificate["certified"]
    assert max(bound["upper"] for bound in certificate["blocks"]) >= 1


def test_a_certificate_of_other_weights_is_called_stale(copied, call):
    folder = copied("density")
    for _ in range(2):
        assert "stale" not in call("certify", folder)[1]
    loosen(folder)
    assert "stale" in call("certify", folder)[1]
    assert "stale" not in call("certify", folder)[1]


# -- processes -------------------------------------------------------------------------------------------------------

COMMANDS = ("train", "evaluate", "sample", "reconstruct", "certify", "recipes")


def test_help_is_there_at_once():
    """No help text waits for torch, and every option is in it."""
    code = (
        "import sys; from iresnet.cli import run\n"
        f"for command in {COMMANDS}: assert run([command, '--help']) == 0\n"
        "assert run(['--help']) == run(['recipes']) == run(['--version']) == 0\n"
        "slow = {'torch', 'accelerate', 'matplotlib', 'pyarrow', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else 0)"
    )
    start = time.perf_counter()
    process = python("-c", code)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert time.perf_counter() - start < 10
    for text in ("--train.epochs", "--optim.clip-norm", "--data-dir", "--dry-run", "--temperature", "Exit status"):
        assert text in out


def test_the_module_is_the_command(tmp_path):
    process = python("-m", "iresnet", "train", "digits-densty", "--out", tmp_path / "run")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("iresnet: unknown recipe 'digits-densty'; did you mean 'digits-density'?")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_resume(tiny, call, tmp_path):
    """A real signal to a real process, then the end of the run."""
    folder = tmp_path / "run"
    epochs = ("--train.epochs", 10, "--train.snapshot-every", 10, "--train.log-every", 10)
    command = ("train", *tiny["toy"], *epochs, "--out", folder)
    process = python("-m", "iresnet", *command)
    deadline = time.monotonic() + 60
    while not ((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.startswith("training on CPU (1 threads)\niresnet: stopped after step ")
    assert err.endswith(f" of 200, saved in {folder}; continue with the same command and --resume\n")
    assert err.count("\n") == 2
    assert ir.certify(ir.load(folder)).certified
    status, out, _ = call(*command, "--resume")
    assert status == 0
    assert f"next: iresnet evaluate {folder}" in out
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(10, 201, 10))


# -- bad input -------------------------------------------------------------------------------------------------------


def write(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def write_bad(folder):
    """Everything that users have been seen to bring."""
    write(folder, "text.csv", "a,b\n1,2\n3,red\n" + "4,5\n" * 20)
    write(folder, "nan.csv", "a,b\n1,2\n3,nan\n" + "4,5\n" * 20)
    write(folder, "ragged.csv", "1,2\n3\n" + "4,5\n" * 20)
    write(folder, "empty.csv", "")
    write(folder, "constant.csv", "".join(f"{i},7\n" for i in range(50)))
    write(folder, "few.csv", "1,2\n3,4\n")
    write(folder, "three.csv", "1.5,2.5\n3.5,4.5\n0.5,9.5\n")
    write(folder, "integers.csv", "x,n\n" + "".join(f"{i**1.5},{i % 7}\n" for i in range(50)))
    write_table(folder / "points.csv")
    np.savez(folder / "whole.npz", x=examples(50, 1, 8)[0])
    write(folder, "cut.npz", (folder / "whole.npz").read_bytes()[:500])
    write(folder, "recipe.yaml", "train: [")
    write(folder, "notes.doc", "hello")
    (folder / "empty").mkdir()
    x, _ = examples(6, 1, 8)
    write_folder(folder / "mixed", list(x))
    write_folder(folder / "mixed" / "x", list(examples(1, 1, 9)[0]))
    (folder / "mixed" / "x" / "00000.png").replace(folder / "mixed" / "00006.png")
    (folder / "mixed" / "x").rmdir()
    write_folder(folder / "broken", list(x))
    write(folder / "broken", "00003.png", (folder / "broken" / "00003.png").read_bytes()[:30])
    write_idx(folder / "wrong", both(1, 28), compressed=True)  # not the published files
    write_idx(folder / "truncated", both(1, 28))
    images = folder / "truncated" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:1000])
    write(folder, "taken", "a file")
    write_folder(folder / "mine", list(x))


def train(*tokens, recipe="digits-density"):
    return ("train", recipe, "--out", "{tmp}/run", *tokens)


def on(name, *tokens, recipe="toy-density"):
    return train("--data.name", name, "--data-dir", "{tmp}", *tokens, recipe=recipe)


BAD_TRAINING = {
    "missing data": (
        train("--data-dir", "{tmp}/empty", recipe="mnist-density-small"),
        "mnist: not found; looked in {tmp}/empty/mnist, {tmp}/empty,",
    ),
    "missing data, where to get them": (train(recipe="cifar10-density"), "or $IRESNET_DATA"),
    "a missing folder of data": (train("--data-dir", "{tmp}/nowhere"), "--data-dir"),
    "a missing file": (on("nowhere.csv"), "no such folder or file; looked for nowhere.csv, {tmp}/nowhere.csv"),
    "a missing file, which data there are": (on("nowhere.csv"), "or a name: 2spirals, 8gaussians, "),
    "a file of no known form": (on("notes.doc"), "expected a folder or a file ending in"),
    "a truncated file": (on("cut.npz"), "cut.npz: expected a .npz file of plain arrays, got one that cannot be read"),
    "a truncated idx file": (
        train("--data-dir", "{tmp}/truncated", recipe="mnist-density-small"),
        "train-images-idx3-ubyte",
    ),
    "a wrong checksum": (
        train("--data-dir", "{tmp}/wrong", recipe="mnist-density-small"),
        "expected md5 f68b3c2dcbeaaa9fbdd348bbdeb94873",
    ),
    "text in a table": (on("text.csv"), "text.csv, line 3, column 2 (b): expected a finite number, got 'red'"),
    "NaN in a table": (on("nan.csv"), "nan.csv, line 3, column 2 (b): expected a finite number, got 'nan'"),
    "a missing field": (on("ragged.csv"), "ragged.csv, line 2: expected 2 columns, got 1"),
    "an empty table": (on("empty.csv"), "expected a table of numbers, got an empty file"),
    "a constant column": (on("constant.csv"), "column 2; drop the column (--data.drop '[column 2]')"),
    "too few rows": (on("few.csv"), "2 examples are too few"),
    "three rows": (on("three.csv"), "a standard deviation need at least 2 training examples, got 1"),
    "integers in a density": (
        on("integers.csv"),
        "column 2 (n) holds integers; drop the column (--data.drop '[n]'), or add",
    ),
    "a mode of a table": (
        on("points.csv", "--data.mode", "RGB"),
        "mode is for folders of images, not for this .csv file",
    ),
    "columns of images": (on("mine", "--data.drop", "[a]"), "drop is for tables"),
    "columns of a published set": (
        train("--data.drop", "[a]"),
        "digits: drop applies only to a folder or file of your own",
    ),
    "a column that is not there": (on("points.csv", "--data.drop", "d"), "unknown column 'd' (valid: a, b, c)"),
    "a name that YAML takes for another value": (on("points.csv", "--data.drop", "on"), "--data.drop must be of type"),
    "images of mixed sizes": (on("mixed", recipe="digits-density"), "00006.png"),
    "a broken image": (on("broken", recipe="digits-density"), "00003.png"),
    "a folder without images": (on("empty", recipe="digits-density"), "no images found"),
    "images for a model of vectors": (on("whole.npz", "--train.batch-size", "10"), "toy-mlp models vectors"),
    "vectors for a model of images": (on("points.csv", recipe="digits-density"), "models images"),
    "odd images": (train("--data.pad-to", "9"), "images of 9x9 cannot be squeezed: pad them (--data.pad-to)"),
    "padding that cuts": (train("--data.pad-to", "4"), "8x8 images cannot be padded to 4x4"),
    "an unknown data set": (train("--data.name", "mnits"), "unknown data set 'mnits'; did you mean 'mnist'?"),
    "an unknown recipe": (train(recipe="digit-density"), "did you mean 'digits-density'?"),
    "a missing recipe file": (train(recipe="nowhere.yaml"), "there is no recipe file nowhere.yaml"),
    "a recipe that is none": (train(recipe="{tmp}/recipe.yaml"), "recipe.yaml is not YAML"),
    "no recipe": (("train", "--train.epochs", "3"), "iresnet train needs a recipe (cifar10-classify, "),
    "a recipe and a configuration": (train("--config", "x.yaml"), "give a recipe or --config, not both: got 'digits-d"),
    "a missing configuration": (("train", "--config", "x.yaml"), "there is no recipe file x.yaml"),
    "averages of nothing": (train("--train.ema", "1"), "--train.ema must be below 1, got '1.0'"),
    "no patience": (train("--train.patience", "0"), "--train.patience must be at least 1, got '0'"),
    "no checkpoints": (train("--train.keep-checkpoints", "0"), "--train.keep-checkpoints must be at least 1, got '0'"),
    "parts of nothing": (train("--train.accumulate", "33"), "--train.accumulate must be at most 32"),
    "a rate beyond float32": (train("--optim.lr", "1e39"), "--optim.lr must be a finite number, got '1e+39'"),
    "an unknown option": (
        train("--train.epocs", "3"),
        "unknown option '--train.epocs'; did you mean '--train.epochs'?",
    ),
    "an unknown flag": (train("--dri-run"), "--dri-run"),
    "a misspelt flag": (train("--dta-dir", "x"), "unknown option '--dta-dir'; did you mean '--data-dir'?"),
    "two misspelt processes": (train("--proceses", "2"), "unknown option '--proceses'; did you mean '--processes'?"),
    "a misspelt tracker": (train("--traker", "visdom"), "did you mean '--tracker'?"),
    "an unknown option of the model": (train("--model.coef", "0.5"), "did you mean 'coeff'?"),
    "an unknown option of a part": (train("--model.logdet.n-stps", "5"), "did you mean 'n_steps'?"),
    "an unknown architecture": (train("--model.name", "irsnet"), "did you mean 'iresnet'?"),
    "an unknown activation": (train("--model.activation", "rellu"), "did you mean 'relu'?"),
    "an unknown estimator": (train("--model.logdet.name", "krilov"), "did you mean 'krylov'?"),
    "a value of the wrong type": (train("--train.epochs", "ten"), "--train.epochs must be of type int, got 'ten'"),
    "a missing value": (train("--train.epochs"), "the option --train.epochs needs a value"),
    "a stray word": (train("more"), "expected an option such as --train.epochs 3, got 'more'"),
    "nothing to train": (("train",), "iresnet train needs a recipe (cifar10-classify, "),
    "coefficient 1": (train("--model.coeff", "1"), "must lie in (0, 1) for x + g(x) to be invertible, got 1"),
    "a coefficient above 1": (train("--model.coeff", "1.5"), "must lie in (0, 1)"),
    "coefficient 0": (train("--model.coeff", "0"), "must lie in (0, 1)"),
    "a negative number of blocks": (train("--model.blocks", "[1,-1]"), "blocks must not be negative"),
    "injective padding of a density": (train("--model.injective-pad", "3"), "leaves no density"),
    "no labels": (train("--task.ce-weight", "1", recipe="toy-density"), "has no labels"),
    "no labels to classify": (
        train("--data.name", "moons", "--model.name", "toy-mlp", recipe="digits-classify"),
        "use --task.ce-weight 0 --task.nll-weight 1",
    ),
    "a batch larger than the set": (
        train("--train.batch-size", "1298"),
        "a batch of 1298 is larger than the 1297 examples; use a batch size of at most 1297 (--train.batch-size)",
    ),
    "a folder with other files": (("train", "digits-density", "--out", "{tmp}/mine"), "is not empty and holds no run"),
    "a file in the way": (("train", "digits-density", "--out", "{tmp}/taken"), "cannot write {tmp}/taken"),
    "a folder that cannot be made": (("train", "digits-density", "--out", "{tmp}/taken/run"), "cannot write"),
    "a folder of the system": (("train", "digits-density", "--out", "/proc/run"), "cannot write /proc/run"),
    "nothing to resume": (train("--resume"), "is not a run folder"),
}


def check_refused(answer, expected):
    status, out, err = answer
    assert expected in err
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("iresnet: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_input_of_training(case, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bad(tmp_path)
    before = files(tmp_path)
    tokens, expected = BAD_TRAINING[case]
    answer = call(*(token.replace("{tmp}", str(tmp_path)) for token in tokens))
    check_refused(answer, expected.replace("{tmp}", str(tmp_path)))
    assert files(tmp_path) == before
    assert not (tmp_path / "run").exists()


def drop_weights(folder):
    (folder / "model.safetensors").unlink()


def poison(folder):
    state = load_file(folder / "model.safetensors")
    state["base.mean"][0] = math.nan
    save_file(state, folder / "model.safetensors")


BAD_USE = {
    "an existing run": (
        ("train", "digits-density", "--out", "{run}"),
        "holds a run already; continue it with --resume",
    ),
    "a run of other settings": (("train", "digits-density", "--out", "{run}", "--resume"), "model.hidden: 8 -> 64"),
    "no such run": (("evaluate", "nowhere"), "nowhere is not a run folder (no config.yaml in it); make one with"),
    "no run to sample": (("sample", "nowhere"), "is not a run folder"),
    "no run to reconstruct": (("reconstruct", "{run}/samples"), "is not a run folder"),
    "no run to certify": (("certify", "{run}/config.yaml"), "is not a run folder"),
    "a wrong split": (("evaluate", "{run}", "--split", "tset"), "unknown split 'tset'; did you mean 'test'?"),
    "a wrong split to reconstruct": (("reconstruct", "{run}", "--split", "vaildation"), "did you mean 'validation'?"),
    "no samples": (("sample", "{run}", "-n", "0"), "Must be >= 1"),
    "fewer samples than none": (("sample", "{run}", "-n=-3"), "Must be >= 1"),
    "a word of samples": (("sample", "{run}", "-n", "many"), 'unable to convert "many" into int'),
    "no reconstructions": (("reconstruct", "{run}", "-n", "0"), "Must be >= 1"),
    "a negative temperature": (
        ("sample", "{run}", "--temperature", "-1"),
        "temperature must not be negative, got -1.0",
    ),
    "a temperature that is none": (("sample", "{run}", "--temperature", "nan"), "temperature must not be negative"),
    "a negative seed": (("sample", "{run}", "--seed=-1"), "Must be >= 0"),
    "a huge seed": (("evaluate", "{run}", "--seed", str(2**64)), "Must be <"),
    "a missing folder of data": (
        ("evaluate", "{run}", "--data-dir", "{run}/nowhere"),
        "does not exist",
    ),
    "a standard error of nothing": (("evaluate", "{run}", "--standard-error", "0"), "must be positive, got 0.0"),
    "a word of standard error": (
        ("evaluate", "{run}", "--standard-error", "low"),
        'unable to convert "low" into float',
    ),
    "no draws": (("evaluate", "{run}", "--dequantize-samples", "0"), "dequantize_samples must be at least 1, got 0"),
    "no run named": (("evaluate",), "requires an argument"),
    "two runs": (("certify", "{run}", "{run}"), "Unused Tokens"),
    "an unknown option": (("evaluate", "{run}", "--splt", "test"), "Did you mean --split?"),
    "an unknown command": (("evalute", "{run}"), 'Did you mean "evaluate"?'),
}
DAMAGED = {
    "no weights": (drop_weights, "has no model yet"),
    "half the weights": (lambda run: write(run, "model.safetensors", b"12345678"), "model.safetensors is damaged"),
    "no configuration": (lambda run: write(run, "config.yaml", "a: ["), "config.yaml is damaged"),
}


@pytest.mark.parametrize("case", BAD_USE)
def test_bad_input_of_the_other_commands(case, copied, call, tmp_path):
    folder = copied("density")
    before = files(tmp_path)
    tokens, expected = BAD_USE[case]
    check_refused(call(*(token.replace("{run}", str(folder)) for token in tokens)), expected)
    assert files(tmp_path) == before


@pytest.mark.parametrize("command", ["evaluate", "sample", "reconstruct", "certify"])
@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_runs(case, command, copied, call, tmp_path):
    damage, expected = DAMAGED[case]
    folder = copied("density")
    damage(folder)
    before = files(tmp_path)
    check_refused(call(command, folder), expected)
    assert files(tmp_path) == before


def test_weights_that_are_no_numbers_are_not_certified(copied, call):
    folder = copied("density")
    poison(folder)
    check_refused(call("certify", folder), "'base.mean' has values that are not finite")
    assert not (folder / "certificate.json").exists()


@pytest.mark.parametrize("kind", ["density", "hybrid", "classify"])
def test_a_likelihood_that_is_no_number_is_refused(kind, copied, call):
    folder = copied(kind)
    state = load_file(folder / "model.safetensors")
    for name, tensor in state.items():
        if name.endswith(("base.mean", "head.linear.weight")):
            tensor[:] = math.nan
    save_file(state, folder / "model.safetensors")
    check_refused(call("evaluate", folder), "examples is not finite")
    assert not (folder / "evaluation.json").exists()


def test_a_classifier_has_no_density_to_evaluate(copied, call):
    folder = copied("classify")
    for option in (("--standard-error", 1), ("--dequantize-samples", 2)):
        check_refused(call("evaluate", folder, *option), "this run is a classifier without a density")


def test_other_data_than_those_of_the_run_are_refused(call, tmp_path):
    write_table(tmp_path / "points.csv")
    call("train", *POINTS, "--data.name", "points.csv", "--data-dir", tmp_path, "--out", tmp_path / "run")
    (tmp_path / "other").mkdir()
    np.savetxt(tmp_path / "other" / "points.csv", torch.randn(100, 4).numpy(), delimiter=",")
    for command in ("evaluate", "reconstruct"):
        check_refused(
            call(command, tmp_path / "run", "--data-dir", tmp_path / "other"), "was trained on other data than"
        )


FEW = {"evaluate": ("--examples", 16), "reconstruct": ("--solver-examples", 0)}


@pytest.mark.parametrize("command", ["train", "evaluate", "sample", "reconstruct", "certify"])
def test_a_full_disk_leaves_nothing_behind(command, tiny, copied, call, tmp_path, monkeypatch):
    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = copied("density")
    before = files(tmp_path)
    monkeypatch.setattr("os.fsync", fsync)
    new = (*tiny["density"], "--out", tmp_path / "new")
    tokens = new if command == "train" else (folder, *FEW.get(command, ()))
    status, _, err = call(command, *tokens)
    assert (status, err.count("\n")) == (2, 1)
    assert "No space left on device; free the space" in err
    assert ("choose another --out" in err) == ("--out" in call(command, "--help")[1])  # what is advised is there
    assert files(tmp_path) == before
    assert not (tmp_path / "new").exists()
