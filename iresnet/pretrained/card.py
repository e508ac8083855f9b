"""Cards of models: what a model is, its figures, its certificate and its license, as Markdown that the hub reads."""

__all__ = ["Card"]

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from iresnet.bijections import ResidualBlock
from iresnet.certificates import Certificate
from iresnet.config import Config
from iresnet.inputs import Inputs
from iresnet.models import model_options
from iresnet.zoo import Model

_TAGS = {
    "density": ("normalizing-flow", "density-estimation"),
    "classify": ("classification",),
    "hybrid": ("normalizing-flow", "density-estimation", "classification"),
}


@dataclass(frozen=True)
class Card:
    """Description of a saved model.

    Attributes:
        name: title; ``owner/name`` of a repository of the hub.
        config: the recipe.
        inputs: facts about the data.
        model: the model.
        certificate: of the model.
        evaluation: content of ``evaluation.json``, empty without.
        figures: further results, by what they are.
        license: identifier of the license of the weights.
    """

    name: str
    config: Config
    inputs: Inputs
    model: Model
    certificate: Certificate
    evaluation: Mapping[str, Any]
    figures: Mapping[str, str | float]
    license: str

    def text(self) -> str:
        """Write the card: a header of YAML for the hub, and Markdown for people."""
        kind = self.config.task.kind
        tags = ["invertible-residual-network", *_TAGS[kind]]
        header = {"license": self.license, "library_name": "iresnet", "tags": tags}
        sections = [
            f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
            f"# {self.name}",
            self.config.description or f"An invertible residual network ({kind}).",
            _table("what", dict(self._facts())),
            "## Results",
            _table("figure", results) if (results := dict(self._results())) else "None are stated.",
            "## Certificate",
            self._certificate(),
            "## Use",
            "```python",
            f'import iresnet as ir\n\nmodel = ir.from_pretrained("{self.name}")  # or the path of this folder\n```',
            "Loading is strict: every tensor by name, weights and recipe as they were certified, no pickles.",
            "## License",
            f"Of the weights: {self.license}. The code that loads them, iresnet, is under the MIT license."
            if self.license != "unknown"
            else "Unknown: nobody has stated one for these weights.",
        ]
        return "\n\n".join(sections).replace("```python\n\n", "```python\n") + "\n"

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "task", self.config.task.kind
        yield "architecture", model_options(self.config, self.inputs)[0]
        yield "data", Path(self.config.data.name).name  # others need no folders of this machine
        yield "event shape", " x ".join(map(str, self.inputs.shape))
        if self.inputs.levels:
            yield "levels", f"{self.inputs.levels}; the model takes real numbers on [0, {self.inputs.levels})"
        if self.inputs.class_names:
            yield "classes", ", ".join(self.inputs.class_names)
        yield "residual blocks", str(sum(isinstance(module, ResidualBlock) for module in self.model.modules()))
        yield "parameters", f"{sum(parameter.numel() for parameter in self.model.parameters()):,}"
        yield "made by", f"iresnet {metadata.version('iresnet')}"

    def _results(self) -> Iterator[tuple[str, str]]:
        split = self.evaluation.get("split", "test")
        key, unit = ("nats", "nats") if len(self.inputs.shape) == 1 else ("bits_per_dim", "bits/dim")
        if score := _estimate(self.evaluation, "likelihood", key):
            yield f"{split} {unit} (negative log-likelihood, 95 %)", score
        accuracy, ends = (_at(self.evaluation, "classification", name) for name in ("accuracy", "interval"))
        if isinstance(accuracy, float):
            between = f" ({ends[0]:.2%} to {ends[1]:.2%})" if isinstance(ends, list) and len(ends) == 2 else ""
            yield f"{split} accuracy (95 %)", f"{accuracy:.2%}{between}"
        for name in _at(self.evaluation, "baselines") or ():
            if score := _estimate(self.evaluation, "baselines", name, key):
                yield f"for comparison: {name}, {unit}", score
        for name, value in self.figures.items():
            yield name, f"{value:.4g}" if isinstance(value, float) else str(value)

    def _certificate(self) -> str:
        if not self.certificate.certified:
            return "**Not certified**: no bound proves that its blocks are invertible."
        worst = max(block.upper for block in self.certificate.blocks)
        steps = max(block.steps() for block in self.certificate.blocks)
        lines = [
            f"**Certified**: every residual block contracts, by upper bounds in float64; the largest is {worst:.4f}, "
            f"so {steps} fixed-point steps are proved to bring an inverse 100000 times closer."
        ]
        if (network := self.certificate.network) and math.isfinite(network.upper):
            lines.append(
                f"The network stretches distances at most {network.upper:.3g} and at least {network.lower:.3g} times."
            )
        return " ".join([*lines, "Bounds of every layer: `certificate.json`; checked again by `ir.certify(model)`."])


def _table(of: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {of} | |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _estimate(tree: Mapping[str, Any], *keys: str) -> str:
    """Write an estimate with its half-width, nothing where there is none."""
    mean, half = (_at(tree, *keys, name) for name in ("mean", "half_width"))
    return f"{mean:.3f} ± {half:.3f}" if isinstance(mean, float) and isinstance(half, float) else ""


def _at(tree: Any, *keys: str) -> Any:
    """Return the value under nested keys, None where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
