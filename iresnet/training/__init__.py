"""Training: what is minimized, how, and what is written on the way."""

__all__ = ["Callback", "Task", "dry_run", "train"]

from iresnet.training.callbacks import Callback
from iresnet.training.dryrun import dry_run
from iresnet.training.loop import train
from iresnet.training.task import Task
