"""benchmarks/families.py: equal parameters, answers that are checked as said, and a run from end to end."""

import runpy
import sys
from pathlib import Path

import torch

SCRIPT = str(Path(__file__).parents[2] / "benchmarks/families.py")


def test_families_have_equally_many_parameters_and_the_tasks_are_what_they_say():
    script = runpy.run_path(SCRIPT)
    sizes = [
        sum(parameter.numel() for parameter in contestant.model.parameters())
        for contestant in (script["decoder"](), script["encoder_decoder"](), script["encoder"]("sort"))
    ]
    assert max(sizes) / min(sizes) < 1.03
    strings = torch.tensor([[3, 1, 3, 1, 2]])
    answers = {name: task(strings)[0].tolist() for name, task in script["TASKS"].items()}
    assert answers == {"reverse": [2, 1, 3, 1, 3], "sort": [1, 1, 2, 3, 3], "classify": [1]}


def test_the_comparison_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--steps", "2", "--tasks", "sort", "classify"])
    runpy.run_path(SCRIPT, run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert [line.split()[1] for line in lines[1:4]] == ["decoder", "encoder-decoder", "encoder"]
