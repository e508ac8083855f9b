"""The script that measures the organization of the package counts what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FILES = {
    "README.md": "three words here",
    "iresnet/__init__.py": '"""Package."""',
    "iresnet/a.py": '"""What this is."""\nfrom iresnet.b import g\n\ndef _f():\n    return g\n\nx = _f()\n',
    "iresnet/b.py": '"""Module."""\n\ndef g():\n    from .a import x\n    return _h(_h(x))\n\ndef _h(y):\n    pass\n',
}


def measured(root, *options):
    command = [sys.executable, ROOT / "tools" / "house.py", "--root", root, *options]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return dict(line.strip("| ").rsplit(" | ", 1) for line in lines if line.startswith("|")), lines


@pytest.fixture
def repository(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_it_counts_a_small_repository(repository):
    rows, lines = measured(repository, "--list")
    assert rows["files, lines"] == "3, 16"
    assert rows["words of README and docs"] == "3"
    assert rows["import circles"] == "1"
    assert "  iresnet.a <-> iresnet.b" in lines
    assert rows["private helpers of at most 6 lines with one caller"] == "1 of 2"
    assert "  iresnet/a.py: _f" in lines
    assert rows["docstrings that open with What, Whether, How, Where"] == "33.3 %"


def test_it_traces_a_log_determinant_and_a_training_step():
    rows, lines = measured(ROOT, "--trace", "--list")
    assert 1 < int(rows["files entered by one log-determinant"]) < int(rows["files entered by one training step"])
    assert "  iresnet/bijections/residual.py" in lines[lines.index("files entered by one log-determinant:") :]
    entered = lines[lines.index("files entered by one training step:") + 1 :]
    page = (ROOT / "docs" / "architecture.md").read_text()
    walk = re.findall(r"^## Follow one training step\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)[0]
    named = {f"iresnet/{name}" for name in re.findall(r"`([\w/]+\.py)", walk)}
    assert named == {line.strip() for line in entered if line}
