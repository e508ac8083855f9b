"""Files of ONNX: made of a model, compared with torch in onnxruntime, and then put in place."""

__all__ = ["Exported", "draw_probes", "to_onnx"]

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iresnet.bijections import Affine
from iresnet.certificates import certify
from iresnet.classifiers import Classifier, Hybrid
from iresnet.errors import IResNetError, RecipeError, UnknownNameError
from iresnet.export.frozen import WHAT, Block, blocks_of, flow_of, freeze, shapes_of
from iresnet.files import write_atomically
from iresnet.jacobian import Linearization
from iresnet.logdet import Krylov, LogDetEstimate, LogDetEstimator
from iresnet.probes import PROBES
from iresnet.solvers import FixedPointIteration
from iresnet.zoo import Model

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
BATCHES = (1, 2, 5)
"""Batch sizes at which a file is compared with torch."""

ABSOLUTE, RELATIVE = 1e-4, 1e-5
"""Differences from torch that are taken for rounding: a thousand units of float32, summed over all layers."""

# -- inputs ------------------------------------------------------------------------------------------------------------


def draw_probes(model: Model, n_probes: int = 64, *, n: int = 1, probe: str = "fixed", seed: int = 0) -> Tensor:
    """Draw probes for an exported log-density: for each residual block as many numbers as its events have elements.

    Args:
        model: the density.
        n_probes: P, how many are averaged.
        n: M, the number of samples that get probes of their own; 1 for the same probes for all.
        probe: ``"fixed"``, the Hadamard probes of evaluation; ``"hadamard"``, ``"rademacher"`` or ``"gaussian"``.
        seed: of the probes that are drawn.

    Returns:
        Tensor of shape (M, P, B), B being the elements of all blocks, in the order of the data.

    Raises:
        UnknownNameError: for an unknown kind of probe.
        IResNetError: for fewer than one.

    Example:
        >>> import iresnet as ir
        >>> draw_probes(ir.load("digits-density"), 4).shape
        torch.Size([1, 4, 512])
    """
    if probe not in PROBES:
        raise UnknownNameError("probe", probe, PROBES)
    if min(n, n_probes) < 1:
        raise IResNetError(f"the numbers of probes and of samples must be at least 1, got {n_probes} and {n}")
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.stack([v.flatten(1) for v in PROBES[probe](torch.zeros(n, *shape), n_probes, generator)], 1)
        for shape in shapes_of(model, _examples(model, 1)).values()
    ]
    return torch.cat(parts, 2)


def _event_shape(model: Model) -> tuple[int, ...]:
    shape = model.flow.event_shape if isinstance(model, Hybrid) else model.event_shape
    if shape is None:
        raise IResNetError("an exported model has inputs of one shape: build it with event_shape=")
    return shape


def _examples(model: Model, n: int) -> Tensor:
    """Draw inputs on the scale of the data, uniformly: all pixel values of images of so many levels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, *_event_shape(model), generator=generator)
    scale = next((module for module in model.modules() if isinstance(module, Affine)), None)
    return x if scale is None else scale.mean + scale.std * (x - 0.5)


@torch.no_grad()
def _samples(model: Model, n: int) -> Tensor:
    """Draw data of a density, whose log-densities are not far off; of a classifier, or without an inverse, examples."""
    if not isinstance(model, Classifier):
        flow, generator = flow_of(model), torch.Generator().manual_seed(0)
        x = flow.bijection.inverse(flow.base.sample(n, generator=generator), report=lambda *_: None)
        if bool(torch.isfinite(x).all()):
            return x
    return _examples(model, n)


# -- export ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """File that was written, and how it compares with torch.

    Attributes:
        path: the file.
        size: in bytes.
        differences: the largest one from torch, by batch size.
        allowed: the largest that would have been taken for rounding.
    """

    path: Path
    size: int
    differences: dict[int, float]
    allowed: float

    def __str__(self) -> str:
        found = ", ".join(f"{difference:.1e} for {n}" for n, difference in self.differences.items())
        return (
            f"wrote {self.path} ({self.size / 1e6:.1f} MB); largest difference of onnxruntime from torch, by batch "
            f"size: {found} (rounding: up to {self.allowed:.1e})"
        )


def to_onnx(
    model: Model,
    what: str,
    path: str | Path,
    *,
    n_probes: int = 64,
    atol: float = 1e-6,
    max_steps: int = 1000,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Exported:
    r"""Write a model as an ONNX file, after onnxruntime has given the numbers of torch for several batch sizes.

    All have a batch dimension of any size N, and weights that are constants. Data are on the scale of
    :meth:`iresnet.Flow.log_prob`.

    - ``encode``: x (N, \*E) -> z.
    - ``decode``: z -> x, ``residual`` (N,), the largest last change of an element in any block, and ``steps``. Each
      block iterates x <- z - g(x) in a Loop until no sample changes by more than ``atol``, or by the rounding of g.
    - ``log-prob``: x, ``probes`` (M, P, B) -> ``log_prob`` (N,), ``standard_error`` (N,) over independent probes, and
      ``tail_bound`` (N,). Without ``probes`` the Hadamard probes of evaluation are taken, which the file holds; M is 1,
      or N for probes of each sample's own: see :func:`draw_probes`. Each block sums the power series of
      :math:`v^T \log(I + J) v` in a Loop until its tail is proved to be at most ``atol`` nats.
    - ``classify``: x (N, \*E) -> ``logits`` (N, classes).

    Args:
        model: sealed, in float32, on the CPU.
        what: a key of :data:`WHAT`.
        path: the file.
        n_probes: P of the probes that the file holds.
        atol: tolerance of the loops.
        max_steps: of the loops; what they reached is an output.
        facts: more for the metadata of the file, under ``iresnet``, in JSON.
        progress: receives how many of two stages are done: conversion, comparison.

    Raises:
        UnknownNameError: for another ``what``.
        RecipeError: when a package is missing, or the model has no such direction.
        IResNetError: when the model is not certified, which the loops need, or onnxruntime gives other numbers; nothing
            is written then.
    """
    if what not in WHAT:
        raise UnknownNameError("direction to export", what, WHAT)
    _check_packages()
    if not (atol > 0 and max_steps >= 1 and n_probes >= 1):
        raise IResNetError(f"atol, max_steps and n_probes must be positive, got {atol}, {max_steps} and {n_probes}")
    inputs = _inputs(model, what)
    frozen = freeze(model, shapes_of(model, _examples(model, 2)), atol=atol, max_steps=max_steps)
    certificate = certify(model)
    _check_certified(frozen, what)
    proto = _convert(WHAT[what](frozen).eval(), inputs(3, 2))
    progress(1)
    bound = max((block.upper for block in certificate.blocks), default=None)
    known = {"what": what, "iresnet": metadata.version("iresnet"), "certified": certificate.certified}
    known |= {"largest_block_bound": bound, "atol": atol, "max_steps": max_steps, "event_shape": _event_shape(model)}
    proto.metadata_props.add(key="iresnet", value=json.dumps({**known, **(facts or {})}))
    if what == "log-prob":
        _add_default(proto, "probes", draw_probes(model, n_probes))
    content = proto.SerializeToString()
    differences, allowed = _compare(content, model, what, inputs, FixedPointIteration(atol, max_steps=max_steps))
    progress(2)
    write_atomically(Path(path), content)
    return Exported(Path(path), len(content), differences, allowed)


def _check_packages() -> None:
    missing = [name for name in PACKAGES if util.find_spec(name) is None]
    if missing:
        raise RecipeError(
            f"an export needs the packages {', '.join(PACKAGES)}, and {', '.join(missing)} is not installed: pip "
            "install 'iresnet[onnx]'"
        )


def _inputs(model: Model, what: str) -> Callable[..., tuple[Tensor, ...]]:
    """Return a function that makes inputs of so many samples, with probes for each."""
    if what == "classify" and not isinstance(model, (Classifier, Hybrid)):
        raise RecipeError("this model is a density without classes: export encode, decode or log-prob")
    if what == "log-prob":
        flow_of(model)
        return lambda n, m=1: (_samples(model, n), draw_probes(model, 3, n=m, probe="rademacher"))
    if what != "classify":
        _ = model.bijection  # refuses plain networks
    if what == "decode":
        return lambda n, m=1: (model.bijection(_samples(model, n)).detach(),)
    return lambda n, m=1: (_samples(model, n),)


def _check_certified(frozen: nn.Module, what: str) -> None:
    if what not in ("decode", "log-prob"):
        return
    loose = {name: m.bound for name, m in frozen.named_modules() if isinstance(m, Block) and not m.bound < 1}
    if loose:
        name, bound = next(iter(loose.items()))
        raise IResNetError(
            f"the loops of {what} need blocks that are proved to contract in the Euclidean norm, and '{name}' has the "
            f"bound {bound:.4f}; seal the model (iresnet.seal)"
        )


def _convert(module: Any, inputs: tuple[Tensor, ...]) -> Any:
    any_size = torch.export.Dim.DYNAMIC
    sizes = tuple({0: any_size, 1: any_size} if name == "probes" else {0: any_size} for name in module.inputs)
    with _quietly(), torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=sizes, strict=False)
        onnx = torch.onnx.export(
            program, input_names=module.inputs, output_names=module.outputs, dynamo=True, verbose=False
        )
    assert onnx is not None
    return onnx.model_proto


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what the exporter says about itself from the user."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _add_default(proto: Any, name: str, value: Tensor) -> None:
    """Give an input a default: an initializer of its name."""
    from onnx import numpy_helper

    proto.graph.initializer.append(numpy_helper.from_array(value.numpy(), name))


# -- comparison --------------------------------------------------------------------------------------------------------


def _compare(
    content: bytes, model: Model, what: str, inputs: Callable[..., tuple[Tensor, ...]], solver: FixedPointIteration
) -> tuple[dict[int, float], float]:
    """Return the largest difference of onnxruntime from torch for each batch size, and the largest that is allowed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options)
    differences, allowed = {}, math.inf
    for n in BATCHES:
        given = inputs(n, n)
        found, *others = map(np.asarray, session.run(None, _named(WHAT[what].inputs, given)))
        truth = _by_torch(model, what, solver, *given).numpy()
        differences[n] = float(np.abs(found - truth).max()) if found.shape == truth.shape else math.inf
        allowed = min(allowed, _allowed(what, truth, others, solver.atol))
        if not differences[n] <= allowed:
            raise IResNetError(
                f"{what} differs by {differences[n]:.1e} between onnxruntime and torch for a batch of {n}, where "
                f"rounding explains {allowed:.1e}; nothing was written"
            )
    return differences, allowed


def _named(names: tuple[str, ...], tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}


def _allowed(what: str, truth: np.ndarray, others: list[np.ndarray], atol: float) -> float:
    """Return the difference that rounding explains, and the tolerance of a loop, which ends for the whole batch."""
    size = float(np.abs(truth).max())
    loop = {"decode": 10 * atol * max(1.0, size), "log-prob": float(others[-1].max()) if others else 0.0}
    return ABSOLUTE + RELATIVE * size + loop.get(what, 0.0)


class _WithProbe(LogDetEstimator):
    """Krylov estimate of one block with a known probe, for comparison."""

    def __init__(self, v: Tensor):
        self.v, self.krylov = v, Krylov(tol=1e-5, max_steps=40)

    def prepare(self, jacobian: Linearization) -> Callable[[Linearization], Tensor]:
        return self.krylov.prepare(replace(jacobian, direction=self.v))

    def estimate(self, jacobian: Linearization, *, lipschitz: float = math.inf) -> LogDetEstimate:
        return self.krylov.estimate(replace(jacobian, direction=self.v), lipschitz=lipschitz)


@torch.no_grad()
def _by_torch(model: Any, what: str, solver: FixedPointIteration, x: Tensor, *probes: Tensor) -> Tensor:
    """Compute what was exported by the model itself."""
    if what == "classify":
        return model(x)
    if what == "encode":
        return model.bijection(x)
    if what == "decode":
        return model.bijection.inverse(x, solver=solver, report=lambda *_: None)
    flow, shapes = flow_of(model), shapes_of(model, x)
    values = []
    for vectors in probes[0].unbind(1):  # (N, B)
        parts = zip(blocks_of(model).items(), vectors.split([math.prod(s) for s in shapes.values()], 1), strict=True)
        logdets = {block: _WithProbe(part.reshape(-1, *shapes[name])) for (name, block), part in parts}
        values.append(flow.log_prob(x, logdet=logdets))
    return torch.stack(values).mean(0)
