"""Page of the report: all sections of one or several runs, in one file that needs no other."""

__all__ = ["damages", "render", "write_report"]

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from iresnet.errors import RunError
from iresnet.files import distinct_names, write_atomically
from iresnet.report.curves import HEIGHT, WIDTH, curves
from iresnet.report.elements import Block, Panel, Section
from iresnet.report.formatting import clipped
from iresnet.report.overview import overview
from iresnet.report.results import analyses, certificate, evaluation
from iresnet.report.samples import DamagedPictureError, interpolation, read_picture, reconstructions, samples
from iresnet.report.setup import cost, environment, rerun, setup, start_date
from iresnet.runs import Contents, read_contents

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
    page = render([read_contents(path) for path in paths])
    folder = paths[0] if len(paths) == 1 else Path()
    target = out or folder
    target = target / "report.html" if target.is_dir() else target
    write_atomically(target, page)
    return target


def damages(paths: Sequence[Path]) -> list[str]:
    """List what cannot be read of run folders, each in one line.

    Args:
        paths: run folders.

    Raises:
        RunError: when one is no run folder.
    """
    found = []
    for run in map(read_contents, paths):
        found += [f"{run.folder.path}: {problem}" for problem in run.problems]
        for path in sorted(run.folder.path.glob("*/*.png")):
            try:
                read_picture(path, "", "")
            except DamagedPictureError as error:
                found.append(f"{run.folder.path}: {error}")
    return found


def render(runs: Sequence[Contents]) -> str:
    """Render the page, a function of the files and nothing else.

    Args:
        runs: contents of the run folders.
    """
    names = [clipped(name) for name in distinct_names([run.folder.path for run in runs])]
    letters = list(LETTERS[: len(runs)]) if len(runs) > 1 else [""]
    return _template().render(
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs side by side",
        lead=clipped(str(runs[0].settings.get("description") or "")) if len(runs) == 1 else "",
        runs=[{"name": name, "letter": letter} for name, letter in zip(names, letters, strict=True)],
        sections=_sections(runs, names, letters),
        dates=list(dict.fromkeys(filter(None, map(start_date, runs)))),
        version=metadata.version("iresnet"),
        chart={"width": WIDTH, "height": HEIGHT},
    )


def _sections(runs: Sequence[Contents], names: Sequence[str], letters: Sequence[str]) -> list[Section]:
    headings = [f"{letter} {name}".strip() for letter, name in zip(letters, names, strict=True)]
    contents: dict[str, tuple[str, Callable[[Contents], Iterable[Block]]]] = {
        "setup": ("What was trained", partial(setup, alone=len(runs) == 1)),
        "samples": ("Samples over time", samples),
        "reconstructions": ("Reconstructions", reconstructions),
        "interpolation": ("Interpolation", interpolation),
        "evaluation": ("Evaluation", evaluation),
        "certificate": ("Certificate", certificate),
        "analyses": ("Analyses", analyses),
        "cost": ("Cost", cost),
        "environment": ("Environment", environment),
        "rerun": ("Run it again", rerun),
    }
    sections = [
        Section(name, title, [Panel(i, list(show(run))) for i, run in enumerate(runs)])
        for name, (title, show) in contents.items()
    ]
    return [overview(runs, headings), sections[0], curves(runs, letters), *sections[1:]]


@cache
def _template() -> Template:
    """Load the template of the page, which escapes everything that comes into it."""
    loader = PackageLoader("iresnet.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html")
