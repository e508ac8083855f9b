"""Likelihoods of single examples, the same whatever else is evaluated, and their p-values against training examples."""

__all__ = ["Reference", "Scores", "example_inputs", "score"]

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from iresnet.classifiers import Classifier
from iresnet.data import Examples, dequantize, to_features
from iresnet.evaluation.batching import check_finite, reference_tensor, stream_in_batches
from iresnet.flows import Flow
from iresnet.inputs import Inputs
from iresnet.logdet import EXACT_LIMIT, Exact, Krylov, LogDetEstimator

N_STEPS = 8
"""Steps of the Krylov estimator: a number that does not depend on the batch, as those to a tolerance would."""


@dataclass(frozen=True)
class Scores:
    """Log-likelihoods of some examples, in nats, float64.

    Attributes:
        log_prob: mean over the draws of noise and probes, (N,).
        standard_error: of that mean, (N,); 0 where nothing is drawn, not a number for a single draw.
    """

    log_prob: Tensor
    standard_error: Tensor


def score(
    flow: Flow, batches: Iterable[Examples], inputs: Inputs, *, n_draws: int = 4, seed: int = 0
) -> Iterator[tuple[Examples, Scores]]:
    r"""Evaluate the log-likelihood of each example, batch by batch.

    .. math:: s(x) = \frac{1}{K} \sum_{k=1}^{K} \log p(x + u_k)

    estimates, for integers, a lower bound of :math:`\log P(x)`. The K draws of dequantization noise u and of the probes
    of log-determinants follow from the seed, and are the same for all examples: so s is a function of the example
    alone, whatever its batch, the device and the number of processes, up to rounding. That is what p-values need, and
    likelihoods share much of their error, so they compare well. Their mean over many examples does not average it out:
    :func:`~iresnet.evaluation.likelihood` is for that.

    Args:
        flow: the density; one that depends on a context is given those of the examples.
        batches: the examples.
        inputs: what the model knows of its data.
        n_draws: K; a single one is enough where nothing is random (real numbers of few dimensions).
        seed: of noise and probes.

    Raises:
        IResNetError: when a likelihood is not finite.

    Example:
        >>> import iresnet as ir
        >>> flow = ir.Flow(ir.Affine(), ir.StandardNormal(1))
        >>> inputs = Inputs((1,), None, (), (0.0,), (1.0,))
        >>> ((_, scores),) = score(flow, [Examples(torch.zeros(1, 1), [1])], inputs)
        >>> round(float(scores.log_prob), 4), float(scores.standard_error)
        (-0.9189, 0.0)
    """
    dims = math.prod(inputs.shape)
    is_random = inputs.levels is not None or any(column.noisy for column in inputs.columns) or dims > EXACT_LIMIT
    seeds = torch.randint(2**31, (n_draws if is_random else 1,), generator=Generator().manual_seed(seed)).tolist()
    tensor = reference_tensor(flow)

    def evaluate(examples: Examples) -> Scores:
        draws = []
        context = None if examples.context is None else examples.context.to(tensor.device)
        for draw in seeds:
            generator = Generator().manual_seed(draw)
            x = example_inputs(flow, examples.x, inputs, generator).to(tensor)
            estimator: LogDetEstimator = (
                Exact() if dims <= EXACT_LIMIT else Krylov(N_STEPS, probe="shared", generator=generator)
            )
            draws.append(check_finite(flow.log_prob(x, context=context, logdet=estimator).double().cpu()))
        values = torch.stack(draws)
        error = values.std(0) / math.sqrt(len(seeds)) if is_random else torch.zeros(len(examples)).double()
        return Scores(values.mean(0), error)

    yield from stream_in_batches(flow, batches, evaluate)


def example_inputs(model: nn.Module, x: Tensor, inputs: Inputs, generator: Generator) -> Tensor:  # (N, *E)
    """Turn examples as they were recorded into inputs of a model, float32.

    Where the model was trained with noise, all examples get the same, so that a result depends on the example alone.

    Args:
        model: densities and hybrids have integers dequantized, classifiers see them as they are.
        x: integers, real numbers, or values of a table.
        inputs: what the model knows of its data.
        generator: of the noise.

    Example:
        >>> import iresnet as ir
        >>> flow, inputs = ir.Flow(ir.Affine(), ir.StandardNormal(1)), Inputs((1,), 9, (), (0.0,), (1.0,))
        >>> x = example_inputs(flow, torch.zeros(2, 1, dtype=torch.uint8), inputs, Generator())
        >>> bool((x[0] == x[1]).all()), bool((x.floor() == 0).all())
        (True, True)
    """
    if inputs.columns:
        return to_features(x.double(), inputs.columns, torch.rand(x.shape[1], generator=generator))
    if isinstance(model, Classifier):
        return x.float()
    return dequantize(x, levels=inputs.levels, generator=generator, shared=True)


class Reference:
    r"""Log-likelihoods of n training examples, with which those of other examples are compared.

    A p-value is the share of training examples at least as unusual, the example itself counted among them:
    :math:`(1 + \#) / (1 + n)`. Of examples from the law of the reference, at most a share a has a p-value of at most a.
    Training examples are a little more likely than new ones from the same law, as far as a model has overfitted.

    Args:
        log_probs: of the training examples, (n,).

    Reference:
        Inductive Confidence Machines for Regression, Papadopoulos et al. 2002, https://doi.org/10.1007/3-540-36755-1_29;
        Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality, Nalisnick et al. 2019,
        https://arxiv.org/abs/1906.02994

    Example:
        >>> reference = Reference(torch.tensor([-3.0, -2.0, -1.0]))
        >>> reference.p_likelihood(torch.tensor([-9.0, -2.0, 0.0])).tolist()
        [0.25, 0.75, 1.0]
        >>> reference.p_typicality(torch.tensor([-9.0, -2.0, 0.0])).tolist()
        [0.25, 1.0, 0.25]
    """

    def __init__(self, log_probs: Tensor):
        self.log_probs = log_probs.double().sort().values
        self.mean = float(self.log_probs.mean())
        self._distances = (self.log_probs - self.mean).abs().sort().values

    def __len__(self) -> int:
        return len(self.log_probs)

    def p_likelihood(self, log_prob: Tensor) -> Tensor:  # (N,)
        """Return the share of training examples that are at most as likely."""
        return (1 + torch.searchsorted(self.log_probs, log_prob.double(), right=True)).double() / (1 + len(self))

    def p_typicality(self, log_prob: Tensor) -> Tensor:  # (N,)
        """Return the share of training examples at least as far from their mean, to either side: from the entropy."""
        closer = torch.searchsorted(self._distances, (log_prob.double() - self.mean).abs())
        return (1 + len(self) - closer).double() / (1 + len(self))
