"""Bars where somebody looks, and nothing elsewhere."""

import io
from contextlib import suppress

import pytest
from rich.console import Console

import iresnet as ir
from iresnet import bars
from iresnet.bars import Bar
from iresnet.training.progress import ProgressBar


class Output:
    """An output of a notebook, and what it showed."""

    def __init__(self):
        self.shown = []

    def display(self, picture, display_id):
        assert display_id
        assert not self.shown, "a second output"
        self.update(picture)
        return self

    def update(self, picture):
        console = Console(width=100, file=io.StringIO())
        console.print(picture)
        self.shown.append(console.file.getvalue())


@pytest.fixture
def notebook(monkeypatch):
    """A console as in a notebook, with its output."""
    output = Output()
    monkeypatch.setattr("IPython.display.display", output.display)
    return Console(file=io.StringIO(), force_jupyter=True), output


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=100)


def test_a_terminal_gets_a_bar_and_lines_above_it():
    console = terminal()
    bar = Bar("{task.description} {task.completed}", console=console)
    bar.start("steps", 3)
    bar.say("half of it")
    bar.update(completed=3)
    bar.stop()
    assert "half of it" in console.file.getvalue()
    assert "steps 3" in console.file.getvalue()


def test_a_file_gets_the_lines_alone():
    console = Console(file=io.StringIO())
    bar = Bar("{task.description} {task.completed}", console=console)
    bar.start("steps", 3)
    bar.say("half of it")
    bar.update(completed=3)
    bar.stop()
    assert console.file.getvalue() == "half of it\n"


def test_a_notebook_gets_one_output_with_the_last_lines(notebook):
    console, output = notebook
    bar = Bar("{task.description} {task.completed}", console=console)
    bar.start("steps", 1000)
    for step in range(1000):
        bar.update(completed=step + 1)
    for line in range(bars.N_LINES + 5):
        bar.say(f"line {line}.")
    bar.stop()
    assert console.file.getvalue() == ""
    assert "steps 1000" in output.shown[-1]
    assert "line 4." not in output.shown[-1]
    assert "line 5." in output.shown[-1]
    assert len(output.shown) < 1000 / 10  # drawn five times a second, however short the steps are


def test_a_bar_ends_with_what_it_counts(monkeypatch):
    console = terminal()
    monkeypatch.setattr(bars, "err", console)
    with suppress(ValueError), ir.progress("steps", 2) as advance:
        advance(1)
        assert console._live_stack
        raise ValueError
    assert console._live_stack == []
    assert "50%" in console.file.getvalue()


@pytest.mark.parametrize(
    ("console", "watched"),
    [(terminal(), True), (Console(file=io.StringIO(), force_jupyter=True), True), (Console(file=io.StringIO()), False)],
)
def test_a_trainer_has_a_bar_of_its_own_where_somebody_looks(console, watched, monkeypatch):
    monkeypatch.setattr(bars, "err", console)
    config = ir.load_config("toy-density", ["--model.blocks=1", "--model.hidden=4", "--train.epochs=1"])
    callbacks = ir.Trainer(config, device="cpu").callbacks
    assert [type(callback) for callback in callbacks] == [ProgressBar] * watched
    assert ir.Trainer(config, device="cpu", callbacks=[]).callbacks == []


def test_the_other_processes_show_nothing(monkeypatch):
    monkeypatch.setattr(bars, "err", terminal())
    monkeypatch.setenv("RANK", "1")
    assert not bars.watched()
    with ir.progress("steps", 2) as advance:
        advance(2)
    assert bars.err.file.getvalue() == ""
