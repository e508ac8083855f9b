"""Trained models: of run folders, of the package (each a folder here), and of the hub."""

__all__ = ["find_run", "load", "pretrained_names"]

import re
from importlib import resources
from pathlib import Path

import torch

from iresnet.bijections import ResidualBlock
from iresnet.devices import choose_device
from iresnet.errors import RunError, nearest
from iresnet.models import load_model
from iresnet.runs import Run
from iresnet.zoo import Model

FILES = ("config.yaml", "model.safetensors")
"""Files of a run folder that are needed to rebuild its model."""


def pretrained_names() -> list[str]:
    """List the models that come with the package, sorted.

    Example:
        >>> "digits-density" in pretrained_names()
        True
    """
    return sorted(folder.name for folder in _bundled().iterdir() if (folder / "config.yaml").is_file())


def load(path: str | Path, *, device: str | torch.device = "cpu") -> Model:
    """Rebuild a trained model, sealed, from where it is found first: a folder, the package, the hub.

    Args:
        path: a run folder; or the name of a model that comes with the package, see :func:`pretrained_names`; or
            ``owner/name`` of a repository of the Hugging Face hub that holds the ``config.yaml`` and the
            ``model.safetensors`` of a run.
        device: where to put it: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``, a GPU when there is one.

    Returns:
        A :class:`~iresnet.Flow`, :class:`~iresnet.Classifier` or :class:`~iresnet.Hybrid` in eval mode. Its
        log-densities owe nothing to chance, with whatever estimator it was trained: see
        :func:`iresnet.logdet.default_logdet`.

    Raises:
        RunError: when there is no sound run.
        RecipeError: when there is no such device.

    Example:
        >>> load("digits-density").sample(2).shape
        torch.Size([2, 1, 8, 8])
        >>> load("digits-densty")
        Traceback (most recent call last):
        iresnet.errors.RunError: digits-densty is not a run folder (no config.yaml in it), nor ...; did you mean ...
    """
    model = load_model(find_run(path)).to(choose_device(device))
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            module.logdet = None  # that of the recipe is for training
    return model


def find_run(path: str | Path) -> Run:
    """Find the run that a path or a name stands for, as :func:`load` does.

    Raises:
        RunError: when there is none.

    Example:
        >>> find_run("digits-density").read_config()[1].levels
        17
    """
    name = str(path)
    if Path(path).exists():
        return Run.open(path)
    if name in pretrained_names():
        return Run(_bundled() / name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Run(_download(name))
    hint = nearest(name, pretrained_names())
    raise RunError(
        f"{name} is not a run folder (no config.yaml in it), nor one of the models that come with the package "
        f"({', '.join(pretrained_names())})"
        + (f"; did you mean '{hint}'?" if hint else "; make a run with: iresnet train RECIPE")
    )


def _bundled() -> Path:
    return Path(str(resources.files("iresnet.pretrained")))


def _download(repository: str) -> Path:
    """Fetch a run from the hub into the cache of its client, which has it without a network from then on."""
    from huggingface_hub import snapshot_download  # here: a slow import, which most runs do not need

    try:
        folder = Path(snapshot_download(repository, allow_patterns=list(FILES)))
    except Exception as error:  # the client passes on errors of several network libraries
        reason = " ".join(str(error).split())[:160]
        raise RunError(
            f"{repository} is no run folder, and could not be fetched from the hub ({type(error).__name__}: {reason})"
        ) from error
    for file in FILES:
        if not (folder / file).is_file():
            raise RunError(f"{repository} on the hub has no {file}: it holds no run of iresnet")
    return folder
