"""What a model draws at a snapshot: samples, and data beside their reconstructions."""

__all__ = ["Drawing", "make_drawing"]

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from iresnet.bijections import Bijection
from iresnet.classifiers import Classifier, Hybrid
from iresnet.data import dequantize
from iresnet.pictures import image_grid, scatter
from iresnet.runs import Inputs
from iresnet.zoo import Model

N_RECONSTRUCTED = 16
"""Examples that are reconstructed at a snapshot."""


@dataclass(frozen=True)
class Drawing:
    r"""Examples on the scale of the data, of shape (n, \*E).

    Attributes:
        inputs: what the data are.
        n: pictures that are wanted of each kind, at most.
        samples: drawn from the model; None for a classifier, or when none are wanted.
        data: validation examples.
        reconstructions: the same, through the latent and back; None for a plain network, which has no way back.
    """

    inputs: Inputs
    n: int
    samples: Tensor | None
    data: Tensor
    reconstructions: Tensor | None

    @property
    def metrics(self) -> dict[str, float]:
        """The largest ``reconstruction_error``, if any, in units of the data's range: 1 is from black to white."""
        if self.reconstructions is None:
            return {}
        scale = float(self.inputs.levels or (self.data.max() - self.data.min())) or 1.0
        return {"reconstruction_error": float((self.reconstructions - self.data).abs().max()) / scale}

    def sheets(self) -> dict[str, tuple[Tensor, int | None]]:
        """What to draw, by name, with the columns of a grid of images."""
        found: dict[str, tuple[Tensor, int | None]] = {}
        if self.samples is not None:
            found["samples"] = self.samples, None
        n = min(self.n, len(self.data))
        if n and len(self.inputs.shape) == 3 and self.reconstructions is not None:  # data above their reconstructions
            found["reconstructions"] = torch.cat([self.data[:n], self.reconstructions[:n]]), n
        return found

    def pictures(self) -> dict[str, Image.Image]:
        """The sheets as pictures; none of data that are neither images nor points in the plane."""
        sheets = {name: (x.detach().float().cpu(), columns) for name, (x, columns) in self.sheets().items()}
        if len(self.inputs.shape) == 3:
            return {name: image_grid(x, levels=self.inputs.levels, columns=n) for name, (x, n) in sheets.items()}
        return {name: scatter(x) for name, (x, _) in sheets.items()} if self.inputs.shape == (2,) else {}


@torch.no_grad()
def make_drawing(model: Model, inputs: Inputs, x: Tensor, n: int) -> Drawing:
    """Sample and reconstruct, from the same latents and noise each time.

    Args:
        model: the model, sealed.
        inputs: what the data are.
        x: examples, as stored; the first :data:`N_RECONSTRUCTED` are reconstructed, whatever n is.
        n: samples to draw, and pictures to show.
    """
    x = x[:N_RECONSTRUCTED]
    if isinstance(model, Classifier):
        x = x.float()
        invertible = isinstance(model.network, Bijection)
        return Drawing(inputs, n, None, x, model.invert(model.features(x)) if invertible else None)
    flow = model.flow if isinstance(model, Hybrid) else model
    samples = flow.sample(n, generator=torch.Generator().manual_seed(0)) if n else None
    x = dequantize(x, levels=inputs.levels, generator=torch.Generator().manual_seed(0))
    return Drawing(inputs, n, samples, x, flow.decode(flow.encode(x)))
