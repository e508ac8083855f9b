"""Certified radii: no attack within them changes a prediction, and they are not needlessly small."""

import math

import numpy as np
import pytest
import torch
from laws import randn

import iresnet as ir
from iresnet import evaluation
from iresnet.classifiers import _ImageHead
from iresnet.data import Examples, load
from iresnet.inputs import Inputs


def attacked(model, x, radius, steps=40, starts=3):
    """The smallest margin of the predicted class that projected gradient descent finds within the radius of each x."""
    with torch.no_grad():
        label = model(x).argmax(1)
    shape = (-1, *[1] * (x.dim() - 1))
    radius, smallest = radius.view(shape), torch.full((len(x),), math.inf, dtype=x.dtype)

    def unit(d):
        return d / torch.linalg.vector_norm(d.flatten(1), dim=1).clamp(min=1e-300).view(shape)

    for _ in range(starts):
        delta = radius * unit(torch.randn_like(x)) * torch.rand(len(x), dtype=x.dtype).view(shape)
        for step in range(steps + 1):
            delta = delta.detach().requires_grad_()
            logits = model(x + delta)
            own = logits.gather(1, label[:, None])[:, 0]
            margin = own - logits.scatter(1, label[:, None], -math.inf).max(1).values
            smallest = torch.minimum(smallest, margin.detach())
            (gradient,) = torch.autograd.grad(margin.sum(), delta)
            moved = delta.detach() - 0.2 * radius * (1 - step / (steps + 1)) * unit(gradient)
            size = torch.linalg.vector_norm(moved.flatten(1), dim=1).view(shape)
            delta = moved * (radius / size.clamp(min=1e-300)).clamp(max=1)
    return smallest


def moons_classifier(points, labels):
    """A classifier of points in the plane, trained for a moment."""
    torch.manual_seed(0)
    blocks = [ir.ResidualBlock(ir.networks.mlp(2, 32, coeff=0.7)) for _ in range(3)]
    model = ir.Classifier(ir.bijections.Chain(blocks), 2).double()
    model(points)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(points), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ir.seal(model.eval())
    return model


@pytest.fixture(scope="module")
def moons():
    generator = torch.Generator().manual_seed(0)
    angle = math.pi * torch.rand(200, dtype=torch.float64, generator=generator)
    labels = torch.arange(200) % 2
    points = torch.stack([angle.cos() + labels, (1 - 2 * labels) * angle.sin() + 0.5 * labels], 1)
    points += 0.05 * torch.randn(200, 2, dtype=torch.float64, generator=generator)
    return moons_classifier(points, labels), points, labels


def radii(model, x):
    with torch.no_grad():
        return evaluation.certified_radius(model(x), evaluation.logit_constant(model, x))


def test_no_attack_within_the_certified_radius_changes_a_prediction(moons):
    model, x, labels = moons
    assert float((model(x).argmax(1) == labels).double().mean()) > 0.8
    r = radii(model, x)
    assert float(r.median()) > 1e-3
    assert bool((attacked(model, x, r) > 0).all())
    # The attack is one: it does change predictions further out.
    assert float((attacked(model, x, r.clamp(min=2.0)) < 0).double().mean()) > 0.5


def test_no_attack_on_digits_of_the_package_within_their_radius_succeeds():
    model = ir.load("mnist-classify-small").double()
    images = np.zeros((12, 1, 28, 28))
    large = load("digits").test.x[:12].repeat_interleave(2, 2).repeat_interleave(2, 3)
    images[:, :, 6:22, 6:22] = large.numpy() * (255 / 16)
    x = torch.from_numpy(images)
    r = radii(model, x)
    assert bool((r > 0).all())
    assert bool((attacked(model, x, r, steps=5, starts=1) > 0).all())
    assert bool((attacked(model, x, r.clamp(min=2000.0), steps=10, starts=1) < 0).any())


def test_a_radius_is_tight_where_all_bounds_are():
    """Two classes, orthogonal columns and nothing clipped: the nearest point of the other class is at the radius."""
    model = ir.Classifier(ir.Affine(std=4.0), 2).double()
    model(randn(8, 3))
    model.eval()
    with torch.no_grad():
        model.head.norm.running_mean.zero_()
        model.head.norm.running_var.fill_(1 - model.head.norm.eps)
        model.head.norm.bias.fill_(50.0)  # far from where ReLU clips
        model.head.linear.weight.copy_(torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 1.0]]))
        model.head.linear.bias.copy_(-50 * model.head.linear.weight.sum(1))
    x = randn(6, 3)
    r, w = radii(model, x), model.head.linear.weight
    direction = (w[0] - w[1]) / (w[0] - w[1]).norm()
    with torch.no_grad():
        sign = (1 - 2 * model(x).argmax(1)).double()[:, None]
        inside, outside = (model(x - f * r[:, None] * sign * direction).argmax(1) for f in (1 - 1e-6, 1 + 1e-6))
        assert torch.equal(inside, model(x).argmax(1))
        assert torch.equal(outside, 1 - model(x).argmax(1))


@pytest.mark.parametrize("shape", [(3,), (3, 2, 5)])
def test_the_bound_of_a_head_is_one(shape):
    """No difference of logits, less what all have in common, changes faster; random directions come within reach."""
    head = ir.Classifier(ir.bijections.Chain([]), 4).head.double()
    head(5 * randn(50, *shape) + 1)
    check_head(head.eval(), shape)


def test_the_bound_of_a_head_on_images_is_one():
    head = _ImageHead([(2, 4, 6), (3, 3, 3)], 5, 4).double()
    head(2 * randn(50, 48 + 27))
    check_head(head.eval(), (48 + 27,), 0.01)  # two convolutions, each bounded for images of any size


def check_head(head, shape, tightness=0.1):
    z = randn(200, *shape)
    bound = head.upper_bound(z)

    def centered(z):
        logits = head(z)
        return logits - logits.mean(1, keepdim=True)

    head.requires_grad_(False)
    matrices = torch.func.vmap(torch.func.jacrev(lambda z: centered(z[None])[0]))(z).flatten(2)
    largest = float(torch.linalg.matrix_norm(matrices, 2).max())
    assert tightness * bound < largest <= bound


def test_plain_networks_have_no_radius():
    model = ir.Classifier(torch.nn.Linear(3, 3), 2)
    model(torch.randn(8, 3))
    assert evaluation.logit_constant(model.eval(), torch.randn(1, 3)) == math.inf
    assert radii(model, torch.randn(4, 3)).tolist() == [0.0] * 4


def test_a_constant_leaves_a_model_in_train_mode_as_it_was():
    model = ir.Classifier(ir.Chain([ir.ActNorm(2), ir.ResidualBlock(ir.networks.mlp(2, 8))]), 2)
    x = 5 + torch.randn(30, 2)
    model(x)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    constant = evaluation.logit_constant(model, x)
    assert model.training
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    inputs = Inputs((2,), None, ("a", "b"), (0.0,), (1.0,))
    list(evaluation.predict(model, [Examples(x, [*range(1, 31)])], inputs))
    assert model.training
    assert constant == evaluation.logit_constant(model.eval(), x)


def test_certified_accuracy_is_the_share_of_right_predictions_with_so_large_a_radius():
    r, right = torch.tensor([0.0, 0.1, 0.2, 0.4]), torch.tensor([True, True, False, True])
    found = evaluation.certified_accuracy(r, right, at=(0.0, 0.1, 0.3, 1.0))
    assert [c.accuracy for c in found] == [0.5, 0.5, 0.25, 0.0]
    assert evaluation.certified_accuracy(torch.zeros(4), right) == ()


def test_evaluate_reports_it(copied, call):
    folder = copied("classify")
    status, out, err = call("evaluate", folder, "--radius", 1e-9, "--radius", 1e9)
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line.startswith(("1e-09", "1e+09"))]
    accuracy = float(out.partition("test accuracy ")[2].partition("%")[0])
    assert [float(row[1].rstrip("%")) for row in rows] == [accuracy, 0.0]
    status, _, err = call("evaluate", copied("density", "other"), "--radius", 1)
    assert (status, err.count("\n"), "density without classes" in err) == (2, 1, True)
