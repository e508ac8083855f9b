"""The pages about use: every command line parses and builds its model, every block of code runs."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from marks import slow
from pyarrow import feather
from test_recipes import dataset_of

import iresnet
from iresnet.cli import app
from iresnet.config import Config, load_config, recipe_names
from iresnet.data import Dataset
from iresnet.data.published import UCI
from iresnet.models import inputs_of
from iresnet.options import flag
from iresnet.options import options as declared
from iresnet.training.optim import make_optimizer
from iresnet.training.task import make_task

DOCS = Path(__file__).parent.parent / "docs"
FLAGS = ("--verbose", "--resume", "--dry-run")
PLACES = ("--out", "--tracker", "--data-dir")


def commands(page):
    """Command lines in the blocks of a page, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("iresnet ")]


def commands_in_text(page):
    """Command lines within the text and the tables of a page."""
    return re.findall(r"`(iresnet [^`]*)`", (DOCS / page).read_text())


def overrides_in_tables(page):
    """What the second column of a page's first table gives in place of an option."""
    rows = [line.split("|")[2] for line in (DOCS / page).read_text().splitlines() if line.startswith("| `-")]
    return [code for cell in rows for code in re.findall(r"`(--[^`]*)`", cell)]


def changes(tokens):
    """The changes of a recipe among the tokens of a command line."""
    rest, found = list(tokens), []
    while rest:
        token = rest.pop(0)
        if token in PLACES:
            rest.pop(0)
        elif token not in FLAGS:
            found += [token, rest.pop(0)]
    return found


def builds(recipe, tokens):
    """Build what a command line would train: the whole recipe parses, a model with few blocks is built."""
    config = load_config(recipe, tokens)
    blocks = config.model["blocks"]
    small = ("--model.blocks", "1" if isinstance(blocks, int) else str([1] * len(blocks)), "--model.hidden", "4")
    small += () if config.model["name"] == "resnet" else ("--model.n-power-steps", "1")
    dataset = dataset_of(config)
    small_config = load_config(recipe, [*tokens, *small])
    task = make_task(small_config, dataset, inputs_of(dataset, config.task.kind))
    make_optimizer(task.model, config.optim)
    assert isinstance(dataset, Dataset)


@pytest.mark.parametrize("line", [*commands("migrating.md"), *commands_in_text("migrating.md")])
def test_every_command_for_those_who_come_from_2019_works(line):
    _, *tokens = shlex.split(line)
    app.parse_args(tokens, exit_on_error=False, print_error=False)
    if tokens[0] == "train":
        builds(tokens[1], changes(tokens[2:]))


@pytest.mark.parametrize("code", overrides_in_tables("migrating.md"))
def test_every_option_in_place_of_one_of_2019_works(code):
    tokens = [token.replace("DIR", "runs/x") for token in shlex.split(code)]
    app.parse_args(["train", "cifar10-classify", *tokens], exit_on_error=False, print_error=False)
    density = any(word in code for word in ("logdet", "base", "multiscale"))
    builds("cifar10-density" if density else "cifar10-classify", changes(tokens))


def test_the_options_of_2019_are_all_there():
    text = (DOCS / "migrating.md").read_text()
    rows = " ".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `-"))
    for option in OPTIONS_OF_2019:
        assert re.search(rf"`--?{option}\b", rows), option


OPTIONS_OF_2019 = [
    "densityEstimation",
    "optimizer",
    "lr",
    "coeff",
    "numTraceSamples",
    "numSeriesTerms",
    "powerIterSpectralNorm",
    "weight_decay",
    "drop_rate",
    "batch",
    "init_batch",
    "init_ds",
    "warmup_epochs",
    "inj_pad",
    "epochs",
    "nBlocks",
    "nStrides",
    "nChannels",
    "resume",
    "evaluate",
    "interpolate",
    "drop_two",
    "nesterov",
    "norm",
    "analysisTraceEst",
    "multiScale",
    "fixedPrior",
    "noActnorm",
    "nonlin",
    "dataset",
    "save_dir",
    "vis_port",
    "vis_server",
    "log_every",
    "log_verbose",
    "deterministic",
]


# -- adding to it ----------------------------------------------------------------------------------------------------

BLOCK = re.compile(r"^```(?:python|yaml)\n# (iresnet/\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
DIFF = re.compile(r"^```diff\n--- (iresnet/\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def change(file, diff):
    """Replace the lines of a file that begin with - or a space in a diff by those that begin with + or a space."""
    old, new = ("".join(line[1:] for line in diff.splitlines(True) if line[0] in kept) for kept in (" -", " +"))
    text = file.read_text()
    assert text.count(old) == 1, f"{file.name} should hold once:\n{old}"
    file.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A folder with a copy of the package to which all blocks of extending.md were added."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(Path(iresnet.__file__).parent, folder / "iresnet", ignore=shutil.ignore_patterns("__pycache__"))
    page = (DOCS / "extending.md").read_text()
    for name, code in BLOCK.findall(page):
        with (folder / name).open("a") as file:
            file.write(f"\n\n{code}")
    for name, diff in DIFF.findall(page):
        change(folder / name, diff)
    return folder


SECTIONS = re.split(r"^## ", (DOCS / "extending.md").read_text(), flags=re.MULTILINE)[1:-1]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.partition("\n")[0])
def test_whatever_is_added_touches_two_files_at_most(section):
    files = {name for name, _ in (*BLOCK.findall(section), *DIFF.findall(section))}
    assert 1 <= len(files) <= 2
    what = section.partition("\n")[0]
    assert f"| {what[0].lower()}{what[1:]} |" in (DOCS / "extending.md").read_text()
    row = re.search(rf"^\| {what} \|.*\| (\d) \|[^|]*\|$", (DOCS / "extending.md").read_text(), re.M | re.I)
    assert int(row[1]) == len(files)


def test_whoever_follows_the_page_on_extending_gets_what_it_says(extended):
    lines = commands("extending.md")
    code = "import sys; from iresnet.cli import run; sys.exit(max([run(line.split()[1:]) for line in sys.argv[1:]]))"
    printed = here(extended, "-c", code, *lines)
    for expected in (
        "circle-density",
        "trained circle-density",
        "full-covariance Gaussian",
        "reconstruction error",
        "certified: largest block bound",
        "wrote runs/circle/certificate.json",
    ):
        assert expected in printed
    assert len(lines) == 7
    assert "warning" not in printed.lower()
    assert "NOT certified" not in printed


@pytest.mark.slow
def test_added_parts_keep_the_laws(extended):
    """The tests over the dicts take them up; the linearization and the constant of the activation are checked."""
    shutil.copytree(Path(__file__).parent, extended / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    of_weights = "frobenius and (unchanged or zero or zoo)"
    tests = [f"tests/test_{name}.py" for name in ("lipschitz", "jacobian", "normalization", "config")]
    laws = [*tests, "-k", f"arctan or ({of_weights}) or choices"]
    assert " passed" in here(extended, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *laws)


def test_an_added_format_is_read(extended):
    table = pa.table({"a": [0.5 * i for i in range(40)], "b": [i**1.5 for i in range(40)]})
    feather.write_feather(table, extended / "x.feather")
    code = "from pathlib import Path; from iresnet.data import load; print(load(Path('x.feather')).shape)"
    assert here(extended, "-c", code) == "(2,)\n"


def here(folder, *arguments):
    """Run Python in a folder, on the package in it, and return what it printed."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# -- recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", commands("recipes.md"))
def test_every_command_of_the_page_on_recipes_works(line):
    _, command, recipe, *tokens = shlex.split(line)
    app.parse_args([command, recipe, *tokens], exit_on_error=False, print_error=False)
    if recipe.startswith("uci"):
        assert load_config(recipe, tokens).data.name in UCI
    else:
        builds(recipe, changes(tokens))


def test_the_page_on_recipes_names_them_all():
    text = (DOCS / "recipes.md").read_text()
    assert [name for name in recipe_names() if f"`{name}`" not in text] == []


def test_the_table_of_options_is_what_is_declared():
    """After a change, python tools/option_table.py writes it."""
    page = (DOCS / "recipes.md").read_text()
    assert runpy.run_path(str(DOCS.parent / "tools" / "option_table.py"))["updated"](page) == page


# -- architecture ----------------------------------------------------------------------------------------------------


def test_the_layout_names_every_file():
    """Those of a folder beside its name, those of the package by themselves."""
    page = (DOCS / "architecture.md").read_text()
    layout = re.findall(r"^## Layout\n+```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0]
    package, *folders = re.split(r"^    (\w+)/ ", layout.partition("benchmarks/")[0], flags=re.MULTILINE)
    named = set(re.findall(r"\w+\.py", package))
    for folder, text in zip(folders[::2], folders[1::2], strict=True):
        inside, *after = re.split(r"^    (?=\w)", text, flags=re.MULTILINE)
        named |= {f"{folder}/{name}" for name in re.findall(r"\w+\.py", inside)}
        named |= {name for line in after for name in re.findall(r"\w+\.py", line)}
    root = Path(iresnet.__file__).parent
    files = {str(path.relative_to(root)) for path in root.rglob("*.py") if not path.stem.startswith("__")}
    assert named == files


# -- your own data ---------------------------------------------------------------------------------------------------


def test_the_page_on_data_names_every_option_of_your_own():
    named = set(re.findall(r"--(data\.[a-z-]+)", (DOCS / "data.md").read_text()))
    options = {flag(o.name)[2:]: o.help for o in declared(Config) if o.name.startswith("data.")}
    assert named <= set(options)
    assert {name for name, text in options.items() if text.startswith("your")} <= named


@pytest.mark.parametrize("page", ["concepts.md", "data.md", *map(slow, ("gallery.md", "python.md", "scikit-learn.md"))])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL):
        exec(block, {})


@pytest.mark.parametrize("line", commands("gallery.md"))
def test_every_command_of_the_gallery_works(line):
    app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)


@pytest.mark.parametrize("page", ["../README.md", *sorted(path.name for path in DOCS.glob("*.md"))])
def test_commands_that_follow_each_other_train_into_folders_of_their_own(page):
    for block in re.findall(r"^```sh\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL):
        commands = [line.split("  #")[0] for line in block.splitlines() if "iresnet train " in line]
        folders = [
            found[1] if (found := re.search(r"--out (\S+)", line)) else line.partition("iresnet train ")[2].split()[0]
            for line in commands
            if not re.search("--resume|--dry-run", line)
        ]
        assert sorted(set(folders)) == sorted(folders)


PAGES = [*DOCS.glob("*.md"), DOCS.parent / "README.md", *Path(iresnet.__file__).parent.rglob("*.py")]


def test_brackets_are_quoted_for_shells_that_take_them_for_patterns():
    bare = re.compile(r"(?<![\w-])--[a-z][\w.-]*[ =]\[.*")
    assert [(page.name, command) for page in PAGES for command in bare.findall(page.read_text())] == []


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    """As it stands there, but for the number of steps and epochs."""
    monkeypatch.chdir(tmp_path)
    text = (DOCS.parent / "README.md").read_text()
    for long, short in (
        ("range(1000)", "range(2)"),
        ("max_seconds=60", "max_seconds=1"),
        (
            'load_config("digits-density")',
            'load_config("digits-density", ["--train.epochs", "1", "--model.blocks", "[1,1]"])',
        ),
    ):
        assert text.count(long) == 1
        text = text.replace(long, short)
    names = {"torch": torch, "ir": iresnet}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
