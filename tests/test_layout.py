"""The layout: who imports whom, what waits for torch, what is public, and how long a file is."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from house import circles, internal_imports

import iresnet

PACKAGE = Path(iresnet.__file__).parent
FILES = {
    str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py*")) if path.suffix in {".py", ".pyi"}
}
SOURCES = {name: path for name, path in FILES.items() if path.suffix == ".py"}

NUMERICS = {"errors", "jacobian", "lipschitz", "normalization", "activations", "bounds", "solvers", "accelerated"}
NUMERICS |= {"logdet", "krylov", "implicit", "series", "probes", "operators", "precision", "devices", "joint"}
NUMERICS |= {"context", "parametrization", "rescaling", "cayley", "feedthrough"}
MODELS = NUMERICS | {"networks", "bijections", "bases", "flows", "zoo", "certificates"}
MODELS |= {"assembled", "classifiers", "inputs", "pushforward", "blocks", "architectures"}
USE = MODELS | {"capacity", "data", "config", "options", "recipes", "runs", "models", "pictures", "collectives"}
USE |= {"files", "interrupts", "pretrained", "bars", "console"}

ALLOWED = {
    "errors": set(),
    **dict.fromkeys(NUMERICS - {"errors"}, NUMERICS),
    "networks": NUMERICS,
    "bijections": NUMERICS,
    "assembled": NUMERICS | {"bijections"},
    "bases": NUMERICS,
    "flows": NUMERICS | {"assembled", "bases", "bijections"},
    "classifiers": NUMERICS | {"assembled", "networks", "bijections", "flows"},
    "pushforward": NUMERICS | {"bases", "bijections", "flows"},
    "certificates": NUMERICS | {"assembled", "bijections", "flows", "classifiers", "files"},
    "inputs": set(),
    "capacity": {"errors", "zoo"},
    "blocks": NUMERICS | {"bijections"},
    "architectures": NUMERICS | {"bijections", "networks", "blocks"},
    "zoo": MODELS - {"assembled", "certificates", "pushforward"},
    "config": {"errors", "options", "recipes"},
    "options": {"errors"},
    "recipes": {"errors", "options"},
    "signatures": {"options"},
    "files": {"errors"},
    "runs": {"errors", "config", "files", "inputs"},
    "report": {"errors", "config", "files", "runs"},
    "data": {"errors", "devices", "inputs"},
    "launch": {"errors"},
    "collectives": {"errors", "launch"},
    "console": {"launch", "collectives"},
    "bars": {"console"},
    "__init__": MODELS | {"bars", "config", "data", "errors", "pretrained", "training", "export"},
    "interrupts": set(),
    "sklearn": USE | {"training", "evaluation"},
    "page": USE | {"evaluation", "report"},
    "__main__": {"cli", "interrupts"},
}
"""Which parts of the package a part may import besides itself; a part that is not listed may import USE."""


def part(name: str) -> str:
    """The file or folder at the top of the package that a file belongs to."""
    return name.split("/")[0].removesuffix(".pyi").removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Parts of the package that a file imports, anywhere in it."""
    package = ("iresnet", *path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = list(package[: len(package) - node.level + 1]) if node.level else []
            module = origin + (node.module.split(".") if node.module else [])
            names = [[*module, alias.name] for alias in node.names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "iresnet" and len(name) > 1}
    return (found & {part(name) for name in FILES}) - {"renamed"}


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name):
    allowed = {part(n) for n in FILES} if part(name) in {"cli", "commands"} else ALLOWED.get(part(name), USE)
    assert imported(FILES[name]) <= allowed | {part(name)}


def test_the_reader_of_imports_sees_them():
    assert imported(FILES["blocks.py"]) >= {"bijections", "logdet", "series", "solvers"}
    assert imported(FILES["__init__.pyi"]) >= {"networks", "zoo", "jacobian"}
    assert imported(FILES["bijections/residual.py"]) >= {"bijections", "solvers", "jacobian"}


@pytest.mark.parametrize(
    "module",
    [f"iresnet.{name}" for name in ("cli", "config", "errors", "inputs", "launch", "runs", "report")] + ["iresnet"],
)
def test_torch_is_not_imported_before_it_is_needed(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False).returncode == 0


def test_run_folders_are_read_without_torch(trained, tmp_path):
    run, page = str(trained("toy")), str(tmp_path / "page.html")
    calls = f"run(['compare', {run!r}]) or run(['report', {run!r}, '--out', {page!r}])"
    code = f"import sys; from iresnet.cli import run; sys.exit({calls} or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False).returncode == 0


@pytest.mark.parametrize("name", iresnet.__all__)
def test_public_names_exist_and_say_what_they_are(name):
    value = getattr(iresnet, name)
    assert inspect.getdoc(value)
    assert inspect.ismodule(value) or value.__name__ == name


def test_public_names_are_sorted_and_complete():
    stub = ast.parse(FILES["__init__.pyi"].read_text())
    names = {
        alias.asname or alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(iresnet.__all__) == names
    assert list(iresnet.__all__) == sorted(iresnet.__all__)
    with pytest.raises(AttributeError):
        iresnet.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_says_what_it_is_and_what_it_offers(name):
    tree = ast.parse(SOURCES[name].read_text())
    assert re.match(r"\S.*[.:?]", ast.get_docstring(tree) or "")
    if name in {"__main__.py", "__init__.py"}:
        return
    module = importlib.import_module("iresnet." + name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    for offered in getattr(module, "__all__", []):
        assert hasattr(module, offered)


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_is_short_prints_nothing_and_knows_no_machine(name):
    text = SOURCES[name].read_text()
    assert text.count("\n") <= 450
    assert not re.search(r"/(home|work|tmp|Users|root|mnt)/\w", text)
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    assert "print" not in {call.id for call in calls if isinstance(call, ast.Name)}


# -- circles, names and prose ------------------------------------------------------------------------------------------


def test_no_file_is_imported_by_what_it_imports():
    """Anywhere in a file, also for type checkers alone."""
    trees = {Path("iresnet", name): ast.parse(path.read_text()) for name, path in SOURCES.items()}
    imports = internal_imports(trees)
    assert imports["iresnet.bijections.residual"] >= {"iresnet.bijections.base", "iresnet.solvers"}
    assert circles(imports) == []


def test_no_two_files_share_a_name():
    """But for the commands, which are named after the folders and functions that they call."""
    names = [Path(name).stem for name in SOURCES if not name.startswith("commands/")]
    assert sorted({name for name in names if names.count(name) > 1} - {"__init__"}) == []


QUESTIONS = ("What", "Whether", "How", "Where", "Which", "When")
NOT_VERBS = ("The", "A", "An", "Of", "From", "Same", "Each", "All", "Those", "That", "This", "As", "In", "On", "With")


@pytest.mark.parametrize("name", SOURCES)
def test_a_docstring_opens_with_a_verb_or_a_noun(name):
    """Functions with a verb in the imperative (ruff looks for more of that), properties and classes with a noun."""
    for node in ast.walk(ast.parse(SOURCES[name].read_text())):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) or not (text := ast.get_docstring(node)):
            continue
        word = text.split()[0].rstrip(",.:;")
        assert word not in QUESTIONS, text
        is_property = "property" in str([ast.dump(d) for d in getattr(node, "decorator_list", [])])
        if isinstance(node, ast.FunctionDef) and not is_property:
            assert word not in NOT_VERBS, text
