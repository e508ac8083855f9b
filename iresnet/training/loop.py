"""The training loop."""

__all__ = ["train"]

import math
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from iresnet.config import Config
from iresnet.data import Batches
from iresnet.data import load as load_data
from iresnet.errors import Interrupted, RunError
from iresnet.runs import Inputs, Run, inputs_of
from iresnet.training.callbacks import Callback, Event, JsonlMetrics, Pictures, Snapshot, Started, Stepped, Stopped
from iresnet.training.checkpoints import (
    Checkpoint,
    kept_random_state,
    random_state,
    read_checkpoint,
    set_random_state,
    write_checkpoint,
)
from iresnet.training.drawings import make_drawing
from iresnet.training.optim import learning_rate, make_optimiser, set_learning_rate
from iresnet.training.settings import PRECISIONS, check_same, check_settings
from iresnet.training.task import Task, make_task
from iresnet.training.tracking import make_trackings
from iresnet.zoo import Model


def train(
    config: Config,
    out: str | Path,
    *,
    data_dir: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train a model into a run folder.

    Everything random is a function of the seed: the same configuration gives the same weights, also when the run was
    interrupted and resumed in between.

    Args:
        config: the recipe.
        out: the run folder, new unless resumed.
        data_dir: where data sets are looked for first.
        resume: continue the run in ``out``.
        callbacks: told of every event, after the metrics file and the pictures.

    Returns:
        The run folder, with the sealed model in it.

    Raises:
        IResNetError: for anything in the configuration, the data or the folder that cannot be used; nothing is
            written then.
        Interrupted: on SIGINT or SIGTERM, after saving.
    """
    trainer = _Trainer(config, data_dir)
    run = trainer.open(out, resume=resume)
    trainer.callbacks += callbacks
    trainer.fit(run)
    return run


class _Trainer:
    """The pieces of a run: made and checked first, so that bad input is found before anything is written."""

    def __init__(self, config: Config, data_dir: str | Path | None):
        check_settings(config)
        self.config, self.data_dir = config, data_dir
        self.dataset = dataset = load_data(config.data.name, data_dir, pad_to=config.data.pad_to)
        self.accelerator = Accelerator(mixed_precision=PRECISIONS[config.train.precision])
        self.inputs: Inputs = inputs_of(dataset, config.task.kind)
        task = make_task(config, dataset, self.inputs)
        optimiser = make_optimiser(task.model, config.optim)
        self.task, self.optimiser = self.accelerator.prepare(task, optimiser)
        rank = {"rank": self.accelerator.process_index, "world_size": self.accelerator.num_processes}
        on_device = dataset.train.to(self.accelerator.device)
        self.batches = Batches(on_device, config.train.batch_size, seed=config.train.seed, **rank)
        self.validation = dataset.validation.to(self.accelerator.device)
        self.n_steps = config.train.epochs * len(self.batches)
        self.step = 0
        self.window: list[dict[str, Tensor]] = []  # metrics of the steps since they were last given
        self.callbacks: list[Callback] = []

    @property
    def model(self) -> Model:
        return self.accelerator.unwrap_model(self.task).model

    @property
    def epoch(self) -> float:
        return self.step / len(self.batches)

    def open(self, out: str | Path, *, resume: bool) -> Run:
        """Create the run folder, or restore the state from it."""
        metrics_size = 0
        if resume:
            run = Run.open(out)
            check_same(self.config, self.inputs, *run.read_config())
            metrics_size = self._restore(read_checkpoint(run))
        else:
            torch.manual_seed(self.config.train.seed + 1 + self.accelerator.process_index)
            run = Run.create(out, self.config, self.inputs, data_dir=self.data_dir)
        self.callbacks = [
            JsonlMetrics(run, metrics_size),
            Pictures(run),
            *make_trackings(self.config, run),
        ]
        return run

    def fit(self, run: Run) -> None:
        """Train to the end, with snapshots on the way."""
        train = self.config.train
        self._tell(Started(self.model, self.step, self.n_steps, len(self.batches), train.batch_size, train.compile))
        complete = False
        try:
            with _stop_requests() as stop:
                while self.step < self.n_steps and not stop.is_set():
                    self._run_epoch(stop)
                    due = self.step % (self.config.train.snapshot_every * len(self.batches)) == 0
                    if due or stop.is_set() or self.step == self.n_steps:
                        self._save(run, validate=due or self.step == self.n_steps)
            complete = self.step == self.n_steps
        finally:
            self._tell(Stopped(complete=complete))
        if not complete:
            raise Interrupted(f"stopped after step {self.step} of {self.n_steps}, saved in {run.path}")

    def _run_epoch(self, stop: threading.Event) -> None:
        """Train for what is left of an epoch, or until a stop is requested."""
        self.task.train()
        epoch, start = divmod(self.step, len(self.batches))
        for x, y in self.batches.epoch(epoch, start):
            self.window.append(self._one_step(x, y))
            metrics = None
            if self.step % self.config.train.log_every == 0 or self.step % len(self.batches) == 0:
                metrics = self._means()
            self._tell(Stepped(self.step, self.epoch, metrics))
            if stop.is_set():
                return

    def _one_step(self, x: Tensor, y: Tensor | None) -> dict[str, Tensor]:
        # The middle of the step: neither its first nor its last rate is 0.
        epoch = (self.step + 0.5) / len(self.batches)
        rate = learning_rate(self.config.optim, epoch, self.config.train.epochs)
        set_learning_rate(self.optimiser, rate)
        loss, metrics = self.task(x, y)
        self.optimiser.zero_grad()
        self.accelerator.backward(loss)
        limit = self.config.optim.clip_norm
        norm = self.accelerator.clip_grad_norm_(self.task.parameters(), math.inf if limit is None else limit)
        self.optimiser.step()
        self.step += 1
        return {"loss": loss.detach(), **metrics, "grad_norm": torch.as_tensor(norm), "lr": torch.tensor(rate)}

    def _means(self) -> dict[str, float]:
        """Average over the steps of the window; the only place where the loop waits for the device."""
        window, self.window = self.window, []
        means = {name: float(torch.stack([m[name] for m in window]).float().mean()) for name in window[0]}
        if not math.isfinite(means["loss"]):
            raise RunError(
                f"the loss is {means['loss']} at step {self.step}: lower --optim.lr (now {self.config.optim.lr}), or "
                "set --optim.clip-norm; the last snapshot, if there is one, is intact"
            )
        return means

    def _save(self, run: Run, *, validate: bool) -> None:
        """Save a sealed copy of the model, then the state to resume from; at a snapshot, validate the copy between."""
        if not self.accelerator.is_main_process:
            return
        with kept_random_state():
            sealed, certificate = run.save_model(self.model)
            if validate:
                metrics = self._validate(sealed)
                drawing = make_drawing(sealed, self.inputs, self.validation.x, self.config.train.n_pictures)
                self._tell(Snapshot(self.step, self.epoch, sealed, certificate, metrics, drawing))
        write_checkpoint(run, self._checkpoint(run))

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
        return Checkpoint(
            step=self.step,
            model=self.model.state_dict(),
            optimiser=self.optimiser.state_dict(),
            random=random_state(),
            window=[{name: tensor.cpu() for name, tensor in metrics.items()} for metrics in self.window],
            metrics_size=run.metrics_file.stat().st_size,
        )

    def _restore(self, checkpoint: Checkpoint) -> int:
        self.model.load_state_dict(checkpoint.model)
        self.optimiser.load_state_dict(checkpoint.optimiser)
        set_random_state(checkpoint.random)
        self.step = checkpoint.step
        self.window = [
            {name: tensor.to(self.accelerator.device) for name, tensor in metrics.items()}
            for metrics in checkpoint.window
        ]
        return checkpoint.metrics_size

    def _tell(self, event: Event) -> None:
        for callback in self.callbacks if self.accelerator.is_main_process else ():
            callback(event)


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into a request that the loop honours between two steps; a second one acts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread alone
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: Any) -> None:  # noqa: ARG001
        stop.set()
        signal.signal(number, handlers[signal.Signals(number)])

    try:
        for number in handlers:
            signal.signal(number, request)
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
