"""Models as folders that others can load, here or on the hub: weights, recipe, certificate and card."""

__all__ = ["from_pretrained", "push_to_hub", "save_pretrained"]

import copy
import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from iresnet.certificates import Certificate, certify, seal
from iresnet.errors import RecipeError, RunError
from iresnet.files import finite_or_none, write_folder_atomically
from iresnet.models import build_model, load_model, recipe_of, weights_of
from iresnet.pretrained import FILES, find_run, onto
from iresnet.pretrained.card import Card
from iresnet.runs import config_text
from iresnet.zoo import Model

_LOADED = (*FILES, "certificate.json")
_WRITTEN = (*_LOADED, "evaluation.json", "README.md")
_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


def save_pretrained(
    model: Model | str | Path,
    folder: str | Path,
    *,
    license: str = "unknown",  # noqa: A002 (the name on cards)
    figures: Mapping[str, str | float] | None = None,
    name: str | None = None,
) -> Path:
    """Save a model as a folder to publish: weights, recipe, certificate, and a card with figures and license.

    ``config.yaml``, ``model.safetensors``, ``certificate.json``, ``README.md``, and ``evaluation.json`` where there is
    one of these weights. It is loaded by :func:`from_pretrained`, and by every command as a run folder.

    Args:
        model: a model that :func:`iresnet.zoo.build` built or :func:`iresnet.load` loaded; or a run folder or the name
            of a model of the package, whose evaluation then stands on the card. A model that is not certified is
            sealed first, as a copy.
        folder: where to; it must be new, empty, or one of this kind, which is replaced.
        license: of the weights, as the hub writes it: mit, apache-2.0, cc-by-4.0. You choose it: the data that a
            model was trained on may bind it.
        figures: results for the card, by what they are.
        name: title of the card; that of the recipe or of the folder when None.

    Returns:
        The folder.

    Raises:
        RecipeError: when the model cannot be built again from names, or not with these weights.
        RunError: when the folder holds anything else, or there is no such run.
        WriteError: when it cannot be written.

    Example:
        >>> folder = Path(tempfile.mkdtemp()) / "digits"
        >>> sorted(path.name for path in save_pretrained("digits-density", folder, license="mit").iterdir())
        ['README.md', 'certificate.json', 'config.yaml', 'evaluation.json', 'model.safetensors']
        >>> from_pretrained(folder).sample(2).shape
        torch.Size([2, 1, 8, 8])
    """
    target = _check_target(Path(folder))
    if not re.fullmatch(r"[\w.+-]+", license):
        raise RecipeError(f"license must be an identifier such as mit or cc-by-4.0, got {license!r}")
    if isinstance(model, (str, Path)):
        run = find_run(model)
        model = load_model(run)
        weights, config = run.model_file.read_bytes(), run.config_file.read_text(encoding="utf-8")
        certificate, evaluation = certify(model), run.read_json("evaluation.json")
    else:
        weights, config, certificate = _contents(model)
        evaluation = {}
    tree = _certificate_tree(certificate, weights, config)
    if evaluation.get("model_sha256") not in (None, tree["model_sha256"]):
        evaluation = {}  # of other weights; those of early versions do not tell
    recipe, inputs = recipe_of(model)
    title = name or recipe.name or target.name
    card = Card(title, recipe, inputs, model, certificate, evaluation, figures or {}, license)
    files = {
        "config.yaml": config,
        "certificate.json": json.dumps(tree, indent=2) + "\n",
        **({"evaluation.json": json.dumps(evaluation, indent=2) + "\n"} if evaluation else {}),
        "README.md": card.text(),
    }
    write_folder_atomically(target, {"model.safetensors": weights, **{k: v.encode() for k, v in files.items()}})
    return target


def from_pretrained(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    token: str | None = None,
) -> Model:
    """Load a model that :func:`save_pretrained` saved, from a folder, the package or the hub, and believe nothing.

    Every tensor of the model has to be in the file and no other; weights and recipe have to be those that were
    certified. Nothing is unpickled. A repository is kept in the cache of the hub's client, so that it loads without a
    network from then on.

    Args:
        path: a folder; the name of a model that comes with the package; or ``owner/name`` of a repository.
        device: where to put it, see :func:`iresnet.load`.
        revision: of a repository: branch, tag or commit.
        token: for the hub, if the one that its client remembers is not wanted.

    Returns:
        The model in eval mode, as :func:`iresnet.load` returns it.

    Raises:
        RunError: when a file is missing or damaged, a tensor is missing or unknown (by name), weights or recipe have
            changed since they were certified, or the model is only there as a pickle.
        RecipeError: when there is no such device.

    Example:
        >>> from_pretrained("digits-density").bits_per_dim(torch.full((1, 1, 8, 8), 8.5)).shape
        torch.Size([1])
    """
    if Path(path).is_dir():
        _check_complete(Path(path))
    run = find_run(path, files=_LOADED, revision=revision, token=token)
    _check_complete(run.path)
    model = load_model(run)
    certificate = run.read_json("certificate.json")
    facts = {"model_sha256": run.model_file, "config_sha256": run.config_file}
    for key, file in facts.items():
        certified = certificate.get(key)
        if certified is None and key == "config_sha256":
            continue  # certificates of run folders are of the weights alone
        if certified != hashlib.sha256(file.read_bytes()).hexdigest():
            raise RunError(
                f"{file} is not what certificate.json was made of ({key} differs): it was changed or damaged; get the "
                "folder again, or certify what is there with iresnet.certify(iresnet.load(folder))"
            )
    try:
        model.note_certificate(Certificate.from_dict(certificate).verdict)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{run.path / 'certificate.json'} is damaged; get the folder again") from error
    return onto(device, model)


def push_to_hub(
    model: Model | str | Path,
    repository: str,
    *,
    license: str = "unknown",  # noqa: A002 (the name on cards)
    figures: Mapping[str, str | float] | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Add the model",
) -> str:
    """Save a model as :func:`save_pretrained` does, and upload the folder to the Hugging Face hub.

    Args:
        model: see :func:`save_pretrained`; so are ``license`` and ``figures``.
        repository: ``owner/name``; made when there is none.
        license: of the weights.
        figures: results for the card.
        private: whether others can see a repository that is made; the owner's default when None.
        token: to write with; the one that the hub's client remembers when None.
        message: of the commit.

    Returns:
        The address of the repository.

    Raises:
        RunError: when the name is none of a repository, or the hub refuses or does not answer.
        RecipeError: see :func:`save_pretrained`.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise RunError(f"a repository of the hub is called owner/name, got {repository!r}")
    from huggingface_hub import HfApi  # here: a slow import

    with tempfile.TemporaryDirectory() as aside:
        folder = save_pretrained(model, Path(aside) / "model", license=license, figures=figures, name=repository)
        try:
            api = HfApi(token=token)
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
        except Exception as error:  # the client passes on errors of several network libraries
            reason = " ".join(str(error).split())[:160]
            raise RunError(f"{repository} could not be uploaded ({type(error).__name__}: {reason})") from error
    return str(address)


# -- what is written ---------------------------------------------------------------------------------------------------


def _check_target(folder: Path) -> Path:
    """Refuse to replace anything but an earlier folder of this kind."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is no folder; choose another")
    others = sorted(path.name for path in folder.iterdir() if path.name not in _WRITTEN) if folder.is_dir() else []
    if others:
        raise RunError(f"{folder} holds something else ({', '.join(others[:3])}); choose a new folder")
    return folder


def _contents(model: Model) -> tuple[bytes, str, Certificate]:
    """Return weights, configuration and certificate of a model, sealed where it is not certified as it is."""
    config, inputs = recipe_of(model)
    sealed = copy.deepcopy(model).eval()
    certificate = certify(sealed)
    if not certificate.certified:
        certificate = seal(sealed)
    tensors = weights_of(sealed)
    if dtypes := {str(t.dtype) for t in tensors.values() if t.is_floating_point()} - {"torch.float32"}:
        raise RecipeError(f"models are saved in float32, got {', '.join(dtypes)}; convert it with model.float()")
    try:
        build_model(config, inputs).load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise RecipeError(f"the model is not the one that was built, and would not load again: {reason}") from error
    return save(tensors), config_text(config, inputs), certificate


def _certificate_tree(certificate: Certificate, weights: bytes, config: str) -> dict[str, Any]:
    sums = {"model_sha256": hashlib.sha256(weights), "config_sha256": hashlib.sha256(config.encode())}
    return {**{key: value.hexdigest() for key, value in sums.items()}, **finite_or_none(certificate.to_dict())}


# -- what is read ------------------------------------------------------------------------------------------------------


def _check_complete(folder: Path) -> None:
    """Name the file that is missing, and the pickle that is there instead."""
    missing = [name for name in _LOADED if not (folder / name).is_file()]
    if not missing:
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles and "model.safetensors" in missing:
        raise RunError(
            f"{folder} has no model.safetensors but {pickles[0]}, a pickle, which is not read since it may run code; "
            "have it saved with iresnet.save_pretrained"
        )
    raise RunError(
        f"{folder} has no {missing[0]}: it was not saved whole by iresnet.save_pretrained; a run folder is loaded with "
        "iresnet.load"
    )
