"""Model behind the page: everything that it shows, computed from tensors, without a widget."""

__all__ = ["Directions", "Finding", "ServedModel", "principal_directions"]

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from iresnet.bijections import Bijection
from iresnet.classifiers import Classifier, Hybrid
from iresnet.data import Examples
from iresnet.data.columns import Column, offsets
from iresnet.errors import DataError
from iresnet.evaluation import (
    Predictions,
    Reference,
    Scores,
    decode,
    example_inputs,
    interpolate,
    latents_of_class,
    predict,
    reference_tensor,
    score,
)
from iresnet.evaluation.batching import evaluate_in_batches
from iresnet.flows import Flow, check_sampling
from iresnet.inputs import Inputs
from iresnet.pictures import image_grid, scatter
from iresnet.zoo import Model

N_LATENTS = 256
"""Examples whose latents give the principal directions."""

N_DIRECTIONS = 6
"""Directions that can be moved along, at most."""

# -- directions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Directions:
    """Principal directions of latents.

    Attributes:
        mean: of the latents, (D,).
        axes: one standard deviation along each, in descending order, (k, D).
        share: of the whole variance, in these directions.
    """

    mean: Tensor
    axes: Tensor
    share: float


def principal_directions(z: Tensor, n: int = N_DIRECTIONS) -> Directions:  # (N, D)
    r"""Find the directions in which latents vary most, from the singular vectors of the centered latents.

    .. math:: Z - \bar z = U S V^T, \quad a_i = \frac{S_i}{\sqrt{N - 1}} v_i

    Args:
        z: latents of at least two examples.
        n: directions, fewer where there are no more.

    Example:
        >>> z = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> directions = principal_directions(z, 1)
        >>> directions.axes.square().round(decimals=4).tolist(), round(directions.share, 6)
        ([[6.0, 0.0]], 0.9)
    """
    mean = z.mean(0)
    _, s, v = torch.linalg.svd(z - mean, full_matrices=False)
    n = min(n, len(v), len(z) - 1)
    share = float(s[:n].square().sum() / s.square().sum())
    return Directions(mean, v[:n] * s[:n, None] / (len(z) - 1) ** 0.5, share)


# -- the model ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    r"""Results for one example.

    Attributes:
        x: the example as it was recorded, (1, \*E).
        scores: its log-likelihood; None without a density.
        p_likelihood: share of training examples at most as likely; None without training examples.
        p_typicality: share of them at least as far from their mean, to either side.
        predictions: class probabilities and certified radius; None without classes.
        decoded: what its latent is mapped back to, (1, \*E); None without an inverse.
        error: largest difference of ``decoded`` from what was encoded, in units of the data.
    """

    x: Tensor
    scores: Scores | None = None
    p_likelihood: float | None = None
    p_typicality: float | None = None
    predictions: Predictions | None = None
    decoded: Tensor | None = None
    error: float | None = None


class ServedModel:
    r"""Model with what is needed to show it.

    Args:
        model: in eval mode.
        inputs: what it knows of its data.
        read: reads the first example of a file, as it was recorded, (1, \*E).
        reference: log-likelihoods of training examples; None where there are none.
        examples: some training examples as they were recorded, (N, \*E); None where there are none.

    Attributes:
        flow: the density; None for a classifier.
        classifier: predicts classes; None for a density.
        bijection: maps data to latents; None for a plain network.
        columns: of rows, numbered where they have no names; none for images.
        directions: principal directions of latents of training examples, of samples where there are no examples; None
            where there is neither.

    Example:
        >>> import iresnet as ir
        >>> inputs = Inputs((2,), None, (), (0.0,), (1.0,))
        >>> flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=1, hidden=8)
        >>> served = ServedModel(flow, inputs, read=lambda path: torch.zeros(1, 2))
        >>> finding = served.examine(torch.zeros(1, 2).double())
        >>> finding.error < 1e-4, served.samples(3).shape
        (True, torch.Size([3, 2]))
    """

    def __init__(
        self,
        model: Model,
        inputs: Inputs,
        *,
        read: Callable[[Path], Tensor],
        reference: Reference | None = None,
        examples: Tensor | None = None,
    ):
        self.model, self.inputs, self.reference, self.examples = model, inputs, reference, examples
        self.flow = None if isinstance(model, Classifier) else model.flow if isinstance(model, Hybrid) else model
        self.classifier = None if isinstance(model, Flow) else model
        network = model.network if isinstance(model, Classifier) else model.bijection
        self.bijection = network if isinstance(network, Bijection) else None
        self.columns = () if self.is_image else inputs.columns or _numbered(inputs.shape[0])
        self._read = read
        self.directions = self._directions()

    @property
    def is_image(self) -> bool:
        """True for images."""
        return len(self.inputs.shape) == 3

    @property
    def can_be_drawn(self) -> bool:
        """True for images of integers, gray or RGB."""
        return self.is_image and self.inputs.levels is not None and self.inputs.shape[0] in (1, 3)

    # -- examples ------------------------------------------------------------------------------------------------------

    def read(self, path: str | Path) -> Tensor:  # (1, *E)
        """Read the first example of a file; errors name the file alone, not the folder that an upload lies in."""
        path = Path(path)
        try:
            return self._read(path)
        except DataError as error:
            raise DataError(str(error).replace(str(path), path.name)) from error

    def from_drawing(self, drawing: Image.Image) -> Tensor:  # (1, C, H, W) uint8
        """Scale a drawing to the size, the channels and the levels of the model; what is transparent is black.

        Raises:
            DataError: when nothing was drawn.
        """
        channels, height, width = self.inputs.shape
        levels = self.inputs.levels or 256
        black = Image.new("RGBA", drawing.size, "black")
        opaque = Image.alpha_composite(black, drawing.convert("RGBA")).convert("L" if channels == 1 else "RGB")
        if opaque.getbbox() is None:
            raise DataError("nothing is drawn yet: draw on the black square")
        scaled = np.asarray(opaque.resize((width, height), Image.Resampling.BOX), np.float64)
        values = np.floor((scaled + 0.5) * (levels / 256)).astype(np.uint8)
        return torch.from_numpy(values).reshape(height, width, channels).permute(2, 0, 1)[None]

    def from_values(self, values: list[float | str | None]) -> Tensor:  # (1, D) float64
        """Make a row of a table from the value of each column, a number or the name of a category.

        Raises:
            DataError: when a value is missing.
        """
        features: list[float] = []
        for column, value in zip(self.columns, values, strict=True):
            if value is None or value == "":
                raise DataError(f"{column.title}: expected a value, got none; fill it in")
            features += [float(value == category) for category in column.categories] or [float(value)]
        return torch.tensor([features], dtype=torch.float64)

    def to_values(self, x: Tensor) -> list[float | str]:  # (1, D)
        """Read the value of each column from a row as it was recorded: the inverse of :meth:`from_values`."""
        values: list[float | str] = []
        for column, block in zip(self.columns, x[0].split([column.width for column in self.columns]), strict=True):
            if column.categories:
                values.append(column.categories[int(block.argmax())])
            else:  # in the fewest digits that tell it apart in float32, in which data without an offset are held
                values.append(float(block) if column.offset else float(str(np.float32(block.item()))))
        return values

    def example(self, number: int) -> Tensor:  # (1, *E)
        """Return a training example, counted from 0 and around.

        Raises:
            DataError: when there are none.
        """
        if self.examples is None:
            raise DataError("the training data are not on this machine; upload an example")
        return self.examples[number % len(self.examples)][None]

    def examine(self, x: Tensor) -> Finding:  # (1, *E)
        """Score an example, predict its class, and map it to its latent and back."""
        examples, found = Examples(x, [1]), {}
        if self.flow:
            ((_, scores),) = score(self.flow, [examples], self.inputs)
            found["scores"] = scores
            if self.reference:
                found["p_likelihood"] = float(self.reference.p_likelihood(scores.log_prob))
                found["p_typicality"] = float(self.reference.p_typicality(scores.log_prob))
        if self.classifier:
            ((_, found["predictions"]),) = predict(self.classifier, [examples], self.inputs)
        if self.bijection:
            encoded = self._inputs(x)
            back = decode(self.bijection, self.encode(x))
            found["decoded"], found["error"] = back, float((back - encoded).abs().max())
        return Finding(x, **found)

    # -- latents -------------------------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> Tensor:  # (N, *E) -> (N, *latent)
        """Map examples as they were recorded to latents, those of a classifier being its features."""
        assert self.bijection
        bijection = self.bijection
        parts = evaluate_in_batches(self.model, x.split(64), lambda some: bijection(self._inputs(some)))
        return torch.cat(parts)

    def move(self, start: Tensor | None, steps: list[float]) -> Tensor:  # (1, *E)
        """Decode a latent that is moved along the principal directions.

        Args:
            start: the example to start at, as it was recorded, (1, *E); the mean of the latents when None.
            steps: standard deviations along each direction.
        """
        assert self.bijection
        assert self.directions
        z = self.directions.mean[None] if start is None else self.encode(start).flatten(1)
        z = z + torch.tensor([steps]).to(z) @ self.directions.axes
        return decode(self.bijection, z.view(1, *self._latent_shape))

    def path(self, first: Tensor, last: Tensor, *, steps: int, kind: str) -> Tensor:  # (steps, *E)
        """Interpolate between two examples as they were recorded."""
        ends = self._inputs(first), self._inputs(last)
        (found,) = interpolate(self.model, *ends, steps=steps, kinds=[kind])
        return found.x[0]

    def samples(self, n: int, *, temperature: float = 1.0, label: int | None = None, seed: int = 0) -> Tensor:
        r"""Draw samples, (n, \*E), the same as ``iresnet sample`` with this seed; of one class with a label."""
        assert self.flow
        generator = Generator().manual_seed(seed)
        if label is not None:
            assert isinstance(self.model, Hybrid)
            z = latents_of_class(self.model, label, n, temperature=temperature, generator=generator).z
        else:
            check_sampling(n, temperature)
            z = self.flow.base.sample(n, temperature=temperature, generator=generator)
        return decode(self.flow, z.detach())

    # -- to look at ----------------------------------------------------------------------------------------------------

    def picture(self, x: Tensor, *, columns: int | None = None) -> Image.Image:
        r"""Draw images in a grid, or points of the plane.

        Args:
            x: as they were recorded or decoded, (N, \*E).
            columns: of the grid.
        """
        x = x.detach().float().cpu()
        if not self.is_image:
            return scatter(x.double() + offsets(self.inputs.columns, 2))
        whole = isinstance(self.model, Classifier) and self.inputs.levels
        # integers that got no noise come back with errors to either side
        return image_grid(x + 0.5 if whole else x, levels=self.inputs.levels, columns=columns)

    def ranges(self) -> list[tuple[float, float, float]]:
        """Return a low, a middle and a high value of each column: quantiles of 5, 50 and 95 % of training examples.

        Without examples, the mean and two standard deviations to either side.
        """
        if self.examples is not None:
            x, q = self.examples.double(), torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
            found = x.quantile(q, dim=0)
        else:
            dims = self.inputs.shape[0]
            mean, std = (torch.tensor(v, dtype=torch.float64).expand(dims) for v in (self.inputs.mean, self.inputs.std))
            found = torch.stack([mean - 2 * std, mean, mean + 2 * std]) + offsets(self.inputs.columns, dims)
        starts = accumulate((column.width for column in self.columns[:-1]), initial=0)
        return [(float(low), float(middle), float(high)) for low, middle, high in (found[:, start] for start in starts)]

    # -- inside --------------------------------------------------------------------------------------------------------

    def _inputs(self, x: Tensor) -> Tensor:
        noise = Generator().manual_seed(0)
        return example_inputs(self.model, x, self.inputs, noise).to(reference_tensor(self.model))

    def _directions(self) -> Directions | None:
        if self.bijection is None:
            return None
        with torch.no_grad():
            zero = torch.zeros(1, *self.inputs.shape).to(reference_tensor(self.model))
            self._latent_shape = self.bijection(zero).shape[1:]  # flat, but for classifiers
        if self.examples is not None and len(self.examples) > 1:
            return principal_directions(self.encode(self.examples[:N_LATENTS]).flatten(1))
        if self.flow:
            generator = Generator().manual_seed(0)
            return principal_directions(self.flow.base.sample(N_LATENTS, generator=generator).detach())
        return None


def _numbered(n: int) -> tuple[Column, ...]:
    """Name the columns of vectors that have no names."""
    return tuple(Column(f"x{i + 1}", i + 1) for i in range(n))
