"""What the site adds to mkdocs: pages from the root of the repository, formulas as MathML, and roles in docstrings.

mkdocs calls the functions ``on_...``; griffe, which reads the docstrings, makes a :class:`Roles`.
"""

import re
from contextlib import suppress
from functools import partial
from pathlib import Path

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages at the root of the repository, with their names on the site."""

# -- pages -------------------------------------------------------------------------------------------------------------


def on_files(files, config):
    """Add the pages of the root, the file that the README links to, and the notebooks."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=moved((ROOT / name).read_text())))
    for path in (ROOT / "CITATION.cff", *sorted((ROOT / "notebooks").glob("*.ipynb"))):
        files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, **_):
    """Link to the notebooks where the site has them."""
    return markdown.replace("](../notebooks/", "](notebooks/")


def moved(text):
    """Change the links of a page at the root into those of the same page in docs/."""
    text = text.replace("](docs/", "](")
    for name, page in PAGES.items():
        text = text.replace(f"]({name}", f"]({page}")
    return text


# -- formulas ----------------------------------------------------------------------------------------------------------


def on_config(config):
    """Take fences and inline code of the language math for formulas, which the browser draws without a script."""
    fence = {"name": "math", "class": "math", "format": lambda source, *_, **__: drawn(source, "block")}
    inline = {"name": "math", "class": "math", "format": lambda source, *_: drawn(source, "inline")}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    config.mdx_configs["pymdownx.inlinehilite"] = {"custom_inline": [inline]}
    return config


def drawn(source, display):
    """Convert LaTeX to MathML, with the thin spaces around logarithms and determinants that LaTeX sets."""
    space = '<mspace width="0.17em"/>'
    return re.sub(r"(?<!<msub>)<mi>(log|det)</mi>", rf"{space}\g<0>{space}", convert(source, display=display))


# -- docstrings --------------------------------------------------------------------------------------------------------

DISPLAY = re.compile(r"^( *)\.\. math::(.*(?:\n\1 +\S.*)*)", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]*)`")
ROLE = re.compile(r":\w+:`~?([^`<]*?)(?: <([^>]*)>)?`")


class Roles(griffe.Extension):
    """The reStructuredText of docstrings as Markdown."""

    def on_object(self, *, obj, **_):
        """Rewrite a docstring before its sections are read."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value, obj)


def to_markdown(text, scope):
    r"""Write formulas as code in the language math, and names as links where the site has what they name.

    Args:
        text: of a docstring, with ``:math:`x```, ``:class:`Name``` and ``.. math:: x``.
        scope: the object of griffe in which names are looked up.
    """
    text = DISPLAY.sub(lambda block: "{0}```math\n{0}{1}\n{0}```\n".format(block[1], " ".join(block[2].split())), text)
    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)  # the title that griffe knows
    text = INLINE.sub(r"`#!math \1`", text)
    return ROLE.sub(partial(_link, scope), text)


def _link(scope, role):
    name, target = role[1], role[2] or role[1]
    with suppress(griffe.NameResolutionError):
        target = scope.resolve(target)
    return f'<autoref identifier="{target}" optional><code>{name.removeprefix("iresnet.")}</code></autoref>'
