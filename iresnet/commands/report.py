"""``iresnet report``: run folders as one page."""

__all__ = ["report"]

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from iresnet.console import complain, say
from iresnet.errors import RunError


def report(
    *runs: Annotated[Path, Parameter(name="RUN", help="Run folders, made by iresnet train.")], out: Path | None = None
) -> int:
    """Write one self-contained page of what the run folders hold, several of them side by side.

    The page opens from disk in any browser. It shows what was measured and drawn, and names the command for what was
    not; it computes nothing itself. A damaged run is shown as far as it can be read, with exit status 1.

    Args:
        runs: Run folders.
        out: The page, or a folder for it; RUN/report.html for one run, report.html here for several, by default.
    """
    if not runs:
        raise RunError("iresnet report needs a run folder, or several: iresnet report RUN...")
    from iresnet.report import damages, write_report

    say(f"wrote {write_report(runs, out)}")
    found = damages(runs)
    for damage in found:
        complain(damage, 1)
    return 1 if found else 0
