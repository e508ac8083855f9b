"""Run the notebooks with the iresnet of this Python: in small, as a check, or in full, to write their outputs.

python tools/run_notebooks.py                               all of them in small
python tools/run_notebooks.py --write density-of-images     one of them in full, a minute or two
"""

import argparse
import ast
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"

SMALL = {
    "anomaly-detection": {"SPLITS": 2, "EPOCHS": 2},
    "certified-classifier": {"EPOCHS": 2, "IMAGES": 20, "STEPS": 10},
    "density-of-images": {"EPOCHS": 1, "IMAGES": 40},
    "inside-the-estimators": {"IMAGES": 2, "REPEATS": 10},
}
"""Values of the parameters for a run in small, by notebook."""

STRICT = 'import warnings\n\nimport iresnet\n\nwarnings.simplefilter("error", append=True)\n'
"""Makes an error of a warning that no library filters."""


def names() -> list[str]:
    """List the notebooks."""
    return sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def read(name: str) -> NotebookNode:
    """Read a notebook."""
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def parameters_cell(notebook: NotebookNode) -> NotebookNode:
    """Find the cell with the tag ``parameters``, of which there is one."""
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    return cell


def assigned(source: str) -> set[str]:
    """Return the names that a cell assigns."""
    names = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name))
    return {name.id for name in names if isinstance(name.ctx, ast.Store)}


def make_small(notebook: NotebookNode, values: dict[str, int]) -> None:
    """Change parameters, and make an error of a warning."""
    cell = parameters_cell(notebook)
    if unknown := set(values) - assigned(cell.source):
        raise ValueError(f"not among the parameters: {', '.join(sorted(unknown))}")
    changes = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    notebook.cells.insert(notebook.cells.index(cell) + 1, nbformat.v4.new_code_cell(changes + STRICT))


def execute(notebook: NotebookNode) -> None:
    """Run all cells in a kernel of this Python, in an empty folder; raises at the first error."""
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, kernel_name="python3", timeout=600, record_timing=False, resources=resources).execute()


def write(name: str, notebook: NotebookNode) -> None:
    """Write a notebook without what depends on the machine."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, NOTEBOOKS / f"{name}.ipynb")


def main() -> None:
    """Run some notebooks, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="all by default", metavar="NAME")
    parser.add_argument("--write", action="store_true", help="run in full, and keep the outputs")
    options = parser.parse_args()
    if unknown := set(options.names) - set(names()):
        parser.error(f"no such notebook: {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    def run(name: str) -> str:
        start, notebook = time.monotonic(), read(name)
        if not options.write:
            make_small(notebook, SMALL[name])
        execute(notebook)
        if options.write:
            write(name, notebook)
        return f"{name}: {time.monotonic() - start:.0f} s"

    # A notebook that is kept shows how long it took, alone.
    with ThreadPoolExecutor(1 if options.write else os.cpu_count()) as pool:
        for line in pool.map(run, options.names or names()):
            print(line, flush=True)


if __name__ == "__main__":
    main()
