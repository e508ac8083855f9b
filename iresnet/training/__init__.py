"""Training: the loss, the loop with its callbacks, and predictions of its cost."""

__all__ = ["Callback", "Task", "Trainer", "dry_run", "train"]

from iresnet.training.callbacks import Callback
from iresnet.training.dryrun import dry_run
from iresnet.training.task import Task
from iresnet.training.trainer import Trainer, train
