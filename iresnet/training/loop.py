"""The training loop."""

__all__ = [
    "Best",
    "train",
]

import math
import threading
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from iresnet.certificates import Certificate, excesses
from iresnet.config import Config
from iresnet.data import Batches, training_batches
from iresnet.data import load as load_data
from iresnet.data.columns import describe
from iresnet.devices import (
    choose_device,
    describe_device,
    deterministic_algorithms,
    kept_random_state,
    random_state,
    seed_all,
    set_random_state,
)
from iresnet.errors import Interrupted, RunError, RunWarning
from iresnet.files import locked
from iresnet.inputs import Inputs
from iresnet.interrupts import stop_requests
from iresnet.models import build_model, inputs_of, save_model
from iresnet.processes import agreed, average, joined, restarted, world_size
from iresnet.runs import Run
from iresnet.series import own_lengths
from iresnet.training.callbacks import (
    BadStep,
    Callback,
    Event,
    JsonlMetrics,
    Pictures,
    Snapshot,
    Spending,
    Started,
    Stepped,
    Stopped,
    block_states,
    make_drawing,
)
from iresnet.training.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from iresnet.training.distributed import SHARDINGS, make_accelerator, quietly
from iresnet.training.dryrun import check_model_fits, check_step_fits
from iresnet.training.optim import Ema, learning_rate
from iresnet.training.settings import check_same, check_settings
from iresnet.training.step import NotFinite, Skipped, Step, check_weights, means_of
from iresnet.training.task import Task, make_task
from iresnet.training.tracking import make_trackings
from iresnet.zoo import Model

# -- the best snapshot -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Best:
    """The snapshot with the smallest validation loss so far.

    Attributes:
        step: steps done at it, none before the first snapshot.
        loss: its validation loss.
        waited: snapshots since then.

    Example:
        >>> best = Best().updated(10, 2.0).updated(20, 1.5).updated(30, 1.7)
        >>> best
        Best(step=20, loss=1.5, waited=1)
        >>> best.exhausted(patience=1), best.exhausted(patience=2), best.exhausted(patience=None)
        (True, False, False)
    """

    step: int | None = None
    loss: float | None = None
    waited: int = 0

    def updated(self, step: int, loss: float) -> "Best":
        """The best after another snapshot; a loss that is not finite is none."""
        if math.isfinite(loss) and (self.loss is None or loss < self.loss):
            return Best(step, loss)
        return Best(self.step, self.loss, self.waited + 1)

    def exhausted(self, patience: int | None) -> bool:
        """Whether so many snapshots in a row were no better."""
        return patience is not None and self.waited >= patience


# -- the loop ----------------------------------------------------------------------------------------------------------


def train(
    config: Config,
    out: str | Path,
    *,
    data_dir: str | Path | None = None,
    device: str | torch.device = "auto",
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train a model into a run folder.

    Everything random is a function of the seed: the same configuration gives the same weights, also when the run was
    interrupted and resumed in between. Under torchrun the processes train one model together, each on its part of
    every batch, and the first one writes; one that torchrun restarts resumes the run by itself.

    Args:
        config: the recipe.
        out: the run folder, new unless resumed.
        data_dir: where data sets are looked for first.
        device: where to train, see :func:`~iresnet.devices.choose_device`; each of several processes takes a GPU of its
            own.
        resume: continue the run in ``out``.
        callbacks: told of every event, after the metrics file and the pictures.

    Returns:
        The run folder, with the sealed model in it.

    Raises:
        IResNetError: for anything in the configuration, the data or the folder that cannot be used; nothing is
            written then.
        Interrupted: on SIGINT or SIGTERM, after saving.
        ProcessLost: when another process of the run has ended.
    """
    with joined(), quietly(), deterministic_algorithms(config.train.deterministic):
        trainer = _Trainer(config, data_dir, choose_device(device))
        main = trainer.accelerator.is_main_process
        resume = resume or (restarted() and Run(out).config_file.exists())
        run = Run.open(out) if resume else Run.free(out) if main else Run(out)
        with locked(run.path) if main else nullcontext():
            trainer.open(run, resume=resume)
            trainer.callbacks += callbacks if main else ()
            trainer.fit(run)
    return run


class _Trainer:
    """The pieces of a run: made and checked first, so that bad input is found before anything is written."""

    def __init__(self, config: Config, data_dir: str | Path | None, device: torch.device):
        check_settings(config)
        self.config, self.data_dir = config, data_dir
        self.dataset = dataset = load_data(config.data.name, data_dir, **config.data.options)
        self.accelerator = make_accelerator(config.train.precision, device)
        self.inputs: Inputs = inputs_of(dataset, config.task.kind)
        check_model_fits(config, self.inputs, self.accelerator.device)
        task = make_task(config, dataset, self.inputs)
        self.batches = training_batches(
            dataset,
            config.train.batch_size,
            buffer=config.data.shuffle_buffer,
            device=self.accelerator.device,
            seed=config.train.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        check_step_fits(task, config, dataset, self.accelerator.device)
        seed_all(config.train.seed + 1 + self.accelerator.process_index)  # the noise of the first step, from here on
        self.weights = SHARDINGS[config.train.sharding](
            self.accelerator, task, config, self.inputs, lambda: next(self.batches.epoch())
        )
        self.task, self.optimizer = self.weights.task, self.weights.optimizer
        self.ema = None if config.train.ema is None else Ema(self.model, config.train.ema)
        self.train_on = Step(self.accelerator, self.task, self.optimizer, config, self.ema)
        self.validation = dataset.validation.to(self.accelerator.device)
        self.n_steps = config.train.epochs * len(self.batches)
        self.step, self.saved_step = 0, 0
        self.stopping = False  # a stop was requested, in whatever process
        self.window: list[dict[str, Tensor]] = []  # metrics of the steps since they were last given
        self.best, self.skipped = Best(), Skipped()
        self.callbacks: list[Callback] = []

    @property
    def model(self) -> Model:
        return self.accelerator.unwrap_model(self.task).model

    @property
    def epoch(self) -> float:
        return self.step / len(self.batches)

    @property
    def over(self) -> bool:
        return self.step == self.n_steps or self.best.exhausted(self.config.train.patience)

    def open(self, run: Run, *, resume: bool) -> None:
        """Write what a new run folder holds at first, or restore the state from it."""
        metrics_size = 0
        if self.accelerator.is_main_process:
            run.remove_leftovers()
        if resume:
            run.check_version()
            before, inputs = run.read_config()
            check_same(self.config, self.inputs, before, inputs)
            checkpoint = read_checkpoint(run, world_size=self.accelerator.num_processes)
            if checkpoint:
                self._restore(checkpoint)
                metrics_size = checkpoint.metrics_size
            if self.config.train.epochs > before.train.epochs and self.accelerator.is_main_process:
                self._extend(run, before.train.epochs)
        elif self.accelerator.is_main_process:
            Run.create(run.path, self.config, self.inputs, data_dir=self.data_dir, device=self.accelerator.device)
        if self.accelerator.is_main_process:
            run.write_environment(self.data_dir, self.accelerator.device)
            self.callbacks = [JsonlMetrics(run, metrics_size), Pictures(run), Spending(run)]
            self.callbacks += make_trackings(self.config, run)

    def _extend(self, run: Run, before: int) -> None:
        """Note that the run has become longer, and say what that does to its learning rate."""
        run.write_config(self.config, self.inputs)
        rates = [learning_rate(self.config.optim, self.epoch, epochs) for epochs in (before, self.config.train.epochs)]
        if rates[0] != rates[1]:
            warnings.warn(
                f"the run goes on to {self.config.train.epochs} epochs in place of {before}: from here on its learning "
                f"rate is that of the {self.config.optim.schedule} schedule over all of them, {rates[1]:.3g} after "
                f"epoch {self.epoch:g} where it was {rates[0]:.3g}",
                RunWarning,
                stacklevel=2,
            )

    def fit(self, run: Run) -> None:
        """Train to the end, with checkpoints and snapshots on the way."""
        train = self.config.train
        device = describe_device(self.accelerator.device)
        notes = describe(self.inputs.columns)
        self._tell(Started(self.step, self.n_steps, len(self.batches), train.batch_size, train.compile, device, notes))
        try:
            with stop_requests() as stop:
                if self.over:
                    self._restore_model(run)
                while not (self.over or self.stopping):
                    self._run_epoch(run, stop)
            self._finish(run)
        finally:
            self._tell(Stopped(complete=self.over))
        if not self.over:
            raise Interrupted(f"stopped after step {self.step} of {self.n_steps}, saved in {run.path}")

    def _run_epoch(self, run: Run, stop: threading.Event) -> None:
        """Train for what is left of an epoch, or until a stop is requested."""
        train = self.config.train
        self.task.train()
        epoch, start = divmod(self.step, len(self.batches))
        for x, y in self.batches.epoch(epoch, start):
            self._one_step(x, y)
            self.stopping = agreed(stop.is_set())
            if self.step % (train.snapshot_every * len(self.batches)) == 0 or self.step == self.n_steps:
                self._snapshot(run)
            elif self.stopping:
                trained = self.weights.model()
                if self.accelerator.is_main_process:
                    self._save_model(run, self.ema.model if self.ema else trained)
                self._save_state(run)
            elif self.step % train.checkpoint_every == 0 and not self.skipped.in_a_row:
                self._save_state(run)
            if self.stopping:
                return

    def _one_step(self, x: Tensor, y: Tensor | None) -> None:
        train = self.config.train
        # The middle of the step: neither its first nor its last rate is 0.
        rate = learning_rate(self.config.optim, (self.step + 0.5) / len(self.batches), train.epochs)
        try:
            self.window.append(self.train_on(x, y, rate))
            self.skipped, reason = self.skipped.recovered(), None
        except NotFinite as fault:
            self.skipped, reason = self.skipped.one_more(), str(fault)
        self.step += 1
        if reason:
            self._tell(BadStep(self.step, self.epoch, reason, self.skipped.total))
            self._check_faults(reason)
        due = self.step % train.log_every == 0 or self.step % len(self.batches) == 0
        if due and self.window:
            self._tell(Stepped(self.step, self.epoch, self._means(), block_states(self.model)))
        else:
            self._tell(Stepped(self.step, self.epoch))

    def _check_faults(self, reason: str) -> None:
        if self.skipped.in_a_row > self.config.train.max_bad_steps:
            saved = (
                f"the last checkpoint, of step {self.saved_step}, is intact" if self.saved_step else "nothing is saved"
            )
            raise RunError(
                f"{self.skipped.in_a_row} steps in a row had to be skipped, up to step {self.step}: {reason}; lower "
                f"--optim.lr (now {self.config.optim.lr}), or set --optim.clip-norm; {saved}"
            )

    def _means(self) -> dict[str, float]:
        """Average over processes and the steps of the window; here the loop waits for the device."""
        window, self.window = self._reduced_window(), []
        return dict(zip(window[0], means_of(window).tolist(), strict=True))

    def _reduced_window(self) -> list[dict[str, Tensor]]:
        """The metrics of the window, averaged over the processes."""
        if world_size() == 1 or not self.window:
            return self.window
        names = list(self.window[0])
        rows = [torch.stack([metrics[name].double() for name in names]) for metrics in self.window]
        return [dict(zip(names, row, strict=True)) for row in average(torch.stack(rows))]

    # -- what is written -------------------------------------------------------------------------------------------

    def _snapshot(self, run: Run) -> None:
        """Save and validate a sealed copy of the model, then save the state to resume from."""
        trained = self.weights.model()
        if self.accelerator.is_main_process:
            with kept_random_state(), own_lengths():
                sealed, certificate = self._save_model(run, self.ema.model if self.ema else trained)
                metrics = self._validate(sealed)
                drawing = make_drawing(sealed, self.inputs, self.validation.x, self.config.train.n_pictures)
                event = Snapshot(
                    self.step, self.epoch, sealed, certificate, metrics, drawing, excesses=excesses(trained)
                )
                self._tell(event)
            self.best = self.best.updated(self.step, metrics["loss"])
        (self.best,) = broadcast_object_list([self.best])
        self._save_state(run)

    def _save_model(self, run: Run, model: Model) -> tuple[Model, Certificate]:
        """Save a sealed copy of a model."""
        check_weights(model.state_dict())
        return save_model(run, model)

    def _save_state(self, run: Run) -> None:
        if self.step == self.saved_step:
            return
        checkpoint = self._checkpoint(run)
        check_weights(checkpoint.model)
        if self.accelerator.is_main_process:
            write_checkpoint(run, checkpoint, keep=self.config.train.keep_checkpoints, also=self.best.step)
        self.saved_step = self.step

    def _restore_model(self, run: Run) -> None:
        """Write the model of a run that was complete, where its file is gone or damaged, from the checkpoint."""
        trained = self.weights.model()
        if self.accelerator.is_main_process and not run.has_model:
            self._save_model(run, self.ema.model if self.ema else trained)

    def _finish(self, run: Run) -> None:
        """Replace the model by that of the best snapshot, when there was a patience for it."""
        best = self.best.step
        if not self.over or self.config.train.patience is None or best in (None, self.step):
            return
        if not self.accelerator.is_main_process:
            return
        try:
            checkpoint = read_checkpoint(run, best)
        except RunError as error:
            warnings.warn(f"{error}; the model is that of the last step, not the best", RunWarning, stacklevel=2)
            return
        assert checkpoint is not None
        model = build_model(self.config, self.inputs)
        model.load_state_dict(checkpoint.average["model"] if checkpoint.average else checkpoint.model)
        with kept_random_state():
            save_model(run, model)

    @torch.no_grad()
    def _validate(self, sealed: Model) -> dict[str, float]:
        """Means over the validation split, with noise and probes that are the same each time."""
        torch.manual_seed(self.config.train.seed)
        task = Task(sealed, self.config.task, levels=self.dataset.levels).eval()
        totals: dict[str, float] = {}
        for x, y in Batches(self.validation, self.config.train.batch_size, shuffle=False, drop_last=False).epoch():
            loss, metrics = task(x, y)
            for name, value in {"loss": loss, **metrics}.items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(x) / len(self.validation)
        return totals

    def _checkpoint(self, run: Run) -> Checkpoint:
        scaler = self.accelerator.scaler
        return Checkpoint(
            step=self.step,
            model=self.weights.model_state(),
            optimizer=self.weights.optimizer_state(),
            average=self.ema.state_dict() if self.ema else None,
            scaler=scaler.state_dict() if scaler is not None else None,
            random=gather_object([random_state()]),
            window=self._reduced_window(),
            metrics_size=run.flush_metrics() if self.accelerator.is_main_process else 0,
            best=asdict(self.best),
            skipped=asdict(self.skipped),
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.weights.load(checkpoint.model, checkpoint.optimizer)
        if self.ema and checkpoint.average:
            self.ema.load_state_dict(checkpoint.average)
        if self.accelerator.scaler is not None and checkpoint.scaler:
            self.accelerator.scaler.load_state_dict(checkpoint.scaler)
        self.step = self.saved_step = checkpoint.step
        self.best, self.skipped = Best(**checkpoint.best), Skipped(**checkpoint.skipped)
        device = self.accelerator.device
        self.window = [{name: tensor.to(device) for name, tensor in metrics.items()} for metrics in checkpoint.window]
        self._restore_randomness(checkpoint)

    def _restore_randomness(self, checkpoint: Checkpoint) -> None:
        rank, n = self.accelerator.process_index, self.accelerator.num_processes
        here = "a GPU" if self.accelerator.device.type == "cuda" else "the CPU"
        before = {"a GPU" if "cuda" in state else "the CPU" for state in checkpoint.random}
        if len(checkpoint.random) == n and before == {here}:
            set_random_state(checkpoint.random[rank])
            return
        seed_all(self.config.train.seed + 1 + rank + n * self.step)
        if self.accelerator.is_main_process:
            warnings.warn(
                f"the run was saved by {len(checkpoint.random)} processes on {' and '.join(before)} and continues with "
                f"{n} on {here}: with other noise and probes than without the interruption",
                RunWarning,
                stacklevel=2,
            )

    def _tell(self, event: Event) -> None:
        for callback in self.callbacks:
            callback(event)
