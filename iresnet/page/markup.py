"""Markup of the page: what a model is, what it finds, and its certificate, from templates that escape everything."""

__all__ = ["STYLE", "certificate", "finding", "header"]

from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import pairwise
from math import prod

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from iresnet.certificates import Certificate
from iresnet.evaluation import Reference
from iresnet.inputs import Inputs
from iresnet.page.served import Finding
from iresnet.report.elements import Tile
from iresnet.report.formatting import number, percent

STYLE = resources.files("iresnet.page").joinpath("templates/page.css").read_text()
"""Style sheet of the page."""

WIDTH, HEIGHT = 320, 96  # of the histogram, without its axis


def header(title: str, lead: str, verdict: str, tiles: Sequence[Tile]) -> str:
    """Describe the model at the top of the page.

    Args:
        title: name of the run.
        lead: what the model is, in one sentence.
        verdict: of the certificate.
        tiles: headline numbers.
    """
    return _render("header", title=title, lead=lead, verdict=verdict, tiles=tiles)


def finding(found: Finding, inputs: Inputs, reference: Reference | None) -> str:
    """Describe what was found about an example: a list of numbers, and where it lies among the training examples.

    Args:
        found: what was found.
        inputs: what the model knows of its data.
        reference: log-likelihoods of training examples.
    """
    facts: list[tuple[str, str, str]] = []
    bars = None
    if found.predictions:
        probability, label = found.predictions.probabilities[0].max(0)
        radius = float(found.predictions.radius)
        proved = "no smaller change of the input changes it" if radius else "nothing is proved"
        facts.append(("class", inputs.class_names[int(label)], f"with probability {percent(float(probability))}"))
        facts.append(("certified radius", number(radius), proved))
    if found.scores:
        nats, error = float(found.scores.log_prob), float(found.scores.standard_error)
        facts.append(("log-likelihood", f"{nats:.2f} nats", f"standard error {number(error, 2)}" if error else ""))
        if len(inputs.shape) == 3:
            facts.append(("bits/dim", f"{-nats / (prod(inputs.shape) * np.log(2)):.3f}", ""))
        if reference and found.p_likelihood is not None:
            likely, typical = number(found.p_likelihood, 3), number(found.p_typicality, 3)
            facts.append(("p-value of likelihood", likely, "share of training examples at most as likely"))
            facts.append(("p-value of typicality", typical, "share of them as far from their mean, to either side"))
            bars = _histogram(reference.log_probs.numpy(), nats)
    if found.error is not None:
        facts.append(("decoded again within", number(found.error, 2), "largest error, in units of the data"))
    return _render("finding", facts=facts, bars=bars, width=WIDTH, height=HEIGHT)


def certificate(proved: Certificate) -> str:
    """Show the bounds of all blocks and layers."""
    return _render("certificate", proved=proved, infinity=float("inf"))


def _histogram(values: np.ndarray, mark: float) -> dict[str, object]:
    """Lay out a histogram of the values in the middle 99 %, wide enough for the mark, which may lie at an end."""
    low, high = np.quantile(values, [0.005, 0.995])
    room = 0.5 * (high - low) or 1.0
    low, high = max(min(low, mark), low - room), min(max(high, mark), high + room)
    counts, edges = np.histogram(values, bins=40, range=(low, high))

    def across(value: float) -> float:
        return float(np.clip((value - low) / (high - low), 0, 1) * WIDTH)

    heights = counts / max(1, counts.max()) * HEIGHT
    bars = [(across(a), across(b) - across(a), float(h)) for (a, b), h in zip(pairwise(edges), heights, strict=True)]
    beyond = "left of" if mark < low else "right of" if mark > high else ""
    return {
        "bars": bars,
        "mark": across(mark),
        "low": number(float(low), 3),
        "high": number(float(high), 3),
        "n": len(values),
        "beyond": beyond,
    }


def _render(template: str, **values: object) -> str:
    return _environment().get_template(f"{template}.html").render(**values)


@cache
def _environment() -> Environment:
    loader = PackageLoader("iresnet.page")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
