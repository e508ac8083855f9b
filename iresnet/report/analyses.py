"""The analyses: estimators of log-determinants, spectra, inverses and latents, against the truth."""

__all__ = ["analyses"]

from collections.abc import Sequence

from iresnet.report.blocks import Block, Fold, Gallery, Heading, Hint, Panel, Section, Text
from iresnet.report.images import DamagedPictureError, read_picture
from iresnet.report.reading import ANALYSES, RunFiles
from iresnet.report.tables import details

_TITLES = {
    "logdet": "Estimators of log-determinants",
    "lipschitz": "Singular values and their bounds",
    "inverse": "Convergence of the inverse",
    "latent": "Latents",
}


def analyses(runs: Sequence[RunFiles]) -> Section:
    """What each analysis found, then those that are missing."""
    panels = []
    for i, run in enumerate(runs):
        done = {name: _analysis(run, name) for name in ANALYSES}
        found = [block for name, blocks in done.items() if blocks for block in (Heading(_TITLES[name]), *blocks)]
        missing = [_missing(run, name) for name, blocks in done.items() if not blocks]
        panels.append(Panel(i, [*found, *missing]))
    return Section("analyses", "Analyses", panels)


def _missing(run: RunFiles, name: str) -> Hint:
    return Hint(f"{_TITLES[name]}: not analyzed yet, run", run.command(f"analyze {name}"))


def _analysis(run: RunFiles, name: str) -> list[Block]:
    """The picture with its sentence, and the numbers in a fold; nothing when there is neither."""
    tree, title, blocks = run.analyses.get(name, {}), _TITLES[name], []
    summary = str(tree.get("summary", ""))
    try:
        picture = read_picture(run.path / f"analysis/{name}.png", f"{title}. {summary}", summary, pixels=False)
    except DamagedPictureError as error:
        picture = None
        blocks.append(Hint(f"{error}: run", run.command(f"analyze {name}")))
    if picture:
        blocks.append(Gallery([picture]))
    elif summary:
        blocks.append(Text(summary))
    if run.stale(tree):
        blocks.append(Hint("This is of other weights than the model has now: run", run.command(f"analyze {name}")))
    numbers = details({key: value for key, value in tree.items() if key not in ("summary", "model_sha256")}, title)
    return [*blocks, Fold("Numbers", numbers)] if numbers else blocks
