"""Tables that people have: times, categories, gaps, integers, Parquet; columns without a density; samples as tables."""

import csv
import datetime
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from data_fixtures import examples, isolated, write_parquet  # noqa: F401 (isolated)
from laws import close

import iresnet as ir
from iresnet.data import load, match_format
from iresnet.data.columns import Column, to_columns, to_values
from iresnet.data.preparation import is_discrete
from iresnet.data.table import ColumnSelection, read_table
from iresnet.errors import DataError, UnknownNameError
from iresnet.models import inputs_of
from iresnet.runs import Run

TINY = ("--model.blocks", 1, "--model.hidden", 4, "--train.epochs", 2, "--train.batch-size", 40, "--tracker", "[]")
START = 1_700_000_000


def write(path, header, columns):
    rows = zip(*columns, strict=True)
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def normal(n, seed=0):
    return np.random.default_rng(seed).normal(size=n).round(6)


def every(dataset):
    return torch.cat([dataset.train.x, dataset.validation.x, dataset.test.x])


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def trained(call, path, out, *options):
    status, _, err = call("train", "toy-density", "--data.name", path, *TINY, "--out", out, *options)
    assert status == 0, err
    return err


# -- values that float32 does not keep apart --------------------------------------------------------------------------

FAR = {
    "seconds": START + 7 * np.arange(500),
    "seconds in random order": START + np.random.default_rng(0).permutation(3600)[:500],
    "milliseconds": 1000 * START + 7.0 * np.arange(500),
    "with a row far from the others": np.append(0, START + 7 * np.arange(499)),
    "apart, but rounded": 30_000.125 + 0.01 * np.arange(500),
    "a small spread": 288.15 + 1e-6 * np.arange(500),
    "negative": -START - 7 * np.arange(500),
}


@pytest.mark.parametrize("case", FAR)
@pytest.mark.parametrize("form", ["csv", "npy", "parquet"])
def test_values_stay_apart_and_come_back(form, case, tmp_path):
    values, other = FAR[case].astype(float), normal(500)
    path = tmp_path / f"t.{form}"
    if form == "csv":
        write(path, "time,value", [[repr(v) for v in values.tolist()], other])
    elif form == "npy":
        np.save(path, np.stack([values, other], 1))
    else:
        pq.write_table(pa.table({"time": values, "value": other}), path)
    dataset = load(path)
    x = every(dataset)
    assert (x.dtype, len(x[:, 0].unique())) == (torch.float32, 500)
    back, there = np.sort(to_columns(dataset.columns, x)[0]), np.sort(values)
    assert np.abs(back - there)[1:].max() < 1e-4 * there[1:].std()  # but for the row that may be far from the others
    assert dataset.columns[1].offset == 0


@pytest.mark.parametrize(
    "values", [1900 + np.arange(120) % 50 + 0.5, np.linspace(-3, 3, 120), np.linspace(0, 1e6, 120)]
)
def test_columns_that_float32_keeps_are_left_as_they_are(values, tmp_path):
    dataset = load(write(tmp_path / "t.csv", "a,b", [values, normal(120)]))
    assert [column.offset for column in dataset.columns] == [0, 0]
    close(every(dataset)[:, 0].sort().values.double(), torch.tensor(np.sort(values)), 1e-3)


@pytest.mark.usefixtures("isolated")
def test_times_are_trained_on_and_sampled_as_what_they_are(call, tmp_path):
    seconds = np.random.default_rng(1).permutation(3600)[:500]
    far = write(tmp_path / "far.csv", "time,value", [START + seconds, normal(500)])
    near = write(tmp_path / "near.csv", "time,value", [seconds - int(np.median(seconds)), normal(500)])
    bits = []
    for path in (far, near):
        said = trained(call, path, tmp_path / path.stem, "--data.dequantize", "true")
        assert ("time: read less 17000" in said) == (path == far)
        assert call("evaluate", tmp_path / path.stem)[0] == 0
        score = json.loads((tmp_path / path.stem / "evaluation.json").read_text())
        bits += [
            score["likelihood"]["bits_per_dim"]["mean"],
            score["baselines"]["full-covariance Gaussian"]["nats"]["mean"],
        ]
    assert bits[:2] == pytest.approx(bits[2:], abs=1e-3)
    assert call("sample", tmp_path / "far", "-n", 200)[0] == 0
    header, *rows = rows_of(tmp_path / "far" / "samples" / "samples.csv")
    times = np.array([int(row[0]) for row in rows])  # integers are integers
    assert header == ["time", "value"]
    assert len(set(times)) > 150
    assert START - 4000 < times.min() < times.max() < START + 8000
    _, inputs = Run(tmp_path / "far").read_config()
    x = ir.load(tmp_path / "far").sample(200, generator=torch.Generator().manual_seed(0))
    assert to_columns(inputs.columns, x)[0].tolist() == times.tolist()


def test_other_tables_are_compared_in_the_units_of_the_model(tmp_path):
    first, later = (
        load(
            write(tmp_path / f"{day}.csv", "time,value", [START + 86400 * day + 7 * np.arange(500) + 0.5, normal(500)])
        )
        for day in (0, 1)
    )
    x = match_format(later, "test", (2,), None, first.columns)[0].x
    close(x[:, 0].double() + first.columns[0].offset, later.test.x[:, 0].double() + later.columns[0].offset, 0.01)
    assert float(x[:, 0].min()) > 80_000
    other = load(write(tmp_path / "other.csv", "value,time", [normal(500), normal(500)]))
    with pytest.raises(DataError, match=r"the model's data have the features .*'time', 'value'.*: give the same"):
        match_format(other, "test", (2,), None, first.columns)


@pytest.mark.usefixtures("isolated")
def test_a_run_is_refused_data_that_are_read_in_another_way(call, tmp_path):
    times = START + np.random.default_rng(0).permutation(3600)[:500] + 0.5
    write(tmp_path / "t.csv", "time,value", [times, normal(500)])
    trained(call, "t.csv", tmp_path / "run", "--data-dir", tmp_path)
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "t.csv", "time,value", [times + 86400, normal(500)])
    status, _, err = call("evaluate", tmp_path / "run", "--data-dir", tmp_path / "other")
    assert (status, "was trained on other data than t: 400 train" in err) == (2, True)
    config = tmp_path / "run" / "config.yaml"
    tree = yaml.safe_load(config.read_text())
    tree["inputs"].pop("columns")  # as a run of a version that subtracted nothing
    config.write_text(yaml.safe_dump(tree))
    assert call("evaluate", tmp_path / "run")[0] == 2


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("change", ["rows in front", "one value", "one row less"])
def test_a_file_that_has_changed_since_training_is_refused(change, call, tmp_path):
    a, b = normal(500, 1), normal(500, 2)
    path = write(tmp_path / "t.csv", "a,b", [a, b])
    trained(call, path, tmp_path / "run")
    assert call("evaluate", tmp_path / "run")[0] == 0
    if change == "rows in front":
        a, b = np.append(normal(40, 3), a), np.append(normal(40, 4), b)
    elif change == "one value":
        train = {round(float(value), 4) for value in load(path).train.x[:, 0]}
        a[next(i for i, value in enumerate(a) if round(float(value), 4) in train)] += 0.01
    else:
        a, b = a[:-1], b[:-1]
    write(path, "a,b", [a, b])
    for command in ("evaluate", "reconstruct", "interpolate", "analyze inverse"):
        status, _, err = call(*command.split(), tmp_path / "run")
        assert (status, err.count("\n")) == (2, 1)
        assert f"was trained on other data than t: {len(load(path).train)} train" in err
        assert f"{path} has changed since: restore it, or train again" in err


def npy(folder, values):
    np.save(folder / "t.npy", np.stack([np.arange(len(values), dtype=values.dtype), values], 1))
    return folder / "t.npy"


def npz(folder, values):
    np.savez(folder / "t.npz", x=np.stack([values, values], 1))
    return folder / "t.npz"


FILES = {
    "csv": lambda folder, values: write(folder / "t.csv", "a,b", [normal(len(values)), values]),
    "parquet": lambda folder, values: parquet(folder / "t.parquet", b=values),
    "npy": npy,
    "npz": npz,
}
NANOSECONDS = START * 10**9 + 7 * np.arange(200)
LARGE = {"int64": NANOSECONDS, "uint64": np.uint64(2**63) + NANOSECONDS.astype(np.uint64), "negative": -NANOSECONDS}


@pytest.mark.parametrize("case", LARGE)
@pytest.mark.parametrize("form", FILES)
def test_integers_that_float64_runs_together_are_refused(form, case, tmp_path):
    path = FILES[form](tmp_path, LARGE[case])
    options = {"columns": ["b"]} if form == "parquet" else {}
    message = r"column \d.*: 200 different integers beyond 2\*\*53 become \d+ in float64; subtract .* divide .* or "
    remedy = r"drop the column \(--data.drop 'b'\)$" if form in ("csv", "parquet") else "leave the column out$"
    with pytest.raises(DataError, match=message + remedy):
        load(path, **options)


def test_gaps_do_not_hide_integers_that_run_together(tmp_path):
    values = [str(value) for value in NANOSECONDS]
    path = write(tmp_path / "t.csv", "a,b", [normal(200), ["", *values[1:]]])
    with pytest.raises(DataError, match="199 different integers"):
        load(path, impute=True)
    pq.write_table(pa.table({"b": [None, *NANOSECONDS[1:].tolist()]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="199 different integers"):
        load(tmp_path / "t.parquet", impute=True)


@pytest.mark.parametrize("form", FILES)
def test_large_numbers_that_stay_apart_are_read(form, tmp_path):
    for values in (NANOSECONDS[:2].repeat(100), 1024 * NANOSECONDS[:100].repeat(2) // 7 * 7):
        path = FILES[form](tmp_path, values - values % 1024)
        assert len(load(path, **({"columns": ["b"]} if form == "parquet" else {})).train) == 160
    write(tmp_path / "f.csv", "a,b", [normal(200), 6.02e23 * (1 + np.arange(200) % 50 / 100)])
    assert len(load(tmp_path / "f.csv").train) == 160


def test_classes_that_float64_runs_together_stay_apart(tmp_path):
    path = write(tmp_path / "t.csv", "a,kind", [normal(200), NANOSECONDS[:2].repeat(100)])
    assert load(path, target="kind").class_names == tuple(str(value) for value in NANOSECONDS[:2])


# -- headers -----------------------------------------------------------------------------------------------------------

BODY = "".join(f"{i + 100}.5,{i + 200}.25\n" for i in range(50))
INTEGERS = "".join(f"{i % 7},{i % 5},{i % 3}\n" for i in range(50))
HEADERS = {
    "numbers": ("0,1\n" + BODY, (), 50, ["0", "1"]),
    "numbers above integers": ("0,1,2\n" + INTEGERS, (), 50, ["0", "1", "2"]),
    "names": ("a,b\n" + BODY, (), 50, ["a", "b"]),
    "none": (BODY, (), 50, ["", ""]),
    "numbers from 1": ("1,2,3\n" + "0.5,1.5,2.5\n" * 20, (), 20, ["1", "2", "3"]),
    "none, from 1": ("1,2,3\n" + INTEGERS, (), 51, ["", "", ""]),
    "one column": ("0\n" + "1.5\n2.5\n" * 10, (), 20, ["0"]),
    "row numbers": (",a\n" + BODY, ("column 1",), 50, ["a"]),
    "row numbers and numbers": (",0\n" + "".join(f"{i},{i}.5\n" for i in range(9)), ("column 1",), 9, ["0"]),
    "semicolons": ("0;1\n" + BODY.replace(",", ";"), (), 50, ["0", "1"]),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_is_no_row(case, tmp_path):
    text, drop, n, names = HEADERS[case]
    (tmp_path / "t.csv").write_text(text)
    split, _, columns = read_table(tmp_path / "t.csv", ColumnSelection(drop=drop))
    assert (len(split), [column.name for column in columns]) == (n, names)


@pytest.mark.parametrize("text", ["0,1\n1,0\n1,1\n0,0\n", "0\n1\n0.5\n"])
def test_a_first_line_that_may_be_either_is_refused(text, tmp_path):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=r"line 1: .* may be the numbers of the columns or a row; write names"):
        read_table(tmp_path / "t.csv")


# -- columns without a density -----------------------------------------------------------------------------------------

A, B = normal(200, 1), normal(200, 2)
TENTHS = np.random.default_rng(3).integers(0, 4, 200) / 2 + 0.25
ZEROS = np.where(np.arange(200) % 4 == 0, 0.0, A)
WITHOUT_DENSITY = {
    "0 and 1": (
        [A, np.arange(200) % 2],
        r"column 2 \(b\) holds integers; drop the column \(--data.drop '\[b\]'\), or add",
    ),
    "integers, each once": ([A, np.arange(200)], r"column 2 \(b\) holds integers"),
    "integers, with a point": ([A, np.arange(200) * 10.0], r"column 2 \(b\) holds integers"),
    "few values": ([A, TENTHS], r"column 2 \(b\) takes 4 values in 160 rows"),
    "many zeros": ([ZEROS, B], r"column 1 \(a\) takes 1.. values in 160 rows, one of them [34]. times"),
    "a copy": ([A, B, A], r"column 3 \(c\) is a copy of column 1 \(a\); drop the column \(--data.drop '\[c\]'\)$"),
    "a sum": ([A, B, (A + B).round(6)], r"column 3 \(c\) follows from the columns before it"),
    "another unit": ([A, 1.8 * A + 32], r"column 2 \(b\) follows"),
}


@pytest.mark.parametrize("case", WITHOUT_DENSITY)
def test_columns_without_a_density_are_refused_by_name(case, tmp_path):
    columns, message = WITHOUT_DENSITY[case]
    dataset = load(write(tmp_path / "t.csv", ",".join("abc"[: len(columns)]), columns))
    with pytest.raises(DataError, match=message):
        inputs_of(dataset, "density")


DISCRETE = [case for case, (_, message) in WITHOUT_DENSITY.items() if "holds" in message or "takes" in message]


@pytest.mark.parametrize("case", DISCRETE)
def test_noise_of_one_step_gives_them_one(case, tmp_path):
    columns, _ = WITHOUT_DENSITY[case]
    path = write(tmp_path / "t.csv", ",".join("abc"[: len(columns)]), columns)
    first, again = (load(path, dequantize=True) for _ in range(2))
    inputs_of(first, "density")
    close(every(first), every(again), 0.0)
    clean, noisy = every(load(path)), every(first)
    noise = (noisy - clean)[:, [column.noisy for column in first.columns]]
    step = 1.0 if first.columns[1].integer else 0.5
    assert float(noise.min()) >= 0
    assert float(noise.max()) < (step if case != "many zeros" else 0.1)


def test_large_real_numbers_are_no_integers_for_being_rounded(tmp_path):
    large = 5e7 + 2e7 * np.random.default_rng(0).uniform(-1, 1, 200)
    dataset = load(write(tmp_path / "t.csv", "a,b", [large, B]))
    assert bool((every(dataset)[:, 0] == every(dataset)[:, 0].round()).all())
    inputs_of(dataset, "density")


def test_columns_of_real_numbers_are_no_discrete_ones():
    x = torch.stack([torch.tensor(A), torch.tensor(A).round(decimals=2), torch.tensor(TENTHS), torch.tensor(ZEROS)], 1)
    assert is_discrete(x).tolist() == [False, False, True, True]


def test_a_classifier_takes_integers_as_they_are(tmp_path):
    path = write(tmp_path / "t.csv", "a,b,kind", [np.arange(200), B, np.arange(200) % 2])
    dataset = load(path, target="kind")
    assert inputs_of(dataset, "classify").columns == dataset.columns
    assert [column.integer for column in dataset.columns] == [True, False]


def test_a_constant_column_is_named_and_noise_does_not_hide_it(tmp_path):
    path = write(tmp_path / "t.csv", "a,b,kind", [A, np.full(200, 7), np.arange(200) % 2])
    for dequantize in (False, True):
        with pytest.raises(
            DataError, match=r"constant in all 160 .*: column 2 \(b\); drop the column \(--data.drop '\[b\]'\)"
        ):
            inputs_of(load(path, target="kind", dequantize=dequantize), "classify")


@pytest.mark.parametrize("n", [3, 4, 5])
def test_tiny_tables_are_told_or_trained(n, call, tmp_path):
    write(tmp_path / "t.csv", "a,b", [A[:n], B[:n]])
    answer = call("train", "toy-density", "--data.name", tmp_path / "t.csv", "--out", tmp_path / "run", *TINY)
    assert (answer[0], answer[2].count("\n")) == (2, 1)
    assert ("at least 2 training examples, got 1" in answer[2]) == (n == 3)


# -- categories, gaps, dates -------------------------------------------------------------------------------------------


def people(path, n=300):
    rng = np.random.default_rng(0)
    city = rng.choice(["Oslo", "Paris", "Rome"], n)
    age = rng.integers(18, 80, n).astype(str)
    age[::10] = "NA"
    income = np.exp(rng.normal(10, 0.5, n)).round(2).astype(str)
    income[5::20] = ""
    height = (rng.normal(170, 10, n) + 20 * (city == "Oslo")).round(4)
    days = [datetime.date(2024, 1, 1) + datetime.timedelta(int(day)) for day in rng.integers(0, 300, n)]
    write(path, ",when,city,age,height,income", [range(n), days, city, age, height, income])
    return city


ASKED = {"drop": ["column 1", "when"], "one_hot": ["city"], "impute": True}
REFUSED = {
    "row numbers": ({}, r"none for column 1; if it numbers the rows, drop it \(--data.drop 'column 1'\)"),
    "dates": (
        {"drop": ["column 1"]},
        r"line 2, column 2 \(when\): expected a finite number, got '2024.*--data.drop 'when'",
    ),
    "categories": ({"drop": ["column 1", "when"]}, r"column 3 \(city\).*--data.one-hot 'city'"),
    "a column of text": (
        {"drop": ["column 1", "when"]},
        "the column holds no numbers: drop it .--data.drop 'city'. or make",
    ),
    "gaps": (
        {"drop": ["column 1", "when"], "one_hot": ["city"]},
        r"column 4 \(age\): .*got 'NA'; .*--data.impute true",
    ),
    "a misspelt name": ({"drop": ["wen"]}, "unknown column 'wen'; did you mean 'when'"),
    "numbers as categories": (
        {**ASKED, "one_hot": ["city", "height"]},
        "expected categories, got .* values in 300 rows",
    ),
    "everything dropped": ({"columns": ["when"], "drop": ["when"]}, "expected columns that are not dropped, got none"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_number_is_refused_until_it_is_asked_for(case, tmp_path):
    people(tmp_path / "t.csv")
    options, message = REFUSED[case]
    with pytest.raises((DataError, UnknownNameError), match=message):
        load(tmp_path / "t.csv", **options)


def test_categories_become_features_and_gaps_values_of_their_column(tmp_path):
    city = people(tmp_path / "t.csv")
    dataset = load(tmp_path / "t.csv", **ASKED)
    assert [column.title for column in dataset.columns] == ["city", "age", "height", "income"]
    assert dataset.columns[0].categories == ("Oslo", "Paris", "Rome")
    assert [column.missing for column in dataset.columns] == [0, 30, 0, 15]
    x = every(dataset)
    assert x[:, :3].sum(0).tolist() == [(city == name).sum() for name in ("Oslo", "Paris", "Rome")]
    read, _, _ = read_table(
        tmp_path / "t.csv", ColumnSelection(drop=("column 1", "when"), one_hot=("city",), impute=True)
    )
    known = [set(column[~column.isnan()].float().tolist()) for column in read.x.T]
    assert all(set(values.tolist()) <= known[i] for i, values in enumerate(x.T))
    assert x[:, 5].unique(return_counts=True)[1].max() < 5  # no value stands for all 15 that are missing


@pytest.mark.usefixtures("isolated")
def test_a_table_of_everything_from_the_first_command_to_the_last(call, tmp_path):
    people(tmp_path / "t.csv")
    asked = (
        "--data.drop",
        "[column 1, when]",
        "--data.one-hot",
        "city",
        "--data.impute",
        "true",
        "--data.dequantize",
        "true",
    )
    said = trained(call, tmp_path / "t.csv", tmp_path / "run", *asked)
    assert "age: 30 missing values replaced by others\n" in said
    assert "city: a feature for each of Oslo, Paris, Rome\n" in said
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["one_hot"] == ["city"]
    others = write(
        tmp_path / "others.csv", "height,more,income,city,age", zip(*[(9.5, "x", 1.5, "Rome", 3)] * 50, strict=True)
    )
    for command, *options in (
        ("evaluate", "--ood", others),
        ("reconstruct", "--solver-examples", 2),
        ("interpolate",),
        ("sample", "-n", 40),
        ("report",),
    ):
        assert call(command, tmp_path / "run", *options)[0] == 0
    header, *rows = rows_of(tmp_path / "run" / "samples" / "samples.csv")
    assert header == ["city", "age", "height", "income"]
    assert {row[0] for row in rows} <= {"Oslo", "Paris", "Rome"}
    assert all(row[1].lstrip("-").isdecimal() for row in rows)
    assert rows_of(tmp_path / "run" / "samples" / "interpolation.csv")[0] == ["kind", "pair", "step", *header]
    _, *rows = rows_of(tmp_path / "run" / "samples" / "reconstructions.csv")
    assert [row[0] for row in rows[:10]] == [row[0] for row in rows[10:]]
    assert ">income</th>" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.usefixtures("isolated")
def test_a_classifier_of_a_target_column_with_a_test_file_of_its_own(call, tmp_path):
    rng = np.random.default_rng(0)
    for name, n in (("train", 300), ("test", 50)):
        kind = rng.integers(0, 2, n)
        columns = [normal(n) + 5 * kind, rng.choice(["x", "y"], n), np.array(["oak", "elm"])[kind]]
        write(tmp_path / f"{name}.csv", "a,where,kind", columns)
    task = ("--task.nll-weight", 0, "--task.ce-weight", 1, "--train.epochs", 20)
    options = ("--data.target", "kind", "--data.one-hot", "where", "--data.test", "test.csv", "--data-dir", tmp_path)
    trained(call, "train.csv", tmp_path / "run", *task, *options)
    assert call("evaluate", tmp_path / "run")[0] == 0
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (result["examples"], result["class_names"]) == (50, ["elm", "oak"])
    assert result["classification"]["accuracy"] > 0.9


TEST_FILES = {
    "another column": ("a,b\n" + "1.5,2.5\n" * 9, {}, "the columns of the training data, got none called where"),
    "an unknown category": ("a,where\n1.5,z\n", {}, "line 2, column 2 .where.: the training data have no 'z'"),
    "an unknown class": ("a,where,kind\n1.5,x,2\n", {"target": "kind"}, "the training data have no class '2'"),
    "nothing": (None, {}, "no such folder or file"),
}


@pytest.mark.parametrize("case", TEST_FILES)
def test_a_test_file_has_to_be_like_the_training_data(case, tmp_path):
    text, options, message = TEST_FILES[case]
    columns = [normal(40), np.array(["x", "y"])[np.arange(40) % 2], np.arange(40) % 2]
    path = write(tmp_path / "t.csv", "a,where,kind", columns)
    if text:
        (tmp_path / "test.csv").write_text(text)
    options = {"columns": ["a", "where"], **options}
    with pytest.raises((DataError, UnknownNameError), match=message):
        load(path, test=tmp_path / "test.csv", one_hot=["where"], **options)


def test_columns_of_a_test_file_go_by_their_names(tmp_path):
    path = write(tmp_path / "t.csv", "id,a,where", [range(40), A[:40], np.array(["x", "y"])[np.arange(40) % 2]])
    write(tmp_path / "test.csv", "where,a,more", [["y", "x", "y"], [1.5, 2.5, 3.5], [1, 2, 3]])
    dataset = load(path, drop=["id"], one_hot=["where"], test=tmp_path / "test.csv")
    assert dataset.test.x.tolist() == [[1.5, 0, 1], [2.5, 1, 0], [3.5, 0, 1]]
    assert (len(dataset.train), len(dataset.validation)) == (36, 4)


def test_integers_are_those_of_all_splits(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.stack([np.arange(40), np.arange(40) % 3], 1))
    np.savez(tmp_path / "test.npz", x=np.array([[1.5, 1], [2, 2]]))
    dataset = load(tmp_path / "t.npz", test=tmp_path / "test.npz", dequantize=True)
    assert [column.integer for column in dataset.columns] == [False, True]


# -- Parquet -----------------------------------------------------------------------------------------------------------


def parquet(path, **others):
    columns = {"length": A, "count": pa.array([None if i % 9 == 0 else i % 50 for i in range(200)], pa.int64())}
    columns |= {"city": pa.array(["Rome", "Oslo", None, "Bern"] * 50), "flag": [True, False] * 100, **others}
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_tables_are_read_by_their_types(tmp_path):
    path = parquet(tmp_path / "t.parquet", kind=["b", "a"] * 100)
    dataset = load(path, target="kind", one_hot=["city"], impute=True)
    assert (dataset.shape, dataset.class_names, dataset.name) == ((6,), ("a", "b"), "t")
    assert [(c.title, c.integer, c.missing) for c in dataset.columns] == [
        ("length", False, 0),
        ("count", True, 23),
        ("city", False, 50),
        ("flag", True, 0),
    ]
    assert set(every(dataset)[:, 5].tolist()) == {0.0, 1.0}
    close(every(dataset)[:, 0].sort().values, torch.tensor(A).sort().values.float(), 0.0)


BAD_PARQUET = {
    "dates": (
        {"when": [datetime.datetime(2024, 1, 1)] * 200},
        {"columns": ["length", "when"]},
        r"column 5 \(when\): expected numbers, got timestamp.*drop",
    ),
    "gaps": ({}, {}, r"row 1, column 2 \(count\): expected a finite number, got ''; .*--data.impute true"),
    "text": ({}, {"impute": True}, r"column 3 \(city\): expected numbers, got string; drop .*--data.one-hot 'city'"),
    "infinity": (
        {"z": [math.inf] * 200},
        {"columns": ["z"]},
        r"row 1, column 5 \(z\): expected a finite number, got 'inf'",
    ),
    "an unknown column": ({}, {"drop": ["cty"]}, "unknown column 'cty'; did you mean 'city'"),
}


@pytest.mark.parametrize("case", BAD_PARQUET)
def test_bad_parquet_tables_are_told_in_one_line(case, tmp_path):
    columns, options, message = BAD_PARQUET[case]
    with pytest.raises((DataError, UnknownNameError), match=message):
        load(parquet(tmp_path / "t.parquet", **columns), **options)


def test_a_single_file_of_images_is_no_table(tmp_path):
    write_parquet(tmp_path, {"train": examples(20, 1, 8, n_classes=2)})
    (path,) = tmp_path.iterdir()
    with pytest.raises(DataError, match=r"got images; give the folder of such files, .*"):
        load(path)


def test_a_damaged_parquet_file_is_told(tmp_path):
    path = parquet(tmp_path / "t.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"t.parquet: expected a complete Parquet file"):
        load(path)


# -- the way back ------------------------------------------------------------------------------------------------------


def test_values_come_back_from_examples():
    columns = [
        Column("time", 1, integer=True, noisy=True, offset=float(START)),
        Column("kind", 2, categories=("a", "b")),
        Column("raw", 4, integer=True),
        Column("w", 5),
    ]
    x = torch.tensor([[12.999, 0.2, 0.9, 2.9999, 0.1], [-0.5, 1.4, 1.3, 3.0, 1e-7]])
    time, kind, raw, w = to_columns(columns, x)
    assert time.tolist() == [START + 12, START - 1]
    assert kind.tolist() == ["b", "a"]
    assert raw.tolist() == x[:, 3].tolist()  # without noise there is nothing to round down
    assert w.tolist() == x[:, 4].tolist()
    assert to_values(columns, x)[:, 1:3].tolist() == [[0, 1], [1, 0]]


SAMPLED = {"a.csv": 0, "a.npz": 0, "a.png": 0, "a.txt": 2, "folder": 0}


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("out", SAMPLED)
def test_samples_go_where_they_are_wanted(out, copied, call, tmp_path):
    path = tmp_path / "new" / out
    status, told, err = call("sample", copied("toy"), "-n", 5, "--out", path)
    assert status == SAMPLED[out]
    if status:
        assert "a folder or a file ending in .csv, .npz, .png" in err
        assert not path.parent.exists()
        return
    assert f"wrote {path / 'samples.png' if out == 'folder' else path}\n" in told
    if out == "a.npz":
        assert load_x(path).shape == (5, 2)
    if out == "a.csv":
        assert np.loadtxt(path, delimiter=",").shape == (5, 2)


def load_x(path):
    with np.load(path, allow_pickle=False) as content:
        return torch.from_numpy(content["x"])


@pytest.mark.usefixtures("isolated")
def test_samples_of_images_are_arrays_that_can_be_trained_on(copied, call, tmp_path):
    folder = copied("density")
    for name in ("s.npz", "s.png"):
        assert call("sample", folder, "-n", 30, "--out", tmp_path / name)[0] == 0
    x = load_x(tmp_path / "s.npz")
    assert (x.dtype, tuple(x.shape)) == (torch.uint8, (30, 1, 8, 8))
    assert int(x.max()) <= 16
    model = ir.load(folder)
    z = model.base.sample(30, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert float((model.decode(z).floor().clamp(0, 16) == x).float().mean()) > 0.999
    assert len(load(tmp_path / "s.npz").train) == 24
    for options, message in (
        (("--out", tmp_path / "s.csv"), "a file ending in .png, .npz"),
        (("--out", tmp_path / "s.png", "--individual"), "--individual writes several files"),
    ):
        status, told, err = call("sample", folder, *options)
        assert (status, told, message in err) == (2, "", True)
    assert call("sample", folder, "-n", 3, "--out", tmp_path / "folder", "--individual")[0] == 0
    assert len(list((tmp_path / "folder" / "samples").iterdir())) == 3
