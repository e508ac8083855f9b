"""Certified radii of predictions: how far an example may move before its class can change."""

__all__ = [
    "Predictions",
    "certified_radius",
    "logit_constant",
    "predict",
]

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from iresnet.bijections import Bijection
from iresnet.classifiers import Classifier, Hybrid
from iresnet.data import Examples
from iresnet.evaluation.batching import check_finite, evaluation_mode, reference_tensor, stream_in_batches
from iresnet.evaluation.scoring import example_inputs
from iresnet.inputs import Inputs

# -- radii -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def logit_constant(model: nn.Module, x: Tensor) -> float:  # (N, *E)
    r"""Bound how much differences between logits change with the input: a proved Euclidean Lipschitz constant L.

    The product of the constant of the bijection (the upper one of :class:`~iresnet.certificates.Stretch`, which counts
    the scaling of the data) and that of the head in eval mode; a constant added to all logits does not count.

    Args:
        model: the classifier; its mode, train or eval, stays as it is.
        x: an example, for its shape alone.

    Returns:
        L, in logits for each unit of the data; infinite where nothing is proved, as for plain networks and for
        modules of other classes.

    Example:
        >>> import iresnet as ir
        >>> classifier = ir.Classifier(ir.ResidualBlock(ir.networks.mlp(2, 8)), n_classes=3)
        >>> x = torch.randn(20, 2)
        >>> _ = classifier(x)
        >>> 0 < logit_constant(classifier, x) < 100
        True
    """
    if not isinstance(model, (Classifier, Hybrid)):
        return math.inf
    network = model.network if isinstance(model, Classifier) else model.bijection
    if not isinstance(network, Bijection):
        return math.inf
    try:
        _, stretch = network.stretch()
    except NotImplementedError:  # a bijection that states no constants
        return math.inf
    with evaluation_mode(model):
        return stretch * model.head.upper_bound(network(x[:1]))


def certified_radius(logits: Tensor, constant: float) -> Tensor:  # (N, n_classes) -> (N,)
    r"""Return the distance within which no other class can win, from the margin of the logits.

    .. math:: r = \frac{f_{(1)}(x) - f_{(2)}(x)}{\sqrt 2 \, L}

    since the difference of two logits changes by at most :math:`\sqrt 2 L |x - y|`.

    Args:
        logits: f(x).
        constant: L, a proved Lipschitz constant of the logits; infinite where there is none, and r is 0.

    Reference:
        Lipschitz-Margin Training: Scalable Certification of Perturbation Invariance for Deep Neural Networks, Tsuzuku,
        Sato and Sugiyama 2018, https://arxiv.org/abs/1802.04034

    Example:
        >>> round(float(certified_radius(torch.tensor([[3.0, 1.0, 0.0]]), math.sqrt(2))), 6)
        1.0
    """
    first, second = logits.double().topk(2, dim=1).values.unbind(1)
    return (first - second) / (math.sqrt(2) * constant)


# -- predictions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictions:
    """Predictions for some examples.

    Attributes:
        probabilities: of the classes, (N, n_classes), float64.
        radius: certified, in units of the data, (N,); 0 where nothing is proved.
    """

    probabilities: Tensor
    radius: Tensor


def predict(
    model: Classifier | Hybrid, batches: Iterable[Examples], inputs: Inputs, *, seed: int = 0
) -> Iterator[tuple[Examples, Predictions]]:
    """Predict the class of each example, batch by batch, with the radius within which the prediction is certified.

    A hybrid sees dequantized data, as in training: with the same noise for each example, so that a prediction depends
    on the example alone. The radius is then that of moves of the noisy example.

    Args:
        model: the classifier.
        batches: the examples.
        inputs: what the model knows of its data.
        seed: of the noise.

    Raises:
        IResNetError: when a logit is not finite.

    Example:
        >>> import iresnet as ir
        >>> classifier = ir.Classifier(ir.ResidualBlock(ir.networks.mlp(2, 8)), n_classes=3)
        >>> _ = classifier(torch.randn(20, 2))
        >>> inputs = Inputs((2,), None, ("a", "b", "c"), (0.0,), (1.0,))
        >>> ((_, found),) = predict(classifier.eval(), [Examples(torch.zeros(4, 2), [1, 2, 3, 4])], inputs)
        >>> found.probabilities.shape, bool((found.radius > 0).all())
        (torch.Size([4, 3]), True)
    """
    tensor = reference_tensor(model)
    constant = logit_constant(model, torch.zeros(1, *inputs.shape).to(tensor))

    def evaluate(examples: Examples) -> Predictions:
        x = example_inputs(model, examples.x, inputs, Generator().manual_seed(seed)).to(tensor)
        logits = model(x).double().cpu()
        check_finite(logits.sum(1))
        return Predictions(logits.softmax(1), certified_radius(logits, constant))

    yield from stream_in_batches(model, batches, evaluate)
