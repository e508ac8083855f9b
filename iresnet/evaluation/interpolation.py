"""Interpolation between examples, through the latent space."""

__all__ = ["KINDS", "Interpolation", "interpolate", "kinds_of", "slerp"]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iresnet.classifiers import Classifier, Hybrid
from iresnet.errors import IResNetError, UnknownNameError
from iresnet.evaluation.batching import evaluate_in_batches, evaluation_mode
from iresnet.evaluation.likelihood import default_estimator
from iresnet.flows import Flow

KINDS = ("linear", "spherical")
"""Kinds of paths through the latent space."""


@dataclass(frozen=True)
class Interpolation:
    r"""Examples on paths between pairs of examples.

    Attributes:
        kind: one of :data:`KINDS`.
        x: the examples, (pairs, steps, \*E): the first and the last are those of the pair.
        bits_per_dim: -log p(x) / (D log 2) of them, (pairs, steps); None without a density.
    """

    kind: str
    x: Tensor
    bits_per_dim: Tensor | None


@torch.no_grad()
def interpolate(
    model: Flow | Classifier | Hybrid,
    first: Tensor,  # (n, *E)
    last: Tensor,  # (n, *E)
    *,
    steps: int = 9,
    kinds: Sequence[str] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Interpolation]:
    r"""Interpolate between pairs of examples through the latent space, in equal steps.

    ``linear`` paths are straight, :math:`(1 - t) z_0 + t z_1`. In many dimensions the points of a normal density lie
    near a sphere, and a straight path leaves it: at its middle the latent is shorter than any sample. ``spherical``
    paths stay near the sphere (:func:`slerp`), in standardized coordinates: a learned mean is subtracted and a learned
    standard deviation divided by, or there would be no sphere. A classifier has no density, so its paths are straight,
    through its features; with injective padding features in between may
    belong to no example, and are inverted all the same.

    Args:
        model: the model.
        first: examples at which paths begin, on the scale of the data.
        last: examples at which they end.
        steps: examples on a path, with both ends.
        kinds: of :data:`KINDS`; those of :func:`kinds_of` when None.
        progress: called with the number of examples decoded.

    Raises:
        IResNetError: when the model has no inverse, or no sphere.
        UnknownNameError: for an unknown kind.

    Reference:
        Sampling Generative Networks, White 2016, https://arxiv.org/abs/1609.04468 (spherical paths)

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.Affine(), ir.StandardNormal(2))
        >>> ends = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> (path,) = interpolate(flow, *ends, steps=3, kinds=["linear"])
        >>> path.x[0].tolist()
        [[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]
    """
    if steps < 2:
        raise IResNetError(f"a path has both ends: steps must be at least 2, got {steps}")
    bijection, flow = model.bijection, _flow_of(model)
    kinds = kinds or kinds_of(model)
    for kind in kinds:
        if kind not in KINDS:
            raise UnknownNameError("kind of path", kind, KINDS)
        if kind == "spherical" and flow is None:
            raise IResNetError("this model has no density, and so no sphere to stay on: use --kind linear")
    found = []
    with evaluation_mode(model):
        ends = bijection(first), bijection(last)
        t = torch.linspace(0, 1, steps, dtype=ends[0].dtype, device=ends[0].device).tolist()
        for i, kind in enumerate(kinds):
            if kind == "linear" or flow is None:
                z = torch.stack([(1 - at) * ends[0] + at * ends[1] for at in t], 1)
            else:
                mean, std = flow.base.moments()
                a, b = ((end - mean) / std for end in ends)
                z = torch.stack([mean + std * slerp(a, b, at) for at in t], 1)
            before = i * steps * len(first)
            rows = evaluate_in_batches(
                model, list(z), bijection.inverse, progress=lambda done, before=before: progress(before + done)
            )
            x = torch.stack(rows) if rows else first.new_empty(0, steps, *first.shape[1:])
            found.append(Interpolation(kind, x, None if flow is None else _bits_per_dim(flow, x)))
    return found


def kinds_of(model: Flow | Classifier | Hybrid) -> tuple[str, ...]:
    """Return the kinds of paths that a model has: spherical ones belong to a normal base density.

    Example:
        >>> import iresnet as ir
        >>> kinds_of(ir.zoo.build("toy-mlp", shape=(2,), blocks=1, hidden=8, base="mixture-normal"))
        ('linear',)
    """
    flow = _flow_of(model)
    return KINDS if flow is not None and flow.base.has_moments else ("linear",)


def _flow_of(model: Flow | Classifier | Hybrid) -> Flow | None:
    return None if isinstance(model, Classifier) else model.flow if isinstance(model, Hybrid) else model


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:  # (n, D), (n, D) -> (n, D)
    r"""Interpolate along the arc between two vectors (spherical linear interpolation).

    .. math:: \frac{\sin((1 - t) \omega)}{\sin \omega} a + \frac{\sin(t \omega)}{\sin \omega} b, \quad
        \omega = \angle(a, b)

    Between vectors that point in the same or in opposite directions, where the arc is not unique, it is linear.

    Args:
        a: vectors at t = 0.
        b: vectors at t = 1.
        t: position, from 0 to 1.

    Example:
        >>> slerp(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 0.5)
        tensor([[1.4142, 1.4142]])
    """
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).clamp(-1, 1)[:, None]
    angle = cosine.acos()
    sine = angle.sin()
    arc = sine > 1e-3
    safe = torch.where(arc, sine, 1.0)
    left = torch.where(arc, ((1 - t) * angle).sin() / safe, 1 - t)
    right = torch.where(arc, (t * angle).sin() / safe, t)
    return left * a + right * b


def _bits_per_dim(flow: Flow, x: Tensor) -> Tensor:  # (n, steps, *E) -> (n, steps)
    dims = math.prod(x.shape[2:])
    estimator = default_estimator(dims).drawing_from(torch.Generator().manual_seed(0))
    log_prob = flow.log_prob(x.flatten(0, 1), logdet=estimator)
    return -log_prob.view(x.shape[:2]) / (dims * math.log(2))
