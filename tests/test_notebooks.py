"""The notebooks: what is kept of them is short and of no machine; they run in make wheel-check."""

import re

import nbformat
import pytest
import run_notebooks as notebooks
from nbclient.exceptions import CellExecutionError

LOCAL = r"/(home|work|tmp|root|Users|mnt|usr|opt)/|site-packages|ipykernel|\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d"
"""What depends on the machine, or on the time of the run."""


def outputs(cell):
    return cell.get("outputs", [])


def texts(output):
    """The texts of an output, without its pictures."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    return [text for kind, text in data.items() if kind.startswith("text/")]


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_there_are_four_and_each_has_small_parameters():
    assert notebooks.names() == sorted(notebooks.SMALL)
    assert len(notebooks.names()) == 4


@pytest.mark.parametrize("name", notebooks.names())
def test_a_notebook_was_run_whole_and_keeps_nothing_of_the_machine(name):
    path = notebooks.NOTEBOOKS / f"{name}.ipynb"
    notebook = notebooks.read(name)
    nbformat.validate(notebook)
    assert path.stat().st_size < 400_000
    assert not re.search(LOCAL, "".join(text for c in notebook.cells for o in outputs(c) for text in texts(o)))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for cell in code for output in cell.outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert {output.get("name", "stdout") for cell in code for output in cell.outputs} == {"stdout"}  # no warnings
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    assert "image/png" in {kind for cell in code for output in cell.outputs for kind in output.get("data", {})}


@pytest.mark.parametrize("name", notebooks.names())
def test_a_notebook_names_how_to_install_and_its_parameters_first(name):
    notebook = notebooks.read(name)
    first, second = notebook.cells[:2]
    assert "pip install" in first.source
    assert second is notebooks.parameters_cell(notebook)
    assert notebooks.assigned(second.source) >= set(notebooks.SMALL[name])
    with pytest.raises(ValueError, match="not among the parameters: BLOCKS"):
        notebooks.make_small(notebook, {"BLOCKS": 1})


# -- what runs -------------------------------------------------------------------------------------------------------


def test_a_warning_is_an_error_in_small():
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("EPOCHS = 5", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("import warnings\nassert EPOCHS == 1\nwarnings.warn('wrong')"),
        ]
    )
    notebooks.make_small(notebook, {"EPOCHS": 1})
    with pytest.raises(CellExecutionError) as raised:
        notebooks.execute(notebook)
    assert (raised.value.ename, raised.value.evalue) == ("UserWarning", "wrong")


TRAINER = """
import os, signal
import iresnet as ir
from iresnet.training.progress import ProgressBar

small = ["--model.blocks=1", "--model.hidden=8", "--train.max-steps=30"]
config = ir.load_config("toy-density", small)

def fail(event):
    if getattr(event, "step", 0) == 7:
        raise ValueError("broken")

def stop(event):
    if getattr(event, "step", 0) == 7:
        os.kill(os.getpid(), signal.SIGINT)
"""
CELLS = {
    "trained": "run = ir.Trainer(config, device='cpu').fit('run')",
    "counted": "with ir.progress('likelihood', 500) as advance:\n    for i in range(500):\n        advance(i + 1)",
    "broken": "ir.Trainer(config, device='cpu', callbacks=[ProgressBar(), fail]).fit('broken')",
    "stopped": "ir.Trainer(config, device='cpu', callbacks=[ProgressBar(), stop]).fit('stopped')",
}


@pytest.fixture(scope="module")
def shown():
    """Outputs of these cells in one kernel, by name."""
    may_fail = {"tags": ["raises-exception"]}
    cells = [nbformat.v4.new_code_cell(source, metadata=may_fail) for source in (TRAINER, *CELLS.values())]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebooks.execute(notebook)
    return {name: outputs(cell) for name, cell in zip(CELLS, notebook.cells[1:], strict=True)}


def test_bars_in_a_notebook_are_one_output_each_in_its_last_state(shown):
    (bar,) = shown["trained"]
    assert bar.output_type == "display_data"
    assert "30/30" in bar.data["text/html"]
    assert bar.data["text/html"].count("validation") == 1  # the only snapshot
    assert len(bar.data["text/html"]) < 3000
    (bar,) = shown["counted"]
    assert "likelihood" in bar.data["text/html"]
    assert "100%" in bar.data["text/html"]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("broken", "ValueError", "broken"),
        ("stopped", "Interrupted", "stopped after step 7 of 30, saved in stopped"),
    ],
)
def test_a_bar_shows_where_a_training_broke_off(name, kind, message, shown):
    bar, raised = shown[name]
    assert (raised.output_type, raised.ename, raised.evalue) == ("error", kind, message)
    assert "7/30" in bar.data["text/html"]
