"""The check that no held-out task was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import GristmillError
from .tasks import Task

TRAINING_FILES = {"sft": "dataset.jsonl", "dpo": "pairs.jsonl"}


def check_heldout(tasks: Sequence[Task], inputs: Mapping[str, Path]) -> dict[str, int]:
    """Number of training prompts looked at per aligned model; GristmillError names the first held-out task among them.

    Prompts are compared without regard to case and white space. A training file that is missing is an error too:
    a check that could not be made must not look like one that passed.
    """
    heldout = {_plain(task.prompt): task for task in tasks}
    checked = {}
    for stage, name in TRAINING_FILES.items():
        if stage in inputs:
            checked[stage] = _check_file(inputs[stage] / name, heldout, stage)
    return checked


def _check_file(path: Path, heldout: Mapping[str, Task], stage: str) -> int:
    if not path.exists():
        raise GristmillError(
            f"{path} is missing, so the held-out tasks cannot be checked against it; run stage {stage} again"
        )
    count = 0
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                prompt = _plain(json.loads(line)["prompt"])
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
                raise GristmillError(f"{path}, line {number} is no JSON object with a text in 'prompt'") from None
            task = heldout.get(prompt)
            if task is not None:
                raise GristmillError(
                    f"{path}, line {number} was trained on held-out task {task.id!r} ({task.prompt!r}): the accuracies "
                    "would not mean anything; take it out of the training data or evaluate with another seed"
                )
            count += 1
    return count


def _plain(prompt: str) -> str:
    return " ".join(prompt.split()).casefold()
