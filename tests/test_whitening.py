"""Whitening of patches: uncorrelated pixels, the density of a normal law, and what is refused."""

import math

import pytest
import torch
from laws import close

import iresnet as ir
from iresnet.config import load_config
from iresnet.data import load
from iresnet.errors import IResNetError, RecipeError
from iresnet.export import to_onnx
from iresnet.models import inputs_of
from iresnet.training.task import make_task


def correlated(n, channels=2, side=4):
    """Images whose neighboring pixels and colors are alike."""
    common = torch.randn(n, 1, side, side).double().cumsum(2).cumsum(3)
    return 3 + common + 0.1 * torch.randn(n, channels, side, side).double()


def rows_of(patches):  # (N, d, H, W) -> (N H W, d)
    return patches.movedim(1, -1).flatten(0, 2)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_pixels_of_a_patch_have_the_identity_as_covariance_and_move_least(patch):
    x, whitening = correlated(400), ir.Whitening(2, patch).double()
    whitening.fit(x)
    rows = rows_of(torch.nn.functional.pixel_unshuffle(whitening(x), patch))
    close(rows.mean(0), torch.zeros(2 * patch**2), 1e-10)
    close(rows.T.cov(correction=0), torch.eye(2 * patch**2), 1e-8)
    # Of all matrices Q C^(-1/2) that whiten the positive definite one moves points least.
    close(whitening.root.matrix, whitening.root.matrix.mT)
    assert float(torch.linalg.eigvalsh(whitening.root.matrix)[0]) > 0


def test_under_a_normal_base_the_density_is_the_normal_law_of_each_patch():
    x, whitening = correlated(300), ir.Whitening(2, 2).double()
    whitening.fit(x)
    flow = ir.Flow(ir.Chain([whitening, ir.Flatten((2, 4, 4))]), ir.StandardNormal(32), event_shape=(2, 4, 4)).double()
    patches = torch.nn.functional.pixel_unshuffle(x, 2)
    rows = rows_of(patches)
    law = torch.distributions.MultivariateNormal(rows.mean(0), rows.T.cov(correction=0))
    close(flow.log_prob(x), law.log_prob(patches.movedim(1, -1)).sum((1, 2)), 1e-8)


def test_how_far_it_stretches_is_known():
    whitening = ir.Whitening(1, 2).double()
    whitening.fit(correlated(50, 1))
    least, most = whitening.stretch()
    matrix = torch.func.jacrev(whitening)(torch.zeros(1, 1, 2, 2).double()).reshape(4, 4)
    close(torch.linalg.svdvals(matrix)[[3, 0]], torch.tensor([least, most], dtype=torch.float64))


@pytest.mark.parametrize(
    ("x", "reason"),
    [
        (torch.ones(5, 2, 4, 4), "variances from 0 to 0"),
        (torch.full((5, 2, 4, 4), math.nan), "finite images"),
        (torch.rand(5, 1, 4, 4).expand(-1, 2, -1, -1), "vary in all 8 numbers"),
        (torch.rand(5, 2, 3, 4), "of a multiple of these, got 3x4"),
        (torch.rand(5, 3, 4, 4), r"takes batches of shape \(N, 2,"),
    ],
)
def test_what_has_no_covariance_is_refused_and_nothing_changes(x, reason):
    whitening = ir.Whitening(2, 2)
    with pytest.raises(IResNetError, match=reason):
        whitening.fit(x)
    assert torch.equal(whitening.root.matrix, torch.eye(8))


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        ((1, 6, 6), {"blocks": [1], "strides": [1], "whiten": 4}, "a divisor of height and width"),
        ((4,), {"name": "toy-mlp", "whiten": 2}, "patches that cover an image"),
        ((1, 4, 4), {"name": "residual-flow", "blocks": [1], "whiten": 2, "logit": 0.05}, "no logit"),
    ],
)
def test_models_that_cannot_be_whitened_are_refused(shape, options, reason):
    with pytest.raises(RecipeError, match=reason):
        ir.zoo.build(**{"name": "iresnet-multiscale", "hidden": 4, **options}, shape=shape)


def test_training_fits_the_whitening_and_then_the_spline():
    tokens = ["--model.whiten", "2", "--model.spline", "8", "--model.blocks", "[1,1]", "--model.hidden", "4"]
    dataset = load("digits")
    task = make_task(load_config("digits-density", tokens), dataset, inputs_of(dataset, "density"))
    kinds = (ir.Affine, ir.Whitening, ir.Spline)
    scale, whitening, spline = (next(m for m in task.modules() if isinstance(m, kind)) for kind in kinds)
    white = whitening(scale(ir.dequantize(dataset.train.x, levels=17)))
    rows = rows_of(torch.nn.functional.pixel_unshuffle(white, 2))
    close(rows.T.cov(), torch.eye(4), 0.05)  # another draw of noise
    latents = spline(white).detach()
    assert float(latents.std()) == pytest.approx(1, abs=0.05)
    assert float((latents**4).mean()) == pytest.approx(3, abs=0.2)


@pytest.mark.slow
def test_what_is_exported_has_its_factors_as_constants(tmp_path):
    pytest.importorskip("onnxruntime")
    options = {"blocks": [1], "strides": [1], "hidden": 4, "actnorm": False}
    flow = ir.zoo.build("iresnet", shape=(1, 4, 4), whiten=2, spline=4, mean=0.0, std=1.0, **options)
    x = correlated(50, 1).float()
    with torch.no_grad():
        for part in (module for module in flow.modules() if isinstance(module, (ir.Whitening, ir.Spline))):
            part.fit(x)
            x = part(x)
    ir.seal(flow.eval())
    to_onnx(flow, "log-prob", tmp_path / "density.onnx", n_probes=4)  # compares with torch
