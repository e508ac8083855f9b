"""Names to models: architectures with a scale for their data and a base density or a head."""

__all__ = ["ARCHITECTURES", "LOGDETS", "SOLVERS", "Model", "block", "build", "make_logdet", "make_solver", "options_of"]

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from iresnet.architectures import ARCHITECTURES, Shape
from iresnet.bijections import Affine, Chain, Flatten
from iresnet.blocks import LOGDETS, SOLVERS, block, check_options, make_logdet, make_solver, one_of, options_of
from iresnet.classifiers import Classifier, Hybrid
from iresnet.errors import RecipeError
from iresnet.flows import BASES, Flow
from iresnet.inputs import level_scale
from iresnet.renamed import accept_old_names

Model = Flow | Classifier | Hybrid


@accept_old_names
def build(
    name: str,
    *,
    shape: Sequence[int],
    task: str = "density",
    n_classes: int = 0,
    mean: float | Tensor | None = None,
    std: float | Tensor | None = None,
    base: str = "diagonal-normal",
    head_hidden: int = 32,
    **options: Any,
) -> Model:
    r"""Build a model by the name of its architecture.

    Args:
        name: a key of :data:`ARCHITECTURES`.
        shape: \*E, the event shape of the data: (C, H, W) or (D,).
        task: ``"density"`` gives a :class:`~iresnet.Flow`, ``"classify"`` a :class:`~iresnet.Classifier`,
            ``"hybrid"`` a :class:`~iresnet.Hybrid`.
        n_classes: for classifiers and hybrids.
        mean: subtracted from the data first, a number or one a channel, (C, 1, 1). Default: 128 for images, which are
            expected on [0, 256), and 0 for vectors.
        std: the data is then divided by this. Default: 256 for images and 1 for vectors.
        base: base density, one of :data:`iresnet.flows.BASES`.
        head_hidden: channels of the head of a hybrid of images.
        options: arguments of the architecture.

    Returns:
        The model, in train mode.

    Raises:
        UnknownNameError: for an unknown architecture, option or name within.
        RecipeError: when the options do not fit the shape or the task.

    Example:
        >>> flow = build("iresnet-multiscale", shape=(1, 16, 16), blocks=(1, 1), strides=(1, 2), hidden=8)
        >>> flow.bits_per_dim(256 * torch.rand(2, 1, 16, 16)).shape
        torch.Size([2])
    """
    architecture, model = one_of(ARCHITECTURES, "architecture", name), one_of(_TASKS, "task", task)
    check_options(f"architecture '{name}'", architecture, options)
    if task != "classify":
        _check_density(name, task, options)
    default_mean, default_std = level_scale(256) if len(shape) == 3 else (0.0, 1.0)
    scaling = {"mean": default_mean if mean is None else mean, "std": default_std if std is None else std}
    scale, network = Affine(**scaling), architecture(tuple(shape), **options)
    if options.get("logit") is not None:  # which takes [0, 1), where the scale gives [-1/2, 1/2)
        scale = Affine(scaling["mean"] - scaling["std"] / 2, scaling["std"])
    scaled = Chain([scale, *network.bijections]) if isinstance(network, Chain) else nn.Sequential(scale, *network)  # pyright: ignore[reportArgumentType]
    built = model(scaled, tuple(shape), n_classes=n_classes, base=base, head_hidden=head_hidden)
    given = {"name": name, "shape": tuple(shape), "task": task, "base": base, "head_hidden": head_hidden}
    built.origin = {**given, **scaling, **options}
    return built


def _check_density(name: str, task: str, options: Mapping[str, Any]) -> None:
    """Refuse what has no density."""
    if name == "resnet":
        raise RecipeError(
            f"resnet is a plain network without density for the task '{task}'; use iresnet, or classify alone "
            "(--task.nll-weight 0 --task.ce-weight 1)"
        )
    if options.get("injective_pad"):
        raise RecipeError(
            f"injective_pad={options['injective_pad']} leaves no density for the task '{task}': padded images have "
            "volume zero; set injective_pad=0, or use the task 'classify'"
        )
    if options.get("coeff", 0.9) is None:
        raise RecipeError(
            f"coeff=null leaves no density for the task '{task}': unconstrained blocks may fold space, and then "
            "log|det| is not what is estimated; give a coeff in (0, 1), or use the task 'classify'"
        )


def _flow(chain: Chain, shape: Shape, *, base: str, **_: Any) -> Flow:
    z = _dry_forward(chain, shape)
    flat = chain if len(z) == 1 else Chain([*chain.bijections, Flatten(z)])  # pyright: ignore[reportArgumentType]
    return Flow(flat, one_of(BASES, "base density", base)(math.prod(shape)), event_shape=shape)


def _classifier(network: nn.Module, shape: Shape, *, n_classes: int, **_: Any) -> Classifier:
    classifier = Classifier(network, n_classes, event_shape=shape)
    _dry_forward(classifier, shape)
    return classifier


def _hybrid(chain: Chain, shape: Shape, *, n_classes: int, base: str, head_hidden: int) -> Hybrid:
    hybrid = Hybrid(_flow(chain, shape, base=base), n_classes, hidden=head_hidden)
    _dry_forward(hybrid, shape)
    return hybrid


_TASKS: dict[str, Callable[..., Model]] = {"density": _flow, "classify": _classifier, "hybrid": _hybrid}


@torch.no_grad()
def _dry_forward(module: nn.Module, shape: Shape) -> Shape:
    """Run one event of zeros through, which fixes lazy sizes, and return the event shape that comes out."""
    training = module.training
    out = module.eval()(torch.zeros(1, *shape))
    module.train(training)
    return tuple(out.shape[1:])
