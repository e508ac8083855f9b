"""Progress of a training run, on the terminal or in a notebook."""

__all__ = ["BlockLog", "ProgressBar", "default_callbacks"]

import math
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from iresnet.bars import Bar, watched
from iresnet.console import err
from iresnet.training.callbacks import BadStep, Callback, Event, Snapshot, Started, Stepped, Stopped


class ProgressBar(Callback):
    """Progress bar with loss, bits/dim or accuracy, throughput and time left, below one line a snapshot.

    On a terminal and in a notebook; elsewhere the lines alone are printed. A :class:`~iresnet.Trainer` has one unless
    it is given callbacks, and somebody looks.

    Args:
        console: to print to.
    """

    def __init__(self, console: Console = err):
        self.batch_size = 0
        self.compiling: float | None = None  # time of its start
        self.bar = Bar(
            SpinnerColumn(),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("{task.fields[throughput]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case Started():
                self.batch_size = event.batch_size
                for line in (f"training on {event.device}", *event.notes):
                    self.bar.say(line)
                if event.compiled:
                    self.bar.say("compiling: the first step takes minutes, unless the code is on disk")
                    self.compiling = time.monotonic()
                self.bar.start("train", event.total_steps, completed=event.step, numbers="", throughput="")
            case Stepped(_, _, metrics):
                if self.compiling is not None:
                    self.bar.say(f"first step, with compilation: {time.monotonic() - self.compiling:.0f} s")
                    self.compiling = None
                speed = self.bar.speed
                throughput = f"{speed * self.batch_size:.0f}/s" if speed else ""
                numbers = {"numbers": _format(metrics)} if metrics else {}
                self.bar.update(advance=1, throughput=throughput, **numbers)
            case BadStep(step, _, reason, total):
                self.bar.say(f"step {step} skipped: {reason} ({total} skipped so far)")
            case Snapshot(step, epoch, _, certificate, metrics, _, excesses):
                verdict = "certified" if certificate.certified else "NOT certified"
                self.bar.say(f"epoch {epoch:g}, step {step}: validation {_format(metrics)}, {verdict}")
                if excesses:
                    worst = max(excesses, key=lambda e: e.bound / e.coeff)
                    more = f", and {len(excesses) - 1} more layers theirs" if len(excesses) > 1 else ""
                    self.bar.say(
                        f"before sealing, '{worst.name}' had left its coefficient {worst.coeff:g}: "
                        f"bound {worst.bound:.4f}{more}"
                    )
            case Stopped():
                self.bar.stop()


def default_callbacks() -> list[Callback]:
    """Return a progress bar, if somebody looks."""
    return [ProgressBar()] if watched() else []


class BlockLog(Callback):
    """Log of the states of all residual blocks at every line of metrics.

    A line for each block: the estimated norms of its layers before normalization, the bound that the last snapshot
    proved, the norm of its gradient, and the mean of its log-determinants.

    Args:
        console: to print to.
    """

    def __init__(self, console: Console):
        self.console = console
        self.bounds: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Print the states of the blocks."""
        match event:
            case Snapshot():
                self.bounds = {block.name: block.upper for block in event.certificate.blocks}
            case Stepped(step, _, dict(metrics), blocks):
                self.console.print(f"step {step}: {_format(metrics)}, gradient {metrics['grad_norm']:.3g}")
                for state in blocks:
                    sigmas = " ".join(f"{sigma:.3f}" for sigma in state.sigmas.values())
                    numbers = {"bound": self.bounds.get(state.name, math.nan), "gradient": state.grad_norm}
                    numbers |= {"log-det": state.logdet}
                    shown = ", ".join(
                        f"{name} {number:.3g}" for name, number in numbers.items() if not math.isnan(number)
                    )
                    self.console.print(f"  {state.name}: sigma {sigmas}, {shown}")


def _format(metrics: dict[str, float]) -> str:
    formats = {"loss": "loss {:.4f}", "bits_per_dim": "{:.4f} bits/dim", "accuracy": "accuracy {:.2%}"}
    return ", ".join(text.format(metrics[name]) for name, text in formats.items() if name in metrics)
