"""Common part of the estimators: the recipe, the training, and what is kept of it."""

__all__ = ["FlowEstimator", "column_names", "validated", "varying_columns"]

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from iresnet.config import Config, load_config
from iresnet.data import Dataset, Split
from iresnet.devices import choose_device, kept_random_state
from iresnet.errors import DataError, Interrupted, RecipeError
from iresnet.evaluation.batching import evaluate_in_batches, input_batches
from iresnet.models import load_model
from iresnet.training import Callback, Trainer
from iresnet.training.callbacks import Event, Snapshot, Stepped
from iresnet.training.progress import ProgressBar
from iresnet.zoo import Model

RECIPE = "uci-density"
"""Recipe of tables, which the estimators change."""

N_VALIDATIONS = 20
"""Validations of a fit with early stopping, if none of them ends it."""

ROWS_AT_ONCE = 1024
"""Rows that are evaluated together."""

validated: Any = validate_data
"""The same function, whose types checkers guess from its defaults."""

# -- callbacks ---------------------------------------------------------------------------------------------------------


class _Deadline(Callback):
    """Request to stop after a number of seconds, none for no limit."""

    def __init__(self, trainer: Trainer, seconds: float | None, start: float):
        self.trainer = trainer
        self.end = None if seconds is None else start + seconds
        self.passed = False

    def __call__(self, event: Event) -> None:
        """Look at the clock after each step."""
        if isinstance(event, Stepped) and self.end is not None and time.monotonic() >= self.end:
            self.passed = self.trainer.stopping = True


class _BestModel(Callback):
    """Keeper of the sealed model of the snapshot with the smallest validation loss."""

    def __init__(self):
        self.loss, self.model = np.inf, None

    def __call__(self, event: Event) -> None:
        """Compare at snapshots."""
        if isinstance(event, Snapshot) and event.metrics["loss"] < self.loss:
            self.loss, self.model = event.metrics["loss"], event.model


# -- estimators --------------------------------------------------------------------------------------------------------


class FlowEstimator(BaseEstimator):
    """Estimator that trains a network of residual blocks on a standardized table.

    Its subclasses explain the parameters.
    """

    model_: Model
    mean_: np.ndarray  # (D,)
    scale_: np.ndarray  # (D,)
    n_features_in_: int

    def __init__(
        self,
        *,
        blocks: int = 8,
        hidden: int = 64,
        coeff: float = 0.97,
        epochs: int = 100,
        batch_size: int = 100,
        learning_rate: float = 0.02,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 5,
        max_seconds: float | None = None,
        options: Sequence[str] = (),
        device: str | torch.device = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ):
        self.blocks = blocks
        self.hidden = hidden
        self.coeff = coeff
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.max_seconds = max_seconds
        self.options = options
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def __getstate__(self) -> Any:
        if hasattr(self, "model_"):
            self.model_.cpu()  # to be read where there is no GPU
        return super().__getstate__()

    # -- fitting -------------------------------------------------------------------------------------------------------

    def _fit_model(
        self,
        x: np.ndarray,  # (N, D), no column constant
        y: np.ndarray | None = None,  # (N,), numbers of classes
        class_names: tuple[str, ...] = (),
    ) -> None:
        """Standardize in float64 and train.

        The sealed model is kept in float64, so that its values do not depend on how rows are batched.
        """
        start = time.monotonic()
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise RecipeError(f"max_seconds must be above 0, got '{self.max_seconds}'; None for no limit")
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.mean_, self.scale_ = x.mean(axis=0), x.std(axis=0)
        dataset = self._dataset(self._standardized(x), y, class_names, seed)
        config = self._config(len(dataset.train), seed, classify=y is not None)
        with kept_random_state(), tempfile.TemporaryDirectory(prefix="iresnet-") as folder:
            trainer = Trainer(config, dataset=dataset, device=self.device)
            model = self._train(trainer, Path(folder) / "run", start)
        self.model_ = model.double().requires_grad_(False)
        self.n_steps_ = trainer.step

    def _train(self, trainer: Trainer, folder: Path, start: float) -> Model:
        """Train until the end, a validation loss that no longer falls, or the deadline."""
        deadline, best = _Deadline(trainer, self.max_seconds, start), _BestModel()
        trainer.callbacks = [deadline, *([best] if self.early_stopping else [])]
        trainer.callbacks += [ProgressBar()] if self.verbose else []
        try:
            trainer.fit(folder)
        except Interrupted as error:
            if not deadline.passed:  # Ctrl-C: a search over parameters would go on after any other exception
                raise KeyboardInterrupt from error
        return best.model or load_model(trainer.run)

    def _dataset(self, x: np.ndarray, y: np.ndarray | None, class_names: tuple[str, ...], seed: int) -> Dataset:
        """Hold out rows for early stopping; without it nothing is chosen, so that some rows serve twice."""
        rows = np.arange(len(x))
        train, held_out = rows, rows[:ROWS_AT_ONCE]
        if self.early_stopping:
            train, held_out = train_test_split(rows, test_size=self.validation_fraction, random_state=seed, stratify=y)
        splits = [
            Split(torch.from_numpy(x[part]).float(), None if y is None else torch.from_numpy(y[part]).long())
            for part in (train, held_out)
        ]
        return Dataset(type(self).__name__, splits[0], splits[1], splits[1], levels=None, class_names=class_names)

    def _config(self, n_train: int, seed: int, *, classify: bool) -> Config:
        """Change the recipe by the parameters, and then by the options."""
        values = {
            "model.blocks": self.blocks,
            "model.hidden": self.hidden,
            "model.coeff": self.coeff,
            "model.spline": 0,  # its steepest slopes multiply the constants of classifiers
            "model.base": "diagonal-normal",  # whose latents can be looked at one by one
            "model.logdet": "null",  # the default, which owes nothing to chance after training
            "model.actnorm": "false" if classify else "true",  # its scales multiply the constants of classifiers
            "task.nll-weight": int(not classify),
            "task.ce-weight": int(classify),
            "optim.lr": self.learning_rate,
            "train.epochs": self.epochs,
            "train.batch-size": min(self.batch_size, n_train),
            "train.patience": self.patience if self.early_stopping else "null",
            "train.snapshot-every": max(1, self.epochs // N_VALIDATIONS) if self.early_stopping else self.epochs,
            "train.seed": seed,
            "tracker": "[]",
        }
        tokens = [token for name, value in values.items() for token in (f"--{name}", str(value))]
        return load_config(RECIPE, [*tokens, *map(str, self.options)])

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def _checked(self, X: ArrayLike) -> np.ndarray:  # (N, D)
        """Refuse rows before ``fit``, and others than it saw."""
        check_is_fitted(self)
        return validated(self, X, dtype=np.float64, reset=False)

    def _standardized(self, x: np.ndarray) -> np.ndarray:  # (N, D)
        return (x - self.mean_) / self.scale_

    def _evaluate(self, function: Callable[[Tensor], Tensor], x: np.ndarray) -> np.ndarray:  # (N, D) -> (N, ...)
        """Evaluate a function of the model, on its device, for a few rows at a time."""
        model = self.model_.to(choose_device(self.device))
        batches = input_batches(model, torch.from_numpy(x), ROWS_AT_ONCE, levels=None, seed=0)
        return torch.cat(evaluate_in_batches(model, batches, function)).cpu().numpy()


# -- standardization ---------------------------------------------------------------------------------------------------


def varying_columns(x: np.ndarray) -> np.ndarray:  # (N, D) -> (D,)
    """Return which columns have more than one value.

    Raises:
        DataError: when none has.
    """
    varying = np.ptp(x, axis=0) > 0
    if not varying.any():
        raise DataError(f"all {x.shape[1]} columns are constant in {len(x)} samples: there is nothing to fit")
    return varying


def column_names(estimator: BaseEstimator, positions: np.ndarray) -> str:
    """Name the first columns of some for a message."""
    names = getattr(estimator, "feature_names_in_", None)
    shown = [str(i) if names is None else f"'{names[i]}'" for i in positions[:8]]
    return ", ".join(shown) + (f" and {len(positions) - 8} more" if len(positions) > 8 else "")
