"""The report: everything of a run folder or a hint, nothing from elsewhere, and never a traceback."""

import itertools
import json
import re
import shlex
import shutil
import time
from html.parser import HTMLParser

import pytest
import yaml
from marks import slow

from iresnet.cli import run as command_line
from iresnet.config import load_config, to_yaml
from iresnet.errors import RunError
from iresnet.report import write_report
from iresnet.report.curves import BOTTOM, LEFT, RIGHT, TOP, Line, lay_out, ticks
from iresnet.report.page import LETTERS, render
from iresnet.report.samples import read_picture
from iresnet.report.setup import changes
from iresnet.runs import read_contents

KINDS = ("density", "classify", "hybrid", "toy")
EVIL = "<script>alert('x')</script>\"&{{ 7 * 7 }}"
SECTIONS = ("overview", "setup", "curves", "samples", "reconstructions", "interpolation", "evaluation", "certificate")
SECTIONS += ("analyses", "cost", "environment", "rerun")
VOID = {"meta", "link", "img", "br", "path", "rect", "circle"}


class Outline(HTMLParser):
    """What a page consists of; an element that is closed wrongly is an error."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.tags, self.attributes, self.text, self.headings = [], [], [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += f" {' '.join(data.split())}"


@pytest.fixture
def copied(full, tmp_path):
    """A full run to change."""
    return lambda kind="hybrid": shutil.copytree(full(kind), tmp_path / kind)


def page(*paths):
    """The page of runs, and its text as read."""
    text = write_report(paths, paths[0].parent / "page.html").read_text()
    return text, Outline(text)


def words(run):
    """The text of a page, with single spaces."""
    return " ".join(page(run)[1].text.split())


# -- what is on it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_has_every_section_with_what_the_run_holds(kind, full, tmp_path):
    text, outline = page(shutil.copytree(full(kind), tmp_path / kind))
    assert set(SECTIONS) <= set(outline.ids)
    tree = json.loads((full(kind) / "evaluation.json").read_text())
    certificate = json.loads((full(kind) / "certificate.json").read_text())
    if kind == "classify":
        assert "has no density to draw samples from" in outline.text
    else:
        assert f"{tree['likelihood']['bits_per_dim']['mean']:.4f}" in outline.text
        assert "full-covariance Gaussian" in outline.text
    if kind in ("classify", "hybrid"):
        assert f"{100 * tree['classification']['accuracy']:.1f} %" in outline.text
        certified = tree["classification"]["certified"]
        rows = [f"{entry['radius']:g} {100 * entry['accuracy']:.1f} %" for entry in certified]
        assert len(rows) == 4
        assert all(row in " ".join(outline.text.split()) for row in rows)
    worst = max(block["upper"] for block in certificate["blocks"])
    assert f"{worst:.4f}" in outline.text
    assert "✓ certified" in outline.text
    assert outline.text.count("✓ wide") == len(certificate["blocks"])
    n_pictures = 1 if kind == "classify" else 3  # samples of the command, of the snapshot, reconstructions
    assert outline.tags.count("img") == n_pictures
    assert "training time" in outline.text
    assert f"iresnet train --config {tmp_path / kind}/config.yaml" in outline.text
    for missing in ("interpolate", "analyze logdet", "analyze lipschitz", "analyze inverse", "analyze latent"):
        assert f"iresnet {missing} {tmp_path / kind}" in outline.text
    assert len(text) < 400_000


def test_every_metric_is_a_chart_with_its_values_in_words(full, tmp_path):
    run = shutil.copytree(full("hybrid"), tmp_path / "run")
    _, outline = page(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = {key for line in lines for key, value in line.items() if isinstance(value, float)} - {"epoch"}
    labels = [value for tag, name, value in outline.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == len(keys)
    last = [line["bits_per_dim"] for line in lines if line["split"] == "validation"][-1]
    assert any(label.startswith("bits/dim. ") and f"validation: {last:.3f}" in label for label in labels)


def test_the_loss_of_a_density_is_its_bits_per_dim_and_shown_once(full, tmp_path):
    _, outline = page(shutil.copytree(full("density"), tmp_path / "run"))
    labels = [value for tag, name, value in outline.attributes if (tag, name) == ("svg", "aria-label")]
    assert not any(label.startswith("loss") for label in labels)


def test_steps_that_were_skipped_and_layers_that_were_rescaled_are_told(copied):
    run = copied()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"split": "skipped", "step": 7, "epoch": 0.4, "reason": "the gradient of g.7"}) + "\n")
        layers = {"g.3": {"bound": 0.95, "coeff": 0.9}}
        file.write(json.dumps({"split": "excess", "step": 20, "epoch": 1.0, "layers": layers}) + "\n")
    text, outline = page(run)
    assert "1 step not finite and skipped" in outline.text
    assert "the gradient of g.7" in outline.text
    assert "g.3 0.9500 for 0.9000" in outline.text
    assert text.count('class="skipped"') > 3


def test_settings_that_differ_from_the_recipe_come_first_and_make_the_run_again(full, tiny):
    run = read_contents(full("density"))
    changed = changes(run)
    assert changed["model.hidden"] == (8, 64)
    assert changed["train.epochs"] == (1, 20)
    assert "optim.lr" not in changed
    text = page_text(full("density"))
    command = re.search(r"iresnet train digits-density (--.*?) --out", text)[1]
    recipe, *overrides = tiny["density"]
    assert load_config(recipe, shlex.split(command)) == load_config(recipe, overrides)


def page_text(folder):
    write_report([folder], folder.parent / "other.html")
    return Outline((folder.parent / "other.html").read_text()).text


def test_a_command_that_would_make_another_run_is_not_shown(copied):
    run = copied("density")
    tree = yaml.safe_load((run / "config.yaml").read_text())
    del tree["model"]["strides"]  # nothing on the command line takes an option of the recipe away
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    _, outline = page(run)
    assert "iresnet train digits-density" not in outline.text
    assert "iresnet train --config" in outline.text


@pytest.mark.parametrize(("upper", "word"), [(0.5, "✓ wide"), (0.9, "✓ moderate"), (0.99, "✓ thin"), (1.2, "✕ not")])
def test_margins_have_a_word_beside_their_color(upper, word, copied):
    run = copied("density")
    blocks = [{"name": f"b.{i}", "lower": 0.1, "upper": upper} for i in range(20)]
    (run / "certificate.json").write_text(json.dumps({"certified": upper < 1, "blocks": blocks, "layers": []}))
    _, outline = page(run)
    assert outline.text.count(word) >= 20
    assert "8 more blocks" in outline.text
    assert ("Not certified: 20 of 20 blocks" in outline.text) == (upper >= 1)


@pytest.mark.parametrize("name", ["evaluation.json", "certificate.json", "analysis/logdet.json"])
def test_results_of_other_weights_are_told(name, copied):
    run = copied("density")
    (run / "analysis").mkdir(exist_ok=True)
    (run / name).touch()
    tree = json.loads((run / name).read_text() or '{"summary": "fine"}')
    (run / name).write_text(json.dumps({**tree, "model_sha256": "0" * 64}))
    assert "of other weights than the model has now" in page(run)[1].text


STALE = {
    "evaluation.json": ("test bits/dim", "test accuracy"),
    "certificate.json": ("largest block bound",),
    "reconstruction.json": ("largest reconstruction error",),
}


@pytest.mark.parametrize("name", STALE)
def test_headline_numbers_of_other_weights_are_called_stale(name, copied):
    run = copied("hybrid")
    for stale in (False, True):
        if stale:
            tree = json.loads((run / name).read_text())
            (run / name).write_text(json.dumps({**tree, "model_sha256": "0" * 64}))
        tiles = dict(re.findall(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", page(run)[0], re.DOTALL))
        for label, text in tiles.items():
            assert ("stale, of other weights" in text) == (stale and label in STALE[name]), label
        assert set(STALE[name]) <= set(tiles)


def test_what_is_stale_is_never_the_best(full, tmp_path):
    paths = [shutil.copytree(full("density"), tmp_path / name) for name in ("worse", "better")]
    tree = json.loads((paths[1] / "evaluation.json").read_text())
    tree["likelihood"]["bits_per_dim"]["mean"] = 0.125
    tree["model_sha256"] = "0" * 64
    (paths[1] / "evaluation.json").write_text(json.dumps(tree))
    _, outline = page(*paths)
    assert "★ 0.125" not in outline.text
    assert "stale, of other weights" in outline.text


def test_the_error_of_the_whole_split_is_shown_not_that_of_a_few_examples(copied):
    run = copied("density")
    tree = json.loads((run / "reconstruction.json").read_text())
    (run / "reconstruction.json").write_text(json.dumps({**tree, "largest": 0.0123}))
    assert "0.012 of 300 test examples" in words(run)
    (run / "reconstruction.json").write_text(json.dumps({**tree, "largest": None}))
    assert "infinite of 300 test examples" in words(run)
    (run / "reconstruction.json").unlink()
    assert "of 16 validation examples" in words(run)


def test_how_pictures_were_made_is_told(copied, capsys):
    run = copied("density")
    assert "by iresnet sample, at temperature 1 " in words(run)
    assert command_line(["sample", str(run), "-n", "4", "--temperature", "0.7"]) == 0
    assert "by iresnet sample, at temperature 0.7 " in words(run)
    assert command_line(["reconstruct", str(run), "-n", "3", "--solver-examples", "0"]) == 0
    factor = float(capsys.readouterr().out.rpartition("difference times ")[2].partition(")")[0])
    told = re.search(r"The last row is their difference, times ([\d,.e]+)\.", page(run)[1].text)[1]
    assert float(told.replace(",", "")) == pytest.approx(factor, rel=0.05)
    model = run / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-4] + bytes(4))
    text = page(run)[1].text
    assert "The samples at the end are of other weights" in text
    assert "It is of other weights than the model has now" in text


def test_a_run_on_other_data_is_not_headed_by_those_of_its_recipe(tiny, trained, tmp_path):
    recipe, *changes = tiny["density"]
    config = load_config(recipe, [*changes, "--data.name", "photos/"])
    run = shutil.copytree(trained("density"), tmp_path / "run")
    tree = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(to_yaml(config) + yaml.safe_dump({"inputs": tree["inputs"]}))
    text = page(run)[1].text
    assert "photos/" in text
    assert "handwritten" not in text
    assert "expected by the recipe" not in text
    assert "2.16" not in text


def test_what_newer_commands_measure_is_shown_unasked(copied):
    run = copied("density")
    scores = {"log-likelihood": {"auroc": 0.9876, "interval": [0.98, 0.99], "fpr95": 0.05}}
    tree = json.loads((run / "evaluation.json").read_text())
    tree |= {"ood": {"letters": scores}, "reconstruction": {"largest": 3e-7, "solvers": {"anderson": {"steps": 12345}}}}
    (run / "evaluation.json").write_text(json.dumps(tree))
    (run / "analysis").mkdir()
    (run / "analysis" / "logdet.json").write_text(json.dumps({"summary": "Krylov wins.", "rows": [{"bias": 0.12345}]}))
    shutil.copy(run / "samples" / "reconstructions.png", run / "analysis" / "logdet.png")
    _, outline = page(run)
    for expected in ("letters", "0.9876", "anderson", "12,345", "Krylov wins.", "0.1235", "3e-7"):
        assert expected in outline.text
    assert any(name == "alt" and "Krylov wins." in value for _, name, value in outline.attributes)


def test_samples_over_time_are_few(copied):
    run = copied("density")
    first = next((run / "samples").glob("samples-epoch-*.png"))
    for epoch in range(2, 40):
        shutil.copy(first, run / "samples" / f"samples-epoch-{epoch:04d}.png")
    _, outline = page(run)
    captions = re.findall(r"After epoch (\d+)", outline.text)
    assert captions[0] == "1"
    assert captions[-1] == "39"
    assert len(captions) == 6
    assert "6 of 39 snapshots are shown" in outline.text


def test_samples_of_tables_are_rows(copied):
    run = copied("density")
    shutil.rmtree(run / "samples")
    (run / "samples").mkdir()
    (run / "samples" / "samples-epoch-0002.csv").write_text("".join(f"{i}.25,{EVIL[:8]}\n" for i in range(9)))
    _, outline = page(run)
    assert "The first samples of samples-epoch-0002.csv" in outline.text
    assert "4.25" in outline.text
    assert "5.25" not in outline.text


# -- several runs ----------------------------------------------------------------------------------------------------


def test_runs_stand_side_by_side(full, tmp_path):
    paths = [shutil.copytree(full(kind), tmp_path / kind) for kind in ("density", "hybrid", "toy")]
    paths.append(shutil.copytree(full("density"), tmp_path / "again" / "density"))
    text, outline = page(*paths)
    for letter, name in zip("ABCD", ("hybrid/density", "hybrid", "toy", "again/density"), strict=True):
        assert f"{letter} " in outline.text
        assert name.split("/")[-1] in outline.text
    assert "again/density" in outline.text  # two folders of the same name are told apart
    assert "of different data" in outline.text
    assert re.search(r"<code>task.ce_weight</code>.*?<mark>1.0</mark>", text)
    assert {f"tone-{i}" for i in range(4)} == set(re.findall(r'class="line (tone-\d)', text))
    assert outline.ids.count("curves") == 1


def test_the_best_of_comparable_runs_is_marked(full, tmp_path):
    paths = [shutil.copytree(full("density"), tmp_path / name) for name in ("worse", "better")]
    tree = json.loads((paths[1] / "evaluation.json").read_text())
    tree["likelihood"]["bits_per_dim"]["mean"] = 0.125
    (paths[1] / "evaluation.json").write_text(json.dumps(tree))
    _, outline = page(*paths)
    assert outline.text.count("★ 0.125") == 1
    assert "All settings are the same" in outline.text


def test_a_page_is_of_some_runs_but_not_too_many(full, tmp_path):
    for n in (0, len(LETTERS) + 1):
        with pytest.raises(RunError, match=rf"1 to 12 run folders, got {n}"):
            write_report([full("toy")] * n, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


# -- where it is written ---------------------------------------------------------------------------------------------


def test_the_command_writes_where_it_says(copied, tmp_path, capsys, monkeypatch):
    run = copied("toy")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    cases = {
        (str(run),): run / "report.html",
        (str(run), "--out", "mine.html"): tmp_path / "mine.html",
        (str(run), "--out", "folder"): tmp_path / "folder" / "report.html",
        (str(run), str(run)): tmp_path / "report.html",
    }
    for tokens, target in cases.items():
        assert command_line(["report", *tokens]) == 0
        assert target.read_text().startswith("<!doctype html>")
        assert "wrote " in capsys.readouterr().out


BAD = {
    "no run": ([], "needs a run folder"),
    "no folder": (["nowhere"], "nowhere is not a run folder"),
    "one of several is none": (["RUN", "nowhere"], "nowhere is not a run folder"),
    "a file": (["RUN/config.yaml"], "config.yaml is not a run folder"),
    "a folder that is not there": (["RUN", "--out", "no/such/page.html"], "cannot write no/such/page.html"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, trained, tmp_path, capsys, monkeypatch):
    tokens, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    assert command_line(["report", *(token.replace("RUN", str(trained("toy"))) for token in tokens)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# -- damage ----------------------------------------------------------------------------------------------------------

FILES = (
    "env.json",
    "cost.json",
    "evaluation.json",
    "certificate.json",
    "metrics.jsonl",
    "config.yaml",
    "analysis/inverse.json",
)
DAMAGE = {
    "half": b'{"layers": [{"na',
    "no text": b"\xff\xfe\x00\x80",
    "a list": b"[1, 2, 3]",
    "deep": b"[" * 3_000,
    "numbers": b'{"likelihood": 3, "blocks": 4, "layers": {"a": 1}, "sessions": 5, "classification": [], "ood": [1]}',
    "not finite": b'{"a": NaN, "b": Infinity, "c": 1e999, "d": 123456789012345678901234567890}',
    "empty": b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_told_and_the_rest_is_shown(damage, copied):
    for name in FILES:
        run = copied()
        (run / "analysis").mkdir(exist_ok=True)
        (run / name).write_bytes(DAMAGE[damage])
        _, outline = page(run)
        assert set(SECTIONS) <= set(outline.ids)
        if damage in ("half", "no text", "deep"):
            assert re.search(rf"{name} (is damaged|cannot be read)|of {name} cannot be read", outline.text), name
        shutil.rmtree(run)


CUT = ("metrics.jsonl", "model.safetensors", "evaluation.json", "config.yaml", "samples/reconstructions.png")


@pytest.mark.parametrize("name", CUT)
def test_the_report_of_a_damaged_run_is_written_and_fails(name, copied, capsys):
    run = copied()
    assert command_line(["report", str(run)]) == 0
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: len(content) // 2])
    capsys.readouterr()
    assert command_line(["report", str(run)]) == 1
    out, err = capsys.readouterr()
    assert f"wrote {run / 'report.html'}" in out
    assert err.startswith(f"iresnet: {run}: ")
    assert name.split("/")[-1] in err
    assert err.count("\n") == 1
    assert set(SECTIONS) <= set(Outline((run / "report.html").read_text()).ids)


@pytest.mark.parametrize("name", ["evaluation.json", "certificate.json", "cost.json"])
def test_results_without_content_are_damaged(name, copied, capsys):
    run = copied()
    (run / name).write_text("{}")
    assert command_line(["report", str(run)]) == 1
    assert f"{name} is damaged" in capsys.readouterr().err


def mutated(tree, values):
    """Copies of a tree with one of its parts replaced; of a list, one of the first."""
    yield next(values)
    for key in tree if isinstance(tree, dict) else range(min(len(tree), 2)) if isinstance(tree, list) else ():
        for part in mutated(tree[key], values):
            copy = dict(tree) if isinstance(tree, dict) else list(tree)
            copy[key] = part
            yield copy


@pytest.mark.parametrize("name", ["evaluation.json", "certificate.json", slow("cost.json"), slow("config.yaml")])
def test_no_part_of_a_file_is_taken_for_granted(name, copied):
    """Every part in turn becomes something else, of another kind from part to part."""
    run = copied()
    values = itertools.cycle((None, "text", -1e300, [], {"a": [{}]}, True, ""))
    read = read_contents(run)
    for copy in mutated(yaml.safe_load((run / name).read_text()), values):
        setattr(read, name.split(".")[0], copy if isinstance(copy, dict) else {})
        read.__dict__.pop("settings", None)  # of the configuration before
        assert render([read])


@pytest.mark.parametrize("content", [b"", b"no picture", "half", "flipped"])
def test_damaged_pictures_are_told(content, copied):
    run = copied("density")
    path = run / "samples" / "reconstructions.png"
    sound = path.read_bytes()
    half = {"half": sound[: len(sound) // 2], "flipped": sound[:60] + bytes([sound[60] ^ 1]) + sound[61:]}
    path.write_bytes(half.get(content, content))
    _, outline = page(run)
    assert "reconstructions.png is damaged: it is not a whole PNG file" in outline.text


def test_what_a_run_lacks_is_told_with_the_command_that_adds_it(copied):
    run = copied("density")
    for entry in run.iterdir():
        if entry.name != "config.yaml":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    _, outline = page(run)
    for name in ("sample", "reconstruct", "interpolate", "evaluate", "certify", "analyze logdet"):
        assert f"iresnet {name} {run}" in outline.text
    assert f"iresnet train --out {run} --resume" in outline.text
    assert outline.tags.count("img") == 0
    assert len(re.findall("No |Not |not ", outline.text)) >= 8


# -- what a page must never do ---------------------------------------------------------------------------------------


def poisoned(tree):
    """The same tree with all names and texts hostile."""
    if isinstance(tree, dict):
        return {key: poisoned(value) for key, value in tree.items()} | {EVIL: EVIL}
    if isinstance(tree, list):
        return [poisoned(value) for value in tree] + ([EVIL] if tree and isinstance(tree[0], str) else [])
    return EVIL if isinstance(tree, str) else tree


def test_everything_that_comes_from_files_is_escaped(copied):
    run = copied()
    (run / "analysis").mkdir()
    (run / "analysis" / "latent.json").write_text(json.dumps({"summary": EVIL, "rows": [{EVIL: EVIL}]}))
    for name in ("evaluation.json", "certificate.json", "env.json", "cost.json"):
        (run / name).write_text(json.dumps(poisoned(json.loads((run / name).read_text()))))
    (run / "config.yaml").write_text(yaml.safe_dump(poisoned(yaml.safe_load((run / "config.yaml").read_text()))))
    with (run / "metrics.jsonl").open("a") as file:
        line = {"split": "skipped", "step": 3, "epoch": 0.1, "reason": EVIL}
        file.write(json.dumps(line) + "\n" + json.dumps({"split": "train", "step": 30, "epoch": 1.5, EVIL: 3.5}) + "\n")
    evil_folder = run.rename(run.with_name("<b>&\"'"))
    text, outline = page(evil_folder)
    assert "script" not in outline.tags
    assert "b" not in outline.tags
    assert "<script" not in text
    assert outline.text.count("{{ 7 * 7 }}") > 10
    assert not any(name.startswith("on") for _, name, _ in outline.attributes)


@pytest.mark.parametrize("kinds", [("hybrid",), ("density", "toy")])
def test_a_page_asks_for_nothing(kinds, full, tmp_path):
    text, outline = page(*(shutil.copytree(full(kind), tmp_path / kind) for kind in kinds))
    loaded = [value for _, name, value in outline.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert loaded
    assert all(value.startswith(("data:", "#")) for value in loaded)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text
    assert not {"script", "iframe", "object", "form"} & set(outline.tags)


@pytest.mark.parametrize("kinds", [("hybrid",), ("density", "toy", "classify")])
def test_a_page_can_be_read_without_seeing_it(kinds, full, tmp_path):
    _, outline = page(*(shutil.copytree(full(kind), tmp_path / kind) for kind in kinds))
    count = outline.tags.count
    named = [(tag, name) for tag, name, value in outline.attributes if value]
    assert named.count(("img", "alt")) == count("img") > 0
    assert named.count(("th", "scope")) == count("th") > 0
    assert count("caption") == count("table") > 0
    assert ("html", "lang", "en") in outline.attributes
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(outline.headings))
    assert len(outline.ids) == len(set(outline.ids))
    links = {value[1:] for _, name, value in outline.attributes if name == "href" and value.startswith("#")}
    assert links <= set(outline.ids)


def test_a_page_is_a_function_of_the_files(copied):
    run = copied()
    assert page(run)[0] == page(run)[0]


def test_a_page_takes_a_moment(full, tmp_path):
    run = shutil.copytree(full("density"), tmp_path / "run")
    lines = [json.dumps({"split": "train", "step": i, "epoch": i / 100, "loss": 1 / i}) for i in range(1, 20_001)]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    start = time.process_time()
    text, _ = page(run)
    assert time.process_time() - start < 5
    assert len(text) < 400_000


# -- charts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 7), (1e-9, 2e-9), (2.1, 2.1001), (0, 1e12), (-1e300, 1e300)])
def test_ticks_are_few_even_and_told_apart(low, high):
    found = ticks(low, high)
    values, texts = zip(*found, strict=True)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 * (high - low) <= value <= high + 1e-9 * (high - low) for value in values)
    assert len(set(texts)) == len(texts)
    steps = [b - a for a, b in itertools.pairwise(values)]
    assert max(steps) == pytest.approx(min(steps))


def coordinates(curve):
    return [tuple(map(float, point.split())) for point in re.findall(r"[ML]([-\d.]+ [-\d.]+)", curve.path)]


def test_a_curve_spans_its_axes():
    chart = lay_out("x", "", [Line("a", [(0, 1.0), (5, 3.0), (10, 2.0)], 0)])
    (curve,) = chart.curves
    x, y = zip(*coordinates(curve), strict=True)
    assert (x[0], x[-1]) == (LEFT, RIGHT)
    assert x[1] == pytest.approx((LEFT + RIGHT) / 2)
    assert TOP < y[1] < y[2] < y[0] < BOTTOM
    assert chart.description == "x. a: from 1 to 2, least 1, largest 3."


def test_a_logarithmic_axis_has_equal_steps_for_equal_ratios():
    (curve,) = lay_out("x", "", [Line("a", [(0, 1.0), (1, 10.0), (2, 100.0), (3, 0.0)], 0)], log=True).curves
    y = [point[1] for point in coordinates(curve)]
    assert len(y) == 3
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.2)


def test_a_missing_value_interrupts_a_curve_and_a_spike_stays():
    points = [(i, None if i == 500 else 100.0 if i == 777 else 1.0) for i in range(1000)]
    (curve,) = lay_out("x", "", [Line("a", points, 0)]).curves
    assert curve.path.count("M") == 2
    assert len(coordinates(curve)) <= 320
    assert min(y for _, y in coordinates(curve)) < TOP + 20


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [1e-320, 1e-320], [1e99, -1e99], [1e200, 1.0], [0.1, 0.1]])
@pytest.mark.parametrize("log", [False, True])
def test_any_values_can_be_drawn(values, log):
    points = list(enumerate([*values, 2.0]))
    chart = lay_out("x", "", [Line("a", points, 0, letter="A")], log=log, limit=None if log else 1.0)
    assert chart.curves
    assert "nan" not in repr(chart)


def test_pictures_that_are_not_there_are_none(tmp_path):
    assert read_picture(tmp_path / "no.png", "", "") is None
