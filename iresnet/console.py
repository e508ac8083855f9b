"""What the command line says: texts and tables."""

__all__ = ["likelihood_table", "train_help", "uncertainty_text"]

from typing import TYPE_CHECKING, Any

from rich.table import Table

from iresnet.config import options

if TYPE_CHECKING:
    from iresnet.evaluation import Likelihood


def likelihood_table(scores: dict[str, Any], split: str) -> Table:
    """Likelihoods by name, with intervals."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{split} likelihood", no_wrap=True)
    for heading in ("bits/dim", "95 % interval", "nats", "log-determinant"):
        table.add_column(heading, justify="right")
    for name, score in scores.items():
        bits = score.bits_per_dim
        interval = f"{bits.mean - bits.half_width:.4f} to {bits.mean + bits.half_width:.4f}"
        table.add_row(name, f"{bits.mean:.4f}", interval, f"{score.nats.mean:.2f}", score.estimator)
    return table


def train_help() -> str:
    """Every option of a recipe, with its default."""
    lines = [
        f"--{name.replace('_', '-')}  {doc} (default: {default!r})" for name, default, doc in options() if "." in name
    ]
    sections = "\n\n".join(lines)
    return (
        "Train a model into a run folder.\n\n"
        "Any option of the recipe can be changed: iresnet train digits-density --train.epochs 3 --model.blocks [2,2] "
        "--optim.lr=1e-3\n\n"
        "--model.name and --model.OPTION  architecture and its options: blocks, strides, hidden, coeff, activation, "
        "logdet.name, logdet.n-steps, solver.name, solver.atol, ...\n\n"
        f"{sections}"
    )


def uncertainty_text(score: "Likelihood", n: int, target: float | None) -> str:
    """Where the uncertainty of a likelihood comes from, and how it compares with the standard error asked for."""
    lines = [str(score.uncertainty)]
    if score.dequantise_samples > 1:
        lines.append(f"importance-weighted over {score.dequantise_samples} dequantisation draws")
    if target is not None:
        reached = score.bits_per_dim.standard_error
        lines.append(f"standard error {reached:.2g} after {score.n} of {n} examples, {target:.2g} was asked for")
    return "\n".join(lines)
