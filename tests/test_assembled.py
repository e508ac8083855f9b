"""The short description of a model counts what is there, and certifies what was proved of these weights."""

import copy
import math
from html.parser import HTMLParser

import pytest
import torch

import iresnet as ir
from iresnet.certificates import Certificate
from iresnet.networks import PlainBlock

IMAGES = {"blocks": (2, 1), "strides": (1, 2), "hidden": 4}
MODELS = {
    "one scale": (lambda: ir.zoo.build("toy-mlp", shape=(3,), blocks=4, hidden=8), [("3", 4, "0.9")]),
    "two scales": (
        lambda: ir.zoo.build("iresnet-multiscale", shape=(2, 8, 8), coeff=0.8, **IMAGES),
        [("8x4x4", 2, "0.8"), ("16x2x2", 1, "0.8")],
    ),
    "two scales without channels that leave": (
        lambda: ir.zoo.build("iresnet", shape=(2, 8, 8), **IMAGES),
        [("2x8x8", 2, "0.9"), ("8x4x4", 1, "0.9")],
    ),
    "classifier": (
        lambda: ir.zoo.build("iresnet", shape=(2, 8, 8), task="classify", n_classes=3, injective_pad=1, **IMAGES),
        [("3x8x8", 2, "0.9"), ("12x4x4", 1, "0.9")],
    ),
    "unconstrained": (
        lambda: ir.zoo.build("iresnet", shape=(2, 8, 8), task="classify", n_classes=3, coeff=None, **IMAGES),
        [("2x8x8", 2, "none"), ("8x4x4", 1, "none")],
    ),
    "plain": (
        lambda: ir.zoo.build("resnet", shape=(2, 8, 8), task="classify", n_classes=3, **IMAGES),
        [("2x8x8", 2, "none"), ("8x4x4", 1, "none")],
    ),
    "hybrid": (
        lambda: ir.zoo.build("iresnet-multiscale", shape=(2, 8, 8), task="hybrid", n_classes=3, **IMAGES),
        [("8x4x4", 2, "0.9"), ("16x2x2", 1, "0.9")],
    ),
    "by hand": (lambda: ir.Flow(ir.ResidualBlock(ir.networks.mlp(2, 4)), ir.StandardNormal(2)), [("", 1, "0.9")]),
    "several coefficients": (
        lambda: ir.Flow(
            ir.Chain([ir.ResidualBlock(ir.networks.mlp(2, 4, coeff=c)) for c in (0.5, 0.7, 0.97)]), ir.StandardNormal(2)
        ),
        [("", 3, "0.5 to 0.97")],
    ),
    "no blocks": (lambda: ir.Flow(ir.Affine(), ir.StandardNormal(2), event_shape=(2,)), [("2", 0, "none")]),
    "lazy head": (lambda: ir.Classifier(ir.ResidualBlock(ir.networks.mlp(2, 4)), 3), [("", 1, "0.9")]),
}


class Cells(HTMLParser):
    """The cells of the rows of a table."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):  # noqa: ARG002
        self.inside = tag == "td"
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag):  # noqa: ARG002
        self.inside = False


def rows_of(model):
    return [row for row in Cells(model._repr_html_()).rows if row]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_described_by_its_scales(name):
    make, expected = MODELS[name]
    model = make()
    rows = rows_of(model)
    scales = [(events, int(blocks), coeff) for part, events, blocks, coeff, _ in rows if part.startswith("scale")]
    assert scales == expected
    known = [p for p in model.parameters() if not torch.nn.parameter.is_lazy(p)]
    size = sum(p.numel() for p in known)
    assert sum(int(row[4].replace(",", "")) for row in rows) == size
    assert f"{size:,} parameters" in repr(model).splitlines()[0]
    blocks = sum(isinstance(m, (ir.ResidualBlock, PlainBlock)) for m in model.modules())
    assert f"{blocks} blocks" in repr(model).splitlines()[0]
    # the text is the same table
    lines = repr(model).splitlines()
    assert len(lines) == len(rows) + 3 <= 7
    for line, row in zip(lines[2:-1], rows, strict=True):
        assert line.split() == " ".join(row).split()


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_tree_is_that_of_torch(name):
    model = MODELS[name][0]()
    tree = model.tree()
    assert len(tree.splitlines()) > len(repr(model).splitlines()) or name == "no blocks"
    for child in model.modules():
        assert f"{type(child).__name__}(" in tree
    assert "scale" not in repr(torch.nn.ModuleList([torch.nn.Linear(1, 1)]))  # other modules are left alone


def test_a_certificate_is_told_of_the_weights_that_have_it_alone():
    model = ir.zoo.build("toy-mlp", shape=(2,), blocks=2, hidden=8).eval()
    assert "certificate unknown: iresnet.certify(model)" in repr(model)
    verdict = ir.seal(model).verdict
    assert verdict in repr(model)
    assert verdict in repr(copy.deepcopy(model))
    bias = model.bijection.bijections[2].g[0].bias.data
    before = bias.clone()
    bias[0] += 1.0  # which counts no version
    assert "certificate unknown" in repr(model)
    bias.copy_(before)
    assert verdict in repr(model)


def test_a_certificate_that_is_not_of_these_weights_is_not_told(copied):
    run = copied("density")
    model = ir.load(run)
    assert "certificate unknown" in repr(model)
    (run / "certificate.json").write_text('{"model_sha256": "0", "certified": true, "layers": [], "blocks": []}')
    assert "certificate unknown" in repr(ir.load(run))


@pytest.mark.parametrize("name", ["two scales", "plain"])
def test_a_certificate_comes_back_from_its_file(name):
    certificate = ir.certify(MODELS[name][0]().eval())
    assert Certificate.from_dict(certificate.to_dict()) == certificate
    assert certificate.certified or math.isinf(certificate.blocks[0].upper)


def test_a_model_without_memory_is_described():
    model = MODELS["two scales"][0]()
    ir.seal(model)
    assert "certificate unknown" in repr(model.to("meta"))
