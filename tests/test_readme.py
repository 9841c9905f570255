"""What the README shows works as it stands there."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import bnmlp
from bnmlp.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf8")
MINE = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))
"""


def blocks(section, language):
    """Blocks of code below a heading."""
    _, below = README.split(f"\n## {section}\n")
    text = below.split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


def test_a_network_of_the_readers_own_is_measured(elsewhere, capsys):
    first, second = blocks("Measure your own network", "python")
    names = {}
    exec(first, names)
    report, model = names["report"], names["model"]
    assert report.verdict == "gradient-explosion" and report.findings[0].advice
    assert str(report) in capsys.readouterr().out
    assert len(report.layers) == 2 + 3 * 60
    assert (elsewhere / "report.html").read_text("utf8").startswith("<!doctype html>")
    assert "\n    ...  # a training loop" in second
    exec(second.replace("...", "model(x).sum().backward()"), names)
    assert model[1][1].running_mean.abs().max() > 0
    assert (elsewhere / "watched.csv").read_text("utf8").count("\n") == 1 + len(report.layers)


def test_so_it_is_from_the_command_line(elsewhere):
    (shell,) = blocks("Measure your own network", "bash")
    (elsewhere / "mine.py").write_text(MINE)
    for line in shell.replace("32x3x224x224", "2x3x64x64").splitlines():
        program, *arguments = shlex.split(line)
        assert program == ".venv/bin/bnmlp"
        found = CliRunner().invoke(app, arguments)
        assert found.exit_code == 0, found.output
    assert "ResNet" in (elsewhere / "report.html").read_text("utf8")
    told = json.loads((elsewhere / "report.json").read_text("utf8"))
    assert [row["kind"] for row in told["layers"]] == ["Linear", "ReLU", "Linear"]


def test_the_package_is_used_as_shown(elsewhere):
    (code,) = blocks("The package", "python")
    names = {}
    exec(code.replace("depth=1000", "depth=50"), names)
    assert names["norms"].shape == (51, 10)
    assert bnmlp.explosion_rate(names["norms"]).abs().max() < 0.02
