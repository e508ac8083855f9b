"""Paths between examples, through the latent space."""

__all__ = ["KINDS", "Path", "paths", "slerp"]

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iresnet.classifiers import Classifier, Hybrid
from iresnet.errors import IResNetError, UnknownNameError
from iresnet.evaluation.draws import shared
from iresnet.evaluation.likelihood import default_estimator
from iresnet.flows import Flow
from iresnet.lipschitz import hold_weights

KINDS = ("linear", "spherical")
"""Ways through the latent space."""


@dataclass(frozen=True)
class Path:
    r"""Examples on the way between pairs of examples.

    Attributes:
        kind: one of :data:`KINDS`.
        x: the examples, (pairs, steps, \*E): the first and the last are those of the pair.
        bits_per_dim: -log p(x) / (D log 2) of them, (pairs, steps); None without a density.
    """

    kind: str
    x: Tensor
    bits_per_dim: Tensor | None


@torch.no_grad()
def paths(
    model: Flow | Classifier | Hybrid,
    first: Tensor,  # (n, *E)
    last: Tensor,  # (n, *E)
    *,
    steps: int = 9,
    kinds: Sequence[str] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Path]:
    r"""Go from one example to another through the latent space, in equal steps.

    ``linear`` paths are straight, :math:`(1 - t) z_0 + t z_1`. In many dimensions the points of a normal density lie
    near a sphere, and a straight path leaves it: at its middle the latent is shorter than any sample. ``spherical``
    paths stay near the sphere (:func:`slerp`), in standardized coordinates: a learned mean is subtracted and a learned
    standard deviation divided by, or there would be no sphere. A classifier has no density, so its paths are straight,
    through its features; with injective padding those in between may have no example, and what the
    inverse gives is shown.

    Args:
        model: the model.
        first: where paths begin, on the scale of the data.
        last: where they end.
        steps: examples on a path, with both ends.
        kinds: of :data:`KINDS`; all that the model has when None.
        progress: called with the number of examples decoded.

    Raises:
        IResNetError: when the model has no inverse, or no sphere.
        UnknownNameError: for an unknown kind.

    Reference:
        Sampling Generative Networks, White 2016, https://arxiv.org/abs/1609.04468 (spherical paths)

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.Affine(), ir.StandardNormal(2))
        >>> path = paths(flow, torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), steps=3, kinds=["linear"])[0]
        >>> path.x[0].tolist()
        [[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]
    """
    if steps < 2:
        raise IResNetError(f"a path has both ends: steps must be at least 2, got {steps}")
    bijection = model.bijection
    flow = None if isinstance(model, Classifier) else model.flow if isinstance(model, Hybrid) else model
    kinds = kinds or (KINDS if flow else ("linear",))
    ways = {kind: _way(kind, flow) for kind in kinds}
    found, done = [], 0
    with hold_weights(model):
        ends = bijection(first), bijection(last)
        t = torch.linspace(0, 1, steps, dtype=ends[0].dtype, device=ends[0].device)
        for kind, way in ways.items():
            z = torch.stack([way(*ends, float(at)) for at in t], 1)
            x = []
            for part in shared(list(z), bijection.inverse):
                x.append(part)
                progress(done := done + steps)
            x = torch.stack(x) if x else first.new_empty(0, steps, *first.shape[1:])
            found.append(Path(kind, x, None if flow is None else _bits(flow, x)))
    return found


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:  # (n, D), (n, D) -> (n, D)
    r"""Go along the arc between two vectors.

    .. math:: \frac{\sin((1 - t) \omega)}{\sin \omega} a + \frac{\sin(t \omega)}{\sin \omega} b, \quad
        \omega = \angle(a, b)

    Vectors that point in the same or in opposite directions have no arc of their own: between them it is straight.

    Args:
        a: where it begins.
        b: where it ends.
        t: how far, from 0 to 1.

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


def _way(kind: str, flow: Flow | None) -> Callable[[Tensor, Tensor, float], Tensor]:
    if kind not in KINDS:
        raise UnknownNameError("kind of path", kind, KINDS)
    if kind == "linear":
        return lambda a, b, t: (1 - t) * a + t * b
    if flow is None:
        raise IResNetError("this model has no density, and so no sphere to stay on: use --kind linear")
    mean, std = flow.base.moments()
    return lambda a, b, t: mean + std * slerp((a - mean) / std, (b - mean) / std, t)


def _bits(flow: Flow, x: Tensor) -> Tensor:  # (n, steps, *E) -> (n, steps)
    dims = math.prod(x.shape[2:])
    estimator = default_estimator(dims).drawing_from(torch.Generator().manual_seed(0))
    log_prob = flow.log_prob(x.flatten(0, 1), logdet=estimator)
    return -log_prob.view(x.shape[:2]) / (dims * math.log(2))
