"""Optimizers (Muon among them), learning-rate schedules, and averaged weights."""

# pyright: reportPrivateImportUsage=false

__all__ = [
    "Ema",
    "Muon",
    "OPTIMIZERS",
    "SCHEDULES",
    "full_tensor",
    "keep_on_device",
    "learning_rate",
    "load_optimizer",
    "make_optimizer",
    "orthogonalize",
    "set_learning_rate",
    "total_steps",
    "shard_like",
    "warn_of_new_rates",
]

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from iresnet.config import Config, OptimConfig, TrainConfig, check
from iresnet.devices import device_of
from iresnet.errors import RunWarning
from iresnet.lipschitz import LipschitzLayer, lipschitz_layers
from iresnet.normalization import normalize_all

# -- sharded tensors ---------------------------------------------------------------------------------------------------


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, and return any other as it is. All processes have to take part."""
    if not dist.is_initialized():
        return tensor
    from torch.distributed.tensor import DTensor  # slow to import

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(reference: Tensor, tensor: Tensor) -> Tensor:
    """Shard a full tensor like ``reference``."""
    if not dist.is_initialized():
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(reference, DTensor):
        return tensor
    return distribute_tensor(tensor, reference.device_mesh, reference.placements)


def _local(tensor: Tensor) -> Tensor:
    """Return the shard of this process, which shares its memory, and any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportAttributeAccessIssue]


# -- Muon --------------------------------------------------------------------------------------------------------------


_QUINTICS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845749493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
)
"""Coefficients a, b, c of X <- (a + b X X^T + c (X X^T)^2) X, each step's the best after the steps before it."""


def orthogonalize(
    matrices: Tensor,  # (*, m, n)
) -> Tensor:
    r"""Replace all singular values by about 1, which gives the polar factor, from matrix products alone.

    .. math:: U S V^T \mapsto U V^T

    Singular values above 0.001 of the Frobenius norm become 1 within 0.002; smaller ones come closer to 1, and 0 stays.

    Args:
        matrices: any number of matrices of one shape.

    Reference:
        The Polar Express: Optimal Matrix Sign Methods and Their Application to the Muon Algorithm, Amsel et al. 2025,
        https://arxiv.org/abs/2505.16932

    Example:
        >>> Q = orthogonalize(torch.tensor([[0.0, -3.0], [0.02, 0.0]]))
        >>> bool(torch.allclose(Q, torch.tensor([[0.0, -1.0], [1.0, 0.0]]), atol=2e-3))
        True
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    # The first step takes singular values up to 1, rounding included. A matrix of zeros stays one.
    x = x / (1.01 * x.norm(dim=(-2, -1), keepdim=True)).clamp(min=torch.finfo(x.dtype).tiny)
    x = x.reshape(-1, *x.shape[-2:])
    for a, b, c in _QUINTICS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.view(*matrices.shape[:-2], *x.shape[-2:])
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    r"""Muon: steepest descent in the spectral norm for Lipschitz weights, and Adam for all other parameters.

    A Lipschitz weight W, a kernel as the matrix (out, in kh kw), moves by

    .. math::
        M \leftarrow \mu M + (1 - \mu) G, \quad
        W \leftarrow W - \eta \sqrt{\max(1, m/n)} \; \mathrm{polar}((1 - \mu) G + \mu M),

    and is then replaced by its normalized weight, which does not change the function of the layer (with ``aol``, in the
    limit of its steps). Otherwise W would
    grow, since the loss does not depend on its norm, and steps of one size would turn it ever less.

    Args:
        model: all its parameters are trained; its Lipschitz layers are found inside.
        lr: :math:`\eta`, the spectral norm of a step.
        adam_lr: learning rate of the other parameters.
        momentum: :math:`\mu`.
        betas: of Adam's averages.
        weight_decay: each step first multiplies every parameter by 1 - lr * weight_decay.

    Reference:
        Muon: An optimizer for hidden layers in neural networks, Jordan et al. 2024,
        https://kellerjordan.github.io/posts/muon; Adam: A Method for Stochastic Optimization, Kingma and Ba 2014,
        https://arxiv.org/abs/1412.6980

    Example:
        >>> from iresnet.lipschitz import LipschitzLinear
        >>> layer = LipschitzLinear(3, 3, bias=False)
        >>> optimizer = Muon(layer, lr=0.1)
        >>> before = layer.weight.detach()
        >>> layer.weight.trace().backward()
        >>> optimizer.step()
        >>> bool(layer.weight.trace() < before.trace())
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.02,
        adam_lr: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
    ):
        self.layers = lipschitz_layers(model)
        weights = [layer.unnormalized_weight for layer in self.layers]
        own = {id(weight) for weight in weights}
        others = [p for p in model.parameters() if id(p) not in own]
        defaults = {"weight_decay": weight_decay, "momentum": momentum, "betas": betas, "step": 0}
        groups = [{"params": weights, "lr": lr}, {"params": others, "lr": adam_lr}]
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        lipschitz, others = self.param_groups
        self._step_spectral(lipschitz)
        self._step_adam(others)
        return loss

    def _step_spectral(self, group: dict[str, Any]) -> None:
        layers = [layer for layer in self.layers if layer.unnormalized_weight.grad is not None]
        if not layers:
            return
        by_shape: dict[torch.Size, list[Tensor]] = {}  # weights of one shape are orthogonalized together
        for layer in layers:
            by_shape.setdefault(layer.unnormalized_weight.shape, []).append(layer.unnormalized_weight)
        for weights in by_shape.values():
            grads = [weight.grad for weight in weights if weight.grad is not None]
            averages = [self._average(weight, "average") for weight in weights]
            torch._foreach_lerp_(averages, grads, 1 - group["momentum"])
            directions = map(full_tensor, torch._foreach_lerp(grads, averages, group["momentum"]))
            steps = orthogonalize(torch.stack(list(directions)).flatten(2))
            steps = group["lr"] * math.sqrt(max(1.0, steps.shape[-2] / steps.shape[-1])) * steps
            _decay(weights, group)
            torch._foreach_sub_(
                weights, [shard_like(w, step.view(w.shape)) for w, step in zip(weights, steps, strict=True)]
            )
        self._replace_by_normalized([layer for layer in layers if layer.normalization.idempotent])

    def _replace_by_normalized(self, layers: list[LipschitzLayer]) -> None:
        if not layers:
            return
        weights = [layer.unnormalized_weight for layer in layers]
        normalizations = [layer.normalization for layer in layers]
        normalized = normalize_all(normalizations, list(map(full_tensor, weights)), advance=False)
        shards = map(shard_like, weights, normalized)
        torch._foreach_copy_(list(map(_local, weights)), list(map(_local, shards)))

    def _step_adam(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        grads = [p.grad for p in params if p.grad is not None]
        first, second = ([self._average(p, name) for p in params] for name in ("first", "second"))
        beta1, beta2 = group["betas"]
        group["step"] += 1
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        sizes = torch._foreach_sqrt(second)
        torch._foreach_div_(sizes, (1 - beta2 ** group["step"]) ** 0.5)
        torch._foreach_add_(sizes, 1e-8)
        updates = torch._foreach_div(first, sizes)
        torch._foreach_mul_(updates, group["lr"] / (1 - beta1 ** group["step"]))
        _decay(params, group)
        torch._foreach_sub_(params, updates)

    def _average(self, parameter: Tensor, name: str) -> Tensor:
        """Return a running average of the parameter's gradients, 0 at first."""
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        return state[name]


def _decay(params: list[Tensor], group: dict[str, Any]) -> None:
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])


# -- averaged weights --------------------------------------------------------------------------------------------------


M = TypeVar("M", bound=nn.Module)


class Ema(Generic[M]):
    r"""Exponential moving average of weights, which gives better likelihoods and samples than the last weights.

    .. math:: \bar w \leftarrow d \bar w + (1 - d) w, \quad d = \min(\mathrm{decay}, n / (n + 9))

    at the n-th update, counted from 0, so that the first weights are soon forgotten. Buffers are copied.

    Args:
        model: whose weights are averaged.
        decay: between 0 and 1.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> ema = Ema(layer, 0.5)
        >>> for weight in (1.0, 2.0):
        ...     _ = nn.init.constant_(layer.weight, weight)
        ...     ema.update(layer)
        >>> round(ema.model.weight.item(), 6)
        1.9
    """

    def __init__(self, model: M, decay: float):
        self.decay = decay
        self.model: M = copy.deepcopy(model).requires_grad_(False)
        self.n_updates = torch.zeros((), device=device_of(model))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the current weights of the model."""
        decay = (self.n_updates / (self.n_updates + 9)).clamp(max=self.decay)
        averages: list[Tensor] = list(self.model.parameters())
        differences = torch._foreach_sub(list(model.parameters()), averages)
        torch._foreach_mul_(differences, 1 - decay)
        torch._foreach_add_(averages, differences)
        if buffers := list(self.model.buffers()):
            torch._foreach_copy_(buffers, list(model.buffers()))
        self.n_updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return everything that an update depends on."""
        return {"n_updates": int(self.n_updates), "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state from :meth:`state_dict`."""
        self.n_updates.fill_(state["n_updates"])
        self.model.load_state_dict(state["model"])


# -- by name -----------------------------------------------------------------------------------------------------------


OPTIMIZERS: dict[str, Callable[[nn.Module, OptimConfig], torch.optim.Optimizer]] = {
    "adam": lambda model, c: torch.optim.Adam(model.parameters(), c.lr, weight_decay=c.weight_decay, foreach=True),
    "adamax": lambda model, c: torch.optim.Adamax(model.parameters(), c.lr, weight_decay=c.weight_decay, foreach=True),
    "adamw": lambda model, c: torch.optim.AdamW(model.parameters(), c.lr, weight_decay=c.weight_decay, foreach=True),
    "muon": lambda model, c: Muon(model, lr=c.lr, adam_lr=c.adam_lr, momentum=c.momentum, weight_decay=c.weight_decay),
    "sgd": lambda model, c: torch.optim.SGD(
        model.parameters(), c.lr, c.momentum, weight_decay=c.weight_decay, nesterov=c.nesterov, foreach=True
    ),
}
"""Optimizers of a model, by name."""


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer of a configuration.

    Raises:
        UnknownNameError: for an unknown optimizer or schedule.
        RecipeError: for a value out of its limits, or Nesterov momentum without momentum.

    Example:
        >>> type(make_optimizer(nn.Linear(2, 2), OptimConfig(name="sgd"))).__name__
        'SGD'
    """
    check(Config(optim=config))
    optimizer = OPTIMIZERS[config.name](model, config)
    for group in optimizer.param_groups:
        group["lr_ratio"] = group["lr"] / config.lr
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of an optimizer from :func:`make_optimizer`; groups with their own rate keep the ratio."""
    for group in optimizer.param_groups:
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(rate * group["lr_ratio"])  # a fill, since a copy from the host would be waited for
        else:
            group["lr"] = rate * group["lr_ratio"]


def keep_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep an optimizer's rates and counts of steps on the device, so that a step reads no number of the host.

    Args:
        optimizer: from :func:`make_optimizer`, before its first step.
        device: of its parameters.
    """
    for group in optimizer.param_groups:
        for name in {"lr", "step"} & set(group):
            group[name] = torch.as_tensor(group[name], dtype=torch.float32).to(device)
        if "capturable" in group:
            group["capturable"] = True
        elif "fused" in group:  # torch's SGD takes a rate on the device only there
            group["fused"], group["foreach"] = True, False


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore an optimizer's state, which may come from another kind of device."""
    own = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, before in zip(optimizer.param_groups, own, strict=True):
        group.update({name: before[name] for name in ("lr", "capturable", "fused", "foreach") if name in before})
        if "step" in group:
            n = float(group["step"])
            group["step"] = torch.full_like(before["step"], n) if torch.is_tensor(before["step"]) else n


def _cosine(config: OptimConfig, epoch: float, epochs: float) -> float:
    progress = (epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


SCHEDULES: dict[str, Callable[[OptimConfig, float, float], float]] = {
    "constant": lambda c, epoch, epochs: 1.0,
    "cosine": _cosine,
    "linear": lambda c, epoch, epochs: min(1.0, (1 - epoch / epochs) / max(1 - c.decay_from, 1e-9)),
    "step": lambda c, epoch, epochs: c.factor ** sum(epoch >= milestone for milestone in c.milestones),
}
"""Factors of the learning rate by name, as functions of the options, the fractional epoch and the epochs of the run."""


def learning_rate(config: OptimConfig, epoch: float, epochs: float) -> float:
    """Return the learning rate at a point of the run, a pure function: a resumed run has no schedule to restore.

    Args:
        config: options of the optimizer.
        epoch: epochs done, with fraction.
        epochs: epochs of the whole run, with fraction where it ends within one.

    Example:
        >>> config = OptimConfig(lr=0.1, warmup_epochs=10, schedule="step", milestones=(60, 120, 160))
        >>> [round(learning_rate(config, epoch, 200), 6) for epoch in (5, 10, 60, 199)]
        [0.05, 0.1, 0.02, 0.0008]
    """
    warmup = min(1.0, epoch / config.warmup_epochs) if config.warmup_epochs else 1.0
    return config.lr * warmup * SCHEDULES[config.schedule](config, epoch, epochs)


def total_steps(train: TrainConfig, steps_per_epoch: int) -> int:
    """Count the steps of a whole run: those of its epochs, or fewer where it is to stop before.

    Example:
        >>> total_steps(TrainConfig(epochs=3), 20), total_steps(TrainConfig(epochs=3, max_steps=25), 20)
        (60, 25)
    """
    steps = train.epochs * steps_per_epoch
    return steps if train.max_steps is None else min(steps, train.max_steps)


def warn_of_new_rates(config: OptimConfig, step: int, before: int, after: int, steps_per_epoch: int) -> None:
    """Warn when a run that is extended goes on with other learning rates, as schedules that know its end do.

    Args:
        config: options of the optimizer.
        step: steps done.
        before: steps that the run was started for.
        after: steps of the extended run.
        steps_per_epoch: steps of an epoch.

    Warns:
        RunWarning: names both rates.
    """
    epoch, short, long = (n / steps_per_epoch for n in (step, before, after))
    old, new = learning_rate(config, epoch, short), learning_rate(config, epoch, long)
    if old != new:
        warnings.warn(
            f"the run goes on to {long:g} epochs in place of {short:g}: from here on its learning rate is that of "
            f"the {config.schedule} schedule over all of them, {new:.3g} after epoch {epoch:g} where it was {old:.3g}",
            RunWarning,
            stacklevel=2,
        )
