"""The documentation site: built without warnings, complete, read alike on its own, and free of other hosts.

Needs the extra docs, which ``make docs`` installs; the tests in a browser need chromium. Skipped without.
"""

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from browser import CHROMIUM, page
from marks import slow

import iresnet

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")
pytest.importorskip("latex2mathml")

import griffe
import website
from markdown_it import MarkdownIt
from mkdocstrings import Inventory

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [str(path.relative_to(DOCS)) for path in sorted(DOCS.rglob("*.md"))]


def build(config, site):
    """Build the site as make docs does; returns the process, with what it said."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(site),
    ]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=config.parent, env=quiet, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


# -- complete ----------------------------------------------------------------------------------------------------------


def navigated(entries):
    """Pages in the navigation, in order."""
    for entry in entries:
        if isinstance(entry, dict):
            yield from navigated(*entry.values())
        else:
            yield entry


def test_each_page_is_in_the_navigation_once():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(navigated(nav)) == sorted([*PAGES, *website.PAGES.values()])


def documented():
    """Names that the reference is asked to show."""
    pages = [path.read_text() for path in sorted((DOCS / "reference").glob("*.md"))]
    return re.findall(r"^::: iresnet\.(\S+)$", "\n".join(pages), re.MULTILINE)


def test_each_public_name_is_in_the_reference_once():
    assert sorted(set(documented())) == sorted(documented())
    assert [name for name in iresnet.__all__ if name not in documented()] == []


PARTS = ["data", "errors", "evaluation", "export", "networks", "sklearn", "training", "zoo"]


@pytest.mark.parametrize("part", ["iresnet", *(f"iresnet.{name}" for name in PARTS)])
def test_what_a_part_offers_is_described(site, part):
    """Functions and classes, which griffe finds in the source without importing it."""
    with (site / "objects.inv").open("rb") as file:
        described = Inventory.parse_sphinx(file)
    module = importlib.import_module(part)
    offered = [getattr(module, name) for name in module.__all__]
    paths = [f"{o.__module__}.{o.__qualname__}" for o in offered if inspect.isfunction(o) or inspect.isclass(o)]
    assert paths
    assert [path for path in paths if path not in described] == []


def test_docstrings_are_written_for_the_site(site):
    for path in (site / "reference").glob("*.html"):
        text = path.read_text()
        assert not re.search(r":(math|class|func|meth|data|attr|mod):|\.\. math::", text), path.name
    estimators = (site / "reference" / "estimators.html").read_text()
    assert "<math" in estimators
    assert '<a class="autorefs autorefs-internal" ' in estimators


def test_a_docstring_becomes_markdown():
    text = r"""Maps :math:`\mathrm{Lip}(g) < 1` by :meth:`epoch <iresnet.data.Batches.epoch>` of :class:`~iresnet.Flow`.

    .. math::
        a \le
        b

    Example:
        >>> 1
    """
    written = website.to_markdown(text, griffe.Module("iresnet"))
    assert r"`#!math \mathrm{Lip}(g) < 1`" in written
    assert '<autoref identifier="iresnet.data.Batches.epoch" optional><code>epoch</code></autoref>' in written
    assert '<autoref identifier="iresnet.Flow" optional><code>Flow</code></autoref>' in written
    assert "    ```math\n    a \\le b\n    ```\n" in written
    assert "    Examples:\n        >>> 1\n" in written


def test_names_of_functions_stand_apart_in_formulas():
    assert website.drawn(r"D \log p", "inline").count("<mspace") == 2
    assert website.drawn(r"\log_2 p", "inline").count("<mspace") == 0  # an index has two children


# -- links -------------------------------------------------------------------------------------------------------------

FAULTS = {
    "a page that is not there": "[x](nowhere.md)",
    "a heading that is not there": "[x](data.md#nowhere)",
    "a heading that is not on this page": "[x](#nowhere)",
    "a picture that is not there": "![x](pictures/nowhere.png)",
    "a file outside": "[x](../benchmarks/speed.py)",
    "a name that is not in the reference": "[x][iresnet.nowhere]",
}


def test_whatever_is_broken_fails_the_build(tmp_path):
    """Each fault stands on a page of its own, which is not in the navigation either."""
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    for name in ("mkdocs.yml", "CITATION.cff", *website.PAGES):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "iresnet").symlink_to(ROOT / "iresnet")
    for i, fault in enumerate(FAULTS.values()):
        (tmp_path / "docs" / f"fault{i}.md").write_text(f"# Fault\n\n{fault}\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    for i in range(len(FAULTS)):
        assert sum(f"fault{i}.md" in line for line in warnings) == 1, done.stderr
        assert f"  - fault{i}.md" in done.stderr  # among the pages that are not in the navigation


def test_links_of_the_root_lead_to_the_same_pages_on_the_site():
    assert website.moved(
        "[a](docs/data.md#x) [b](CONTRIBUTING.md) ![c](docs/pictures/report.png) [d](CITATION.cff)"
    ) == ("[a](data.md#x) [b](contributing.md) ![c](pictures/report.png) [d](CITATION.cff)")


# -- the same on its own and on the site -------------------------------------------------------------------------------

COUNTED = ("li", "tr", "th", "img", "h1", "h2", "h3")


class Counter(HTMLParser):
    """Counts of tags within the text of a page, and of its blocks of code."""

    def __init__(self, text, *, within):
        super().__init__()
        self.counts, self.within, self.depth = dict.fromkeys(COUNTED, 0), within, 0
        self.feed(text)

    def handle_starttag(self, tag, _):
        if tag == self.within:
            self.depth += 1
        if self.depth and tag in self.counts:
            self.counts[tag] += 1

    def handle_endtag(self, tag):
        if tag == self.within:
            self.depth -= 1


@pytest.mark.parametrize("name", [p for p in PAGES if not p.startswith("reference")] + sorted(website.PAGES))
def test_a_page_has_the_same_parts_where_it_is_read_without_the_site(site, name):
    """Lists, tables, pictures and headings: Markdown has dialects, which disagree on lists most of all."""
    source = ROOT / name if name in website.PAGES else DOCS / name
    on_the_site = site / Path(website.PAGES.get(name, name)).with_suffix(".html")
    alone = MarkdownIt("commonmark").enable("table").render(source.read_text())
    expected = Counter(f"<article>{alone}</article>", within="article").counts
    assert Counter(on_the_site.read_text(), within="article").counts == expected


# -- in a browser ------------------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with page(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@needs_browser
@pytest.mark.parametrize("folder", [".", slow("reference")])
def test_pages_fit_a_phone_and_ask_no_other_host(folder, site, tab):
    """Opened from disk, so that whatever is asked of a network is another host."""
    for path in sorted((site / folder).glob("*.html")):
        if path.name != "404.html":  # its links begin at the root of a server
            tab.open(path, width=390, dark=True)
            assert tab.evaluate("document.documentElement.scrollWidth") == 390, path.name
    assert {address.split(":")[0] for address in tab.requests} <= {"file", "data"}
    assert tab.complaints == []


@needs_browser
def test_the_reader_s_colors_are_taken(site, tab):
    tab.open(site / "concepts.html")
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.open(site / "concepts.html", dark=True)
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light == "rgb(255, 255, 255)"
    assert max(int(channel) for channel in re.findall(r"\d+", dark)[:3]) < 64


@needs_browser
def test_formulas_are_drawn(site, tab):
    """With the width of a formula: browsers that know no MathML show its letters in a row."""
    tab.open(site / "concepts.html")
    sizes = tab.evaluate(
        "[...document.querySelectorAll('math[display=block] msup')].map(e => [e.children.length, "
        "e.children[0].getBoundingClientRect().bottom > e.children[1].getBoundingClientRect().bottom])"
    )
    assert sizes
    assert all(size == [2, True] for size in sizes)
