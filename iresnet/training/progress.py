"""Progress of a training run on the terminal."""

__all__ = ["BlockLog", "ProgressBar"]

import math
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from iresnet.training.callbacks import BadStep, Callback, Event, Snapshot, Started, Stepped, Stopped


class ProgressBar(Callback):
    """Progress bar with loss, bits/dim or accuracy, throughput and time left; one line a snapshot without a terminal.

    Args:
        console: to print to.
    """

    def __init__(self, console: Console):
        self.console = console
        self.batch_size = 0
        self.compiling: float | None = None  # time of its start
        self.bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("{task.fields[throughput]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case Started():
                self.batch_size = event.batch_size
                self.console.print(f"training on {event.device}")
                for note in event.notes:
                    self.console.print(note)
                if event.compiled:
                    self.console.print("compiling: the first step takes minutes, unless the code is on disk")
                    self.compiling = time.monotonic()
                self.bar.start()
                self.bar.add_task("train", total=event.total_steps, completed=event.step, numbers="", throughput="")
            case Stepped(_, _, metrics):
                if self.compiling is not None:
                    self.console.print(f"first step, with compilation: {time.monotonic() - self.compiling:.0f} s")
                    self.compiling = None
                speed = self.bar.tasks[0].speed
                throughput = f"{speed * self.batch_size:.0f}/s" if speed else ""
                self.bar.update(self.bar.tasks[0].id, advance=1, throughput=throughput)
                if metrics:
                    self.bar.update(self.bar.tasks[0].id, numbers=_format(metrics))
            case BadStep(step, _, reason, total):
                self.console.print(f"step {step} skipped: {reason} ({total} skipped so far)")
            case Snapshot(step, epoch, _, certificate, metrics, _, excesses):
                verdict = "certified" if certificate.certified else "NOT certified"
                self.console.print(f"epoch {epoch:g}, step {step}: validation {_format(metrics)}, {verdict}")
                if excesses:
                    worst = max(excesses, key=lambda e: e.bound / e.coeff)
                    more = f", and {len(excesses) - 1} more layers theirs" if len(excesses) > 1 else ""
                    self.console.print(
                        f"before sealing, '{worst.name}' had left its coefficient {worst.coeff:g}: "
                        f"bound {worst.bound:.4f}{more}"
                    )
            case Stopped():
                self.bar.stop()


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
