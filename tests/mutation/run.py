"""Mutation testing: mutmut breaks the numerics in many small ways, one at a time; the tests have to notice.

python tests/mutation/run.py                 # a tenth of all mutants, the same every time; another with --tenth 0 to 9
python tests/mutation/run.py --only krylov   # every mutant of the modules whose path contains the text

The mutants stay in build/mutation/1 and so on, where `mutmut browse` and `mutmut tests-for-mutant NAME` show more.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "mutation"

# Modules of iresnet/ -> the files of tests/ that hold them; mutmut takes of those the ones that call a function.
GROUPS: dict[str, str] = {
    "logdet.py krylov.py implicit.py": "test_logdet.py test_derivatives.py",
    "series.py probes.py": "test_logdet.py",
    "jacobian.py activations.py": "test_jacobian.py",
    "lipschitz.py parametrization.py normalization.py rescaling.py operators.py bounds.py": (
        "test_lipschitz.py test_normalization.py"
    ),
    "solvers.py accelerated.py precision.py": "test_solvers.py test_precision.py test_float32.py",
    "bijections/*.py": (
        "test_bijections.py test_inversion.py test_memory.py test_chunk.py test_hybrids.py test_certificates.py "
        "test_inputs.py"
    ),
    "certificates.py flows.py": "test_certificates.py test_flows.py",
    "evaluation/classification.py evaluation/detection.py evaluation/uncertainty.py": (
        "test_detection.py test_uncertainty.py test_evaluation.py"
    ),
}
THRESHOLD = 0.75  # of the mutants: some change nothing but speed, or a case that cannot come up

CONFIG = """
[tool.mutmut]
source_paths = ["iresnet"]
only_mutate = {modules}
pytest_add_cli_args_test_selection = {tests}
also_copy = ["benchmarks"]
process_isolation = "forkserver"  # torch, once it has computed, is not safe to fork
timeout_multiplier = 10.0  # the machine may be busy
timeout_constant = 5.0
do_not_mutate_patterns = ['raise \\w', 'warn']  # the wording of messages
"""
CAUGHT = {"killed", "timeout", "segfault"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="modules whose path contains it")
    parser.add_argument("--tenth", type=int, choices=range(10), help="mutants whose number ends in this digit alone")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    tenth = 3 if options.tenth is None and not options.only else options.tenth
    groups = [(find(modules, options.only), tests.split()) for modules, tests in GROUPS.items()]
    groups = [(modules, tests) for modules, tests in groups if modules]
    if not groups:
        parser.error(f"no module of GROUPS has '{options.only}' in its path")
    shutil.rmtree(WORK, ignore_errors=True)
    counts: dict[str, Counter[str]] = {}
    for number, (modules, tests) in enumerate(groups, 1):
        print(f"[{number}/{len(groups)}] {' '.join(modules)}: {' '.join(tests)}", flush=True)
        folder = prepare(WORK / str(number), modules, tests)
        run_mutants(folder, "*" if tenth is None else f"*{tenth}", options.jobs)
        for name, status in results(folder):
            module = next(m for m in modules if name.startswith(m.removesuffix(".py").replace("/", ".") + "."))
            counts.setdefault(module, Counter())[status] += 1
            if status not in CAUGHT:
                print(mutmut(folder, "show", name), flush=True)
        for module in modules:
            print(line(module, counts.get(module, Counter())), flush=True)
    total = sum(counts.values(), Counter())
    print(line("all", total), f"at least {THRESHOLD:.0%} wanted")
    return score(total) < THRESHOLD


def find(modules: str, only: str) -> list[str]:
    """List the modules that fit the patterns and contain the text; a pattern that fits none is out of date."""
    found = []
    for pattern in modules.split():
        paths = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(f"iresnet/{pattern}"))]
        if not paths:
            raise SystemExit(f"no module is named {pattern}: GROUPS is out of date")
        found += [path for path in paths if only in path and Path(path).name != "__init__.py"]
    return found


def prepare(folder: Path, modules: list[str], tests: list[str]) -> Path:
    """Copy the project, written as mutmut needs it."""
    for name in ("iresnet", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    config = CONFIG.format(modules=modules, tests=[f"tests/{name}" for name in tests])
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + config)
    imported = set().union(*(called_by_import(ast.parse(path.read_text())) for path in folder.glob("iresnet/**/*.py")))
    for module in modules:
        path = folder / module
        path.write_text(without_decorators(path.read_text(), imported))
    (folder / "mutants").mkdir()  # or Python remembers that this entry of its path is not there
    return folder


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions and methods that mutmut can change: neither those inside others nor those of nested classes."""
    for node in tree.body:
        yield from (
            f for f in (node.body if isinstance(node, ast.ClassDef) else [node]) if isinstance(f, ast.FunctionDef)
        )


def called_by_import(tree: ast.Module) -> set[str]:
    """Names of what a module calls while it is imported: by statements outside of functions, and as decorators."""
    bodies = [
        statement for node in tree.body for statement in (node.body if isinstance(node, ast.ClassDef) else [node])
    ]
    nodes = [node for node in bodies if not isinstance(node, ast.FunctionDef)]
    decorated = [node for node in (*tree.body, *functions(tree)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    decorators = [decorator for node in decorated for decorator in node.decorator_list]
    calls = [node.func for part in nodes + decorators for node in ast.walk(part) if isinstance(node, ast.Call)]
    return {node.id for node in calls + decorators if isinstance(node, ast.Name)}


def without_decorators(source: str, imported: set[str]) -> str:
    """Write ``f = decorator(f)`` for decorators, under which mutmut changes nothing.

    Caches go: a function takes the tests that call it. What is called by an import alone is marked as not to change:
    mutants are chosen later.
    """
    lines = source.splitlines()
    for function in reversed(list(functions(ast.parse(source)))):
        decorators = [ast.unparse(decorator) for decorator in function.decorator_list]
        if function.name in imported | {"__repr__", "extra_repr"}:
            lines[function.lineno - 1] += "  # pragma: no mutate block"
        if not decorators or decorators[-1] in {"staticmethod", "classmethod", "abstractmethod", "overload"}:
            continue
        kept = [text for text in decorators if not text.startswith(("cache", "lru_cache"))]
        applied = function.name
        for text in reversed(kept):
            applied = f"{text}({applied})"
        lines.insert(function.end_lineno or 0, f"{' ' * function.col_offset}{function.name} = {applied}")
        del lines[function.decorator_list[0].lineno - 1 : function.lineno - 1]
    return "\n".join(lines) + "\n"


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    # Processes that tests start, too, are to find the mutants and not the package that is installed.
    environment = os.environ | {"PYTHONPATH": str(folder / "mutants"), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE)


def mutmut(folder: Path, *arguments: str) -> str:
    return start(folder, *arguments).communicate()[0]


def run_mutants(folder: Path, names: str, jobs: int) -> None:
    """Run mutmut and print, of its many lines of progress, one in half a minute."""
    process, due, written = start(folder, "run", f"--max-children={jobs}", names), 0.0, []
    for text in process.stdout or ():
        written.append(text.rstrip())
        if re.match(r"\S \d+/\d+", text) and time.monotonic() > due:
            print("   ", written[-1], flush=True)
            due = time.monotonic() + 30
    # Before it starts, mutmut checks that tests reach the mutants, that they pass without one and fail where told to.
    if process.wait():
        raise SystemExit("\n".join(written[-40:]))


def results(folder: Path) -> list[tuple[str, str]]:
    """List the mutants that were tried, and what became of them."""
    pairs = [text.strip().rsplit(": ", 1) for text in mutmut(folder, "results", "--all=true").splitlines()]
    return [(name, status) for name, status in pairs if status != "not checked"]


def score(count: Counter[str]) -> float:
    return sum(count[status] for status in CAUGHT) / max(count.total(), 1)


def line(name: str, count: Counter[str]) -> str:
    return f"{name:36} {score(count):4.0%} of {count.total():4} caught " + ", ".join(
        f"{n} {s}" for s, n in count.items()
    )


if __name__ == "__main__":
    sys.exit(main())
