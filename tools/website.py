"""What the site adds to mkdocs: pages from the root of the repository, formulas as MathML, and roles in docstrings.

mkdocs calls ``on_config`` and ``on_files``, and griffe, which reads the docstrings, makes a :class:`Roles`.
"""

import re
from functools import partial
from pathlib import Path

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
FILES = ("CITATION.cff",)


# -- pages -------------------------------------------------------------------------------------------------------------


def on_files(files, config):
    """Add the pages of the root, with their links as seen from docs/, and files that they link to."""
    for name, target in PAGES.items():
        files.append(File.generated(config, target, content=moved((ROOT / name).read_text())))
    for name in FILES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def moved(text):
    """Change the links of a page at the root into those of the same page in docs/."""
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\]\((\w+\.md)", lambda link: f"]({PAGES.get(link[1], link[1])}", text)


# -- formulas ----------------------------------------------------------------------------------------------------------


def on_config(config):
    """Take fences and inline code of the language math for formulas, drawn by the browser itself."""
    fence = {"name": "math", "class": "math", "format": lambda source, *_, **__: convert(source, display="block")}
    inline = {"name": "math", "class": "math", "format": lambda source, *_: convert(source)}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    config.mdx_configs["pymdownx.inlinehilite"] = {"custom_inline": [inline]}
    return config


# -- docstrings --------------------------------------------------------------------------------------------------------

ROLE = re.compile(r":(\w+):`~?([^`<]*?)(?: <([^>]*)>)?`")
DISPLAY = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*)?)*)", re.MULTILINE)


class Roles(griffe.Extension):
    """The roles of reStructuredText in the docstrings, as Markdown."""

    def on_object(self, *, obj, **_):
        """Rewrite a docstring before it is parsed."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value, obj)


def to_markdown(text, scope):
    r"""Write formulas as code in the language math, and names as links where the site has them.

    Args:
        text: of a docstring, with ``:math:`x```, ``:class:`Name``` and ``.. math::``.
        scope: the object of griffe in which names are looked up.
    """
    text = DISPLAY.sub(
        lambda block: f"{block[1]}```math\n{block[1]}{' '.join(block[2].split())}\n{block[1]}```\n\n", text
    )
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)  # the title that griffe knows
    return ROLE.sub(partial(_role, scope), text.replace(r"\*", "*"))


def _role(scope, role):
    kind, name, target = role[1], role[2], role[3] or role[2]
    if kind == "math":
        return f"`#!math {name}`"
    try:
        target = scope.resolve(target)
    except griffe.NameResolutionError:
        pass
    return f'<autoref identifier="{target}" optional><code>{name.removeprefix("iresnet.")}</code></autoref>'
