"""``iresnet certify``: proved bounds of every layer and block."""

__all__ = ["certify"]

from typing import Annotated

from cyclopts import Parameter, validators

from iresnet.commands.arguments import DeviceName, RunFolder, load_run
from iresnet.console import say


def certify(
    run: RunFolder,
    *,
    search_steps: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 100,
    device: DeviceName = "auto",
) -> int:
    """Bound the Lipschitz constant of every layer and block; writes certificate.json; exit status 1 if not certified.

    Upper bounds are proved, lower ones are ratios |g(x)-g(y)|/|x-y| that were found; between them lies the truth. Steps
    are those of the fixed-point iteration that are proved to bring an inverse 100000 times closer.

    Args:
        run: Run folder.
        search_steps: Steps of gradient ascent for the largest ratio of each block.
    """
    from iresnet.certificates import certify as certify_model

    folder, model, _ = load_run(run, device)
    certificate = certify_model(model, search_steps=search_steps)
    sha256 = folder.weights_sha256()
    stored = folder.read_json("certificate.json")
    if stored and stored.get("model_sha256") != sha256:
        say("the stored certificate was of other weights: it is stale, and replaced")
    path = folder.write_json("certificate.json", {"model_sha256": sha256, **certificate.to_dict()})
    say(str(certificate))
    say(f"wrote {path}")
    return 0 if certificate.certified else 1
