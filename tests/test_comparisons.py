"""Networks to compare with: they train like all others, and every command says what it cannot tell of them."""

import json
import warnings

import pytest

import iresnet as ir
from iresnet.cli import run

SMALL = ("--model.blocks", "[1,1]", "--model.hidden", "8", "--train.epochs", "2", "--train.snapshot-every", "1")
KINDS = {"unconstrained": ("--model.coeff", "null", "--optim.lr", "0.1"), "plain": ("--model.name", "resnet")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of tiny runs, by kind."""
    folder = tmp_path_factory.mktemp("comparisons")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ir.errors.ConvergenceWarning)  # of the reconstructions at snapshots
        for kind, changes in KINDS.items():
            out = ("--out", str(folder / kind), "--no-tracker")
            assert run(["train", "digits-classify", *changes, *SMALL, *out]) == 0
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture
def call(runs, capsys):
    """A function that runs one command on a run and returns status, output and complaints."""

    def call(kind, command, *tokens):
        status = run([command, str(runs[kind]), *tokens])
        return status, *capsys.readouterr()

    return call


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_evaluated_as_classifiers_and_not_certified(runs, call, kind):
    status, out, _ = call(kind, "evaluate")
    assert (status, "accuracy" in out) == (0, True)
    status, out, _ = call(kind, "certify")
    assert (status, "NOT CERTIFIED" in out) == (1, True)
    assert json.loads((runs[kind] / "certificate.json").read_text())["certified"] is False


@pytest.mark.parametrize("kind", KINDS)
def test_their_metrics_are_json_and_say_so_too(runs, kind):
    text = (runs[kind] / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    snapshots = [line for line in lines if line["split"] == "validation"]
    assert len(snapshots) == 2
    for line in snapshots:
        assert line["certified"] is False
        assert ("reconstruction_error" in line) == (kind == "unconstrained")
        assert (line["largest_block_bound"] is None) == (kind == "plain")
    assert "excess" not in {line["split"] for line in lines}  # there is no coefficient to leave


def test_the_unconstrained_one_warns_that_it_was_not_inverted(runs, call):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        status, _, complaint = call("unconstrained", "reconstruct")
    assert (status, "did not converge: 0 of" in complaint) == (0, True)
    model = ir.load(runs["unconstrained"])
    assert not any(m.normalization.constrained for m in model.modules() if isinstance(m, ir.LipschitzConv2d))


@pytest.mark.parametrize(
    ("command", "message"), [("reconstruct", "without inverse"), ("sample", "classifier without a density")]
)
def test_what_needs_an_inverse_refuses_the_plain_one_in_a_line(call, command, message):
    status, _, complaint = call("plain", command)
    assert status == 2
    assert message in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [(("--model.coeff", "null"), "may fold space"), (("--model.name", "resnet"), "without density")],
)
@pytest.mark.parametrize("recipe", ["digits-density", "digits-hybrid"])
def test_they_have_no_density(recipe, change, message, tmp_path, capsys):
    assert run(["train", recipe, *change, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
