"""Strategies of training in several processes: weights that are replicated (DDP) or sharded (FSDP2)."""

__all__ = [
    "Replicated",
    "SHARDINGS",
    "Sharded",
    "Strategy",
    "make_accelerator",
    "quietly",
]

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from iresnet.bijections import ResidualBlock
from iresnet.collectives import is_main, world_size
from iresnet.config import Config
from iresnet.devices import kept_random_state
from iresnet.errors import RecipeError
from iresnet.inputs import Inputs
from iresnet.models import build_model
from iresnet.precision import PRECISIONS
from iresnet.training.optim import load_optimizer, make_optimizer
from iresnet.training.task import Task
from iresnet.zoo import Model

# -- accelerate --------------------------------------------------------------------------------------------------------


def make_accelerator(precision: str, device: torch.device) -> Accelerator:
    """Make the accelerator of this process, which is alone or one of several.

    Args:
        precision: a key of :data:`iresnet.precision.PRECISIONS`.
        device: of this process.
    """
    mixed = "no" if PRECISIONS[precision] is None else precision
    # Buffers need no broadcast: each process computes them from weights and batches that are the same for all.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    # On the CPU accelerate takes each of several processes for one that is alone, unless it is told.
    cpu = world_size() > 1 and device.type == "cpu"
    # It would hold all runs of this process to the precision and the device of the first.
    AcceleratorState._reset_state(reset_partial_state=True)
    with _environment_variable("ACCELERATE_TORCH_DEVICE", str(device)):
        return Accelerator(mixed_precision=mixed, cpu=cpu, kwargs_handlers=[ddp])


@contextmanager
def _environment_variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@contextmanager
def quietly() -> Iterator[None]:
    """Hide warnings of torch about options that accelerate passes, and about the strides of gradients."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        # The strides of 1x1 kernels have two descriptions.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        yield


# -- strategies --------------------------------------------------------------------------------------------------------


State = dict[str, Any]
Batch = tuple[Tensor, Tensor | None]


class Strategy(ABC):
    """Placement of a model and its optimizer on the processes.

    All processes have to call each method, and the first one gets what it returns.

    Attributes:
        task: prepared by accelerate.
        optimizer: prepared by accelerate.
    """

    task: nn.Module
    optimizer: Any

    @abstractmethod
    def model_state(self) -> State:
        """Return the full state of the model."""

    @abstractmethod
    def optimizer_state(self) -> State:
        """Return the full state of the optimizer."""

    @abstractmethod
    def load(self, model: State, optimizer: State) -> None:
        """Restore full states, which all processes pass."""

    @abstractmethod
    def full_model(self) -> Model:
        """Return the model with all its weights, to be copied."""


class Replicated(Strategy):
    """Copies of all weights in every process, with averaged gradients (DDP).

    Args:
        accelerator: of this process.
        task: not prepared.
        config: the recipe.
        inputs: unused.
        first_batch: unused.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        task: Task,
        config: Config,
        inputs: Inputs,  # noqa: ARG002
        first_batch: Callable[[], Batch],  # noqa: ARG002
    ):
        self.own = task.to(accelerator.device)  # before there is an optimizer of its parameters
        self.task, self.optimizer = accelerator.prepare(task, make_optimizer(task.model, config.optim))

    def model_state(self) -> State:
        """Implement :meth:`Strategy.model_state`."""
        return self.own.model.state_dict()

    def optimizer_state(self) -> State:
        """Implement :meth:`Strategy.optimizer_state`."""
        return self.optimizer.state_dict()

    def load(self, model: State, optimizer: State) -> None:
        """Implement :meth:`Strategy.load`."""
        self.own.model.load_state_dict(model)
        load_optimizer(self.optimizer, optimizer)

    def full_model(self) -> Model:
        """Implement :meth:`Strategy.full_model`."""
        return self.own.model  # pyright: ignore[reportReturnType]


class Sharded(Strategy):
    """Shard of the weights, their gradients and the optimizer's state in each process (FSDP2).

    Each residual block is gathered when it is used, forward and backward, and freed again. So its weights are
    normalized by the block itself, and not for the whole model at once. ActNorm is initialized before sharding, on the
    CPU, where the model is built: what a forward pass writes into gathered weights is lost.

    Args:
        accelerator: of this process.
        task: not prepared, on the CPU.
        config: the recipe.
        inputs: facts about the data that the model needs.
        first_batch: returns the first batch.

    Raises:
        RecipeError: when there is one process.
    """

    def __init__(
        self, accelerator: Accelerator, task: Task, config: Config, inputs: Inputs, first_batch: Callable[[], Batch]
    ):
        if world_size() == 1:
            raise RecipeError("--train.sharding fsdp spreads a model over processes: use --processes N, or torchrun")
        self.own, self.config, self.inputs = task, config, inputs
        _initialize(task, *first_batch())
        _shard(task, accelerator.device.type)
        optimizer = make_optimizer(task.model, config.optim)
        self.task = accelerator.prepare_model(task, device_placement=False, evaluation_mode=True)  # not DDP
        self.optimizer = accelerator.prepare_optimizer(optimizer)

    def model_state(self) -> State:
        """Implement :meth:`Strategy.model_state`."""
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        return get_model_state_dict(self.own.model, options=_full_states())

    def optimizer_state(self) -> State:
        """Implement :meth:`Strategy.optimizer_state`."""
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return get_optimizer_state_dict(self.own, self.optimizer.optimizer, options=_full_states())

    def load(self, model: State, optimizer: State) -> None:
        """Implement :meth:`Strategy.load`."""
        from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

        set_model_state_dict(self.own.model, model, options=_full_states())
        set_optimizer_state_dict(self.own, self.optimizer.optimizer, optimizer, options=_full_states())

    def full_model(self) -> Model:
        """Implement :meth:`Strategy.full_model`."""
        state = self.model_state()
        if not is_main():
            return self.own.model  # pyright: ignore[reportReturnType]
        with kept_random_state():
            model = build_model(self.config, self.inputs)
        model.load_state_dict(state)
        return model


def _full_states() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True)


@torch.no_grad()
def _initialize(task: Task, x: Tensor, y: Tensor | None) -> None:
    """Initialize ActNorm from the first batch of all processes, and leave everything else as it is."""
    buffers = {name: b.clone() for name, b in task.named_buffers() if not name.endswith("initialized")}
    with kept_random_state():
        task.train()(x.cpu(), None if y is None else y.cpu())
    task.load_state_dict(buffers, strict=False)


def _shard(task: Task, device: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device, (world_size(),))
    for module in list(task.modules()):
        if isinstance(module, ResidualBlock):
            fully_shard(module, mesh=mesh)
            register_fsdp_forward_method(module, "forward_and_logdet")
    fully_shard(task, mesh=mesh)


SHARDINGS: dict[str, Callable[..., Strategy]] = {"ddp": Replicated, "fsdp": Sharded}
"""Strategies by the value of the option ``train.sharding``."""
