"""The commands that look at a trained run: evaluate, sample, reconstruct, interpolate and compare."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from data_fixtures import isolated  # noqa: F401 (used by all)
from laws import loosen
from PIL import Image
from safetensors.torch import load_file, save_file

import iresnet as ir
from iresnet import evaluation
from iresnet.data import Split, load
from iresnet.evaluation.interpolation import slerp
from iresnet.evaluation.reconstruction import ATOL
from iresnet.runs import Run

KINDS = ("density", "classify", "hybrid", "toy")


def read(folder, name):
    return json.loads((folder / name).read_text())


def check_refused(answer, expected):
    status, _, err = answer
    assert expected in err
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("iresnet: ")


# -- evaluate --------------------------------------------------------------------------------------------------------


@pytest.fixture
def letters(tmp_path):
    """Images and points that are of no run."""
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "letters.npz", x=generator.integers(0, 256, (300, 1, 16, 16), np.uint8))
    np.savez(tmp_path / "noise.npz", x=generator.integers(0, 256, (300, 1, 8, 8), np.uint8))
    np.savetxt(tmp_path / "far.csv", generator.normal(7, 1, (200, 2)), delimiter=",")
    np.savetxt(tmp_path / "wide.csv", generator.normal(0, 1, (200, 3)), delimiter=",")
    return tmp_path


SCORES = {
    "density": ["log-likelihood", "typicality"],
    "classify": ["predictive entropy"],
    "hybrid": ["log-likelihood", "typicality", "predictive entropy"],
    "toy": ["log-likelihood", "typicality"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_data_are_told_apart_and_kept_from_call_to_call(kind, copied, call, letters):
    folder = copied(kind)
    first, second = ("far.csv", "2spirals") if kind == "toy" else ("letters.npz", "noise.npz")
    options = ("--data-dir", letters, "--examples", 40)
    status, out, err = call("evaluate", folder, "--ood", first, *options)
    assert (status, err) == (0, "")
    name = first.partition(".")[0]
    assert f"wrote {folder / 'samples' / f'ood-{name}.png'}\n" in out
    found = read(folder, "evaluation.json")["ood"][name]
    assert [score for score in found if "of" not in score] == SCORES[kind]
    for result in found.values():
        assert (result["positive"], result["split"]) == ("other data", "test")
        assert result["interval"][0] <= result["auroc"] <= result["interval"][1]
        assert f"{result['auroc']:.3f} (" in out
        assert sum(result["histogram"]["outside"]) == result["n_out"]
    if kind == "toy":
        assert found["log-likelihood"]["auroc"] > 0.99
    assert ("scaled from 16x16 to 8x8; 256 levels spread over 17" in out) == (kind != "toy")
    assert call("evaluate", folder, "--ood", second, *options)[0] == 0
    both = read(folder, "evaluation.json")["ood"]
    assert list(both) == [name, second.partition(".")[0]]
    assert both[name] == found


def test_results_of_other_weights_are_dropped(copied, call, letters):
    folder = copied("classify")
    assert call("evaluate", folder, "--ood", "noise.npz", "--data-dir", letters, "--examples", 40)[0] == 0
    state = load_file(folder / "model.safetensors")
    state["head.linear.bias"] += 1
    save_file(state, folder / "model.safetensors")
    call("evaluate", folder, "--examples", 40)
    assert read(folder, "evaluation.json")["ood"] == {}


SIXTY = ("--examples", 60)
BETTER = {
    "more draws": ("density", (*SIXTY, "--dequantize-samples", 3), SIXTY, True),
    "the whole split": ("hybrid", (), ("--examples", 40), True),
    "all of a classifier": ("classify", (), ("--examples", 40), True),
    "the same": ("toy", (*SIXTY, "--seed", 5), SIXTY, True),
    "a finer error": ("density", ("--standard-error", 0.05), ("--standard-error", 0.08), True),
    "fewer draws": ("density", SIXTY, (*SIXTY, "--dequantize-samples", 2), False),
    "fewer examples": ("density", ("--examples", 40), (), False),
    "a coarser precision": ("density", (*SIXTY, "--precision", "tf32"), SIXTY, False),
    "another split": ("density", (*SIXTY, "--split", "validation"), SIXTY, False),
}


@pytest.mark.parametrize("case", BETTER)
def test_other_data_leave_a_better_evaluation_as_it_is(case, copied, call, letters):
    kind, earlier, now, kept = BETTER[case]
    folder, other = copied(kind), "far.csv" if kind == "toy" else "noise.npz"
    assert call("evaluate", folder, *earlier)[0] == 0
    before = read(folder, "evaluation.json")
    status, out, err = call("evaluate", folder, "--ood", other, "--data-dir", letters, *now)
    assert (status, err) == (0, "")
    after = read(folder, "evaluation.json")
    assert list(after["ood"]) == [other.partition(".")[0]]
    assert ("is kept\n" in out) == kept
    assert ({**after, "ood": {}} == before) == kept


def test_other_data_lose_nothing_of_an_evaluation_that_is_done_again(copied, call, letters):
    """Each option is the better one of both."""
    folder = copied("density")
    assert call("evaluate", folder, "--dequantize-samples", 3, "--examples", 200)[0] == 0
    assert call("evaluate", folder, "--ood", "noise.npz", "--data-dir", letters)[0] == 0
    found = read(folder, "evaluation.json")
    assert (found["examples"], found["likelihood"]["dequantize_samples"]) == (300, 3)
    assert found["ood"]["noise"]["log-likelihood"]["n_in"] == 300
    assert "with 3 dequantization draws each in float32, is replaced\n" in call("evaluate", folder)[1]
    assert read(folder, "evaluation.json")["likelihood"]["dequantize_samples"] == 1


@pytest.mark.parametrize("damage", ["", "[]", '{"likelihood": 3}', '{"split": "test", "likelihood": {"n": "x"}}'])
def test_a_damaged_evaluation_is_done_again(damage, copied, call, letters):
    folder = copied("density")
    tree = json.loads(damage or "{}")
    sha256 = {"model_sha256": Run(folder).weights_sha256()}
    (folder / "evaluation.json").write_text(json.dumps({**tree, **sha256} if isinstance(tree, dict) else tree))
    assert call("evaluate", folder, "--ood", "noise.npz", "--data-dir", letters, *SIXTY)[0] == 0
    assert read(folder, "evaluation.json")["likelihood"]["n"] == 60


@pytest.mark.parametrize("kind", ["classify", "hybrid"])
def test_predictions_are_told_class_by_class(kind, copied, call):
    folder = copied(kind)
    status, out, _ = call("evaluate", folder)
    assert status == 0
    result, dataset, model = read(folder, "evaluation.json"), load("digits"), ir.load(folder)
    found = result["classification"]
    confusion = torch.tensor(found["confusion"])
    assert confusion.sum(1).tolist() == torch.bincount(dataset.test.y).tolist()
    assert found["accuracy"] == pytest.approx(float(confusion.diagonal().sum()) / 300)
    for label, (of_class, row) in enumerate(zip(found["classes"], confusion, strict=True)):
        assert of_class["accuracy"] == pytest.approx(float(row[label] / row.sum()))
        assert f"{of_class['accuracy']:.2%}" in out
    assert sum(b["n"] for b in found["calibration"]["bins"]) == 300
    assert f"expected calibration error {found['calibration']['ece']:.4f} ± " in out
    assert f"negative log-likelihood {found['cross_entropy']['mean']:.4f} ± " in out
    if kind == "classify":
        with torch.no_grad():
            predicted = model(dataset.test.x.float()).argmax(1)
        expected = torch.zeros(10, 10, dtype=torch.long).index_put_((dataset.test.y, predicted), torch.tensor(1), True)
        assert torch.equal(confusion, expected)


def test_bits_of_classes_average_to_those_of_the_split(copied, call):
    folder = copied("density")
    call("evaluate", folder, "--split", "validation")
    found, y = read(folder, "evaluation.json")["likelihood"], load("digits").validation.y
    mean = sum(of["mean"] * n for of, n in zip(found["classes"], torch.bincount(y).tolist(), strict=True)) / len(y)
    assert mean == pytest.approx(found["bits_per_dim"]["mean"])


def test_a_part_of_the_split_can_be_evaluated(copied, call):
    folder = copied("classify")
    assert call("evaluate", folder, "--examples", 50, "--seed", 3)[0] == 0
    result = read(folder, "evaluation.json")
    expected = evaluation.classification(ir.load(folder), load("digits").test.shuffled(3, 50), levels=17)
    assert (result["examples"], result["classification"]["accuracy"]) == (50, expected.accuracy)


OTHERS = {
    "an unknown set": ("density", "minst", "unknown data set 'minst'; did you mean 'mnist'?"),
    "points of a model of images": ("density", "far.csv", "the model's data are integers, those of far are continuous"),
    "another number of features": ("toy", "wide.csv", "give data of the same kind and number of features"),
    "images of a model of points": ("toy", "noise.npz", "the model's data are continuous"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_data_of_another_kind_are_refused(case, copied, call, letters):
    kind, name, expected = OTHERS[case]
    folder = copied(kind)
    check_refused(call("evaluate", folder, "--ood", name, "--data-dir", letters), expected)
    assert not (folder / "evaluation.json").exists()


# -- sample ----------------------------------------------------------------------------------------------------------


def test_samples_of_a_class_are_those_of_accepted_latents(copied, call):
    folder = copied("hybrid")
    status, out, err = call("sample", folder, "--class", "3", "-n", 5, "--individual", "--seed", 4)
    assert (status, err) == (0, "")
    model = ir.load(folder)
    accepted = evaluation.latents_of_class(model, 3, 5, generator=torch.Generator().manual_seed(4))
    assert f"class 3: {accepted}\n" in out
    images = sorted((folder / "samples" / "samples-3").iterdir())
    assert [path.name for path in images] == [f"{i}.png" for i in range(5)]
    with torch.no_grad():
        x = model.flow.decode(accepted.z)
    for path, image in zip(images, x, strict=True):
        with Image.open(path) as picture:
            shades = np.asarray(picture.convert("L"))
        assert np.abs(shades - (image[0].floor() * 255 / 16).clamp(0, 255).numpy()).max() <= 1
    assert (folder / "samples" / "samples-3.png").is_file()


def test_latents_of_a_class_have_the_joint_density():
    """p(z | y) is p(z) p(y | z) / p(y): its mean and p(y) by quadrature, within four standard errors."""
    model = ir.Hybrid(ir.Flow(ir.Affine(), ir.StandardNormal(1)), n_classes=2)
    model.head = torch.nn.Linear(1, 2)
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[0.0], [2.0]]))
        model.head.bias.copy_(torch.tensor([0.0, 0.5]))
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    joint = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * torch.sigmoid(2 * z + 0.5)
    share = float(torch.trapezoid(joint, z))
    mean = float(torch.trapezoid(z * joint, z)) / share
    n = 20_000
    accepted = evaluation.latents_of_class(model, 1, n, generator=torch.Generator().manual_seed(0))
    assert abs(accepted.rate - share) < 4 * math.sqrt(share * (1 - share) / accepted.n_tried)
    assert abs(float(accepted.z.mean()) - mean) < 4 * float(accepted.z.std()) / math.sqrt(n)


def test_single_samples_of_points_are_a_table(copied, call):
    folder = copied("toy")
    assert call("sample", folder, "-n", 7, "--individual")[0] == 0
    assert np.loadtxt(folder / "samples" / "samples.csv", delimiter=",").shape == (7, 2)


CLASSES = {
    "no such class": ("hybrid", "eleven", "unknown class 'eleven'"),
    "a number too large": ("hybrid", "10", "unknown class '10'"),
    "a density of labeled data": ("density", "3", "this run is a density without classes"),
    "no labels": ("toy", "3", "the data of this run have no classes"),
    "a classifier": ("classify", "3", "this run is a classifier without a density"),
}


@pytest.mark.parametrize("case", CLASSES)
def test_classes_that_cannot_be_sampled(case, copied, call):
    kind, name, expected = CLASSES[case]
    check_refused(call("sample", copied(kind), "--class", name), expected)


# -- reconstruct -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_solvers_are_compared_by_what_they_spend(kind, copied, call):
    folder = copied(kind)
    status, out, err = call("reconstruct", folder, "--solver-examples", 4)
    assert (status, err) == (0, "")
    result = read(folder, "reconstruction.json")
    assert list(result["solvers"]) == list(ir.zoo.SOLVERS)
    for name, points in result["solvers"].items():
        assert name in out
        errors, spent = [p["largest"] for p in points], [p["evaluations"] for p in points]
        assert spent == sorted(spent)
        assert spent[0] == 1
        assert errors[-1] < 1e-6
        assert errors[-1] < 1e-3 * errors[0]
    fixed = result["solvers"]["fixed-point"]
    assert [p["evaluations"] for p in fixed[:4]] == [1, 2, 3, 4]  # one an allowed step, before any has converged
    assert (folder / "samples" / "reconstruction-solvers.png").is_file()
    assert result["largest"] < 1e-4


def test_a_budget_of_one_step_is_one_step():
    """x1 = z - g(z) in a single block: the error is that of the first iterate, worked out by hand."""
    block = ir.ResidualBlock(ir.networks.mlp(2, 8)).double().eval()
    x = torch.randn(6, 2, dtype=torch.float64)
    found = evaluation.solver_errors(block, Split(x), {"fixed-point": ir.FixedPointIteration}, levels=None)
    with torch.no_grad():
        z = block(x)
        errors = [(z - block.g(z) - x).abs(), (z - block.g(z - block.g(z)) - x).abs()]
    for point, error in zip(found["fixed-point"], errors, strict=False):
        assert point.largest == pytest.approx(float(error.max() / (x.max() - x.min())))
        assert point.mean == pytest.approx(float(error.mean() / (x.max() - x.min())))
    assert evaluation.evaluations_to(found["fixed-point"], 0.0) == math.inf
    assert evaluation.evaluations_to(found["fixed-point"], found["fixed-point"][1].largest) == 2


def test_evaluations_are_the_mean_over_blocks():
    """A map that is 0 is solved by the first step, another takes more."""
    easy, hard = (ir.ResidualBlock(ir.networks.mlp(2, 8, coeff=coeff)).double().eval() for coeff in (1e-12, 0.9))
    x = torch.randn(5, 2, dtype=torch.float64)
    found = evaluation.solver_errors(ir.Chain([hard, easy]), Split(x), {"anderson": ir.Anderson}, levels=None)
    solver = ir.Anderson(atol=ATOL, rtol=0.0)
    with torch.no_grad():
        spent = [block.solve(z, solver=solver).evaluations for block, z in ((hard, hard(x)), (easy, easy(hard(x))))]
    assert float(spent[0].double().mean()) > float(spent[1].double().mean()) + 1
    assert found["anderson"][-1].evaluations == pytest.approx(float(torch.stack(spent).double().mean()), abs=0.3)


def test_the_difference_is_drawn_and_its_scale_is_said(copied, call):
    folder = copied("density")
    out = call("reconstruct", folder, "-n", 3, "--solver-examples", 0)[1]
    factor = float(out.partition("difference times ")[2].partition(")")[0])
    with Image.open(folder / "samples" / "reconstructions.png") as picture:
        pixels = np.asarray(picture)[4::8, 4::8, 0]  # 8 screen pixels each
    assert pixels.shape == (26, 26)
    below = np.stack([pixels[18:26, 9 * i : 9 * i + 8] for i in range(3)])
    assert below.max() == 255
    model, x = ir.load(folder), load("digits").test.x[:3]
    x = ir.data.dequantize(x, levels=17, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (model.decode(model.encode(x)) - x).abs()
    assert factor == pytest.approx(16 / float(difference.max()), rel=0.05)
    assert read(folder, "reconstruction.json")["solvers"] == {}


@pytest.mark.filterwarnings("always")
def test_a_model_that_is_not_inverted_is_told_apart(copied, call):
    folder = copied("density")
    loosen(folder)
    status, out, err = call("reconstruct", folder, "--solver-examples", 4)
    assert status == 0
    assert "the inverse of a residual block did not converge" in err
    assert "the model is not inverted: iresnet certify " in out
    assert "never" in out
    assert read(folder, "reconstruction.json")["solvers"]["anderson"][-1]["converged"] < 1


# -- interpolate -----------------------------------------------------------------------------------------------------


def test_an_arc_keeps_the_length_and_turns_at_one_speed():
    a, b = torch.randn(2, 5, 7, dtype=torch.float64)
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    angle = (a * b).sum(1).acos()
    for t in (0.0, 0.3, 1.0):
        c = slerp(a, b, t)
        assert torch.allclose(c.norm(dim=1), torch.ones(5, dtype=torch.float64))
        assert torch.allclose((a * c).sum(1).clamp(max=1).acos(), t * angle, atol=1e-7)
    assert torch.allclose(slerp(a, 2 * a, 0.5), 1.5 * a)
    assert torch.allclose(slerp(a, -a, 0.25), 0.5 * a)


@pytest.mark.parametrize("kind", ["hybrid", "classify", "toy"])
def test_paths_go_from_one_example_to_the_other(kind, trained):
    model, test = ir.load(trained(kind)), load("8gaussians" if kind == "toy" else "digits").test
    first, last = (x.float() for x in test.x[:4].split(2))
    found = evaluation.interpolate(model, first, last, steps=3)
    assert [path.kind for path in found] == (["linear"] if kind == "classify" else ["linear", "spherical"])
    with torch.no_grad():
        ends = model.bijection(first), model.bijection(last)
        for path in found:
            assert path.x.shape == (2, 3, *test.x.shape[1:])
            assert torch.allclose(path.x[:, 0], first, atol=1e-2)
            assert torch.allclose(path.x[:, -1], last, atol=1e-2)
            assert (path.bits_per_dim is None) == (kind == "classify")
        if kind != "classify":  # padding leaves out what its features cannot reach
            middle = model.bijection(found[0].x[:, 1])
            assert torch.allclose(middle, (ends[0] + ends[1]) / 2, atol=1e-3)
            base = getattr(model, "flow", model).base
            a, b = ((z - base.mean) / base.log_std.exp() for z in ends)
            c = (model.bijection(found[1].x[:, 1]) - base.mean) / base.log_std.exp()
            assert torch.allclose(c, slerp(a, b, 0.5), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_paths_are_drawn_and_written(kind, copied, call):
    folder = copied(kind)
    status, out, err = call("interpolate", folder, "-n", 2, "--steps", 3)
    assert (status, err) == (0, "")
    assert f"wrote {folder / 'samples' / 'interpolation.png'}\n" in out
    found = read(folder, "interpolation.json")
    assert list(found["bits_per_dim"]) == (["linear"] if kind == "classify" else ["linear", "spherical"])
    if kind == "toy":
        with (folder / "samples" / "interpolation.csv").open() as file:
            rows = list(csv.reader(file))
        assert (rows[0], len(rows)) == (["kind", "pair", "step", "x0", "x1"], 1 + 2 * 2 * 3)
    else:
        with Image.open(folder / "samples" / "interpolation.png") as picture:
            grid = (2 * 9 - 1) * 8
            assert picture.height == len(found["bits_per_dim"]) * (24 + grid)


PATHS = {
    "an unknown kind": (
        "density",
        ("--kind", "sferical"),
        "unknown kind of path 'sferical'; did you mean 'spherical'?",
    ),
    "no sphere": ("classify", ("--kind", "spherical"), "no density, and so no sphere"),
    "too many pairs": ("density", ("-n", 151), "151 pairs need 302 examples, the split has 300"),
    "one step": ("density", ("--steps", 1), "Must be >= 2"),
}


@pytest.mark.parametrize("case", PATHS)
def test_paths_that_there_are_not(case, copied, call):
    kind, options, expected = PATHS[case]
    check_refused(call("interpolate", copied(kind), *options), expected)


# -- compare ---------------------------------------------------------------------------------------------------------


def test_runs_are_compared_by_what_is_known(copied, call, tmp_path):
    density, classifier = copied("density", "a"), copied("classify", "b")
    call("evaluate", density, "--examples", 50)
    call("certify", density)
    status, out, err = call("compare", density, classifier, "--json", tmp_path / "c.json", "--csv", tmp_path / "c.csv")
    assert (status, err) == (0, "")
    likelihood = read(density, "evaluation.json")["likelihood"]["bits_per_dim"]
    assert f"{likelihood['mean']:.4f} ± {likelihood['half_width']:.4f}" in out
    command = f"iresnet evaluate {classifier}\n"
    assert f"parameters and accuracy and ECE and certified accuracy: {command}" in out or "iresnet evaluate" in out
    assert f"block bound: iresnet certify {classifier}\n" in out
    assert f"block bound: iresnet certify {density}\n" not in out
    assert f"reconstruction: iresnet reconstruct {density}\n" in out
    rows = json.loads((tmp_path / "c.json").read_text())
    assert [row["task"] for row in rows] == ["density", "classify"]
    assert rows[0]["cells"]["bits/dim"]["value"] == likelihood["mean"]
    assert "bits/dim" not in rows[1]["cells"]  # a classifier has none, and none is missing
    assert rows[0]["cells"]["steps"]["value"] == 1297 // 64
    with (tmp_path / "c.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["run"] for row in table] == [str(density), str(classifier)]
    assert float(table[0]["bits/dim"]) == likelihood["mean"]


def test_certified_accuracies_are_compared_at_their_radii(copied, call):
    folder = copied("classify")
    assert call("evaluate", folder, "--radius", 0.01, "--radius", 1e9)[0] == 0
    first = read(folder, "evaluation.json")["classification"]["certified"][0]["accuracy"]
    lines = [line for line in call("compare", folder)[1].splitlines() if line.startswith("certified accuracy ")]
    assert [line.split("  ")[-1].strip() for line in lines] == [f"{first:.2%} within 0.01; 0.00% within 1e+09"]
    tree = read(folder, "evaluation.json")
    tree["classification"]["certified"] = []
    (folder / "evaluation.json").write_text(json.dumps(tree))
    assert any(line.split() == ["certified", "accuracy", "none"] for line in call("compare", folder)[1].splitlines())


def test_runs_are_headed_by_what_tells_them_apart(copied, call):
    """Folders of seeds have the same name in each experiment, and long paths do not fit over a column."""
    toy, density = copied("toy", "one/seed-0"), copied("density", "two/seed-0")
    heading = call("compare", toy, density)[1].splitlines()[0].split()
    assert heading == ["run", "one", "two"]


def test_stale_results_are_called_stale_and_different_data_apart(copied, call):
    density, toy = copied("density", "a"), copied("toy", "b")
    assert call("certify", density)[0] == 0
    assert "(stale)" not in call("compare", density)[1]
    Run(density).model_file.write_bytes(Run(toy).model_file.read_bytes())
    out = call("compare", density, toy)[1]
    assert "(stale)" in out
    assert f"iresnet certify {density}\n" in out
    assert "not comparable, since the data differ: digits, 1x8x8, 17 levels, test split" in out
    assert "not comparable" not in call("compare", toy, toy)[1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.json", {"likelihood": [1], "classification": 3, "ood": [2], "parameters": "x", "split": 4}),
        ("evaluation.json", {"likelihood": {"bits_per_dim": {"mean": "x", "half_width": []}}, "ood": {"a": 3}}),
        ("evaluation.json", {"parameters": [], "ood": {"a": {"typicality": {"auroc": None}}, "b": {"typicality": {}}}}),
        ("certificate.json", {"blocks": [1], "certified": 3}),
        ("certificate.json", {"blocks": 3}),
        ("cost.json", {"sessions": [{}, 3]}),
        ("cost.json", {"sessions": 3}),
        ("reconstruction.json", {"largest": [1]}),
        ("env.json", {"data_dir": 3}),
    ],
)
def test_results_of_other_contents_are_missing(name, content, copied, call):
    density = copied("density")
    (density / name).write_text(json.dumps(content))
    status, out, err = call("compare", density)
    assert (status, err) == (0, "")
    assert {row.split()[0]: row.split()[-1] for row in out.splitlines()[:9]}["bits/dim"] == "-"
    assert Run(density).data_dir is None


def test_nothing_to_compare(call, tmp_path):
    check_refused(call("compare"), "name at least one run folder")
    check_refused(call("compare", tmp_path), "is not a run folder")
