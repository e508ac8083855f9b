"""Writes the table of all options into docs/recipes.md, from where they are declared."""

from pathlib import Path

from iresnet.commands.train import listing
from iresnet.options import flag

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
MARKS = ("<!-- options -->\n", "<!-- /options -->\n")


def table() -> str:
    """Write every option of a recipe as a row: name, type, default, help with limits."""
    rows = ["| option | type | default | |", "|---|---|---|---|"]
    for o in listing():
        limits = f"; {o.limits}" if str(o.limits) else ""
        rows.append(f"| `{flag(o.name)}` | {o.type.replace(' | ', ' or ')} | `{o.default}` | {o.help}{limits} |")
    return "\n".join(rows) + "\n"


def updated(page: str) -> str:
    """Return the page with the table of today."""
    before, _, rest = page.partition(MARKS[0])
    return before + MARKS[0] + table() + MARKS[1] + rest.partition(MARKS[1])[2]


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text()))
