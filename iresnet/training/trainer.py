"""Training loop: from a recipe and its data to a run folder with the trained model."""

__all__ = ["Trainer", "train"]

import threading
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from iresnet.certificates import Certificate, excesses
from iresnet.collectives import any_process, process_group, restarted
from iresnet.config import Config, check, differences
from iresnet.data import Batches, Dataset, training_batches
from iresnet.data import load as load_data
from iresnet.data.columns import describe
from iresnet.devices import (
    choose_device,
    describe_device,
    deterministic_algorithms,
    keep_freed_memory,
    kept_random_state,
    seed_all,
)
from iresnet.errors import Interrupted, RecipeError, RunError, RunWarning
from iresnet.files import locked
from iresnet.inputs import Inputs
from iresnet.interrupts import stop_requests
from iresnet.models import build_model, inputs_of, save_model
from iresnet.runs import Run
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
from iresnet.training.checkpoints import read_checkpoint, write_checkpoint
from iresnet.training.distributed import SHARDINGS, make_accelerator, quietly
from iresnet.training.dryrun import check_model_fits, check_step_fits
from iresnet.training.optim import Ema, learning_rate, total_steps, warn_of_new_rates
from iresnet.training.progress import default_callbacks
from iresnet.training.state import TrainingState
from iresnet.training.step import NotFinite, Step, check_weights
from iresnet.training.task import Task, make_task
from iresnet.training.tracking import check_trackers, make_trackings
from iresnet.zoo import Model


def train(
    config: Config,
    out: str | Path,
    *,
    data_dir: str | Path | None = None,
    device: str | torch.device = "auto",
    resume: bool = False,
    callbacks: Sequence[Callback] | None = None,
) -> Run:
    """Train a model into a run folder: a :class:`Trainer`, in the process group that torchrun started, if it did.

    Everything random is a function of the seed: the same configuration gives the same weights, also when the run was
    interrupted and resumed in between. Under torchrun the processes train one model together, each on its share of
    every batch, and the first one writes; one that torchrun restarts resumes the run by itself.

    Args:
        config: the recipe.
        out: the run folder, new unless resumed.
        data_dir: where data sets are looked for first.
        device: where to train, see :func:`~iresnet.devices.choose_device`; each of several processes takes a GPU of its
            own.
        resume: continue the run in ``out``.
        callbacks: told of every event, after the metrics file and the pictures; see :class:`Trainer`.

    Returns:
        The run folder, with the sealed model in it.

    Raises:
        IResNetError: for anything in the configuration, the data or the folder that cannot be used; nothing is
            written then.
        Interrupted: on SIGINT or SIGTERM, after saving.
        ProcessLost: when another process of the run has ended.
    """
    with process_group():
        return Trainer(config, data_dir=data_dir, device=device, callbacks=callbacks).fit(out, resume=resume)


class Trainer:
    """Trainer of one model: built and checked first, without writing anything, then run by :meth:`fit`.

    Use :func:`train` unless you want to look at the pieces, or change them, before the first step. Of several
    processes, each makes a trainer and fits it inside :func:`~iresnet.collectives.process_group`.

    Args:
        config: the recipe.
        dataset: the data, in place of those that the recipe names; the run folder notes their name.
        data_dir: where data sets are looked for first.
        device: where to train, see :func:`~iresnet.devices.choose_device`.
        callbacks: told of every :data:`~iresnet.training.callbacks.Event` in the main process; by default a progress
            bar, on a terminal and in a notebook, and none elsewhere.

    Attributes:
        config: the recipe.
        dataset: the data, in splits.
        batches: of the training split.
        task: module that computes the loss, prepared for the device and the other processes.
        optimizer: of the parameters of the task.
        model: what is trained, inside the task.
        step: steps done.
        total_steps: steps of the whole run.
        stopping: a stop was requested, in whatever process; a callback may do so: the step is saved, as at Ctrl-C.

    Raises:
        IResNetError: for anything in the configuration or the data that cannot be used, or does not fit into memory.

    Example:
        >>> import tempfile, iresnet as ir
        >>> config = ir.load_config("toy-density", ["--model.blocks=1", "--model.hidden=8", "--train.epochs=1"])
        >>> trainer = Trainer(config, device="cpu")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = trainer.fit(Path(folder) / "run")
        ...     samples = ir.load(run.path).sample(3)
        >>> trainer.step == trainer.total_steps, samples.shape
        (True, torch.Size([3, 2]))
    """

    def __init__(
        self,
        config: Config,
        *,
        dataset: Dataset | None = None,
        data_dir: str | Path | None = None,
        device: str | torch.device = "auto",
        callbacks: Sequence[Callback] | None = None,
    ):
        if not isinstance(config, Config):
            raise RecipeError(f"a trainer takes a configuration, got {config!r}; make one with ir.load_config(RECIPE)")
        if dataset is not None:
            config = replace(config, data=replace(config.data, name=dataset.name))
        self.config, self.data_dir = config, data_dir
        self.callbacks = default_callbacks() if callbacks is None else callbacks
        device = choose_device(device)
        if device.type == "cpu":
            keep_freed_memory()
        with quietly(), deterministic_algorithms(config.train.deterministic):
            self._build(device, dataset)
        self.steps_per_epoch = len(self.batches)
        self.total_steps = total_steps(config.train, self.steps_per_epoch)
        self.saved_step, self.stopping = 0, False
        self.listeners: list[Callback] = []  # the callbacks of the run folder and the user's

    def _build(self, device: torch.device, dataset: Dataset | None) -> None:
        """Make the pieces, each checked before the next, which may be larger."""
        config = self.config
        check(config)
        check_trackers(config)
        self.dataset = dataset or load_data(config.data.name, self.data_dir, **config.data.options)
        self.accelerator = make_accelerator(config.train.precision, device)
        self.inputs: Inputs = inputs_of(self.dataset, config.task.kind, conditional=config.task.conditional)
        check_model_fits(config, self.inputs, self.accelerator.device)
        task = make_task(config, self.dataset, self.inputs)
        self.batches = training_batches(
            self.dataset,
            config.train.batch_size,
            buffer=config.data.shuffle_buffer,
            device=self.accelerator.device,
            seed=config.train.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        check_step_fits(task, config, self.dataset, self.accelerator.device)
        seed_all(config.train.seed + 1 + self.accelerator.process_index)  # the noise of the first step, from here on
        self.strategy = SHARDINGS[config.train.sharding](
            self.accelerator, task, config, self.inputs, lambda: next(self.batches.epoch())
        )
        self.task, self.optimizer = self.strategy.task, self.strategy.optimizer
        self.ema = None if config.train.ema is None else Ema(self.model, config.train.ema)
        self.take_step = Step(self.accelerator, self.task, self.optimizer, config, self.ema)
        self.state = TrainingState(self.accelerator, self.strategy, self.ema)
        self.validation = self.dataset.validation.to(self.accelerator.device)

    @property
    def model(self) -> Model:
        """Model that is trained, inside the task."""
        return self.accelerator.unwrap_model(self.task).model

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    @property
    def epoch(self) -> float:
        """Epochs done, with fraction."""
        return self.step / self.steps_per_epoch

    @property
    def done(self) -> bool:
        """True once all steps are done, or the patience is exhausted."""
        return self.step == self.total_steps or self.state.best.exhausted(self.config.train.patience)

    @property
    def _is_main(self) -> bool:
        return self.accelerator.is_main_process

    def fit(self, out: str | Path, *, resume: bool = False) -> Run:
        """Train to the end, with checkpoints and snapshots on the way.

        Args:
            out: the run folder, new unless resumed.
            resume: continue the run in ``out``; a process that torchrun restarted does so by itself.

        Returns:
            The run folder, with the sealed model in it.

        Raises:
            RunError: when the folder cannot be used, or this trainer has trained already.
            Interrupted: on SIGINT or SIGTERM, after saving.
        """
        if self.step:
            raise RunError("this trainer has trained already: make another one")
        resume = resume or (restarted() and Run(out).config_file.exists())
        self.run = Run.open(out) if resume else Run.free(out) if self._is_main else Run(out)
        deterministic = deterministic_algorithms(self.config.train.deterministic)
        with quietly(), deterministic, locked(self.run.path) if self._is_main else nullcontext():
            self._open(resume=resume)
            self._loop()
        return self.run

    # -- start ---------------------------------------------------------------------------------------------------------

    def _open(self, *, resume: bool) -> None:
        """Write what a new run folder holds at first, or restore the state from it."""
        metrics_size = 0
        if self._is_main:
            self.run.remove_leftovers()
        if resume:
            self.run.check_version()
            before, inputs = self.run.read_config()
            self._check_same(before, inputs)
            checkpoint = read_checkpoint(self.run, world_size=self.accelerator.num_processes)
            if checkpoint:
                self.state.restore(checkpoint, self.config.train.seed)
                self.saved_step, metrics_size = checkpoint.step, checkpoint.metrics_size
            if self.total_steps > (length := total_steps(before.train, self.steps_per_epoch)) and self._is_main:
                self.run.write_config(self.config, self.inputs)
                warn_of_new_rates(self.config.optim, self.step, length, self.total_steps, self.steps_per_epoch)
        elif self._is_main:
            Run.create(self.run.path, self.config, self.inputs, data_dir=self.data_dir, device=self.accelerator.device)
        if self._is_main:
            self.run.write_environment(self.data_dir, self.accelerator.device)
            self.listeners = [JsonlMetrics(self.run, metrics_size), Pictures(self.run), Spending(self.run)]
            self.listeners += [*make_trackings(self.config, self.run), *self.callbacks]

    def _check_same(self, before: Config, inputs: Inputs) -> None:
        """Refuse to resume a run of other settings or data; it may become longer."""
        train = before.train
        if self.total_steps >= total_steps(train, self.steps_per_epoch):
            train = replace(train, epochs=self.config.train.epochs, max_steps=self.config.train.max_steps)
        changes = differences(self.config, replace(before, train=train))
        changes += ["the data set"] if self.inputs != inputs else []
        if listed := "; ".join(changes):
            raise RunError(f"the run to resume was started with other settings ({listed}); use another --out")

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        train = self.config.train
        device, notes = describe_device(self.accelerator.device), [*describe(self.inputs.columns), *self._notes()]
        counts = self.step, self.total_steps, self.steps_per_epoch
        try:
            self._tell(Started(*counts, train.batch_size, compiled=train.compile, device=device, notes=notes))
            with stop_requests() as stop:
                if self.done:  # before the first step: the file of the model may be gone or damaged
                    trained = self.strategy.full_model()
                    if self._is_main and not self.run.has_model:
                        self._save_model(trained)
                while not (self.done or self.stopping):
                    self._run_epoch(stop)
            if self.done and train.patience is not None:
                self._save_best_model()
        finally:
            self._tell(Stopped(complete=self.done))
        if not self.done:
            raise Interrupted(f"stopped after step {self.step} of {self.total_steps}, saved in {self.run.path}")

    def _notes(self) -> list[str]:
        asked = self.accelerator.device.type == "cuda" and self.config.train.capture == "auto"
        obstacle = self.take_step.obstacle if asked else None
        return [f"kernels of a step are launched one by one, not as one graph: {obstacle}"] if obstacle else []

    def _run_epoch(self, stop: threading.Event) -> None:
        """Train for what is left of an epoch, or until a stop is requested."""
        train = self.config.train
        self.task.train()
        epoch, start = divmod(self.step, self.steps_per_epoch)
        for x, y in self.batches.epoch(epoch, start):
            reason = self.train_step(x, y)
            if self._is_due(train.log_every, train.checkpoint_every) or stop.is_set():
                reason = self._settle() or reason
            self._tell_of_step(reason)
            self.stopping = any_process(self.stopping or stop.is_set())
            if self.step % (train.snapshot_every * self.steps_per_epoch) == 0 or self.step == self.total_steps:
                self._snapshot()
            elif self.stopping:
                trained = self.strategy.full_model()
                if self._is_main:
                    self._save_model(trained)
                self._save_checkpoint()
            elif self.step % train.checkpoint_every == 0 and not self.state.skipped.in_a_row:
                self._save_checkpoint()
            if self.stopping or self.step == self.total_steps:
                return

    def train_step(
        self,
        x: Tensor,  # (N, *E), as stored
        y: Tensor | None,  # (N,)
    ) -> str | None:
        """Train on one batch at the learning rate of the schedule.

        Returns:
            What made the step impossible, a loss or gradient that is not finite; None when it was done, or the device
            knows (:class:`~iresnet.training.step.Step`).
        """
        state, epochs = self.state, self.total_steps / self.steps_per_epoch
        # The middle of the step: neither its first nor its last rate is 0.
        rate = learning_rate(self.config.optim, (state.step + 0.5) / self.steps_per_epoch, epochs)
        state.step += 1
        try:
            metrics = self.take_step(x, y, rate)
        except NotFinite as fault:
            state.skipped = state.skipped.counting([False])
            return str(fault)
        state.window.append(metrics)
        if "done" not in metrics:
            state.skipped = state.skipped.counting([True])
        return None

    def _is_due(self, *every: int) -> bool:
        """Return whether a number of steps, an epoch or the run is complete."""
        return any(self.step % n == 0 for n in (*every, self.steps_per_epoch, self.total_steps))

    def _settle(self) -> str | None:
        """Ask the device which steps it skipped, and return the reason for the last one, None without any."""
        return self.take_step.explain() if self.state.settle() else None

    def _tell_of_step(self, reason: str | None) -> None:
        """Tell the callbacks of a step that was done, or skipped for a reason; stop after too many of those."""
        train, state = self.config.train, self.state
        if reason:
            self._tell(BadStep(self.step, self.epoch, reason, state.skipped.total))
            self._check_skipped(reason)
        if self._is_due(train.log_every) and state.window:
            self._tell(Stepped(self.step, self.epoch, state.log_window(), block_states(self.model)))
        else:
            self._tell(Stepped(self.step, self.epoch))

    def _check_skipped(self, reason: str) -> None:
        skipped = self.state.skipped.longest
        if skipped > self.config.train.max_bad_steps:
            saved = (
                f"the last checkpoint, of step {self.saved_step}, is intact" if self.saved_step else "nothing is saved"
            )
            raise RunError(
                f"{skipped} steps in a row had to be skipped, up to step {self.step}: {reason}; lower --optim.lr (now "
                f"{self.config.optim.lr}), or set --optim.clip-norm; {saved}"
            )

    def _tell(self, event: Event) -> None:
        for callback in self.listeners:
            callback(event)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _snapshot(self) -> None:
        """Save and validate a sealed copy of the model, then save the state to resume from."""
        trained = self.strategy.full_model()
        state = self.state
        if self._is_main:
            with kept_random_state():
                sealed, certificate = self._save_model(trained)
                metrics = self._validate(sealed)
                drawing = make_drawing(sealed, self.inputs, self.validation, self.config.train.n_pictures)
                repaired = excesses(trained)
                self._tell(Snapshot(self.step, self.epoch, sealed, certificate, metrics, drawing, repaired))
            state.best = state.best.updated(self.step, metrics["loss"])
        (state.best,) = broadcast_object_list([state.best])
        self._save_checkpoint()

    @torch.no_grad()
    def _validate(self, sealed: Model) -> dict[str, float]:
        """Return means over the validation split, with noise and probes that are the same each time."""
        torch.manual_seed(self.config.train.seed)
        # A generator of one's own, since estimators would else wait for the other processes, which do something else.
        task = Task(sealed, self.config.task, levels=self.dataset.levels, generator=torch.default_generator).eval()
        totals: dict[str, float] = {}
        for x, y in Batches(self.validation, self.config.train.batch_size, shuffle=False, drop_last=False).epoch():
            loss, metrics = task(x, y)
            for name, value in {"loss": loss, **metrics}.items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(x) / len(self.validation)
        return totals

    def _save_model(self, trained: Model) -> tuple[Model, Certificate]:
        """Save a sealed copy of the averaged weights, or of the trained ones without an average."""
        model = self.ema.model if self.ema else trained
        check_weights(model.state_dict())
        return save_model(self.run, model)

    def _save_checkpoint(self) -> None:
        if self.step == self.saved_step:
            return
        checkpoint = self.state.checkpoint(self.run.flush_metrics() if self._is_main else 0)
        check_weights(checkpoint.model)
        if self._is_main:
            keep = self.config.train.keep_checkpoints
            write_checkpoint(self.run, checkpoint, keep=keep, also=self.state.best.step)
        self.saved_step = self.step

    def _save_best_model(self) -> None:
        """Replace the model by that of the best snapshot."""
        best = self.state.best.step
        if best in (None, self.step) or not self._is_main:
            return
        try:
            checkpoint = read_checkpoint(self.run, best)
        except RunError as error:
            warnings.warn(f"{error}; the model is that of the last step, not the best", RunWarning, stacklevel=2)
            return
        assert checkpoint is not None
        model = build_model(self.config, self.inputs)
        model.load_state_dict(checkpoint.average["model"] if checkpoint.average else checkpoint.model)
        with kept_random_state():
            save_model(self.run, model)
