"""``iresnet recipes``: what can be trained."""

__all__ = ["recipes"]

from rich.table import Table

from iresnet.config import load_config, recipe_names
from iresnet.console import say


def recipes() -> None:
    """List the bundled recipes: task, data, expected result and cost."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("recipe", "task", "data", "expected", "cost"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "recipe")
    for name in recipe_names():
        config = load_config(name)
        table.add_row(name, config.task.kind, config.data.name, config.expected, config.cost)
    say(table)
