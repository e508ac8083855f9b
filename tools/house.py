"""Measure how the package is organized, and print the numbers as a Markdown table.

    python tools/house.py [--root DIR] [--list] [--trace]

``--list`` also names what the numbers count. ``--trace`` adds the files of the package that run in one log-determinant
and in one training step; it needs torch, everything else needs the standard library alone.
"""

import argparse
import ast
import gc
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

PACKAGE = "iresnet"
SHORT, LONG, HELPER = 60, 450, 6
"""Lines of a short file, of a long one, and of a helper that could be inlined."""

QUESTIONS = ("What", "Whether", "How", "Where")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
Texts = dict[Path, str]  # of the files of the package
Measures = dict[str, tuple[str, list[str]]]  # by name: the value, and the names behind it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the repository to measure")
    parser.add_argument("--list", action="store_true", help="name the files and functions that are counted")
    parser.add_argument("--trace", action="store_true", help="run a log-determinant and a training step")
    options = parser.parse_args()
    root = options.root.resolve()
    paths = sorted((root / PACKAGE).rglob("*.py"))
    texts = {path.relative_to(root): path.read_text(encoding="utf-8") for path in paths}
    measures = sizes(root, texts) | contents(texts) | (traces(root) if options.trace else {})
    print("| measure | value |\n| --- | ---: |")
    print("\n".join(f"| {name} | {value} |" for name, (value, _) in measures.items()))
    if options.list:
        for name, (_, found) in measures.items():
            print(f"\n{name}:", *found, sep="\n  ")


# -- files -----------------------------------------------------------------------------------------------------------


def sizes(root: Path, texts: Texts) -> Measures:
    """Count files, lines and words."""
    lines = {str(path): len(text.splitlines()) for path, text in texts.items()}
    short = [name for name, n in lines.items() if n <= SHORT and not name.endswith("__init__.py")]
    stems = Counter(path.stem for path in texts if path.stem != "__init__")
    repeated = [f"{path.stem}: {path}" for path in texts if stems[path.stem] > 1]
    pages = sorted([*root.glob("README.md"), *root.glob("docs/**/*.md")])
    words = {str(page.relative_to(root)): len(page.read_text(encoding="utf-8").split()) for page in pages}
    folders = Counter(str(path.parent) for path in texts)
    folders |= {name: len([*root.glob(f"{name}/**/*.py")]) for name in ("benchmarks", "experiments", "tests", "tools")}
    return {
        "files, lines": (f"{len(lines)}, {sum(lines.values())}", [f"{n} {name}" for name, n in lines.items()]),
        "lines of the median file": (f"{statistics.median(lines.values()):g}", []),
        **_count(f"files of at most {SHORT} lines, without `__init__`", short),
        **_count(f"files above {LONG} lines", [name for name, n in lines.items() if n > LONG]),
        **_count("files whose name another file has", sorted(repeated)),
        "words of README and docs": (str(sum(words.values())), [f"{n} {name}" for name, n in words.items()]),
        "files by folder": (", ".join(f"{name} {n}" for name, n in folders.items()), []),
    }


def _count(name: str, found: list[str]) -> Measures:
    return {name: (str(len(found)), found)}


# -- contents --------------------------------------------------------------------------------------------------------


def contents(texts: Texts) -> Measures:
    """Measure helpers, docstrings and imports by the syntax trees of the package."""
    trees = {path: ast.parse(text) for path, text in texts.items()}
    helpers = [f"{path}: {name}" for path, tree in trees.items() for name in inlinable(tree)]
    n_private = sum(len(_private_functions(tree)) for tree in trees.values())
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    docs = [(path, doc) for path, node in nodes if (doc := ast.get_docstring(node))]
    questions = [f"{path}: {doc}" for path, doc in docs if doc.split()[0] in QUESTIONS]
    imports = internal_imports(trees)
    busiest = max(imports, key=lambda module: len(imports[module]))
    return {
        f"private helpers of at most {HELPER} lines with one caller": (f"{len(helpers)} of {n_private}", helpers),
        f"docstrings that open with {', '.join(QUESTIONS)}": (
            f"{100 * len(questions) / len(docs):.1f} %",
            [text.splitlines()[0] for text in questions],
        ),
        "internal imports of the busiest file": (f"{len(imports[busiest])} ({busiest})", sorted(imports[busiest])),
        **_count("import circles", [" <-> ".join(circle) for circle in circles(imports)]),
    }


def _private_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return [node for node in functions if node.name.startswith("_") and not node.name.startswith("__")]


def inlinable(tree: ast.Module) -> list[str]:
    """Return the private functions of a few lines that are defined once and used once in a file."""
    defined = Counter(node.name for node in _private_functions(tree))
    used = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    used += Counter(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    found = []
    for node in _private_functions(tree):
        body = node.body[1:] if ast.get_docstring(node) else node.body
        n_lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        if n_lines <= HELPER and defined[node.name] == used[node.name] == 1 and not node.decorator_list:
            found.append(node.name)
    return found


def internal_imports(trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """Return the modules of the package that each of them imports, anywhere in its file."""
    names = {path: ".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in trees}
    modules = set(names.values())
    imports: dict[str, set[str]] = {}
    for path, tree in trees.items():
        package = path.parent.parts
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                start = package[: len(package) - node.level + 1] if node.level else ()
                origin = ".".join([*start, *([node.module] if node.module else [])])
                full = (f"{origin}.{alias.name}" for alias in node.names)
                found |= {name if name in modules else origin for name in full}
        imports[names[path]] = (found & modules) - {names[path]}
    return imports


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return groups of modules that import each other, directly or through others."""
    reached = {module: _reachable(module, imports) for module in imports}
    groups = {frozenset(m for m in reached[a] if a in reached[m]) for a in imports if a in reached[a]}
    return sorted(sorted(group) for group in groups)


def _reachable(module: str, imports: dict[str, set[str]]) -> set[str]:
    found, waiting = set(), [*imports[module]]
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += imports[name]
    return found


# -- what runs -------------------------------------------------------------------------------------------------------


def traces(root: Path) -> Measures:
    """Run a log-determinant and ``Trainer.train_step``, and list the files whose functions they enter."""
    sys.path.insert(0, str(root))
    import torch

    import iresnet as ir
    from iresnet.config import load_config
    from iresnet.training import Trainer

    def estimate(mark: Callable[[], None]) -> None:
        block, x = ir.ResidualBlock(ir.networks.mlp(4, 8), logdet=ir.Krylov(3)), torch.randn(2, 4)
        for _ in range(3):
            mark()
            block.forward_and_logdet(x)

    def train(mark: Callable[[], None]) -> None:
        options = "--model.blocks [1,1] --model.hidden 8 --tracker []"
        trainer = Trainer(load_config("digits-density", options.split()), device="cpu")
        x, y = next(iter(trainer.batches.epoch()))
        for _ in range(3):
            mark()
            trainer.train_step(x, y)

    logdet, step = entered(root, estimate), entered(root, train)
    return _count("files entered by one log-determinant", logdet) | _count("files entered by one training step", step)


def entered(root: Path, work: Callable[[Callable[[], None]], object]) -> list[str]:
    """Return the files of the package that run between the second and the third time that the work calls its mark."""
    folder, names, marks = f"{root / PACKAGE}/", [], []

    def profile(frame, event: str, arg: object) -> None:  # noqa: ARG001
        is_import = frame.f_code.co_name == "find_spec"  # of torch, at the first use of something
        if event == "call" and frame.f_code.co_filename.startswith(folder) and not is_import:
            names.append(frame.f_code.co_filename)

    gc.disable()  # a collection runs finalizers, which are no part of the work
    sys.setprofile(profile)
    try:
        work(lambda: marks.append(len(names)))
    finally:
        sys.setprofile(None)
        gc.enable()
    return sorted({str(Path(name).relative_to(root)) for name in names[marks[1] : marks[2]]})


if __name__ == "__main__":
    main()
