"""Contractions whose layers are bounded together, by a quadratic constraint."""

__all__ = ["FeedThrough"]

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresnet.activations import MONOTONE, make_activation
from iresnet.context import ContextShift
from iresnet.errors import IResNetError
from iresnet.jacobian import Linearization, linearize_inner, linearizes
from iresnet.lipschitz import LipschitzLinear

_NORM = 0.999
"""Largest norm of V and S: from 1 on rounding could undo the certificate."""


class FeedThrough(nn.Module):
    r"""Feed-through network: each hidden layer takes x and the layer before it, and adds to the output.

    .. math::
        g(x) = c \, (2 T(x) - x) + b, \quad T(x) = \sum_k U_k^T z_k, \quad
        z_k = \sigma_k(U_k x + W_k z_{k-1}), \quad \mathrm{Lip}(g) \le c

    with activations :math:`\sigma_k(h) = \Psi_k \sigma(\Psi_k^{-1} h + b_k)`, :math:`\Psi_k` diagonal, whose slopes lie
    in [0, 1], and weights made of :math:`V_k = [B_k, A_k]` and S, all of norm at most 1:

    .. math:: U_k = B_k S_{k-1} + A_k S_k, \quad W_k = -2 B_k A_{k-1}^T

    Now let x, z and T be differences between two inputs. A slope in [0, 1] makes :math:`\langle h_k, z_k \rangle \ge
    |z_k|^2` of the arguments :math:`h_k = U_k x + W_k z_{k-1}`, and only neighbors among the :math:`V_k^T z_k` overlap:

    .. math::
        \langle x, T \rangle = \sum_k \langle U_k x, z_k \rangle
        \ge \sum_k |z_k|^2 - \langle W_k z_{k-1}, z_k \rangle
        \ge \Bigl| \sum_k V_k^T z_k \Bigr|^2 \ge \Bigl| S^T \sum_k V_k^T z_k \Bigr|^2 = |T|^2

    That is :math:`|2 T - x| \le |x|`: one quadratic constraint for all layers, with weights W of norm up to 2. A
    product of norms counts each layer by itself, so that units have to share the constant. Here g is -c x where no unit
    is active, and may be near c x where all are.

    Args:
        features: D, of input and output.
        hidden: size of the hidden layers.
        depth: number of dense layers, one more than hidden layers, at least 2.
        coeff: c, in (0, 1).
        activation: one of :data:`iresnet.activations.MONOTONE`.
        normalization: of V and S, see :data:`iresnet.normalization.NORMALIZATIONS`; a Euclidean one.
        n_steps: its iterations, the default of the normalization when None.
        context: features of a context that shifts the arguments of activations and the output; 0 without one.

    Shape:
        (N, D) -> the same.

    Raises:
        IResNetError: for a coefficient outside (0, 1), sizes that are too small, an activation without slopes in
            [0, 1], and a normalization in another norm.

    Reference:
        Monotone, Bi-Lipschitz, and Polyak-Lojasiewicz Networks, Wang, Dvijotham and Manchester 2024,
        https://arxiv.org/abs/2402.01344

    Example:
        >>> import iresnet as ir
        >>> g = ir.FeedThrough(2, 16, coeff=0.9)
        >>> g(torch.zeros(5, 2)).shape, round(ir.certify(g).blocks[0].upper, 4)
        (torch.Size([5, 2]), 0.9)
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        depth: int = 3,
        coeff: float | None = 0.9,
        activation: str = "elu",
        normalization: str = "cayley",
        n_steps: int | None = None,
        context: int = 0,
    ):
        super().__init__()
        if coeff is None or not 0 < coeff < 1:
            raise IResNetError(f"coeff, which bounds a feed-through network as a whole, lies in (0, 1), got {coeff}")
        if min(features, hidden) < 1 or depth < 2:
            raise IResNetError(
                "a feed-through network has features, hidden units and at least 2 dense layers, got "
                f"features={features}, hidden={hidden}, depth={depth}"
            )
        make_activation(activation)  # refuses unknown ones
        if activation not in MONOTONE:
            raise IResNetError(
                "a feed-through network takes activations whose slopes lie in [0, 1], one of "
                f"{', '.join(MONOTONE)}, got '{activation}'"
            )
        self.coeff, count = coeff, depth - 1
        options = {"normalization": normalization, "n_steps": n_steps}
        self.lift = LipschitzLinear(features, count * hidden, _NORM, bias=False, **options)
        self.layers = nn.ModuleList(
            LipschitzLinear(hidden * min(k + 1, 2), hidden, _NORM, **options) for k in range(count)
        )
        if self.lift.normalization.norm != 2:
            raise IResNetError(f"a feed-through network is bounded in the Euclidean norm, got '{normalization}'")
        self.log_scales = nn.Parameter(torch.zeros(count, hidden))
        self.bias = nn.Parameter(torch.zeros(features))
        self.activations = nn.ModuleList(
            nn.Sequential(*_shifts(context, hidden), make_activation(activation)) for _ in range(count)
        )
        self.shift = nn.Sequential(*_shifts(context, features))

    def weights(self) -> tuple[list[Tensor], list[Tensor]]:
        r"""Return :math:`U_1, \ldots, U_K` and :math:`W_2, \ldots, W_K`."""
        hidden = self.log_scales.shape[1]
        parts = self.lift.weight.split(hidden)
        into = [layer.weight.split(hidden, dim=1) for layer in self.layers]  # pyright: ignore[reportCallIssue]
        of_x = [into[0][0] @ parts[0]]  # the first V is A alone, the others are (B, A)
        of_x += [b @ s + a @ t for (b, a), (s, t) in zip(into[1:], pairwise(parts), strict=True)]
        return of_x, [-2 * b @ before[-1].mT for before, (b, _) in pairwise(into)]

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate; see the class."""
        return _feed_through(self, x).value


def _shifts(context: int, features: int) -> Sequence[nn.Module]:
    return [ContextShift(context, features)] if context else []


@linearizes(FeedThrough)
def _feed_through(g: FeedThrough, x: Tensor) -> Linearization:
    # Scales of units go into the weights on both sides, instead of into the units of each sample.
    of_x, between = g.weights()
    scales = g.log_scales.exp().unsqueeze(2)
    into = [u / scale for u, scale in zip(of_x, scales, strict=True)]
    out = [u * scale for u, scale in zip(of_x, scales, strict=True)]
    across = [w * before.mT / scale for w, (before, scale) in zip(between, pairwise(scales), strict=True)]
    layers: list[Linearization] = []
    for k, (layer, activation) in enumerate(zip(g.layers, g.activations, strict=True)):
        h = F.linear(x, into[k], layer.bias)  # pyright: ignore[reportArgumentType]
        layers.append(linearize_inner(activation, h + F.linear(layers[-1].value, across[k - 1]) if k else h))
    total = sum(layer.value @ u for layer, u in zip(layers, out, strict=True))

    def jvp(v: Tensor) -> Tensor:
        total, z = 0, v
        for k, layer in enumerate(layers):
            h = F.linear(v, into[k])
            z = layer.jvp(h + F.linear(z, across[k - 1]) if k else h)
            total = total + z @ out[k]
        return g.coeff * (2 * total - v)

    def vjp(w: Tensor) -> Tensor:
        total, h = 0, w
        for k in reversed(range(len(layers))):
            of_z = F.linear(w, out[k])
            h = layers[k].vjp(of_z + h @ across[k] if k + 1 < len(layers) else of_z)
            total = total + h @ into[k]
        return g.coeff * (2 * total - w)

    return Linearization(g.shift(g.coeff * (2 * total - x) + g.bias), jvp, vjp)
