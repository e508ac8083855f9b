"""Activation normalization: a learned scale and shift for each channel, set from the first batch."""

__all__ = ["ActNorm"]

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from iresnet.bijections.base import Bijection, LogDets, Report, check_events
from iresnet.bounds import upper_bound
from iresnet.devices import is_transforming
from iresnet.errors import IResNetError
from iresnet.precision import without_autocast
from iresnet.solvers import Solver


class ActNorm(Bijection):
    r"""Scale and shift for each channel (or feature), initialized from data.

    .. math:: z = (x + b) e^{s}, \quad \log|\det dz/dx| = HW \sum_c s_c

    The first batch seen in train mode sets b and s such that each channel of z has mean 0 and variance 1 there (a
    constant one: mean 0), over all processes of a distributed run. That it happened is a buffer, so a loaded model is
    not initialized again.

    Args:
        channels: size of dimension 1 of the input.

    Shape:
        (N, C, \*) -> the same.

    Reference:
        Glow: Generative Flow with Invertible 1x1 Convolutions, Kingma and Dhariwal 2018,
        https://arxiv.org/abs/1807.03039

    Example:
        >>> x = 5 + 3 * torch.randn(1000, 2)
        >>> z = ActNorm(2)(x)
        >>> bool(z.mean().abs() < 1e-5), bool((z.std() - 1).abs() < 1e-2)
        (True, True)
    """

    initialized: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        # A number and no bool: averages of models, which take means of buffers too, know no means of those.
        self.register_buffer("initialized", torch.tensor(0.0))
        self._known_initialized = False  # spares the wait for the device that reading the buffer costs
        self.register_load_state_dict_pre_hook(_rename)
        self.register_load_state_dict_post_hook(_forget)

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`Bijection.forward`."""
        self._check(x)
        self._initialize_once(x)
        return (x + _broadcast(self.shift, x)) * _broadcast(self.log_scale.exp(), x)

    def forward_and_logdet(
        self,
        x: Tensor,
        *,
        logdet: LogDets | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Bijection.forward_and_logdet`."""
        z = self(x)
        return z, (self.log_scale.sum() * math.prod(x.shape[2:])).to(x.dtype).expand(len(x))

    def inverse(self, z: Tensor, *, solver: Solver | None = None, report: Report | None = None) -> Tensor:  # noqa: ARG002
        """See :meth:`Bijection.inverse`."""
        self._check(z)
        return z * _broadcast((-self.log_scale).exp(), z) - _broadcast(self.shift, z)

    def stretch(self, lipschitz: Callable[[nn.Module], float] = upper_bound) -> tuple[float, float]:  # noqa: ARG002
        """See :meth:`Bijection.stretch`."""
        scale = self.log_scale.detach().double().exp()
        return float(scale.min()), float(scale.max())

    def _check(self, x: Tensor) -> None:
        check_events(x, f"ActNorm({len(self.shift)})", (len(self.shift), ...))

    @torch.no_grad()
    def _initialize_once(self, x: Tensor) -> None:
        if not self.training or self._known_initialized:
            return
        if not bool(self.initialized):
            if is_transforming():
                raise IResNetError(
                    "ActNorm takes its scale from the first batch in train mode, which it cannot under transforms of "
                    "torch.func: run one batch through the model before"
                )
            with without_autocast(x.device):
                count, mean, variance = _moments(x)
            if not count:  # an empty batch: the next one will tell
                return
            self.shift.copy_(-mean)
            # A constant channel, such as a padded one, keeps its scale: dividing by nothing would blow up its shift.
            self.log_scale.copy_(-0.5 * torch.log(torch.where(variance > 1e-8, variance, 1.0)))
            self.initialized.fill_(1.0)
        self._known_initialized = True


def _rename(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:  # noqa: ARG001
    """Take the state of an older release."""
    if f"{prefix}initialised" in state:
        state[f"{prefix}initialized"] = state.pop(f"{prefix}initialised")


def _forget(module: nn.Module, incompatible_keys: Any) -> None:  # noqa: ARG001
    module._known_initialized = False  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]


def _broadcast(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.view(-1, *[1] * (x.dim() - 2))


def _moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """Count, mean and variance of each channel, over the batches of all processes."""
    values = x.transpose(0, 1).flatten(1).double()
    total = values.sum(1)
    sums = torch.stack([torch.full_like(total, values.shape[1]), total, values.square().sum(1)])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    mean = sums[1] / sums[0]
    return int(sums[0, 0]), mean, (sums[2] / sums[0] - mean.square()).clamp(min=0)
