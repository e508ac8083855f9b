"""Whether a training fits into memory, told before it begins."""

__all__ = ["check_model_fits", "check_step_fits"]

import copy
import math

import torch

from iresnet import zoo
from iresnet.capacity import SAMPLE_BYTES, check_room, parameter_bytes
from iresnet.config import Config
from iresnet.data import Dataset
from iresnet.errors import IResNetError
from iresnet.precision import use_precision
from iresnet.processes import world_size
from iresnet.runs import Inputs, model_options
from iresnet.training.counting import Count, StepCounts, count
from iresnet.training.randomness import kept_random_state
from iresnet.training.task import Task

COPIES = 3
"""Numbers that a training keeps for each parameter, at least: itself, its gradient, and a sealed copy at snapshots."""

SIZES = (2, 3)
"""Examples of the two batches from which the memory of a step on any batch follows; a head needs two."""


def check_model_fits(config: Config, inputs: Inputs, device: torch.device) -> None:
    """Refuse a model too large to be trained, without building it.

    Raises:
        RecipeError: says how much memory it takes, how much there is, and what to lower.
    """
    name, options = model_options(config, inputs)
    try:
        size = parameter_bytes(name, inputs.shape, options) if name in zoo.ARCHITECTURES else 0.0
    except IResNetError:  # which is told when it is built
        return
    except OverflowError:  # of the count itself
        size = math.inf
    remedy = "lower --model.hidden or --model.blocks" + ", or --model.depth" * ("depth" in options)
    check_room(COPIES * size, device, "a training of this model", remedy)


def check_step_fits(task: Task, config: Config, dataset: Dataset, device: torch.device) -> None:
    """Refuse a batch too large for a step, from steps of a copy of the task on a few examples; and too many pictures.

    Raises:
        RecipeError: says how much memory a step takes, how much there is, and what to lower.
    """
    n = -(-config.train.batch_size // (world_size() * config.train.accumulate))
    with kept_random_state(), torch.compiler.set_stance("force_eager"):
        own = copy.deepcopy(task).to(device).train()
        counted = [_count_step(own, config, dataset, size, device) for size in SIZES]
    memory = StepCounts(SIZES, *counted).at(n).memory
    remedy = "lower --train.batch-size"
    if n > 2:
        remedy += ", or raise --train.accumulate"
    check_room(memory, device, f"a step on {n} examples", remedy)
    n = config.train.n_pictures
    check_room(
        SAMPLE_BYTES * n * dataset.train.x[0].numel(), device, f"drawing {n} samples", "lower --train.n-pictures"
    )


def _count_step(task: Task, config: Config, dataset: Dataset, size: int, device: torch.device) -> Count:
    y = dataset.train.y
    batch = dataset.train.x[:size].to(device), None if y is None else y[:size].to(device)

    def step() -> None:
        task.zero_grad()
        with use_precision(config.train.precision, device):
            loss, _ = task(*batch)
        loss.backward()

    return count(step)
