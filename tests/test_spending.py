"""What a training took is noted in cost.json, and nowhere else."""

import signal

import pytest

import iresnet as ir
from iresnet.config import load_config
from iresnet.errors import Interrupted
from iresnet.runs import Run
from iresnet.training import Callback, train
from iresnet.training.callbacks import PERIOD, Spending, Started, Stepped, Stopped


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def __call__(self, event):
        if isinstance(event, Stepped) and event.step == self.step:
            signal.raise_signal(signal.SIGINT)


def test_a_run_notes_its_steps_seconds_and_parameters(trained):
    folder = trained("density")
    cost = Run(folder).read_json("cost.json")
    assert cost["parameters"] == sum(p.numel() for p in ir.load(folder).parameters())
    (session,) = cost["sessions"]
    assert (session["from_step"], session["to_step"], session["processes"]) == (0, 20, 1)
    assert 0 < session["cpu_seconds"] < 600
    assert 0 < session["wall_seconds"] < 600
    assert session["started"].endswith("+00:00")


def test_every_process_of_a_run_has_its_own_note(tiny, tmp_path):
    recipe, *changes = tiny["toy"]
    config = load_config(recipe, changes)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", callbacks=[StopAt(5)])
    run = train(config, tmp_path / "run", resume=True)
    steps = [(note["from_step"], note["to_step"]) for note in run.read_json("cost.json")["sessions"]]
    assert steps[0] == (0, 5)
    assert steps[1][0] == 5
    before = (run.path / "cost.json").read_bytes()
    train(config, run.path, resume=True)  # there is nothing left to do
    assert (run.path / "cost.json").read_bytes() == before


def test_a_killed_process_has_noted_all_but_its_last_minute(tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, int(PERIOD) // 2 + 1))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    spending = Spending(Run(tmp_path))
    spending(Started(step=0, total_steps=10, steps_per_epoch=10, batch_size=1))
    for step in range(1, 8):
        spending(Stepped(step, 0.0))
    assert 5 <= Run(tmp_path).read_json("cost.json")["sessions"][0]["to_step"] <= 7
    spending(Stopped(complete=False))
    assert Run(tmp_path).read_json("cost.json")["sessions"][0]["to_step"] == 7


@pytest.mark.parametrize("text", ["{", "[]", '{"sessions": 3}'])
def test_a_damaged_note_is_begun_anew(text, tmp_path):
    (tmp_path / "cost.json").write_text(text)
    spending = Spending(Run(tmp_path))
    spending(Started(step=0, total_steps=1, steps_per_epoch=1, batch_size=1))
    spending(Stepped(1, 1.0))
    spending(Stopped(complete=True))
    assert len(Run(tmp_path).read_json("cost.json")["sessions"]) == 1
