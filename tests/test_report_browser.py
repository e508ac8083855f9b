"""The report in a real browser; skipped without one."""

import shutil

import pytest
from browser import CHROMIUM, page

from iresnet.report import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

CONTRAST = """
(() => {
  const channel = c => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const color = parse(getComputedStyle(element).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const bad = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim()) continue;
    const style = getComputedStyle(element);
    const colors = [parse(element.closest('svg') ? style.fill : style.color), behind(element)].map(luminance);
    const ratio = (Math.max(...colors) + 0.05) / (Math.min(...colors) + 0.05);
    if (ratio < 4.5) bad.push([walker.currentNode.data.trim(), ratio]);
  }
  return bad;
})()
"""
"""Texts whose contrast with what is behind them is below 4.5, with it."""


@pytest.fixture(scope="module")
def pages(full, tmp_path_factory):
    """Pages of one run and of three, with everything that can be shown."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [shutil.copytree(full(kind), folder / kind) for kind in ("hybrid", "toy", "classify")]
    return {"one": write_report(runs[:1]), "three": write_report(runs, folder / "three.html")}


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with page(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("name", ["one", "three"])
def test_a_page_is_sound_and_fits(name, width, dark, pages, tab):
    tab.requests.clear()
    tab.open(pages[name], width=width, dark=dark)
    assert tab.complaints == []
    assert [url for url in tab.requests if not url.startswith("data:")] == [pages[name].as_uri()]
    assert tab.evaluate("innerWidth") == width
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)")
    assert tab.evaluate("document.images.length") > 0
    assert tab.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert tab.evaluate(CONTRAST) == []


def test_the_checks_see_what_is_wrong(tmp_path, tab):
    wrong = "<body style='color: #aaa; background: #fff'>pale<div style='width: 2000px'></div>"
    (tmp_path / "wrong.html").write_text(f"<!doctype html>{wrong}<img src='http://127.0.0.1:9/x.png'>")
    tab.requests.clear()
    tab.open(tmp_path / "wrong.html", width=360)
    assert tab.evaluate("document.documentElement.scrollWidth") > 360
    assert len(tab.evaluate(CONTRAST)) == 1
    assert "http://127.0.0.1:9/x.png" in tab.requests
    assert tab.complaints
    tab.complaints.clear()


def test_everything_can_be_reached_by_keyboard(pages, tab):
    """From the link over the contents to the folds, all that scrolls included."""
    tab.open(pages["one"], width=360)
    reached = []
    for _ in range(80):
        tab.press("Tab")
        reached.append(tab.evaluate("document.activeElement.outerHTML.slice(0, 60)"))
    assert "Skip to content" in reached[0]
    for start in ("<a href", "<summary", '<div class="scroll"'):
        n = tab.evaluate(f"document.querySelectorAll('{start[1:].split(' ')[0]}').length")
        assert n
        assert any(element.startswith(start) for element in reached), start
