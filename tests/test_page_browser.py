"""The page in a real browser, served by the real command; skipped where either is missing."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, page
from marks import slow
from PIL import Image

import iresnet as ir
from iresnet.cli import run as command_line
from iresnet.data import load
from iresnet.data.columns import to_columns
from iresnet.evaluation import Reference
from iresnet.page.served import ServedModel
from iresnet.pretrained import find_run

pytest.importorskip("gradio")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


# -- the command, the browser, and what they are compared with ---------------------------------------------------------


class Server:
    """The command in a process of its own, on a free port.

    Attributes:
        address: of the page.
        run: what it serves.
        temporary: folder of its temporary files.
    """

    def __init__(self, folder: Path, run: Path, *options: str):
        self.run, self.temporary, self.log = run, folder / "temporary", folder / "log.txt"
        self.temporary.mkdir()
        command = [sys.executable, "-m", "iresnet", "serve", str(run), "--port", "0", *options]
        environment = {**os.environ, "TMPDIR": str(self.temporary)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
        for line in self.process.stdout:
            if match := re.match(r"(http://\S+) \(Ctrl-C ends it\)", line):
                self.address = match[1]
                return
        raise RuntimeError(self.log.read_text())

    def fetch(self, url, **headers):
        """The content at an address."""
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.read()

    @cached_property
    def api(self):
        """The model, to compute what the page should show."""
        run = find_run(self.run)
        x = load("digits").train.shuffled(0).x if run.read_config()[1].shape == (1, 8, 8) else None
        kept = run.read_json("training-scores.json").get("log_likelihood")
        reference = Reference(torch.tensor(kept)) if kept else None
        read = lambda path: torch.from_numpy(np.array(Image.open(path)))[None, None]  # noqa: E731
        return ServedModel(ir.load(run.path), run.read_config()[1], read=read, reference=reference, examples=x)


@pytest.fixture(scope="module")
def serve(trained, tmp_path_factory):
    """A function from the kind of a run to its server, which is started when it is first asked for."""
    started = {}

    def of(kind):
        if kind not in started:
            folder = tmp_path_factory.mktemp(kind)
            run = flowers(folder) if kind == "table" else shutil.copytree(trained(kind), folder / "run")
            started[kind] = Server(folder, run, "--train-examples", "150", "--data-dir", str(folder))
        return started[kind]

    yield of
    for server in started.values():
        server.process.kill()
        server.process.wait(20)
        server.process.stdout.close()


def flowers(folder):
    """A density of a small table: a category, a number, an integer."""
    generator = np.random.default_rng(0)
    kinds = generator.choice(["lily", "<b>rose"], 300)
    rows = zip(kinds, generator.normal(2, 1, 300).round(5), generator.poisson(9, 300), strict=True)
    text = "kind,length,petals\n" + "\n".join(",".join(map(str, row)) for row in rows) + "\n"
    (folder / "flowers.csv").write_text(text)
    options = ("--data.name", "flowers.csv", "--data.one-hot", "kind", "--data.dequantize", "true", "--tracker", "[]")
    options += ("--model.hidden", "8", "--model.blocks", "2", "--train.epochs", "1", "--train.snapshot-every", "1")
    train = ("train", "uci-density", *options, "--data-dir", str(folder), "--out", str(folder / "run"))
    assert command_line(train) == 0
    return folder / "run"


class Visitor:
    """One who looks at a page in the browser."""

    def __init__(self, tab, server, **window):
        self.tab, self.server = tab, server
        tab.open("about:blank")  # a page that is left complains of answers that it does not get any more
        tab.requests.clear()
        tab.errors.clear()
        tab.open(server.address, **window)
        tab.wait("document.querySelector('[role=tab]')")

    @property
    def tabs(self):
        """Names of the tabs, those included that a narrow window has in a menu."""
        return self.tab.evaluate("[...document.querySelectorAll('.tab-container button')].map(b => b.innerText)")

    def choose(self, name):
        """Open a tab, from the menu where it is there."""
        named = f"find(b => b.innerText.trim() === '{name}' && b.offsetParent && b.tabIndex >= 0)"
        tab = f"[...document.querySelectorAll('[role=tab]')].{named}"
        if not self.tab.evaluate(f"!!{tab}"):
            self.tab.click("document.querySelector('.overflow-menu > button')")
            tab = f"[...document.querySelectorAll('.overflow-dropdown button')].{named}"
        self.tab.click(tab)

    def press(self, name):
        """Click on a button."""
        buttons = "[...document.querySelectorAll('button:not([role=tab])')]"
        self.tab.click(f"{buttons}.find(b => b.innerText.trim() === '{name}' && b.offsetParent && b.tabIndex >= 0)")

    def facts(self):
        """What was found about an example, by name."""
        code = "Object.fromEntries([...document.querySelectorAll('.facts > div')].map("
        return self.tab.evaluate(f"{code}d => [d.children[0].innerText, d.children[1].innerText]))")

    def changes(self, code, act):
        """Act, and wait until the value of an expression is another, and something."""
        before = json.dumps(self.tab.evaluate(code))
        act()
        self.tab.wait(f"({code}) && JSON.stringify({code}) !== {json.dumps(before)}")
        return self.tab.evaluate(code)

    def picture(self, label, act):
        """Act, and return the picture of that label when there is another."""
        found = (
            f"[...document.querySelectorAll('.picture')].find(e => e.offsetParent && e.innerText.includes('{label}'))"
        )
        url = self.changes(f"{found}?.querySelector('img')?.src", act)
        return np.asarray(Image.open(io.BytesIO(self.server.fetch(url))).convert("RGB"))

    def check(self):
        """Nothing is wider than the window, nothing asked of another host, nothing wrong in the console."""
        width = self.tab.evaluate("innerWidth")
        assert self.tab.evaluate("document.documentElement.scrollWidth") <= width
        others = [url for url in self.tab.requests if not url.startswith((f"{self.server.address}/", "data:", "blob:"))]
        assert others == []
        assert self.tab.errors == []


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with page(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


UPLOAD = "document.querySelector('input[type=file]:not([accept])')"  # that of the drawing takes images alone
FACTS = "document.querySelector('.facts')?.innerText"
RANGES = "[...document.querySelectorAll('input[type=range]')].filter(e => e.offsetParent)"


def save(x, path):
    """Write a digit to an image file, as the conversion back gives it."""
    Image.fromarray(np.ceil(x[0].numpy() * (256 / 17)).astype(np.uint8)).save(path)
    return path


# -- images ------------------------------------------------------------------------------------------------------------


def test_an_upload_is_scored_and_classified_as_the_api_says(serve, tab, tmp_path):
    server = serve("hybrid")
    visitor, api = Visitor(tab, server), server.api
    assert tab.evaluate("document.querySelector('h1').innerText") == "run"
    x = load("digits").test.x[5]
    path = save(x, tmp_path / "five.png")

    def upload():
        tab.upload(UPLOAD, path)

    tab.wait("document.querySelector('canvas')")
    seen = visitor.picture("what the model sees", upload)
    assert np.array_equal(seen, api.picture(x[None]))
    found, facts = api.examine(x[None]), visitor.facts()
    probability, label = found.predictions.probabilities[0].max(0)
    assert facts["log-likelihood"] == f"{float(found.scores.log_prob):.2f} nats"
    assert facts["bits/dim"] == f"{-float(found.scores.log_prob) / (64 * np.log(2)):.3f}"
    assert float(facts["p-value of likelihood"]) == pytest.approx(found.p_likelihood, abs=1e-3)
    assert float(facts["p-value of typicality"]) == pytest.approx(found.p_typicality, abs=1e-3)
    assert facts["class"] == str(int(label))
    assert float(facts["certified radius"]) == pytest.approx(float(found.predictions.radius), rel=1e-3)
    assert f"with probability {100 * float(probability):.1f} %" in tab.evaluate(FACTS)
    assert "150 training examples" in tab.evaluate("document.querySelector('.histogram').innerText")
    assert tab.evaluate("document.querySelectorAll('.histogram .bar').length") == 40
    visitor.check()


def test_a_file_that_is_no_image_or_of_another_size_is_told_in_words(serve, tab, tmp_path):
    visitor = Visitor(tab, serve("hybrid"))
    (tmp_path / "words.png").write_text("no image")
    Image.new("RGB", (9, 7), "red").save(tmp_path / "wide.png")
    (tmp_path / "page.html").write_text("<script>alert(1)</script>")
    expected = {
        "words.png": "words.png: expected",
        "wide.png": "gray images of 8x8 pixels, got RGB images of 7x9 pixels",
        "page.html": "got '.html'",
    }
    tab.wait("document.querySelector('canvas')")
    for name, words in expected.items():
        tab.upload(UPLOAD, tmp_path / name)
        tab.wait("document.querySelector('.toast-body')")
        said = tab.evaluate("document.querySelector('.toast-body').innerText")
        assert words in said
        assert str(visitor.server.temporary) not in said
        tab.click("document.querySelector('.toast-close')")
        tab.wait("!document.querySelector('.toast-body')")
        tab.click("document.querySelector('[aria-label=\"Clear\"]')")
        tab.wait(UPLOAD)
    assert tab.evaluate(FACTS) is None
    visitor.check()


def test_a_drawing_is_scaled_and_looked_at(serve, tab):
    visitor = Visitor(tab, serve("hybrid"))
    tab.wait("document.querySelector('canvas')")
    x, y = tab.place("document.querySelector('canvas')")
    time.sleep(1)  # the pen is there a little after the canvas
    assert "log-likelihood" in visitor.changes(FACTS, lambda: tab.drag((x - 40, y - 60), (x, y), (x + 30, y + 70)))
    note = tab.evaluate("document.body.innerText")
    assert re.search(r"Your drawing, scaled from \d+x\d+ to 8x8 pixels and 17 levels", note)
    visitor.check()


def test_sliders_move_along_latent_directions_live(serve, tab):
    server = serve("hybrid")
    visitor, api = Visitor(tab, server), server.api
    visitor.choose("Directions")
    tab.wait(f"{RANGES}.length === {len(api.directions.axes)}")
    tab.evaluate(f"{RANGES}[1].focus()")
    end = visitor.picture("decoded", lambda: tab.press("End"))
    assert np.array_equal(end, api.picture(api.move(None, [0.0, 4.0, 0.0, 0.0, 0.0, 0.0])))
    back = visitor.picture("decoded", lambda: visitor.press("Back to the start"))
    assert np.array_equal(back, api.picture(api.move(None, [0.0] * 6)))
    visitor.check()


def test_a_path_between_uploads_is_that_of_the_api(serve, tab, tmp_path):
    server = serve("hybrid")
    visitor, api, x = Visitor(tab, server), server.api, load("digits").test.x[:2]
    visitor.choose("Interpolate")
    files = "[...document.querySelectorAll('input[type=file]:not([accept])')]"
    files += ".filter(e => e.closest('[role=tabpanel]')?.offsetParent)"
    tab.wait(f"{files}.length === 2")
    visitor.press("Interpolate")
    tab.wait("document.querySelector('.toast-body')?.innerText.includes('upload a first and a last image')")
    for i in range(2):
        tab.upload(f"{files}[0]", save(x[i], tmp_path / f"{i}.png"))  # a field that has a file is none any more
        tab.wait(f"document.body.innerText.includes('{i}.png') || document.querySelector('[title=\"{i}.png\"]')")
    shown = visitor.picture("from the first", lambda: visitor.press("Interpolate"))
    path = api.path(x[:1], x[1:], steps=9, kind="spherical")
    assert np.array_equal(shown, api.picture(path, columns=5))
    visitor.check()


def test_samples_are_those_of_this_seed_class_and_temperature(serve, tab):
    server = serve("hybrid")
    visitor, api = Visitor(tab, server), server.api
    visitor.choose("Sample")
    shown = visitor.picture("samples", lambda: visitor.press("Sample"))
    assert np.array_equal(shown, api.picture(api.samples(16)))
    tab.evaluate(f"{RANGES}[0].focus()")
    tab.press("Home")
    shown = visitor.picture("samples", lambda: visitor.press("Sample"))
    assert np.array_equal(shown, api.picture(api.samples(16, temperature=0.0)))
    visitor.check()


def test_the_certificate_is_that_of_the_model(serve, tab):
    server = serve("hybrid")
    visitor, proved = Visitor(tab, server), ir.certify(ir.load(server.run))
    visitor.choose("Certificate")
    tab.wait("document.querySelector('.verdict')")
    assert tab.evaluate("document.querySelector('.verdict').innerText") == proved.verdict
    rows = "[...document.querySelectorAll('.bounds tbody tr')].map(r => [...r.children].map(c => c.innerText))"
    blocks = [[b.name, f"{b.lower:.4f}", f"{b.upper:.4f}", str(b.steps())] for b in proved.blocks]
    layers = [[b.name, f"{b.lower:.4f}", f"{b.upper:.4f}"] for b in proved.layers]
    tab.click("document.querySelector('details summary')")
    assert tab.evaluate(rows) == [*blocks, *layers]
    visitor.check()


# -- rows and points ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_row_is_filled_in_and_scored(serve, tab):
    server = serve("table")
    visitor, api = Visitor(tab, server), server.api
    visitor.press("Look at this row")
    tab.wait("document.querySelector('.facts div')")
    values = tab.evaluate("[...document.querySelectorAll('.fields input')].map(e => e.value)")
    assert values[0] == "<b>rose"
    found = api.examine(api.from_values([values[0], *map(float, values[1:])]))
    assert visitor.facts()["log-likelihood"] == f"{float(found.scores.log_prob):.2f} nats"
    assert float(visitor.facts()["p-value of typicality"]) == pytest.approx(found.p_typicality, abs=1e-3)
    visitor.changes(FACTS, lambda: visitor.press("A training row"))
    visitor.choose("Sample")
    visitor.press("Sample")
    tab.wait("document.querySelector('[data-testid=\"cell-9-0\"]')")
    cells = tab.evaluate("[...document.querySelectorAll('[data-testid^=cell-]')].map(e => e.innerText.trim())")
    kinds, lengths, petals = to_columns(api.columns, api.samples(10))
    assert cells[::3] == kinds.tolist()
    assert list(map(float, cells[1::3])) == pytest.approx(lengths, rel=1e-4)
    assert list(map(int, cells[2::3])) == petals.tolist()
    visitor.check()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        slow("hybrid", ["Example", "Directions", "Interpolate", "Sample", "Certificate"]),
        ("table", ["Example", "Directions", "Sample", "Certificate"]),
        slow("classify", ["Example", "Directions", "Interpolate", "Certificate"]),
    ],
)
def test_every_tab_that_applies_fits_a_phone(kind, expected, serve, tab):
    visitor = Visitor(tab, serve(kind), width=390, dark=kind == "table")
    assert list(dict.fromkeys(visitor.tabs)) == expected
    for name in expected:
        visitor.choose(name)
        for button in ("A training example", "A training row", "Between two training examples", "Sample"):
            shown = "find(b => b.innerText.trim() === '" + button + "' && b.offsetParent && b.tabIndex >= 0)"
            if tab.evaluate(f"!!([...document.querySelectorAll('button:not([role=tab])')].{shown})"):
                visitor.press(button)
                tab.wait("document.querySelector('.facts div, .picture img, table tbody td')")
        visitor.check()


# -- the process -------------------------------------------------------------------------------------------------------


def test_other_names_of_this_machine_are_refused(serve):
    server = serve("hybrid")
    assert b"gradio" in server.fetch(server.address)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        server.fetch(server.address, Host="elsewhere.example")


def test_ctrl_c_ends_it_and_nothing_that_was_uploaded_stays(serve):
    server = serve("hybrid")
    assert any(path.is_file() for path in server.temporary.rglob("*"))
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 130
    assert server.log.read_text() == "iresnet: interrupted\n"
    assert list(server.temporary.iterdir()) == []
