"""The report: runs as one page that needs nothing else."""

__all__ = ["damages", "render", "write_report"]

from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from iresnet.errors import RunError
from iresnet.files import distinct_names, write_atomically
from iresnet.report.curves import HEIGHT, WIDTH, curves
from iresnet.report.elements import Section
from iresnet.report.overview import certificate, overview
from iresnet.report.reading import RunFiles, read_run
from iresnet.report.results import analyses, evaluation
from iresnet.report.samples import DamagedPictureError, interpolation, read_picture, reconstructions, samples
from iresnet.report.setup import cost, environment, rerun, setup, when
from iresnet.report.words import clipped

LETTERS = "ABCDEFGHIJKL"
"""Names of several runs in charts, and so the most that a page holds."""


def write_report(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one or several runs.

    Args:
        paths: run folders.
        out: the file, or a folder for it; ``report.html`` in the run folder of a single run, else here, when None.

    Returns:
        The file.

    Raises:
        RunError: when a path is no run folder, there are too many, or the file cannot be written.
    """
    if not 0 < len(paths) <= len(LETTERS):
        raise RunError(f"a report is of 1 to {len(LETTERS)} run folders, got {len(paths)}")
    page = render([read_run(path) for path in paths])
    folder = paths[0] if len(paths) == 1 else Path()
    target = out or folder
    target = target / "report.html" if target.is_dir() else target
    write_atomically(target, page)
    return target


def damages(paths: Sequence[Path]) -> list[str]:
    """What of run folders cannot be read, each in one line.

    Args:
        paths: run folders.

    Raises:
        RunError: when one is no run folder.
    """
    runs = [read_run(path) for path in paths]
    return [f"{run.path}: {what}" for run in runs for what in (*run.troubles, *_damaged_pictures(run))]


def _damaged_pictures(run: RunFiles) -> Iterator[str]:
    for path in sorted(run.path.glob("*/*.png")):
        try:
            read_picture(path, "", "")
        except DamagedPictureError as error:
            yield str(error)


def render(runs: Sequence[RunFiles]) -> str:
    """The page, a function of the files and nothing else.

    Args:
        runs: what was read.
    """
    names = [clipped(name) for name in distinct_names([run.path for run in runs])]
    letters = list(LETTERS[: len(runs)]) if len(runs) > 1 else [""]
    return _template().render(
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs side by side",
        lead=_lead(runs),
        runs=[{"name": name, "letter": letter} for name, letter in zip(names, letters, strict=True)],
        sections=_sections(runs, names, letters),
        dates=list(dict.fromkeys(filter(None, map(when, runs)))),
        version=metadata.version("iresnet"),
        chart={"width": WIDTH, "height": HEIGHT},
    )


@cache
def _template() -> Template:
    """The page without its contents; all that comes into it is escaped."""
    loader = PackageLoader("iresnet.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html")


def _sections(runs: Sequence[RunFiles], names: Sequence[str], letters: Sequence[str]) -> list[Section]:
    headings = [f"{letter} {name}".strip() for letter, name in zip(letters, names, strict=True)]
    return [
        overview(runs, headings),
        setup(runs),
        curves(runs, letters),
        samples(runs),
        reconstructions(runs),
        interpolation(runs),
        evaluation(runs),
        certificate(runs),
        analyses(runs),
        cost(runs),
        environment(runs),
        rerun(runs),
    ]


def _lead(runs: Sequence[RunFiles]) -> str:
    return clipped(str(runs[0].settings.get("description") or "")) if len(runs) == 1 else ""
