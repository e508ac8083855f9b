"""Ways to reduce the variance of log-determinants at equal numbers of Jacobian products: tables of docs/numerics.md.

python benchmarks/variance_reduction.py runs/fashion-mnist-density-small runs/mnist-density-small --data-dir ~/data
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from estimator_errors import Gradient, Images, Make, gradients_at
from pages import arguments, insert_all, number, save, table
from subjects import ExactBlock, Subject, contracting, exact_blocks, from_run
from torch import Generator, Tensor

import iresnet as ir
from iresnet.krylov import KrylovSpace
from iresnet.lipschitz import hold_weights
from iresnet.logdet import Quadratic
from iresnet.operators import to_vectors
from iresnet.probes import PROBES

# -- probes ----------------------------------------------------------------------------------------------------------

Draw = Callable[[Tensor, int, Generator], Tensor]  # tensor (N, *E) as template, k, generator -> (N, k, *E)


def draw(like: Tensor, k: int, generator: Generator, *, kind: str) -> Tensor:
    """Draw probes of a kind of the library."""
    return torch.stack(list(PROBES[kind](like, k, generator)), 1)


def hadamard_at_random(like: Tensor, k: int, generator: Generator) -> Tensor:
    """Draw Hadamard probes with the elements numbered at random, always in the same way."""
    numbers = torch.randperm(like[0].numel(), generator=Generator().manual_seed(0))
    flat = draw(like.flatten(1), k, generator, kind="hadamard")
    return flat[..., numbers].view(len(like), k, *like.shape[1:])


def orthogonal(like: Tensor, k: int, generator: Generator) -> Tensor:
    """Draw Gaussian directions of length sqrt(D), orthogonal in groups of k."""
    gaussian = draw(like, k, generator, kind="gaussian").flatten(2)
    return (torch.linalg.qr(gaussian.mT).Q.mT * math.sqrt(gaussian.shape[2])).view(len(like), k, *like.shape[1:])


def antithetic(like: Tensor, k: int, generator: Generator) -> Tensor:
    """Draw probes and their negatives."""
    half = draw(like, k // 2, generator, kind="rademacher")
    return torch.cat([half, -half], 1)


IDEAS: dict[str, Draw] = {
    "antithetic": antithetic,
    "orthogonal": orthogonal,
    "Hadamard, elements numbered at random": hadamard_at_random,
    "hadamard": partial(draw, kind="hadamard"),
}


def over_the_batch(like: Tensor, n: int, generator: Generator | None, *, kind: str) -> Iterator[Tensor]:
    """Draw one probe for each sample, such that 64 neighbors form a group of a kind."""
    for _ in range(n):
        groups = like[: math.ceil(len(like) / 64)]
        k = 1 if kind == "shared" else 64
        group = torch.stack(list(PROBES["rademacher" if k == 1 else kind](groups, k, generator)), 1)
        yield group.expand(-1, 64, *like.shape[1:]).flatten(0, 1)[: len(like)]


PROBES.update({f"{kind} in the batch": partial(over_the_batch, kind=kind) for kind in ("shared", "hadamard")})

# -- one image: variance with the exact quadratic form of each probe ---------------------------------------------------


def variance_times_products(block: ExactBlock, probes: Tensor) -> float:  # (n, k, C, H, W)
    """Return the variance of a mean over k probes, times k, since each probe takes one product."""
    v = to_vectors(probes.flatten(0, 1))
    return probes.shape[1] * float(((v @ block.log) * v).sum(1).view(probes.shape[:2]).mean(1).var())


def deflated(block: ExactBlock, generator: Generator, k: int, trials: int, m: int = 3) -> float:
    """Estimate by Hutch++: k/2 probes span a Krylov space with an exact trace, k/2 estimate that of its complement.

    The trace on the space is not counted, which favors this method.
    """
    estimates = []
    for _ in range(trials):
        v = next(PROBES["rademacher"](block.jacobian.new_empty(k, len(block.jacobian)), 1, generator))
        space = KrylovSpace(lambda q: q @ block.jacobian, v[: k // 2], m)
        while not space.complete:
            space.extend()
        Q = torch.linalg.qr(space.Q.flatten(0, 1).t()).Q
        rest = v[k // 2 :] - v[k // 2 :] @ Q @ Q.t()
        estimates.append((Q * (block.log @ Q)).sum() + ((rest @ block.log) * rest).sum() / len(rest))
    return k * float(torch.stack(estimates).var())


def diagonal_known(block: ExactBlock, probes: Tensor) -> float:
    """Return the variance of Gaussian probes with the exact diagonal as a control variate."""
    v = to_vectors(probes)
    return float((((v @ block.log) - v * block.log.diagonal()) * v).sum(1).var())


def value_scores(images: Images, trials: int) -> dict[str, float]:
    """Return variance times products of every idea, relative to independent Rademacher probes."""
    total: dict[str, float] = {}
    for i, block in enumerate(chain.from_iterable(images)):
        for name, variance in _variances(block, Generator().manual_seed(i), trials).items():
            total[name] = total.get(name, 0.0) + variance
    baseline = total["independent Rademacher"]
    return {name: variance / baseline for name, variance in total.items()}


def _variances(block: ExactBlock, generator: Generator, trials: int) -> dict[str, float]:
    like = block.jacobian.new_empty(trials, *block.shape)
    gaussian = draw(like, 16, generator, kind="gaussian").flatten(0, 1)
    variances = {
        "independent Rademacher": variance_times_products(
            block, draw(like, 16, generator, kind="rademacher").flatten(0, 1)[:, None]
        ),
        "independent Gaussian": variance_times_products(block, gaussian[:, None]),
        "Gaussian, diagonal known": diagonal_known(block, gaussian),
    }
    for name, draw_idea in IDEAS.items():
        for k in (2,) if draw_idea is antithetic else (4, 16, 64):
            variances[f"{name}, {k} probes"] = variance_times_products(block, draw_idea(like, k, generator))
    for k in (2, 16):
        variances[f"deflation, {k} probes"] = deflated(block, generator, k, trials // 2)
    return variances


# -- one image: gradients ----------------------------------------------------------------------------------------------


class Projected(ir.Krylov):
    """Krylov estimator without the step along the residual."""

    def _solve(self, vjp: Callable[[Tensor], Tensor], v: Tensor) -> Quadratic:
        space = KrylovSpace(vjp, v, self.n_steps)
        while not space.complete:
            space.extend()
        space.left = torch.zeros_like(v)
        return Quadratic(*space.solve(), lambda lipschitz: space.last_change(), self.n_steps)


def gradient_scores(at: Sequence[Gradient], *, groups: int = 12) -> dict[str, float]:
    """Return variance times products of the gradient with groups of probes, relative to independent ones."""

    def variance(probe: str, k: int) -> float:
        make = partial(ir.Krylov, 3, probe=probe)
        return statistics.fmean(gradient.variance(make, copies=k, batches=groups) for gradient in at)

    alone = variance("rademacher", 64)
    return {"hadamard, 64 probes": variance("hadamard in the batch", 64) / alone}


def residual_step(at: Sequence[Gradient]) -> dict[str, dict[str, float]]:
    """Return the relative bias of the gradient without and with the step along the residual."""

    def bias(make: Make) -> float:
        return statistics.fmean(gradient.moments(make, copies=16)[0] for gradient in at)

    return {
        f"Krylov {m}": {
            "projected": bias(partial(Projected, m)),
            "with a residual step": bias(partial(ir.Krylov, m)),
        }
        for m in (2, 3, 5)
    }


# -- a batch of images -------------------------------------------------------------------------------------------------

SHARING = {"independent": "rademacher", "shared": "shared in the batch", "hadamard": "hadamard in the batch"}


def batch_scores(subject: Subject, batches: int, *, size: int = 64) -> dict[str, dict[str, float]]:
    """Return variances over probes of the mean log-determinant of a batch and of the gradient of its log-density.

    The last entry is the variance over batches of other images, for comparison. Gradients are relative to their mean.
    """
    flow, images = subject.flow.float(), subject.x.float().split(size)[:batches]
    samples = {
        name: [_batch(flow, images[0], probe, seed) for seed in range(batches)] for name, probe in SHARING.items()
    }
    samples["other images, independent"] = [_batch(flow, x, "rademacher", seed) for seed, x in enumerate(images)]
    flow.double()
    rows = {name: [torch.stack(column) for column in zip(*of, strict=True)] for name, of in samples.items()}
    square = rows["independent"][1].mean(0).square().sum()
    return {
        name: {"value": float(value.var()), "gradient": float(gradient.var(0).sum() / square)}
        for name, (value, gradient) in rows.items()
    }


def _batch(flow: ir.Flow, x: Tensor, probe: str, seed: int) -> tuple[Tensor, Tensor]:  # (), (parameters,)
    """Return the mean log-determinant of a batch and the gradient of its mean log-density."""
    logdet = ir.Krylov(3, probe=probe, generator=Generator().manual_seed(seed))
    parameters = list(flow.parameters())
    with hold_weights(flow):
        z, total = flow.bijection.forward_and_logdet(x, logdet=logdet)
    log_density = (flow.base.log_prob(z) + total).mean()
    gradients = torch.autograd.grad(log_density, parameters, allow_unused=True, materialize_grads=True)
    return total.mean().detach(), torch.cat([gradient.flatten() for gradient in gradients])


# -- tables ------------------------------------------------------------------------------------------------------------


def measure(subject: Subject, *, images: int, batches: int) -> dict[str, Any]:
    """Take all measurements of one model; each batch needs 64 images."""
    exact = [list(exact_blocks(subject.flow, x)) for x in subject.x[:images].split(1)]
    at = gradients_at(subject, exact[:2])
    results: dict[str, Any] = {"dims": subject.x[0].numel(), "images": images}
    results["value"] = value_scores(exact, 256)
    results["gradient"] = gradient_scores(at)
    results["residual step"] = residual_step(at)
    results["batch"] = batch_scores(subject, batches) if batches else {}
    print(f"{subject.name}: done", flush=True)
    return results


def probe_table(results: dict[str, dict[str, Any]]) -> str:
    """Format the scores of the ideas for values and, where measured, for gradients."""
    header = ["probes", *(f"{model}: {of}" for model in results for of in ("value", "gradient"))]
    names = next(iter(results.values()))["value"]
    cells = {
        name: [number(r[of][name]) if name in r[of] else "" for r in results.values() for of in ("value", "gradient")]
        for name in names
    }
    return table(header, ([name, *row] for name, row in cells.items()))


def residual_table(results: dict[str, dict[str, Any]]) -> str:
    """Format the bias of the gradient without and with the residual step."""
    first = next(iter(results.values()))["residual step"]
    header = ["estimator", *(f"{model}: {kind}" for model in results for kind in next(iter(first.values())))]
    return table(
        header,
        ([name, *(number(b) for r in results.values() for b in r["residual step"][name].values())] for name in first),
    )


def batch_table(results: dict[str, dict[str, Any]]) -> str:
    """Format the variances over a batch."""
    measured = {model: r["batch"] for model, r in results.items() if r["batch"]}
    header = ["probes of the batch", *(f"{model}: {of}" for model in measured for of in ("value", "gradient"))]
    names = next(iter(measured.values()))
    return table(
        header,
        ([name, *(number(b[name][of]) for b in measured.values() for of in ("value", "gradient"))] for name in names),
    )


TABLES = {"probes": probe_table, "batch": batch_table, "residual": residual_table}


def main() -> None:
    options = arguments(__doc__, images=2)
    results = {}
    for run in options.runs:
        subject = from_run(run, options.data_dir, 64 * 24)
        results[subject.name] = measure(subject, images=options.images, batches=24)
    results["contracting"] = measure(contracting(16), images=16, batches=0)
    save("variance-reduction", results)
    insert_all(TABLES, results)


if __name__ == "__main__":
    main()
