"""The page of results says what the archives beside it say, and a new seed joins those that are kept."""

import json
import zipfile

import pytest
import reproduce
import result_tables


@pytest.mark.parametrize("name", result_tables.TABLES)
def test_a_table_of_the_page_is_that_of_the_archives(name):
    table = result_tables.TABLES[name](reproduce.results())
    assert f"<!-- {name} -->\n{table}\n<!-- /{name} -->" in reproduce.PAGE.read_text(encoding="utf-8")


def test_every_experiment_is_kept_with_its_command_and_without_where_its_data_lay():
    for name, experiment in (pair for group in reproduce.GROUPS.values() for pair in group.items()):
        runs = reproduce.archived(name)
        assert runs, name
        for run in runs:
            seed = int(run.name.removeprefix("seed-"))
            command = " ".join(["iresnet", *experiment.command(seed)])
            assert json.loads((run / "origin.json").read_text())["command"] == command
            assert "data_dir" not in json.loads((run / "env.json").read_text())


def run_of(folder, seed, commit):
    run = folder / f"seed-{seed}"
    run.mkdir(parents=True)
    (run / "origin.json").write_text(commit)
    (run / "env.json").write_text('{"data_dir": "somewhere", "torch": "2"}')
    (run / "model.safetensors").write_text("large")
    return run


def test_new_seeds_join_the_kept_ones_and_replace_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "RAW", tmp_path / "results")
    reproduce.archive("some", [run_of(tmp_path / "a", seed, "old") for seed in (0, 1)])
    reproduce.archive("some", [run_of(tmp_path / "b", seed, "new") for seed in (2, 1)])
    runs = reproduce.archived("some")
    assert [(run.name, (run / "origin.json").read_text()) for run in runs] == [
        ("seed-0", "old"),
        ("seed-1", "new"),
        ("seed-2", "new"),
    ]
    assert json.loads((runs[0] / "env.json").read_text()) == {"torch": "2"}
    assert len(zipfile.ZipFile(tmp_path / "results" / "some.zip").namelist()) == 6
