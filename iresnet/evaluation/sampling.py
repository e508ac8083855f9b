"""Samples of a density, in batches, and latents of one class."""

__all__ = [
    "ClassLatents",
    "decode",
    "latents_of_class",
]

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from iresnet.bijections import Bijection
from iresnet.classifiers import Hybrid
from iresnet.devices import random_device
from iresnet.errors import IResNetError
from iresnet.evaluation.batching import evaluate_in_batches, evaluation_mode
from iresnet.flows import Flow, check_sampling


def decode(
    flow: Flow | Bijection, z: Tensor, *, batch_size: int = 32, progress: Callable[[int], None] = lambda done: None
) -> Tensor:
    r"""Map latents, (n, D), to data, (n, \*E), in batches that are shared out among the processes.

    Args:
        flow: the density, or any bijection.
        z: the latents, the same in all processes.
        batch_size: samples that are solved together.
        progress: called with the number of samples done after each batch.

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.Affine(std=2.0), ir.StandardNormal(3))
        >>> z = flow.base.sample(5)
        >>> torch.equal(decode(flow, z, batch_size=2), flow.decode(z))
        True
    """
    inverse = flow.decode if isinstance(flow, Flow) else flow.inverse
    return torch.cat(evaluate_in_batches(flow, z.split(batch_size), inverse, progress=progress))


# -- latents of a class ------------------------------------------------------------------------------------------------


MIN_TRIED = 100_000
"""Latents that are tried before the share accepted is trusted, and a class may be refused as too improbable."""

MAX_TRIED = 5_000_000
"""Latents that may have to be tried; a class for which the expected number is larger is refused."""


@dataclass(frozen=True)
class ClassLatents:
    """Latents of one class.

    Attributes:
        z: the latents, (n, D).
        rate: share of the latents tried that were accepted, an estimate of the class's probability under the model.
        n_tried: number of latents tried.
    """

    z: Tensor
    rate: float
    n_tried: int

    def __str__(self) -> str:
        return f"accepted {self.rate:.2%} of {self.n_tried} latents"


@torch.no_grad()
def latents_of_class(
    model: Hybrid,
    label: int,
    n: int,
    *,
    temperature: float = 1.0,
    generator: Generator | None = None,
    batch_size: int = 4096,
) -> ClassLatents:
    r"""Draw latents from the joint model, given the class, by rejection.

    .. math:: p(z \mid y) \propto p(z) \, p(y \mid z)

    A latent of the base density is accepted with probability :math:`p(y \mid z) \le 1`: exact, whatever the head is,
    and cheap, since the head alone is evaluated. On average :math:`1 / p(y)` are tried until one is accepted.
    :meth:`iresnet.Flow.decode` maps them to data.

    Args:
        model: the hybrid.
        label: y, from 0.
        n: number of latents.
        temperature: multiplies the standard deviation of the base density.
        generator: source of randomness; torch's global one when None.
        batch_size: latents that are tried together.

    Raises:
        IResNetError: when the class does not exist, or is so improbable that accepting n latents is hopeless.

    Example:
        >>> import iresnet as ir
        >>> model = ir.Hybrid(ir.Flow(ir.Affine(), ir.StandardNormal(2)), n_classes=3)
        >>> _ = model(torch.zeros(2, 2))
        >>> latents_of_class(model.eval(), 1, 10).z.shape
        torch.Size([10, 2])
    """
    check_sampling(n, temperature)
    accepted, n_accepted, n_tried = [], 0, 0
    with evaluation_mode(model):
        while n_accepted < n:
            z = model.flow.base.sample(batch_size, temperature=temperature, generator=generator)
            probabilities = model.head(z).softmax(1)
            n_classes = probabilities.shape[1]
            if not 0 <= label < n_classes:
                raise IResNetError(f"the classes are 0 to {n_classes - 1}, got {label}")
            coins = torch.rand(batch_size, dtype=z.dtype, device=random_device(generator, z), generator=generator)
            accepted.append(z[coins.to(z.device) < probabilities[:, label]])
            n_accepted, n_tried = n_accepted + len(accepted[-1]), n_tried + batch_size
            if n_tried >= MIN_TRIED and n_accepted * MAX_TRIED < n * n_tried:
                raise IResNetError(
                    f"class {label} is too improbable under the model: of {n_tried} latents {n_accepted} were "
                    "accepted; ask for fewer samples (-n), raise --temperature, or train with a larger --task.ce-weight"
                )
    return ClassLatents(torch.cat(accepted)[:n], n_accepted / n_tried, n_tried)
