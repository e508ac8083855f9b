"""The head of a hybrid of images: what latents consist of, and what is computed of each part."""

import math

import pytest
import torch
import torch.nn.functional as F
from laws import close, randn

import iresnet as ir
from iresnet.bijections import latent_shapes

TWO_SCALES = {"blocks": (1, 1), "strides": (1, 2), "hidden": 4}
NAMES = {"iresnet": [(8, 4, 4)], "iresnet-multiscale": [(4, 4, 4), (16, 2, 2)]}


@pytest.mark.parametrize("name", NAMES)
def test_latents_consist_of_the_images_that_the_maps_flatten(name):
    flow = ir.zoo.build(name, shape=(2, 8, 8), **TWO_SCALES)
    flattened = []
    for module in flow.modules():
        if isinstance(module, ir.FactorOut):
            module.register_forward_pre_hook(lambda m, args: flattened.append(args[0][:, : m.out_shape[0]]))
        elif isinstance(module, ir.Flatten):
            module.register_forward_pre_hook(lambda _, args: flattened.append(args[0]))
    z, shapes = flow.eval().encode(256 * torch.rand(3, 2, 8, 8)), latent_shapes(flow.bijection)
    assert shapes == NAMES[name]
    for part, shape, image in zip(z.split([math.prod(s) for s in shapes], dim=1), shapes, flattened, strict=True):
        close(part.view(3, *shape), image, 0)


UNKNOWN = {
    "vectors after images": ir.Chain([ir.Flatten((2, 2, 2)), ir.ResidualBlock(ir.networks.mlp(8, 4))]),
    "nothing": ir.Chain([]),
    "vectors": ir.Flatten((5,)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_latents_that_are_not_known_to_consist_of_images_do_not(name):
    assert latent_shapes(UNKNOWN[name]) == [None]
    assert latent_shapes(ir.FactorOut((4, 2, 2), UNKNOWN[name])) == [(2, 2, 2), None]


def test_latents_of_which_a_part_is_not_known_pass_the_head_of_vectors():
    bijection = ir.FactorOut((4, 2, 2), UNKNOWN["vectors after images"])
    hybrid = ir.Hybrid(ir.Flow(bijection, ir.StandardNormal(16)), n_classes=3)
    assert hybrid(torch.randn(5, 4, 2, 2)).shape == (5, 3)
    assert hybrid.head.linear.in_features == 16


def test_the_head_takes_two_convolutions_of_each_image_and_a_linear_layer_of_their_means():
    hybrid = ir.zoo.build(
        "iresnet-multiscale", shape=(2, 8, 8), task="hybrid", n_classes=3, head_hidden=5, **TWO_SCALES
    ).double()
    hybrid.train()(128 + 50 * randn(16, 2, 8, 8))  # running averages that are not 0 and 1
    z, features = randn(4, 128), []
    parts = (z[:, :64].view(4, 4, 4, 4), z[:, 64:].view(4, 16, 2, 2))
    for (first, norm, _, second, last_norm, _), x in zip(hybrid.eval().head.branches, parts, strict=True):
        x = F.batch_norm(F.conv2d(x, first.weight, padding=1), *averages(norm)).relu()
        x = F.batch_norm(F.conv2d(x, second.weight, stride=2, padding=1), *averages(last_norm)).relu()
        features.append(x.mean((2, 3)))
    assert [x.shape for x in features] == [(4, 10), (4, 10)]
    close(hybrid.head(z), hybrid.head.linear(torch.cat(features, dim=1)))


def averages(norm):
    return norm.running_mean, norm.running_var, norm.weight, norm.bias
