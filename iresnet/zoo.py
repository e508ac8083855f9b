"""Names to models: architectures with a scale for their data and a base density or a head."""

__all__ = ["ARCHITECTURES", "LOGDETS", "SOLVERS", "Model", "block", "build", "make_logdet", "make_solver", "options_of"]

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from iresnet.architectures import ARCHITECTURES, Shape, variational_dequantization
from iresnet.bases import BASES, Base, ContextNormal, DiagonalNormal, MixtureNormal
from iresnet.bijections import Affine, Bijection, Chain, Flatten, Spline, Whitening
from iresnet.blocks import LOGDETS, SOLVERS, block, check_options, make_logdet, make_solver, one_of, options_of
from iresnet.classifiers import Classifier, Hybrid
from iresnet.context import N_HIDDEN, ContextEncoder, at_context
from iresnet.errors import RecipeError, UnknownNameError
from iresnet.flows import Flow
from iresnet.inputs import level_scale
from iresnet.renamed import accept_old_names, without_network

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
    components: int = 64,
    whiten: int = 0,
    spline: int = 0,
    head_hidden: int = 32,
    context: int | str | ContextEncoder = 0,
    dequantization: str = "uniform",
    **options: Any,
) -> Model:
    r"""Build a model by the name of its architecture.

    Args:
        name: a key of :data:`ARCHITECTURES`.
        shape: \*E, the event shape of the data: (C, H, W) or (D,).
        task: ``"density"`` gives a :class:`~iresnet.Flow`, ``"classify"`` a :class:`~iresnet.Classifier`,
            ``"hybrid"`` a :class:`~iresnet.Hybrid`.
        n_classes: for classifiers and hybrids, and densities given a class.
        mean: subtracted from the data first, a number or one a channel, (C, 1, 1). Default: 128 for images, which are
            expected on [0, 256), and 0 for vectors.
        std: the data is then divided by this. Default: 256 for images and 1 for vectors.
        base: base density, one of :data:`iresnet.bases.BASES`.
        components: of the base density mixture-normal, normal densities that it consists of.
        whiten: side of the patches of images whose pixels and colors a :class:`~iresnet.Whitening` makes uncorrelated
            before everything; training takes it from the training split; 0 for none.
        spline: bins of a :class:`~iresnet.Spline` of each feature or pixel before the network, which takes edges,
            levels and tails of the data off the blocks; training starts it from the training split; 0 for none.
        head_hidden: channels of the head of a hybrid of images.
        context: of a conditional density: how many numbers the context has, which are encoded by a perceptron of 64
            hidden units; ``"class"`` for one of ``n_classes``; or an encoder.
        dequantization: of densities of integers: ``"uniform"`` noise, or ``"variational"`` noise, which is learned.
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
    options = without_network(options)
    architecture, model = one_of(ARCHITECTURES, "architecture", name), one_of(_TASKS, "task", task)
    check_options(f"architecture '{name}'", architecture, options)
    if task != "classify":
        _check_density(name, task, options)
    is_learned = _is_learned(dequantization, task)
    default_mean, default_std = level_scale(256) if len(shape) == 3 else (0.0, 1.0)
    scaling = {"mean": default_mean if mean is None else mean, "std": default_std if std is None else std}
    encoder = _encoder(context, task, n_classes)
    conditions = {"context": encoder.features} if encoder else {}
    scale, network = Affine(**scaling), architecture(tuple(shape), **options, **conditions)
    if options.get("logit") is not None:  # which takes [0, 1), where the scale gives [-1/2, 1/2)
        scale = Affine(scaling["mean"] - scaling["std"] / 2, scaling["std"])
    fitted = _fitted(tuple(shape), whiten, spline)
    if fitted and options.get("logit") is not None:
        raise RecipeError("whitening and splines give numbers of which there is no logit: leave out these, or logit")
    noise = [variational_dequantization(tuple(shape), Affine(**scaling), **options)] if is_learned else []
    first = [*noise, scale, *fitted]
    scaled = Chain([*first, *network.bijections]) if isinstance(network, Chain) else nn.Sequential(*first, *network)  # pyright: ignore[reportArgumentType]
    make_base = partial(_base, base, components)
    heads = {"n_classes": n_classes, "make_base": make_base, "head_hidden": head_hidden, "encoder": encoder}
    built = model(scaled, tuple(shape), **heads)
    given = {"name": name, "shape": tuple(shape), "task": task, "base": base, "head_hidden": head_hidden}
    given |= {"whiten": whiten} if whiten else {}
    given |= {"spline": spline} if spline else {}
    given |= {"context": context} if encoder else {}
    given |= {"components": components} if base == "mixture-normal" else {}
    given |= {"dequantization": dequantization} if is_learned else {}
    built.origin = {**given, **scaling, **options}
    return built


def _fitted(shape: Shape, whiten: int, spline: int) -> list[Bijection]:
    """Build what training fits to data before the first step."""
    if whiten and (len(shape) != 3 or shape[1] % whiten or shape[2] % whiten):
        raise RecipeError(
            f"whiten is the side of square patches that cover an image, got {whiten} for events of shape {shape}: "
            "choose a divisor of height and width, or 0 for none"
        )
    whitening: list[Bijection] = [Whitening(shape[0], whiten)] if whiten else []
    return [*whitening, *([Spline(shape, spline)] if spline else [])]


def _encoder(context: int | str | ContextEncoder, task: str, n_classes: int) -> ContextEncoder | None:
    if context and task != "density":
        raise RecipeError(f"the task '{task}' takes no context; a density does")
    if isinstance(context, ContextEncoder):
        return context
    if context == "class" and n_classes > 0:
        return ContextEncoder([0.0] * n_classes, [1.0] * n_classes)
    if not isinstance(context, int) or context < 0:
        raise RecipeError(f"context is how many numbers it has, or 'class' with n_classes, got {context!r}")
    return ContextEncoder([0.0] * context, [1.0] * context, hidden=N_HIDDEN) if context else None


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


def _is_learned(dequantization: str, task: str) -> bool:
    """Return whether the noise of integers is learned."""
    if dequantization not in ("uniform", "variational"):
        raise UnknownNameError("dequantization", dequantization, ("uniform", "variational"))
    if dequantization == "variational" and task == "classify":
        raise RecipeError("the task 'classify' takes integers without noise: leave out dequantization")
    return dequantization == "variational"


def _base(name: str, components: int, features: int) -> Base:
    kind = one_of(BASES, "base density", name)
    return MixtureNormal(features, components) if kind is MixtureNormal else kind(features)


def _flow(
    chain: Chain, shape: Shape, *, make_base: Callable[[int], Base], encoder: ContextEncoder | None = None, **_: Any
) -> Flow:
    at_zero = chain if encoder is None else at_context(chain, torch.zeros(1, encoder.features))
    z = _dry_forward(at_zero, shape)
    flat = chain if len(z) == 1 else Chain([*chain.bijections, Flatten(z)])  # pyright: ignore[reportArgumentType]
    density = make_base(math.prod(shape))
    if encoder and isinstance(density, DiagonalNormal):
        density = ContextNormal(density.features, encoder.features)
    return Flow(flat, density, event_shape=shape, context_encoder=encoder)


def _classifier(network: nn.Module, shape: Shape, *, n_classes: int, **_: Any) -> Classifier:
    classifier = Classifier(network, n_classes, event_shape=shape)
    _dry_forward(classifier, shape)
    return classifier


def _hybrid(
    chain: Chain, shape: Shape, *, n_classes: int, make_base: Callable[[int], Base], head_hidden: int, **_: Any
) -> Hybrid:
    hybrid = Hybrid(_flow(chain, shape, make_base=make_base), n_classes, hidden=head_hidden)
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
