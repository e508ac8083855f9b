"""The analyses: estimators of log-determinants, spectra, inverses and latents, against the truth."""

__all__ = ["analyses"]

from collections.abc import Sequence

from iresnet.report.blocks import Block, Fold, Gallery, Hint, Panel, Section, Text
from iresnet.report.images import DamagedPictureError, read_picture
from iresnet.report.reading import ANALYSES, RunFiles
from iresnet.report.tables import details

_TITLES = {
    "logdet": "Estimators of log-determinants",
    "lipschitz": "Singular values and their bounds",
    "inverse": "Convergence of the inverse",
    "latent": "Latents",
}


def analyses(runs: Sequence[RunFiles]) -> list[Section]:
    """A section for each analysis."""
    return [
        Section(name, _TITLES[name], [Panel(i, _analysis(run, name)) for i, run in enumerate(runs)])
        for name in ANALYSES
    ]


def _analysis(run: RunFiles, name: str) -> list[Block]:
    tree, command = run.analyses.get(name, {}), run.command(f"analyse {name}")
    summary = str(tree.get("summary", ""))
    try:
        picture = read_picture(
            run.path / "analysis" / f"{name}.png", f"{_TITLES[name]}. {summary}".strip(), summary, pixels=False
        )
        damaged = []
    except DamagedPictureError as error:
        picture, damaged = None, [Hint(f"{error}. Draw it again with", command)]
    if not tree and not picture:
        return [*damaged] or [Hint("Not analysed yet. Analyse it with", command)]
    blocks: list[Block] = [Gallery([picture])] if picture else [*damaged, Text(summary)] if summary else [*damaged]
    numbers = details({key: value for key, value in tree.items() if key != "summary"}, _TITLES[name])
    return [*blocks, Fold("Numbers", numbers)] if numbers else blocks
